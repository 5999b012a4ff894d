"""What tools call the same things: the names of prompts and answers, and the words of verdicts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from rlhf_loop.feedback.importers.fields import Place, answer_of, completion_of, messages_of, prompt_of
from rlhf_loop.feedback.rows import RowError
from rlhf_loop.records import Completion, Prompt

PROMPTS = ("prompt", "instruction", "question", "input", "query", "context", "messages", "user")
ANSWERS = ("answer", "response", "completion", "output", "generation", "text", "summary", "reply", "chosen", "rejected")

Winner = Literal["a", "b", "tie", "both_bad"]

_GOOD = ("true", "1", "1.0", "yes", "y", "good", "up", "thumbs_up", "thumbsup", "like", "liked", "positive", "correct",
         "helpful", "accept", "accepted", "pass", "👍")  # fmt: skip
_BAD = ("false", "0", "0.0", "-1", "-1.0", "no", "n", "bad", "down", "thumbs_down", "thumbsdown", "dislike", "disliked",
        "negative", "incorrect", "unhelpful", "reject", "rejected", "fail", "👎")  # fmt: skip
_A = ("a", "left", "first", "1", "model_a", "response_a", "answer_a", "response_1", "answer_1", "option_a", "chosen")
_B = (
    "b",
    "right",
    "second",
    "2",
    "model_b",
    "response_b",
    "answer_b",
    "response_2",
    "answer_2",
    "option_b",
    "rejected",
)
_TIE = ("tie", "same", "equal", "both", "both_good", "draw", "either", "similar", "no_preference", "none_better")
_BOTH_BAD = ("both_bad", "bothbad", "tie_bothbad", "tie_both_bad", "neither", "none", "both_are_bad")

_GOOD_THING = re.compile(
    r"(?:^|_)(?:feedback|thumbs?|helpful|correct|good|likes?d?(?:_|$)|accept|accura|useful|quality|satisf|approv|relevan"
    r"|success|resolv|pass|verdict|rating|positive|upvote|harmless)"
)
_BAD_THING = re.compile(
    r"(?:^|_)(?:(?:not?|non)(?:_|$)|hallucinat|toxic|harm(?!less)|bias|error|fail|bad|wrong|risk|spam|frustrat|refus|abus"
    r"|insult|offens|profan|leak|inject|jailbreak|violat|denigrat|negative|dislike|complain|escalat|issue|problem"
    r"|in(?:correct|accura|appropriate)|un(?:safe|helpful|clear|satisf)|irrelevan)"
)


def plain(value: Any) -> str:
    """A word of a verdict without case, spaces and signs: `Tie (both bad)` is `tie_both_bad`."""
    text = str(value).strip().lower()
    return re.sub(r"[^\w.👍👎-]+", "_", text).strip("_") if text not in ("-1", "-1.0") else text


def thumb_of(value: Any) -> bool | None:
    """Whether a word means good (True) or bad (False); None where it is neither."""
    if not isinstance(value, (bool, int, float, str)):
        return None
    word = plain(value)
    return True if word in _GOOD else False if word in _BAD else None


def thumb_named(name: str, value: Any) -> bool | None:
    """Whether a value means good (True) or bad (False), given what it answers; None where that cannot be told.

    Words such as `good` and `bad` speak for themselves. Yes and no depend on the question: `name` must call for a good
    thing (`helpful`), as `toxic: no` and `is_code: yes` say nothing of the answer's worth that would be safe to learn.
    """
    label = thumb_of(value)
    word = plain(value)
    if word in ("true", "false", "yes", "no", "y", "n", "1", "0", "1.0", "0.0"):
        words = words_of(name)
        return label if _GOOD_THING.search(words) and not _BAD_THING.search(words) else None
    return label


def speaks_of_bad(name: str) -> bool:
    """Whether a name asks for something that is bad to have (`toxicity`), so that much of it is no praise."""
    return _BAD_THING.search(words_of(name)) is not None


def words_of(name: str) -> str:
    """A name in small letters, its words parted by underscores: `userFeedback` is `user_feedback`."""
    return plain(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)).replace("-", "_").replace(".", "_")


def winner_of(value: Any, answers: tuple[str, str] = ("", "")) -> Winner | None:
    """Which of two answers a word prefers; `answers`: what their fields are called. None where it is no verdict."""
    word = plain(value).replace("-", "_")
    if word and word in (plain(answers[0]).replace("-", "_"), plain(answers[1]).replace("-", "_")):
        return "a" if word == plain(answers[0]).replace("-", "_") else "b"
    for winner, words in (("a", _A), ("b", _B), ("tie", _TIE), ("both_bad", _BOTH_BAD)):
        if word in words or re.sub(r"_(is_)?(much_|slightly_)?better$", "", word) in words:
            return winner  # type: ignore[return-value]
    return None


def prompt_and_answers(
    values: Mapping[str, Any], place: Place, group: str | None = None
) -> tuple[Prompt, dict[str, Completion]]:
    """The prompt of a record of any tool and its one or two answers, by the names of their fields, in order."""
    name = next((key for wanted in PROMPTS for key in values if plain(key) == wanted and values[key]), None)
    if name is None:
        name = next((key for key in values if plain(key).startswith(PROMPTS) and values[key]), None)
    if name is None:
        there = ", ".join(list(values)[:8])
        raise RowError(f"there is no prompt: none of {', '.join(PROMPTS)} among {there}; rename the field with --map")
    messages = messages_of(values[name], name)
    prompt = prompt_of(messages, place, group)
    named = [key for key in values if key != name and plain(key).startswith(ANSWERS) and values[key] is not None]
    if not named:
        raise RowError(f"there is no answer beside `{name}`: no field is called {', '.join(ANSWERS[:5])} or alike")
    if len(named) > 2:
        raise RowError(f"there are {len(named)} answers ({', '.join(named)}); one or two can be read")
    return prompt, {key: completion_of(prompt, answer_of(values[key], key, messages)) for key in named}
