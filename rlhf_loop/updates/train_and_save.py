"""What every update is told, and what each does: train, resuming if there is something to resume from, and save."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PrinterCallback

from rlhf_loop.errors import UserError
from rlhf_loop.models.checkpoints import last_complete, remove_all
from rlhf_loop.models.distributed import is_main
from rlhf_loop.models.loading import save_policy, to_messages
from rlhf_loop.models.memory import tune_cpu_memory
from rlhf_loop.models.quiet import quiet
from rlhf_loop.models.training import callbacks, mean_loss, training_arguments
from rlhf_loop.models.turns import Tokens, Turns
from rlhf_loop.models.weights import leave_frozen_ties_out
from rlhf_loop.progress import Progress
from rlhf_loop.recipe import Critiques, Policy, Update
from rlhf_loop.records import CritiquedCompletion, Demonstration, LabelledCompletion, Message, Prompt
from rlhf_loop.tracking import training_run
from rlhf_loop.updates.terms.trainer import add_terms


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What an update is told beside its rows: the arguments of `rlhf_loop.updates.update_policy`, explained there."""

    start: str | Path
    reference: str | Path
    output: Path
    policy: Policy
    settings: Update
    seed: int
    step_offset: int = 0
    report_to: Sequence[str] = ()
    project: str = "rlhf-loop"
    run_name: str = "rlhf-loop"
    tracking: Path | None = None
    progress: Progress | None = None
    critiques: Sequence[CritiquedCompletion] = ()
    critique_settings: Critiques | None = None

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Within it, the output folder is there, memory is kept for training, and libraries are quiet."""
        tune_cpu_memory()
        self.output.mkdir(parents=True, exist_ok=True)
        with quiet():
            yield

    def arguments(self, config: type[Any], defaults: Mapping[str, Any] | None = None) -> Any:
        """TRL's `config` with the recipe's trainer settings, which go over `defaults`; seeds torch."""
        values = {
            "run_name": self.run_name,
            "project": self.project,
            **(defaults or {}),
            **self.settings.trainer_settings(),
        }
        arguments = training_arguments(config, self.output, self.seed, values, self.policy.precision)
        torch.manual_seed(self.seed)
        return arguments


def train_and_save(
    trainer: Any, tokenizer: Any, training: Training, of_policy: Callable[[str], bool] = lambda name: True
) -> dict[str, Any]:
    """Trains from the last whole checkpoint of the output on, and writes `policy/` and `train_log.jsonl` there.

    `of_policy` says which of the model's weights, by name, are the policy's.

    Gives `{steps, train_loss}`, and `critiques`, counts of what their losses have to train on, where there are such.
    Raises `UserError` when the weights end up not finite; nothing is saved then.
    """
    output, log = training.output, training.output / "train_log.jsonl"
    trainer.remove_callback(PrinterCallback)
    terms = add_terms(trainer, tokenizer, training)
    for callback in callbacks(log, training.report_to, training.step_offset, training.progress, training.tracking):
        trainer.add_callback(callback)
    if trainer.is_deepspeed_enabled and isinstance(trainer.model, PeftModel):
        leave_frozen_ties_out(trainer.model)
    with training_run(training.report_to, trainer.args.project, training.run_name):
        trainer.train(resume_from_checkpoint=last_complete(output / "checkpoints"))
    model = trainer.accelerator.unwrap_model(trainer.model)
    save_policy(model, tokenizer, output / "policy", training.policy.model, of_policy)
    if is_main():
        remove_all(output / "checkpoints")
    return {"steps": int(trainer.state.global_step), "train_loss": mean_loss(log), **terms}


def as_asked(messages: Sequence[Message], policy: Policy) -> list[Message]:
    """A prompt's conversation as the policy saw it when it answered: with the recipe's system prompt first."""
    return to_messages(Prompt(id="", group="", messages=tuple(messages)), policy)


def tokens_of(row: LabelledCompletion | Demonstration, policy: Policy, turns: Turns) -> Tokens:
    """The prompt and the answer of a row as token ids."""
    return turns.tokens(
        as_asked(row.prompt, policy),
        row.completion,
        finished=row.finished,
        token_ids=row.token_ids,
        by_policy=row.by_policy,
    )


def that_fit(rows: Sequence[dict[str, Any]], limit: int | None, what: str) -> list[dict[str, Any]]:
    """Those of tokenised `rows` whose prompt leaves room for an answer in `limit` tokens (None: all do); a `UserError`
    where none does. `what` names the rows."""
    if limit is None:
        return list(rows)
    fitting = [row for row in rows if len(row["prompt_ids"]) < limit]
    if not fitting:
        raise none_fit(f"{len(rows)} {what}", min(len(row["prompt_ids"]) for row in rows), limit)
    return fitting


def none_fit(what: str, shortest: int, limit: int) -> UserError:
    """The error of a data set of which the length limit leaves nothing; `shortest`: tokens of its shortest prompt."""
    return UserError(
        f"none of the {what} can be trained on: with {shortest} tokens or more each of their prompts fills max_length, "
        f"which is {limit}. Raise `update.trainer.max_length`, or give shorter prompts"
    )
