"""Step 10: pick the pairs most worth a person's time, and let an automatic annotator answer when there is one.

completions.parquet  scores.parquet  ->  questions.parquet  answers.parquet  summary.json
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_loop.annotators import make_annotator
from rlhf_loop.endpoints.client import Endpoints
from rlhf_loop.files import write_json
from rlhf_loop.progress import Progress, counting, silent
from rlhf_loop.recipe import Recipe
from rlhf_loop.record_files import read_records, write_records
from rlhf_loop.records import Completion, Feedback, Prompt, Question, Score
from rlhf_loop.rows.questions import choose_questions


def ask(
    recipe: Recipe,
    round: int,
    *,
    prompts: Path,
    completions: Path,
    scores: Path | None,
    folder: Path,
    run: Path | None = None,
    progress: Progress = silent,
) -> None:
    """Writes the questions, and the answers of the recipe's annotator (none when people answer). `run`: the folder that
    keeps what endpoints answer. `progress`: told of how many questions an endpoint has answered."""
    asked = {p.id: p for p in read_records(prompts, Prompt)}
    waiting: list[Completion] = read_records(completions, Completion)
    known: list[Score] | None = None if scores is None else read_records(scores, Score)
    questions = choose_questions(
        recipe.feedback.question_strategy,
        list(asked.values()),
        waiting,
        known,
        n=recipe.feedback.questions_per_round,
        round=round,
        seed=recipe.seed,
        already_asked=set(),
    )
    answers: Sequence[Feedback] = []
    if recipe.feedback.annotator is not None:
        with Endpoints(recipe.endpoints, run, counting(progress, "asking")) as endpoints:
            annotator = make_annotator(recipe.feedback.annotator, recipe.seed, endpoints)
            answers = annotator.answer(questions, {c.id: c for c in waiting}, asked, round)
    write_records(folder / "questions.parquet", questions)
    write_records(folder / "answers.parquet", answers)
    summary: dict[str, Any] = {
        "questions": len(questions),
        "answered": sum(answer.kind == "preference" for answer in answers),
        "given": dict(Counter(answer.kind for answer in answers)),
        "skipped": dict(Counter(answer.comment or "no reason" for answer in answers if answer.kind == "skip")),
        "annotator": recipe.feedback.annotator.kind if recipe.feedback.annotator else "people",
    }
    write_json(folder / "summary.json", summary)


def read_ask(folder: Path) -> tuple[list[Question], list[Any]]:
    """Questions and answers of a folder that `ask` made."""
    return (
        read_records(folder / "questions.parquet", Question),
        read_records(folder / "answers.parquet", Feedback),
    )
