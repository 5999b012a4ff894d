"""Losses of critiques: formulas, tokens, and which rows are seen when."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_loop.models.loading import load_policy
from rlhf_loop.models.turns import Turns
from rlhf_loop.recipe import Policy
from rlhf_loop.records import Span
from rlhf_loop.updates.terms.entry_test import signal
from rlhf_loop.updates.terms.examples import LeftOut, marked, with_told
from rlhf_loop.updates.terms.hindsight import hindsight_losses
from rlhf_loop.updates.terms.predict import predict_loss
from rlhf_loop.updates.terms.side_batches import side_batch
from rlhf_loop.updates.terms.unlikelihood import likelihood_losses, unlikelihood_losses

LENGTHS = [5, 3, 1]
MASK = torch.tensor([[1.0] * n + [0.0] * (5 - n) for n in LENGTHS])


def log_probs(seed: int) -> torch.Tensor:
    """(3, 5), in double precision; what is past a row's end must not matter."""
    return torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).clamp(0.05, 0.95).log()


def gradient(function: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    """By central differences."""
    result, step = torch.zeros_like(at), 1e-6
    for index in np.ndindex(*at.shape):
        above, below = at.clone(), at.clone()
        above[index] += step
        below[index] -= step
        result[index] = (function(above) - function(below)) / (2 * step)
    return result


def test_predicting_is_the_mean_over_critiques_of_the_mean_over_their_tokens() -> None:
    given = log_probs(0)
    expected = sum(-sum(given[row, :n]) / n for row, n in enumerate(LENGTHS)) / 3
    assert predict_loss(given, MASK).item() == pytest.approx(expected.item())
    halves = [predict_loss(given[rows], MASK[rows]) * len(rows) / 3 for rows in ([0, 1], [2])]
    assert sum(halves).item() == pytest.approx(expected.item())


def test_unlikelihood_is_the_papers_sum_token_by_token() -> None:
    told, untold = log_probs(1), log_probs(2)
    losses, inappropriate = unlikelihood_losses(told, untold, MASK, threshold=1.2, weight=0.5)
    for row, n in enumerate(LENGTHS):
        imitated = contrast = 0.0
        for t in range(n):
            with_critique, without = math.exp(told[row, t]), math.exp(untold[row, t])
            meant = with_critique / without > 1.2
            assert bool(inappropriate[row, t]) == meant
            imitated -= math.log(with_critique)
            contrast -= 0.5 * math.log(1 - without) if meant else math.log(without)
        assert losses[row].item() == pytest.approx((imitated / n + contrast / n) / 2)
        assert not inappropriate[row, n:].any()
    assert 0 < inappropriate.sum() < MASK.sum()


def test_unlikelihood_pushes_down_what_is_inappropriate_and_up_what_is_not() -> None:
    told, untold = log_probs(1), log_probs(2)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return unlikelihood_losses(told, values, MASK, threshold=1.1, weight=1.0)[0].sum()

    at = untold.clone().requires_grad_()
    losses, inappropriate = unlikelihood_losses(told, at, MASK, threshold=1.1, weight=1.0)
    losses.sum().backward()
    torch.testing.assert_close(at.grad, gradient(loss, untold), atol=1e-6, rtol=1e-5)
    assert (at.grad[inappropriate > 0] > 0).all()
    assert (at.grad[(inappropriate == 0) & (MASK > 0)] < 0).all()
    assert not at.grad[MASK == 0].any()


def test_only_what_a_person_marked_is_inappropriate() -> None:
    told, untold = torch.zeros(1, 5) - 0.1, torch.zeros(1, 5) - 2.0
    only = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]])
    _, everywhere = unlikelihood_losses(told, untold, MASK[:1], threshold=1.1, weight=1.0)
    _, there = unlikelihood_losses(told, untold, MASK[:1], threshold=1.1, weight=1.0, marked=only)
    assert everywhere.tolist() == [[1.0] * 5]
    assert there.tolist() == only.tolist()


def test_a_token_that_the_policy_is_sure_of_has_a_finite_unlikelihood() -> None:
    untold = torch.zeros(1, 5, requires_grad=True)
    losses, _ = unlikelihood_losses(torch.ones(1, 5), untold, MASK[:1], threshold=1.1, weight=1.0)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(untold.grad).all()


def test_a_good_answer_has_its_plain_likelihood() -> None:
    given = log_probs(3)
    assert likelihood_losses(given, MASK).tolist() == pytest.approx(
        [(-sum(given[row, :n]) / n).item() for row, n in enumerate(LENGTHS)]
    )


