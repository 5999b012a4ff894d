"""More cards for people when the queue is empty: from the newest answers, for the next round."""

from __future__ import annotations

from dataclasses import replace

import sqlalchemy as sa

from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.recipe import Recipe
from rlhf_loop.records import Question, Score
from rlhf_loop.rows.questions import choose_questions


def queue_more(store: Store, recipe: Recipe | None, n: int = 5) -> int:
    """Queues up to `n` pairs of the newest round's answers to training prompts; returns how many.

    Pairs that were asked about before are left out. They are chosen as the recipe's `feedback.question_strategy` says,
    with the scores of the newest reward model that scored them; without a recipe those that share the fewest words.
    0 when every pair was asked about, or no prompt has two different answers.
    """
    completion, prompt = tables.completions.c, tables.prompts.c
    with store.database.read() as connection:
        newest = connection.scalar(
            sa.select(sa.func.max(completion.round))
            .join(tables.prompts, prompt.id == completion.prompt_id)
            .where(prompt.split == "train")
        )
    if newest is None:
        return 0
    prompts = {prompt.id: prompt for prompt in store.prompts(split="train")}
    answers = [answer for answer in store.completions(round=newest) if answer.prompt_id in prompts]
    questions = choose_questions(
        recipe.feedback.question_strategy if recipe is not None else "spread",
        list(prompts.values()),
        answers,
        _newest_scores(store, [answer.id for answer in answers]),
        n=n,
        round=newest,
        seed=recipe.seed if recipe is not None else 0,
        already_asked=_asked(store, {answer.id for answer in answers}),
    )
    overlap = recipe.annotation.overlap if recipe is not None else 1
    return store.add_questions([replace(question, overlap=overlap) for question in questions])


def _newest_scores(store: Store, completion_ids: list[str]) -> list[Score]:
    """Those of the reward model that scored these answers last: scores of several cannot be compared."""
    scores = store.scores(completion_ids=completion_ids)
    return [score for score in scores if score.reward_model == scores[-1].reward_model]


def _asked(store: Store, completion_ids: set[str]) -> set[frozenset[str]]:
    """Pairs of these answers that were asked about, or judged without being asked."""
    asked: list[Question] = store.questions()
    pairs = {frozenset((question.a_id, question.b_id)) for question in asked}
    column = tables.feedback.c
    with store.database.read() as connection:
        judged = connection.execute(sa.select(column.a_id, column.b_id).where(column.pair.is_not(None)).distinct())
        pairs.update(frozenset((row.a_id, row.b_id)) for row in judged)
    return {pair for pair in pairs if pair <= completion_ids}
