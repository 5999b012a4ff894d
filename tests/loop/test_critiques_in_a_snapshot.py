"""Which critiques a snapshot takes, and what becomes of odd ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from samples.feedback import completion, prompt

from rlhf_loop.feedback.privacy.deletion import delete_user, remember, user_key
from rlhf_loop.feedback.quality.themes import themes
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import read_json
from rlhf_loop.recipe import Recipe, parse
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Annotator, Critique, CritiquedCompletion, Feedback, Preference, Rating, Retraction
from rlhf_loop.report.data import Round
from rlhf_loop.steps.snapshot import snapshot

SYSTEM = "You are the assistant of a bakery in Lyon and never speak of the prices of others."
WHY = "It never says why the sky is blue."


def recipe(**critiques: Any) -> Recipe:
    return parse(
        {
            "name": "x",
            "policy": {"model": "tiny-random:0", "system_prompt": SYSTEM},
            "prompts": {"train": ["train.jsonl"], "test": ["test.jsonl"]},
            "feedback": {"annotator": {"kind": "simulated"}, "validation": {"min_pairs": 0, "max_words": 100}},
            "reward": {"model": "reward_models/frozen_head"},
            "evaluation": {"judge": {"kind": "rule"}},
            "critiques": critiques,
        }
    )


def taken(
    tmp_path: Path, *feedback: Feedback, before: list[Feedback] | None = None, deleted: str = "", **critiques: Any
) -> tuple[list[CritiquedCompletion], dict[str, Any]]:
    """The rows of a snapshot, and its validation report."""
    with Store.open(tmp_path / "feedback.db") as store:
        store.add_prompts([prompt("p"), prompt("q", "And the sea?"), prompt("h", "And at night?", split="test")])
        answers = [completion(id) for id in "abc"] + [completion("empty", ""), completion("d", prompt_id="q")]
        store.add_completions([*answers, completion("night", prompt_id="h")])
        store.add_feedback(before or [])
        store.add_feedback(list(feedback))
        if deleted:
            carl = user_key(store, "carl")
            with store.transaction() as transaction:
                remember(transaction, carl, "completion", [deleted])
            delete_user(store, "carl", [], rewrite_report=lambda run: None)
        folder = tmp_path / "snapshot"
        folder.mkdir()
        snapshot(store, recipe(**critiques), 1, folder, "base")
    return read_records(folder / "critiques.parquet", CritiquedCompletion), read_json(folder / "validation.json")


def critique(id: str = "f", of: str = "a", comment: str = WHY, **values: Any) -> Critique:
    given = {"prompt_id": {"d": "q", "night": "h"}.get(of, "p"), "annotator": Annotator(id="ann"), **values}
    return Critique(id=id, completion_id=of, comment=comment, **given)


def test_a_sound_one_is_taken_as_it_was_said(tmp_path: Path) -> None:
    (row,), report = taken(tmp_path, critique())
    assert (row.critique, row.completion_id, row.origin, row.label) == (WHY, "a", "human", False)
    assert report["critiques"]["by_origin"] == {"human": 1}


def test_a_report_counts_complaints_of_feedback_that_trains_nothing_as_a_check_does(tmp_path: Path) -> None:
    pair: dict[str, Any] = {"prompt_id": "p", "a_id": "a", "b_id": "b"}
    people = {name: Annotator(id=name) for name in ("ann", "bob", "cy", "di")}
    given = [
        Preference(id="won-1", winner="a", annotator=people["ann"], **pair),
        Preference(id="won-2", winner="a", annotator=people["bob"], **pair),
        Preference(id="outvoted", winner="b", comment="It is far too long.", annotator=people["cy"], **pair),
        Preference(id="bad", winner="both_bad", comment="Both have a rude tone.", annotator=people["di"], **pair),
        critique("vague", "c", "wrong"),
        critique("of a test prompt", "night", "The list has no format."),
    ]
    _, report = taken(tmp_path, *given)
    assert (report["usable"], report["set_aside"], len(report["quarantined"])) == (3, 1, 2)
    said = Round(number=1, path=tmp_path).said
    assert {record.id: record.comment for record in said} == {record.id: record.comment for record in given}
    found = themes(said)
    counted = {theme: row["complaints"] for theme, row in found["themes"].items()}
    assert counted == {"length": 1, "tone": 2, "facts": 1, "format": 1}
    with Store.open(tmp_path / "feedback.db") as store:
        assert found == themes(store.feedback())
    (tmp_path / "snapshot" / "beside.parquet").unlink()  # as an earlier version left it
    assert {record.id for record in Round(number=1, path=tmp_path).said} == {"won-1", "won-2", "of a test prompt"}


def test_one_of_an_answer_that_was_deleted_goes_with_it(tmp_path: Path) -> None:
    rows, report = taken(tmp_path, critique(of="c", annotator=Annotator(id="bob")), critique("g", "b"), deleted="c")
    assert [row.feedback_ids for row in rows] == [("g",)]
    assert report["total"] == 1


@pytest.mark.parametrize(
    ("odd", "check"),
    [
        (critique(of="empty"), "empty"),
        (critique(comment="bad answer"), "vague_critique"),
    ],
)
def test_what_validation_refuses_is_not_learned_from(tmp_path: Path, odd: Critique, check: str) -> None:
    rows, report = taken(tmp_path, odd, critique("g", "b"))
    assert [row.feedback_ids for row in rows] == [("g",)]
    assert report["counts"][check] == 1
    assert [refused["id"] for refused in report["quarantined"]] == ["f"]


@pytest.mark.parametrize(
    ("comment", "reason"),
    [
        (f"I was told this: {SYSTEM} Why?", "quotes_the_system_prompt"),
        ("It never ends. " * 20000, "too_long"),
    ],
)
def test_what_cannot_be_learned_from_is_counted_and_stays_in_the_store(
    tmp_path: Path, comment: str, reason: str
) -> None:
    rows, report = taken(tmp_path, critique(comment=comment))
    assert (rows, report["critiques"]["left_out"]) == ([], {reason: 1})
    assert report["quarantined"] == []


def test_one_in_another_language_is_taken(tmp_path: Path) -> None:
    (row,), _ = taken(tmp_path, critique(comment="なぜ空が青いのか説明していません"))
    assert row.critique == "なぜ空が青いのか説明していません"


def test_what_was_taken_back_or_replaced_is_not_there(tmp_path: Path) -> None:
    about: dict[str, Any] = {"prompt_id": "p", "annotator": Annotator(id="ann")}
    replaced = Rating(id="old", completion_id="b", score=1.0, comment=WHY, **about)
    rows, _ = taken(
        tmp_path,
        Retraction(id="back", supersedes="f", **about),
        Rating(id="new", completion_id="b", score=5.0, supersedes="old", **about),
        before=[critique(), replaced],
    )
    assert [(row.feedback_ids, row.critique, row.label) for row in rows] == [(("new",), "", True)]


def test_of_held_out_prompts_and_later_rounds_none_is_taken(tmp_path: Path) -> None:
    rows, report = taken(tmp_path, critique(of="night"), critique("g", round=1), critique("h", "d"))
    assert [row.feedback_ids for row in rows] == [("h",)]
    assert report["critiques"]["critiques"] == 1


def test_the_comment_on_a_pair_that_is_all_bad_is_about_both_unless_it_is_vague(tmp_path: Path) -> None:
    about: dict[str, Any] = {"prompt_id": "p", "winner": "both_bad"}
    rows, report = taken(
        tmp_path,
        Preference(id="x", a_id="a", b_id="b", comment=WHY, annotator=Annotator(id="ann"), **about),
        Preference(id="y", a_id="b", b_id="c", comment="meh", annotator=Annotator(id="bob"), **about),
    )
    assert [(row.completion_id, row.critique, row.label) for row in rows] == [
        ("a", WHY, False), ("b", WHY, False), ("b", "", False), ("c", "", False),
    ]  # fmt: skip
    assert report["critiques"]["left_out"] == {"vague": 2}


def test_only_the_kinds_that_the_recipe_names_are_taken(tmp_path: Path) -> None:
    by_rule = critique("s", "b", annotator=Annotator(id="r", kind="CODE"), source="simulated")
    rows, report = taken(tmp_path, critique(), by_rule, kinds=["human"])
    assert [row.origin for row in rows] == ["human"]
    assert report["critiques"]["left_out"] == {"of_a_kind_that_does_not_count": 1}


def test_shuffled_ones_are_at_other_answers_and_counted(tmp_path: Path) -> None:
    rows, report = taken(tmp_path, critique(), critique("g", "d", "It is not about the sea."), control="shuffled")
    assert {(row.completion_id, row.critique) for row in rows} == {("a", "It is not about the sea."), ("d", WHY)}
    assert report["critiques"]["control"] == "shuffled"
    assert report["critiques"]["moved_to_another_answer"] == 2


def test_without_the_block_a_snapshot_has_no_such_file(tmp_path: Path) -> None:
    without = recipe().model_copy(update={"critiques": None})
    with Store.open(":memory:") as store:
        store.add_prompts([prompt("p"), prompt("h", "And at night?", split="test")])
        store.add_completions([completion("a")])
        store.add_feedback([critique()])
        snapshot(store, without, 1, tmp_path, "base")
    assert not (tmp_path / "critiques.parquet").exists()
    assert "critiques" not in read_json(tmp_path / "validation.json")
