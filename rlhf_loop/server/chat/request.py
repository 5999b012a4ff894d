"""What applications send to be answered: a request of OpenAI's API, and which of it asks for something.

Clients send many fields that ask for nothing: null, an empty list, what the API does anyway. These are taken. What asks
for something beyond text is for a server that knows it (`--upstream`); a policy of our own refuses it by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rlhf_loop.feedback.store.table_rows import storable
from rlhf_loop.records import Message
from rlhf_loop.server.chat.answers import Conversation
from rlhf_loop.server.types import Number, Whole

PROMOTED = "promoted"
"""The name of whichever policy is promoted, for `model`."""

Yes = Annotated[bool, Strict()]
Text = Annotated[str, StringConstraints(max_length=200_000)]
Stop = Annotated[str, StringConstraints(max_length=100)]

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "best_of": (1,),
    "continue_final_message": (False,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logprobs": (False,),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "parallel_tool_calls": (False, True),
    "presence_penalty": (0,),
    "reasoning_effort": ("none", "medium"),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "store": (False, True),  # answers are stored in any case, here
    "tool_choice": ("none", "auto"),
    "top_logprobs": (0,),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
}
"""Field -> values with which it asks for what a policy of our own does anyway."""

UNREAD = ("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "keep_alive")
"""Fields that no answer depends on, whatever they say."""

READ_BY_THE_MODEL = ("tools", "functions", "documents", "chat_template", "chat_template_kwargs", "web_search_options")
"""Fields that another server puts before the model beside the messages, so that these alone are not what it read."""

_UNREAD_OF_A_TURN = ("name", "annotations", "refusal", "id", "cache_control", "created_at", "createdAt", "timestamp")
"""Of a message: chat templates have no place for names, and no answer depends on the others."""


class Part(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="allow")
    type: str = Field(description="`text`; others are for another server")
    text: Text | None = None

    @property
    def said(self) -> str | None:
        """Its text; None where it is something else."""
        if self.type == "refusal":
            return str((self.model_extra or {}).get("refusal", ""))
        return (self.text or "") if self.type in ("text", "input_text", "output_text") else None


class Turn(BaseModel):
    """A message of a conversation, also as a client wrote down the answer that it got."""

    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[Part] | None = Field(None, validate_default=True)

    @field_validator("content")
    @classmethod
    def _says_something(cls, content: Any, others: ValidationInfo) -> Any:
        if content is None and others.data.get("role") != "assistant":
            raise ValueError("give a text, or a list of parts; only an assistant's may be null")
        return content

    def message(self) -> Message:
        """As the loop keeps it, all in one text."""
        values = self._asked()
        if isinstance(self.content, list):
            values["content"] = "".join(_kept(part) for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text_of(values))

    def beyond_text(self) -> str | None:
        """The name of what is not plain text in it; None where all is."""
        if self.role in ("tool", "function"):
            return "role"
        parts = self.content if isinstance(self.content, list) else ()
        strange = next((n for n, part in enumerate(parts) if part.said is None), None)
        if strange is not None:
            return f"content.{strange}.type"
        return next((name for name in self._asked() if name not in ("role", "content", *_UNREAD_OF_A_TURN)), None)

    def relayed(self) -> dict[str, Any]:
        """For another server: as it came, but for what asks for nothing."""
        values = self._asked()
        if self.content is None and not any(values.get(name) for name in ("tool_calls", "function_call", "audio")):
            values["content"] = ""
        return {**values, "role": "system" if self.role == "developer" else self.role}

    def _asked(self) -> dict[str, Any]:
        values = self.model_dump(exclude_unset=True)
        return {name: value for name, value in values.items() if name in ("role", "content") or not is_empty(value)}


class StreamOptions(BaseModel):
    """How to stream."""

    model_config = ConfigDict(extra="allow")
    include_usage: Yes | None = False


class ChatRequest(BaseModel):
    """A request for an answer. Further fields of OpenAI's API are for another server; see the documentation."""

    model_config = ConfigDict(extra="allow")
    model: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        PROMOTED, description="`promoted`, or the id of the policy that is promoted"
    )
    messages: list[Turn] = Field(min_length=1, max_length=500)
    n: Annotated[Whole, Field(ge=1, le=8)] | None = Field(1, description="how many answers")
    stream: Yes | None = False
    stream_options: StreamOptions | None = None
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, ge=0, le=1)
    top_k: Whole | None = Field(None, ge=-1, description="0 and -1: all tokens")
    max_tokens: Whole | None = Field(None, ge=1)
    max_completion_tokens: Whole | None = Field(None, ge=1, description="goes before `max_tokens`")
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: Whole | None = None
    user: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        None, description="the application's name for its user; kept as a keyed hash"
    )
    metadata: dict[str, Any] | None = Field(
        None, max_length=16, description="`conversation_id` and `tags` (words with commas) are used"
    )

    @model_validator(mode="after")
    def _ends_with_a_question(self) -> ChatRequest:
        if self.messages[-1].role == "assistant":
            raise ValueError("messages: the last one is the assistant's; it must be the one to answer")
        return self

    @model_validator(mode="after")
    def _is_tagged_in_words(self) -> ChatRequest:
        tags, name = self._metadata("tags"), self._metadata("conversation_id")
        if tags is not None and not all(isinstance(word, str) for word in (tags if isinstance(tags, list) else [tags])):
            raise ValueError("metadata.tags: give words with commas, or a list of words")
        if name is not None and not isinstance(name, str | int | float):
            raise ValueError("metadata.conversation_id: give a text or a number")
        return self

    def conversation(self) -> Conversation:
        """What of it the store keeps."""
        tags, name = self._metadata("tags"), self._metadata("conversation_id")
        words = tags if isinstance(tags, list) else (tags or "").split(",")
        asked = self.asked()
        beyond: dict[str, Any] = {name: asked[name] for name in READ_BY_THE_MODEL if name in asked}
        if any(turn.beyond_text() for turn in self.messages):
            beyond["messages"] = "more than text"
        return Conversation(
            messages=tuple(turn.message() for turn in self.messages),
            user=self.user or None,
            name=None if name is None else storable(str(name)),
            tags=tuple(storable(word) for part in words[:20] if (word := part.strip()[:100])),
            beyond=beyond,
        )

    def asked(self) -> dict[str, Any]:
        """The fields beyond those above that ask for something."""
        fields = {name: value for name, value in (self.model_extra or {}).items() if not is_empty(value)}
        for choice, tools in (
            ("tool_choice", "tools"),
            ("parallel_tool_calls", "tools"),
            ("function_call", "functions"),
        ):
            if tools not in fields and is_neutral(choice, fields.get(choice)):
                fields.pop(choice, None)  # without tools; some servers would refuse it
        return fields

    def unsupported(self) -> str | None:
        """The name of what a policy of our own cannot do; None where it can do all."""
        for number, turn in enumerate(self.messages):
            if (name := turn.beyond_text()) is not None:
                return f"messages.{number}.{name}"
        asked = self.asked()
        unused = {"tools": asked.get("tool_choice") == "none", "functions": asked.get("function_call") == "none"}
        for name, value in sorted(asked.items(), key=lambda field: field[0] == "tool_choice"):  # tools, rather
            if not (name in UNREAD or unused.get(name) or is_neutral(name, value)):
                return name
        return None

    def relayed(self, system: str | None) -> dict[str, Any]:
        """What another server is asked beyond the fields of `Ask`; `system`: what the run says before all else."""
        messages = [turn.relayed() for turn in self.messages]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        length = self.max_completion_tokens
        return self.asked() | {"messages": messages} | ({"max_completion_tokens": length} if length else {})

    def _metadata(self, name: str) -> Any:
        return (self.metadata or {}).get(name)


