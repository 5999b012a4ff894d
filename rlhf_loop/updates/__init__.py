"""Policy updates: one file an algorithm, and what each consumes.

Every update is a function of the same signature:

    update(rows, *, start, reference, output, policy, settings, seed, ...) -> metrics

and writes the new policy to `output/policy` (an adapter or full weights).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.recipe import Policy, Update

ALGORITHMS = {"dpo": "rlhf_loop.updates.dpo:update"}
"""Name in a recipe -> function."""


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
    run_name: str = "rlhf-loop",
    tracking: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Trains a new policy with `settings.algorithm` and returns the metrics of the training.

    `rows`: what the algorithm consumes (`PreferencePair`s for dpo). `start` and `reference`: the base model's
    reference, or a folder that an earlier update made. The new policy is written to `output/policy`, the log to
    `output/train_log.jsonl`. A second call with the same `output` goes on from the last whole checkpoint.
    `step_offset` shifts the steps that trackers (`report_to`) see, so that rounds follow one another;
    those that write files write to `tracking` (default: `output/tracking`).

    Raises `UserError` when there is nothing to train on, or the start does not fit the settings.
    """
    if not rows:
        raise UserError(
            f"there is nothing to train {settings.algorithm} on: no pairs. Collect more feedback, lower "
            "`pairing.min_margin`, or raise `generation.samples_per_prompt`"
        )
    module, function = ALGORITHMS[settings.algorithm].split(":")
    update: Callable[..., dict[str, Any]] = getattr(import_module(module), function)
    return update(
        rows,
        start=start,
        reference=reference,
        output=output,
        policy=policy,
        settings=settings,
        seed=seed,
        step_offset=step_offset,
        report_to=report_to,
        run_name=run_name,
        tracking=tracking,
        progress=progress,
    )
