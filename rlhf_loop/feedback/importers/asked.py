"""What was asked, out of the fields of a row, an input or a task, whatever these are called.

    {"system": "Be brief.", "question": "..."}                      a system turn and one of the user
    {"instruction": "...", "input": "...", "history": [["..", ".."]]}    Alpaca: one turn, after those before it
    {"context": "...", "question": "..."}                           the context stands above the question
    {"messages": [...]}                                             a conversation

No field that may be part of what was asked is dropped in silence: it is read, or the row is refused with the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rlhf_loop.feedback.files.row import Note, RowError
from rlhf_loop.feedback.importers.conversations import TEXT_PARTS, decoded, dialogue, is_dialogue, messages_of, turns_in
from rlhf_loop.feedback.importers.fields import Place, text_of
from rlhf_loop.records import Message

SYSTEM = ("system", "system_prompt", "system_message", "system_instruction")
TALKS = ("messages", "conversation", "conversations", "dialogue", "dialog", "turns", "chat", "contents")
HISTORY = ("history", "chat_history")
QUESTIONS = (
    "prompt",
    "question",
    "instruction",
    "query",
    "problem",
    "user_prompt",
    "user_input",
    "user_message",
    "input",
)
WEAK = ("inputs", "message", "request", "human", "user", "task", "post", "text")
"""Names that may be what was asked where nothing else is, and are something else (who, which kind) beside it."""
CONTEXTS = ("context", "contexts", "document", "documents", "passage", "article", "background")
PARTS = (*SYSTEM, *TALKS, *HISTORY, *QUESTIONS, *CONTEXTS)
"""Names of fields that are part of what was asked, whatever else is there."""

SETTINGS = (
    "model",
    "temperature",
    "top_p",
    "top_k",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "stream",
    "stream_options",
    "parallel_tool_calls",
    "n",
    "seed",
    "stop",
    "frequency_penalty",
    "presence_penalty",
    "logprobs",
    "top_logprobs",
    "user_id",
    "store",
    "metadata",
    "service_tier",
)
"""How an answer was to be made, beside what was asked; no part of it."""

MEDIA = ("images", "image", "image_url", "audio", "audios", "video", "videos")
OF_A_MESSAGE = frozenset(
    (
        "role",
        "content",
        "type",
        "name",
        "id",
        "tool_call_id",
        "model",
        "timestamp",
        "created_at",
        "feedback",
        "rating",
        "thumb",
        "thumbs",
        "label",
        "score",
        "stars",
        "reward",
        "comment",
        "critique",
        "correction",
        "edited",
    )
)
"""What a message holds that is read, or says nothing."""

_PARTS = frozenset(PARTS)


def holds_question(row: Mapping[str, Any]) -> bool:
    """Whether a row has a field that may be what was asked."""
    return any(row.get(name) not in (None, "") for name in (*TALKS, *QUESTIONS, *CONTEXTS))


def asked(
    row: Mapping[str, Any], where: str = "", *, given: frozenset[str] = frozenset(), weak: bool = False
) -> tuple[Message, ...]:
    """The conversation up to the policy's turn.

    `where`: the name of what holds the fields, for messages. `given`: names that the user gave to columns; where
    `prompt` is among them, no other field is taken for it. `weak`: take a field called as in `WEAK` where there is no
    other. Raises `RowError` where nothing was asked, and where two fields may both be it.
    """
    names = row.keys() & _PARTS
    if "prompt" in given:
        names &= given
    if (
        names == {"prompt"}
        and type(row["prompt"]) is str
        and row["prompt"][:1] not in ("[", "{", "'")
        and not row["prompt"].endswith(("Assistant:", "Assistant: "))
    ):
        return _not_empty((Message(role="user", content=text_of(row["prompt"], "prompt")),))
    there = {name: row[name] for name in PARTS if name in names and not _empty(row[name])}
    if weak and not holds_question(there):
        name = next((name for name in WEAK if not _empty(row.get(name))), None)
        there |= {} if name is None else {"prompt": row[name]}
    turns = _question(there, row, where)
    first = [turn for name in HISTORY if name in there for turn in messages_of(there[name], f"{where}{name}")]
    system = _text(there, SYSTEM, where)
    if system and not (turns[0]["role"] in ("system", "developer") and turns[0]["content"] == system):
        first.insert(0, Message(role="system", content=system))
    return _not_empty((*first, *turns))


def system_turn(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The system turn of a row whose prompt stands elsewhere."""
    text = _text({name: row[name] for name in SYSTEM if not _empty(row.get(name))}, SYSTEM, "")
    return (Message(role="system", content=text),) if text else ()


def not_read(row: Mapping[str, Any], known: frozenset[str], place: Place) -> list[Note]:
    """A note for each column of a row that has a value and is not read."""
    notes = _of_messages(row)
    if "prompt" in place.columns:  # which alone is what was asked then
        known = (known - _PARTS) | (place.given & _PARTS)
    if row.keys() <= known:
        return notes
    media = next((name for name in MEDIA if not _empty(row.get(name))), None)
    if media is not None:
        raise RowError(f"`{media}` holds images, audio or videos, which are not supported")
    known |= place.sources
    return notes + [
        Note(f"the column {str(name)[:60]} is not read")
        for name, value in row.items()
        if name not in known and not _empty(value)
    ]


