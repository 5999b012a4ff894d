"""The sentiment of an answer by the VADER lexicon, as a reward; works in TRL's trainers too."""

from functools import cache


def vader(completions, **columns):
    """VADER's compound score of each completion: -1 (negative) to 1 (positive), 0 where it knows no word of it."""
    score = _analyzer().polarity_scores
    return [score(text if isinstance(text, str) else text[-1]["content"])["compound"] for text in completions]


@cache
def _analyzer():
    """Its 7,500 words are read once."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ImportError('the VADER lexicon is not installed: `pip install "rlhf-loop[vader]"`') from error
    return SentimentIntensityAnalyzer()
