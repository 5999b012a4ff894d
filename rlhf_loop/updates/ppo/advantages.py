"""The formulae of PPO on completions: rewards of tokens, advantages, whitening. All tensors are (B, T) unless said.

B completions of at most T tokens; `mask` is 1 where a token was sampled by the policy and 0 on padding and on tokens
that something else wrote (tool results). What is masked is skipped, not treated as a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

Sum = Callable[[torch.Tensor], torch.Tensor]
"""Adds a tensor up over all ranks."""


def generalized_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

        delta_t = r_t + gamma V_{t+1} - V_t        A_t = sum over l of (gamma lam)^l delta_{t+l}

    The value after the last token is 0: a completion is a whole episode. Returns are A_t + V_t. Both are 0 where
    masked.
    """
    keep = mask.bool()
    advantages = torch.zeros_like(values)
    following_advantage = values.new_zeros(len(values))  # (B,)
    following_value = values.new_zeros(len(values))  # (B,)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        advantage = delta + gamma * lam * following_advantage
        following_advantage = torch.where(keep[:, t], advantage, following_advantage)
        following_value = torch.where(keep[:, t], values[:, t], following_value)
        advantages[:, t] = torch.where(keep[:, t], advantage, advantages[:, t])
    return advantages, (advantages + values) * mask


def kl_per_token(
    log_probs: torch.Tensor, reference_log_probs: torch.Tensor, mask: torch.Tensor, estimator: Literal["k1", "k3"]
) -> torch.Tensor:
    """Estimates of KL(policy || reference) at each sampled token (Schulman 2020, "Approximating KL divergence").

    k1 = log p - log q; k3 = q/p - 1 - log(q/p), never negative and of smaller variance. Both are unbiased.
    """
    log_ratio = reference_log_probs - log_probs
    kl = -log_ratio if estimator == "k1" else log_ratio.exp() - 1 - log_ratio
    return kl * mask


def last_index(mask: torch.Tensor) -> torch.Tensor:
    """Place of each row's last 1, (B,); 0 for a row without any."""
    return (torch.arange(mask.shape[1], device=mask.device) * mask).argmax(1)


def token_rewards(scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """-kl_coef * KL at each token, plus the completion's score (B,) at its last one (Ziegler et al. 2019, eq. 2)."""
    rewards = -kl_coef * kl * mask
    return rewards.scatter_add(1, last_index(mask)[:, None], (scores * mask.any(1))[:, None])


def moments(x: torch.Tensor, mask: torch.Tensor, total: Sum) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and (biased) variance over the unmasked entries of all ranks."""
    count, summed = total(torch.stack([mask.sum().to(x.dtype), (x * mask).sum()]))
    count = count.clamp(min=1.0)
    mean = summed / count
    return mean, total((((x - mean) ** 2) * mask).sum()) / count


def whiten(x: torch.Tensor, mask: torch.Tensor, total: Sum, *, shift_mean: bool = True) -> torch.Tensor:
    """`x` scaled to variance 1 over all ranks, and to mean 0 unless `shift_mean` is off; 0 where masked."""
    mean, variance = moments(x, mask, total)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened if shift_mean else whitened + mean) * mask


class RunningScale:
    """The standard deviation of every score so far (Welford's update by batches; Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = 0.0
        self.squares = 0.0  # sum of squared distances from the mean

    def update(self, scores: torch.Tensor, total: Sum) -> None:
        """Takes in the scores (B,) of all ranks."""
        count, summed = total(torch.stack([scores.new_tensor(float(len(scores))), scores.sum()])).tolist()
        if count == 0:
            return
        mean = summed / count
        squares = float(total(((scores - mean) ** 2).sum()))
        delta, together = mean - self.mean, self.count + count
        self.squares += squares + delta**2 * self.count * count / together
        self.mean += delta * count / together
        self.count = together

    @property
    def std(self) -> float:
        """At least 1e-4; 1 before there are two scores."""
        return max((self.squares / (self.count - 1)) ** 0.5, 1e-4) if self.count > 1 else 1.0

    def state(self) -> list[float]:
        """What `load` needs."""
        return [self.count, self.mean, self.squares]

    def load(self, state: list[float]) -> None:
        """Goes on from `state`."""
        self.count, self.mean, self.squares = state


def adapted_kl_coef(kl_coef: float, kl: float, target: float, horizon: float, completions: float) -> float:
    """The coefficient after a rollout whose KL was `kl` nats a completion (Ziegler et al. 2019, arXiv 1909.08593, 2.2).

    error = clip(kl / target - 1, -0.2, 0.2);  kl_coef * (1 + error * completions / horizon)
    """
    error = max(-0.2, min(0.2, kl / target - 1))
    return kl_coef * (1 + error * completions / horizon)
