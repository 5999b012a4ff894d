"""How much of a text stands in others, by hand."""

from __future__ import annotations

from rlhf_loop.ngrams import alike, shared


def test_shared_counts_each_run_that_stands_in_any_other_text() -> None:
    assert shared("a b c d", ["x a b y", "c d"], 2) == 2 / 3  # ab and cd, not bc
    assert shared("a b a b", ["a b"], 2) == 2 / 3  # repeated ones as often
    assert shared("a", ["a"], 2) is None
    assert shared("a b", [], 2) == 0.0


def test_alike_is_jaccards_similarity_of_runs() -> None:
    assert alike("The cat sat down", "the  cat sat down") == 1.0
    assert alike("a b c d", "a b c e") == 1 / 3  # abc of abc, bcd, bce
    assert alike("a b", "a b c d") == 1 / 3  # of word pairs, as one of them has no run of three
    assert alike("", "") == 1.0
    assert alike("", "a") == 0.0
