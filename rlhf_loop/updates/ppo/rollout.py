"""From what a rollout sampled and was scored to what its tokens are trained on. All tensors are (B, T) unless said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from rlhf_loop.updates.ppo.advantages import (
    RunningScale,
    Sum,
    generalized_advantages,
    kl_per_token,
    last_index,
    moments,
    token_rewards,
    whiten,
)
from rlhf_loop.updates.ppo.config import PPOConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """What the loss takes of a rollout, and what is said of it."""

    advantages: torch.Tensor
    returns: torch.Tensor
    penalty: torch.Tensor
    """(B,): the part of a completion's reward that is for its KL to the reference, to be subtracted."""
    kl: torch.Tensor | None
    """(B,): log p(completion) - log p_reference(completion), nats; None without a reference."""
    mean_value: float
    explained_variance: float
    """1 - Var(returns - values) / Var(returns), over all ranks: how much of the returns the critic foresaw."""


def targets(
    *,
    log_probs: torch.Tensor,
    reference: torch.Tensor | None,
    values: torch.Tensor,
    scores: torch.Tensor,
    mask: torch.Tensor,
    kl_coef: float,
    args: PPOConfig,
    total: Sum,
) -> Targets:
    """Rewards of tokens from `scores` (B,) and the KL to the reference, and from them advantages and returns."""
    other = log_probs if reference is None else reference
    kl = kl_per_token(log_probs, other, mask, cast(Any, args.kl_estimator))
    rewards = token_rewards(scores, kl, mask, kl_coef)
    if args.whiten_rewards:
        rewards = whiten(rewards, mask, total, shift_mean=False)
    advantages, returns = generalized_advantages(rewards, values, mask, args.gamma, args.lam)
    _, error_variance = moments(returns - values, mask, total)
    _, return_variance = moments(returns, mask, total)
    return Targets(
        advantages=whiten(advantages, mask, total) if args.whiten_advantages else advantages,
        returns=returns,
        penalty=kl_coef * kl.sum(1),
        kl=None if reference is None else kl_per_token(log_probs, reference, mask, "k1").sum(1),
        mean_value=float(moments(values, mask, total)[0]),
        explained_variance=float(1 - error_variance / return_variance.clamp(min=1e-8)),
    )


def missing_end(completion_ids: torch.Tensor, completion_mask: torch.Tensor, ends: Sequence[int]) -> torch.Tensor:
    """Whether each completion was cut off, (B,): its last token is none of `ends`."""
    last = completion_ids.gather(1, last_index(completion_mask)[:, None])[:, 0]
    return ~torch.isin(last, torch.tensor(ends, device=last.device))


def shaped(scores: torch.Tensor, missing_eos: torch.Tensor, scale: RunningScale, args: PPOConfig) -> torch.Tensor:
    """Scores (B,) normalised by `scale`, clipped, and with the penalty for a missing end, in this order."""
    if args.normalize_scores:
        scores = scores / scale.std
    if args.score_clip is not None:
        scores = scores.clamp(-args.score_clip, args.score_clip)
    if args.missing_eos_penalty is not None:
        scores = scores - args.missing_eos_penalty * missing_eos
    return scores
