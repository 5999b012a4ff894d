"""Answers and what was said of them: critiques, comments, verdicts and edits as rows to learn from.

Which answer a comment is about: that of a critique, thumb, rating or edit, the one it names; that of a preference, the
losing one (where both are called bad, each of them; at a tie nobody knows).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from rlhf_loop.ngrams import ngrams
from rlhf_loop.records import (
    Completion,
    Critique,
    CritiquedCompletion,
    Edit,
    Feedback,
    Preference,
    Prompt,
    Rating,
    Span,
    Thumb,
    stable_id,
)
from rlhf_loop.rows.parts import answer, origin_of

ALL_KINDS = ("human", "simulated", "llm", "code")
"""Who may have said it: people, a simulated annotator, a model that judges, a program."""

QUOTED_WORDS = 8
"""So many words of a system prompt in a row are a quotation of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Which critiques are left out."""

    is_vague: Callable[[str], bool]
    max_words: int
    kinds: Collection[str]  # whose critiques count
    system_prompt: str | None = None


def critiqued_completions(
    feedback: Iterable[Feedback],
    completions: Mapping[str, Completion],
    prompts: Mapping[str, Prompt],
    limits: Limits,
) -> tuple[list[CritiquedCompletion], Counter[str]]:
    """Rows in the order of `feedback`, which passed validation, and counts of critiques that are left out, by reason.

    A thumb is a verdict of the answer, so is a rating above or below the middle of its scale, the comment on the losing
    answer of a pair, and `both_bad` of each of its answers. A critique calls its answer bad unless the same person's
    thumb or rating of it says otherwise. What the same person said of the same answer in the same words is one row. A
    critique that quotes the policy's system prompt, or one of the conversation's, is left out: a policy that learns to
    write critiques would learn to recite it.
    """
    feedback = list(feedback)
    verdicts = verdicts_of(feedback)
    rows: dict[tuple[str, ...], CritiquedCompletion] = {}
    left_out: Counter[str] = Counter()
    for record in feedback:
        if isinstance(record, Preference) and record.winner == "tie" and record.comment:
            left_out["about_neither_answer"] += 1
        for said in _said(record, completions, limits):
            prompt = prompts[record.prompt_id]
            if origin_of(record) not in limits.kinds:
                left_out["of_a_kind_that_does_not_count"] += 1
                continue
            text, label = said.critique, said.label
            if isinstance(record, Critique):
                label = verdicts.get((record.annotator.id, said.completion_id), False)
            if text and (reason := why_unfit(text, prompt, limits)) is not None:
                left_out[reason] += 1
                text = ""
            says_nothing = (isinstance(record, Critique) and not any(span.label for span in record.spans)) or (
                isinstance(record, Preference) and record.winner != "both_bad"  # what lost may be good
            )
            if not text and said.revision is None and (says_nothing or label is None):
                continue
            row = _row(record, said, text, label, completions[said.completion_id], prompt)
            key = (row.annotator, row.completion_id, row.critique, row.revision or "", "" if text else str(row.label))
            rows[key] = _merged(rows[key], row) if key in rows else row
    return list(rows.values()), left_out


def verdicts_of(feedback: Iterable[Feedback]) -> dict[tuple[str, str], bool]:
    """What thumbs and ratings say of answers, by annotator and completion; the last one counts."""
    return {
        (record.annotator.id, record.completion_id): label
        for record in feedback
        if isinstance(record, Thumb | Rating) and (label := _verdict(record)) is not None
    }


def losers_of(preference: Preference) -> list[str]:
    """The answers that a comment on a preference is about: none at a tie."""
    a, b = preference.a_id, preference.b_id
    return {"a": [b], "b": [a], "tie": [], "both_bad": [a, b]}[preference.winner]


def why_unfit(text: str, prompt: Prompt, limits: Limits) -> str | None:
    """Why nothing is learned from these words about an answer to `prompt`; None where it is."""
    if limits.is_vague(text):
        return "vague"
    if max(len(text.split()), len(text) // _LONG_WORD) > limits.max_words:
        return "too_long"
    systems = [m["content"] for m in prompt.messages if m["role"] in ("system", "developer")]
    if any(_quotes(text, system) for system in [limits.system_prompt or "", *systems]):
        return "quotes_the_system_prompt"
    return None


def counts_of(rows: Sequence[CritiquedCompletion], left_out: Mapping[str, int]) -> dict[str, Any]:
    """What there is to learn from, for reports; `left_out` as `critiqued_completions` gives it."""
    with_words = [row for row in rows if row.critique]
    return {
        "critiques": len(with_words),
        "by_origin": dict(Counter(row.origin for row in with_words)),
        "edits": sum(row.revision is not None for row in rows),
        "answers_called": {
            "good": len({row.completion_id for row in rows if row.label is True}),
            "bad": len({row.completion_id for row in rows if row.label is False}),
        },
        "left_out": dict(left_out),
    }


def critique_lines(counts: Mapping[str, Any]) -> list[str]:
    """`counts_of` for people."""
    by = ", ".join(f"{count:,} {origin}" for origin, count in counts["by_origin"].items())
    called = counts["answers_called"]
    text = [
        f"critiques     {counts['critiques']:,} to learn from{f' ({by})' if by else ''}, {counts['edits']:,} edits; "
        f"{called['bad']:,} answers called bad, {called['good']:,} good"
    ]
    text += [f"  {count:,} left out: {reason.replace('_', ' ')}" for reason, count in counts["left_out"].items()]
    return text


def shuffled(rows: Sequence[CritiquedCompletion], seed: int) -> list[CritiquedCompletion]:
    """The rows with each critique at another answer, wherever another prompt has one: a control that leaves nothing to
    learn from what critiques say. Verdicts and edits stay where they are. A function of the rows and the seed."""
    order = sorted(
        (place for place, row in enumerate(rows) if row.critique),
        key=lambda place: (stable_id("shuffled", seed, rows[place].prompt_id), stable_id(seed, rows[place].id)),
    )
    # The critiques of a prompt stand side by side, so a step of the largest number of one prompt leaves each prompt.
    step = max(Counter(rows[place].prompt_id for place in order).values(), default=0)
    mixed = list(rows)
    for number, here in enumerate(order):
        source = rows[order[(number + step) % len(order)]]
        if source is not rows[here]:
            mixed[here] = replace(
                rows[here],
                critique=source.critique,
                spans=(),  # its places are those of another text
                origin=source.origin,
                annotator=source.annotator,
                feedback_ids=source.feedback_ids,
                said_of=source.completion_id,
                said_in=source.said_in,
            )
    return mixed


@dataclass(frozen=True, kw_only=True, slots=True)
class _Said:
    completion_id: str
    critique: str = ""
    spans: tuple[Span, ...] = ()
    label: bool | None = None
    revision: str | None = None


def _said(record: Feedback, completions: Mapping[str, Completion], limits: Limits) -> Iterator[_Said]:
    comment = (record.comment or "").strip()
    if isinstance(record, Critique):
        text = _with_spans(comment, record.spans, completions[record.completion_id].text, limits)
        yield _Said(completion_id=record.completion_id, critique=text, spans=record.spans)
    elif isinstance(record, Thumb | Rating):
        yield _Said(completion_id=record.completion_id, critique=comment, label=_verdict(record))
    elif isinstance(record, Edit):
        yield _Said(completion_id=record.completion_id, revision=record.edited_completion.strip())
        if comment:
            yield _Said(completion_id=record.completion_id, critique=comment, label=False)
    elif isinstance(record, Preference) and (comment or record.winner == "both_bad"):
        for completion_id in losers_of(record):
            yield _Said(completion_id=completion_id, critique=comment, label=False)


def _with_spans(comment: str, spans: Sequence[Span], text: str, limits: Limits) -> str:
    """The critique, and what it says of parts of the answer, each with the words that it is about."""
    about_parts = [
        f'"{text[span.start : span.end].strip()}": {span.comment.strip()}'
        for span in spans
        if span.comment.strip() and not limits.is_vague(span.comment)
    ]
    return "\n".join([*([comment] if comment else []), *about_parts])


def _verdict(record: Thumb | Rating) -> bool | None:
    if isinstance(record, Thumb):
        return record.label
    low, high = record.scale
    middle = (low + high) / 2
    return None if record.score == middle else (record.score > middle) == (high > low)


def _quotes(text: str, system: str) -> bool:
    """Whether `text` repeats the system prompt whole, or `QUOTED_WORDS` of its words in a row."""
    length, parts = _parts(system)
    if length < 3:  # a word or two are everybody's
        return False
    return any(run in parts for run in ngrams(_words(text), length))


@lru_cache(maxsize=64)
def _parts(system: str) -> tuple[int, frozenset[tuple[str, ...]]]:
    """How many words in a row are a quotation, and all that there are."""
    theirs = _words(system)
    length = min(QUOTED_WORDS, len(theirs))
    return length, frozenset(ngrams(theirs, length))


_LONG_WORD = 10  # characters; of so many a word is counted in scripts without spaces


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _row(
    record: Feedback, said: _Said, text: str, label: bool | None, completion: Completion, prompt: Prompt
) -> CritiquedCompletion:
    return CritiquedCompletion(
        id=stable_id("critiqued", record.id, completion.id, "revision" if said.revision is not None else "critique"),
        prompt_id=prompt.id,
        group=prompt.group,
        prompt=prompt.messages,
        completion=answer(completion.text),
        finished=completion.finish_reason == "stop",
        token_ids=completion.token_ids,
        by_policy=completion.by_policy,
        completion_id=completion.id,
        critique=text,
        spans=said.spans,
        label=label,
        revision=said.revision,
        origin=origin_of(record),
        annotator=record.annotator.id,
        feedback_ids=(record.id,),
        round=record.round,
    )


def _merged(first: CritiquedCompletion, again: CritiquedCompletion) -> CritiquedCompletion:
    """The same words of the same person: said of a pair, and marked in the answer too."""
    return replace(
        first,
        spans=first.spans or again.spans,
        label=again.label if first.label is None else first.label,
        feedback_ids=(*first.feedback_ids, *again.feedback_ids),
        round=max(first.round, again.round),
    )
