"""The formulae of PPO, each against an independent reference or a closed form."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from rlhf_loop.updates.ppo.advantages import (
    RunningScale,
    adapted_kl_coef,
    generalized_advantages,
    kl_per_token,
    last_index,
    moments,
    token_rewards,
    whiten,
)


def alone(x: torch.Tensor) -> torch.Tensor:
    """The sum over one rank."""
    return x


def on_ranks(count: int, work: Callable[[int, Callable[[torch.Tensor], torch.Tensor]], object]) -> list:
    """What `work(rank, total)` gives on each of `count` ranks, which are threads that add up what they bring."""
    meet, brought = threading.Barrier(count, timeout=20), [None] * count

    def rank(number: int) -> object:
        def total(x: torch.Tensor) -> torch.Tensor:
            brought[number] = x
            meet.wait()
            summed = sum(brought)
            meet.wait()
            return summed

        return work(number, total)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(rank, range(count)))


def ragged(seed: int, rows: int = 6, length: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards, values and a mask: completions of several lengths, two of them with tokens of a tool in the middle."""
    draw = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, rows, length, generator=draw, dtype=torch.double)
    lengths = torch.tensor([length, 1, 4, 7, length, 2])
    mask = (torch.arange(length) < lengths[:, None]).double()
    mask[0, 3:5] = 0
    mask[3, 0] = 0
    return rewards, values, mask


def advantages_by_double_sum(
    rewards: list[float], values: list[float], gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """Equation 16 of arXiv 1506.02438, term by term, on one completion without any padding."""
    count = len(rewards)
    after = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(count)]
    advantages = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, count)) for t in range(count)]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


@pytest.mark.parametrize("gamma", [1.0, 0.97, 0.5, 0.0])
@pytest.mark.parametrize("lam", [1.0, 0.95, 0.3, 0.0])
def test_advantages_are_the_double_sum_over_the_tokens_that_count(gamma: float, lam: float) -> None:
    rewards, values, mask = ragged(0)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma, lam)
    for row, keep in enumerate(mask.bool()):
        expected = advantages_by_double_sum(rewards[row, keep].tolist(), values[row, keep].tolist(), gamma, lam)
        assert advantages[row, keep].tolist() == pytest.approx(expected[0], abs=1e-12)
        assert returns[row, keep].tolist() == pytest.approx(expected[1], abs=1e-12)
        assert not advantages[row, ~keep].any()
        assert not returns[row, ~keep].any()


def test_tokens_masked_in_the_middle_count_as_deleted() -> None:
    rewards, values, mask = ragged(1)
    whole, _ = generalized_advantages(rewards, values, mask, 0.9, 0.8)
    keep = mask[0].bool()
    without, _ = generalized_advantages(rewards[:1, keep], values[:1, keep], torch.ones(1, int(keep.sum())), 0.9, 0.8)
    torch.testing.assert_close(whole[:1, keep], without)


def test_with_gamma_and_lambda_1_the_return_is_the_reward_to_go() -> None:
    rewards, values, mask = ragged(2)
    advantages, returns = generalized_advantages(rewards, values, mask, 1.0, 1.0)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, to_go - values * mask)


def test_what_stands_on_masked_places_has_no_influence() -> None:
    rewards, values, mask = ragged(3)
    noise = 1e6 * (1 - mask)
    for got, expected in zip(
        generalized_advantages(rewards + noise, values - noise, mask, 0.9, 0.8),
        generalized_advantages(rewards, values, mask, 0.9, 0.8),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_kl_is_positive_where_the_policy_is_surer_than_its_reference() -> None:
    policy, reference = torch.tensor([[0.9, 0.2, 0.5, 0.9]]).log(), torch.tensor([[0.3, 0.4, 0.5, 0.1]]).log()
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    k1 = kl_per_token(policy, reference, mask, "k1")
    torch.testing.assert_close(k1, torch.tensor([[np.log(3.0), -np.log(2.0), 0.0, 0.0]], dtype=torch.float32))
    k3 = kl_per_token(policy, reference, mask, "k3")
    expected = [1 / 3 - 1 + np.log(3.0), 2 - 1 - np.log(2.0), 0.0, 0.0]
    torch.testing.assert_close(k3, torch.tensor([expected], dtype=torch.float32))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_both_estimators_have_the_kl_of_two_categoricals_as_their_mean(estimator: str) -> None:
    draw = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 7, generator=draw, dtype=torch.double).log_softmax(-1)
    each = kl_per_token(policy[None], reference[None], torch.ones(1, 7), estimator)  # every outcome once
    expected = torch.nn.functional.kl_div(reference, policy, reduction="sum", log_target=True)
    torch.testing.assert_close((policy.exp() * each[0]).sum(), expected)


