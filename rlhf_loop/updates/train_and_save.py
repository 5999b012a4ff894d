"""What every update does with its trainer: train it, resuming if there is something to resume from, and save."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from rlhf_loop.checkpoints import last_complete
from rlhf_loop.distributed import is_main
from rlhf_loop.errors import UserError
from rlhf_loop.models import save_policy, to_messages
from rlhf_loop.recipe import Policy
from rlhf_loop.records import Message, Prompt
from rlhf_loop.training import callbacks, mean_loss


def train_and_save(
    trainer: Any,
    tokenizer: Any,
    output: Path,
    *,
    policy: Policy,
    step_offset: int,
    report_to: Sequence[str],
    tracking: Path | None,
    progress: Callable[[int, int, str], None] | None,
    before_saving: Callable[[Any], None] = lambda model: None,
) -> dict[str, Any]:
    """Trains from the last whole checkpoint of `output` on, and writes `output/policy` and `output/train_log.jsonl`.

    `before_saving` takes off the model what is not the policy.

    Gives `{steps, train_loss}`. Raises `UserError` when the weights end up not finite; nothing is saved then.
    """
    trainer.remove_callback(PrinterCallback)
    for callback in callbacks(output / "train_log.jsonl", report_to, step_offset, progress, tracking):
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=last_complete(output / "checkpoints"))
    if not all(torch.isfinite(p).all() for p in trainer.model.parameters() if p.requires_grad):
        raise UserError(
            "the update ended in weights that are not finite; lower `update.trainer.learning_rate` or set "
            "`update.trainer.max_grad_norm: 1.0`. The last policy is unharmed"
        )
    if is_main():
        model = trainer.accelerator.unwrap_model(trainer.model)
        before_saving(model)
        save_policy(model, tokenizer, output / "policy", policy.model)
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
    return {"steps": int(trainer.state.global_step), "train_loss": mean_loss(output / "train_log.jsonl")}


def as_asked(messages: Sequence[Message], policy: Policy) -> list[Message]:
    """A prompt's conversation as the policy saw it when it answered: with the recipe's system prompt first."""
    return to_messages(Prompt(id="", group="", messages=tuple(messages)), policy)


def before_last(token: int, ids: list[int]) -> list[int]:
    """`ids` up to the last `token`; all of them when there is none.

    Takes the end token off an answer that was cut off at the length limit: TRL's chat template adds one, which would
    teach the policy to stop in the middle of a sentence.
    """
    return ids[: len(ids) - 1 - ids[::-1].index(token)] if token in ids else ids
