"""Gradio: the log of a chat interface, and what its interfaces flag, both CSV.

    conversation,index,value,flag,timestamp     `log.csv`: `index` is the message that was liked, of the conversation
    prompt,output,flag,username,timestamp       `dataset1.csv`, `log.csv`: inputs and outputs by their labels

A like becomes a thumb of the answer at `index`, which is the number of a message, or of a pair and its side. Whatever
else people could choose (`flagging_options`) is left out unless its word says good or bad.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.files.row import Note, RowError
from rlhf_loop.feedback.files.rows import shown
from rlhf_loop.feedback.importers.conversations import decoded, turns_in
from rlhf_loop.feedback.importers.fields import Place, completion_of, prompt_of, said_by
from rlhf_loop.feedback.importers.tasks import Task, task_of
from rlhf_loop.feedback.importers.times import time_in
from rlhf_loop.feedback.importers.words import thumb_of
from rlhf_loop.records import Message, Thumb

RECOGNISES = "Gradio: the CSV of a chat's likes, {conversation, index, value}, or of flagged inputs and outputs"
REQUIRED = [("conversation", "index", "value", "timestamp"), ("flag", "timestamp", "output")]
OF_A_FLAG = ("flag", "username", "timestamp")
_FORMULA = ("=", "+", "-", "@", "\t", "\n")


def recognises(row: Mapping[str, Any]) -> bool:
    """Whether a row is of this format."""
    if "conversation" in row and "index" in row and "timestamp" in row:
        return True
    names = list(row)
    return "flag" in names and names[-1] == "timestamp"


def parse(row: Mapping[str, Any], place: Place) -> list[Any]:
    """The prompt, the answer and a thumb."""
    if "conversation" in row and "index" in row:
        return _like(row, place)
    task = _flagged({name: _unguarded(value) for name, value in row.items() if name not in OF_A_FLAG}, place)
    answers = list(task.answers.values())
    if len(answers) != 1:
        raise RowError(f"there are {len(answers)} outputs ({', '.join(task.answers)}); one can be read")
    said = _thumb(row, row.get("flag"), task.prompt.id, answers[0].id, place, row.get("username"))
    return [task.prompt, answers[0], said, *task.notes]


def _unguarded(value: Any) -> Any:
    """A cell without the apostrophe that Gradio writes before what a spreadsheet would take for a formula."""
    return value[1:] if isinstance(value, str) and value[:1] == "'" and value[1:2] in _FORMULA else value


def _flagged(shown: Mapping[str, Any], place: Place) -> Task:
    """What was flagged, by the labels of inputs and outputs; of two that tell nothing, the second is the output."""
    try:
        return task_of(shown, place)
    except RowError:
        if len(shown) != 2:
            raise
        return task_of(dict(zip(("prompt", "output"), shown.values(), strict=True)), place)


def _like(row: Mapping[str, Any], place: Place) -> list[Any]:
    turns, place_of = _turns(row["conversation"])
    index = _index(row["index"])
    number = place_of.get(index)
    if number is None or turns[number]["role"] != "assistant":
        raise RowError(f"`index` must be the number of one of the assistant's messages, got {shown(row['index'])}")
    if number == 0:
        raise RowError("the message that was liked answers nothing: it is the first")
    prompt = prompt_of(turns[:number], place)
    completion = completion_of(prompt, turns[number]["content"])
    return [prompt, completion, _thumb(row, row.get("value"), prompt.id, completion.id, place, None)]


def _turns(value: Any) -> tuple[tuple[Message, ...], dict[tuple[int, ...], int]]:
    """The conversation, and where each index of the log leads: thoughts and calls of tools are messages in it too."""
    messages = decoded(value)
    if not isinstance(messages, list) or not messages:
        raise RowError("`conversation` must be a list of messages")
    pairs = all(isinstance(turn, list) and len(turn) == 2 for turn in messages)
    turns: list[Message] = []
    place_of: dict[tuple[int, ...], int] = {}
    for number, message in enumerate(messages):
        metadata = message.get("metadata") if isinstance(message, Mapping) else None
        if isinstance(metadata, Mapping) and metadata.get("title"):
            continue  # a thought or the use of a tool, which is shown beside the answer
        sides = [(0, "user"), (1, "assistant")] if pairs else [(None, "")]
        for side, role in sides:
            one = message if side is None else {"role": role, "content": message[side]}
            if side is not None and message[side] is None:
                continue
            place_of[(number,) if side is None else (number, side)] = len(turns)
            turns += turns_in([one], f"conversation[{number}]") or ()
    return tuple(turns), place_of


def _index(value: Any) -> tuple[int, ...]:
    found = decoded(value)
    try:
        return tuple(int(part) for part in found) if isinstance(found, (list, tuple)) else (int(float(str(found))),)
    except (ValueError, OverflowError):
        raise RowError(f"`index` must be the number of a message, got {shown(value)}") from None


def _thumb(row: Mapping[str, Any], said: Any, prompt_id: str, completion_id: str, place: Place, who: Any) -> Any:
    if said in (None, ""):
        return Note("an answer has no feedback; it is kept without")
    label = thumb_of(said)
    if label is None:
        return Note(f"the flag {str(said)[:40]} says neither good nor bad")
    given: dict[str, Any] = {"created_at": time_in(row, "timestamp")}
    common = said_by(place, who, "thumb", completion_id, label, **given)
    return Thumb(prompt_id=prompt_id, completion_id=completion_id, label=label, **common)
