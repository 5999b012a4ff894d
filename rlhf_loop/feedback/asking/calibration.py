"""Cards with known answers, mixed among the others: they tell how well a person judges, and train nothing.

They are questions with `known` set and an `overlap` of 0: no round waits for them, and everybody may get each of them
once. Their prompts have a split that is neither learned from nor evaluated on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from rlhf_loop.feedback.intake.read_whole import read
from rlhf_loop.feedback.store import question_queue, tables
from rlhf_loop.feedback.store.conditions import CALIBRATION_PRIORITY, is_calibration
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.table_rows import pair_key
from rlhf_loop.records import Preference, Prompt, Question, from_dict, stable_id


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
    found = read(path)
    prompts = {prompt.id: prompt for prompt in found.prompts}
    completions = {completion.id: completion for completion in found.completions}
    taken = {_words(prompt) for split in ("train", "judge") for prompt in store.prompts(split=split)}
    left_out: dict[str, int] = {}
    if found.refused:
        left_out[f"the row cannot be used ({found.refused[0].reason})"] = len(found.refused)
    kept: dict[str, tuple[Prompt, Question]] = {}
    for preference in found.feedback:
        if not isinstance(preference, Preference):
            continue
        prompt = prompts[preference.prompt_id]
        if _words(prompt) in taken:
            reason = "the prompt is a training prompt too"
            left_out[reason] = left_out.get(reason, 0) + 1
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
        other = kept.setdefault(question.id, (prompt, question))[1]
        if other.known != question.known:
            del kept[question.id]
            reason = "another row of the file says something else of the same pair"
            left_out[reason] = left_out.get(reason, 0) + 1
    split: Literal["test", "dev"] = "dev" if evaluated_split == "test" else "test"
    wanted = [replace(prompt, split=split) for prompt, _ in kept.values()]
    known = {prompt.id for prompt in store.prompts(ids=[prompt.id for prompt in wanted])}
    questions = [question for _, question in kept.values()]
    of_cards = {id for question in questions for id in (question.a_id, question.b_id)}
    with store.transaction() as transaction:
        transaction.add_prompts([prompt for prompt in wanted if prompt.id not in known])
        transaction.add_completions([completions[id] for id in of_cards])
        new = transaction.add_questions(questions)
    return Calibration(questions=len(questions), new=new, left_out=left_out)


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


def _words(prompt: Prompt) -> str:
    """The text of a prompt, whatever its case and spaces."""
    return " ".join(" ".join(message["content"] for message in prompt.messages).lower().split())
