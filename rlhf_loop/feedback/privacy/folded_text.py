"""A text as somebody who reads it sees it, for searching in it: without invisible signs, digits and dashes of one kind.

text = FoldedText("４１１１\\u00a01111…")
text.seen                       # "4111 1111…": what is searched
text.put([(0, 9)], "[CARD]")    # by places in `seen`
str(text)                       # the text, changed there alone
"""

from __future__ import annotations

import html
import re
import sys
import unicodedata
from collections.abc import Sequence

_INVISIBLE = "\u200b"
_FILLERS = "\u115f\u1160\u17b4\u17b5\u3164\uffa0"  # letters that nobody sees
_OTHERS = dict(
    zip(
        "\u2212\u2043\u207b\u2028\u2029\x85\u3002\uff61\xb7\u2022\u2027\u2219\u22c5\u2044\u2215\u2800",
        "---\n\n\n.......// ",
        strict=True,
    )
)


class FoldedText:
    """`seen`: the text that is searched; `str()`: the text itself, with what was put into it."""

    def __init__(self, text: str):
        self.seen = text
        self._real: list[str] | None = None  # what each sign of `seen` is in the text; None: itself
        if _ESCAPE.search(text):
            self._read_escapes(text)
        if not self.seen.isascii():
            plain, self.seen = self.seen, self.seen.translate(_FOLDED)
            if self.seen != plain or _INVISIBLE in plain:
                self._real = self._real or list(text)
                self._leave_out_invisible()

    def __str__(self) -> str:
        return self.seen if self._real is None else "".join(self._real)

    def put(self, spans: Sequence[tuple[int, int]], word: str) -> None:
        """Puts `word` in place of each span of `seen`; the spans are in order and do not overlap."""
        seen, real, last = [], [], 0
        for start, end in spans:
            seen += [self.seen[last:start], word]
            if self._real is not None:
                real += [*self._real[last:start], *word]
            last = end
        if self._real is not None:
            self._real = real + self._real[last:]
        self.seen = "".join([*seen, self.seen[last:]])

    def _read_escapes(self, text: str) -> None:
        """An escape is the sign that it stands for."""
        seen: list[str] = []
        self._real = []
        last = 0
        for match in _ESCAPE.finditer(text):
            sign = _unescaped(match)
            if sign is not None:
                seen += [*text[last : match.start()], sign]
                self._real += [*text[last : match.start()], match.group()]
                last = match.end()
        self.seen = "".join([*seen, text[last:]])
        self._real += text[last:]

    def _leave_out_invisible(self) -> None:
        """What is invisible belongs to the sign before it."""
        if _INVISIBLE not in self.seen:
            return
        real: list[str] = []
        before = ""
        for sign, folded in zip(self._real or (), self.seen, strict=True):
            if folded != _INVISIBLE:
                real.append(before + sign)
                before = ""
            elif real:
                real[-1] += sign
            else:
                before += sign
        if real:  # else nothing is to be seen
            self.seen, self._real = self.seen.replace(_INVISIBLE, ""), real


_ESCAPE = re.compile(
    r"\\+u(?P<json>[0-9a-f]{4})|&#(?P<number>[0-9]{1,7});|&#x(?P<hex>[0-9a-f]{1,6});"
    r"|&(?P<name>nbsp|commat|period|hyphen|ensp|emsp|thinsp|num|plus|sol|colon|shy|zwnj|zwj);|%(?P<url>[2-7][0-9a-f])",
    re.IGNORECASE,
)
"""Escapes of JSON (also of JSON within JSON), HTML and URLs, of one sign each."""


def _unescaped(match: re.Match[str]) -> str | None:
    if match["name"]:
        return html.unescape(match.group().lower())
    digits = match["json"] or match["hex"] or match["url"]
    code = int(digits, 16) if digits else int(match["number"])
    return chr(code) if code <= sys.maxunicode else None


class _Folding(dict[int, str]):
    """One sign for those that look alike, made when first asked for."""

    def __missing__(self, code: int) -> str:
        self[code] = _fold(chr(code))
        return self[code]


def _fold(sign: str) -> str:
    """Digits of all scripts, dashes, spaces, full-width and mathematical letters become those of ASCII; raised and
    lowered ones do not, which stand for powers and notes. Marks on letters are invisible: a letter may be written with
    its mark or as two signs."""
    if sign.isascii():
        return sign
    kind = unicodedata.category(sign)
    if kind in ("Cf", "Mn", "Mc", "Me") or sign in _FILLERS:
        return _INVISIBLE
    if kind == "Nd":
        return str(unicodedata.decimal(sign))
    if kind in ("Pd", "Zs"):
        return "-" if kind == "Pd" else " "
    if sign in _OTHERS:
        return _OTHERS[sign]
    plain = unicodedata.normalize("NFKC", sign)
    raised = unicodedata.decomposition(sign).startswith(("<super>", "<sub>"))
    return plain if len(plain) == 1 and plain.isascii() and plain.isprintable() and not raised else sign


_FOLDED = _Folding()
