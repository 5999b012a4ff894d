"""What the loop takes into the store of what a step made: models, answers, scores, and what was trained on what.

Each is written by its id, so that a second time changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import read_json
from rlhf_loop.files.damage import reading
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Artifact, Completion, Score
from rlhf_loop.steps.ask import read_ask


def keep_model(
    store: Store,
    folder: Path,
    n: int,
    id: str,
    kind: Literal["policy", "reward_model", "judge"],
    parent: str | None = None,
    rows: Sequence[Path] = (),
) -> Artifact:
    """The model that a training stage of round `n` left in `folder`, with its metrics. `rows`: the files of what it
    learned from, whose `feedback_ids` it was trained on."""
    model = Artifact(
        id=id,
        kind=kind,
        path=str(folder / "policy" if kind == "policy" else folder),
        round=n,
        parent=parent,
        trained_on=tuple(sorted({id for file in rows for id in feedback_ids(file)})),
        metrics=read_json(folder / "metrics.json"),
    )
    store.add_artifact(model)
    return model


def keep_reward_model(
    store: Store, folder: Path, n: int, kind: Literal["reward_model", "judge"], rows: Sequence[Path] = ()
) -> Artifact:
    """As `keep_model`, with the id that the stage gave it."""
    return keep_model(store, folder, n, read_json(folder / "components.json")["id"], kind, rows=rows)


def keep_completions(store: Store, file: Path) -> list[Completion]:
    """Answers that a policy wrote."""
    written: list[Completion] = read_records(file, Completion)
    store.add_completions(written)
    return written


def keep_scores(store: Store, folder: Path) -> float | None:
    """What a reward model said of answers; gives its mean."""
    scores: list[Score] = read_records(folder / "scores.parquet", Score)
    store.add_scores(scores)
    return sum(score.value for score in scores) / len(scores) if scores else None


def keep_questions(store: Store, folder: Path, overlap: int | None, annotator: str = "") -> str:
    """Questions, each for `overlap` people, and the answers that an automatic annotator gave, who is called
    `annotator`; says so in words."""
    questions, answers = read_ask(folder)
    if overlap is not None:
        questions = [replace(question, overlap=overlap) for question in questions]
    store.add_questions(questions)
    store.add_feedback(answers)
    skipped = sum(answer.kind == "skip" for answer in answers)
    without = f"; {skipped} of them without an answer, see ask/summary.json" if skipped else ""
    who = f"answered by {annotator or 'an automatic annotator'}{without}" if answers else "queued for people"
    return f"{len(questions)} questions, {who}"


def feedback_ids(rows: Path) -> list[str]:
    """All `feedback_ids` of a file of training rows."""
    import pyarrow.parquet as pq

    with reading(rows):
        if "feedback_ids" not in pq.read_schema(rows).names:  # a file without rows has no columns
            return []
        lists: list[Any] = pq.read_table(rows, columns=["feedback_ids"]).column(0).to_pylist()
    return sorted({id for ids in json.loads(f"[{','.join(lists)}]") for id in ids})
