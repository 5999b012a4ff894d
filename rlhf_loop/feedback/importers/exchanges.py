"""What was asked and what was answered, out of what tools log as input and output.

An input is text, messages or an object with fields of them (`asked.py`); an output text, messages, or what an API or a
framework gives: OpenAI's chat, completions and responses, Anthropic, Gemini, Ollama, LangChain and LangGraph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_loop.feedback.files.row import Note, RowError
from rlhf_loop.feedback.importers.asked import PARTS, QUESTIONS, SETTINGS, TALKS, WEAK, asked
from rlhf_loop.feedback.importers.conversations import decoded, one_exchange, turns_in, without_steps
from rlhf_loop.feedback.importers.fields import text_of
from rlhf_loop.records import Message

ANSWERS = (
    "output",
    "outputs",
    "output_text",
    "response",
    "answer",
    "result",
    "completion",
    "generated_text",
    "generation",
    "return_values",
    "message",
    "reply",
    "content",
    "text",
    "value",
)
DEEPEST = 6  # objects in each other that are looked into


def exchange(
    request: Any, response: Any, names: tuple[str, str] = ("request", "response")
) -> tuple[tuple[Message, ...], str, list[Note]]:
    """The conversation that was asked, the answer, and notes of what is left out of both."""
    messages, notes = asked_of(request, names[0])
    prompt, answer, more = one_exchange(messages, answered_by(response, names[1]), names[1])
    return prompt, answer, notes + [note for note in more if note not in notes]


def asked_of(value: Any, name: str, depth: int = 0) -> tuple[tuple[Message, ...], list[Note]]:
    """What was asked, of an input; further inputs are counted by a note each."""
    value = decoded(value)
    if isinstance(value, Mapping) and not _is_message(value):
        return _asked_in(value, name, depth)
    turns = turns_in(value, name, steps=True)
    return without_steps(turns) if turns is not None else ((Message(role="user", content=text_of(value, name)),), [])


def answered_by(value: Any, name: str, depth: int = 0) -> tuple[Message, ...]:
    """The turns of an output, of which the last of the assistant is the answer."""
    found = value
    if isinstance(value, str):
        found = decoded(value)
        if not _answers(found):  # a text in JSON that is the answer itself
            found = value
    if isinstance(found, Mapping):
        return _answered_in(found, name, depth)
    if isinstance(found, list) and found and all(_is_item(item) for item in found):
        found = [item for item in found if item.get("type") == "message"] or found
    turns = turns_in(found, name, steps=True)
    return turns if turns is not None else (Message(role="assistant", content=text_of(found, name)),)


def _asked_in(value: Mapping[str, Any], name: str, depth: int) -> tuple[tuple[Message, ...], list[Note]]:
    fields = {key: inner for key, inner in value.items() if inner not in (None, "", [], {})}
    parts: dict[str, Any] = {}
    for key, inner in fields.items():
        parts[key] = decoded(inner) if key in TALKS else inner
    questions = [key for key in (*TALKS, *QUESTIONS) if key in parts]
    alternatives = questions[1:] if questions[:2] != ["instruction", "input"] else questions[2:]
    for key in alternatives:
        if parts[key] != parts[questions[0]]:
            del parts[key]
    for key in TALKS:
        if key in parts and isinstance(parts[key], list):
            parts[key], notes = _without_steps(parts[key], f"{name}.{key}")
            break
    else:
        notes = []
    try:
        turns = asked(parts, f"{name}.", weak=True)
        used = {key for key in parts if key in PARTS} or {key for key in WEAK if key in parts}
    except RowError as error:
        texts = [key for key, inner in fields.items() if isinstance(inner, str)]
        nested = [key for key, inner in fields.items() if isinstance(inner, (Mapping, list))]
        if questions or not fields or depth == DEEPEST:
            raise
        if len(texts) == 1:
            turns, used = (Message(role="user", content=text_of(fields[texts[0]], name)),), {texts[0]}
        elif len(nested) == 1 and not texts:
            turns, notes = asked_of(fields[nested[0]], f"{name}.{nested[0]}", depth + 1)
            used = {nested[0]}
        else:
            keys = ", ".join(map(str, list(value)[:8]))
            raise RowError(f"`{name}` holds neither messages nor one text: its keys are {keys[:200]}") from error
    further = [key for key in fields if key not in used and str(key) not in SETTINGS]
    return turns, notes + [Note(f"the further input {str(key)[:60]} is left out") for key in further]


def _without_steps(value: list[Any], name: str) -> tuple[list[dict[str, str]], list[Note]]:
    turns, notes = without_steps(turns_in(value, name, steps=True) or ())
    return [dict(turn) for turn in turns], notes  # type: ignore[arg-type]


def _answered_in(value: Mapping[str, Any], name: str, depth: int) -> tuple[Message, ...]:
    if depth > DEEPEST:
        raise RowError(f"`{name}` is nested too deeply")
    if _is_message(value):
        return turns_in(value, name, steps=True) or ()
    choices = value.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
        _one(choices, f"{name}.choices")
        inner = choices[0].get("message", choices[0].get("text"))
        return answered_by(inner, f"{name}.choices[0]", depth + 1)
    for key in ("messages", "generations", "candidates"):
        inner = value.get(key)
        while key != "messages" and isinstance(inner, list) and inner:
            _one(inner, f"{name}.{key}")
            inner = inner[0]
        if inner:
            return answered_by(inner, f"{name}.{key}", depth + 1)
    for key in ANSWERS:
        if value.get(key) not in (None, "", [], {}):
            return answered_by(value[key], f"{name}.{key}", depth + 1)
    kept = [key for key, inner in value.items() if isinstance(inner, (str, Mapping, list)) and inner]
    if len(kept) == 1:
        return answered_by(value[kept[0]], f"{name}.{kept[0]}", depth + 1)
    keys = ", ".join(map(str, list(value)[:8]))
    raise RowError(f"`{name}` holds neither messages nor one text: its keys are {keys[:200]}")


def _one(answers: list[Any], name: str) -> None:
    if len(answers) > 1:
        raise RowError(f"`{name}` holds {len(answers)} answers, and nothing says which of them was judged")


def _answers(value: Any) -> bool:
    """Whether what a text in JSON holds is an answer in some API's form, rather than the answer being JSON."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(turn, Mapping) and _is_message(turn) for turn in value)
    keys = ("messages", "choices", "candidates", "generations", *ANSWERS)
    return isinstance(value, Mapping) and (_is_message(value) or any(key in value for key in keys))


def _is_message(value: Mapping[str, Any]) -> bool:
    role = value.get("role", value.get("type"))
    if not isinstance(role, str) or role in ("response", "text"):
        return False
    return "content" in value or "parts" in value or "kwargs" in value


def _is_item(value: Any) -> bool:
    """Whether it is one of the items that OpenAI's responses consist of."""
    return isinstance(value, Mapping) and isinstance(value.get("type"), str) and "from" not in value
