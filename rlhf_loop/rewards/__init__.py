"""Reward models: train one on preference pairs, load one, score with it. Each works without the loop.

A new kind is one file here, named as the kind, with its settings (a `TrainedSpec`), `train` and `load`, and a line in
`reward_spec.SPECS`; a new model of a known kind is a folder in `reward_models/`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rlhf_loop.endpoints.client import Endpoints
from rlhf_loop.errors import UserError
from rlhf_loop.files.damage import loading
from rlhf_loop.reward_spec import (
    BradleyTerrySpec,
    CriticSpec,
    FunctionSpec,
    HeadSpec,
    JudgeSpec,
    PretrainedSpec,
    RewardSpec,
    TrainedSpec,
    load_spec,
    with_trainer,
    write_spec,
)
from rlhf_loop.rewards.base import Reward, WeightedSum

if TYPE_CHECKING:
    from rlhf_loop.progress import Progress
    from rlhf_loop.recipe import Policy
    from rlhf_loop.records import CritiquedCompletion, PreferencePair, Prompt
    from rlhf_loop.rewards.critic import Writer
    from rlhf_loop.rewards.kept_features import KeptFeatures
    from rlhf_loop.rewards.texts import Text

__all__ = ["Reward", "RewardSpec", "combine", "evaluate_reward", "load_reward", "load_spec", "train_reward_model"]


def train_reward_model(
    spec: RewardSpec,
    pairs: Sequence[PreferencePair],
    output: Path,
    *,
    policy: Policy,
    eval_pairs: Sequence[PreferencePair],
    seed: int,
    trainer: Mapping[str, Any] | None = None,
    report_to: Sequence[str] = (),
    progress: Progress | None = None,
    prompts: Sequence[Prompt] = (),
    features: KeptFeatures | None = None,
    endpoints: Endpoints | None = None,
    critiques: Sequence[CritiquedCompletion] = (),
    writer: Writer | None = None,
) -> dict[str, Any]:
    """Trains what `spec` describes on `pairs` and measures it on `eval_pairs`.

    `output` then holds `reward_model.yaml`, the weights (safetensors) and `metrics.json`. Returned is its content, with
    timings: counts of pairs used and left out, and under `eval` what `evaluate_reward` gives. Called again after an
    interruption it goes on from the last whole checkpoint, with the same result on a CPU. `trainer` replaces keys of
    the spec's own `trainer` block. `prompts`: those of the pairs, whose columns a function may ask for. `features`:
    those that a head need not compute again. `endpoints`: those of the recipe, one of which a judge asks. `critiques`:
    what people said of answers to prompts that are not held out, and `writer`: how a model writes
    (`rlhf_loop.generation.write_greedily`); a critic needs both. Raises `UserError` for anything the user can mend.
    """
    from rlhf_loop.files import without_times, write_json
    from rlhf_loop.models.distributed import barrier, is_main

    started = time.perf_counter()
    output = Path(output)
    source = spec.folder
    spec = with_trainer(spec, trainer or {})
    output.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, Any] = {"kind": spec.kind}
    if isinstance(spec, FunctionSpec):
        if source is None:
            raise UserError("a function's spec must be read from its folder with `load_spec(FOLDER)`")
        if is_main():
            _module("function").copy(spec, source, output)
        metrics["pairs"] = len(pairs)
    elif isinstance(spec, (JudgeSpec, PretrainedSpec)):
        metrics["pairs"] = len(pairs)  # they only measure it
    else:
        if isinstance(spec, BradleyTerrySpec):
            trained = _module(spec.kind).train(
                spec, pairs, output, policy=policy, seed=seed, report_to=report_to, progress=progress
            )
        else:
            options: dict[str, Any] = {"kept": features} if isinstance(spec, HeadSpec) else {}
            if isinstance(spec, CriticSpec):
                options = {"critiques": critiques, "writer": writer, "progress": progress}
            trained = _module(spec.kind).train(spec, pairs, output, policy=policy, seed=seed, **options)
        metrics.update(trained)
        # Written with the base it was trained on, whatever the recipe's policy is when it is loaded.
        if isinstance(spec, TrainedSpec) and spec.base == "policy":
            spec = spec.model_copy(update={"base": policy.model})
    if is_main():
        write_spec(spec, output)
    barrier()
    reward = load_reward(output, id=output.name, policy=policy, features=features, endpoints=endpoints, writer=writer)
    measure = _module("critic_controls").evaluate if isinstance(spec, CriticSpec) else evaluate_reward
    metrics["eval"] = measure(reward, eval_pairs, seed=seed, prompts=prompts)
    metrics["seconds"] = round(time.perf_counter() - started, 3)
    if is_main():
        write_json(output / "metrics.json", without_times(metrics))
    barrier()
    return metrics


def load_reward(
    folder: Path,
    *,
    id: str,
    policy: Policy,
    features: KeptFeatures | None = None,
    endpoints: Endpoints | None = None,
    writer: Writer | None = None,
) -> Reward:
    """The reward model in `folder`: one that `train_reward_model` wrote, or a function of the catalogue.

    `id` is written on its scores; `policy` says which base `base: policy` means, its dtype and system prompt;
    `features`: those that a head need not compute again; `endpoints`: those of the recipe, one of which a judge asks;
    `writer`: how a critic writes, which needs one. Raises `UserError` when the folder is no reward model or one that
    was not trained.
    """
    folder = Path(folder)
    spec = load_spec(folder)
    module = _module(spec.kind)
    options: dict[str, Any] = {} if isinstance(spec, (FunctionSpec, JudgeSpec)) else {"policy": policy}
    if isinstance(spec, JudgeSpec):
        options["client"] = (endpoints or Endpoints({}))[spec.endpoint]
    if isinstance(spec, HeadSpec):
        options["kept"] = features
    if isinstance(spec, CriticSpec):
        options["writer"] = writer
    with loading(folder, "a reward model"):
        reward: Reward = module.load(folder, spec, id=id, **options)
    return reward


def combine(parts: Sequence[tuple[Reward, float]], id: str | None = None) -> Reward:
    """The weighted sum of several rewards; each part's share is in the breakdown of its scores, under its name.

    `id`: written on the scores; by default the ids of the parts. Raises `UserError` for none, or two of one name.
    """
    names = [reward.name for reward, _ in parts]
    if not names:
        raise UserError("a sum of rewards needs at least one")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two parts of the reward are called {', '.join(twice)}; give them folders of different names")
    return WeightedSum(parts, id or "+".join(dict.fromkeys(reward.id for reward, _ in parts)))


def evaluate_reward(
    reward: Reward, pairs: Sequence[PreferencePair], seed: int = 0, prompts: Sequence[Prompt] = ()
) -> dict[str, Any] | None:
    """How often `reward` agrees with `pairs`, and how well it knows it: see `metrics.preference_metrics`.

    `prompts`: those of the pairs, for the columns that a function may ask for (without: what the pairs themselves say).
    Intervals resample whole groups. All ranks take part. None when there are no pairs
    of which the reward has something to say on both sides.
    """
    from rlhf_loop.models.distributed import sharded_map
    from rlhf_loop.records import Prompt
    from rlhf_loop.reward_columns import columns_of
    from rlhf_loop.rewards.metrics import preference_metrics
    from rlhf_loop.rewards.texts import texts_of_pairs

    if not pairs:
        return None
    known = {pair.prompt_id: Prompt(id=pair.prompt_id, group=pair.group, messages=pair.prompt) for pair in pairs}
    known |= {prompt.id: prompt for prompt in prompts}
    numbers: dict[tuple[str, Text], int] = {}  # equal texts of different prompts may have different references
    indices = []
    for pair in pairs:
        own, ((chosen, rejected),) = texts_of_pairs([pair])
        places = [numbers.setdefault((pair.prompt_id, text), len(numbers)) for text in own]
        indices.append((places[chosen], places[rejected]))
    texts = list(numbers)

    def values_of(share: Sequence[tuple[str, Text]]) -> list[float | None]:
        columns = columns_of([known[prompt_id] for prompt_id, _ in share], known.values())
        return reward.checked_values([text for _, text in share], columns)

    started = time.perf_counter()
    values = sharded_map(values_of, texts)
    seconds = time.perf_counter() - started
    words = [len(text.completion.split()) for _, text in texts]
    known_of = [number for number, both in enumerate(indices) if all(values[text] is not None for text in both)]
    if not known_of:
        return None
    pairs, indices = [pairs[number] for number in known_of], [indices[number] for number in known_of]
    measured = preference_metrics(
        [values[chosen] for chosen, _ in indices],
        [values[rejected] for _, rejected in indices],
        [pair.group for pair in pairs],
        [words[chosen] for chosen, _ in indices],
        [words[rejected] for _, rejected in indices],
        seed=seed,
    )
    return {**measured, "distinct_texts": len(texts), "scoring_seconds": round(seconds, 3)}


def _module(kind: str) -> ModuleType:
    """The module of a kind of reward model; imported when used, so that a recipe is checked without torch."""
    return import_module(f"rlhf_loop.rewards.{kind}")
