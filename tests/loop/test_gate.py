from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from rlhf_loop.recipe import Gate
from rlhf_loop.steps.gate import decide


def _evaluation(**changes: Any) -> dict[str, Any]:
    rate = {"mean": 0.7, "low": 0.6, "high": 0.8, "n": 64, "wins": 40, "ties": 10, "losses": 14}
    return {
        "win_rate_vs_base": rate,
        "win_rate_vs_previous": rate | {"mean": 0.5, "low": 0.46, "high": 0.54},
        "kl": {"per_completion": 3.0, "per_token": 0.1, "k1": 2.9},
        "perplexity": {"candidate": 11.0, "base": 10.0, "ratio": 1.1},
        "plain_text_perplexity": {"candidate": 20.2, "base": 20.0, "ratio": 1.01},
        "length": {"words": 20.0, "ratio": 0.8},
        "collapse": {"distinct_2_ratio": 0.9, "overlap": {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 64}},
    } | changes


def _failed(decision: dict[str, Any]) -> list[str]:
    return [check["name"] for check in decision["checks"] if not check["passed"]]


def test_a_policy_that_is_not_worse_is_promoted_and_every_check_is_listed():
    decision = decide(_evaluation(), Gate(max_kl=10, max_length_ratio=1.5))
    assert decision["promoted"]
    assert [check["name"] for check in decision["checks"]] == [
        "win_rate_vs_previous",
        "kl",
        "perplexity_ratio",
        "plain_text_ratio",
        "length_ratio",
        "distinct_ratio",
    ]
    assert decision["checks"][0]["value"] == 0.46
    assert decision["checks"][0]["limit"] == 0.45
    assert decision["reason"].startswith("promoted: win-rate against the last policy is 0.50 [0.46, 0.54]")


def test_superiority_wants_the_whole_interval_above_one_half():
    assert _failed(decide(_evaluation(), Gate(rule="superiority"))) == ["win_rate_vs_previous"]
    assert decide(_evaluation(), Gate(rule="superiority", against="base"))["promoted"]


def test_non_inferiority_holds_at_the_margin_itself():
    at_margin = _evaluation(win_rate_vs_previous={"mean": 0.5, "low": 0.45, "high": 0.55, "n": 64})
    assert decide(at_margin, Gate(margin=0.05))["promoted"]
    below = _evaluation(win_rate_vs_previous={"mean": 0.5, "low": 0.449, "high": 0.55, "n": 64})
    assert not decide(below, Gate(margin=0.05))["promoted"]


@pytest.mark.parametrize(
    ("change", "settings", "name", "words"),
    [
        ({"kl": {"per_completion": 12.0}}, {"max_kl": 10}, "kl", "12.00 nats a completion"),
        ({"perplexity": {"ratio": 1.43}}, {}, "perplexity_ratio", "is 1.43x; the limit is 1.20x"),
        ({"plain_text_perplexity": {"ratio": 1.2}}, {}, "plain_text_ratio", "1.20x; the limit is 1.10x"),
        ({"length": {"ratio": 2.5}}, {"max_length_ratio": 2.0}, "length_ratio", "2.50x"),
        ({"collapse": {"distinct_2_ratio": 0.499}}, {}, "distinct_ratio", "is 0.499x; the limit is 0.50x"),
        ({"collapse": {"distinct_2_ratio": 0.8, "overlap": {"mean": 0.7}}}, {"max_overlap": 0.6}, "overlap", "is 0.70"),
    ],
)
def test_each_limit_keeps_the_last_policy_and_says_why(
    change: dict[str, Any], settings: dict[str, Any], name: str, words: str
):
    decision = decide(_evaluation(**change), Gate(**settings))
    assert not decision["promoted"]
    assert _failed(decision) == [name]
    assert decision["reason"].startswith("kept the last policy: ")
    assert words in decision["reason"]


def test_a_limit_that_is_switched_off_is_not_checked():
    gate = Gate(max_perplexity_ratio=None, max_plain_text_ratio=None)
    assert decide(_evaluation(perplexity={"ratio": 9.0}), gate)["promoted"]


@pytest.mark.parametrize("missing", [None, {"ratio": None}, {"ratio": float("nan")}, {"ratio": float("inf")}])
def test_a_limit_on_something_unmeasured_fails(missing: Any):
    decision = decide(_evaluation(perplexity=missing), Gate())
    assert _failed(decision) == ["perplexity_ratio"]
    assert "was not measured" in decision["reason"]


def test_plain_text_need_not_be_given():
    decision = decide(_evaluation(plain_text_perplexity=None), Gate())
    assert decision["promoted"]
    assert "evaluation.plain_text" in {check["name"]: check["text"] for check in decision["checks"]}["plain_text_ratio"]


def test_the_text_never_shows_a_failed_value_rounded_to_its_limit():
    decision = decide(_evaluation(perplexity={"ratio": 1.2001}), Gate())
    assert "is 1.2001x; the limit is 1.20x" in decision["reason"]


def test_the_gate_does_without_torch():
    subprocess.run(
        [sys.executable, "-c", "import rlhf_loop.steps.gate, sys; assert 'torch' not in sys.modules"], check=True
    )
