"""The report's content: files of the run in, what the template shows out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader, Undefined

from rlhf_loop.annotators import called
from rlhf_loop.endpoints.answers import spent_in
from rlhf_loop.feedback.quality.themes import themes
from rlhf_loop.feedback.validation import CHECKS
from rlhf_loop.records import Completion, Prompt
from rlhf_loop.report import charts
from rlhf_loop.report.complaints import complaint_page
from rlhf_loop.report.data import SHARED, Round, read_recipe, read_rounds
from rlhf_loop.report.round_charts import (
    MOST_TIMED,
    progress_charts,
    reward_charts,
    timings_chart,
    variety_charts,
)
from rlhf_loop.report.theme_charts import theme_page
from rlhf_loop.run_dir import RunDir

SAMPLE_PROMPTS = 6
"""How many held-out prompts are shown with their answers."""

SAMPLE_CRITIQUES = 6
"""How many of the reward model's critiques are shown."""

MOST_ANSWERS = 6
"""How many rounds are shown side by side: the base, and the last ones."""

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
        answered_prompts=len(_latest(rounds, lambda r: r.prompts) or []),
        control=(recipe.get("critiques") or {}).get("control"),
        complaints=theme_page(themes(_latest(rounds, lambda r: r.feedback) or [])),
        asked_again=complaint_page(rounds),
        feedback=[feedback_row(r) for r in rounds if _was_asked(r)],
        validation=validation(rounds),
        timings=timings_chart(rounds),
        timed=MOST_TIMED if len(rounds) > MOST_TIMED else None,
        memory=max((r.manifest.get("peak_memory_bytes") or 0 for r in rounds), default=0),
        total_seconds=sum(float(r.manifest.get("seconds") or 0) for r in rounds),
        step_seconds=sum(float(took) for r in rounds for took in (r.manifest.get("steps") or {}).values()),
        recipe_text=recipe_text,
        versions=_latest(rounds, lambda r: r.manifest.get("versions")) or {},
        python=_latest(rounds, lambda r: r.manifest.get("python")),
        lineage=[lineage_row(r) for r in rounds],
        endpoints=endpoint_rows(recipe, spent_in(run.path)),
        evaluation=_latest(rounds, lambda r: r.evaluation if r.number else None) or {},
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


