"""Draws what `updates.py` measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {
    "dpo": "#0072b2",
    "kto": "#56b4e9",
    "ppo": "#d55e00",
    "grpo": "#e69f00",
    "rloo": "#cc79a7",
    "rejection_sampling": "#009e73",
    "sft": "#777777",
}
"""Of Okabe and Ito 2008, which people who do not see all colours can tell apart."""

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rlhf-loop",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def draw(results: dict[str, Any], path: Path) -> None:
    """One panel for each part there is, beside one another; nothing without any."""
    panels = [(name, panel) for name, panel in _PANELS.items() if name in results]
    if not panels:
        return
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(sum(_WIDTHS[name] for name, _ in panels), 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        ratios = [_WIDTHS[name] for name, _ in panels]
        axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=ratios)[0]
        for (name, panel), place in zip(panels, axes, strict=True):
            panel(results[name], place)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _upstream(result: dict[str, Any], axes: Axes) -> None:
    """How many times as fast as TRL 1.12, one point a seed, and the reward beside it."""
    axes.set_title("PPO against TRL 1.12")
    axes.axhline(1, color="#777777", linewidth=1)
    for place, (_, rows) in enumerate(result["tasks"].items()):
        ratios = [row["speed_ratio"] for row in rows]
        axes.bar(place, sum(ratios) / len(ratios), width=0.5, color="#56b4e9")
        axes.plot([place + 0.1 * (i - 1) for i in range(len(ratios))], ratios, "o", color="#0072b2", markersize=4)
    labels = []
    for task, rows in result["tasks"].items():
        ours, theirs = (sum(row[side]["mean_reward"] for row in rows) / len(rows) for side in ("ours", "upstream"))
        labels.append(f"{task}\nreward {ours:.3f}\nTRL 1.12: {theirs:.3f}")
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylabel("times as many tokens a second")


def _memory(result: dict[str, Any], axes: Axes) -> None:
    axes.set_title("Memory of a critic")
    for place, row in enumerate(result["placements"].values()):
        axes.bar(place - 0.2, row["peak"]["predicted"], width=0.36, color="#cccccc", label="predicted" * (place == 0))
        axes.bar(place + 0.2, row["peak"]["measured"], width=0.36, color="#009e73", label="measured" * (place == 0))
    axes.set_xticks(range(len(result["placements"])), list(result["placements"]))
    axes.set_ylabel("copies of the model at the peak")
    axes.legend()


def _compare(result: dict[str, Any], axes: Axes) -> None:
    axes.set_title("Gold reward for KL, at equal samples")
    base = result["base"]["gold"]["mean"]
    for name, row in result["updates"].items():
        points = sorted(row["points"], key=lambda point: point["kl"])
        kl, gold = [point["kl"] for point in points], [point["gold"] for point in points]
        axes.plot([0, *kl], [base, *(g["mean"] for g in gold)], color=COLOURS[name], label=name.replace("_", " "))
        spread = [[g["mean"] - g["low"] for g in gold], [g["high"] - g["mean"] for g in gold]]
        axes.errorbar(kl, [g["mean"] for g in gold], spread, fmt="o", color=COLOURS[name], markersize=3, linewidth=0.8)
    axes.set_xlabel("KL to the base, nats a completion")
    axes.set_ylabel("gold reward")
    axes.legend(ncols=2)


_PANELS = {"upstream": _upstream, "memory": _memory, "compare": _compare}
_WIDTHS = {"upstream": 3.0, "memory": 3.2, "compare": 5.2}
