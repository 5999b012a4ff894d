"""What the simulated annotator judges by: documented, deterministic rules without noise.

A rule looks at the request, the answer and whether the answer was finished (or cut off at the length limit), and
says how good it is, what that is made of, and what to do about each weak part. Rules read English.
To add one: a function here, and a line in `RULES`.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from rlhf_loop.annotators.english import (
    FUNCTION_WORDS,
    REQUEST_WORDS,
    content_words,
    ends_as_sentence,
    impossible_steps,
    sentences_of,
    stem,
    words_of,
)

FEWEST_WORDS, MOST_WORDS = 12, 45
"""What `brief_and_complete` calls brief: about what one look at a phone takes in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleResult:
    """A judgement: 1 is an answer without a fault, 0 one without worth."""

    value: float
    parts: dict[str, float]  # each 0..1
    advice: tuple[str, ...]  # what to do about each weak part, the costliest first


Rule = Callable[[str, str, bool], RuleResult]
"""(request, answer, finished) -> judgement."""


def brief_and_complete(prompt: str, completion: str, finished: bool) -> RuleResult:
    """For a chat application on a small screen: a complete, brief, plain answer to what was asked.

    Eight parts, each 0..1, multiply:  value = prod_i (f_i + (1 - f_i) part_i),  so that each fault costs its share
    whatever the other parts are and no strength makes up for it. The floors f_i are in `_FLOORS`.

    - complete: it stopped by itself, at the end of a sentence
    - brief: 12 to 45 words; fewer fall in proportion, more as 1 / (1 + ((words - 45) / 15)^2)
    - on_topic: takes up a third (at most 3) of the request's content words; more of them earn nothing
    - original: says something of its own instead of giving the request back
    - varied: no sentence, three-word phrase or single content word over and over
    - direct: no "Sure!", no "As an AI", no apology or offer of more help, no repeating of the question
    - plain: prose; no lists, headings, marks of formatting or capitals
    - readable: the words stand as in sentences: a natural share of grammar words, sentences of natural length,
      hardly any neighbours that English does not allow, ordinary spellings

    An answer without words scores 0. What the rule cannot see: whether the answer is true, kind or useful.
    """
    words = words_of(completion)
    if not words:
        return RuleResult(value=0.0, parts=dict.fromkeys(_FLOORS, 0.0), advice=("It is empty: answer the request.",))
    request = words_of(prompt)
    judgements = {
        "complete": _complete(completion, words, finished),
        "brief": _brief(words),
        "on_topic": _on_topic(request, words, prompt),
        "original": _original(request, words, prompt),
        "varied": _varied(completion, words),
        "direct": _direct(request, completion, prompt),
        "plain": _plain(completion, words),
        "readable": _readable(completion, words),
    }
    value, costs = 1.0, {}
    for name, (part, _) in judgements.items():
        factor = _FLOORS[name] + (1 - _FLOORS[name]) * part
        value *= factor
        costs[name] = factor
    weak = sorted((name for name in costs if costs[name] < _WEAK), key=lambda name: costs[name])
    return RuleResult(
        value=value,
        parts={name: part for name, (part, _) in judgements.items()},
        advice=tuple(_wording(judgements[name][1], completion) for name in weak),
    )


RULES: dict[str, Rule] = {"brief_and_complete": brief_and_complete}
"""Rules by the name a recipe gives."""

_FLOORS = {
    "complete": 0.45,
    "brief": 0.3,
    "on_topic": 0.3,
    "original": 0.1,
    "varied": 0.3,
    "direct": 0.35,
    "plain": 0.3,
    "readable": 0.05,
}
_LONGEST_QUOTE = 60  # characters of an answer that advice quotes
_WEAK = 0.85  # a part that costs more than 15 percent is worth a word of advice

_Judgement = tuple[float, tuple[str, ...]]  # how good, and ways to say what to do about it