def text_of(message: Mapping[str, Any], thought: bool = False) -> str:
    """All that a message of OpenAI's API says, as one text: tool calls, and what is no text, as JSON.

    `thought`: with the reasoning that some servers give apart, between the tags that most models write themselves.
    """
    content, audio = message.get("content"), message.get("audio")
    reasoning = message.get("reasoning_content") or message.get("reasoning") if thought else None
    text = f"<think>\n{reasoning.strip()}\n</think>\n\n" if isinstance(reasoning, str) else ""
    if isinstance(content, list):
        content = "".join(_kept(Part.model_validate(part)) for part in content)
    said = content or message.get("refusal") or (audio.get("transcript") if isinstance(audio, dict) else None) or ""
    calls = {name: message[name] for name in ("tool_calls", "function_call") if message.get(name)}
    return text + said + (("\n" if said else "") + json.dumps(calls, ensure_ascii=False) if calls else "")


def _kept(part: Part) -> str:
    """A part as it is kept: of an image, a sound or a file its address, or what it can be told by."""
    if part.said is not None:
        return part.said
    return json.dumps({"type": part.type, **_shortened(part.model_extra or {})}, ensure_ascii=False)


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shortened(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    if isinstance(value, str) and len(value) > 500:
        return f"sha256:{hashlib.sha256(value.encode('utf-8', 'replace')).hexdigest()}"
    return value


def is_empty(value: Any) -> bool:
    """Whether a field's value asks for nothing, whatever field it is."""
    return value is None or value in ([], {}, "")


def is_neutral(name: str, value: Any, neutral: Mapping[str, tuple[Any, ...]] = NEUTRAL) -> bool:
    """Whether a field with this value asks for what is done anyway."""
    if name == "logit_bias" and isinstance(value, dict):
        return not any(value.values())
    same = (value == given and isinstance(value, bool) == isinstance(given, bool) for given in neutral.get(name, ()))
    return any(same)
