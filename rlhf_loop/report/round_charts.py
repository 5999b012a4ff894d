"""The charts of a run's rounds: what changed over them, how good its reward models are, where the time went."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlhf_loop.report import charts
from rlhf_loop.report.charts import Chart, Series
from rlhf_loop.report.data import Round

MOST_TIMED = 40
"""How many rounds the timings chart shows: the last ones."""

STEP_GROUPS = {
    "reward model": (("judge", "reward"), "violet"),
    "score": (("score", "rescore"), "pink"),
    "update": (("update",), "blue"),
    "evaluate": (("evaluate", "evaluate_warm_start", "checks"), "orange"),
    "generate": (("generate",), "green"),
    "the rest": (("snapshot", "assemble", "gate", "recall", "embed", "ask"), "grey"),
}
"""What the timings chart adds together."""


def win_rates(rounds: Sequence[Round]) -> list[Series]:
    """Win-rates on held-out prompts against the base and against the last promoted policy."""
    tried = [r for r in rounds if r.number]
    return [
        _line("against the base policy", "blue", tried, _of("win_rate_vs_base")),
        _line("against the last promoted policy", "orange", tried, _of("win_rate_vs_previous")),
    ]


def win_rate_chart(lines: Sequence[Series]) -> Chart | None:
    """`win_rates` as a chart."""
    note = "Share of held-out answers that the judge prefers; ties count half. Above the dashed line is better."
    return charts.over_rounds("Win-rate", lines, note=note, level=0.5, limits=(0, 1.03))


def progress_charts(rounds: Sequence[Round]) -> list[Chart]:
    """What changed over the rounds."""
    tried = [r for r in rounds if r.number]
    lines = win_rates(rounds)

    def line(label: str, colour: str, value: Callable[[Round], Any], of: Sequence[Round] = tried) -> Series:
        return _line(label, colour, of, value)

    made = [
        win_rate_chart(lines),
        charts.over_rounds(
            "Proxy against gold",
            [
                line("according to the reward model (proxy)", "violet", _of("proxy", "win_rate_vs_base")),
                replace(lines[0], label="according to the judge"),
            ]
            if any(_dig(r.evaluation, "proxy", "win_rate_vs_base") for r in tried)
            else [],
            note="Win-rate against the base on the same answers. A proxy that runs ahead of the judge is being gamed.",
            level=0.5,
            limits=(0, 1.03),
        ),
        charts.over_rounds(
            "Judge's score",
            [line("held-out answers", "blue", _of("judge", "candidate"), rounds)],
            note="Mean score of the evaluated policy's held-out answers.",
        ),
        charts.over_rounds(
            "Reward model's score",
            [
                line("waiting candidates", "grey", lambda r: r.mean_score("score")),
                line("fresh candidates", "violet", lambda r: r.mean_score("rescore")),
            ],
            note="Mean reward (proxy) of candidates before and after the update, by the same reward model. It is "
            "trained anew each round, so compare within a round.",
        ),
        charts.over_rounds(
            "KL to the base policy",
            [line("nats a completion", "blue", _of("kl", "per_completion"))],
            note="How far the policy has moved, over the whole vocabulary at each position of its answers.",
            level=0.0,
        ),
        charts.over_rounds(
            "Length",
            [line("words an answer", "blue", _of("length", "words"), rounds)],
            note="A policy can win by writing more; the length-matched win-rate in the table leaves that out.",
        ),
        charts.over_rounds(
            "Diversity",
            [
                line("distinct-2 (higher: more varied)", "green", _of("diversity", "distinct_2"), rounds),
                line("self-BLEU (higher: more alike)", "orange", _of("diversity", "self_bleu"), rounds),
            ],
            note="Variety of the held-out answers.",
            limits=(0, 1.03),
        ),
        charts.over_rounds(
            "Perplexity, over the base's",
            [
                line("of its answers, under the base", "blue", _of("perplexity", "ratio")),
                line("on plain text, under the policy", "green", _of("plain_text_perplexity", "ratio")),
            ],
            note="Coherence and general ability: 1 is as good as the base policy, higher is worse.",
            level=1.0,
        ),
    ]
    return [chart for chart in made if chart]


def variety_charts(rounds: Sequence[Round]) -> list[Chart]:
    """How varied the candidates of each round are, and how new."""

    def line(label: str, colour: str, measure: str) -> Series:
        return _line(label, colour, rounds, lambda r: r.variety(measure))

    made = [
        charts.over_rounds(
            "Answers to one prompt",
            [
                line("distinct-2 (higher: more varied)", "green", "distinct_2"),
                line("self-BLEU (higher: more alike)", "orange", "self_bleu"),
            ],
            note="Among a prompt's candidates, averaged over prompts; compare rounds with as many samples of a prompt.",
            limits=(0, 1.03),
        ),
        charts.over_rounds(
            "Repeated from the round before",
            [line("4-grams", "blue", "overlap")],
            note="The share of a candidate's runs of four words that stand in the last round's answers to its prompt.",
            limits=(0, 0.1),
        ),
        charts.over_rounds(
            "Distance of answers",
            [
                line("of two answers to a prompt (spread)", "green", "spread"),
                line("to the nearest answer of an earlier round (novelty)", "violet", "novelty"),
            ],
            note="1 - cosine of mean hidden states of the frozen base.",
            level=0.0,
        ),
    ]
    return [chart for chart in made if chart]


def reward_charts(rounds: Sequence[Round]) -> list[Chart]:
    """How good the reward model is: accuracy over rounds, calibration of the last one."""
    names = list(dict.fromkeys(name for r in rounds for name in r.json("reward", "metrics.json")))
    colours = ("violet", "orange", "green", "pink")
    lines = []
    for place, name in enumerate(names):
        measured = [(r.number, r.json("reward", "metrics.json").get(name) or {}) for r in rounds]
        points = [
            (n, m["accuracy"]["mean"], m["accuracy"].get("low"), m["accuracy"].get("high"))
            for n, m in measured
            if (m.get("accuracy") or {}).get("mean") is not None
        ]
        lines.append(Series(label=name, colour=colours[place % len(colours)], points=points))
    made = [
        charts.over_rounds(
            "Held-out accuracy",
            lines,
            note="Share of held-out pairs that the reward model orders as the annotators did. 0.5 is chance.",
            level=0.5,
            limits=(0.4, 1.02),
        )
    ]
    for name in names:
        measures = (r.json("reward", "metrics.json").get(name) for r in reversed(rounds))
        last: dict[str, Any] = next(filter(None, measures), {})
        title = "Calibration" if len(names) == 1 else f"Calibration: {name}"
        made.append(
            charts.reliability(
                title, last.get("calibration") or [], note="How often it is right, against how sure it is; last round."
            )
        )
    return [chart for chart in made if chart]


def complaint_chart(rounds: Sequence[Round]) -> Chart | None:
    """The share of complaints that are fixed; None where none were asked again."""
    return charts.over_rounds(
        "Complaints that are fixed",
        [_line("share of those asked again", "green", rounds, lambda r: r.complaints.get("share_fixed"))],
        note="Of complaints about answers to training prompts. As people say more, others are asked too: the table "
        "says how many.",
        limits=(0, 1.03),
    )


def timings_chart(rounds: Sequence[Round]) -> Chart | None:
    """Seconds of each of the last rounds, by what they were spent on."""
    spent = {
        r.number: {name: sum(r.timings.get(step, 0.0) for step in steps) for name, (steps, _) in STEP_GROUPS.items()}
        for r in rounds[-MOST_TIMED:]
    }
    return charts.timings("Time", spent, {name: colour for name, (_, colour) in STEP_GROUPS.items()})


def _line(label: str, colour: str, rounds: Sequence[Round], value: Callable[[Round], Any]) -> Series:
    """One measure over rounds; those whose policy was not promoted are drawn hollow."""
    points = []
    for r in rounds:
        measured = value(r)
        if isinstance(measured, dict):
            if measured.get("mean") is not None:
                points.append((r.number, measured["mean"], measured.get("low"), measured.get("high")))
        elif measured is not None:
            points.append((r.number, float(measured), None, None))
    not_promoted = frozenset(r.number for r in rounds if r.number and r.outcome == "kept")
    return Series(label=label, colour=colour, points=points, open=not_promoted)


def _of(*keys: str) -> Callable[[Round], Any]:
    return lambda r: _dig(r.evaluation, *keys)


def _dig(values: Mapping[str, Any], *keys: str) -> Any:
    for key in keys:
        values = (values or {}).get(key)  # type: ignore[assignment]
    return values
