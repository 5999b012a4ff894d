"""Words and runs of them: how much of one text stands in others, and how varied texts are."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

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


def self_bleu(texts: Sequence[str], max_n: int = 4) -> float | None:
    """Mean BLEU of each text against all others, 0..1; high means that the texts are alike (Zhu et al. 2018, Texygen).

    Sentence BLEU (Papineni et al. 2002) with uniform weights over the orders that the text is long enough for, the
    brevity penalty against the closest length, and 0.1 for an order without a match (Chen and Cherry 2014, method 1).
    Texts without a word are left out (`diversity` counts them); None for fewer than two.
    """
    words = [tokens for text in texts if (tokens := tokenize(text))]
    if len(words) < 2:
        return None
    grams = [[Counter(ngrams(tokens, n)) for n in range(1, max_n + 1)] for tokens in words]
    clips = [_best_two(order) for order in zip(*grams, strict=True)]
    lengths = Counter(len(tokens) for tokens in words)
    return sum(_bleu(i, len(words[i]), grams[i], clips, lengths) for i in range(len(words))) / len(words)


def _best_two(counts: Sequence[Counter[Any]]) -> dict[Any, tuple[int, int, int]]:
    """For each n-gram: its highest count in one text, that text, and the highest count in any other.

    With it, clipping against all other texts takes time linear in the text, not quadratic in the number of texts.
    """
    best: dict[Any, tuple[int, int, int]] = {}
    for i, count in enumerate(counts):
        for gram, number in count.items():
            first, owner, second = best.get(gram, (0, -1, 0))
            best[gram] = (number, i, first) if number > first else (first, owner, max(second, number))
    return best


def _bleu(
    index: int,
    size: int,
    grams: Sequence[Counter[Any]],
    clips: Sequence[dict[Any, tuple[int, int, int]]],
    lengths: Counter[int],
) -> float:
    logs = []
    for count, clip in zip(grams, clips, strict=True):
        if not count:
            break
        matched = 0
        for gram, number in count.items():
            first, owner, second = clip[gram]
            matched += min(number, second if owner == index else first)
        logs.append(math.log((matched or 0.1) / count.total()))
    others = [length for length, number in lengths.items() if number - (length == size) > 0]
    closest = min(others, key=lambda length: (abs(length - size), length))
    brevity = min(0.0, 1 - closest / size)
    return math.exp(brevity + sum(logs) / len(logs))
