"""The words of verdicts: good and bad, the better of two, and what a question's name says of its answers."""

from __future__ import annotations

import re
from typing import Any, Literal

Winner = Literal["a", "b", "tie", "both_bad"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GOOD = _words(
    """
    true 1 1.0 +1 yes y good great excellent up thumb_up thumbs_up thumbup thumbsup upvote upvoted up_vote like liked
    love loved positive correct right helpful accept accepted approve approved pass passed satisfied happy desirable
    👍 ✅ ✔ ❤
    """
)
_BAD = _words(
    """
    false 0 0.0 -1 -1.0 no n bad poor terrible down thumb_down thumbs_down thumbdown thumbsdown downvote downvoted
    down_vote dislike disliked hate hated negative incorrect wrong unhelpful reject rejected disapprove disapproved
    fail failed unsatisfied dissatisfied unhappy undesirable 👎 ❌ ✖
    """
)
_SAY_NOTHING = _words("true false yes no y n 1 0 1.0 0.0")
"""Words of which only the question says whether they are good."""

_A = _words(
    """
    a left first 1 model_a response_a answer_a output_a option_a response_1 answer_1 output_1 option_1 completion_a
    completion_1 assistant_a response1 answer1 output1 chosen
    """
)
_B = _words(
    """
    b right second 2 model_b response_b answer_b output_b option_b response_2 answer_2 output_2 option_2 completion_b
    completion_2 assistant_b response2 answer2 output2 rejected
    """
)
_TIE = _words(
    """
    tie tied same the_same equal equally_good both both_good both_are_good both_are_equally_good draw either similar
    no_preference none_better neither_is_better about_the_same both_are_the_same both_are_about_the_same equal_quality
    """
)
_BOTH_BAD = _words(
    """
    both_bad bothbad tie_bothbad tie_both_bad neither none both_are_bad equally_bad neither_is_good none_is_good
    both_are_equally_bad
    """
)
_BETTER = re.compile(
    r"_(?:is_)?(?:much_|slightly_|a_bit_|a_little_|far_|clearly_|significantly_|somewhat_|strongly_|marginally_|way_"
    r"|the_)*(?:better|preferred|wins?|best)$"
)
_WORSE = re.compile(r"(?:^|_)(?:worse|worst|least|weaker|weakest|loser|rejected|dispreferred)(?:_|$)")

_GOOD_THING = re.compile(
    r"(?:^|_)(?:feedback|thumbs?|helpful|correct|good|likes?d?(?:_|$)|accept|accura|useful|quality|satisf|approv|relevan"
    r"|success|resolv|pass|verdict|rating|positive|upvote|harmless|safe|ground|faithful|guideline|adher|complete|coheren"
    r"|fluen|clear|clarity|concis|polite|truthful|honest|stars?(?:_|$)|likert|grade|scores?(?:_|$)|overall|preference|reward)"
)
_BAD_THING = re.compile(
    r"(?:^|_)(?:(?:not?|non)(?:_|$)|hallucinat|toxic|harm(?!less)|bias|error|fail|bad|wrong|risk|spam|frustrat|refus|abus"
    r"|insult|offens|profan|leak|inject|jailbreak|violat|violen|denigrat|negative|dislike|complain|escalat|issue|problem"
    r"|sexual|nsfw|pii(?:_|$)|hate|rude|confus|mislead|vague|repetit|in(?:correct|accura|appropriate|complete|coheren)"
    r"|un(?:safe|helpful|clear|satisf|faithful|ground|truthful)|irrelevan|dis(?:satisf|honest))"
)
_SKIN = re.compile("[\U0001f3fb-\U0001f3ff\ufe0f]")


def plain(value: Any) -> str:
    """A word of a verdict without case, spaces and signs: `Tie (both bad)` is `tie_both_bad`, `Thumbs-up!` is
    `thumbs_up`."""
    text = _SKIN.sub("", str(value)).strip().lower().strip(":")
    if re.fullmatch(r"[+-]1(?:\.0)?", text):
        return text
    return re.sub(r"[^\w.👍👎✅✔❤❌✖]+", "_", text).strip("_.")


def thumb_of(value: Any) -> bool | None:
    """Whether a word means good (True) or bad (False); None where it is neither."""
    if not isinstance(value, (bool, int, float, str)):
        return None
    word = plain(value)
    if word in _GOOD or word in _BAD:
        return word in _GOOD
    signs = {sign in _GOOD for sign in word if sign in "👍👎✅✔❤❌✖"}  # `👍 Thumbs up`, `👍👍`
    rest = re.sub("[👍👎✅✔❤❌✖]+", "_", word).strip("_")
    if len(signs) != 1 or (rest and thumb_of(rest) not in signs):
        return None
    return signs.pop()


def thumb_named(name: str, value: Any) -> bool | None:
    """Whether a value means good (True) or bad (False), given what it answers; None where that cannot be told.

    Words such as `good` and `bad` speak for themselves. Yes and no depend on the question: `name` must call for a good
    thing (`helpful`), as `toxic: no` and `is_code: yes` say nothing of the answer's worth that would be safe to learn.
    """
    label = thumb_of(value)
    if plain(value) in _SAY_NOTHING:
        return label if speaks_of_good(name) else None
    return label


def speaks_of_good(name: str) -> bool:
    """Whether a name asks for something that is good to have (`helpfulness`), so that much of it is praise."""
    words = words_of(name)
    return (words == "label" or _GOOD_THING.search(words) is not None) and _BAD_THING.search(words) is None


def asks_for_the_worse(name: str) -> bool:
    """Whether a question among several answers is which of them is the worse one: `worst`, `rejected`."""
    return _WORSE.search(words_of(name)) is not None


def asks_for_something_bad(name: str) -> bool:
    """Whether a question among several answers is which of them has more of something bad: `more_toxic`."""
    return _BAD_THING.search(words_of(name)) is not None and not asks_for_the_worse(name)


def words_of(name: str) -> str:
    """A name in small letters, its words parted by underscores: `userFeedback` is `user_feedback`."""
    return plain(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).replace(".", "_")


def winner_of(value: Any, answers: tuple[str, str] = ("", "")) -> Winner | None:
    """Which of two answers a word prefers; `answers`: what their fields are called. None where it is no verdict."""
    if value is None or isinstance(value, bool) or value != value:
        return None
    word = plain(value)
    for winner, name in (("a", answers[0]), ("b", answers[1])):
        if word and word in (plain(name), words_of(name)):
            return winner  # type: ignore[return-value]
    for found, words in (("a", _A), ("b", _B), ("tie", _TIE), ("both_bad", _BOTH_BAD)):
        if word in words or _BETTER.sub("", word) in words:
            return found  # type: ignore[return-value]
    return None
