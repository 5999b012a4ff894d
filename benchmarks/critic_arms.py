"""Three reward models on the same pairs, one of which writes: what `critic_ukp.py` and `critic_defacto.py` share.

    bradley_terry   one linear output, begun at the linear probe, as reward_models/bradley_terry is
    critic          reward_models/critic: learns to write people's critiques first, then the reward on critiques of its
                    own
    no_critique     the critic's own head and question, but its critique is always empty, in training too

They have one base, the same adapter, pairs, batches, learning rate and number of steps on the pairs. Reported are the
accuracy on held-out pairs, plain and length-balanced, of the critic also with empty and with shuffled critiques, and
differences on the same pairs, with intervals from resampling groups over all seeds.

`--work DIR` keeps models and what each arm gave, and goes on from them. The result, `--out FILE`, holds who won every
held-out pair: called again with other seeds it adds these to the file's.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
from machine import describe
from reward_ukp import UPPER_HALF

from rlhf_loop.generation import write_greedily
from rlhf_loop.models.wheel_model import WHEEL_MODEL
from rlhf_loop.recipe import Policy
from rlhf_loop.records import CritiquedCompletion, PreferencePair
from rlhf_loop.reward_spec import parse_spec
from rlhf_loop.rewards import load_reward, train_reward_model
from rlhf_loop.rewards.critic_controls import Given, controls
from rlhf_loop.rewards.metrics import cluster_bootstrap
from rlhf_loop.rewards.texts import texts_of_pairs

ARMS = ("critic", "critic_empty", "critic_shuffled", "no_critique", "bradley_terry")
WON = {"1": 1.0, "0": 0.0, "=": 0.5}  # the preferred side has the higher reward, the lower, the same
LONGER = {"+": 1, "-": -1, "=": 0}  # the preferred side has more words, fewer, as many
LORA = {"r": 16, "alpha": 32, "target_modules": UPPER_HALF}
TRAINER = {
    "learning_rate": 5e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "max_grad_norm": 1.0,
    "save_steps": 8,
}
Specs = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """What a seed trains on, and what it is measured on."""

    train: Sequence[PreferencePair]
    critiques: Sequence[CritiquedCompletion]
    held_out: Mapping[str, Sequence[PreferencePair]]  # under the name of what the pairs tell
    about: Mapping[str, Any]  # what else the result says of it


def specs(question: str, max_critique: int, **trainer: Any) -> Specs:
    """The settings of the three; `trainer` has what a data set's own sizes ask for."""
    own = {**TRAINER, **trainer}
    sft = {**TRAINER, "num_train_epochs": 1, "per_device_train_batch_size": 8}
    critic = {
        "kind": "critic",
        "lora": LORA,
        "max_critique": max_critique,
        "max_texts": 48,
        "question": question,
        "trainer": own,
    }
    return {
        "bradley_terry": {"kind": "bradley_terry", "lora": LORA, "max_texts": 48, "trainer": own},
        "critic": {**critic, "sft": sft},
        "no_critique": {**critic, "sft": {**sft, "max_steps": 1, "learning_rate": 0.0}, "lm_weight": 0.0},
    }


def compare(description: str | None, settings: Specs, draw: Callable[[Path, int], Drawn]) -> None:
    """The command: trains and measures the three with each seed that `--out` has not yet, and prints the summary of all
    seeds. `draw(data, seed)` gives the pairs; `SystemExit` where the file's figures are of other settings."""
    arguments = _parse(description)
    folder = arguments.work or Path(tempfile.mkdtemp(prefix="critic_"))
    ran_with = json.loads(json.dumps({"model": arguments.model, "settings": settings}))
    seeds: dict[str, Any] = {}
    if arguments.out and arguments.out.exists():
        before = json.loads(arguments.out.read_text())
        if any(before.get(key) != value for key, value in ran_with.items()):
            raise SystemExit(f"{arguments.out} was measured with other settings or another model: give another --out")
        seeds = before["seeds"]
    for seed in arguments.seeds:
        if str(seed) not in seeds:
            drawn = draw(arguments.data, seed)
            seeds[str(seed)] = run_seed(drawn, settings, seed, Policy(model=arguments.model), folder)
        seeds = dict(sorted(seeds.items(), key=lambda item: int(item[0])))
        measured = summaries([of_seed["won"] for of_seed in seeds.values()])
        print(json.dumps(measured), flush=True)
        if arguments.out:
            result = {"machine": describe(), **ran_with, "seeds": seeds, "measured": measured}
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def run_seed(drawn: Drawn, settings: Specs, seed: int, policy: Policy, folder: Path) -> dict[str, Any]:
    """Trains the three; gives counts, seconds of training and of scoring, what the critic wrote, who won each held-out
    pair (`won`, see `outcomes`), and the seed's own accuracies (`measured`)."""
    texts, _ = texts_of_pairs([pair for pairs in drawn.held_out.values() for pair in pairs])
    result: dict[str, Any] = {**drawn.about, "pairs": len(drawn.train), "critiques": len(drawn.critiques)}
    values: dict[str, list[float]] = {}
    for name in settings:
        kept = folder / f"{name}_{seed}.json"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(_run_arm(name, drawn, settings[name], seed, policy, folder)))
        of_arm = json.loads(kept.read_text())
        values |= of_arm.pop("values")
        result |= of_arm
        print(name, json.dumps(result[name]), flush=True)
    rewards = {name: dict(zip(texts, given, strict=True)) for name, given in values.items()}
    result["won"] = {name: outcomes(pairs, rewards) for name, pairs in drawn.held_out.items()}
    result["measured"] = summaries([result["won"]])
    return result