def _complete(text: str, words: list[str], finished: bool) -> _Judgement:
    end = " ".join(text.split()[-4:])[-_LONGEST_QUOTE:]
    if not finished and ends_as_sentence(text):
        return 0.25, (
            f"It was still going on after {len(words)} words: stop when the point is made.",
            f"{len(words)} words and no end in sight: say the main point and stop.",
        )
    if not finished:
        return 0.0, (
            f'It is cut off at "{end}": finish the thought within 40 words.',
            f'It never gets to an end (the last words are "{end}"): say the main point and close the sentence.',
            f'It stops in the middle, at "{end}": plan for two short sentences and finish both.',
        )
    return (1.0 if ends_as_sentence(text) else 0.4), (
        f'The last sentence has no end ("{end}"): close it with a full stop.',
        f'It trails off at "{end}": end with a whole sentence.',
    )


def _brief(words: list[str]) -> _Judgement:
    n = len(words)
    if n < FEWEST_WORDS:
        return n / FEWEST_WORDS, (
            f"At {n} {_plural('word', n)} it says too little: add one sentence with a reason or an example.",
            f"It is over after {n} {_plural('word', n)}: give a full answer of one or two sentences.",
        )
    over = max(0, n - MOST_WORDS)
    return 1 / (1 + (over / 15) ** 2), (
        f"{n} words are too many for a small screen: cut it to {MOST_WORDS} or fewer.",
        f"It is too long ({n} words): keep the main point and drop the rest.",
    )


def _on_topic(request: list[str], words: list[str], prompt: str) -> _Judgement:
    topic = _topic(request)
    if not topic:
        return 1.0, ()
    said = {stem(word) for word in words}
    missing = [word for key, word in topic.items() if not _says(said, key)]
    if _gives_text(prompt):  # reworded text may share few of its words
        part = 1.0 if len(missing) < len(topic) else 0.5
    else:
        part = min(1.0, (len(topic) - len(missing)) / min(3, max(1, round(0.35 * len(topic)))))
    if part > 0.9:
        return part, ()
    about = max(missing, key=lambda word: (not word.endswith(("ly", "ing", "ed")), len(word)), default="")
    if len(missing) < len(topic):
        return part, (
            f'It takes up only half of the request: bring in "{about}" too.',
            f'It leaves out "{about}", which was asked about as well: add it.',
        )
    return part, (
        f'It never mentions "{about}", which the request is about: answer that directly.',
        f'It wanders away from the request: say something about "{about}".',
        f'Come to the point that was asked: nothing here is about "{about}".',
    )


def _original(request: list[str], words: list[str], prompt: str) -> _Judgement:
    known = {stem(word) for word in request}
    content = {stem(word) for word in content_words(words)}
    own = {word for word in content if word not in known}
    part = 1.0 if _gives_text(prompt) else min(1.0, len(own) / max(1, min(3, len(content))))
    if content and not _gives_text(prompt):  # many words of the request and few others: the request, stirred
        echoed = sum(word in known for word in content) / len(content)
        part *= min(1.0, max(0.0, (1.0 - echoed) / 0.3))
    phrases = _grams(words, 3)
    if phrases:
        given = set(_grams(request, 3))
        copied = sum(phrase in given for phrase in phrases) / len(phrases)
        part *= min(1.0, max(0.0, (1.0 - copied) / 0.5))
    return part, (
        "It mostly gives the request back: answer it with something new.",
        "It repeats the words of the request instead of answering: add a fact, a reason or an image of your own.",
    )


