"""Charts for the report and the dashboard: one drawing serves light and dark, as its colours are the page's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf_loop.report.svg import COLOURS, styled, svg_of

MANY_POINTS = 60
"""With more points than these a line's markers are drawn small."""


Point = tuple[float, float, float | None, float | None]
"""Where it is drawn, its value, and the ends of its interval, where it has one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line of a chart: `(round, value, low, high)` a point, or what else the axis counts; low and high None without
    an interval.

    Rounds in `open` are drawn hollow: their policy was not promoted.
    """

    label: str
    colour: str
    points: Sequence[Point]
    open: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A drawing with what stands around it."""

    title: str
    note: str
    svg: Markup
    legend: Sequence[tuple[str, str]]  # label, colour


def over_rounds(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    level: float | None = None,
    limits: tuple[float, float] | None = None,
    axis: str = "round",
) -> Chart | None:
    """Lines over rounds (or what `axis` names), with bars for intervals and a dashed line at `level`; None when there
    is nothing to draw. `limits` of the values give way where some lie beyond."""
    apart = 0.07 if any(point[2] is not None for line in series for point in line.points) else 0.0

    def fit(axes: Axes, places: Sequence[float]) -> None:
        axes.set_xlim(places[0] - 0.4, places[-1] + 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))

    def told(point: Point) -> str:
        return f"{axis} {point[0]} {point[1]:.3g}"

    return _lines(title, series, fit, told, apart, axis, note, level, limits)


def over_amounts(
    title: str,
    series: Sequence[Series],
    *,
    axis: str,
    note: str = "",
    level: float | None = None,
    limits: tuple[float, float] | None = None,
) -> Chart | None:
    """As `over_rounds`, over an amount of any size from 0 on, such as what was spent."""
    most = max((point[0] for line in series for point in line.points), default=0) or 1.0

    def fit(axes: Axes, places: Sequence[float]) -> None:
        axes.set_xlim(-0.05 * most, 1.05 * most)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))

    def told(point: Point) -> str:
        return f"{point[1]:.3g} at {point[0]:.4g}"

    return _lines(title, series, fit, told, 0.012 * most, axis, note, level, limits)


def _lines(
    title: str,
    series: Sequence[Series],
    fit: Callable[[Axes, Sequence[float]], None],
    told: Callable[[Point], str],
    apart: float,
    axis: str,
    note: str,
    level: float | None,
    limits: tuple[float, float] | None,
) -> Chart | None:
    """Lines beside one another, `apart` from each other; `fit` sets the horizontal axis, `told` says a point."""
    series = [line for line in series if line.points]
    if not series:
        return None
    with styled():
        figure, axes = _figure(4.6, 2.6)
        if level is not None:
            axes.axhline(level, color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)))
        for number, line in enumerate(series):
            _draw(axes, line, apart * (number - (len(series) - 1) / 2))
        fit(axes, sorted({point[0] for line in series for point in line.points}))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_xlabel(axis)
        if limits is not None:
            _hold(axes, *limits)
        else:
            _breathe(axes, level)
        said = "; ".join(f"{line.label}: " + ", ".join(map(told, line.points)) for line in series)
        svg = svg_of(figure, f"{title}. {said}")
    return Chart(title=title, note=note, svg=svg, legend=[(line.label, line.colour) for line in series])


def over_time(title: str, counts: Sequence[tuple[str, int]], *, every: int) -> Chart:
    """Bars of `(when, how many)`; each `every`th is named, counted from the last."""
    with styled():
        figure, axes = _figure(4.6, 2.0)
        bars = axes.bar(range(len(counts)), [count for _, count in counts], width=0.76, color=COLOURS["blue"])
        for place, bar in enumerate(bars):
            bar.set_gid(f"bar{place}")
        named = [place for place in range(len(counts)) if (len(counts) - 1 - place) % every == 0]
        axes.set_xticks(named, [counts[place][0] for place in named])
        axes.set_xlim(-0.6, len(counts) - 0.4)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4, min_n_ticks=1))
        axes.set_ylim(0, max(1, *(count for _, count in counts)) * 1.05)
        most = max(count for _, count in counts)
        said = f"{sum(count for _, count in counts):,} in all, at most {most:,}"
        tips = {f"bar{place}": f"{when}: {count:,}" for place, (when, count) in enumerate(counts)}
        svg = svg_of(figure, f"{title}. {said}", tips)
    return Chart(title=title, note="", svg=svg, legend=[])


def reliability(title: str, bins: Sequence[Mapping[str, Any]], *, note: str = "") -> Chart | None:
    """How often the reward model was right against how sure it was; None without bins."""
    bins = [b for b in bins if b.get("n", 1)]
    if not bins:
        return None
    with styled():
        figure, axes = _figure(4.6, 2.6)
        axes.plot([0.5, 1], [0.5, 1], color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)))
        largest = max(float(b.get("n", 1)) for b in bins)
        x, y = [float(b["confidence"]) for b in bins], [float(b["accuracy"]) for b in bins]
        axes.plot(x, y, color=COLOURS["blue"], linewidth=1.2)
        areas = [12 + 90 * float(b.get("n", 1)) / largest for b in bins]
        axes.scatter(x, y, s=areas, color=COLOURS["blue"], edgecolor=COLOURS["page"], linewidth=1, zorder=3)
        axes.set_xlim(min(0.5, *x) - 0.02, 1.03)
        axes.set_ylim(min(0.4, *y) - 0.05, 1.05)
        axes.set_xlabel("confidence")
        axes.set_ylabel("share that was right")
        said = ", ".join(f"{b['accuracy']:.2f} right at confidence {b['confidence']:.2f}" for b in bins)
        svg = svg_of(figure, f"{title}. {said}")
    legend = [("pairs; a larger point holds more", "blue"), ("perfectly calibrated", "muted")]
    return Chart(title=title, note=note, svg=svg, legend=legend)


def intervals(
    title: str,
    rows: Sequence[tuple[str, float, float, float]],
    *,
    note: str = "",
    limits: tuple[float, float] = (0, 1),
    level: float | None = None,
    confidence: float = 0.95,
) -> Chart | None:
    """A point with its interval for each row `(name, value, low, high)`, the first on top, and a dashed line at
    `level`; None without rows."""
    if not rows:
        return None
    with styled():
        figure, axes = _figure(6.2, 0.75 + 0.2 * len(rows))
        if level is not None:
            axes.axvline(level, color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)))
        for place, (_, value, low, high) in enumerate(rows):
            axes.plot([low, high], [place, place], color=COLOURS["blue"], linewidth=1.4, solid_capstyle="butt")
            axes.plot([value], [place], "o", markersize=4.5, color=COLOURS["blue"])
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_yticks(range(len(rows)), [_shortened(name) for name, *_ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(*limits)
        said = ", ".join(f"{name} {value:.2f}" for name, value, *_ in rows)
        svg = svg_of(figure, f"{title}. {said}")
    return Chart(title=title, note=note, svg=svg, legend=[(f"with {100 * confidence:.0f}% interval", "blue")])


def timings(title: str, rounds: Mapping[int, Mapping[str, float]], groups: Mapping[str, str]) -> Chart | None:
    """Seconds of each round as one stacked bar; `groups` maps what is shown to its colour, in order."""
    rounds = {number: parts for number, parts in rounds.items() if sum(parts.values()) > 0}
    if not rounds:
        return None
    with styled():
        figure, axes = _figure(6.2, 0.75 + 0.36 * len(rounds))
        left = dict.fromkeys(rounds, 0.0)
        for name, colour in groups.items():
            widths = [rounds[number].get(name, 0.0) for number in rounds]
            axes.barh(
                list(rounds),
                widths,
                left=[left[number] for number in rounds],
                height=0.62,
                color=COLOURS[colour],
                edgecolor=COLOURS["page"],
                linewidth=1,
            )
            for number, width in zip(rounds, widths, strict=True):
                left[number] += width
        for number, total in left.items():
            axes.annotate(
                seconds(total),
                (total, number),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                color=COLOURS["ink"],
                annotation_clip=False,
            )
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_yticks(list(rounds), [f"round {number}" for number in rounds])
        axes.set_ylim(max(rounds) + 0.6, min(rounds) - 0.6)
        axes.set_xlim(0, max(left.values()) * 1.2)
        axes.set_xlabel("seconds")
        said = ", ".join(f"round {number} {seconds(total)}" for number, total in left.items())
        svg = svg_of(figure, f"{title}. {said}")
    present = [name for name in groups if any(parts.get(name) for parts in rounds.values())]
    return Chart(title=title, note="", svg=svg, legend=[(name, groups[name]) for name in present])


def seconds(value: float) -> str:
    """Seconds as people read them: 8.1 s, 54 s, 3 min 20 s, 2 h 05 min."""
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _shortened(name: str, most: int = 24) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def _draw(axes: Axes, line: Series, shift: float) -> None:
    colour = COLOURS[line.colour]
    x = [point[0] + shift for point in line.points]
    axes.plot(x, [point[1] for point in line.points], color=colour, linewidth=1.6)
    bars = [(place, p[2], p[3]) for place, p in zip(x, line.points, strict=True) if p[2] is not None is not p[3]]
    if bars:
        places, lows, highs = zip(*bars, strict=True)
        axes.vlines(places, lows, highs, color=colour, linewidth=1.4)
    size = 5.5 if len(x) <= MANY_POINTS else 2.5
    for fill, is_open in ((colour, False), (COLOURS["page"], True)):
        drawn = [(place, p[1]) for place, p in zip(x, line.points, strict=True) if (p[0] in line.open) == is_open]
        axes.plot(
            [place for place, _ in drawn],
            [value for _, value in drawn],
            "o",
            markersize=size,
            color=fill,
            markeredgecolor=colour,
            markeredgewidth=1.4 * size / 5.5,
            clip_on=False,
            zorder=3,
        )


def _hold(axes: Axes, low: float, high: float) -> None:
    """These limits, or wider ones where something is drawn beyond them."""
    lowest, highest = axes.dataLim.intervaly
    room = 0.03 * (max(high, highest) - min(low, lowest))
    axes.set_ylim(low if lowest >= low else lowest - room, high if highest <= high else highest + room)


def _breathe(axes: Axes, level: float | None) -> None:
    """Room above and below, and no axis that blows tiny differences up."""
    low, high = axes.dataLim.intervaly
    if level is not None:
        low, high = min(low, level), max(high, level)
    least = 0.1 * max(abs(low), abs(high), 1e-6)
    if high - low < least:
        middle = (low + high) / 2
        low, high = middle - least / 2, middle + least / 2
    room = 0.12 * (high - low)
    axes.set_ylim(low if low == level == 0 else low - room, high + room)
