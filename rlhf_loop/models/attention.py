"""Attention for CPUs: a key/value head is read once for all the query heads that share it.

transformers' own functions repeat keys and values for every query head and pass over the scores once for each of
scaling, mask, cast and softmax. Here the query heads of a group are rows of one product, scaled in it, and mask and
softmax go over the scores in one place. It is `eager` attention to rounding, in sampling and in training.

In sampling a prompt's keys and values can be there once for all of its samples (`SharedPrompt`), whose queries are then
rows of one product too (Juravsky et al. 2024, Hydragen, arXiv 2402.05099).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch

from rlhf_loop.errors import UserError
from rlhf_loop.machine import GROUPED
from rlhf_loop.near import nearest
from rlhf_loop.recipe import Policy

_MOST_KEYS = 1024  # beyond, scores take most of the memory, and torch's blocked attention, which keeps none, is as fast


def attention_option(settings: Policy) -> dict[str, str]:
    """What `from_pretrained` is told: nothing where transformers is to choose, and for `grouped`, which comes after.

    Raises `UserError` for a name that neither knows; those with a `/` are of kernels on the hub."""
    from transformers import AttentionInterface

    name = settings.attention
    if name is None or name == GROUPED:
        return {}
    known = ["auto", GROUPED, "eager", *AttentionInterface().valid_keys()]
    if name not in known and "/" not in name:
        raise UserError(f"policy.attn_implementation: there is no `{name}`{nearest(name, known)}")
    return {"attn_implementation": name}


def with_attention(model: Any, settings: Policy) -> Any:
    """The model that was loaded with `attention_option`, with the attention that the recipe names.

    `grouped` goes where transformers has `sdpa` for the model, which says that its attention is the usual one, or would
    but for Gemma 2's bounded scores. Others (sinks, layers of their own) keep what they have."""
    if settings.attention != GROUPED:
        return model
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(GROUPED, grouped_attention)
    AttentionMaskInterface.register(GROUPED, eager_mask)
    bounded = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    if getattr(model, "_supports_sdpa", False) or bounded:
        model.set_attn_implementation(GROUPED)
    return model


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (R, heads, L, size)
    key: torch.Tensor,  # (R, key heads, S, size)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # (R or 1, 1, L, S), added to the scores
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(scaling * query @ key^T + mask) @ value, as (R, L, heads, size), in the form of `AttentionInterface`.

    `softcap` bounds the scores as in Gemma 2 (Riviere et al. 2024). Long sequences, and biases of heads, go to `sdpa`.
    """
    rows, heads, length, size = query.shape
    key_heads, seen = key.shape[1], key.shape[2]
    scale = size**-0.5 if scaling is None else scaling
    if (given := getattr(key, "given", None)) is not None:
        given.arrived = True
    shared = getattr(key, "shared_prompt", None)
    if shared is not None:
        return _after_prompt(shared, query, key, value, attention_mask, scale, softcap), None
    if softcap is None and (position_bias is not None or (length > 1 and seen > _MOST_KEYS)):
        return _sdpa(module, query, key, value, attention_mask, dropout, scaling, position_bias, **kwargs)
    stacked = heads // key_heads * length  # the queries of the heads that share a key head, as rows of one product
    query = query.reshape(rows * key_heads, stacked, size)
    key = key.reshape(rows * key_heads, seen, size)
    value = value.reshape(rows * key_heads, seen, value.shape[-1])
    scores = torch.baddbmm(query.new_empty(1), query, key.transpose(1, 2), beta=0, alpha=scale)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    shape = (rows, key_heads, heads // key_heads, length, seen)
    weights = cast(torch.Tensor, _MaskedSoftmax.apply(scores, _fitting(attention_mask, scores.dtype), shape))
    if dropout:
        weights = torch.nn.functional.dropout(weights, dropout, training=module.training)
    answer = torch.bmm(weights, value)  # (R * key heads, stacked, size)
    return answer.view(rows, heads, length, -1).transpose(1, 2).contiguous(), None


@dataclass(slots=True)
class GivenKeys:
    """Keys of prompts that a sampler's cache gave a model; an attribute `given` of theirs."""

    arrived: bool = False  # at `grouped` attention, as they are


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedPrompt:
    """The keys and values of P prompts, beside those of the R samples that each have some of their own.

    A sampler's cache gives its samples' keys with one as their attribute `shared_prompt`."""

    keys: torch.Tensor  # (P * key heads, prompt length, size)
    values: torch.Tensor
    to_places: torch.Tensor  # (P * key heads * K,): for each prompt, key head and place among K samples, the row to put
    to_rows: torch.Tensor  # (R * key heads,): where each row's is among those

    @classmethod
    def of(cls, keys: torch.Tensor, values: torch.Tensor, of_prompt: torch.Tensor) -> SharedPrompt:
        """`keys`, `values`: (P, key heads, L, size), of prompts that all have samples; `of_prompt`: (R,)."""
        prompts, key_heads = keys.shape[:2]
        rows = torch.arange(len(of_prompt), device=keys.device)
        counts = torch.bincount(of_prompt, minlength=prompts)  # (P,)
        most = int(counts.max())
        order = torch.argsort(of_prompt, stable=True)
        place = torch.empty_like(of_prompt)  # (R,), of a row among its prompt's
        place[order] = rows - (counts.cumsum(0) - counts)[of_prompt[order]]
        filled = torch.zeros(prompts * most, dtype=torch.long, device=keys.device)  # where none is, the first row again
        filled[of_prompt * most + place] = rows
        heads = torch.arange(key_heads, device=keys.device)
        return cls(
            keys=keys.reshape(-1, *keys.shape[2:]),
            values=values.reshape(-1, *values.shape[2:]),
            to_places=(filled.view(prompts, 1, most) * key_heads + heads[:, None]).flatten(),
            to_rows=((of_prompt[:, None] * key_heads + heads) * most + place[:, None]).flatten(),
        )


