"""Small facts about English text that a rule can stand on: words, stems, sentences, grammar words.

Nothing here understands meaning. Lists are short on purpose: what they miss costs a rule little, and a reader can
check them.
"""

# ruff: noqa: SIM905 - lists of a hundred words read better as one string

from __future__ import annotations

import itertools
import re
from functools import lru_cache

DETERMINERS = frozenset("a an the my your his her its our their this these every each".split())
PREPOSITIONS = frozenset(
    "of in on at by for with from into onto about over under between through during without within against among "
    "toward towards upon across behind beyond beside near after before since until".split()
)
AUXILIARIES = frozenset(
    "is are was were be been being am has have had having do does did can could will would shall should may might "
    "must isn't aren't wasn't weren't don't doesn't didn't can't couldn't won't wouldn't shouldn't".split()
)
PRONOUNS = frozenset(
    "i you he she it we they me him us them myself yourself himself herself itself ourselves themselves i'm you're "
    "he's she's it's we're they're i've you've we've they've i'll you'll he'll she'll it'll we'll they'll i'd you'd "
    "he'd she'd we'd they'd someone somebody anyone anybody everyone everybody nobody nothing something anything "
    "everything".split()
)
CONJUNCTIONS = frozenset(
    "and or but nor so yet if because while when where although though unless as than that".split()
)
OTHER_FUNCTION_WORDS = frozenset(
    "to not no what which who whom whose why how there here then those some any all both few many much more most "
    "other another such only own same too very just also even still again once up down out off one two let let's "
    "that's there's what's like".split()
)
FUNCTION_WORDS = DETERMINERS | PREPOSITIONS | AUXILIARIES | PRONOUNS | CONJUNCTIONS | OTHER_FUNCTION_WORDS
"""Words that hold sentences together; in written English they are 35 to 60 percent of all words."""

REQUEST_WORDS = frozenset(
    "write tell describe explain suggest give name offer propose think imagine invent compose recommend compare define "
    "rewrite reword turn put make say sum shorten correct remove add change soften retell pitch introduce mention "
    "short brief briefly simple simply plain tiny small little few couple line lines sentence sentences word words "
    "story poem example examples idea way ways thing things good best better main difference differ different mean "
    "meaning means called exactly please could would should kind type sort someone somebody people person get getting "
    "want need use used new keep every always help start try term know opening begin alternative come recall".split()
)
"""Words of a request that say what to do rather than what it is about."""

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_SENTENCE_BREAK = re.compile(r"(?<=[.!?…])[\"”’')\]]*\s+|\n+")
_CLAUSE_BREAK = re.compile(r"[,;:()–—\"“”]")
_SENTENCE_END = re.compile(r"[.!?…][\"”’')\]]*$")
_SUFFIXES = ("ingly", "edly", "ings", "ing", "ies", "ied", "ely", "ers", "est", "ed", "es", "er", "ly", "s")


def words_of(text: str) -> list[str]:
    """The words of `text` in lower case, typographic apostrophes made plain; a hyphen parts words."""
    return [word.replace("’", "'").lower() for word in _WORD.findall(text)]


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """A word without its commonest endings, so that "rises", "rising" and "rise" are one. Rough by design."""
    word = word.removesuffix("'s")
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3 and not (suffix == "s" and word.endswith("ss")):
            word = word.removesuffix(suffix)
            if suffix in ("ies", "ied"):
                return word + "y"
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz":
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


def content_words(words: list[str]) -> list[str]:
    """The words that carry meaning, and numbers, in order."""
    return [word for word in words if word not in FUNCTION_WORDS and (len(word) > 2 or word.isdigit())]


def sentences_of(text: str) -> list[str]:
    """The sentences (or lines) of `text`."""
    return [part.strip() for part in _SENTENCE_BREAK.split(text) if part.strip()]


def ends_as_sentence(text: str) -> bool:
    """Whether the last character, quotes and brackets aside, ends a sentence."""
    return _SENTENCE_END.search(text.rstrip()) is not None


def impossible_steps(sentence: str) -> int:
    """How many neighbours within the clauses of a sentence English does not allow, such as "the of" or "they into".

    Word salad is full of them and prose has next to none. Also counted: a full stop after an article, a
    conjunction or the like.
    """
    clauses = [words for clause in _CLAUSE_BREAK.split(sentence) if (words := words_of(clause))]
    steps = sum(_impossible(*pair) for words in clauses for pair in itertools.pairwise(words))
    return steps + (bool(clauses) and ends_as_sentence(sentence) and clauses[-1][-1] in _NEVER_LAST)


def _impossible(first: str, second: str) -> bool:
    return (
        (first == second and first not in ("had", "that", "very", "so", "no"))
        or (first in _ARTICLES and second in _NEVER_AFTER_ARTICLE)
        or (first in ("a", "an") and not _fits_indefinite(first, second))
        or (first in PREPOSITIONS and first not in _ALSO_ADVERBS and second in _FINITE | _SUBJECTS)
        or (first in _SUBJECTS and second in DETERMINERS | PREPOSITIONS | (_SUBJECTS - {"i"}))
        or (first in _FINITE - {"do"} and second in _FINITE - _AFTER_AUXILIARY)
        or (first in _BARE and second in _FINITE)
        or (first == "to" and second in _NEVER_AFTER_TO)
    )


def _fits_indefinite(article: str, word: str) -> bool:
    """Whether "a" or "an" can stand before `word`: by its first letter, and not before most plurals.

    Letters alone cannot tell "an hour" from "a house" or "a use" from "an uncle", so h and u go with both.
    """
    if word in _SINGULAR_IN_S or not word.isalpha():
        return True
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return False
    return word[0] in "hu" or word.startswith(("eu", "ewe", "one", "once")) or (word[0] in "aeiou") == (article == "an")


_ARTICLES = frozenset("a an the my your their our every".split())
_SUBJECTS = frozenset("i he she we they".split())
_ALSO_ADVERBS = frozenset(
    "in on by about over under through within without near after before since until across".split()
)
_FINITE = frozenset(word for word in AUXILIARIES if "'" not in word) - {
    "will",
    "can",
    "may",
    "might",
    "being",
    "having",
}
_SINGULAR_IN_S = frozenset("gas lens series species means always news its overseas atlas canvas christmas".split())
_NEVER_AFTER_ARTICLE = (
    DETERMINERS | PREPOSITIONS | CONJUNCTIONS | _SUBJECTS | _FINITE | frozenset("to them him us there".split())
) - frozenset("i do must can may might will being inside near after before over under while each".split())
_AFTER_AUXILIARY = frozenset("be been have had do".split())
_BARE = frozenset("because if unless than".split())  # a subject must follow (or, after "than", hardly a verb)
_NEVER_AFTER_TO = frozenset("of is are was were am to and or but has had does did could should".split()) | _SUBJECTS
_NEVER_LAST = frozenset("a an the my your their our of and or but nor because if than every i".split())