def test_k3_is_never_negative() -> None:
    draw = torch.Generator().manual_seed(0)
    policy, reference = 3 * torch.randn(2, 50, 20, generator=draw)
    assert kl_per_token(policy, reference, torch.ones(50, 20), "k3").min() >= 0
    assert kl_per_token(policy, reference, torch.ones(50, 20), "k1").min() < 0


def test_the_score_stands_on_the_last_token_that_counts_and_never_on_padding() -> None:
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]])
    scores = torch.arange(1.0, 7.0)
    rewards = token_rewards(scores, torch.zeros(6, 4), mask, 0.05)
    expected = torch.zeros(6, 4)
    expected[[0, 1, 2, 3, 4], [3, 1, 0, 3, 2]] = scores[:5]  # nothing for the row without any token
    torch.testing.assert_close(rewards, expected)
    assert last_index(mask).tolist() == [3, 1, 0, 3, 2, 0]


def test_kl_is_taken_off_each_token_that_counts() -> None:
    mask = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    rewards = token_rewards(torch.tensor([2.0]), torch.tensor([[0.5, 9.0, -1.0, 9.0]]), mask, 0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 0.0, 2.1, 0.0]]))


def test_moments_are_those_of_the_tokens_that_count() -> None:
    x, _, mask = ragged(4)
    mean, variance = moments(x, mask, alone)
    counted = x[mask.bool()].numpy()
    assert mean.item() == pytest.approx(counted.mean())
    assert variance.item() == pytest.approx(counted.var())


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitened_numbers_have_variance_1(shift_mean: bool) -> None:
    x, _, mask = ragged(5)
    whitened = whiten(4 * x + 3, mask, alone, shift_mean=shift_mean)
    mean, variance = moments(whitened, mask, alone)
    before, _ = moments(4 * x + 3, mask, alone)
    assert variance.item() == pytest.approx(1, abs=1e-6)
    assert mean.item() == pytest.approx(0 if shift_mean else before.item(), abs=1e-6)
    assert not whitened[mask == 0].any()


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_on_two_ranks_is_whitening_the_whole(shift_mean: bool) -> None:
    x, _, mask = ragged(6)
    x[:3] += 5  # the ranks differ
    whole = whiten(x, mask, alone, shift_mean=shift_mean)
    halves = on_ranks(
        2,
        lambda rank, total: whiten(x[rank * 3 :][:3], mask[rank * 3 :][:3], total, shift_mean=shift_mean),
    )
    torch.testing.assert_close(torch.cat(halves), whole)


def test_whitening_equal_numbers_gives_zeros_and_nothing_infinite() -> None:
    assert not whiten(torch.full((2, 3), 0.7), torch.ones(2, 3), alone).any()
    assert not whiten(torch.full((2, 3), 0.7), torch.zeros(2, 3), alone).any()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_running_scale_is_the_standard_deviation_of_every_score_so_far(ranks: int) -> None:
    draw = np.random.default_rng(0)
    batches = [draw.normal(50, 3, size=(ranks, size)) for size in (4, 1, 7)]  # far from 0: no squares of large sums

    def scale(rank: int, total: Callable[[torch.Tensor], torch.Tensor]) -> list[float]:
        running, after = RunningScale(), []
        for batch in batches:
            running.update(torch.tensor(batch[rank], dtype=torch.float32), total)
            after.append(running.std)
        return after

    seen = np.concatenate([batch.flatten() for batch in batches])
    ends = np.cumsum([batch.size for batch in batches])
    expected = [seen[:end].std(ddof=1) for end in ends]
    for after in on_ranks(ranks, scale):
        assert after == pytest.approx(expected, rel=1e-4)


def test_the_running_scale_waits_for_two_scores_and_outlives_equal_ones() -> None:
    running = RunningScale()
    assert running.std == 1
    running.update(torch.tensor([]), alone)
    running.update(torch.tensor([5.0]), alone)
    assert running.std == 1
    running.update(torch.tensor([5.0, 5.0]), alone)
    assert running.std == pytest.approx(1e-4)


def test_the_running_scale_goes_on_from_what_was_saved() -> None:
    first, second = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([8.0, 16.0])
    through, before, after = RunningScale(), RunningScale(), RunningScale()
    through.update(first, alone)
    through.update(second, alone)
    before.update(first, alone)
    after.load(before.state())
    after.update(second, alone)
    assert after.state() == through.state()


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.0, 0.1), (6.6, 0.1 * 1.001), (5.4, 0.1 * 0.999), (600.0, 0.1 * 1.002), (0.0, 0.1 * 0.998), (-3.0, 0.1 * 0.998)],
    ids=["on target", "10% above", "10% below", "far above", "none", "negative"],
)
def test_the_kl_coefficient_moves_by_the_clipped_relative_error(kl: float, expected: float) -> None:
    assert adapted_kl_coef(0.1, kl, target=6.0, horizon=10_000, completions=100) == pytest.approx(expected)
