"""A JSON file that is one list, read element by element: it may be larger than memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_DECODER = json.JSONDecoder()


class Elements:
    """The elements of a JSON list that comes in pieces of text, one by one; none may have more than `limit` characters.

    Raises `ValueError` where it is no such list, and `RecursionError` where it is nested too deeply.
    """

    def __init__(self, texts: Iterator[str], limit: int):
        self.texts = texts
        self.limit = limit
        self.held = ""
        self.at = 0
        self.ended = False

    def __iter__(self) -> Iterator[Any]:
        self._next_is("[")
        if self._peek() == "]":
            return
        while True:
            yield self._element()
            if self._peek() == "]":
                self.at += 1
                if self._peek():
                    raise ValueError("there is text after the end of the list")
                return
            self._next_is(",")

    def whole(self) -> dict[str, Any]:
        """All of it as one object."""
        while not self.ended:
            self._more(self.limit)
            if len(self.held) > 8 * self.limit:
                raise ValueError(f"an object of more than {8 * self.limit >> 20} MiB; write it as JSON Lines")
        values = _DECODER.decode(self.held)
        if not isinstance(values, dict):
            raise ValueError(f"this is {name_of(values)}")
        return values

    def rest(self) -> str:
        """The text where reading stopped, for the quarantine."""
        return self.held[self.at :]

    def _element(self) -> Any:
        self._peek()
        piece = 1 << 16
        while True:
            try:
                value, end = _DECODER.raw_decode(self.held, self.at)
                if end < len(self.held) or self.ended:  # else a number might go on
                    self.at = end
                    return value
            except (json.JSONDecodeError, StopIteration):
                if self.ended:
                    raise
            if len(self.held) - self.at > self.limit:
                raise ValueError(f"an element of more than {self.limit >> 20} MiB")
            self._more(piece)
            piece *= 2

    def _peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self.at < len(self.held):
                if not self.held[self.at].isspace():
                    return self.held[self.at]
                self.at += 1
            if self.ended:
                return ""
            self._more(1 << 16)

    def _next_is(self, wanted: str) -> None:
        found = self._peek()
        if found != wanted:
            raise ValueError(f"`{wanted}` is missing" + (f" before `{found}`" if found else " at the end of the file"))
        self.at += 1

    def _more(self, characters: int) -> None:
        pieces = [self.held[self.at :]]
        self.at = 0
        while characters > 0:
            text = next(self.texts, None)
            if text is None:
                self.ended = True
                break
            pieces.append(text)
            characters -= len(text)
        self.held = "".join(pieces)


def name_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null", int: "a number"}
    return names.get(type(value), "a number")
