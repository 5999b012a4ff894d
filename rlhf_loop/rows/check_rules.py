"""Complaints that a rule can check, without a model: which words mean it, and when an answer is free of it.

A rule is asked only where the answer that was complained of breaks it: else the words mean something that it cannot
see. Words are English; what no rule understands goes to a judge. An answer without a word passes no rule.
To add one: a function here, and a line in `RULES`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from rlhf_loop.annotators.english import ends_as_sentence
from rlhf_loop.annotators.rules import FORMATTING
from rlhf_loop.ngrams import ngrams, tokenize

MARGIN = 0.1
"""Of the words of an answer that was too long (or short): by so much a new one must be shorter (or longer)."""

RUN = 4
"""Words in a row that, said twice, are a repetition."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One thing that can be checked."""

    says: re.Pattern[str]  # words of a complaint, or a tag, that mean it
    holds: Callable[[str, bool, int], bool]  # (answer, finished, limit) -> whether it is free of it
    wants: str  # in words for people; `{limit}` where there is one
    limit: Callable[[str], int] | None = None  # words, from the answer that was complained of


def rules_in(complaint: str, answer: str, finished: bool) -> list[tuple[str, int | None]]:
    """The rules that a complaint about `answer` means and that `answer` breaks, each with its limit; maybe none."""
    found = []
    for name, rule in RULES.items():
        limit = rule.limit(answer) if rule.limit is not None else None
        if rule.says.search(complaint) and not passes(name, limit, answer, finished):
            found.append((name, limit))
    return found


def means_a_rule(complaint: str) -> bool:
    """Whether the words of a complaint are those of any rule, whatever it is about."""
    return any(rule.says.search(complaint) for rule in RULES.values())


def passes(name: str, limit: int | None, answer: str, finished: bool) -> bool:
    """Whether an answer is free of what the rule `name` looks for."""
    return _words(answer) > 0 and RULES[name].holds(answer, finished, limit or 0)


def _words(text: str) -> int:
    return len(re.findall(r"\w+(?:['’-]\w+)*", text))


def _repeats(text: str) -> bool:
    runs = ngrams(tokenize(text), RUN)
    return len(set(runs)) < len(runs)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False


def _says(*words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!not )(?<!n't )(?<!never )\b(?:{'|'.join(words)})", re.IGNORECASE)


_LIST = re.compile(r"^\s*(?:[-*•+]|\d+[.)])\s", re.MULTILINE)

RULES: dict[str, Rule] = {
    "too_long": Rule(
        says=_says(
            r"too (?:long|many words)\b", "words are too many", "shorter,? please", "shorten", "verbose", "wordy",
            "(?:be|make it|much|a (?:bit|lot|little)|keep it|answer) shorter", "(?:be|more|not) concise", "rambl",
            "long.?winded", "padding", "fluff", r"cut (?:it|this) (?:down|to)\b",
        ),
        holds=lambda text, finished, limit: _words(text) <= limit,
        wants="{limit} words or fewer",
        limit=lambda text: int(_words(text) * (1 - MARGIN)),
    ),
    "too_short": Rule(
        says=_says(
            r"too (?:short|brief|little)\b", "longer,? please", "(?:more|enough) details?", "elaborate", "expand",
            "(?:be|make it|much|a (?:bit|lot|little)|answer) longer",
        ),
        holds=lambda text, finished, limit: _words(text) >= limit,
        wants="{limit} words or more",
        limit=lambda text: int(_words(text) * (1 + MARGIN)) + 1,
    ),
    "cut_off": Rule(
        says=_says(
            "cuts? off", "cut.off", "unfinished", "not finished", "incomplete", "truncat", "stops? in the middle",
            "mid.?sentence", "never gets? to an end", "no end in sight", "trails off", "ends abruptly", "has no end",
            "finish (?:the|your) (?:thought|sentence|answer)", "close the sentence", "still going on",
        ),
        holds=lambda text, finished, limit: finished and ends_as_sentence(text),
        wants="it ends by itself, at the end of a sentence",
    ),
    "repetition": Rule(
        says=_says(
            "repeat", "repetit", "over and over", "round in circles", "redundan",
            "same (?:thing|sentence|phrase|words?) (?:again|twice)",
        ),
        holds=lambda text, finished, limit: not _repeats(text),
        wants=f"no {RUN} words in a row twice",
    ),
    "empty": Rule(
        says=_says("empty", "blank", "no answer", r"nothing (?:there|here|at all)\b", "says nothing", "no text"),
        holds=lambda text, finished, limit: True,
        wants="there is an answer",
    ),
    "no_list": Rule(
        says=_says(
            "no (?:bullet|lists?)", "not (?:as )?a list", "bullet", "list marks", "a list or", "without (?:a )?lists?",
            "instead of a list", "running text", "in prose", "plain sentences?",
        ),
        holds=lambda text, finished, limit: not _LIST.search(text),
        wants="no list",
    ),
    "list": Rule(
        says=_says(
            "(?:as|want|wanted|use|make|give|need|needs|be|asked for) (?:me |it |in )?(?:a |an )?"
            r"(?:bullet(?:ed)? |numbered )?lists?\b", "(?:use|wanted|want|in|as) bullet",
        ),
        holds=lambda text, finished, limit: bool(_LIST.search(text)),
        wants="a list",
    ),
    "markup": Rule(
        says=_says("markdown", "formatting", "headings?", "asterisks?", "bold", "code blocks?", "backticks?"),
        holds=lambda text, finished, limit: not FORMATTING.search(text),
        wants="no marks of formatting",
    ),
    "json": Rule(
        says=_says(r"json\b"),
        holds=lambda text, finished, limit: _is_json(text),
        wants="valid JSON and nothing else",
    ),
}  # fmt: skip
"""The name of a check -> its rule."""
