"""Two answers beside each other and a verdict, the table that an A/B test leaves, whatever its columns are called.

    prompt,answer_a,answer_b,winner               a, B, answer_b, Answer A, tie, both bad, or the better text itself
    {"prompt", "response_0", "response_1", "better_response_id"}                        PKU-SafeRLHF: 0 or 1
    {"instruction", "output_1", "output_2", "preference"}         AlpacaEval: 1 or 2, and between them how clearly
    {"context", "response1", "response2", "overall_preference"}   HelpSteer: from -3, the first, to 3, the second
    {"history", "human_ref_A", "human_ref_B", "labels"}                     Stanford's preferences: 1 is A, 0 is B

Where the answers are called a and b a number does not say which of them it means, and the row is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.files.row import RowError
from rlhf_loop.feedback.files.rows import shown
from rlhf_loop.feedback.importers.asked import PARTS, asked, holds_question, not_read
from rlhf_loop.feedback.importers.conversations import answer_of, turns_in
from rlhf_loop.feedback.importers.fields import Place, completion_of, made_of, optional_id, optional_text, prompt_of
from rlhf_loop.feedback.importers.metrics import number_in
from rlhf_loop.feedback.importers.times import NAMES as TIMES
from rlhf_loop.feedback.importers.words import Winner, plain, winner_of, words_of
from rlhf_loop.records import Message, Preference

RECOGNISES = 'two answers and a verdict: rows of {"prompt", "answer_a", "answer_b", "winner"}, or 1 and 2, or 0 and 1'
REQUIRED = [("prompt", "answer_a", "answer_b", "winner")]

_ANSWER = re.compile(
    r"(?:(?:model|assistant|system|bot)_(?P<before>[a-c0-3])_)?"
    r"(?:response|answer|output|completion|reply|candidate|option|generation|continuation|summary|text|human_ref)"
    r"(?(before)|_?(?P<after>[a-c0-3]))"
)
_SIDES = ({"a", "b"}, {"1", "2"}, {"0", "1"})
_SIGNED = ("overall_preference", "preference_strength")
_VERDICTS = (
    "winner",
    "preferred",
    "preference",
    *_SIGNED,
    "human_preference",
    "preferred_response",
    "preferred_answer",
    "preferred_output",
    "preferred_completion",
    "better",
    "better_response",
    "better_answer",
    "better_output",
    "better_response_id",
    "best",
    "best_response",
    "best_answer",
    "choice",
    "chosen",
    "selected",
    "selection",
    "picked",
    "pick",
    "verdict",
    "vote",
    "judgment",
    "judgement",
    "label",
    "labels",
)
_COMMENTS = ("comment", "reason", "explanation", "rationale", "justification", "critique", "preference_statement")
_KNOWN = frozenset((*PARTS, *TIMES, *_COMMENTS, "id", "annotator", "group"))
_STEPS = 3  # of a preference with a sign: from -3 to 3


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    asked = holds_question(row) or bool(row.get("history"))
    return asked and _answers(row) is not None and _verdict(row) is not None


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, both completions and the preference of a row."""
    names, verdict = _answers(row), _verdict(row)
    if names is None or verdict is None:
        raise RowError("two answers, such as `answer_a` and `answer_b`, and a verdict, such as `winner`, are needed")
    messages = _asked(row, place)
    answers = [answer_of(row[name], name, messages) for name in names]
    winner, strength = _said(row, verdict, names, answers)
    prompt = prompt_of(messages, place, optional_id(row, "group"))
    a, b = (completion_of(prompt, answer) for answer in answers)
    comment = next((text for name in _COMMENTS if (text := optional_text(row, name))), None)
    common = made_of(row, place, "preference", prompt.id, a.id, b.id, winner, strength, comment)
    preference = Preference(
        prompt_id=prompt.id, a_id=a.id, b_id=b.id, winner=winner, strength=strength, comment=comment, **common
    )
    return [prompt, a, b, preference, *not_read(row, _KNOWN | {*names, verdict}, place)]


def _answers(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The names of the two answers; None where there are fewer, more, or two of several kinds."""
    found: dict[str, dict[str, str]] = {}
    for name in row:
        told = words_of(str(name))
        match = _ANSWER.fullmatch(told)
        if match is not None:
            side = match["before"] or match["after"]
            kind = "".join(told.rsplit(side, 1) if match["before"] is None else told.split(f"_{side}_", 1))
            found.setdefault(kind, {})[side] = name
    (sides, *others) = found.values() or [{}]
    if others or set(sides) not in _SIDES:
        return None
    first, second = sorted(sides)
    return sides[first], sides[second]


def _verdict(row: Mapping[str, Any]) -> str | None:
    told = {words_of(str(name)): name for name in row}
    return next((told[name] for name in _VERDICTS if name in told), None)


def _asked(row: Mapping[str, Any], place: Place) -> tuple[Message, ...]:
    """What was asked; HelpSteer calls the conversation `context`, Stanford's preferences a post `history`."""
    for name in ("context", "history"):
        if not any(row.get(other) for other in PARTS if other != name) and row.get(name):
            turns = turns_in(row[name], name)
            if turns is not None or isinstance(row[name], str):
                return asked({"messages" if turns is not None else "prompt": row[name]})
    return asked(row, given=place.given)


def _said(
    row: Mapping[str, Any], verdict: str, names: tuple[str, str], answers: list[str]
) -> tuple[Winner, float | None]:
    """The better answer, and how clearly where that is said."""
    value = row[verdict]
    if value is None or value == "":
        raise RowError(f"`{verdict}` is empty, so nothing was said of the answers")
    models = (row.get("model_a"), row.get("model_b"))
    for pair in (answers, models):
        if isinstance(value, str) and pair[0] != pair[1] and value in pair:
            return ("a" if value == pair[0] else "b"), None
    number = number_in(value)
    if number is None:
        winner = None if isinstance(value, bool) else winner_of(value, names)
        if winner is None:
            raise RowError(f"`{verdict}` must say which is better, such as a, b or tie, got {shown(value)}")
        return winner, None
    told = words_of(verdict)
    side = plain(names[0])[-1]
    if told in _SIGNED:
        low, high, turned = -_STEPS, _STEPS, False
    elif plain(names[0]).startswith("human_ref"):
        low, high, turned = 0, 1, True
    elif side in ("0", "1"):
        low, high, turned = int(side), int(side) + 1, False
        if number == 0 and side == "1":
            return "tie", None
    else:
        raise RowError(
            f"`{verdict}` is {number:g}, which does not say which of `{names[0]}` and `{names[1]}` is better; write a, "
            "b or tie, or call the answers 0 and 1, or 1 and 2"
        )
    if not low <= number <= high:
        raise RowError(f"`{verdict}` must be from {low} to {high}, got {number:g}")
    where = (number - (low + high) / 2) / ((high - low) / 2) * (-1 if turned else 1)  # -1 is the first, 1 the second
    if where == 0:
        return "tie", None
    return ("a" if where < 0 else "b"), None if abs(where) == 1 and high - low == 1 else abs(where)
