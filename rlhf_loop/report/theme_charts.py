"""The chart of what people complain about over the rounds, and its table, for the report and the check page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.quality.themes import OTHER, WHOSE, change_in_words
from rlhf_loop.report import charts
from rlhf_loop.report.charts import Chart, Series

MOST_LINES = 5
"""How many themes are drawn: those with most complaints."""

_COLOURS = ("blue", "orange", "green", "violet", "pink")


def theme_page(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """`{whose, rows, chart, ...}` of what `themes` gave, for the template; None without complaints."""
    if found["whose"] is None:
        return None
    rows = [
        {"theme": theme, **row, "change_text": change_in_words(row["change"]).removeprefix("; ")}
        for theme, row in found["themes"].items()
    ]
    return {**found, "whose": WHOSE[found["whose"]], "rows": rows, "chart": theme_chart(found)}


def theme_chart(found: Mapping[str, Any]) -> Chart | None:
    """Lines over the rounds in which feedback was given; None where that was one."""
    drawn = [theme for theme in found["themes"] if theme != OTHER][:MOST_LINES]
    if len({row["round"] for theme in drawn for row in found["themes"][theme]["rounds"]}) < 2:
        return None
    series = [
        Series(
            label=theme,
            colour=colour,
            points=[(row["round"], row["share"], row["low"], row["high"]) for row in found["themes"][theme]["rounds"]],
        )
        for theme, colour in zip(drawn, _COLOURS, strict=False)
    ]
    whose = WHOSE[found["whose"]].partition(",")[0]
    return charts.over_rounds(
        "Reasons of complaints",
        series,
        note=f"Share of the answers judged in a round that {whose} complained of, by reason; the {len(drawn)} "
        "commonest. Bars are 95% intervals, from resampling prompts.",
        limits=(0, 0.1),
    )