def _varied(text: str, words: list[str]) -> _Judgement:
    part, problem = 1.0, ""
    sentences = [tuple(words_of(sentence)) for sentence in sentences_of(text)]
    repeated = sum(count - 1 for sentence, count in Counter(sentences).items() if len(sentence) > 2)
    if repeated:
        part *= 0.3**repeated
        problem = "the same sentence"
    phrases = Counter(_grams(words, 3))
    if phrases:
        part *= max(0.0, 1 - 3 * (1 - len(phrases) / sum(phrases.values())))
        phrase, count = phrases.most_common(1)[0]
        problem = problem or (f'"{" ".join(phrase)}"' if count > 1 else "")
    stems = Counter(stem(word) for word in content_words(words))
    if stems:
        word, count = stems.most_common(1)[0]
        allowed = max(3.0, 0.2 * sum(stems.values()))
        part *= min(1.0, allowed / count)
        if not problem:
            problem = f'"{next(w for w in words if stem(w) == word)}"'
    return part, (
        f"It says {problem} over and over: say each thing once.",
        f"It goes round in circles around {problem}: replace the repetition with something new.",
    )


_FILLER = re.compile(
    r"\b(?:as an ai|language model|ai assistant|smollm\w*|chatbot"
    r"|(?:i am|i'm) (?:happy|glad|delighted|excited|here) to"
    r"|i'd be (?:happy|glad|delighted) to|i hope (?:this|that) helps|let me know if|feel free to"
    r"|(?:great|good|excellent|interesting) question|what a (?:great|wonderful|fantastic|lovely|fun) "
    r"|here(?:'s| is| are) (?:a|an|some|the|my|one|your|another)\b|it's important to (?:note|remember)"
    r"|it is important to (?:note|remember)|i(?:'m| am) (?:sorry|unable|not able|too busy)"
    r"|i can(?:not|'t) (?:help|answer)|i apologi[sz]e)",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"^(?:sure|certainly|of course|absolutely|definitely|okay|ok|well|yes|wow|how exciting)\b[,!.: ]",
    re.IGNORECASE,
)


def _direct(request: list[str], text: str, prompt: str) -> _Judgement:
    filler = [match.group(0).strip() for match in _FILLER.finditer(text.replace("’", "'"))]
    opening = _OPENING.match(text.strip())
    if opening:
        filler.append(opening.group(0).strip())
    part = 0.5 ** len(filler)
    problem = f'"{filler[0]}"' if filler else "the question again"
    sentences = sentences_of(text)
    if not _gives_text(prompt) and sentences:
        first = words_of(sentences[0])
        if set(_grams(request, 6)) & set(_grams(first, 6)):
            part *= 0.4
    return part, (
        f"It wastes words on {problem}: begin with the answer itself.",
        f"Leave out {problem} and come straight to the point.",
    )


FORMATTING = re.compile(r"^\s*(?:[-*•+]\s|\d+[.)]\s|#{1,6}\s|>\s|\|)|\*\*|__|```|`[^`]+`|https?://", re.MULTILINE)
"""Marks of lists, headings, quotations, tables, emphasis, code, and addresses."""


def _plain(text: str, words: list[str]) -> _Judgement:
    marks = len(FORMATTING.findall(text))
    shouted = len(re.findall(r"\b[A-Z]{4,}\b", text))
    paragraphs = len(re.findall(r"\n\s*\n", text))
    symbols = sum(not (c.isalnum() or c.isspace() or c in ".,;:!?'’\"“”‘()-–—…%€$£") for c in text)
    part = 0.5**marks * 0.7**shouted * 0.8**paragraphs * 0.85**symbols
    if marks:
        advice = (
            "A list or formatting does not fit a small screen: write it as one or two plain sentences.",
            "Drop the list marks and headings: say it in running text.",
        )
    elif shouted:
        advice = ("It shouts in capitals: use ordinary letters.", "Write it without words in capitals.")
    elif paragraphs:
        advice = ("It is broken into several paragraphs: one is enough.", "Bring it together in a single paragraph.")
    else:
        advice = ("It is full of odd symbols: use plain words.", "Leave the symbols out and write plain words.")
    return part, advice


_SMALL_START = re.compile(r"[a-z]{2}[.!?][\"”]? [a-z]")  # a sentence that begins without a capital


