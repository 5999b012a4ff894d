"""PPO's loss, a function of tensors, against a loop over tokens in plain Python and derivatives worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rlhf_loop.updates.ppo.loss import ppo_loss

ROWS, LENGTH = 4, 7
CLIP, VALUE_CLIP, VF_COEF, TOKENS = 0.2, 0.3, 0.1, 31.0


def minibatch(seed: int = 0) -> dict[str, Any]:
    """Ragged completions whose ratios and values have moved, within their clipping and beyond it, in double."""
    draw = torch.Generator().manual_seed(seed)
    names = ("log_probs", "old_log_probs", "advantages", "values", "old_values", "returns", "entropy")
    batch = {name: torch.randn(ROWS, LENGTH, generator=draw, dtype=torch.double) for name in names}
    batch["log_probs"] = batch["old_log_probs"] + 0.3 * batch["log_probs"]
    batch["entropy"] = batch["entropy"].abs()
    batch["mask"] = (torch.arange(LENGTH) < torch.tensor([7, 1, 4, 6])[:, None]).double()
    for name in ("log_probs", "values", "entropy"):
        batch[name] = batch[name].detach().requires_grad_()
    return {
        **batch, "tokens": torch.tensor(TOKENS, dtype=torch.double), "cliprange": CLIP, "cliprange_value": VALUE_CLIP,
        "vf_coef": VF_COEF,
    }  # fmt: skip


def token_by_token(batch: dict[str, Any], correction: Any = None, entropy_coef: float = 0.0) -> dict[str, Any]:
    """Losses, derivatives and sums, with a loop and branches where the formula has a maximum."""
    names = ("log_probs", "old_log_probs", "advantages", "values", "old_values", "returns", "entropy", "mask")
    at = {name: batch[name].expand(ROWS, LENGTH).tolist() for name in names}
    sums = dict.fromkeys(
        ("tokens", "policy_loss", "value_loss", "policy_clipped", "value_clipped", "kl", "entropy", "ratio",
         "squared_ratio"), 0.0,
    )  # fmt: skip
    by_log_prob, by_value = ([[0.0] * LENGTH for _ in range(ROWS)] for _ in range(2))
    for row in range(ROWS):
        for t in range(LENGTH):
            if not at["mask"][row][t]:
                continue
            advantage, value, old = at["advantages"][row][t], at["values"][row][t], at["old_values"][row][t]
            target = at["returns"][row][t]
            weight = 1.0 if correction is None else correction[row, t].item()
            log_ratio = at["log_probs"][row][t] - at["old_log_probs"][row][t]
            ratio = math.exp(log_ratio)
            if (advantage > 0 and ratio > 1 + CLIP) or (advantage < 0 and ratio < 1 - CLIP):
                sums["policy_clipped"] += 1
                policy = -advantage * ((1 + CLIP) if advantage > 0 else (1 - CLIP))
            else:
                policy = -advantage * ratio
                by_log_prob[row][t] = -advantage * ratio * weight / TOKENS
            near = min(max(value, old - VALUE_CLIP), old + VALUE_CLIP)
            if batch["cliprange_value"] is not None and abs(near - target) > abs(value - target):
                sums["value_clipped"] += 1
                error = near - target
            else:
                error = value - target
                by_value[row][t] = VF_COEF * error / TOKENS
            sums["tokens"] += 1
            sums["policy_loss"] += policy * weight
            sums["value_loss"] += error**2 / 2
            sums["kl"] += log_ratio**2 / 2
            sums["entropy"] += at["entropy"][row][t]
            sums["ratio"] += ratio
            sums["squared_ratio"] += ratio**2
    return {
        "policy": (sums["policy_loss"] - entropy_coef * sums["entropy"]) / TOKENS,
        "value": VF_COEF * sums["value_loss"] / TOKENS,
        "by_log_prob": torch.tensor(by_log_prob, dtype=torch.double),
        "by_value": torch.tensor(by_value, dtype=torch.double),
        "sums": sums,
    }


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.2])
@pytest.mark.parametrize("cliprange_value", [VALUE_CLIP, None])
def test_losses_derivatives_and_statistics_are_those_of_a_loop_over_tokens(
    corrected: bool, entropy_coef: float, cliprange_value: float | None
) -> None:
    batch = minibatch() | {"cliprange_value": cliprange_value}
    correction = torch.rand(ROWS, LENGTH, dtype=torch.double) if corrected else None
    expected = token_by_token(batch, correction, entropy_coef)
    policy, value, statistics = ppo_loss(**batch, correction=correction, entropy_coef=entropy_coef)
    assert policy.item() == pytest.approx(expected["policy"], abs=1e-12)
    assert value.item() == pytest.approx(expected["value"], abs=1e-12)
    for name, summed in expected["sums"].items():
        assert getattr(statistics, name).item() == pytest.approx(summed, abs=1e-10), name
        assert not getattr(statistics, name).requires_grad
    assert expected["sums"]["policy_clipped"] > 1  # both branches are there
    assert (expected["sums"]["value_clipped"] > 1) == (cliprange_value is not None)
    (policy + value).backward()
    torch.testing.assert_close(batch["log_probs"].grad, expected["by_log_prob"])
    torch.testing.assert_close(batch["values"].grad, expected["by_value"])
    if entropy_coef:
        torch.testing.assert_close(batch["entropy"].grad, -entropy_coef * batch["mask"] / TOKENS)


def test_masked_tokens_have_no_part_whatever_stands_there() -> None:
    batch, other = minibatch(), minibatch()
    with torch.no_grad():
        for name in ("log_probs", "advantages", "values", "returns", "entropy"):
            other[name] += 3.0 * (1 - other["mask"])
    for got, expected in zip(ppo_loss(**other)[:2], ppo_loss(**batch)[:2], strict=True):
        torch.testing.assert_close(got, expected)


def test_one_advantage_for_a_completion_is_that_of_each_of_its_tokens() -> None:
    batch = minibatch()
    one = batch["advantages"][:, :1]
    narrow, *_ = ppo_loss(**batch | {"advantages": one})
    wide, *_ = ppo_loss(**batch | {"advantages": one.expand(ROWS, LENGTH)})
    assert narrow.item() == wide.item()


def test_an_unchanged_policy_has_the_gradient_of_its_log_probabilities_times_the_advantages() -> None:
    """At a ratio of 1 PPO's gradient is that of REINFORCE."""
    batch = minibatch()
    batch["log_probs"] = batch["old_log_probs"].clone().requires_grad_()
    policy, _, statistics = ppo_loss(**batch)
    policy.backward()
    torch.testing.assert_close(batch["log_probs"].grad, -batch["advantages"] * batch["mask"] / TOKENS)
    assert statistics.policy_clipped == 0
    assert statistics.ratio == statistics.tokens == batch["mask"].sum()
