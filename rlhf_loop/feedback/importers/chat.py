"""Chat logs in OpenAI's shape, with feedback where there is some.

    {"messages": [..., {"role": "assistant", "content": "..."}], "feedback": "up", "comment": "...", "user": "u1"}
    {"request": {"messages": [...]}, "response": {"choices": [{"message": {...}}]}, "rating": 4}
    {"question": "...", "answer": "...", "rating": 4}
    {"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}

`feedback` (or `rating`, `thumb`, `label`, `score`, `stars`, `reward`) may be a word for good or bad, a number, a text,
or an object that holds these, and may stand in the message that it is about; a text is a critique. Numbers stand on one
scale for the whole file (`scales.py`), mostly 1 to 5.
A conversation that ends with the user's turn is about the answer before it; as a whole it is kept as a prompt.
`correction` is the answer as it should have been. The last form is that of OpenAI's preference fine-tuning. A log
without feedback gives the answer alone, for the loop to ask about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_loop.feedback.files.row import Note, RowError
from rlhf_loop.feedback.importers import pairs, times
from rlhf_loop.feedback.importers.asked import PARTS, SYSTEM, TALKS, asked, holds_question, not_read, system_turn
from rlhf_loop.feedback.importers.conversations import (
    answer_of,
    decoded,
    holds_steps,
    prompt_before,
    turns_in,
    without_steps,
)
from rlhf_loop.feedback.importers.exchanges import asked_of, exchange
from rlhf_loop.feedback.importers.fields import (
    Place,
    completion_of,
    optional_id,
    optional_text,
    prompt_of,
    said_by,
    text_of,
)
from rlhf_loop.feedback.importers.metrics import number_in
from rlhf_loop.feedback.importers.words import thumb_of
from rlhf_loop.records import Critique, Edit, Message, Rating, Thumb

RECOGNISES = 'chat logs: rows of {"messages"} or {"request", "response"}, with `feedback`, `rating` or `comment`'
REQUIRED = [("messages",), ("request", "response"), ("input", "preferred_output", "non_preferred_output")]
VERDICTS = ("feedback", "rating", "thumb", "thumbs", "label", "score", "stars", "reward")
SAID = (*VERDICTS, "comment", "critique", "correction", "edited")
ANSWERS = ("response", "answer", "output", "completion", "reply")
INSIDE = {"feedback": ("type", "value", "sentiment", "vote"), "comment": ("text", "reason", "explanation")}
"""What an object in `feedback` calls a verdict and a comment where it has none under their own names."""

KNOWN = frozenset(
    (
        *TALKS,
        *SYSTEM,
        *SAID,
        *times.NAMES,
        "request",
        "response",
        "input",
        "preferred_output",
        "non_preferred_output",
        "annotator",
        "user",
        "user_id",
        "id",
        "group",
    )
)

UNANSWERED = Note("a user's turn that nobody answered is kept as a prompt")


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    if all(key in row for key in REQUIRED[2]) or ("request" in row and "response" in row):
        return True
    if _answer_in(row) is not None and any(row.get(name) is not None for name in SAID):
        return "completion" not in row or "label" not in row
    if "completion" in row:  # TRL's, with a conversation as the prompt
        return False
    return any(isinstance(row.get(key), (list, str)) and _is_talk(row[key], key) for key in TALKS)


def numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The numbers that people gave, by question."""
    values = _values(row)
    for name in VERDICTS:
        number = number_in(values.get(name))
        if number is not None:
            yield name, number


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, the answer, and what is said of it; of OpenAI's preference rows a pair."""
    answered = _answer_in(row)
    notes = not_read(row, KNOWN if answered is None else KNOWN | {*PARTS, answered}, place)
    if "preferred_output" in row:
        messages, more = asked_of(row.get("input"), "input")
        pair = pairs.pair(row, place, messages, row["preferred_output"], row.get("non_preferred_output"))
        return [*pair, *notes, *more]
    exchanges: list[tuple[tuple[Message, ...], str, list[Note], Mapping[str, Any]]]
    row, unanswered = (row, None) if answered is not None else _up_to_the_last_answer(row)
    if answered is not None:
        messages = asked(row, given=place.given)
        exchanges = [(messages, answer_of(row[answered], answered, messages), [], row)]
    else:
        exchanges = list(_exchanges(row))
    records: list[Any] = [*notes]
    for messages, text, more, said in exchanges:
        prompt = prompt_of(messages, place, optional_id(row, "group"))
        completion = completion_of(prompt, text)
        found = _said(said, place, prompt.id, completion.id)
        records += [prompt, completion, *more, *(found or [Note("an answer has no feedback; it is kept without")])]
    if unanswered is not None:
        records += [
            prompt_of(unanswered, place, prompt.group),
            Note("a user's turn that nobody answered is kept as a prompt"),
        ]
    return records


def _up_to_the_last_answer(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[Message, ...] | None]:
    """The row without turns of the user after the last answer, and the whole conversation where there are some."""
    name = next((key for key in TALKS if row.get(key) not in (None, "", [])), None)
    turns = decoded(row[name]) if name is not None else None
    turns = turns.get("messages") if isinstance(turns, Mapping) else turns
    if name is None or not isinstance(turns, list):
        return row, None
    said = turns_in(turns, name, steps=True) or ()
    answers = [place for place, turn in enumerate(said) if turn["role"] == "assistant" and turn["content"].strip()]
    after = said[answers[-1] + 1 :] if answers else ()
    if not after or len(said) != len(turns) or any(turn["role"] != "user" for turn in after):
        return row, None
    whole, _ = without_steps(said)
    begins = () if whole[0]["role"] in ("system", "developer") else system_turn(row)
    return {**row, name: turns[: answers[-1] + 1]}, (*begins, *whole)


