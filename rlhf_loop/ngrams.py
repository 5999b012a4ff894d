"""Words and runs of them, and how much of one text stands in others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

Gram = tuple[str, ...]

_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def tokenize(text: str) -> list[str]:
    """Lower-case words and single punctuation marks."""
    return _WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int) -> list[Gram]:
    """All runs of `n` tokens, in order."""
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def shared(text: str, others: Iterable[str], n: int) -> float | None:
    """The share of a text's `n`-grams, repeated ones counted as often, that stand in any of `others`: 0..1.

    None where the text is shorter than `n` words.
    """
    mine = ngrams(tokenize(text), n)
    if not mine:
        return None
    theirs = {gram for other in others for gram in ngrams(tokenize(other), n)}
    return sum(gram in theirs for gram in mine) / len(mine)


def alike(one: str, other: str, n: int = 3) -> float:
    """How alike two texts are, 0..1: Jaccard's similarity of their sets of `n`-grams (Broder 1997), of shorter runs
    where one of them has fewer words; 1 for two that are the same but for case and spaces."""
    first, second = tokenize(one), tokenize(other)
    size = min(n, len(first), len(second))
    if size == 0:
        return float(first == second)
    mine, theirs = set(ngrams(first, size)), set(ngrams(second, size))
    return len(mine & theirs) / len(mine | theirs)


def distinct_share(texts: Iterable[str], n: int) -> float | None:
    """Different n-grams over all n-grams of all texts, 0..1 (Li et al. 2016); None when there are none."""
    grams = Counter(gram for text in texts for gram in ngrams(tokenize(text), n))
    return len(grams) / grams.total() if grams else None
