"""Times, ids, likes and scales, however they are written."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples.real_feedback import PAIR, TALK, imported, mlflow, ratings, read_rows, write

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.files.row import RowError
from rlhf_loop.feedback.importers.fields import id_of
from rlhf_loop.feedback.importers.times import time_of
from rlhf_loop.feedback.importers.words import speaks_of_good, thumb_named, thumb_of, winner_of
from rlhf_loop.feedback.intake.import_file import scale_map
from rlhf_loop.feedback.intake.read_whole import read
from rlhf_loop.recipe import Import
from rlhf_loop.records import Thumb

# Times and ids


@pytest.mark.parametrize(
    "value",
    [
        "2024-05-01T12:00:00Z", "2024-05-01 12:00:00", "2024-05-01T14:00:00+02:00", "2024-05-01T12:00:00.000000000Z",
        "2024-05-01 12:00:00 UTC", "20240501T120000Z", "Wed, 01 May 2024 12:00:00 GMT", 1714564800, 1714564800.0,
        1714564800000, 1714564800000000, 1714564800000000000, "1714564800", "1714564800000", "1.7145648e12",
        datetime(2024, 5, 1, 12), datetime(2024, 5, 1, 12, tzinfo=UTC), Decimal(1714564800),
        {"$date": "2024-05-01T12:00:00Z"},
    ],
)  # fmt: skip
def test_times_are_read_in_every_unit(value: Any) -> None:
    assert time_of(value, "t") == 1714564800.0


def test_what_is_no_time_is_refused() -> None:
    assert (time_of(None, "t"), time_of("", "t"), time_of(date(1970, 1, 2), "t")) == (0.0, 0.0, 86400.0)
    far = "1 Jan 99999999999999999999 00:00:00"
    for value in ("yesterday", True, [], "nan", float("inf"), 10**400, far, "1 Jan 2020 10:00:00 +99999999999999"):
        with pytest.raises(RowError, match="must be a time such as"):
            time_of(value, "t")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_of_arrow_are_times(tmp_path: Path, unit: str) -> None:
    moment = datetime(2024, 5, 1, 12)
    table = pa.table(
        {**{name: [text] for name, text in PAIR.items()}, "created_at": pa.array([moment], pa.timestamp(unit))}
    )
    pq.write_table(table, tmp_path / "f.parquet", coerce_timestamps=None)
    assert [f.created_at for f in read(tmp_path / "f.parquet").feedback] == [1714564800.0]


@pytest.mark.parametrize("value", ["2024-05-01T12:00:00Z", 1714564800000, "1714564800000", "1714564800000000000"])
def test_times_are_read_by_every_format_and_are_no_personal_data(tmp_path: Path, value: Any) -> None:
    rows = {
        "pairs": {**PAIR, "created_at": value},
        "trl": {"prompt": "Why?", "completion": "Light.", "label": True, "created_at": value},
        "tutorial": {"input": "Why?", "response": "Light.", "feedback": "good", "created_at": value},
        "chat": {"messages": [*TALK[:1], *TALK[1:]], "feedback": "up", "created_at": value},
        "hh-rlhf": {"chosen": "\n\nHuman: Why?\n\nAssistant: Light.", "rejected": "\n\nHuman: Why?\n\nAssistant: No.",
                    "created_at": value},
    }  # fmt: skip
    for format_name, row in rows.items():
        summary, feedback = imported(tmp_path, write(tmp_path / "f.jsonl", [row]))
        assert (summary.format, [f.created_at for f in feedback]) == (format_name, [1714564800.0])


def test_numbers_that_stand_for_somebody_are_the_same_however_they_are_written(tmp_path: Path) -> None:
    for value in (3, 3.0, "3", "3.0", Decimal(3), " 3 "):
        assert id_of(value, "id") == "3"
    assert [id_of(value, "id") for value in (None, "", float("nan"), "1.5", "v3.0")] == [
        None,
        None,
        None,
        "1.5",
        "v3.0",
    ]
    rows = [{**PAIR, "annotator": who, "id": who, "group": who} for who in (3.0, 3, "3")]
    result = read_rows(tmp_path, *rows)
    (feedback,), (prompt,) = result.feedback, result.prompts
    assert (feedback.annotator.id, feedback.external_id, prompt.group) == ("3", "3", "3")
    assert read_rows(tmp_path, {**PAIR, "annotator": {"id": 3.0}}).feedback[0].annotator.id == "3"


# Words


@pytest.mark.parametrize(
    "word",
    ["thumbs-up", "thumb_up", "Thumbs Up", "thumbsUp", "thumbup", "👍", "👍🏽", "+1", "1", "Like", "upvote", "up-vote",
     "UP!", ":+1:", ":thumbsup:", "👍 Thumbs up", "👍👍", "✅", "❤️", "Thumbs-Up"],
)  # fmt: skip
def test_likes_are_likes_however_they_are_written(word: str) -> None:
    assert thumb_of(word) is True


@pytest.mark.parametrize(
    "word",
    ["thumbs-down", "thumb_down", "Thumbs Down", "👎", "👎🏿", "-1", "Dislike", "down-vote", "❌", ":-1:"],
)
def test_dislikes_are_dislikes_however_they_are_written(word: str) -> None:
    assert thumb_of(word) is False


def test_other_words_are_neither() -> None:
    assert [thumb_of(word) for word in ("meh", "not good", "👍👎", "👍 but slow", "", None, [], 2, "thumb")] == [
        None
    ] * 9
    assert winner_of("Answer-2 is better") == "b"
    assert winner_of("Response A is much better") == "a"
    assert winner_of("Both are bad") == "both_bad"


@pytest.mark.parametrize(
    "name", ["is_toxic", "hallucination", "hasBias", "unsafe", "length", "is_code", "refusal", "incomplete"]
)
def test_names_that_ask_for_nothing_good_leave_yes_and_no_out(name: str) -> None:
    assert not speaks_of_good(name)
    assert [thumb_named(name, value) for value in (True, False, "yes", "no", 1, 0)] == [None] * 6


@pytest.mark.parametrize(
    "name", ["helpful", "user_satisfaction", "thumbs", "safety", "groundedness", "isCorrect", "stars"]
)
def test_names_that_ask_for_something_good_take_them(name: str) -> None:
    assert [thumb_named(name, value) for value in (True, "no")] == [True, False]


# Scales


@pytest.mark.parametrize(
    ("name", "values", "scale"),
    [
        ("stars", [1, 4], (1, 5)),
        ("stars", [1.0], (1, 5)),
        ("quality", [1, 0.25], (0, 1)),
        ("quality", [0, 1], (0, 1)),
        ("quality", [0, 4], (0, 5)),
        ("likert", [5, 7], (1, 7)),
        ("overall", [5, 7], (1, 10)),
        ("quality", [40, 85.5], (0, 100)),
        ("score", [-1, 0.5], (-1, 1)),
    ],
)
def test_a_question_has_one_scale_in_a_source(
    tmp_path: Path, name: str, values: list[float], scale: tuple[float, float]
) -> None:
    result = read_rows(tmp_path, mlflow(name, *values))
    assert ratings(result.feedback) == [(value, scale) for value in values]
    apart = [mlflow(name, values[0]), {**mlflow(name, *values[1:]), "trace_id": "2", "response": "B."}]
    assert {of for _, of in ratings(read_rows(tmp_path, *apart).feedback)} == {scale}


def test_a_scale_that_cannot_be_told_leaves_the_number_out(tmp_path: Path) -> None:
    assert read_rows(tmp_path, mlflow("quality", 1)).notes == {"the scale of quality is not known": 1}
    assert ratings(read_rows(tmp_path, mlflow("quality", 4000)).feedback) == []
    assert ratings(read_rows(tmp_path, mlflow("word_count", 4)).feedback) == []


def test_a_scale_may_be_said(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", [mlflow("quality", 1, 4), mlflow("is_toxic", False), mlflow("toxicity", 0.25)])
    given = scale_map(["quality=1:7", "toxicity=1:0", "is_toxic=1:0"][:2])
    summary, feedback = imported(tmp_path, path, scales=given)
    assert ratings(feedback) == [(1, (1, 7)), (4, (1, 7)), (0.75, (0, 1))]
    assert [note for note in summary.notes if "is_toxic says neither good nor bad" in note]
    outside = write(tmp_path / "g.jsonl", [mlflow("quality", 9), mlflow("quality", 3)])
    summary, _ = (
        imported(tmp_path, outside, scales=given | {})
        if False
        else imported(tmp_path, outside, scales={"quality": (1, 7)})
    )
    assert (summary.accepted, summary.rejected) == (1, 1)
    assert "`quality` is 9, outside its scale 1 to 7" in summary.examples[0].reason
    with pytest.raises(UserError, match=r"--scale stars=...: there is no such question; there are: quality"):
        imported(tmp_path, outside, scales={"stars": (1, 5)})
    for wrong in ("quality", "quality=1", "quality=1:1", "quality=a:b", "=1:5", "q=1:inf"):
        with pytest.raises(UserError, match="give NAME=LOW:HIGH"):
            scale_map([wrong])


def test_true_and_false_of_a_named_metric_may_be_said(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", [mlflow("is_toxic", False, True)])
    _, feedback = imported(tmp_path, path, scales={"is_toxic": (1, 0)})
    assert [f.label for f in feedback if isinstance(f, Thumb)] == [True, False]


def test_a_number_in_a_chat_log_stands_on_its_files_scale(tmp_path: Path) -> None:
    rows = [{"messages": TALK, "rating": 4, "id": 1}, {"messages": TALK, "rating": 8, "id": 2}]
    assert ratings(read_rows(tmp_path, *rows).feedback) == [(4, (1, 10)), (8, (1, 10))]
    tutorial = [{"input": "Q?", "response": "A.", "feedback": n, "id": n} for n in (1, 5)]
    assert ratings(read_rows(tmp_path, *tutorial).feedback) == [(1, (1, 5)), (5, (1, 5))]
    assert "--scale feedback=1:5" in read_rows(tmp_path, tutorial[0]).refused[0].reason


def test_an_import_of_a_recipe_may_say_its_scales() -> None:
    assert Import.model_validate({"path": "x.jsonl", "scale": {"quality": [1, 7]}}).scale == {"quality": (1.0, 7.0)}
    with pytest.raises(ValueError, match="its worst and its best number"):
        Import.model_validate({"path": "x.jsonl", "scale": {"quality": [1, 1]}})


def test_numbers_of_metrics_may_be_text(tmp_path: Path) -> None:
    assert ratings(read_rows(tmp_path, mlflow("rating", "4", "2.5")).feedback) == [(4, (1, 5)), (2.5, (1, 5))]
    number = {"from_name": "quality", "to_name": "r", "type": "number", "value": {"number": 4}}
    errors = {**number, "from_name": "errors"}
    said = [{"id": 2, "completed_by": 3, "result": [number, errors]}]
    row = {"id": 1, "data": {"prompt": "Q?", "response": "A."}, "annotations": said}
    assert ratings(read_rows(tmp_path, row).feedback) == [(4, (1, 5))]


def test_times_of_mongodb_are_read_and_those_after_the_year_9999_are_none() -> None:
    assert time_of({"$date": {"$numberLong": "1704067200000"}}, "created_at") == 1704067200.0
    with pytest.raises(RowError, match="must be a time"):
        time_of(1e30, "created_at")
