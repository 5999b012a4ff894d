"""Conversations as files hold them: lists of messages, in JSON or Python's repr of them, under several names of roles.

[{"role": "user", "content": "..."}]                OpenAI and TRL; contents may be lists of parts
[{"from": "human", "value": "..."}]                 ShareGPT
[{"type": "human", "content": "..."}]               LangChain, also as its serialised constructors
[["a question", "its answer"]], [["user", "..."]]   pairs of turns, or of role and text
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_loop.feedback.files.row import Note, RowError
from rlhf_loop.feedback.files.rows import shown
from rlhf_loop.feedback.importers.fields import text_of
from rlhf_loop.records import Message

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
"""What tools call a role -> what it is called here."""

TEXT_PARTS = ("text", "input_text", "output_text")
STEPS = ("tool_use", "tool_result", "tool_call", "function_call", "thinking", "reasoning")
LONGEST_REPR = 4 * 2**20  # characters of Python's repr that are read: its parser takes much memory

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")
_LIST_OF_MESSAGES = re.compile(r"""\[\s*(?:array\(\s*\[\s*)?\{\s*(["'])(?:role|content|from|value)\1\s*:""")
_BEGINNINGS = ("[", "{", "array([")
_ARRAY = re.compile(r"^array\(\s*(\[.*\])\s*,\s*dtype=object\)$", re.DOTALL)
_NO_COMMA = re.compile(r"\}\s*\n\s*\{")  # between the rows of an array: a line's end never stands in a repr'd text


def messages_of(value: Any, name: str) -> tuple[Message, ...]:
    """A conversation: a list of messages, one message, or text, which is one turn of the user unless it is a
    conversation in JSON or in Python's repr.

    Raises `RowError` for anything else, and for an empty list.
    """
    turns = turns_in(value, name)
    return turns if turns is not None else (Message(role="user", content=text_of(value, name)),)


def answer_of(value: Any, name: str, prompt: Sequence[Message] = ()) -> str:
    """The text of one answer: text, or a conversation of one assistant's turn (after `prompt`, if repeated)."""
    turns = turns_in(value, name)
    if turns is None:
        return text_of(value, name)
    turns = _after(turns, tuple(prompt))
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        roles = ", ".join(turn["role"] for turn in turns)
        raise RowError(f"`{name}` must be one turn of the assistant after the prompt, got: {roles}")
    return turns[0]["content"]


def prompt_before(turns: Sequence[Message], name: str) -> tuple[tuple[Message, ...], str]:
    """A conversation that ends with the assistant's turn, as the prompt and that answer."""
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise RowError(f"`{name}` must end with an answer of the assistant after a prompt")
    return tuple(turns[:-1]), turns[-1]["content"]


def turns_in(value: Any, name: str, steps: bool = False) -> tuple[Message, ...] | None:
    """The turns of a conversation, also of one that is written as text; None for other text and no value.

    `steps`: a turn that calls a tool and says nothing is an empty one rather than refused. Raises `RowError` for a list
    or an object that is no conversation.
    """
    if isinstance(value, str):
        value = _written(value, name)
    if value is None or isinstance(value, (bool, int, float)):
        return None
    if isinstance(value, Mapping):
        if "role" not in value and isinstance(value.get("messages"), list):
            return turns_in(value["messages"], f"{name}.messages", steps)
        return (_message(value, name, steps),)
    if not isinstance(value, (list, tuple)):
        return None
    if not value:
        raise RowError(f"`{name}` is an empty conversation")
    if all(isinstance(turn, (list, tuple)) and len(turn) == 2 for turn in value):
        return _of_pairs(value, name)
    if all(isinstance(turn, Mapping) and "role" not in turn and {"input", "output"} <= turn.keys() for turn in value):
        return _of_pairs([(turn["input"], turn["output"]) for turn in value], name)
    return tuple(_message(turn, f"{name}[{number}]", steps) for number, turn in enumerate(value))


def decoded(value: Any) -> Any:
    """What a text holds where it is a list or an object in JSON, or in Python's repr; anything else as it is."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:2] in ("'[", "'{"):  # a guard against formulas, which some tools write before a cell
        text = text[1:]
    if not text.startswith(_BEGINNINGS):
        return value
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    found = _of_repr(text)
    return value if found is None else found


def without_steps(turns: Sequence[Message]) -> tuple[tuple[Message, ...], list[Note]]:
    """A conversation without the calls of tools in it and what these gave."""
    kept = tuple(turn for turn in turns if turn["role"] != "tool" and (turn["role"] != "assistant" or turn["content"]))
    return kept, [Note("calls of tools are left out of a conversation")] if len(kept) < len(turns) else []


def holds_steps(turn: Any) -> bool:
    """Whether parts of a message are thoughts, or calls of tools, which are left out of its text."""
    content = turn.get("content") if isinstance(turn, Mapping) else None
    parts = content if isinstance(content, list) else []
    return any(isinstance(part, Mapping) and part.get("type") in STEPS for part in parts)


def is_dialogue(value: Any) -> bool:
    """Whether a text is a dialogue of `Human:` and `Assistant:` whose next turn is the assistant's."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and value.rstrip().endswith("\n\nAssistant:")


def dialogue(value: Any, name: str) -> tuple[Message, ...]:
    r"""The turns of a text `\n\nHuman: ...\n\nAssistant: ...`; a `RowError` for another."""
    pieces = _TURN.split(text_of(value, name).strip())
    if pieces[0].strip() or len(pieces) < 3:
        raise RowError(f"`{name}` must begin with a turn of Human:")
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        Message(role=roles[role], content=content.strip())
        for role, content in zip(pieces[1::2], pieces[2::2], strict=True)
    )


def one_exchange(
    request: tuple[Message, ...], response: tuple[Message, ...], name: str
) -> tuple[tuple[Message, ...], str, list[Note]]:
    """What was asked and the last answer, of a response that may repeat the conversation or show its steps."""
    response, notes = without_steps(response)
    end = max((place for place, turn in enumerate(response) if turn["role"] == "assistant"), default=-1)
    if end < 0:
        raise RowError(f"`{name}` holds no answer of the assistant")
    asked = max((place for place, turn in enumerate(response[:end]) if turn["role"] == "user"), default=-1)
    prompt = request
    if asked >= 0:
        last = next((turn for turn in reversed(request) if turn["role"] == "user"), None)
        if last is not None and last["content"] != response[asked]["content"]:
            raise RowError(f"`{name}` repeats another conversation than the one that was asked")
        said = response[: asked + 1]
        prompt = (*(turn for turn in request if turn["role"] in ("system", "developer") and turn not in said), *said)
    if any(turn["role"] == "assistant" for turn in response[asked + 1 : end]):
        notes.append(Note("the steps before an answer are left out"))
    return prompt, response[end]["content"], notes


def _written(text: str, name: str) -> Any:
    """The conversation that a text is, or None where it is text."""
    start = text[:200].lstrip().removeprefix("'")
    if not start.startswith(_BEGINNINGS):
        return None
    value = decoded(text)
    if isinstance(value, Mapping) and _is_message(value):
        return [value]
    if isinstance(value, Mapping) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) and _is_message(turn) for turn in value):
        return value
    if _LIST_OF_MESSAGES.match(start) and not isinstance(value, (list, Mapping)):
        raise RowError(
            f"`{name}` begins like a list of messages, but is neither JSON nor Python's repr of one: {shown(start)}"
        )
    return None


def _of_repr(text: str) -> Any:
    """A list or an object that Python, or an array of NumPy in pandas' CSV, wrote; None where it is none."""
    if len(text) > LONGEST_REPR:
        return None
    for written in (text, _NO_COMMA.sub("},{", text)):
        array = _ARRAY.match(written)
        try:
            found = ast.literal_eval(array.group(1) if array else written)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        return found if isinstance(found, (list, dict)) else None
    return None


def _is_message(turn: Mapping[str, Any]) -> bool:
    role = turn.get("role", turn.get("from", turn.get("type")))
    return isinstance(role, str) and any(key in turn for key in ("content", "value", "kwargs", "parts"))


def _of_pairs(value: Sequence[Any], name: str) -> tuple[Message, ...]:
    """Pairs of role and text, or of what a user said and what was answered (None: not yet)."""
    if all(isinstance(role, str) and role.lower() in ROLES for role, _ in value):
        turns = [{"role": role.lower(), "content": text} for role, text in value]
        return tuple(_message(turn, f"{name}[{number}]") for number, turn in enumerate(turns))
    said: list[Message] = []
    for number, (asked, answer) in enumerate(value):
        for role, text in (("user", asked), ("assistant", answer)):
            if text is not None:
                said.append(Message(role=role, content=text_of(text, f"{name}[{number}]")))
    return tuple(said)


def _message(turn: Any, name: str, steps: bool = False) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"`{name}` must be a message with role and content, got {shown(turn)}")
    if turn.get("type") == "constructor" and isinstance(turn.get("kwargs"), Mapping):  # LangChain's serialised form
        kind = str((turn.get("id") or [""])[-1]).removesuffix("Chunk").removesuffix("Message").lower()
        turn = {"type": kind, **turn["kwargs"]}
    own = next((turn[key] for key in ("role", "from", "type") if isinstance(turn.get(key), str)), turn.get("role"))
    role = ROLES.get(own.lower()) if isinstance(own, str) else None
    if role is None:
        raise RowError(f"`{name}.role` must be one of {', '.join(list(ROLES)[:5])}, got {shown(own)}")
    key = next((key for key in ("content", "value", "parts") if turn.get(key) is not None), "content")
    content = turn.get(key)
    if isinstance(content, Mapping):
        content = [content]
    if isinstance(content, (list, tuple)):
        content = _joined(content, f"{name}.{key}", steps)
    elif content is None and steps:
        content = ""  # it only calls a tool
    if not steps and content in ("", None) and (turn.get("tool_calls") or turn.get("function_call")):
        raise RowError(f"`{name}` calls a tool and says nothing, which is not supported")
    return Message(role=role, content=text_of(content, f"{name}.{key}"))


def _joined(parts: Sequence[Any], name: str, steps: bool) -> str:
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(text_of(part, name))
        elif isinstance(part, Mapping) and part.get("type", "text") in TEXT_PARTS and part.get("text") is not None:
            texts.append(text_of(part["text"], name))
        elif not (steps and isinstance(part, Mapping) and part.get("type") in STEPS):
            raise RowError(f"`{name}` holds parts that are not text (images, audio), which is not supported")
    if not texts and not steps:
        raise RowError(f"`{name}` holds parts that are not text (images, audio), which is not supported")
    return "".join(texts)


def _after(turns: tuple[Message, ...], prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns that follow a prompt where they repeat it, with or without its system turns."""
    for shared in (prompt, tuple(turn for turn in prompt if turn["role"] not in ("system", "developer"))):
        if shared and len(turns) > len(shared) and turns[: len(shared)] == shared:
            return turns[len(shared) :]
    return turns
