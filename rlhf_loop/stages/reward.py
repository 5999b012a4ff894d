"""Stage 2: train the reward model (or the judge) on people's pairs, and measure it on prompts it has not seen.

pairs.parquet  prompts.parquet  (critiques.parquet for a critic)
    ->  reward/COMPONENT/  components.json  metrics.json  features.parquet
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_loop.algorithms import TRAINER_CONFIGS
from rlhf_loop.endpoints.client import Endpoints
from rlhf_loop.files import read_json, without_times, write_json
from rlhf_loop.files.damage import hash_file
from rlhf_loop.generation import write_greedily
from rlhf_loop.models.checks import check_model
from rlhf_loop.models.distributed import barrier, is_main
from rlhf_loop.models.files import resolve_model
from rlhf_loop.progress import Progress, counting, silent
from rlhf_loop.recipe import EVAL_FRACTION, RewardComponent, RewardModelJudge, parse
from rlhf_loop.record_files import read_records
from rlhf_loop.records import CritiquedCompletion, PreferencePair, Prompt, stable_id
from rlhf_loop.reward_spec import JudgeSpec
from rlhf_loop.rewards import Reward, combine, load_reward, load_spec, train_reward_model
from rlhf_loop.rewards.kept_features import KeptFeatures
from rlhf_loop.rewards.texts import of_pairs
from rlhf_loop.stages.arguments import StageArguments


def run(arguments: StageArguments, folder: Path, progress: Progress) -> None:
    """Trains each component of the recipe's reward; `values["role"]` is "reward" or "judge"."""
    recipe = parse(arguments.recipe)
    pairs: list[PreferencePair] = read_records(Path(arguments.inputs["pairs"]), PreferencePair)
    prompts: list[Prompt] = read_records(Path(arguments.inputs["prompts"]), Prompt)
    role = arguments.values["role"]
    if role == "judge":
        if recipe.policy.endpoint is None:  # the first of all that is computed
            from rlhf_loop.updates.adapters import lora_config  # PEFT: two seconds that scoring can do without

            check_model(recipe.policy, lora_config(recipe.update.lora) if recipe.update.lora else None)
        assert isinstance(recipe.evaluation.judge, RewardModelJudge)
        components = [RewardComponent(model=recipe.evaluation.judge.model)]
        trainer = recipe.evaluation.judge.trainer
    else:
        assert recipe.reward is not None
        components, trainer = recipe.reward.weighted(), recipe.reward.trainer
    seed = int(stable_id(recipe.seed, role, arguments.round)[:7], 16)
    fraction = EVAL_FRACTION if recipe.reward is None else recipe.reward.eval_fraction  # None: only a judge
    train, held_out = split_by_group(pairs, fraction, recipe.seed)
    critiques = critiques_beside(arguments.inputs.get("critiques"), held_out)
    if recipe.policy.endpoint is None:
        resolve_model(recipe.policy.model)
    features = KeptFeatures(kept_before(arguments))
    metrics: dict[str, Any] = {}
    listed: list[dict[str, Any]] = []
    endpoints = Endpoints(recipe.endpoints, arguments.run, counting(progress, "asking"))
    asked: list[Any] = []
    for number, component in enumerate(components):
        name = component.model.name if len(components) == 1 else f"{number}_{component.model.name}"
        spec = load_spec(component.model)
        trained = train_reward_model(
            spec,
            train,
            folder / name,
            policy=recipe.policy,
            eval_pairs=held_out,
            seed=seed + number,
            trainer=trainer if spec.kind in TRAINER_CONFIGS else {},
            report_to=(),
            progress=progress,
            prompts=prompts,
            features=features,
            endpoints=endpoints,
            critiques=critiques,
            writer=write_greedily,
        )
        held_out_metrics = trained.pop("eval") or {}
        metrics[name] = without_times({**trained, **held_out_metrics})
        listed.append({"name": name, "weight": component.weight})
        if isinstance(spec, JudgeSpec):
            asked.append(recipe.endpoints[spec.endpoint].identity)
    features.write(folder, of_pairs(pairs))
    if is_main():
        id = _id("judge" if role == "judge" else "reward_model", arguments, folder, listed, asked)
        write_json(folder / "components.json", {"id": id, "components": listed})
        write_json(folder / "metrics.json", metrics)
    barrier()


def _id(kind: str, arguments: StageArguments, folder: Path, components: list[dict[str, Any]], asked: list[Any]) -> str:
    """By content: what was trained, the files that describe what needs no training, the endpoints that are asked."""
    weights = [hash_file(path) for path in sorted(folder.rglob("*.safetensors"))]
    digest = stable_id(kind, arguments.round, arguments.values["specs"], components, weights, *asked)
    return f"{kind}-{arguments.round:03d}-{digest[:8]}"


def kept_before(arguments: StageArguments) -> list[Path]:
    """The folders of earlier steps that kept features of texts, the last round first."""
    named = sorted(arguments.inputs.items(), reverse=True)
    return [Path(folder) for name, folder in named if name.startswith("features_")]


def load(
    folder: Path,
    recipe_values: dict[str, Any],
    features: KeptFeatures | None = None,
    progress: Progress = silent,
) -> Reward:
    """The reward that this stage made in `folder`, RUN/round_NNN/STEP: one model, or the weighted sum of several;
    `features`: those that need not be computed again; `progress`: told of how many texts an endpoint has scored."""
    recipe = parse(recipe_values)
    endpoints = Endpoints(recipe.endpoints, folder.parent.parent, counting(progress, "asking"))
    listed = read_json(folder / "components.json")
    rewards = [
        (
            load_reward(
                folder / c["name"],
                id=listed["id"],
                policy=recipe.policy,
                features=features,
                endpoints=endpoints,
                writer=write_greedily,
            ),
            c["weight"],
        )
        for c in listed["components"]
    ]
    return rewards[0][0] if len(rewards) == 1 and rewards[0][1] == 1.0 else combine(rewards)


def critiques_beside(file: str | None, held_out: Sequence[PreferencePair]) -> list[CritiquedCompletion]:
    """What people said of answers, without the groups that measure the reward model."""
    rows: list[CritiquedCompletion] = read_records(Path(file), CritiquedCompletion) if file else []
    groups = {pair.group for pair in held_out}
    return [row for row in rows if row.group not in groups and row.origin != "implicit"]


def split_by_group(
    pairs: list[PreferencePair], fraction: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Training and held-out pairs: whole groups, about `fraction` of them held out, at least one on each side."""
    groups = sorted({pair.group for pair in pairs}, key=lambda group: stable_id("held out", seed, group))
    if len(groups) < 2:
        return pairs, []
    held = set(groups[: min(max(1, round(fraction * len(groups))), len(groups) - 1)])
    return [p for p in pairs if p.group not in held], [p for p in pairs if p.group in held]
