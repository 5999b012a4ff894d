"""The loss of a critic: Bradley-Terry on the rewards, and the cross-entropy of its critiques."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from rlhf_loop.batches import batches
from rlhf_loop.models.checkpoints import last_complete, remove_all
from rlhf_loop.models.distributed import is_main
from rlhf_loop.models.quiet import quiet
from rlhf_loop.models.training import callbacks
from rlhf_loop.progress import Progress
from rlhf_loop.rewards.critic_model import read

FORWARD_TOKENS = {"cpu": 2048}
"""Padded tokens of one forward in training, by device; elsewhere a batch is one forward."""
SCORING_TOKENS = {"cpu": 4096}
SCORING_TOKENS_ACCELERATOR = 65536


class CriticTrainer(Trainer):  # type: ignore[misc]
    """Trains on rows `{texts, critiques, chosen, rejected, margin}`: token ids of texts that end in a critique, how
    many of each text's last tokens are to be learned, and pairs as indices into the texts."""

    def __init__(
        self, model: Any, arguments: TrainingArguments, rows: list[dict[str, Any]], pad_id: int, *, lm_weight: float
    ):
        super().__init__(model, arguments, data_collator=_together, train_dataset=rows)
        self.model_accepts_loss_kwargs = False  # the loss is a mean already
        self.pad_id = pad_id
        self.lm_weight = lm_weight

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the batch's pairs and, times `lm_weight`, over the tokens of its critiques.

        The trainer takes the mean over ranks, of which each may have another number of either: each weighs its own."""
        rewards, losses = self._forward(model, inputs["texts"], inputs["critiques"])  # (N,) each
        margins = rewards[inputs["chosen"]] - rewards[inputs["rejected"]]  # (P,)
        preference = -logsigmoid(margins - inputs["margin"].to(margins.device)).sum()
        language = losses.sum()
        counts = torch.tensor([len(margins), sum(inputs["critiques"])], dtype=torch.float, device=rewards.device)
        pairs, tokens = self.accelerator.reduce(counts, "mean").clamp(min=1e-6)
        # no pairs, no critiques: the head and the vocabulary layer still have gradients, which ranks wait for
        loss = preference / pairs + self.lm_weight * language / tokens + 0 * rewards.sum()
        return (loss, {"rewards": rewards}) if return_outputs else loss

    def _forward(
        self, model: Any, texts: Sequence[Sequence[int]], critiques: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rewards and summed losses of texts. Alone on a CPU, texts of like length go together; several ranks must make
        the same number of forwards, so there it is one."""
        budget = FORWARD_TOKENS.get(self.args.device.type) if self.accelerator.num_processes == 1 else None
        if budget is None:
            return read(model, texts, critiques, self.pad_id)
        order, parts = [], []
        for numbers in batches([len(text) for text in texts], budget):
            parts.append(read(model, [texts[n] for n in numbers], [critiques[n] for n in numbers], self.pad_id))
            order += numbers
        back = torch.argsort(torch.tensor(order))
        return torch.cat([rewards for rewards, _ in parts])[back], torch.cat([losses for _, losses in parts])[back]


def train_stage(
    trainer: CriticTrainer, log: Path, progress: Progress | None, extra_callbacks: Sequence[TrainerCallback] = ()
) -> dict[str, int]:
    """Trains, from the last whole checkpoint on if there is one; gives the number of steps."""
    for callback in [*callbacks(log, (), 0, progress), *extra_callbacks]:
        trainer.add_callback(callback)
    trainer.remove_callback(PrinterCallback)
    checkpoints = Path(trainer.args.output_dir)
    with quiet():
        trainer.train(resume_from_checkpoint=last_complete(checkpoints))
    if is_main():
        remove_all(checkpoints)
    return {"steps": int(trainer.state.global_step)}


@torch.inference_mode()  # type: ignore[untyped-decorator]
def read_all(model: Any, rows: Sequence[Sequence[int]], pad_id: int) -> list[float]:
    """The reward at the end of each row, in the rows' order."""
    budget = SCORING_TOKENS.get(model.device.type, SCORING_TOKENS_ACCELERATOR)
    values = [0.0] * len(rows)
    for numbers in batches([len(row) for row in rows], budget):
        rewards, _ = read(model, [rows[number] for number in numbers], [0] * len(numbers), pad_id)
        for number, value in zip(numbers, rewards.tolist(), strict=True):
            values[number] = value
    return values


def _together(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of a batch as one."""
    starts = [sum(len(row["texts"]) for row in rows[:number]) for number in range(len(rows))]
    batch: dict[str, Any] = {name: [one for row in rows for one in row[name]] for name in ("texts", "critiques")}
    for side in ("chosen", "rejected"):
        numbers = [start + i for start, row in zip(starts, rows, strict=True) for i in row[side]]
        batch[side] = torch.tensor(numbers, dtype=torch.long)
    batch["margin"] = torch.tensor([margin for row in rows for margin in row["margin"]], dtype=torch.float)
    return batch
