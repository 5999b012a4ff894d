"""PPO's metrics, under the names of TRL's former PPOTrainer: sums and counts on the device, added up over ranks when
they are logged, so that a mean is one over all tokens (or completions) and not of means."""

from __future__ import annotations

import torch

from rlhf_loop.updates.ppo.advantages import Sum
from rlhf_loop.updates.ppo.loss import Statistics

_OF_TOKENS = {
    "loss/policy_avg": "policy_loss",
    "loss/value_avg": "value_loss",
    "policy/clipfrac_avg": "policy_clipped",
    "val/clipfrac_avg": "value_clipped",
    "policy/approxkl_avg": "kl",
    "policy/entropy_avg": "entropy",
    "val/ratio": "ratio",
    "val/ratio_var": "squared_ratio",  # turned into the variance when it is logged
}
"""Metric -> the field of `Statistics` that it is the mean of."""


class Metrics:
    """What was added up since the last log, in `train` and in `eval`."""

    def __init__(self, total: Sum):
        self.total = total
        self._of_tokens: dict[str, torch.Tensor] = {}  # mode -> sums (metrics + 1,), the tokens last
        self._of_steps: dict[str, dict[str, torch.Tensor]] = {"train": {}, "eval": {}}  # name -> (sum, count)

    def add_loss(self, mode: str, statistics: Statistics) -> None:
        """Takes in one micro-batch's."""
        sums = torch.stack([*(getattr(statistics, name) for name in _OF_TOKENS.values()), statistics.tokens]).float()
        self._of_tokens[mode] = self._of_tokens[mode] + sums if mode in self._of_tokens else sums

    def add_step(self, mode: str, name: str, value: torch.Tensor) -> None:
        """Takes in, to a mean over steps, something that is equal on all ranks."""
        pair = torch.stack([value.detach().float(), torch.ones((), device=value.device)])
        sums = self._of_steps[mode]
        sums[name] = sums[name] + pair if name in sums else pair

    def sums(self, mode: str) -> dict[str, torch.Tensor]:
        """What was added up on this rank: metric -> (sum, count)."""
        result = {}
        if mode in self._of_tokens:
            *summed, tokens = self._of_tokens[mode]
            result = {name: torch.stack([value, tokens]) for name, value in zip(_OF_TOKENS, summed, strict=True)}
        return {**result, **self._of_steps[mode]}

    def take_means(self, mode: str) -> dict[str, float]:
        """Means over all ranks, from which the next sums begin anew."""
        sums = self.sums(mode)
        self._of_tokens.pop(mode, None)
        self._of_steps[mode] = {}
        if not sums:
            return {}
        summed = self.total(torch.stack(list(sums.values()))).tolist()
        means = {name: value / max(count, 1.0) for name, (value, count) in zip(sums, summed, strict=True)}
        if "val/ratio_var" in means:
            means["val/ratio_var"] = max(0.0, means["val/ratio_var"] - means["val/ratio"] ** 2)
        return means


def completion_means(
    scored: torch.Tensor, per_completion: dict[str, torch.Tensor | None], total: Sum
) -> dict[str, float]:
    """Means over the scored completions of all ranks, of metrics (B,) that there are, and how many ended."""
    known = {name: values for name, values in per_completion.items() if values is not None}
    sums = [scored.float().sum(), *((values * scored).sum().float() for values in known.values())]
    count, *summed = total(torch.stack(sums)).tolist()
    means = {name: value / max(count, 1.0) for name, value in zip(known, summed, strict=True)}
    missing = summed[list(known).index("val/missing_eos")]
    return {**means, "val/num_eos_tokens": count - missing}
