"""What became of complaints: the report's section, and the line of each piece of feedback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_loop.feedback.quality.themes import WHOSE
from rlhf_loop.records import CheckResult
from rlhf_loop.report.data import Round
from rlhf_loop.report.round_charts import complaint_chart
from rlhf_loop.rows.checks import wanted

EXAMPLES_EACH = 2
"""How many complaints of each outcome are shown."""

OUTCOMES = {
    "came_back": "came back",
    "still_there": "still there",
    "fixed": "fixed",
    "not_told": "the judge did not say",
}
"""In words, the worst first."""


_WHOSE = {kind: words.partition(",")[0] for kind, words in WHOSE.items()}


def complaint_page(rounds: Sequence[Round]) -> dict[str, Any] | None:
    """`{rounds, chart, by_asks, examples, last}` for the template; None where nothing was asked again."""
    asked = [r for r in rounds if r.complaints]
    if not asked:
        return None
    last = asked[-1]
    return {
        "rounds": [{"round": r.number, "outcome": r.outcome, **r.complaints} for r in asked],
        "chart": complaint_chart(asked),
        "by_asks": last.complaints["by_asks"],
        "whose": {_WHOSE[kind]: count for kind, count in last.complaints["by_origin"].items()},
        "left_out": last.json("snapshot", "validation.json").get("checks", {}).get("left_out") or {},
        "examples": examples(last.check_results),
        "last": last.number,
    }


def examples(results: Sequence[CheckResult]) -> list[dict[str, Any]]:
    """Some of each outcome, at equal distances: the complaint, the answer it was about, and the new one."""
    found = []
    for outcome, words in OUTCOMES.items():
        of_it = [one for one in results if one.outcome == outcome and one.outcome != "not_told"]
        for i in range(min(EXAMPLES_EACH, len(of_it))):
            one = of_it[i * len(of_it) // min(EXAMPLES_EACH, len(of_it))]
            found.append({"check": one, "outcome": words, "wanted": wanted(one.asks, one.limit)})
    return found


def outcomes_of(rounds: Sequence[Round], feedback_ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """What became of each of these pieces of feedback: one entry a check, with its outcome in each round, by the id of
    the piece. Those of which no check was made are not there."""
    wanted_ids = set(feedback_ids)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for r in rounds:
        for one in r.check_results:
            for id in wanted_ids.intersection(one.feedback_ids):
                entry = {"asks": wanted(one.asks, one.limit), "rounds": []}
                of_check = found.setdefault(id, {}).setdefault(one.id, entry)
                of_check["rounds"].append({"round": r.number, "outcome": OUTCOMES[one.outcome]})
    return {id: list(checks.values()) for id, checks in found.items()}
