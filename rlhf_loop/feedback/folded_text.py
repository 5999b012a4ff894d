"""A text as somebody who reads it sees it, for searching in it: without invisible signs, digits and dashes of one kind.

text = FoldedText("４１１１\\u00a01111…")
text.seen                       # "4111 1111…": what is searched
text.put([(0, 9)], "[CARD]")    # by places in `seen`
str(text)                       # the text, changed there alone
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_INVISIBLE = "\u200b"
_FILLERS = "\u115f\u1160\u17b4\u17b5\u3164\uffa0"  # letters that nobody sees
_OTHERS = dict(zip("\u2212\u2043\u207b\u2028\u2029\x85\u3002\uff61\xb7\u2022\u2027\u2219\u22c5\u2044\u2215",
                   "---\n\n\n.......//", strict=True))  # fmt: skip


class FoldedText:
    """`seen`: the text that is searched; `str()`: the text itself, with what was put into it."""

    def __init__(self, text: str):
        self.seen = text
        self._real: list[str] | None = None  # what each sign of `seen` is in the text; None: itself
        if text.isascii():
            return
        self.seen = text.translate(_FOLDED)
        if _INVISIBLE in self.seen:
            self._leave_out_invisible(text)
        elif self.seen != text:
            self._real = list(text)

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

    def _leave_out_invisible(self, text: str) -> None:
        """What is invisible belongs to the sign before it."""
        real: list[str] = []
        before = ""
        for sign, folded in zip(text, self.seen, strict=True):
            if folded != _INVISIBLE:
                real.append(before + sign)
                before = ""
            elif real:
                real[-1] += sign
            else:
                before += sign
        self.seen = self.seen.replace(_INVISIBLE, "")
        if not real:  # nothing is to be seen
            self.seen, real = text, list(text)
        self._real = real


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
