"""What can be measured on the text of answers alone: length, variety, repetition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rlhf_loop.ngrams import distinct_share as distinct
from rlhf_loop.ngrams import ngrams, self_bleu, shared, tokenize
from rlhf_loop.records import Completion
from rlhf_loop.resampling import grouped_mean


def word_counts(completions: Sequence[Completion]) -> list[int]:
    """How many words each answer has."""
    return [len(c.text.split()) for c in completions]


def length(completions: Sequence[Completion]) -> dict[str, float]:
    """`{words, tokens, finished}`: mean words and tokens an answer, and the share that ended by itself."""
    number = max(len(completions), 1)
    return {
        "words": sum(word_counts(completions)) / number,
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


def collapse(
    ours: Sequence[Completion], base: Sequence[Completion], previous: Sequence[Completion], seed: int = 0
) -> dict[str, Any]:
    """`{distinct_2_ratio, overlap}`: what shows that a policy says the same to everything, or the same as before.

    All three hold the same samples of the same prompts, in the same order. `distinct_2_ratio`: different word pairs
    over all word pairs, over the base's; of two answers the longer one is cut, as of longer texts a smaller share is
    different. `overlap`: `{mean, low, high, n}`, the share of an answer's 4-grams that stand in the previous policy's
    answer. None where there is too little text.
    """
    mine, theirs = [], []
    for one, other in zip(ours, base, strict=True):
        words, base_words = tokenize(one.text), tokenize(other.text)
        size = min(len(words), len(base_words))
        mine.append(words[:size])
        theirs.append(base_words[:size])
    ratio = [_distinct_pairs(answers) for answers in (mine, theirs)]
    overlaps = [
        (share, one.prompt_id)
        for one, other in zip(ours, previous, strict=True)
        if (share := shared(one.text, [other.text], 4)) is not None
    ]
    values, groups = [value for value, _ in overlaps], [prompt for _, prompt in overlaps]
    return {
        "distinct_2_ratio": ratio[0] / ratio[1] if ratio[0] is not None and ratio[1] else None,
        "overlap": grouped_mean(values, groups, seed=seed),
    }


def _distinct_pairs(answers: Sequence[Sequence[str]]) -> float | None:
    grams = Counter(pair for words in answers for pair in ngrams(words, 2))
    return len(grams) / grams.total() if grams else None
