"""Policy updates: one file an algorithm. What each consumes stands in `rlhf_loop/algorithms.py`.

Every update is a function of the same signature:

    update(rows, training) -> metrics

where `training` (`rlhf_loop.updates.train_and_save.Training`) holds the other arguments of `update_policy`. It writes
the new policy to `output/policy` (an adapter or full weights). An online one also gets `reward` and `generation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from rlhf_loop.algorithms import ALGORITHMS
from rlhf_loop.errors import UserError
from rlhf_loop.progress import Progress
from rlhf_loop.recipe import Critiques, Generation, Policy, Update
from rlhf_loop.records import CritiquedCompletion


def update_policy(
    rows: Sequence[Any],
    *,
    start: str | Path,
    reference: str | Path,
    output: Path,
    policy: Policy,
    settings: Update,
    seed: int = 0,
    step_offset: int = 0,
    report_to: Sequence[str] = (),
    project: str = "rlhf-loop",
    run_name: str = "rlhf-loop",
    tracking: Path | None = None,
    progress: Progress | None = None,
    reward: Callable[..., Sequence[float | None]] | None = None,
    generation: Generation | None = None,
    critiques: Sequence[CritiquedCompletion] = (),
    critique_settings: Critiques | None = None,
) -> dict[str, Any]:
    """Trains a new policy with `settings.algorithm` and returns the metrics of the training.

    `rows`: what the algorithm consumes (`rlhf_loop.algorithms.ROWS`: `PreferencePair`s for dpo, `LabelledCompletion`s
    for kto, `Demonstration`s for sft and rejection_sampling, `Prompt`s for the online ones). `start` and `reference`:
    the base model's reference, or a folder that an earlier update made (sft and rejection_sampling use no reference).
    `reward` (a `rlhf_loop.rewards.Reward`) and `generation` are for the online updates, which need both.
    `critiques`, answers with what was said of them in words, are for the losses that `critique_settings` (the recipe's
    `critiques` block) switches on. The new policy is written to `output/policy`, the log to `output/train_log.jsonl`. A
    second call with the same `output` goes on from the last whole checkpoint. Trackers (`report_to`) get a run called
    `run_name` in `project`; `step_offset` shifts the steps that they see, so that rounds follow one another; those that
    write files write to `tracking` (default: `output/tracking`).

    Raises `UserError` when there is nothing to train on, or the start does not fit the settings.
    """
    algorithm = ALGORITHMS[settings.algorithm]
    if not algorithm.function:
        raise UserError(f"update.algorithm {settings.algorithm} trains nothing, so there is no update to call")
    if not rows:
        raise UserError(
            f"there is nothing to train {settings.algorithm} on: no {algorithm.consumes.replace('_', ' ')}. Collect "
            "more feedback, lower `pairing.min_margin`, or raise `generation.samples_per_prompt`"
        )
    online: dict[str, Any] = {}
    if algorithm.online:
        if reward is None or generation is None:
            raise UserError(f"{settings.algorithm} samples answers and asks a reward: give `reward` and `generation`")
        online = {"reward": reward, "generation": generation}
    from rlhf_loop.updates.train_and_save import Training  # torch

    update: Callable[..., dict[str, Any]] = resolve_name(algorithm.function)
    training = Training(
        start=start,
        reference=reference,
        output=output,
        policy=policy,
        settings=settings,
        seed=seed,
        step_offset=step_offset,
        report_to=report_to,
        project=project,
        run_name=run_name,
        tracking=tracking,
        progress=progress,
        critiques=critiques,
        critique_settings=critique_settings,
    )
    return update(rows, training, **online)


def __getattr__(name: str) -> Any:
    """`PPOTrainer` and `PPOConfig`, which import torch, only when they are asked for."""
    if name in ("PPOTrainer", "PPOConfig"):
        return getattr(import_module("rlhf_loop.updates.ppo"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