def _readable(text: str, words: list[str]) -> _Judgement:
    n = len(words)
    # Of n words a natural share is grammar; short answers vary more, so the band is wider for them.
    slack = 0.15 if n < 10 else 0.0
    share = sum(word in FUNCTION_WORDS for word in words) / n
    natural = _band(share, 0.22 - slack, 0.32 - slack, 0.68 + slack, 0.8 + slack)
    sentences = [words_of(sentence) for sentence in sentences_of(text)]
    sentences = [sentence for sentence in sentences if sentence]
    mean_length = n / len(sentences)
    paced = _band(mean_length, 2.0, 4.5, 35.0, 75.0)
    impossible = sum(impossible_steps(sentence) for sentence in sentences_of(text))
    impossible += len(_SMALL_START.findall(text))
    grammatical = max(0.0, 1 - impossible / (0.08 * n)) if impossible > 1 else 1.0 - 0.25 * impossible
    longest = _longest_run(words)
    linked = max(0.0, min(1.0, 1 - (longest - 6) / 6))
    odd = [word for word in words if _odd(word)]
    ordinary = max(0.0, 1 - 4 * max(0.0, len(odd) / n - 0.04))
    checks = {"natural": natural, "paced": paced, "grammatical": grammatical, "linked": linked, "ordinary": ordinary}
    part = natural * paced * grammatical * linked * ordinary
    strange = odd[0][:_LONGEST_QUOTE] if odd else ""
    worst = min(checks, key=lambda name: checks[name])
    if worst == "paced" and mean_length > 30:
        advice = (
            f"The sentences run on ({mean_length:.0f} words each): break them into shorter ones.",
            "It is one endless sentence: use two or three short ones.",
        )
    elif worst == "paced":
        advice = ("It is chopped into fragments: write whole sentences.", "Join the fragments into one sentence.")
    elif worst == "ordinary":
        advice = (
            f'It uses strange words such as "{strange}": use ordinary ones.',
            f'Nobody says "{strange}": put it in everyday words.',
        )
    else:
        advice = (
            "The words do not hang together as sentences: write it as you would say it.",
            "It does not read as English: use simple, whole sentences.",
        )
    return part, advice


def _topic(request: list[str]) -> dict[str, str]:
    """Stem -> word, of the words that say what the request is about."""
    return {stem(word): word for word in content_words(request) if word not in REQUEST_WORDS}


def _says(said: set[str], topic: str) -> bool:
    """Whether a stem was said, alone or as a part of a longer word ("plant" for "houseplant")."""
    return topic in said or any(len(word) > 3 and len(topic) > 3 and (word in topic or topic in word) for word in said)


def _gives_text(prompt: str) -> bool:
    """Whether the request quotes text to work on; an answer then shares many words with it rightly."""
    return bool(re.search(r"[\"“«]|:\s", prompt))


def _grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def _longest_run(words: list[str]) -> int:
    """The longest run of words without a grammar word."""
    longest = run = 0
    for word in words:
        run = 0 if word in FUNCTION_WORDS else run + 1
        longest = max(longest, run)
    return longest


def _odd(word: str) -> bool:
    letters = word.replace("'", "").replace("-", "")
    if letters.isdigit():
        return False
    return (
        max(len(part) for part in word.split("-")) > 15
        or not letters.isalpha()
        or not letters.isascii()
        or not re.search(r"[aeiouy]", letters)
        or re.search(r"[bcdfghjklmnpqrstvwxz]{5}|(.)\1\1", letters) is not None
    )


def _band(value: float, zero: float, full: float, full_until: float, zero_from: float) -> float:
    """0 up to `zero`, rising to 1 at `full`, 1 until `full_until`, falling to 0 at `zero_from`."""
    return max(0.0, min(1.0, (value - zero) / (full - zero), (zero_from - value) / (zero_from - full_until)))


def _wording(ways: tuple[str, ...], text: str) -> str:
    """One of several ways to say it: another text may get another one, the same text always the same."""
    return ways[zlib.crc32((text + ways[0]).encode()) % len(ways)]


def _plural(word: str, n: int) -> str:
    return word if n == 1 else word + "s"
