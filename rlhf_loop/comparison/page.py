"""The report of a comparison: one offline HTML file in the style of a run's, with tables for a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from rlhf_loop.comparison.budget import SPENT, shown
from rlhf_loop.comparison.paired import Estimate
from rlhf_loop.comparison.results import MEASURES, Measured
from rlhf_loop.comparison.shown import CellResult, Point, curve, p_text, plus, signed
from rlhf_loop.comparison.sweep import Cell, Sweep
from rlhf_loop.files import write_text
from rlhf_loop.report import charts, write_report
from rlhf_loop.report.charts import Chart, Series
from rlhf_loop.report.data import SHARED
from rlhf_loop.report.page import number, percent
from rlhf_loop.run_dir import RunDir

if TYPE_CHECKING:
    from rlhf_loop.comparison import Comparison

COLOURS = ("grey", "blue", "orange", "green", "violet", "pink")
"""Of the reference, which stands in every chart, and of the cells beside it."""

CURVES: dict[str, tuple[str, str, float | None]] = {
    "win_rate": ("Win-rate over the base", "Of the policy in force. Above the dashed line is better.", 0.5),
    "judge": ("Judge's score", "Mean over the held-out answers of the policy in force.", None),
    "kl": ("KL to the base policy", "Nats a completion.", 0.0),
    "words": ("Length", "Words an answer.", None),
    "distinct_2": ("Variety", "Distinct-2 of the held-out answers; higher is more varied.", None),
    "perplexity": ("Perplexity, over the base's", "Of the answers, under the base; above 1 is less coherent.", 1.0),
}
"""Measure -> title, note and dashed line of its chart."""

HEAD = ["cell", "seeds", "labels", "samples", "steps", "win-rate over base", "difference", "p (Holm)", "judge's score"]
"""Of the table for a paper."""


def write_page(
    comparison: Comparison,
    sweep: Sweep,
    cells: Sequence[Cell],
    measured: Mapping[str, Sequence[Measured]],
    budgets: Mapping[str, Mapping[str, float]],
) -> None:
    """Writes `comparison.report` from what the runs have come to."""
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, SHARED]),
        autoescape=True,  # names and errors come from people
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {"number": number, "percent": percent, "plus": plus, "p": p_text, "amount": shown}
    environment.filters |= {**filters, "seconds": charts.seconds}
    results = comparison.cells
    rows = paper_rows(results, budgets)
    runs = [one for several in measured.values() for one in several]
    html = environment.get_template("template.html").render(
        name=sweep.name or comparison.folder.name,
        c=comparison,
        sweep=sweep,
        cells=cells,
        measures=MEASURES,
        results=results,
        budgets=budgets,
        spent=SPENT,
        curves=learning_curves(measured, sweep),
        differences=difference_chart(results, sweep),
        markdown=markdown(rows),
        latex=latex(rows, sweep),
        runs=[_run_row(one, comparison) for one in runs],
        simulated=any(is_simulated(cell) for cell in cells),
        seconds=sum(one.rows[-1]["seconds"] for one in runs if one.rows),
        sweep_text=(comparison.folder / "sweep.yaml").read_text(encoding="utf-8"),
    )
    write_text(comparison.report, html)


def is_simulated(cell: Cell) -> bool:
    """Whether its feedback comes from a rule rather than from people."""
    annotator = cell.recipe.feedback.annotator
    return annotator is not None and annotator.kind == "simulated"


def learning_curves(measured: Mapping[str, Sequence[Measured]], sweep: Sweep) -> list[Chart]:
    """Measures over the labels that were spent; more cells than there are colours are drawn in several charts, the
    reference in each."""
    points = {cell: found for cell, runs in measured.items() if (found := curve(runs, sweep.confidence))}
    others = [cell for cell in points if cell != sweep.reference]
    each = len(COLOURS) - 1
    groups = [others[start : start + each] for start in range(0, len(others), each)] or [[]]
    drawn = []
    for measure, (title, note, level) in CURVES.items():
        for place, group in enumerate(groups, start=1):
            drawn.append(
                charts.over_amounts(
                    title if len(groups) == 1 else f"{title}, {place} of {len(groups)}",
                    [
                        _line(cell, colour, points.get(cell, []), measure)
                        for cell, colour in zip([sweep.reference, *group], COLOURS, strict=False)
                    ],
                    axis="labels spent, in preferences",
                    note=note,
                    level=level,
                    limits=(0.0, 1.03) if measure == "win_rate" else None,
                )
            )
    return [chart for chart in drawn if chart]


def difference_chart(results: Mapping[str, CellResult], sweep: Sweep) -> Chart | None:
    """Each cell's win-rate less the reference's."""
    rows = [
        (cell, found.mean, found.low, found.high)
        for cell, one in results.items()
        if (found := one.differences.get("win_rate")) and found.low is not None and found.high is not None
    ]
    reach = max((abs(end) for _, *ends in rows for end in ends), default=0.0) * 1.1 or 0.1
    return charts.intervals(
        f"Win-rate over the base, less that of {sweep.reference}",
        rows,
        note="Paired by prompt and seed. Right of the line is better; an interval across it shows no difference.",
        limits=(-reach, reach),
        level=0.0,
        confidence=sweep.confidence,
    )


def paper_rows(results: Mapping[str, CellResult], budgets: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """A row of `HEAD` for each cell, the reference first."""
    rows = []
    for cell, one in results.items():
        difference = one.differences.get("win_rate")
        rows.append(
            [
                cell,
                str(len(one.seeds)),
                *(shown(budgets[cell][what]) for what in SPENT),
                with_interval(one.values.get("win_rate")),
                signed(difference) if difference else "reference" if not one.differences else "-",
                p_text(one.p_holm) if difference else "-",
                with_interval(one.values.get("judge")),
            ]
        )
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The rows as a table in Markdown."""
    lines = [HEAD, ["---", *["--:"] * (len(HEAD) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex(rows: Sequence[Sequence[str]], sweep: Sweep) -> str:
    """The rows as a table in LaTeX, with the package booktabs."""

    def line(cells: Sequence[str]) -> str:
        text = " & ".join(cells)
        for written, in_latex in (("_", r"\_"), ("%", r"\%"), ("−", "$-$"), ("<", "$<$")):
            text = text.replace(written, in_latex)
        return text + r" \\"

    return "\n".join(
        [
            r"\begin{tabular}{l" + "r" * (len(HEAD) - 1) + "}",
            r"\toprule",
            line(HEAD),
            r"\midrule",
            *map(line, rows),
            r"\bottomrule",
            r"\end{tabular}",
            f"% {100 * sweep.confidence:.0f}% intervals; seeds and prompts as crossed random effects",
        ]
    )


def with_interval(value: Estimate | None, digits: int = 2) -> str:
    """A mean with its interval; a dash for none."""
    if value is None:
        return "-"
    if value.low is None or value.high is None:
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]".replace("-", "−")


def _line(cell: str, colour: str, points: Sequence[Point], measure: str) -> Series:
    found = [(p.labels, p.values[measure]) for p in points if measure in p.values]
    return Series(label=cell, colour=colour, points=[(x, v.mean, *_drawn(v)) for x, v in found])


def _drawn(value: Estimate) -> tuple[float, float] | tuple[None, None]:
    """The ends of an interval that has a width."""
    if value.low is None or value.high is None or value.high - value.low < 1e-9:
        return None, None
    return value.low, value.high


def _run_row(one: Measured, comparison: Comparison) -> dict[str, Any]:
    folder = one.run.folder
    page = write_report(RunDir(folder), only_if_old=True) if one.rows else None
    last = one.rows[-1] if one.rows else {}
    return {
        "cell": one.run.cell,
        "seed": one.run.seed,
        "rounds": f"{max(0, len(one.rows) - 1)} of {one.run.recipe.rounds}",
        "promoted": sum(row["outcome"] == "promoted" for row in one.rows),
        "win_rate": last.get("win_rate_in_force"),
        "seconds": last.get("seconds"),
        "report": page.relative_to(comparison.folder).as_posix() if page else None,
        "error": comparison.errors.get(one.run.name),
    }
