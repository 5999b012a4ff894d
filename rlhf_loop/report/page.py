"""The report's content: files of the run in, what the template shows out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader, Undefined

from rlhf_loop.annotators import called
from rlhf_loop.endpoints.answers import spent_in
from rlhf_loop.feedback.quality.themes import themes
from rlhf_loop.report import charts
from rlhf_loop.report.answers import machine_critiques, revisions, sample_answers
from rlhf_loop.report.complaints import complaint_page
from rlhf_loop.report.data import SHARED, Round, latest, read_recipe, read_rounds
from rlhf_loop.report.feedback_tables import feedback_row, validation
from rlhf_loop.report.round_charts import (
    MOST_TIMED,
    progress_charts,
    reward_charts,
    timings_chart,
    variety_charts,
)
from rlhf_loop.report.theme_charts import theme_page
from rlhf_loop.run_dir import RunDir

UNPRINTABLE = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 127], "\ufffd")
"""Control characters, which are none of HTML: models write them, and a NUL ends a text for some readers."""


def render(run: RunDir) -> str:
    """The report as HTML text."""
    recipe, recipe_text = read_recipe(run)
    annotator = (recipe.get("feedback") or {}).get("annotator") or {}
    rounds = read_rounds(run)
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, SHARED]),
        autoescape=True,  # prompts, answers and comments come from models and people
        undefined=ChainableUndefined,  # what was not measured is not there, and shows as a dash
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "seconds": charts.seconds, "size": size}
    page = environment.get_template("template.html").render(
        name=recipe.get("name", run.name),
        description=recipe.get("description") or "",
        model=(recipe.get("policy") or {}).get("model", "the base model"),
        algorithm=algorithm_words((recipe.get("update") or {}).get("algorithm", "dpo")),
        simulated=annotator.get("kind") == "simulated",
        annotator=annotator,
        called=called(annotator.get("kind")),
        asked=(recipe.get("endpoints") or {}).get(annotator.get("endpoint")),
        headline=headline(rounds),
        charts=progress_charts(rounds),
        variety_charts=variety_charts(rounds),
        strategy=(recipe.get("generation") or {}).get("strategy", "fresh"),
        written=[written_row(r) for r in rounds if r.written],
        revisions=revisions(rounds),
        reward_charts=reward_charts(rounds),
        reward_models=reward_rows(rounds),
        critic=critic_row(rounds),
        critiques=machine_critiques(rounds),
        rounds=rounds,
        samples=sample_answers(rounds),
        answered_prompts=len(latest(rounds, lambda r: r.prompts) or []),
        control=(recipe.get("critiques") or {}).get("control"),
        complaints=theme_page(themes(latest(rounds, lambda r: r.said) or [])),
        asked_again=complaint_page(rounds),
        feedback=[feedback_row(r) for r in rounds if _was_asked(r)],
        validation=validation(rounds),
        timings=timings_chart(rounds),
        timed=MOST_TIMED if len(rounds) > MOST_TIMED else None,
        memory=max((r.manifest.get("peak_memory_bytes") or 0 for r in rounds), default=0),
        total_seconds=sum(float(r.manifest.get("seconds") or 0) for r in rounds),
        step_seconds=sum(float(took) for r in rounds for took in (r.manifest.get("steps") or {}).values()),
        recipe_text=recipe_text,
        versions=latest(rounds, lambda r: r.manifest.get("versions")) or {},
        python=latest(rounds, lambda r: r.manifest.get("python")),
        lineage=[lineage_row(r) for r in rounds],
        endpoints=endpoint_rows(recipe, spent_in(run.path)),
        evaluation=latest(rounds, lambda r: r.evaluation if r.number else None) or {},
    )
    return page.translate(UNPRINTABLE)


def headline(rounds: Sequence[Round]) -> dict[str, Any]:
    """`{state, round, evaluation, promoted, decided}`: the last promoted policy, else the last one that was tried.

    `state` is `promoted`, `kept` (no policy passed the gate) or `none` (nothing was evaluated yet).
    """
    tried = [r for r in rounds if r.number and r.evaluation.get("win_rate_vs_base")]
    promoted = [r for r in tried if r.decision.get("promoted")]
    best = promoted or tried
    shown = best[-1] if best else None
    return {
        "state": "promoted" if promoted else "kept" if tried else "none",
        "round": shown.number if shown else None,
        "evaluation": shown.evaluation if shown else {},
        "promoted": len(promoted),
        "decided": len([r for r in tried if r.decision]),
        "last": tried[-1].number if tried else None,
        "complete": len([r for r in rounds if r.number and r.complete]),
    }


def reward_rows(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """One row a reward model and round, the judge among them."""
    return [
        {"round": r.number, "name": name, "role": role, **values}
        for r in rounds
        for role in ("judge", "reward")
        for name, values in r.json(role, "metrics.json").items()
        if isinstance(values, dict)
    ]


def critic_row(rounds: Sequence[Round]) -> dict[str, Any]:
    """The last reward model that was measured with empty critiques and with those of other answers, too."""
    measured = [row for row in reward_rows(rounds) if row.get("empty_critique")]
    return measured[-1] if measured else {}


def algorithm_words(name: str) -> str:
    """An update's name as people write it."""
    words = {"rejection_sampling": "rejection sampling", "none": "feedback without training"}
    return words.get(name, name.upper())


def written_row(r: Round) -> dict[str, Any]:
    """What a round's strategy of generation counted, and the shares of its revisions that are none."""
    counts, aside = r.written.get("counts") or {}, r.written.get("set_aside") or {}
    made = counts.get("revisions")
    copies = aside.get("copy", 0) + aside.get("back to an earlier answer", 0)
    return {
        "round": r.number,
        "kept": r.candidates,
        "aside": sum(aside.values()),
        "revisions": made,
        "copies": copies / made if made else None,
        "refusals": aside.get("refusal", 0) / made if made else None,
        "details": {**counts, **{f"set aside: {reason}": count for reason, count in aside.items()}},
    }


def endpoint_rows(recipe: Mapping[str, Any], spent: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """What was spent on each endpoint of the recipe, with its model and its server."""
    known: Mapping[str, Any] = recipe.get("endpoints") or {}
    of = {name: known.get(name) or {} for name in spent}
    return [
        {"name": name, "model": of[name].get("model"), "base_url": of[name].get("base_url"), **numbers}
        for name, numbers in spent.items()
    ]


def lineage_row(r: Round) -> dict[str, Any]:
    """The policy of a round and the hashes of what its steps were made from."""
    return {
        "round": r.number,
        "policy": r.evaluated,
        "generated_by": r.generated_by,
        "steps": {step: str(manifest.get("key", ""))[:12] for step, manifest in r.steps.items()},
    }


def number(value: Any, digits: int = 2) -> str:
    """A number for a table; an en dash for none."""
    if value is None or isinstance(value, (str, Undefined)):
        return str(value or "–")
    text = f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"
    return text.replace("-", "−")


def percent(value: float | Undefined | None) -> str:
    """A share as a whole percentage."""
    return "–" if value is None or isinstance(value, Undefined) else f"{100 * value:.0f}%"


def size(value: float) -> str:
    """Bytes as GiB."""
    return f"{value / 2**30:.1f} GiB"


def _was_asked(r: Round) -> bool:
    return bool(r.json("ask", "summary.json") or r.pairs is not None)