def test_hindsight_weighs_each_token_by_what_the_critique_changes() -> None:
    told, untold = log_probs(4), log_probs(5).requires_grad_()
    losses, signals = hindsight_losses(told, untold, MASK)
    for row, n in enumerate(LENGTHS):
        tokens = range(2, n)  # the first two are left out
        advantages = [(told[row, t] - untold[row, t]).item() for t in tokens]
        count = max(1, len(tokens))
        expected = -sum(a * untold[row, t].item() for a, t in zip(advantages, tokens, strict=True)) / count
        assert losses[row].item() == pytest.approx(expected)
        assert signals[row].item() == pytest.approx(sum(advantages) / count)
    losses.sum().backward()
    expected = torch.zeros_like(told)
    expected[0, 2:5] = -(told - untold.detach())[0, 2:5] / 3
    expected[1, 2] = -(told - untold.detach())[1, 2]
    torch.testing.assert_close(untold.grad, expected)  # advantages are constants
    assert not signals.requires_grad


@pytest.fixture(scope="module")
def turns(tiny_policy: Path) -> Turns:
    model, tokenizer = load_policy(tiny_policy, Policy(model=str(tiny_policy), dtype="float32"))
    return Turns(tokenizer, model)


@pytest.mark.parametrize("text", ["It is seven, not eight.", "día 🙂 naïve 日本 end", " leading and trailing "])
def test_marked_tokens_are_those_that_write_the_marked_characters(turns: Turns, text: str) -> None:
    ids = [*turns._ids(text), turns.end]
    assert turns.text(ids) == text
    for start in range(len(text)):
        for end in (start + 1, min(start + 4, len(text))):
            tokens = marked(ids, text, [Span(start=start, end=end)], turns)
            assert not tokens[-1]  # the end token is no character
            chosen = [n for n, is_marked in enumerate(tokens) if is_marked]
            assert chosen == list(range(chosen[0], chosen[-1] + 1))
            before, after = turns.text(ids[: chosen[0]]), turns.text(ids[: chosen[-1] + 1])
            assert text.startswith(before)
            assert text.startswith(after)
            assert len(before) <= start < end <= len(after)


def test_marks_are_found_where_a_template_stripped_the_answer(turns: Turns) -> None:
    ids = turns._ids("seven it is")
    assert marked(ids, "  seven it is ", [Span(start=2, end=7)], turns) == marked(
        ids, "seven it is", [Span(start=0, end=5)], turns
    )


def test_marks_in_another_text_are_left_out_with_the_reason(turns: Turns) -> None:
    with pytest.raises(LeftOut, match="another text"):
        marked(turns._ids("seven it is"), "eight it is", [Span(start=0, end=5)], turns)


def test_what_is_told_follows_the_users_last_words() -> None:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert with_told(asked, "Told.") == [asked[0], {"role": "user", "content": "Why?\n\nTold."}]
    answered = [*asked, {"role": "assistant", "content": "So."}]
    assert with_told(answered, "Told.") == [*answered, {"role": "user", "content": "Told."}]


def test_side_batches_go_through_all_rows_before_one_comes_again() -> None:
    for epoch in range(3):
        seen = [row for number in range(3) for row in side_batch(12, 4, epoch * 3 + number, seed=5)]
        assert sorted(seen) == list(range(12))
    orders = {tuple(side_batch(12, 12, number, seed=5)) for number in range(20)}
    assert len(orders) == 20
    assert side_batch(12, 4, 1, seed=5) != side_batch(12, 4, 1, seed=6)


def test_a_side_batch_holds_no_row_twice_and_is_never_empty() -> None:
    for rows in range(1, 9):
        for number in range(20):
            batch = side_batch(rows, 4, number, seed=0)
            assert len(set(batch)) == len(batch) == min(4, rows)


def test_ranks_take_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for number in range(10):
        batches = []
        for rank in "01":
            monkeypatch.setenv("RANK", rank)
            batches.append(side_batch(10, 3, number, seed=0))
        assert [len(batch) for batch in batches] == [3, 3]
        assert len({*batches[0], *batches[1]}) == 6
    batches = []
    for rank in "01":  # fewer rows than ranks: each has one all the same, or ranks would wait for one another
        monkeypatch.setenv("RANK", rank)
        batches.append(side_batch(1, 3, 0, seed=0))
    assert batches == [[0], [0]]


def test_a_signal_of_the_right_critiques_alone_is_clear() -> None:
    noise = np.random.default_rng(0).normal(0, 0.02, (2, 40))
    groups = [str(n // 2) for n in range(40)]
    right, wrong = -0.3 + noise[0], 0.01 + noise[1]
    clear = signal(right, wrong, groups, seed=0)
    assert (clear.answers, clear.prompts) == (40, 20)
    assert clear.right == pytest.approx(right.mean())
    assert clear.low < (right - wrong).mean() < clear.high < 0
    assert clear.is_clear(0.5)
    assert not signal(right, right + noise[1], groups, seed=0).is_clear(0.5)  # no difference
    assert not signal(right, -0.25 + noise[1], groups, seed=0).is_clear(0.5)  # any critique does it
    said = clear.said(0.5)
    assert "40 answers to 20 prompts" in said
    assert f"{clear.right:+.4f} nats a token" in said
    assert f"at most {-clear.right / 2:.4f}" in said
