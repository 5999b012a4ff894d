"""The loss of PPO, a function of tensors: what the policy and the critic say of a minibatch's tokens, now and in the
rollout, to what is minimised.

    policy:  max(-A r, -A clip(r, 1 - e, 1 + e)),   r = pi(token) / pi_old(token)     (Schulman et al. 2017, eq. 7)
    value:   (max((V - R)^2, (clip(V, V_old - v, V_old + v) - R)^2)) / 2              (ibid., eq. 9, clipped)
    both:    vf_coef * value + policy - entropy_coef * entropy                        (ibid., eq. 9, its sign turned)

arXiv 1707.06347; the clipped value is that of Huang et al. 2024 (arXiv 2403.17031, detail 20). e is `cliprange`, v is
`cliprange_value`, A are advantages and R returns. Each is a mean over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """Of the tokens that count, their number and sums over them: scalars, without gradients."""

    tokens: torch.Tensor
    policy_loss: torch.Tensor
    value_loss: torch.Tensor
    policy_clipped: torch.Tensor
    """At how many the clipping of the ratio makes the loss larger, and so the gradient 0."""
    value_clipped: torch.Tensor
    kl: torch.Tensor
    """Half the squared log-ratio, an estimate of KL(old policy || policy)."""
    entropy: torch.Tensor
    ratio: torch.Tensor
    squared_ratio: torch.Tensor


def ppo_loss(
    *,
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    entropy: torch.Tensor,
    mask: torch.Tensor,
    tokens: torch.Tensor,
    cliprange: float,
    cliprange_value: float | None,
    vf_coef: float,
    entropy_coef: float = 0.0,
    correction: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, Statistics]:
    """The policy's loss with its entropy bonus, and the value loss times `vf_coef`, scalars whose sum is minimised.

    All tensors are (B, T), `advantages` (B, 1) where a completion's are one, `mask` 1.0 at the tokens that count;
    `tokens` is the scalar that sums are divided by. `correction` multiplies the policy's loss at each token: the
    trainer's probability over that of the engine that sampled, where they are not quite the same.
    """
    log_ratio = (log_probs - old_log_probs) * mask
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    policy_loss = torch.max(unclipped, clipped)
    if correction is not None:
        policy_loss = policy_loss * correction

    value_unclipped = (values - returns) ** 2
    value_clipped = value_unclipped
    if cliprange_value is not None:
        change = (values - old_values).clamp(-cliprange_value, cliprange_value)
        value_clipped = (old_values + change - returns) ** 2
    value_loss = 0.5 * torch.max(value_unclipped, value_clipped)

    policy = (policy_loss * mask).sum() / tokens
    if entropy_coef:
        policy = policy - entropy_coef * (entropy * mask).sum() / tokens
    value = vf_coef * (value_loss * mask).sum() / tokens

    with torch.no_grad():
        statistics = Statistics(
            tokens=mask.sum(),
            policy_loss=(policy_loss * mask).sum(),
            value_loss=(value_loss * mask).sum(),
            policy_clipped=((clipped > unclipped) * mask).sum(),
            value_clipped=((value_clipped > value_unclipped) * mask).sum(),
            kl=(0.5 * log_ratio**2 * mask).sum(),
            entropy=(entropy * mask).sum(),
            ratio=(ratio * mask).sum(),
            squared_ratio=(ratio**2 * mask).sum(),
        )
    return policy, value, statistics
