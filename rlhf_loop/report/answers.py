"""Answers that the report shows: some at equal distances, never the best ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_loop.records import Completion, Prompt
from rlhf_loop.report.data import Round, latest

SAMPLE_PROMPTS = 6
"""How many held-out prompts are shown with their answers."""

SAMPLE_CRITIQUES = 6
"""How many of the reward model's critiques are shown."""

MOST_ANSWERS = 6
"""How many rounds are shown side by side: the base, and the last ones."""


def machine_critiques(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """What the reward model wrote of the last candidates: every k-th, not the best ones."""
    scored = [r for r in rounds if r.was_rescored]
    found = scored[-1].criticised if scored else []
    shown = [found[i * len(found) // SAMPLE_CRITIQUES] for i in range(min(SAMPLE_CRITIQUES, len(found)))]
    return [{"text": answer.text, "critique": score.critique, "score": score.value} for answer, score in shown]


def sample_answers(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """The same held-out prompts answered round by round: every k-th prompt, not the best ones."""
    prompts: list[Prompt] = latest(rounds, lambda r: r.prompts) or []
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


def revisions(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """Some answers of the last round that revised any, with their critiques and revisions: at equal distances."""
    last = next((r for r in reversed(rounds) if r.revisions), None)
    made = last.revisions if last else []
    chosen = [made[i * len(made) // SAMPLE_PROMPTS] for i in range(min(SAMPLE_PROMPTS, len(made)))]
    return [
        {"round": last.number if last else None, "text": one.text, "critique": new.critique, "revision": new.text}
        for one, new in chosen
    ]


def _judge_scores(rounds: Sequence[Round]) -> dict[str, float]:
    """The judge's score of each evaluated completion."""
    return {
        row[f"{who}_id"]: row[f"{who}_score"]
        for r in rounds
        for row in r.evaluation.get("rows") or []
        for who in ("candidate", "base", "previous")
        if row.get(f"{who}_id") is not None and row.get(f"{who}_score") is not None
    }
