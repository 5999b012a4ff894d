"""Measures of a round's candidates, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples.feedback import completion

from rlhf_loop.record_files import write_records
from rlhf_loop.resampling import grouped_mean
from rlhf_loop.steps.variety import variety


def test_measures_are_taken_within_a_prompt_and_averaged_over_prompts(tmp_path: Path) -> None:
    answers = [
        completion("1", "a b c", "p"), completion("2", "a b d", "p"),  # pairs ab bc ab bd: 3 of 4
        completion("3", "x y", "q"), completion("4", "x y", "q"),  # xy xy: 1 of 2
        completion("5", "alone here", "r"),
    ]  # fmt: skip
    before = tmp_path / "before.parquet"
    write_records(before, [completion("6", "one a b c d e", "s"), completion("7", "a b c d e", "t")])
    found = variety(answers, before, seed=0)
    assert found["distinct_2"]["mean"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found["distinct_2"]["n"] == 2
    assert found["overlap"] is None
    again = variety([completion("8", "z a b c d", "s"), completion("9", "v w x y", "t")], before, seed=0)
    assert again["overlap"]["mean"] == pytest.approx((1 / 2 + 0) / 2)  # abcd of zabc, abcd
    assert again["distinct_2"] is None


def test_the_interval_of_a_mean_resamples_groups() -> None:
    assert grouped_mean([], []) is None
    one = grouped_mean([1.0, 3.0], ["a", "a"])
    assert one == {"mean": 2.0, "low": None, "high": None, "n": 2}
    groups = [str(number) for number in range(100)]
    found = grouped_mean([float(number % 2) for number in range(100)], groups)
    assert found is not None
    assert found["mean"] == 0.5
    assert found["low"] == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02)  # of a share of 100: .5 +- 1.96 x sqrt(.25 / 100)
    assert found["high"] == pytest.approx(0.5 + 1.96 * 0.05, abs=0.02)
