"""Cards with known answers, mixed among the others: they tell how well a person judges, and train nothing.

They are questions with `known` set and an `overlap` of 0: no round waits for them, and everybody may get each of them
once. Their prompts have a split that is neither learned from nor evaluated on.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from rlhf_loop.feedback.intake.read_whole import read
from rlhf_loop.feedback.store import question_queue, tables
from rlhf_loop.feedback.store.conditions import CALIBRATION_PRIORITY, is_calibration
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.table_rows import pair_key
from rlhf_loop.records import Completion, Preference, Prompt, Question, from_dict, stable_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What a file of known answers gave."""

    questions: int  # with a known answer that are now in the store
    new: int  # of them, added now
    left_out: dict[str, int]  # reason -> pairs

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"calibration: {self.questions} cards with known answers, {self.new} of them new"]
        return lines + [f"  {count} pairs left out: {reason}" for reason, count in self.left_out.items()]


def add_calibration(store: Store, path: Path, evaluated_split: Literal["test", "dev"] = "test") -> Calibration:
    """Puts the pairs of a file (any format that `feedback import` reads) into the queue as cards with known answers.

    `evaluated_split`: the split that the recipe evaluates on; the prompts go into the other one of test and dev, from
    which nothing is learned. A pair is left out, and counted, where its prompt is among the training prompts: whoever
    evaluates on it would have to throw the feedback on that prompt away. Adding a file again adds nothing.
    Raises `UserError` when the file cannot be read.
    """
    taken = {_words(prompt) for split in ("train", "judge") for prompt in store.prompts(split=split)}
    known = read_cards(path, lambda prompt: "the prompt is a training prompt too" if _words(prompt) in taken else None)
    split: Literal["test", "dev"] = "dev" if evaluated_split == "test" else "test"
    wanted = [replace(card.prompt, split=split) for card in known.cards]
    there = {prompt.id for prompt in store.prompts(ids=[prompt.id for prompt in wanted])}
    with store.transaction() as transaction:
        transaction.add_prompts([prompt for prompt in wanted if prompt.id not in there])
        transaction.add_completions(list({one.id: one for card in known.cards for one in (card.a, card.b)}.values()))
        new = transaction.add_questions([card.question for card in known.cards])
    return Calibration(questions=len(known.cards), new=new, left_out=known.left_out)


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A pair whose answer is known."""

    question: Question
    prompt: Prompt
    a: Completion
    b: Completion


@dataclass(frozen=True, kw_only=True, slots=True)
class Cards:
    """What a file of known answers holds."""

    cards: list[Card]
    left_out: dict[str, int]  # reason -> pairs


def read_cards(path: Path, refuse: Callable[[Prompt], str | None] = lambda prompt: None) -> Cards:
    """The pairs of a file (any format that `feedback import` reads), each once, without those whose prompt `refuse`
    gives a reason for, and those that rows contradict each other about.

    Raises `UserError` when the file cannot be read.
    """
    found = read(path)
    prompts = {prompt.id: prompt for prompt in found.prompts}
    completions = {completion.id: completion for completion in found.completions}
    left_out: Counter[str] = Counter()
    if found.refused:
        left_out[f"the row cannot be used ({found.refused[0].reason})"] = len(found.refused)
    cards: dict[str, Card] = {}
    contradicted: set[str] = set()
    for preference in found.feedback:
        if not isinstance(preference, Preference):
            continue
        prompt = prompts[preference.prompt_id]
        if (reason := refuse(prompt)) is not None:
            left_out[reason] += 1
            continue
        question = Question(
            id=stable_id("calibration", pair_key(preference.a_id, preference.b_id)),
            prompt_id=prompt.id,
            a_id=preference.a_id,
            b_id=preference.b_id,
            round=0,
            priority=CALIBRATION_PRIORITY,
            reason="calibration",
            overlap=0,
            known=preference.winner,
        )
        a, b = completions[preference.a_id], completions[preference.b_id]
        other = cards.setdefault(question.id, Card(question=question, prompt=prompt, a=a, b=b))
        if _verdict(other.question) != _verdict(question):
            contradicted.add(question.id)
    for id in contradicted:
        del cards[id]
        left_out["rows of the file contradict each other about the pair"] += 1
    return Cards(cards=list(cards.values()), left_out=dict(left_out))


def is_calibration_turn(who: str, done: int, share: float) -> bool:
    """Whether the next card of a person who did `done` is one with a known answer: `share` of them are, at random, but
    the same ones each time."""
    return int(stable_id("calibration turn", who, done), 16) / 16**24 < share


def claim_calibration(connection: sa.Connection, who: str, seconds: float) -> Question | None:
    """Leases a calibration card that `who` has not judged yet, in an order of their own; None when there is none left.

    The connection's transaction must be a writing one.
    """
    question, said = tables.questions.c, tables.feedback.c
    judged = sa.select(said.pair).where(said.annotator == who, said.pair.is_not(None))
    rows: Sequence[str] = connection.scalars(
        sa.select(question.body).where(is_calibration(), question.pair.not_in(judged))
    ).all()
    waiting: list[Question] = [from_dict(Question, json.loads(body)) for body in rows]
    if not waiting:
        return None
    chosen = min(waiting, key=lambda card: stable_id("calibration order", who, card.id))
    question_queue.release(connection, who, [chosen.id])
    now = time.time()
    lease = {"question_id": chosen.id, "annotator": who, "since": now, "until": now + seconds}
    connection.execute(tables.leases.insert().values(lease))
    return chosen


def _verdict(question: Question) -> str | None:
    """The id of the better answer, or how they are even."""
    return {"a": question.a_id, "b": question.b_id}.get(question.known or "", question.known)


def _words(prompt: Prompt) -> str:
    """The text of a prompt, whatever its case and spaces."""
    return " ".join(" ".join(message["content"] for message in prompt.messages).lower().split())