def _run_arm(
    name: str, drawn: Drawn, settings: dict[str, Any], seed: int, policy: Policy, folder: Path
) -> dict[str, Any]:
    """Counts, seconds of training (None: an earlier call did it) and of scoring under the arm's name, and the `values`
    of the held-out texts; of the critic what it wrote."""
    held_out = [pair for pairs in drawn.held_out.values() for pair in pairs]
    texts, _ = texts_of_pairs(held_out)
    options = {"policy": policy, "writer": write_nothing if name == "no_critique" else write_greedily}
    started = time.perf_counter()
    trained = folder / f"{name}_{seed}"
    before = trained / "metrics.json"  # the last file of a training
    if was_trained := before.exists():
        metrics = json.loads(before.read_text())
    else:
        metrics = train_reward_model(
            parse_spec(settings), drawn.train, trained, eval_pairs=[], seed=seed, critiques=drawn.critiques,
            progress=lambda done, total, text: print(f"{name} {done}/{total} {text}", flush=True), **options,
        )  # fmt: skip
    begun = time.perf_counter()
    reward = load_reward(trained, id=name, **options)
    result: dict[str, Any] = {"values": {}}
    if name == "critic":
        for kind, given in controls(reward, held_out, seed).items():
            result["values"][name if kind == "own" else f"{name}_{kind}"] = Given(reward, given).values(texts, {})
            if kind == "own":
                result["written"] = shown(reward.asked.turns, given)
    else:
        result["values"][name] = reward.values(texts, {})
    result[name] = {key: metrics[key] for key in metrics if key not in ("eval", "kind", "seconds")}
    result[name]["seconds"] = [None if was_trained else round(begun - started), round(time.perf_counter() - begun)]
    return result


def write_nothing(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """In place of critiques: a turn that ends at once."""
    from rlhf_loop.models.turns import Turns

    return [[Turns(tokenizer, model).end]] * len(prompts)


def shown(turns: Any, critiques: dict[Any, list[int]]) -> dict[str, Any]:
    """What a critic wrote: how varied, and some to read."""
    written = {text.completion: turns.text(ids).strip() for text, ids in critiques.items()}
    few = list(written.items())[:: max(1, len(written) // 8)][:8]
    return {
        "of_texts": len(written),
        "distinct": len(set(written.values())),
        "commonest": Counter(written.values()).most_common(1)[0][1],
        "mean_words": round(float(np.mean([len(text.split()) for text in written.values()])), 1),
        "examples": [{"answer": answer, "critique": critique} for answer, critique in few],
    }


def outcomes(pairs: Sequence[PreferencePair], rewards: Mapping[str, Mapping[Any, float]]) -> dict[str, str]:
    """A character for each pair: which side is `longer`, and who won it by each arm's `rewards` of texts (`LONGER`,
    `WON`); `groups` names the pairs' groups, each with how many pairs follow one another."""
    texts, indices = texts_of_pairs(pairs)
    words = [len(text.completion.split()) for text in texts]

    def signs(values: Sequence[float], characters: str) -> str:
        margins = [values[chosen] - values[rejected] for chosen, rejected in indices]
        return "".join(characters[int(np.sign(margin))] for margin in margins)

    return {
        "groups": " ".join(f"{name}:{len(list(of_group))}" for name, of_group in groupby(pair.group for pair in pairs)),
        "longer": signs(words, "=+-"),
        **{name: signs([of_arm[text] for text in texts], "=10") for name, of_arm in rewards.items()},
    }


def summaries(seeds: Sequence[Mapping[str, Mapping[str, str]]]) -> dict[str, Any]:
    """What `summary` gives of each kind of held-out pairs, over the seeds."""
    return {name: summary([of_seed[name] for of_seed in seeds]) for name in seeds[0]}


def summary(seeds: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Accuracies of each arm, and differences of the critic to the others on the same pairs, over the seeds' pairs.

    A group that several seeds hold out is resampled as one."""
    named = [part.rpartition(":") for of_seed in seeds for part in of_seed["groups"].split(" ")]
    groups = [name for name, _, size in named for _ in range(int(size))]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    clusters = np.array([numbers[group] for group in groups])
    longer = np.array([LONGER[sign] for of_seed in seeds for sign in of_seed["longer"]])
    won_by = {name: np.array([WON[one] for of_seed in seeds for one in of_seed[name]]) for name in ARMS}
    won_by["longer_wins"] = (longer > 0) + 0.5 * (longer == 0)
    differences = {name: won_by["critic"] - won_by[name] for name in ARMS[1:]}
    differences["no_critique - bradley_terry"] = won_by["no_critique"] - won_by["bradley_terry"]

    def both(values: Any) -> dict[str, Any]:
        by_length = [np.where(of, values, np.nan) for of in (longer > 0, longer < 0)]
        return {
            "accuracy": cluster_bootstrap([values], clusters),
            "length_balanced_accuracy": cluster_bootstrap(by_length, clusters),
        }

    measured = {name: both(values) for name, values in won_by.items()}
    return {
        **{
            measure: {name: of_arm[measure] for name, of_arm in measured.items()}
            for measure in ("accuracy", "length_balanced_accuracy")
        },
        "differences": {name: both(values) for name, values in differences.items()},
    }


def _parse(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="JSON file for the result; the seeds that it has are not run again")
    parser.add_argument("--work", type=Path, help="keep models and finished arms here, and go on from them")
    parser.add_argument("--model", default=WHEEL_MODEL, help="the base, any model reference")
    return parser.parse_args()
