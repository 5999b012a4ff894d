"""What rows of every kind are made of: a prompt's candidates and their scores, who said it, an answer as a message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeVar

from rlhf_loop.errors import UserError
from rlhf_loop.records import Check, Completion, CritiquedCompletion, Feedback, Message, Prompt, Score

T = TypeVar("T")


def candidates_of(
    prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> tuple[dict[str, list[Completion]], Counter[str]]:
    """The completions of each prompt by sample and id, each text once, and counts of those left out."""
    counts: Counter[str] = Counter()
    groups: dict[str, dict[str, Completion]] = {prompt.id: {} for prompt in prompts}
    for completion in sorted(completions, key=lambda c: (c.round, c.sample, c.id)):
        group = groups.get(completion.prompt_id)
        if group is None:
            counts["of_other_prompts"] += 1
        elif completion.text.strip() in group:
            counts["identical_texts"] += 1
        else:
            group[completion.text.strip()] = completion
    counts["candidates"] = sum(len(group) for group in groups.values())
    return {prompt_id: list(group.values()) for prompt_id, group in groups.items() if group}, counts


def scored_candidates(
    prompts: Sequence[Prompt], completions: Sequence[Completion], scores: Sequence[Score]
) -> tuple[dict[str, list[Completion]], dict[str, float], str | None, Counter[str]]:
    """The candidates of each prompt that have a score, the score of each completion, whose scores they are, and counts
    of those left out.

    Raises `UserError` for scores of more than one reward model, which cannot be compared.
    """
    models = {score.reward_model for score in scores}
    if len(models) > 1:
        raise UserError(f"scores of several reward models cannot be compared ({', '.join(sorted(models))}); give one's")
    value = {score.completion_id: score.value for score in scores}
    candidates, summary = candidates_of(prompts, [c for c in completions if c.id in value])
    summary["unscored"] = sum(c.id not in value for c in completions)
    return candidates, value, next(iter(models), None), summary


def best_first(completions: Sequence[Completion], scores: Sequence[float]) -> list[tuple[Completion, float]]:
    """Best first; equal scores by sample and id, so that the order never depends on the order given."""
    return sorted(zip(completions, scores, strict=True), key=lambda row: (-row[1], row[0].sample, row[0].id))


def origin_of(said: Feedback) -> Literal["human", "simulated", "llm", "code"]:
    """Who said it."""
    if said.source == "simulated":
        return "simulated"
    origins: dict[str, Literal["human", "simulated", "llm", "code"]] = {"HUMAN": "human", "LLM": "llm", "CODE": "code"}
    return origins[said.annotator.kind]


def said_by(said: Iterable[tuple[str, Iterable[str]]]) -> dict[str, tuple[str, ...]]:
    """Words -> the ids of all feedback that says them; `said`: words and ids, in order. So equal words stand there
    once, and stay for as long as one of those who said them does."""
    ids: dict[str, dict[str, None]] = {}
    for words, of in said:
        ids.setdefault(words, {}).update(dict.fromkeys(of))
    return {words: tuple(of) for words, of in ids.items()}


def answer(text: str) -> tuple[Message, ...]:
    """A completion as the assistant's message."""
    return (Message(role="assistant", content=text),)


def said_of(row: CritiquedCompletion | Check) -> Completion:
    """The answer that something was said of, to be scored."""
    return Completion(
        id=row.completion_id,
        prompt_id=row.prompt_id,
        text=row.text,
        policy="a policy of this run" if row.by_policy else "import",
        round=row.round,
        finish_reason="stop" if row.finished else "length",
        token_ids=row.token_ids,
    )


def choose(table: Mapping[str, T], name: str, setting: str, where: str) -> T:
    """What stands under `name` in the table of the file `where`; `setting`: the key of the recipe that names it."""
    if name not in table:
        raise UserError(f"{setting}: there is no `{name}`; {where} has: {', '.join(table)}")
    return table[name]
