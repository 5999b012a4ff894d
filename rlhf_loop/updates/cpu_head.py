"""Log-probabilities and entropies of tokens on a CPU, twice as fast as TRL's fused head, which is written for GPUs.

TRL goes through the vocabulary in tiles, in some ten passes over memory, and computes all logits again in the backward
pass. Here a chunk of tokens has its logits whole, every pass is in place, the exponentials are kept for the backward
pass while they are few, and tokens without a gradient (padding, clipped ratios) are left out of it.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import FusedCausalLMOutput

_CHUNK = 1 << 24
"""Logits that are computed at a time."""

_KEPT = 1 << 27
"""Logits of a call whose exponentials are kept (float32); those of larger ones are computed again."""

_OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
"""What `Head.apply` gives, by TRL's names."""

_MORE_THAN_A_PRODUCT = (
    "final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling",
)  # fmt: skip
"""Settings of models whose logits are more than a product with the head."""


def add_cpu_head(model: Any, temperature: float = 1.0, outputs: tuple[str, ...] = ("log_probs", "entropy")) -> None:
    """Where TRL's `add_fused_lm_head` has made `model(..., labels=labels, fused_lm_head=True)` give log-probabilities,
    they come from `Head`, of the positions that have a label and no others: TRL leaves the others out only where Triton
    runs. `model`: a causal LM on a CPU, or a PeftModel of one. `outputs`, and labels shifted already: as there.

    Models with capped or scaled logits, the balance loss of experts, and sharded weights are left to TRL's head.
    """
    policy = model.get_base_model() if isinstance(model, PeftModel) else model
    of_trl = policy.forward
    settings = policy.config.get_text_config()
    is_product = all(getattr(settings, name, None) is None for name in _MORE_THAN_A_PRODUCT)

    @functools.wraps(type(policy).forward)  # generate() checks its arguments against this signature
    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        head = self.get_output_embeddings()
        if not (
            fused_lm_head
            and (labels is not None or shift_labels is not None)
            and is_product
            and not (kwargs.get("output_router_logits") or getattr(settings, "output_router_logits", False))
            and "num_items_in_batch" not in kwargs
            and _is_whole(head.weight)
        ):
            if shift_labels is not None:
                kwargs["shift_labels"] = shift_labels
            return of_trl(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        hidden = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state  # (B, L, H)
        if shift_labels is None:
            assert labels is not None
            hidden, shift_labels = hidden[:, :-1], labels[:, 1:]
        scored = shift_labels != -100
        values = Head.apply(
            hidden[scored], head.weight, head.bias, shift_labels[scored], temperature, 0, outputs=outputs
        )
        # Scattered, so that a batch without a label has a gradient too, of zero.
        placed = {
            name: value.new_zeros(scored.shape).masked_scatter(scored, value)
            for name, value in zip(_OUTPUTS, values, strict=True)
            if value is not None
        }
        loss = -placed["log_probs"].sum() / scored.sum().clamp(min=1)
        return FusedCausalLMOutput(loss=loss, label_mask=scored, **placed)

    policy.forward = types.MethodType(forward, policy)


def _is_whole(weight: nn.Parameter) -> bool:
    """Whether this process holds all of it: neither FSDP nor ZeRO shares it out."""
    return type(weight) in (nn.Parameter, torch.Tensor) and not hasattr(weight, "ds_id")


class Head:
    """Stands in for TRL's `ChunkedLogProbFunction`."""

    @staticmethod
    def apply(
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = ("log_probs", "entropy"),
    ) -> Any:
        """Log-probabilities of `targets` and entropies, (N,) each, of softmax(hidden @ weight.T * scale / temperature)
        with `hidden` (N, H) and `weight` (V, H), then None, and where `outputs` asks for them, without gradients, the
        mean logits and whether a target is the likeliest token. What is not for a CPU, or asks for more, is TRL's.
        """
        if hidden.device.type != "cpu" or softcap is not None or "log_sum_sq_probs" in outputs:
            return ChunkedLogProbFunction.apply(
                hidden, weight, bias, targets, temperature, chunk_size, softcap, logit_scale, outputs
            )
        scale = logit_scale / temperature
        log_probs, entropy, is_top1 = _LogProbs.apply(hidden, weight, bias, targets, scale)
        mean_logits = _mean_logits(hidden, weight, bias, scale) if "mean_logits" in outputs else None
        return log_probs, entropy, None, mean_logits, is_top1 if "is_top1" in outputs else None


class _LogProbs(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        keep = any(ctx.needs_input_grad) and len(hidden) * len(weight) <= _KEPT
        log_probs = torch.empty(len(hidden))
        entropy, total = torch.empty_like(log_probs), torch.empty_like(log_probs)
        is_top1 = torch.empty(len(hidden), dtype=torch.bool)
        ctx.exponentials = []
        with torch.autocast("cpu", enabled=False):
            for rows in _chunks(len(hidden), len(weight)):
                z = _shifted_logits(hidden[rows], weight, bias, scale, dtype)  # (C, V)
                chosen = z.gather(1, targets[rows, None])[:, 0]
                is_top1[rows] = chosen == 0  # of equally likely tokens each; TRL looks which comes first
                e = z.exp()
                total[rows] = e.sum(1)
                log_total = total[rows].log()
                log_probs[rows] = chosen - log_total
                entropy[rows] = log_total - z.mul_(e).sum(1) / total[rows]
                ctx.exponentials.append(e if keep else None)
        ctx.save_for_backward(hidden, weight, bias, targets, total, entropy)
        ctx.scale, ctx.dtype = scale, dtype
        ctx.mark_non_differentiable(is_top1)
        return log_probs, entropy, is_top1

    @staticmethod
    def backward(ctx: Any, of_log_probs: torch.Tensor | None, of_entropy: torch.Tensor | None, _: None) -> Any:
        hidden, weight, bias, targets, total, entropy = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden) if for_hidden else None
        grad_weight = torch.zeros(weight.shape) if for_weight else None
        grad_bias = torch.zeros(len(weight)) if for_bias else None
        weights = weight.to(ctx.dtype)
        moved = torch.zeros(len(hidden), dtype=torch.bool)
        for gradient in (of_log_probs, of_entropy):
            if gradient is not None:
                moved |= gradient != 0
        moved = moved.nonzero()[:, 0]
        with torch.autocast("cpu", enabled=False):
            for number, chunk in enumerate(_chunks(len(hidden), len(weight))):
                e, ctx.exponentials[number] = ctx.exponentials[number], None
                rows = moved[(moved >= chunk.start) & (moved < chunk.stop)]
                if e is None:
                    e = _shifted_logits(hidden[rows], weight, bias, ctx.scale, ctx.dtype).exp_()
                elif len(rows) < len(e):
                    e = e[rows - chunk.start]
                grad, factor = _gradient_of_logits(
                    e, targets[rows], total[rows], entropy[rows], rows, of_log_probs, of_entropy
                )
                grad, factor = grad.to(ctx.dtype), (factor * ctx.scale)[:, None]  # (R, V), (R, 1)
                if grad_hidden is not None:
                    grad_hidden[rows] = ((grad @ weights).float() * factor).to(hidden.dtype)
                if grad_weight is not None:
                    scaled = hidden[rows].float() * factor
                    if grad.dtype == torch.float32:
                        grad_weight.addmm_(grad.t(), scaled)
                    else:
                        grad_weight += grad.t() @ scaled.to(ctx.dtype)
                if grad_bias is not None:
                    grad_bias += (grad.float() * factor).sum(0)
        cast = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, cast, None if grad_bias is None else grad_bias.to(bias.dtype), None, None


def _gradient_of_logits(
    e: torch.Tensor,
    targets: torch.Tensor,
    total: torch.Tensor,
    entropy: torch.Tensor,
    rows: torch.Tensor,
    of_log_probs: torch.Tensor | None,
    of_entropy: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of the logits, written over the exponentials (R, V) of `rows`, but for a factor of each row, (R,).

    d log p_t / dz_j = [j = t] - p_j,  d H / dz_j = -p_j (log p_j + H). The products with the gradient take the factor
    in, where it costs little; what of the first is for the target comes off the exponentials before they are rounded.
    """
    of_chosen = torch.zeros_like(total) if of_log_probs is None else of_log_probs[rows].float()
    if of_entropy is None:
        return e.scatter_add_(1, targets[:, None], -total[:, None]), -of_chosen / total
    p = e.div_(total[:, None])
    grad = torch.xlogy(p, p).add_(p * entropy[:, None]).mul_(-of_entropy[rows].float()[:, None])
    grad.sub_(p.mul_(of_chosen[:, None]))
    return grad.scatter_add_(1, targets[:, None], of_chosen[:, None]), torch.ones_like(total)


def _mean_logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Over the vocabulary, (N,), without the logits: of a mean of products it is the product with the mean."""
    mean = hidden.detach().float() @ weight.detach().mean(0, dtype=torch.float32)
    return (mean if bias is None else mean + bias.detach().float().mean()) * scale


def _shifted_logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, scale: float, dtype: torch.dtype
) -> torch.Tensor:
    """Logits (C, V) in float32, less the largest of each row."""
    z = torch.mm(hidden.to(dtype), weight.to(dtype).t()).float()
    if bias is not None:
        z += bias.float()
    if scale != 1:
        z *= scale
    return z.sub_(z.amax(1, keepdim=True))


def _chunks(rows: int, vocabulary: int) -> list[slice]:
    size = max(1, _CHUNK // vocabulary)
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]