def _after_prompt(
    prompt: SharedPrompt,
    query: torch.Tensor,  # (R, heads, 1, size)
    key: torch.Tensor,  # (R, key heads, T, size), without the prompt's
    value: torch.Tensor,
    mask: torch.Tensor | None,  # (R or 1, 1, 1, prompt length + T)
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """The attention of one new token of each sample to its prompt and to its own tokens: (R, 1, heads, size)."""
    rows, heads, _, size = query.shape
    key_heads, own = key.shape[1], key.shape[2]
    group, length = heads // key_heads, prompt.keys.shape[1]
    query = query.reshape(rows * key_heads, group * size)
    placed = query[prompt.to_places].view(len(prompt.keys), -1, size)  # (P * key heads, K * group, size)
    before = torch.bmm(placed, prompt.keys.transpose(1, 2)).view(-1, group * length)[prompt.to_rows]
    query, key = query.view(-1, group, size), key.reshape(rows * key_heads, own, size)
    after = torch.bmm(query, key.transpose(1, 2))  # (R * key heads, group, T)
    scores = torch.cat([before.view(-1, group, length), after], dim=-1).mul_(scale)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    if (mask := _fitting(mask, scores.dtype)) is not None:
        scores.view(rows, heads, -1).add_(mask[:, 0])
    before, after = torch.softmax(scores, -1).split([length, own], dim=-1)
    placed = before.reshape(rows * key_heads, -1)[prompt.to_places].view(len(prompt.keys), -1, length)
    answer = torch.bmm(placed, prompt.values).view(-1, group * value.shape[-1])[prompt.to_rows]
    answer += torch.bmm(after, value.reshape(rows * key_heads, own, -1)).view(len(answer), -1)
    return answer.view(rows, 1, heads, -1)


class _MaskedSoftmax(torch.autograd.Function):  # type: ignore[misc]
    """softmax(scores + mask) that keeps nothing but itself for the gradient; the scores are written over."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, mask: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
        """scores: (R * key heads, stacked, S), which is `shape` = (R, key heads, group, L, S)."""
        if mask is not None:
            scores.view(shape).add_(mask[:, :, None])
        weights = torch.softmax(scores, -1)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        return torch._softmax_backward_data(gradient, weights, -1, weights.dtype), None, None


def _fitting(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A mask for scores of `dtype`: under autocast float32.min is no bfloat16, and rows of -inf have no softmax."""
    if mask is None or mask.dtype == dtype:
        return mask
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
    return mask.clamp(min=torch.finfo(dtype).min).to(dtype)


def _sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    position_bias: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    kwargs["is_causal"] = False  # the mask says all
    answer, _ = sdpa_attention_forward(
        module, query, key, value, mask, dropout, scaling, position_bias=position_bias, **kwargs
    )
    return answer, None
