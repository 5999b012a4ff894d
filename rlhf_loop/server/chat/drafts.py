"""An answer of OpenAI's API put together from the bits that it comes in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_loop.server.chat.answers import Choice
from rlhf_loop.server.chat.engine import Delta
from rlhf_loop.server.chat.request import text_of

_ONCE = ("id", "name", "role", "type")  # come whole, and perhaps again; all other texts go on


class Draft:
    """One choice of an answer while it is written."""

    def __init__(self) -> None:
        self.message: dict[str, Any] = {}
        self.fields: dict[str, Any] = {"logprobs": None}  # of the choice, beside its message
        self.end: Delta | None = None
        self._reason: str | None = None

    @property
    def begun(self) -> bool:
        """Whether it says anything yet."""
        return any(value for name, value in self.message.items() if name != "role")

    def add(self, delta: Delta) -> None:
        """A bit more of it."""
        if delta.raw is None:
            add_delta(self.message, {"role": "assistant", "content": delta.text})
        else:
            add_delta(self.message, delta_of(delta.raw))
            add_delta(self.fields, fields_of(delta.raw))
        if delta.finish is not None:
            self.end, self._reason = delta, (delta.raw or {}).get("finish_reason") or delta.finish

    def choice(self, tokens: int | None = None) -> Choice:
        """The choice, when it is whole; `tokens`: how many it has, where that is known better."""
        assert self.end is not None
        assert self.end.finish is not None
        message = {"role": "assistant", "content": None, **self.message}
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls]
        return Choice(
            text=text_of(message, thought=True),
            finish=self.end.finish,
            tokens=self.end.tokens if tokens is None else tokens,
            token_ids=self.end.token_ids,
            values={**self.fields, "message": message, "finish_reason": self._reason},
        )


def delta_of(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a choice of a stream, or of a whole answer, says more."""
    delta = dict(raw.get("delta") or raw.get("message") or {})
    if "message" in raw and delta.get("tool_calls"):
        delta["tool_calls"] = [{"index": number, **call} for number, call in enumerate(delta["tool_calls"])]
    return delta


def fields_of(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a choice has beside its message and its end, such as `logprobs`."""
    return {k: v for k, v in raw.items() if k not in ("index", "delta", "message", "finish_reason")}


def add_delta(whole: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Adds to `whole`: texts and lists go on, dictionaries are added to, calls of tools by their `index`."""
    for name, value in delta.items():
        old = whole.get(name)
        if value is None or old is None:
            if name == "tool_calls" and value:
                whole[name] = []
                _add_calls(whole[name], value)
            elif old is None:
                whole[name] = dict(value) if isinstance(value, dict) else value
        elif name == "tool_calls":
            _add_calls(old, value)
        elif type(old) is type(value) and isinstance(value, str | list) and name not in _ONCE:
            whole[name] = old + value
        elif isinstance(old, dict) and isinstance(value, dict):
            add_delta(old, value)
        else:
            whole[name] = value or old


def _add_calls(calls: list[dict[str, Any]], more: list[dict[str, Any]]) -> None:
    for call in more:
        index = call.get("index")
        same = next((c for c in calls if c.get("index") == index), None) if index is not None else None
        if same is None:
            calls.append({})
            same = calls[-1]
        add_delta(same, call)
