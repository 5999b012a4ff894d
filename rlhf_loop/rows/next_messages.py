"""What a user says next, after an answer, as what it says of that answer: "no, shorter" needs no button.

Chats are prepared as in OpenClaw-RL and in Kleine Buening et al. 2026 (arXiv 2603.12273). The messages stand in the
prompts of the store: a chat that went on is a prompt with the earlier answers in it, whether it was served here or
imported. Nobody asked for a judgement, so these are no critiques: their origin is `implicit`, and nothing counts them
as such.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from rlhf_loop.critique_methods import NextMessage
from rlhf_loop.records import Completion, CritiquedCompletion, Message, Prompt, stable_id
from rlhf_loop.rows.check_rules import means_a_rule
from rlhf_loop.rows.critiqued import Limits, why_unfit
from rlhf_loop.rows.parts import answer

SHORT = 12
"""Words of a message that, where a rule understands it, asks for the answer anew."""


def next_messages(
    prompts: Sequence[Prompt],
    answers_to: Callable[[Sequence[str]], Iterable[Completion]],
    settings: NextMessage,
    limits: Limits,
) -> tuple[list[CritiquedCompletion], Counter[str]]:
    """One row for each answer of a training conversation that a message of the user follows, and counts of what gives
    none, by reason. `prompts`: of all splits; `answers_to`: the stored completions of prompts with these ids.

    The answer is the stored one where a prompt of the same conversation has it, with the tokens that were sampled; else
    the text that stands in the conversation. `said_in` names the prompt that holds the message, by which a deletion
    finds it.
    """
    left_out: Counter[str] = Counter()
    held_out = {_key("", prompt.messages) for prompt in prompts if prompt.split not in ("train", "untrained")}
    training = [prompt for prompt in prompts if prompt.split == "train"]
    asked = {_key(prompt.group, prompt.messages): prompt for prompt in training}
    found: dict[str, tuple[Prompt, int]] = {}  # by the conversation up to the message: each is read once
    for prompt in sorted(training, key=lambda prompt: (len(prompt.messages), prompt.id)):
        for place in _answers(prompt.messages):
            found.setdefault(_key(prompt.group, prompt.messages[: place + 2]), (prompt, place))
    wanted = [asked[key].id for p, place in found.values() if (key := _key(p.group, p.messages[:place])) in asked]
    stored = {(c.prompt_id, c.text.strip()): c for c in (answers_to(wanted) if wanted else ())}
    rows = []
    for prompt, place in found.values():
        before, text = prompt.messages[:place], prompt.messages[place]["content"]
        said = prompt.messages[place + 1]["content"].strip()
        reason = (
            "asked_in_held_out_prompts"
            if _key("", before) in held_out
            else _unfit(prompt, place, said, settings, limits)
        )
        if reason is None and settings.complaints_only and not is_complaint(said):
            reason = "no_complaint"
        if reason is not None:
            left_out[reason] += 1
            continue
        same = asked.get(_key(prompt.group, before))
        completion = stored.get((same.id, text.strip())) if same is not None else None
        rows.append(_row(prompt, place, said, settings, same, completion))
    return rows, left_out


def counts_of(rows: Sequence[CritiquedCompletion], left_out: Mapping[str, int]) -> dict[str, Any]:
    """What there is to learn from, for reports."""
    return {
        "messages": len(rows),
        "complaints": sum(row.label is False for row in rows),
        "of_stored_answers": sum(row.token_ids is not None for row in rows),
        "left_out": dict(left_out),
    }


def none_in_words(counts: Mapping[str, Any]) -> str | None:
    """What is wrong and what to do where `counts_of` found nothing to learn from; None where it did."""
    if counts["messages"]:
        return None
    left_out: Mapping[str, int] = counts["left_out"]
    if not left_out:
        return (
            "critiques.next_message: 0 messages to learn from, for no training prompt holds an answer that a user's "
            "message follows; serve the policy to people, import chats with all of their turns (feedback.imports), or "
            "leave the method out"
        )
    reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in left_out.items())
    return (
        f"critiques.next_message: 0 of {sum(left_out.values())} messages to learn from ({reasons}); see its settings, "
        "such as `min_messages` and `complaints_only`"
    )


def is_complaint(message: str) -> bool:
    """Whether a message complains of the answer before it: it begins with a "no" or the like, or is short and asks for
    it shorter, whole, in prose. English. A further question is none."""
    text = message.strip().replace("’", "'")
    if _REFUSES.match(text):
        return True
    if text.endswith("?"):
        return False
    return bool(_COMPLAINS.match(text)) or (len(text.split()) <= SHORT and means_a_rule(text))


_REFUSES = re.compile(
    r"\W*(?:no\b(?! (?:problem|worries|need|thank|more|one|doubt|idea))|nope\b|wrong\b|incorrect\b|"
    r"(?:that|this|it)(?:'s| is) (?:wrong|incorrect|false|not (?:what|true|right|correct))|"
    r"not what i\b|i (?:said|meant|asked for)\b|"
    r"you (?:didn't|did not|forgot|missed|misunderstood|ignored)\b|you're wrong|you are wrong)",
    re.IGNORECASE,
)
_COMPLAINS = re.compile(
    r"\W*(?:try again|do it again|redo|rewrite|stop\b|don't\b|do not\b|still (?:wrong|not|too)|too \w+|"
    r"please (?:don't|stop)|"
    r"(?:make it |be |much |even |a bit )?(?:shorter|longer|simpler|clearer|more \w+|less \w+)\b|instead of)",
    re.IGNORECASE,
)


def _answers(messages: Sequence[Message]) -> list[int]:
    """The places of answers that a message of the user follows."""
    turns = enumerate(pairwise(messages))
    return [place for place, (one, other) in turns if place and (one["role"], other["role"]) == _TURNS]


_TURNS = ("assistant", "user")


def _unfit(prompt: Prompt, place: int, said: str, settings: NextMessage, limits: Limits) -> str | None:
    text = prompt.messages[place]["content"]
    if sum(message["role"] != "system" for message in prompt.messages[: place + 2]) < settings.min_messages:
        return "too_few_messages"
    if not text.strip() or not said:
        return "empty"
    if len(text) > settings.max_answer_characters:
        return "answer_too_long"
    reason = why_unfit(said, prompt, limits)
    return None if reason == "vague" and is_complaint(said) else reason


def _row(
    prompt: Prompt, place: int, said: str, settings: NextMessage, same: Prompt | None, completion: Completion | None
) -> CritiquedCompletion:
    before, text = prompt.messages[:place], prompt.messages[place]["content"]
    systems = [m for m in before if m["role"] in ("system", "developer")]
    others = [m for m in before if m["role"] not in ("system", "developer")]
    unknown = stable_id("answer in a conversation", prompt.group, before, text)
    return CritiquedCompletion(
        id=stable_id("next message", prompt.group, prompt.messages[: place + 2]),
        prompt_id=same.id if same is not None else stable_id("within a conversation", prompt.group, before),
        group=prompt.group,
        prompt=(*systems, *others[-settings.context :]),
        completion=answer(text if completion is None else completion.text),
        finished=completion is None or completion.finish_reason == "stop",
        token_ids=None if completion is None else completion.token_ids,
        by_policy=completion is not None and completion.by_policy,
        completion_id=unknown if completion is None else completion.id,
        critique=said,
        label=False if is_complaint(said) else None,
        origin="implicit",
        annotator=f"whoever talks in {prompt.group}",
        said_in=prompt.id,
        round=0 if completion is None else completion.round,
    )


def _key(group: str, messages: Sequence[Message]) -> str:
    return stable_id(group, [[message["role"], message["content"].strip()] for message in messages])
