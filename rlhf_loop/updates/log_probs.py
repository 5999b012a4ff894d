"""Log-probabilities of answers, for the trainers that compare a policy with its reference, without computing twice what
is the same.

TRL runs policy and reference over every chosen and every rejected conversation, and the head over every position; its
losses and metrics are functions of what comes out. Those stay TRL's. Here is what it calls in the model's place:

- layers below the adapters are computed once for both passes (`frozen_layers`);
- the prompt of a pair is read once for both its answers (`pair_rows`), where the model allows it;
- on a CPU, the head is ours, of the positions of answers only (`cpu_head`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting

from rlhf_loop.updates.cpu_head import add_cpu_head
from rlhf_loop.updates.frozen_layers import FrozenLayers
from rlhf_loop.updates.pair_rows import PairRows, alike_in_rows, may_be_rows, pair_rows, worth_it

PAIR_OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")
"""What TRL's losses and metrics read of a model's output."""


class LogProbs:
    """Put before `DPOTrainer` or `KTOTrainer`: overrides `compute_loss`.

    Left to TRL: weights that are sharded (FSDP, ZeRO) or sequences that are, gradient checkpointing, dropout that stays
    on, the balance loss of experts, WPO's weights."""

    reference_columns: Sequence[str]
    """Where TRL looks in a batch for what its `compute_ref_log_probs` gives."""

    def __init__(self: Any, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        if self.accelerator.device.type == "cpu" and not getattr(self, "use_weighting", False):
            add_cpu_head(self.model, outputs=PAIR_OUTPUTS)
            if self.ref_model is not None:
                add_cpu_head(self.accelerator.unwrap_model(self.ref_model), outputs=("log_probs",))
        self._is_ours = not (
            self.is_fsdp_enabled
            or self.is_deepspeed_enabled
            or self.accelerator.parallelism_config is not None
            or self.args.gradient_checkpointing
            or not self.args.disable_dropout
            or self.aux_loss_enabled
            or getattr(self, "use_weighting", False)
        )
        self._frozen = FrozenLayers(self.model if self.ref_model is None else None)

    def compute_loss(self: Any, model: Any, inputs: Any, return_outputs: bool = False, **named: Any) -> Any:
        """TRL's loss and metrics, of log-probabilities that are computed here."""
        if return_outputs or not self._is_ours:
            return super().compute_loss(model, inputs, return_outputs, **named)  # type: ignore[misc]
        rows = self._rows(inputs)
        with self._frozen.of_a_batch(), _without_needless_casts(self):
            if not self.args.precompute_ref_log_probs:
                reference = _Reader(self, self.ref_model or self.model, rows)
                log_probs = self.compute_ref_log_probs(reference, inputs)
                inputs = {**inputs, **dict(zip(self.reference_columns, log_probs, strict=True))}
            with _reference_is_in_the_batch(self):
                return super().compute_loss(_Reader(self, model, rows), inputs, **named)  # type: ignore[misc]

    def _rows(self, inputs: Mapping[str, torch.Tensor]) -> PairRows | None:
        """The pairs of a batch side by side, where that gives the same and takes less; None: as TRL has them."""
        return None


class PairLogProbs(LogProbs):
    """Of pairs that share a prompt."""

    reference_columns = ("ref_chosen_logps", "ref_rejected_logps")
    _allows_rows: bool | None = None
    """Whether the model gives the same for pairs side by side; None: not tried yet."""

    def _rows(self: Any, inputs: Mapping[str, torch.Tensor]) -> PairRows | None:
        if self._allows_rows is False:
            return None
        model = self.accelerator.unwrap_model(self.model)
        config = model.config.get_text_config()
        if not may_be_rows(config, inputs["input_ids"].shape[1]):
            return None
        rows = pair_rows(inputs)
        if not worth_it(rows, inputs, config.hidden_size):
            return None
        if self._allows_rows is None:
            with torch.no_grad(), self.accelerator.autocast():
                self._allows_rows = alike_in_rows(backbone(model), inputs)
        return rows if self._allows_rows else None


class _Reader:
    """Called by TRL's trainers in the place of `model`."""

    def __init__(self, trainer: Any, model: Any, rows: PairRows | None):
        self.trainer, self.model, self.rows = trainer, model, rows

    def __call__(self, *, labels: torch.Tensor, fused_lm_head: bool, use_cache: bool = False, **given: Any) -> Any:
        """TRL's fused output (`FusedCausalLMOutput`); without `loss`, which these trainers do not use."""
        rows = self.rows
        if rows is None:
            with self.trainer._frozen.of_tokens(given["input_ids"]):
                return self.model(**given, use_cache=False, labels=labels, fused_lm_head=True)
        mask = rows.mask(self.trainer.accelerator.unwrap_model(self.model).dtype)
        with self.trainer._frozen.of_tokens(rows.input_ids):
            output = self.model(
                input_ids=rows.input_ids, attention_mask=mask, position_ids=rows.position_ids, use_cache=False,
                shift_labels=rows.labels, fused_lm_head=True,
            )  # fmt: skip
        values = {name: getattr(output, name) for name in PAIR_OUTPUTS}
        return SimpleNamespace(**{n: rows.as_trl_has_them(v) for n, v in values.items() if v is not None})


def backbone(model: Any) -> Any:
    """The model below the head, with its adapters."""
    return (model.get_base_model() if isinstance(model, PeftModel) else model).base_model


@contextmanager
def _reference_is_in_the_batch(trainer: Any) -> Iterator[None]:
    """As where TRL computed its log-probabilities before the training."""
    before, trainer.precompute_ref_logps = trainer.precompute_ref_logps, True
    try:
        yield
    finally:
        trainer.precompute_ref_logps = before


@contextmanager
def _without_needless_casts(trainer: Any) -> Iterator[None]:
    """Where autocast rounds the inputs of products to bfloat16 anyway, adapters do not write them out in float32."""
    with disable_input_dtype_casting(trainer.model, active=trainer.args.bf16):
        yield
