from __future__ import annotations

import math

import numpy as np
import pytest
from samples.feedback import completion, fill, preference, prompt, value_counts

from rlhf_loop.feedback.quality.coefficients import krippendorff_alpha
from rlhf_loop.feedback.quality.measures import agreement, shown_first_wins
from rlhf_loop.feedback.quality.significance import share
from rlhf_loop.feedback.quality.stats import lines, stats
from rlhf_loop.feedback.quality.votes import votes_of
from rlhf_loop.feedback.store.store import Store


def test_alpha_of_the_published_example() -> None:
    """Krippendorff (2011), section C: four observers, twelve units, nominal: 0.743."""
    observers = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    units = [[row[i] for row in observers if row[i] != "."] for i in range(12)]
    assert krippendorff_alpha(value_counts(units)) == pytest.approx(0.743, abs=5e-4)


def test_alpha_of_two_observers_by_hand() -> None:
    """Three agreements and one disagreement over a, a, b, b/a: D_o = 2/8, D_e = 2*5*3/(8*7)."""
    assert krippendorff_alpha(value_counts(["aa", "aa", "bb", "ab"])) == pytest.approx(1 - (2 / 8) / (30 / 56))
    assert krippendorff_alpha(value_counts(["ab", "ab"])) == pytest.approx(1 - 1 / (8 / 12))
    assert np.isnan(krippendorff_alpha(value_counts(["aa", "a"])))


def test_agreement_does_not_depend_on_how_the_pair_was_shown() -> None:
    same = [preference("1", "a", "b", "a", who="x"), preference("2", "b", "a", "b", who="y")]
    other = [preference("3", "c", "d", "a", who="x"), preference("4", "c", "d", "b", who="y")]
    alone = [preference("5", "e", "f", who="x")]
    found = agreement(votes_of(same + other + alone))
    assert (found.pairs, found.comparisons, found.agreed) == (2, 2, 0.5)


def test_exact_interval_against_closed_forms_and_tables() -> None:
    all_of_ten, none_of_ten = share(10, 10), share(0, 10)
    assert all_of_ten.low == pytest.approx(0.025 ** (1 / 10))
    assert (all_of_ten.high, none_of_ten.low) == (1.0, 0.0)
    assert none_of_ten.high == pytest.approx(1 - 0.025 ** (1 / 10))
    half = share(5, 10)
    assert (round(half.low, 4), round(half.high, 4)) == (0.1871, 0.8129)


@pytest.mark.parametrize(("k", "n"), [(3, 17), (52, 60), (700, 1000)])
def test_exact_interval_solves_its_equations(k: int, n: int) -> None:
    found = share(k, n)

    def at_least(p: float) -> float:
        return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))

    assert at_least(found.low) == pytest.approx(0.025, rel=1e-6)
    at_most = 1 - at_least(found.high) + math.comb(n, k) * found.high**k * (1 - found.high) ** (n - k)
    assert at_most == pytest.approx(0.025, rel=1e-6)


def test_exact_interval_of_many_cases_is_near_the_normal_one() -> None:
    found = share(60_000, 100_000)
    half = 1.96 * math.sqrt(0.24 / 100_000)
    assert found.low == pytest.approx(0.6 - half, abs=1e-4)
    assert found.high == pytest.approx(0.6 + half, abs=1e-4)


def test_position_bias_counts_decided_preferences_with_a_known_order() -> None:
    feedback = [
        preference("1", winner="a", shown_order="ab"),
        preference("2", winner="b", shown_order="ba"),
        preference("3", winner="b", shown_order="ab"),
        preference("4", winner="tie", shown_order="ab"),
        preference("5", winner="a"),
    ]
    found = shown_first_wins(votes_of(feedback)).share()
    assert (found.n, found.share) == (3, pytest.approx(2 / 3))


def test_stats_of_a_store() -> None:
    with Store.open(":memory:") as store:
        store.add_prompts([prompt()])
        store.add_completions([completion("a", "one two"), completion("b", "one"), completion("c", "one two three")])
        store.add_feedback(
            [
                preference("1", "a", "b", "a", who="x", shown_order="ab", comment="Longer."),
                preference("2", "a", "b", "b", who="y"),
                preference("3", "a", "c", "tie", who="y"),
                preference("4", "b", "c", "b", who="x", supersedes="0"),
            ]
        )
        found = stats(store)
    assert found["verdicts"] == {"a": 1, "b": 2, "tie": 1}
    assert found["feedback_by_annotator"] == {"x": {"preference": 2}, "y": {"preference": 2}}
    assert (found["longer_wins"]["share"], found["longer_wins"]["n"]) == (pytest.approx(2 / 3), 3)
    assert (found["first_shown_wins"]["share"], found["first_shown_wins"]["n"]) == (1.0, 1)
    assert (found["agreement"]["pairs"], found["agreement"]["agreed"]) == (1, 0.0)
    assert found["with_critique"] == 1


def test_stats_are_readable_for_a_full_and_for_an_empty_store() -> None:
    with Store.open(":memory:") as store:
        empty = lines(stats(store))
        assert empty[0].split() == ["prompts", "0"]
        fill(store)
        full = "\n".join(lines(stats(store)))
    for part in (
        "prompts       2: test 1, train 1",
        "by round    8 in round 0",
        "annotator   ann:",
        "1 records are superseded",
    ):
        assert part in full
