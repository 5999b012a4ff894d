"""Texts of models on a page: what they may do there, and where each piece of them stands."""

from __future__ import annotations

import html
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_loop.server.pages.markdown import render, sentences

EVERYTHING = """# Title *x*

Hello **bold** and `code` &amp; more, [a link](https://a.b "title") and ~~gone~~

1. one
   ```py
   x = 1
     y = 2
   ```
2. two: one

| a | b |
|---|---|
| one | two |

> a quotation\r
of two lines

line
break \\* esc 日本 🙂 end"""


def placed(text: str) -> list[tuple[int, str]]:
    return [
        (int(at), html.unescape(piece)) for at, piece in re.findall(r'data-at="(\d+)">(.*?)</span>', render(text), re.S)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[x](javascript:alert(1)) [y](  JaVaScRiPt:alert(1))",
        "[x](data:text/html;base64,PHNjcmlwdD4=)",
        "![p](http://elsewhere/x.png)",
        "<svg/onload=alert(1)>",
        '[a](https://x.y"onmouseover="alert(1))',
        "```<script>\nalert(1)\n```",
        "<style>*{display:none}</style>",
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "<a href='//evil'>x</a>\n<form action=/login><input name=token>",
    ],
)
def test_nothing_in_a_text_runs_or_loads(text: str) -> None:
    shown = render(text)
    tags = set(re.findall(r"<\s*/?\s*([a-zA-Z0-9]+)", shown))
    assert tags <= {"p", "span", "a", "pre", "code", "br"}, shown
    assert not re.search(r"<[^>]*\s(on\w+|style|src)\s*=", shown), shown
    assert all(address.startswith("https://") for address in re.findall(r'href="([^"]*)"', shown)), shown


def test_markdown_is_formatted() -> None:
    shown = render(EVERYTHING)
    for tag in ("h1", "em", "strong", "code", "ol", "li", "pre", "table", "td", "blockquote", "br", "s", "a"):
        assert f"<{tag}" in shown, tag


def test_every_piece_of_text_names_its_place_in_the_source() -> None:
    pieces = placed(EVERYTHING)
    for at, piece in pieces:
        assert EVERYTHING[at : at + len(piece)] == piece
    found = "".join(piece for _, piece in pieces)
    for words in ("Title", "bold", "x = 1", "  y = 2", "two: one", "two", "of two lines", "esc 日本 🙂 end", "gone"):
        assert words in found, words
    assert [at for at, _ in pieces] == sorted(at for at, _ in pieces)


@given(st.text(alphabet=st.sampled_from("ab *_`#>[]()!&;<\\|-1.\n\r\t~é🙂"), max_size=60))
def test_places_are_right_whatever_the_text_is(text: str) -> None:
    for at, piece in placed(text):
        assert text[at : at + len(piece)] == piece


def test_a_very_long_text_is_shown_plain_and_soon() -> None:
    text = "[" * 200_000
    assert placed(text) == [(0, text)]


@given(st.text(max_size=200))
def test_sentences_cover_all_that_is_not_blank(text: str) -> None:
    found = sentences(text)
    assert all(a < b for a, b in found)
    assert all(b <= c for (_, b), (c, _) in pairwise(found))
    covered = "".join(text[a:b] for a, b in found)
    assert "".join(covered.split()) == "".join(text.split())


def test_sentences_end_at_full_stops_and_lines() -> None:
    text = 'Hi there. "Ok?" yes\n- a point\n\nVersion 1.5 is out! End'
    assert [text[a:b] for a, b in sentences(text)] == [
        "Hi there.", '"Ok?"', "yes", "- a point", "Version 1.5 is out!", "End",
    ]  # fmt: skip