def _of_messages(row: Mapping[str, Any]) -> list[Note]:
    """A note for what stands in messages and is not read: thoughts, calls of tools, weights."""
    unread = {
        str(key)
        for value in row.values()
        if type(value) is list
        for turn in value
        if type(turn) is dict and "role" in turn
        for key, inner in turn.items()
        if key not in OF_A_MESSAGE and not _empty(inner)
    }
    return [Note(f"the {key[:60]} of a message is not read") for key in sorted(unread)]


def _question(there: Mapping[str, Any], row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    """The turns of what was asked, without those that stand in fields of their own."""
    talks = [name for name in TALKS if name in there]
    if len(talks) > 1:
        raise _which(talks, where)
    names = [name for name in QUESTIONS if name in there]
    context = "\n\n".join(_joined(there[name], f"{where}{name}") for name in CONTEXTS if name in there)
    if not talks and not names:
        if not context:
            raise RowError(_nothing(row, where))
        return (Message(role="user", content=context),)
    questions = [_turns(there[name], f"{where}{name}") for name in names]
    if talks:
        talk = _turns(there[talks[0]], f"{where}{talks[0]}")
        said = {turn["content"].strip() for turn in talk if turn["role"] == "user"}
        odd = [
            name
            for name, turns in zip(names, questions, strict=True)
            if any(turn["content"].strip() not in said for turn in turns if turn["role"] == "user")
        ]
        if odd:
            raise _which([talks[0], odd[0]], where)
        turns = talk
    elif len(names) == 2 and names[0] == "instruction" and names[1] == "input" and len(questions[1]) == 1:
        turns = (*questions[0][:-1], _with(questions[0][-1], "", questions[1][0]["content"]))
    elif any(turns != questions[0] for turns in questions):
        raise _which(names, where)
    else:
        turns = questions[0]
    if context:
        place = max((n for n, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
        if place < 0:
            raise RowError(f"there is a context, but no question of the user that it belongs to; {_remedy()}")
        turns = (*turns[:place], _with(turns[place], context, ""), *turns[place + 1 :])
    return turns


def _turns(value: Any, name: str) -> tuple[Message, ...]:
    """A question that is text, a conversation, or an object that holds one."""
    if isinstance(value, Mapping) and "role" not in value and "from" not in value:
        return asked(value, f"{name}.")
    if is_dialogue(value):
        return dialogue(value, name)[:-1]
    return messages_of(value, name)


def _with(turn: Message, above: str, below: str) -> Message:
    parts = [part for part in (above, turn["content"], below) if part.strip()]
    return Message(role=turn["role"], content="\n\n".join(parts))


def _text(there: Mapping[str, Any], names: Iterable[str], where: str) -> str:
    """The one text under several names; different texts are refused."""
    texts: dict[str, str] = {}
    for name in names:
        if name in there:
            parts = decoded(there[name])
            if isinstance(parts, Mapping) and parts.get("type") in TEXT_PARTS:
                parts = [parts]
            if isinstance(parts, list) and all(isinstance(part, str) or _is_part(part) for part in parts):
                texts.setdefault(
                    "\n\n".join(p if isinstance(p, str) else text_of(p["text"], name) for p in parts), name
                )
                continue
            turns = turns_in(there[name], f"{where}{name}")
            text = text_of(there[name], f"{where}{name}") if turns is None else "\n\n".join(t["content"] for t in turns)
            texts.setdefault(text, name)
    if len(texts) > 1:
        raise _which(list(texts.values()), where)
    return next(iter(texts), "")


def _is_part(part: Any) -> bool:
    """Whether it is one of the parts that Anthropic's system prompts consist of."""
    return isinstance(part, Mapping) and part.get("type") in TEXT_PARTS and "text" in part


def _joined(value: Any, name: str) -> str:
    """A context: a text, or a list of texts or of objects with a text."""
    if isinstance(value, list):
        return "\n\n".join(_joined(part, name) for part in value)
    if isinstance(value, Mapping):
        inner = next((value[key] for key in ("text", "content", "page_content", "body") if key in value), None)
        if inner is None:
            raise RowError(f"`{name}` must be text, or hold one under `text`")
        return _joined(inner, name)
    return text_of(value, name)


def _not_empty(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    if not any(turn["content"].strip() for turn in turns if turn["role"] not in ("system", "developer")):
        raise RowError("the prompt is empty, so nothing was asked")
    return turns


def _empty(value: Any) -> bool:
    return value is None or value == "" or value == [] or value == {} or (isinstance(value, str) and value.isspace())


def _which(names: list[str], where: str) -> RowError:
    listed = " and ".join(f"`{where}{name}`" for name in names[:3])
    return RowError(
        f"{listed} may each be what was asked; say which: --map prompt={where}{names[0]} (the other is left out then; "
        f"to have it above: --map prompt={where}{names[0]},context={where}{names[1]})"
    )


def _nothing(row: Mapping[str, Any], where: str) -> str:
    if any(row.get(name) == [] for name in (*TALKS, *QUESTIONS)):
        return f"`{where}{next(name for name in (*TALKS, *QUESTIONS) if row.get(name) == [])}` is an empty conversation"
    if any(isinstance(row.get(name), str) for name in QUESTIONS):
        return "the prompt is empty, so nothing was asked"
    there = ", ".join(map(str, list(row)[:8]))
    inside = f" in `{where.rstrip('.')}`" if where else ""
    return f"there is no prompt{inside} among {there[:200]}; {_remedy()}"


def _remedy() -> str:
    return "name its column: --map prompt=COLUMN"
