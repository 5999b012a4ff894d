"""The figures of `check` as lines for people."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

ANNOTATORS = 20  # rows of the table on a terminal
CHANGED = 0.01  # p-value below which a change over time is worth a line of its own

SERIES = {
    "agreement": "agreement of annotators",
    "first_shown_wins": "share won by the side shown first",
    "calibration": "share of calibration items passed",
}
"""What may drift, in words."""


def lines(quality: Mapping[str, Any]) -> list[str]:
    """What `check` found, each figure with its interval or number of cases."""
    if not quality["preferences"]:
        return ["quality       nothing to measure: no preferences"]
    verdicts, agreed, found = quality["verdicts"], quality["agreement"], quality["consensus"]
    people = len(quality["annotators"])
    text = [
        f"preferences   {quality['preferences']:,} on {quality['pairs']:,} pairs of {quality['prompts']:,} prompts by "
        f"{people} annotator{'s' * (people != 1)}: {verdicts['decided']:,} decided, {verdicts['tie']:,} ties, "
        f"{verdicts['both_bad']:,} both bad"
    ]
    if agreed["comparisons"]:
        text.append(
            f"agreement     {agreed['agreed']:.0%} of {agreed['comparisons']:,} comparisons, "
            f"on {agreed['pairs']:,} pairs"
        )
        text.append(f"  Krippendorff's alpha {_estimate(agreed['krippendorff_alpha'])} (1 perfect, 0 chance)")
        text.append(f"  Fleiss' kappa        {_estimate(agreed['fleiss_kappa'])}")
        text += [
            f"  Cohen's kappa        {_estimate(row)} of {' and '.join(row['annotators'])}, n={row['n']}"
            for row in agreed["cohen_kappa"][:3]
        ]
    else:
        text.append("agreement     unknown: no pair was judged by two annotators")
    sure = found["probability"]
    text.append(
        f"consensus     {found['decided']:,} of {found['pairs']:,} pairs have a better side: {sure['sure']:,} surely "
        f"(90% or more), {sure['unsure']:,} hardly (below 60%); {found['tie']:,} ties, {found['both_bad']:,} both bad"
        + ("" if found["converged"] else f"; reliability had not converged after {found['iterations']} iterations")
    )
    for key, name, says in (("position", "first shown", "the order"), ("length", "longer one", "the length")):
        row = quality[key]
        if row["n"]:
            text.append(f"{name:<13} wins {_share(row)}, {p_text(row['p'])} if {says} did not matter")
    both = quality["position_and_length"]
    for name, effect in (both["effects"] if both else {}).items():
        words = {"shown_first": "being shown first", "twice_as_long": "being twice as long"}[name]
        text.append(
            f"  {words} multiplies the odds by {effect['odds_ratio']:.2f} [{effect['low']:.2f}, {effect['high']:.2f}], "
            f"{p_text(effect['p'])} (logistic regression, n={both['n']:,}, by {both['prompts']:,} prompts)"
        )
    clash = quality["contradictions"]
    if clash["own"]["n"]:
        text.append(f"contradictory {_share(clash['own'])} pairs that one annotator judged again went both ways")
    if clash["between"]["n"]:
        text.append(f"  disputed    {_share(clash['between'])} pairs that several annotators decided went both ways")
    circles = clash["circles"]
    if circles["n"]:
        text.append(f"circles       {_share(circles)} majorities are on a circle, on {circles['prompts']:,} prompts")
    items = quality["calibration"]
    if items["items"]:
        text.append(f"calibration   {_share(items)} answers to {items['items']} items with a known answer were right")
    text += drift_lines(quality["drift"])
    if quality["near_duplicates"]:
        text += duplicate_lines(quality["near_duplicates"])
    return text + annotator_lines(quality["annotators"])


def drift_lines(drift: Mapping[str, Any]) -> list[str]:
    """What changed with time, and what did not."""
    text = []
    for name, series in drift.items():
        change = series["change"]
        if change is None:
            continue
        if change["p"] < CHANGED:
            text.append(
                f"drift         the {SERIES[name]} went from {change['before']:.0%} to {change['after']:.0%} about "
                f"{day(change['at'])} ({p_text(change['p'])}, n={change['n']:,})"
            )
        else:
            text.append(f"  no drift    of the {SERIES[name]} ({p_text(change['p'])}, n={change['n']:,})")
    return text


def duplicate_lines(found: Mapping[str, Any]) -> list[str]:
    """Near-duplicates of prompts and answers."""
    prompts, pairs, leaks = found["prompts"], found["pairs"], found["across_splits"]
    text = [
        f"near-duplicates (word runs shared: {found['similar']:.0%} or more)",
        f"  prompts     {_share(prompts)} prompts are like another, in {prompts['groups']:,} groups",
        f"  answers     {_share(found['answers'])} judged answers are like another",
        f"  pairs       {_share(pairs)} judged pairs have two answers that are alike",
    ]
    if leaks["groups"]:
        text.append(
            f"  leaks       {leaks['training_prompts']:,} of {leaks['n']:,} training prompts are like a held-out one"
        )
        text += [f"      {' ~ '.join(example)}" for example in leaks["examples"][:3]]
    return text


def annotator_lines(rows: list[dict[str, Any]]) -> list[str]:
    """A table of annotators: those with something to look at first, then those with most verdicts."""
    flagged = sorted(rows, key=lambda row: not row["flags"])
    width = min(28, max(len(name) for name in ("annotator", *(row["annotator"] for row in rows))))
    text = [f"{'annotator':<{width}}  verdicts  accuracy [95%]      kappa  first shown  calibration  look at"]
    for row in flagged[:ANNOTATORS]:
        accuracy, first, items = row["accuracy"], row["first_shown_wins"], row["calibration_passed"]
        shown = "-" if accuracy["share"] is None else f"{accuracy['share']:.2f} {_range(accuracy)}"
        kappa = "-" if row["kappa"] is None else f"{row['kappa']:.2f}"
        text.append(
            f"{row['annotator'][:width]:<{width}}  {row['verdicts']:>8,}  {shown:<18}  {kappa:>5}  "
            f"{'-' if first['share'] is None else format(first['share'], '.0%'):>11}  "
            f"{'-' if not items['n'] else format(items['share'], '.0%') + ' of ' + str(items['n']):>11}  "
            f"{'; '.join(row['flags'])}".rstrip()
        )
    if len(rows) > ANNOTATORS:
        rest = sum(bool(row["flags"]) for row in flagged[ANNOTATORS:])
        text.append(f"and {len(rows) - ANNOTATORS:,} more, {rest:,} of them with something to look at (--json has all)")
    return text


def day(seconds: float) -> str:
    """A time as a date, UTC."""
    if seconds <= 0:  # an import without times, or a simulation
        return "an unknown time"
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


def p_text(value: float | None) -> str:
    """A p-value within a sentence: p=0.2, p<1e-6."""
    shown = p_value(value)
    return f"p{shown}" if shown.startswith("<") else f"p={shown}"


def _range(row: Mapping[str, Any]) -> str:
    return f"[{row['low']:.2f}, {row['high']:.2f}]"


def _estimate(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "not defined"
    return f"{row['value']:.2f}" + ("" if row["low"] is None else f" {_range(row)}")


def _share(row: Mapping[str, Any]) -> str:
    if row["share"] is None:
        return "none of 0"
    return f"{row['share']:.1%} [{row['low']:.1%}, {row['high']:.1%}] of {row['n']:,}"


def p_value(value: float | None) -> str:
    """A p-value as people read it."""
    return "–" if value is None else "<1e-6" if value < 1e-6 else f"{value:.2g}"
