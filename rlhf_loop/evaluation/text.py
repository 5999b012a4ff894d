"""What can be measured on the text of answers alone: length, variety, repetition."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rlhf_loop.ngrams import distinct_share as distinct
from rlhf_loop.ngrams import ngrams, tokenize
from rlhf_loop.records import Completion


def length(completions: Sequence[Completion]) -> dict[str, float]:
    """`{words, tokens, finished}`: mean words and tokens an answer, and the share that ended by itself."""
    number = max(len(completions), 1)
    return {
        "words": sum(len(c.text.split()) for c in completions) / number,
        "tokens": sum(c.tokens for c in completions) / number,
        "finished": sum(c.finish_reason == "stop" for c in completions) / number,
    }


def diversity(texts: Sequence[str]) -> dict[str, float | None]:
    """`{distinct_1, distinct_2, distinct_3, self_bleu, repeated_4grams, empty}`; None where there is too little text.

    All but `repeated_4grams` depend on how many texts there are: compare only sets of the same size.
    """
    return {
        **{f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)},
        "self_bleu": self_bleu(texts),
        "repeated_4grams": repeated_ngrams(texts, 4),
        "empty": sum(not text.strip() for text in texts) / max(len(texts), 1),
    }


def repeated_ngrams(texts: Sequence[str], n: int = 4) -> float | None:
    """The share of n-grams that stood earlier in the same text, over all texts: 0 none, near 1 a stuck model."""
    counts = [Counter(ngrams(tokenize(text), n)) for text in texts]
    total = sum(count.total() for count in counts)
    return 1 - sum(len(count) for count in counts) / total if total else None


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
