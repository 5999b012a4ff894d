"""Texts of models and people as safe HTML, in which every piece of text knows its place in the source.

Markdown with HTML switched off, then a second check by nh3 (a port of ammonia): of tags, attributes and addresses only
those named here come through. Pictures are shown as their text, so that reading an answer calls nobody. Each run of
text is a `<span data-at="N">`, N being its offset in the source in characters: a selection on the page can be named by
offsets in the text that the model wrote.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

_TAGS = {
    "a",
    "blockquote",
    "br",
    "code",
    "em",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "li",
    "ol",
    "p",
    "pre",
    "s",
    "span",
    "strong",
    "table",
    "tbody",
    "td",
    "th",
    "thead",
    "tr",
    "ul",
}
_ATTRIBUTES = {"span": {"data-at"}, "a": {"href", "title"}, "ol": {"start"}}
_SCHEMES = {"http", "https", "mailto"}

_MOST_CHARACTERS = 20_000  # longer texts are shown as plain text: Markdown nests, and can be made to take its time


def render(text: str) -> str:
    """Markdown as HTML that runs nothing, loads nothing, and holds each piece of text with its offset in `text`."""
    if len(text) > _MOST_CHARACTERS:
        html = f'<pre><span data-at="0">{escape(text)}</span></pre>'
    else:
        tokens = _markdown.parse(text)
        _place(tokens, text)
        html = _markdown.renderer.render(tokens, _markdown.options, {})
    return nh3.clean(
        html, tags=_TAGS, attributes=_ATTRIBUTES, url_schemes=_SCHEMES, link_rel="noopener noreferrer nofollow"
    )


def sentences(text: str) -> list[tuple[int, int]]:
    """Where each sentence or line of `text` begins and ends, in characters, end exclusive; blank ones left out."""
    return [(found.start(), found.end()) for found in _SENTENCE.finditer(text)]


_SENTENCE = re.compile(r"[^\s](?:[^\r\n]*?[.!?。！？][\"'”’)\]]*(?=\s|$)|[^\r\n]*[^\s]|)")


class _Renderer(RendererHTML):
    """Writes the offsets; pictures become their text."""

    def text(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return _placed(tokens[idx])

    def code_inline(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return f"<code>{_placed(tokens[idx])}</code>"

    def code_block(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return f"<pre><code>{_placed(tokens[idx])}</code></pre>\n"

    def fence(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return f"<pre><code>{_placed(tokens[idx])}</code></pre>\n"

    def image(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return escape(f"[image: {tokens[idx].content}]")


_markdown = MarkdownIt("commonmark", {"html": False, "breaks": True}, renderer_cls=_Renderer)
_markdown.enable(["table", "strikethrough"])


def _placed(token: Token) -> str:
    """The token's text in spans that name its offsets; text that does not stand in the source (entities) has none."""
    pieces: list[tuple[str, int | None]] = token.meta.get("places") or [(token.content, None)]
    return "".join(escape(text) if at is None else f'<span data-at="{at}">{escape(text)}</span>' for text, at in pieces)


def _place(tokens: Sequence[Token], source: str) -> None:
    """Notes for each piece of text where it stands in the source: the first place after the piece before."""
    lines = [0, *(end.end() for end in _LINE_END.finditer(source)), len(source)]
    at, end = 0, len(source)
    for token in tokens:
        if token.map is not None and token.nesting >= 0:
            first, after = (lines[min(line, len(lines) - 1)] for line in token.map)
            at, end = max(at, first), max(after, first)
        if token.type == "inline":
            for child in token.children or []:
                if child.type in ("text", "code_inline"):
                    at = _find(child, source, at, end)
        elif token.type in ("fence", "code_block"):
            if token.type == "fence":
                at = next((found.end() for found in _LINE_END.finditer(source, at)), len(source))
            at = _find(token, source, at, end)


_LINE_END = re.compile(r"\r\n|\r|\n")
_MOST_SYNTAX = 12  # characters of it between two words of one run of text: escapes, an entity


def _find(token: Token, source: str, at: int, end: int) -> int:
    """Places a token's text, line by line (code in a list has lost its indentation); gives where the next begins."""
    places: list[tuple[str, int | None]] = []
    for line in re.findall(r"\n|[^\n]+", token.content):
        found = source.find(line, at, end)
        if line == "\n":
            places.append((line, None))
        elif found >= 0:
            places.append((line, found))
            at = found + len(line)
        else:  # an escape or an entity stands in it
            for word in re.findall(r"\s*\S+\s*", line):
                found = source.find(word, at, min(end, at + len(word) + _MOST_SYNTAX))
                places.append((word, found if found >= 0 else None))
                at = found + len(word) if found >= 0 else at
    token.meta["places"] = places
    return at
