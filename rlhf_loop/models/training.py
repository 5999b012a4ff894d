"""What reward-model training and policy updates share: TRL arguments, checkpoints, logs, trackers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from rlhf_loop.errors import UserError
from rlhf_loop.files.damage import reading
from rlhf_loop.models.checkpoints import MarkComplete
from rlhf_loop.progress import Progress


def training_arguments(
    config: type[Any], output: Path, seed: int, settings: Mapping[str, Any], dtype: str = "float32"
) -> Any:
    """TRL's config of an algorithm from a recipe's `trainer:` block, with what the loop owns filled in.

    Training is in the precision that the policy's weights have (`dtype`), unless the block says otherwise.

    Checkpoints go to `output/checkpoints`, every `save_steps` steps when that is given, else never.
    """
    values = _of_now(settings, config)
    values.setdefault("logging_steps", 1)
    values.setdefault("bf16", dtype == "bfloat16")  # also for adapters, whose own weights stay float32
    try:
        arguments = config(
            output_dir=str(output / "checkpoints"),
            seed=seed,
            data_seed=seed,
            save_strategy="steps" if "save_steps" in values else "no",
            save_total_limit=None,  # ours are removed in an order that a kill cannot break
            report_to="none",  # trackers are added as callbacks, with the round in the step axis
            disable_tqdm=True,
            use_cpu=not torch.accelerator.is_available(),
            **values,
        )
    except Exception as error:  # of a package that a setting needs, too
        raise UserError(f"trainer settings: TRL's {config.__name__} refused them: {error}") from None
    deepspeed = arguments.deepspeed_plugin
    if deepspeed is not None and not str(arguments.optim.value).startswith("adamw"):
        # With the optimizer in main memory, Accelerate would train with DeepSpeed's Adam in the place of any other.
        deepspeed.deepspeed_config.setdefault("zero_force_ds_cpu_optimizer", False)
    return arguments


def _of_now(settings: Mapping[str, Any], config: type[Any]) -> dict[str, Any]:
    """Settings by the names that transformers has for them now: what trades computing for memory has another since
    5.23. TRL's default, to do so, is set off."""
    has = {field.name for field in fields(config)}
    values = {"gradient_checkpointing": False, **settings}
    for old in [name for name in values if name.startswith("gradient_checkpointing")]:
        new = old.replace("gradient_", "activation_")
        if new in has:
            values.setdefault(new, values.pop(old))
    return values


def callbacks(
    log: Path, report_to: Sequence[str], step_offset: int, progress: Progress | None, tracking: Path | None = None
) -> list[TrainerCallback]:
    """Marks for checkpoints, the training log, progress, and the trackers of `report_to`.

    A tracker that writes files (TensorBoard) writes to `tracking`, by default a folder beside `log`, unless its own
    environment variable says where.
    """
    kinds = get_reporting_integration_callbacks(list(report_to)) if report_to else []
    trackers = [kind() for kind in kinds]
    for tracker in trackers:
        if getattr(tracker, "logging_dir", "") is None:  # else it would be among the checkpoints, which are removed
            tracker.logging_dir = str(tracking or log.parent / "tracking")
    return [
        MarkComplete(),
        TrainingLog(log, progress),
        *(ShiftedSteps(tracker, step_offset) for tracker in trackers),
    ]


_DIFFERS_BETWEEN_RUNS = ("num_tokens", "step_time", "eps")


class TrainingLog(TrainerCallback):  # type: ignore[misc]
    """Appends each log line of a training to a JSONL file and shows its progress."""

    def __init__(self, path: Path, progress: Progress | None):
        self.path = path
        self.progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a resume, the lines up to the checkpoint, as it knows them: the file may go further, or be damaged."""
        if state.is_world_process_zero and self.path.exists():
            lines = [_line(logs["step"], logs) for logs in state.log_history if "train_runtime" not in logs]
            self.path.write_text("".join(lines))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """One line a log, with its step, without times and speeds: the same training is to leave the same file. So the
        closing summary is left out too, which after a resume holds the mean loss of only the steps since, and TRL's
        `num_tokens`, which counts from there."""
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            with self.path.open("a") as file:
                file.write(_line(state.global_step, logs))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Shows the step and the last loss."""
        if self.progress is not None and state.is_world_process_zero:
            last = state.log_history[-1] if state.log_history else {}
            shown = next((name for name in ("reward", "loss") if name in last), None)
            text = f"{shown} {last[shown]:.3f}" if shown else ""
            self.progress(state.global_step, state.max_steps, text)


class ShiftedSteps(TrainerCallback):  # type: ignore[misc]
    """A tracker that sees steps counted from the first round on, not from the start of this training."""

    def __init__(self, tracker: TrainerCallback, offset: int):
        self.tracker = tracker
        self.offset = offset

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Passes the event on."""
        self._shifted("on_train_begin", args, state, control, kwargs)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Passes the event on."""
        self._shifted("on_log", args, state, control, kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Passes the event on."""
        self._shifted("on_train_end", args, state, control, kwargs)

    def _shifted(self, event: str, args: Any, state: Any, control: Any, kwargs: dict[str, Any]) -> None:
        step = state.global_step
        state.global_step = step + self.offset
        try:
            getattr(self.tracker, event)(args, state, control, **kwargs)
        finally:
            state.global_step = step


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a training log."""
    if not path.exists():
        return []
    with reading(path):
        return [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def mean_loss(path: Path) -> float | None:
    """The mean of the logged training losses; None when nothing was logged."""
    losses = [row["loss"] for row in read_log(path) if "loss" in row]
    return sum(losses) / len(losses) if losses else None


def trained_parameters(model: Any) -> int:
    """How many numbers of `model` are trained; those that ZeRO-3 has taken out of a parameter too."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in trained)


def _line(step: int, logs: Mapping[str, float]) -> str:
    kept = {name: value for name, value in sorted(logs.items()) if name not in (*_DIFFERS_BETWEEN_RUNS, "step")}
    return json.dumps({"step": step, **kept}) + "\n"
