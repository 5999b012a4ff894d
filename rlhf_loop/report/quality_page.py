"""The findings of `check` as one offline HTML file, in the style of a run's report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from rlhf_loop.feedback.quality.summary import SERIES, day, p_text, p_value
from rlhf_loop.feedback.validation_report import CHECKS
from rlhf_loop.files import write_text
from rlhf_loop.report import charts
from rlhf_loop.report.charts import Chart, Series
from rlhf_loop.report.data import SHARED
from rlhf_loop.report.page import number, percent
from rlhf_loop.report.theme_charts import theme_page

ANNOTATORS = 200  # rows of the table; the JSON has all

COLOURS = {"agreement": "blue", "first_shown_wins": "orange", "calibration": "green"}
LEVELS = {"first_shown_wins": 0.5}


def write_page(path: Path, name: str, validation: Mapping[str, Any], quality: Mapping[str, Any]) -> None:
    """Writes the page; `validation` is a `ValidationReport.to_dict()`, `quality` what `check` gives, and
    under `themes` what `themes` gives, where that is to be shown.

    The file needs no network and no scripts. What was called `name` was checked.
    """
    write_text(path, render(name, validation, quality))


def render(name: str, validation: Mapping[str, Any], quality: Mapping[str, Any]) -> str:
    """The page as HTML text."""
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, SHARED]),
        autoescape=True,  # names, ids and texts come from people
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "p": p_value, "p_text": p_text, "day": day}
    annotators = sorted(quality["annotators"], key=lambda row: not row["flags"])
    return environment.get_template("quality_template.html").render(
        name=name,
        validation=validation,
        found=[(CHECKS.get(check, check), count) for check, count in validation["counts"].items() if count],
        q=quality,
        annotators=annotators[:ANNOTATORS],
        hidden=max(0, len(annotators) - ANNOTATORS),
        flagged=sum(bool(row["flags"]) for row in annotators),
        series=SERIES,
        complaints=theme_page(quality["themes"]) if "themes" in quality else None,
        drift_charts=[chart for key, series in quality["drift"].items() if (chart := _drift_chart(key, series))],
        annotator_chart=charts.intervals(
            "Accuracy of annotators",
            [
                (row["annotator"], row["accuracy"]["share"], row["accuracy"]["low"], row["accuracy"]["high"])
                for row in quality["annotators"][:40]
                if row["accuracy"]["share"] is not None
            ],
            note="The probability that a verdict is the true one (Dawid and Skene), with 95% intervals; the 40 "
            "annotators with most verdicts.",
        ),
    )


def _drift_chart(key: str, series: Mapping[str, Any]) -> Chart | None:
    """A series by windows of time, which are numbered from 1: they hold as many values each."""
    if len(series["windows"]) < 2:
        return None
    points = [(n, w["share"], w["low"], w["high"]) for n, w in enumerate(series["windows"], start=1)]
    words = SERIES[key]
    first, last = series["windows"][0], series["windows"][-1]
    change = series["change"]
    note = f"Windows from {day(first['start'])} to {day(last['end'])}, about {first['n']} values each."
    if change is not None:
        note += f" Change over time: {p_text(change['p'])}"
        note += f", most likely about {day(change['at'])}." if change["p"] < 0.05 else "."
    return charts.over_rounds(
        words[0].upper() + words[1:],
        [Series(label="with 95% interval", colour=COLOURS[key], points=points)],
        note=note,
        level=LEVELS.get(key),
        limits=(0, 1.03),
        axis="window of time",
    )