def machine_critiques(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """What the reward model wrote of the last candidates: every k-th, not the best ones."""
    scored = [r for r in rounds if r.was_rescored]
    found = scored[-1].criticised if scored else []
    shown = [found[i * len(found) // SAMPLE_CRITIQUES] for i in range(min(SAMPLE_CRITIQUES, len(found)))]
    return [{"text": answer.text, "critique": score.critique, "score": score.value} for answer, score in shown]


def algorithm_words(name: str) -> str:
    """An update's name as people write it."""
    words = {"rejection_sampling": "rejection sampling", "none": "feedback without training"}
    return words.get(name, name.upper())


def sample_answers(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """The same held-out prompts answered round by round: every k-th prompt, not the best ones."""
    prompts: list[Prompt] = _latest(rounds, lambda r: r.prompts) or []
    chosen = [prompts[i * len(prompts) // SAMPLE_PROMPTS] for i in range(min(SAMPLE_PROMPTS, len(prompts)))]
    if 0 < len(prompts) <= SAMPLE_PROMPTS:
        chosen = prompts
    answered = [r for r in rounds if r.was_answered]
    shown = answered if len(answered) <= MOST_ANSWERS else [answered[0], *answered[1 - MOST_ANSWERS :]]
    scores = _judge_scores(shown)
    first: dict[int, dict[str, Completion]] = {}
    for r in shown:
        first[r.number] = {}
        for completion in sorted(r.answers, key=lambda c: c.sample):
            first[r.number].setdefault(completion.prompt_id, completion)
    return [
        {
            "messages": prompt.messages,
            "answers": [
                {
                    "round": r.number,
                    "text": answer.text,
                    "unfinished": answer.finish_reason == "length",
                    "score": scores.get(answer.id),
                    "kept": bool(r.number and r.decision and not r.decision.get("promoted")),
                }
                for r in shown
                if (answer := first[r.number].get(prompt.id)) is not None
            ],
        }
        for prompt in chosen
    ]


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


def revisions(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """Some answers of the last round that revised any, with their critiques and revisions: at equal distances."""
    last = next((r for r in reversed(rounds) if r.revisions), None)
    made = last.revisions if last else []
    chosen = [made[i * len(made) // SAMPLE_PROMPTS] for i in range(min(SAMPLE_PROMPTS, len(made)))]
    return [
        {"round": last.number if last else None, "text": one.text, "critique": new.critique, "revision": new.text}
        for one, new in chosen
    ]


def feedback_row(r: Round) -> dict[str, Any]:
    """What was asked at the end of a round, and what was waiting when it began."""
    asked = r.json("ask", "summary.json")
    by = asked.get("annotator")
    return {
        "round": r.number,
        "questions": asked.get("questions"),
        "answered": asked.get("answered"),
        "annotator": by if by in (None, "people") else called(by),
        "usable": r.pairs,
        "quarantined": r.quarantined,
    }


def validation(rounds: Sequence[Round]) -> dict[str, Any]:
    """The last validation: `{round, tables, examples, of_people}`; a table is `{title, columns, rows}`, a row (name,
    cells). `of_people`: pieces of feedback that no rule and no model gave."""
    checked = _latest(rounds, lambda r: r if r.json("snapshot", "validation.json") else None)
    last = checked.json("snapshot", "validation.json") if checked else {}
    pairs = last.get("pairs")
    overall = {
        "pieces of feedback": last.get("total"),
        "usable": last.get("usable"),
        "quarantined": checked.quarantined if checked else None,
        "different pairs to learn from": pairs.get("train") if isinstance(pairs, dict) else pairs,
        "pairs of the judge": pairs.get("judge") if isinstance(pairs, dict) else None,
    }
    found = {CHECKS.get(name, _words(name)): count for name, count in (last.get("counts") or {}).items()}
    tables = [
        _table("All of it", {name: count for name, count in overall.items() if count is not None}),
        _table("Pieces that", {name: count for name, count in found.items() if count}),
        _table("Annotators", last.get("per_annotator") or {}),
        _table("Preferences without a pair", last.get("no_pair") or {}),
        *_critique_tables(last.get("critiques") or {}),
        *_next_message_tables(last.get("next_messages") or {}),
    ]
    examples = [
        f"{CHECKS.get(name, _words(name))}: {line}"
        for name, lines in (last.get("examples") or {}).items()
        for line in lines
    ]
    given = last.get("per_annotator") or {}
    return {
        "round": checked.number if checked else None,
        "tables": [table for table in tables if table["rows"]],
        "examples": examples,
        "of_people": sum(
            row.get("given", 0) for who, row in given.items() if not who.startswith(("simulated:", "llm:"))
        ),
    }


def _critique_tables(counts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What there is to learn from critiques, and what was left out."""
    by = {f"critiques of {_SAID_BY.get(who, who)}": count for who, count in (counts.get("by_origin") or {}).items()}
    called = {f"answers called {what}": count for what, count in (counts.get("answers_called") or {}).items()}
    moved = counts.get("moved_to_another_answer")
    there = {**by, "edits": counts.get("edits"), **called, "critiques moved to another answer": moved}
    return [
        _table("To learn from critiques", {name: count for name, count in there.items() if count}),
        _table("Critiques left out", counts.get("left_out") or {}),
    ]


def _next_message_tables(counts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What users said next, which are no critiques, and what was left out."""
    there = {"messages": counts.get("messages"), "of these complaints": counts.get("complaints")}
    there["about answers of a policy"] = counts.get("of_stored_answers")
    return [
        _table("What users said next (implicit)", {name: count for name, count in there.items() if count is not None}),
        _table("Next messages left out", counts.get("left_out") or {}),
    ]


_SAID_BY = {"human": "people", "simulated": "a simulated annotator", "llm": "a model"}


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


def _judge_scores(rounds: Sequence[Round]) -> dict[str, float]:
    """The judge's score of each evaluated completion."""
    return {
        row[f"{who}_id"]: row[f"{who}_score"]
        for r in rounds
        for row in r.evaluation.get("rows") or []
        for who in ("candidate", "base", "previous")
        if row.get(f"{who}_id") is not None and row.get(f"{who}_score") is not None
    }


def _table(title: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Counts under their names, or one row of counts for each name."""
    nested = bool(values) and all(isinstance(row, dict) for row in values.values())
    columns = list(dict.fromkeys(key for row in values.values() for key in row)) if nested else []
    rows = [
        (name if nested else _words(name), [row.get(column, 0) for column in columns] if nested else [row])
        for name, row in values.items()
    ]
    return {"title": title, "columns": [_words(column) for column in columns], "rows": rows}


def _words(key: str) -> str:
    return key.replace("_", " ")


def _latest(rounds: Sequence[Round], read: Callable[[Round], Any]) -> Any:
    """What the last round has that has any, or None."""
    return next((found for r in reversed(rounds) if (found := read(r))), None)