def _answer_in(row: Mapping[str, Any]) -> str | None:
    """The field that holds the answer to a question beside it; None for conversations that end with theirs."""
    talk = next((decoded(row[name]) for name in TALKS if row.get(name) not in (None, "", [])), None)
    last = talk[-1] if isinstance(talk, list) else None
    asks = isinstance(last, Mapping) and last.get("role", last.get("from")) in ("user", "human")
    if (talk is not None and not asks) or not holds_question(row):
        return None
    found = [name for name in ANSWERS if row.get(name) not in (None, "")]
    return found[0] if len(found) == 1 else None


def _is_talk(value: Any, name: str) -> bool:
    try:
        return turns_in(value, name) is not None
    except RowError:
        return isinstance(value, list)


def _exchanges(row: Mapping[str, Any]) -> Iterator[tuple[tuple[Message, ...], str, list[Note], Mapping[str, Any]]]:
    """Each answer that something is said of, in its message or in the row, which is about the last: what was asked, the
    answer, notes, and what holds the feedback."""
    name = next((key for key in TALKS if row.get(key) not in (None, "", [])), None)
    if name is None and "request" not in row and holds_question(row):
        raise RowError(f"there is no answer: one of {', '.join(ANSWERS)} must hold it, and no other")
    if name is None:
        yield *exchange(row.get("request"), row.get("response")), row
        return
    turns = decoded(row[name])
    turns = turns.get("messages", [turns]) if isinstance(turns, Mapping) else turns
    if not isinstance(turns, list):
        raise RowError(f"`{name}` must be a conversation")
    last = len(turns) - 1
    for place, turn in enumerate(turns):
        own = {key: turn[key] for key in SAID if turn.get(key) is not None} if isinstance(turn, Mapping) else {}
        if own and place == last and not any(row.get(key) is not None for key in SAID):
            yield *_answered(turns, name, row), {**row, **own}
        elif own:
            yield *_answered(turns[: place + 1], name, row), {**{k: v for k, v in row.items() if k not in SAID}, **own}
        elif place == last:
            yield *_answered(turns, name, row), row


def _answered(turns: list[Any], name: str, row: Mapping[str, Any]) -> tuple[tuple[Message, ...], str, list[Note]]:
    """What was asked and the answer that a conversation ends with, without the tools that were used on the way."""
    said = turns_in(turns, name, steps=True) or ()
    if isinstance(turns[-1], Mapping) and turns[-1].get("content", turns[-1].get("value", "")) is None:
        raise RowError(f"`{name}[{len(turns) - 1}].content` is missing, so there is no answer")
    before, notes = without_steps(said[:-1])
    if any(holds_steps(turn) for turn in turns):
        notes.append(Note("thoughts and calls of tools in a message are left out"))
    messages, text = prompt_before([*before, *said[-1:]], name)
    if messages[0]["role"] not in ("system", "developer"):
        messages = (*system_turn(row), *messages)
    return messages, text, notes


def _values(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with what its `feedback` holds, where that is an object."""
    values = dict(row)
    if isinstance(row.get("feedback"), Mapping):
        inside = dict(values.pop("feedback"))
        for name, others in INSIDE.items():
            if not any(inside.get(key) is not None for key in (VERDICTS if name == "feedback" else (name,))):
                other = next((key for key in others if inside.get(key) is not None), None)
                if other is not None:
                    inside[name] = inside.pop(other)
        values |= inside
    return values


def _said(row: Mapping[str, Any], place: Place, prompt_id: str, completion_id: str) -> list[Any]:
    values = _values(row)
    who = next((values[key] for key in ("annotator", "user", "user_id") if values.get(key)), None)
    if isinstance(who, Mapping):
        who = who.get("id")
    given: dict[str, Any] = {
        "external_id": optional_id(row, "id"),
        "created_at": times.time_in(values, *times.NAMES),
    }
    about: dict[str, Any] = {"prompt_id": prompt_id, "completion_id": completion_id}
    comment = optional_text(values, "comment") or optional_text(values, "critique")
    records: list[Any] = []
    notes: list[Note] = []
    for name in VERDICTS:
        value = values.get(name)
        if value is None or value == "":
            continue
        label, number = thumb_of(value), number_in(value)
        stars = name in ("rating", "score", "stars")
        if number is not None and (stars or place.scales.beyond_one(name, number)):
            rated = place.scales.rated(name, number, (1.0, 5.0) if stars else None)
            if rated is None:
                raise RowError(f"the scale of `{name}` is not known, got {number:g}; say it: --scale {name}=LOW:HIGH")
            common = said_by(place, who, "rating", completion_id, number, **given)
            records.append(Rating(score=rated.score, scale=rated.scale, comment=comment, **about, **common))
            notes += rated.notes
        elif label is not None:
            common = said_by(place, who, "thumb", completion_id, label, **given)
            records.append(Thumb(label=label, comment=comment, **about, **common))
        elif isinstance(value, str):
            comment = "\n".join(text for text in (comment, text_of(value, name).strip()) if text) or None
        else:
            raise RowError(f"`{name}` must be a word, a number, or a text")
    if not records and comment:
        common = said_by(place, who, "critique", completion_id, comment, **given)
        records.append(Critique(comment=comment, **about, **common))
    correction = optional_text(values, "correction") or optional_text(values, "edited")
    if correction:
        common = said_by(place, who, "edit", completion_id, correction, **given)
        records.append(Edit(edited_completion=correction, **about, **common))
    return records + notes
