"""The dashboard's charts: where their lines and bars stand; `templates/charts.html` draws them as SVG.

The report's charts have styles inside, which the pages' content security policy forbids; these have classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 460, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 36, 12, 12, 26


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One measured round."""

    round: int
    value: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False  # its policy was not promoted


@dataclass(frozen=True, kw_only=True, slots=True)
class Dot:
    """A point in the drawing."""

    x: float
    y: float
    top: float | None
    bottom: float | None
    hollow: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line over rounds, from left to right."""

    label: str
    colour: str  # a class of the style sheet
    dots: list[Dot]

    @property
    def path(self) -> str:
        """What goes into an SVG polyline."""
        return " ".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in self.dots)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LineChart:
    """Shares between 0 and 1 over rounds."""

    title: str
    said: str  # for those who do not see it
    lines: list[Line]
    xs: list[Tick]
    ys: list[Tick]
    level: float  # where the dashed line stands: a half


def shares_over_rounds(title: str, lines: Sequence[tuple[str, str, Sequence[Point]]]) -> LineChart | None:
    """Lines of `(label, colour, points)` with their intervals; None where there is nothing to draw."""
    lines = [line for line in lines if line[2]]
    if not lines:
        return None
    rounds = sorted({point.round for _, _, points in lines for point in points})
    first, last = rounds[0] - 0.4, rounds[-1] + 0.4

    def x(round: float) -> float:
        return _LEFT + (round - first) / (last - first) * (WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (1 - value) * (HEIGHT - _TOP - _BOTTOM)

    drawn = []
    for number, (label, colour, points) in enumerate(lines):
        shift = 0.06 * (number - (len(lines) - 1) / 2)
        dots = [
            Dot(
                x=x(point.round + shift),
                y=y(point.value),
                top=None if point.high is None else y(point.high),
                bottom=None if point.low is None else y(point.low),
                hollow=point.hollow,
            )
            for point in points
        ]
        drawn.append(Line(label=label, colour=colour, dots=dots))
    step = max(1, len(rounds) // 10)
    said = "; ".join(
        f"{label}: " + ", ".join(f"round {point.round} {point.value:.2f}" for point in points)
        for label, _, points in lines
    )
    return LineChart(
        title=title,
        said=f"{title}. {said}",
        lines=drawn,
        xs=[Tick(at=x(round), label=str(round)) for round in rounds[::step]],
        ys=[Tick(at=y(value), label=f"{value:g}") for value in (0, 0.5, 1)],
        level=y(0.5),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One bar."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BarChart:
    """Counts over time."""

    title: str
    said: str
    bars: list[Bar]
    xs: list[Tick]
    top: int  # the largest count
    total: int


def counts_over_time(title: str, counts: Sequence[tuple[str, int]], every: int) -> BarChart:
    """Bars of `(when, how many)`; each `every`th is named, counted from the last."""
    most = max(1, *(count for _, count in counts))
    room = (WIDTH - _LEFT - _RIGHT) / len(counts)
    high = HEIGHT - _TOP - _BOTTOM
    bars = [
        Bar(
            x=_LEFT + place * room + room * 0.12,
            y=_TOP + high * (1 - count / most),
            width=room * 0.76,
            height=high * count / most,
            label=f"{when}: {count:,}",
        )
        for place, (when, count) in enumerate(counts)
    ]
    named = [place for place in range(len(counts)) if (len(counts) - 1 - place) % every == 0]
    xs = [Tick(at=_LEFT + (place + 0.5) * room, label=counts[place][0]) for place in named]
    total = sum(count for _, count in counts)
    return BarChart(
        title=title, said=f"{title}: {total:,} in all, at most {most:,}", bars=bars, xs=xs, top=most, total=total
    )
