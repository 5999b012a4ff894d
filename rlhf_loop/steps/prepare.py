"""Before a round: prompts and collected feedback go into the store, and what cannot work is refused before anything is
computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_loop.endpoints.client import api_key_of, unknown
from rlhf_loop.errors import UserError
from rlhf_loop.feedback.intake.import_file import import_and_split, import_file
from rlhf_loop.feedback.intake.prompts import read_prompts
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.model_checks import check_classifier
from rlhf_loop.progress import RunProgress
from rlhf_loop.recipe import Recipe, RewardModelJudge
from rlhf_loop.records import Prompt, Split
from rlhf_loop.reward_function import check_columns
from rlhf_loop.reward_spec import (
    CriticSpec,
    FunctionSpec,
    JudgeSpec,
    PretrainedSpec,
    TrainedSpec,
    check_trainer,
    load_spec,
)
from rlhf_loop.steps.assemble import REMEDIES
from rlhf_loop.steps.contents import endpoints_of_rewards, has_critic


def take_in(store: Store, recipe: Recipe, progress: RunProgress) -> None:
    """Puts the recipe's prompts and imports into the store; a second time changes nothing."""
    for split in ("train", "dev", "test"):
        for path in getattr(recipe.prompts, split):
            store.add_prompts(read_prompts(path, split))
    for wanted in recipe.feedback.imports:
        if wanted.split is not None:
            summary = import_file(
                store,
                wanted.path,
                wanted.format,
                columns=wanted.map,
                redact=wanted.redact,
                scales=wanted.scale,
                splits=wanted.split,
            )
        else:
            summary = import_and_split(
                store,
                wanted.path,
                wanted.format,
                wanted.redact,
                recipe.seed,
                recipe.prompts.test_fraction,
                recipe.prompts.judge_fraction,
                wanted.scale,
                wanted.map,
            )
        if summary.all_rejected:
            raise UserError(f"no row of {wanted.path} can be used. The first: {summary.examples[0]}")
        new = summary.new
        if new["feedback"] or new["quarantined"]:
            progress.say(
                f"imported {wanted.path.name}: {new['feedback']} pieces of feedback on {new['prompts']} prompts, "
                f"{new['quarantined']} rows quarantined (rlhf-loop feedback check)"
            )
            for reason, count in summary.notes.most_common(5):
                progress.say(f"  {count} rows: {reason}")
            if summary.redacted:
                progress.say(f"{summary.redacted} rows held personal data, which is not stored")


def check_demonstrations(store: Store, recipe: Recipe) -> None:
    """Raises `UserError` for a warm start, or an sft update, that nothing can feed."""
    annotator = recipe.feedback.annotator
    if recipe.warm_start is None and recipe.update.algorithm != "sft":
        return
    train = {prompt.id: prompt for prompt in store.prompts(split="train")}
    written = any(prompt.reference for prompt in train.values()) or any(
        record.prompt_id in train for record in store.feedback(kinds=["edit"])
    )
    if written:
        return
    if recipe.warm_start is not None:
        raise UserError(
            "warm_start: there is nothing to imitate before round 1: give training prompts a `reference` answer, "
            "or import edits of answers with `feedback.imports`"
        )
    if recipe.critiques is not None and recipe.critiques.gives("demonstrations"):
        return
    asks = recipe.feedback.questions_per_round > 0
    if not (asks and (annotator is None or "edit" in annotator.gives)):
        raise UserError(f"update.algorithm: sft has no demonstrations to learn from. {REMEDIES['demonstrations']}")


def check_rewards(store: Store, recipe: Recipe) -> None:
    """Raises `UserError` for a folder that is no reward model, settings that it cannot be trained with, or a function
    that asks for what there is not."""
    _check_critics(recipe)
    reward, judge = recipe.reward, recipe.evaluation.judge
    wanted = recipe.evaluation.split
    if reward is not None:
        folders = [one.model for one in reward.weighted()]
        _check_rewards(store, ("train", wanted), folders, reward.trainer, "reward")
    if isinstance(judge, RewardModelJudge):
        _check_rewards(store, ("judge", wanted), [judge.model], judge.trainer, "evaluation.judge")
    _check_judges(recipe)
    _check_bases(recipe)


def check_keys(recipe: Recipe) -> None:
    """Raises `UserError` where a variable is not set that holds the key of an endpoint that the recipe uses."""
    blocks = (recipe.policy, recipe.feedback.annotator, recipe.evaluation.judge, recipe.generation)
    checks = recipe.critiques.checks if recipe.critiques is not None else None
    named = [getattr(block, "endpoint", None) for block in (*blocks, checks and checks.judge)]
    for name in [*named, *endpoints_of_rewards(recipe)]:
        if name is not None:
            api_key_of(name, recipe.endpoints[name])


def _check_bases(recipe: Recipe) -> None:
    """What is trained on a policy's weights, or reads its hidden states, needs them here."""
    named = recipe.policy.endpoint
    if named is None:
        return
    for one in recipe.reward.weighted() if recipe.reward is not None else ():
        spec = load_spec(one.model)
        if isinstance(spec, TrainedSpec) and spec.base == "policy":
            raise UserError(
                f"reward: {one.model.name} stands on the policy's weights, and those of endpoint:{named} are behind a "
                "server; set `base: MODEL` in its reward_model.yaml, or name a folder of `kind: function`, "
                "`pretrained` or `judge`"
            )
    embed = recipe.generation.embeds
    if embed is not None and embed.model is None:
        raise UserError(
            f"generation.embed: texts are read by the policy's weights, and those of endpoint:{named} are behind a "
            "server; set `generation.embed.model`"
        )


def _check_judges(recipe: Recipe) -> None:
    """A score of a model behind a server needs that server, and judges policies only once its agreement is known."""
    for name in endpoints_of_rewards(recipe):
        if name not in recipe.endpoints:
            raise UserError(f"reward: {unknown(name, recipe.endpoints)}")
    judge = recipe.evaluation.judge
    if isinstance(judge, RewardModelJudge) and isinstance(load_spec(judge.model), JudgeSpec):
        raise UserError(
            f"evaluation.judge: {judge.model.name} asks a model behind a server, of which nobody knows how well it "
            "agrees with people; use `judge: {kind: endpoint, endpoint: NAME, calibration: FILE}`"
        )


def _check_critics(recipe: Recipe) -> None:
    """A critic needs what people said, which is there where the recipe asks for it; a judge's is not kept apart."""
    judge = recipe.evaluation.judge
    if isinstance(judge, RewardModelJudge) and isinstance(load_spec(judge.model), CriticSpec):
        raise UserError(
            f"evaluation.judge: {judge.model.name} is a critic, and critiques of the feedback kept apart are not "
            "collected; use a judge such as reward_models/frozen_head"
        )
    if recipe.critiques is None and has_critic(recipe):
        raise UserError(
            "reward: a critic learns from what people said of answers; add `critiques: {}` to the recipe, which keeps "
            "that in each round's snapshot"
        )


def _check_rewards(
    store: Store, splits: Sequence[Split], folders: Sequence[Path], trainer: Mapping[str, Any], where: str
) -> None:
    specs = [load_spec(folder) for folder in folders]
    check_trainer(specs, trainer, where)

    def prompts() -> dict[str, list[Prompt]]:
        found = {split: store.prompts(split=split) for split in splits}
        return {split: given for split, given in found.items() if given}

    for folder, spec in zip(folders, specs, strict=True):
        if isinstance(spec, FunctionSpec):
            check_columns(folder, spec, prompts)
        if isinstance(spec, PretrainedSpec):
            check_classifier(spec.model, spec.outputs, spec.max_length)
