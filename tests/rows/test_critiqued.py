"""What was said of answers, as rows: which answer it is about, what counts, and the shuffled control."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from samples.feedback import completion, prompt

from rlhf_loop.critique_methods import Edits
from rlhf_loop.feedback.vague import is_vague
from rlhf_loop.records import (
    Annotator,
    Critique,
    CritiquedCompletion,
    Edit,
    Feedback,
    Preference,
    Prompt,
    Rating,
    Span,
    Thumb,
)
from rlhf_loop.rows.critiqued import Limits, counts_of, critique_lines, critiqued_completions, shuffled
from rlhf_loop.rows.critiques import Material, pairs_of

SYSTEM = "You are Ada, the assistant of a shop in Ghent, and never name the prices of others."
PROMPTS = {p.id: p for p in (prompt("p"), prompt("q", "How long do eggs boil?"))}
ANSWERS = {
    c.id: c
    for c in (
        completion("a", "Because of Rayleigh scattering.", token_ids=(5, 6, 7)),
        completion("b", "It reflects the sea."),
        completion("c", "Ten minutes.", "q"),
    )
}
COMMENT = "It names a cause that is not the cause."


def rows_of(*feedback: Feedback, **limits: Any) -> tuple[list[CritiquedCompletion], dict[str, int]]:
    given = {"kinds": ("human", "simulated", "llm", "code"), "max_words": 50, **limits}
    rows, left_out = critiqued_completions(
        feedback, ANSWERS, PROMPTS, Limits(is_vague=partial(is_vague, min_words=3), **given)
    )
    return rows, dict(left_out)


def said(kind: type[Any], id: str, who: str = "ann", of: Annotator | None = None, **values: Any) -> Any:
    place = {} if "a_id" in values else {"completion_id": values.pop("completion_id", "b")}
    about = place.get("completion_id") or values["a_id"]
    given = {"prompt_id": ANSWERS[about].prompt_id, "annotator": of or Annotator(id=who), **place}
    return kind(id=id, **given, **values)


def pair(id: str, winner: str, comment: str | None = COMMENT, **values: Any) -> Preference:
    given: Preference = said(Preference, id, a_id="a", b_id="b", winner=winner, comment=comment, **values)
    return given


@pytest.mark.parametrize(("winner", "about"), [("a", ["b"]), ("b", ["a"]), ("both_bad", ["a", "b"])])
def test_a_comment_on_a_pair_is_about_what_lost(winner: str, about: list[str]) -> None:
    rows, left_out = rows_of(pair("f", winner))
    assert [(row.completion_id, row.critique, row.label) for row in rows] == [(id, COMMENT, False) for id in about]
    assert left_out == {}
    assert all(row.feedback_ids == ("f",) and row.annotator == "ann" and row.origin == "human" for row in rows)


def test_both_bad_is_a_complaint_without_words_and_a_lost_pair_is_none() -> None:
    rows, left_out = rows_of(pair("f", "both_bad", None), pair("g", "a", None), pair("h", "a", "too bad"))
    assert [(row.completion_id, row.critique, row.label) for row in rows] == [("a", "", False), ("b", "", False)]
    assert left_out == {"vague": 1}


def test_a_comment_on_a_tie_is_about_neither_and_counted() -> None:
    assert rows_of(pair("f", "tie")) == ([], {"about_neither_answer": 1})


def test_what_a_policy_wrote_keeps_its_tokens_and_its_prompt() -> None:
    (row,), _ = rows_of(pair("f", "b"))
    assert (row.token_ids, row.text) == ((5, 6, 7), "Because of Rayleigh scattering.")
    assert (row.prompt, row.group) == (PROMPTS["p"].messages, "p")


def test_thumbs_and_ratings_are_verdicts_with_or_without_words() -> None:
    rows, _ = rows_of(
        said(Thumb, "t", label=False),
        said(Thumb, "u", completion_id="a", label=True, comment="It names the right cause."),
        said(Rating, "r", completion_id="c", score=2.0),
        said(Rating, "s", who="bob", completion_id="c", score=4.0, scale=(5.0, 1.0)),
        said(Rating, "m", who="eve", completion_id="c", score=3.0),  # the middle, without words: nothing
        said(Rating, "n", who="eve", completion_id="b", score=3.0, comment="So so, but it names a cause."),
    )
    assert [(row.feedback_ids[0], row.label, bool(row.critique)) for row in rows] == [
        ("t", False, False), ("u", True, True), ("r", False, False), ("s", False, False), ("n", None, True),
    ]  # fmt: skip


def test_a_critique_calls_its_answer_bad_unless_the_same_person_called_it_good() -> None:
    rows, _ = rows_of(
        said(Critique, "c", comment=COMMENT),
        said(Critique, "d", who="bob", comment="It could name the cause too."),
        said(Thumb, "e", who="bob", label=True),
    )
    assert [(row.feedback_ids[0], row.label) for row in rows] == [("c", False), ("d", True), ("e", True)]


def test_the_same_words_of_the_same_person_are_one_row_with_the_spans() -> None:
    span = Span(start=3, end=11, label="incorrect")
    (row,), _ = rows_of(pair("f", "a"), said(Critique, "c", comment=COMMENT, spans=(span,)))
    assert (row.feedback_ids, row.spans, row.label) == (("f", "c"), (span,), False)
    rows, _ = rows_of(pair("f", "a"), said(Critique, "c", who="bob", comment=COMMENT))
    assert len(rows) == 2


def test_a_critique_of_tags_alone_is_a_complaint_without_words() -> None:
    tags = (Span(start=0, end=20, label="too long"),)
    (row,), _ = rows_of(said(Critique, "c", comment=None, spans=tags))
    assert (row.critique, row.label, row.spans) == ("", False, tags)


def test_counts_are_by_whom_and_say_what_was_left_out() -> None:
    counts = counts_of(*rows_of(pair("f", "a"), pair("g", "tie"), said(Thumb, "t", completion_id="c", label=True)))
    assert counts == {
        "critiques": 1,
        "by_origin": {"human": 1},
        "edits": 0,
        "answers_called": {"good": 1, "bad": 1},
        "left_out": {"about_neither_answer": 1},
    }
    assert critique_lines(counts) == [
        "critiques     1 to learn from (1 human), 0 edits; 1 answers called bad, 1 good",
        "  1 left out: about neither answer",
    ]


def test_what_is_said_of_a_part_stands_with_its_words() -> None:
    spans = (Span(start=3, end=11, comment="The sea reflects the sky."), Span(start=0, end=2, comment="bad"))
    (row,), _ = rows_of(said(Critique, "c", comment=None, spans=spans))
    assert row.critique == '"reflects": The sea reflects the sky.'


def test_an_edit_is_a_revision_and_its_comment_a_row_of_its_own() -> None:
    rows, _ = rows_of(said(Edit, "e", edited_completion=" Because of scattering. ", comment=COMMENT))
    assert [(row.revision, row.critique, row.label) for row in rows] == [
        ("Because of scattering.", "", None), (None, COMMENT, False),
    ]  # fmt: skip
    assert rows[0].id != rows[1].id


@pytest.mark.parametrize(
    ("comment", "reason"),
    [
        ("bad answer", "vague"),
        ("word " * 51, "too_long"),
        ("空が青い理由を言わない" * 100, "too_long"),
        (f"It says: {SYSTEM}", "quotes_the_system_prompt"),
        ("You ARE ada; the assistant of a shop in Rome?", "quotes_the_system_prompt"),
    ],
)
def test_a_critique_that_cannot_be_learned_from_is_left_out_and_counted(comment: str, reason: str) -> None:
    rows, left_out = rows_of(said(Critique, "c", comment=comment), system_prompt=SYSTEM)
    assert (rows, left_out) == ([], {reason: 1})
    rows, left_out = rows_of(said(Thumb, "t", label=False, comment=comment), system_prompt=SYSTEM)
    assert [(row.critique, row.label) for row in rows] == [("", False)]  # the verdict stays
    assert left_out == {reason: 1}


def test_a_conversations_own_system_prompt_is_not_quoted_either() -> None:
    asked = Prompt(id="p", group="p", messages=({"role": "system", "content": SYSTEM}, *PROMPTS["p"].messages))
    record = said(Critique, "c", comment=f"Its orders are: {SYSTEM}")
    limits = Limits(is_vague=lambda text: False, max_words=50, kinds=("human",))
    assert critiqued_completions([record], ANSWERS, {"p": asked}, limits)[1] == {"quotes_the_system_prompt": 1}


@pytest.mark.parametrize(
    "comment", ["Сказано, что море отражает небо.", "答えは間違っていて短すぎます", "Trop long et pas clair."]
)
def test_a_critique_in_any_language_counts(comment: str) -> None:
    (row,), left_out = rows_of(said(Critique, "c", comment=comment))
    assert (row.critique, left_out) == (comment, {})


def test_an_empty_comment_is_none() -> None:
    assert rows_of(said(Critique, "c", comment="  ")) == ([], {})
    assert rows_of(pair("f", "a", comment=" ")) == ([], {})


def test_only_the_kinds_that_count_and_each_by_its_own_name() -> None:
    feedback = [
        said(Critique, "h", comment=COMMENT),
        said(Critique, "s", of=Annotator(id="rule", kind="CODE"), comment=COMMENT, source="simulated"),
        said(Critique, "l", of=Annotator(id="judge", kind="LLM"), comment=COMMENT),
    ]
    rows, _ = rows_of(*feedback)
    assert [row.origin for row in rows] == ["human", "simulated", "llm"]
    rows, left_out = rows_of(*feedback, kinds=("human",))
    assert [row.origin for row in rows] == ["human"]
    assert left_out == {"of_a_kind_that_does_not_count": 2}


def many(counts: dict[str, int]) -> list[CritiquedCompletion]:
    return [
        CritiquedCompletion(
            id=f"{name}{n}", prompt_id=name, group=name, prompt=(), completion=(), completion_id=f"{name}{n}",
            critique=f"critique of {name}{n}", label=n % 2 == 0, origin="human", annotator="ann",
            feedback_ids=(f"f{name}{n}",), spans=(Span(start=0, end=1),),
        )
        for name, count in counts.items()
        for n in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("counts", [{"p": 1, "q": 1}, {"p": 3, "q": 2, "r": 1}, {"p": 1, "q": 2, "r": 3, "s": 6}])
def test_shuffled_critiques_all_stand_at_another_prompts_answer(counts: dict[str, int]) -> None:
    rows = many(counts)
    mixed = shuffled(rows, seed=3)
    assert sorted(row.critique for row in mixed) == sorted(row.critique for row in rows)
    assert [(row.id, row.completion_id, row.label) for row in mixed] == [(r.id, r.completion_id, r.label) for r in rows]
    for row in mixed:
        assert row.said_of is not None
        assert row.said_of[0] != row.prompt_id
        assert (row.critique, row.feedback_ids, row.spans) == (f"critique of {row.said_of}", (f"f{row.said_of}",), ())
    assert shuffled(rows, seed=3) == mixed
    ways = {tuple(row.critique for row in shuffled(rows, seed)) for seed in range(20)}
    assert len(ways) > 1 or len(rows) == 2  # two can only change places


def test_where_one_prompt_has_most_critiques_they_still_leave_their_answers() -> None:
    mixed = shuffled(many({"p": 5, "q": 2}), seed=0)
    assert all(row.said_of != row.completion_id for row in mixed)
    assert (
        sum(row.said_of[0] == row.prompt_id for row in mixed if row.said_of) == 3
    )  # four at least stay among the five


def test_a_lone_critique_stays_and_edits_and_bare_verdicts_are_not_moved() -> None:
    lone = many({"p": 1})
    assert shuffled(lone, seed=0) == lone
    assert shuffled([], seed=0) == []
    rows, _ = rows_of(
        said(Edit, "e", edited_completion="Scattering."), said(Thumb, "t", completion_id="c", label=False)
    )
    assert shuffled(rows, seed=0) == rows


def test_an_edit_is_better_than_what_was_edited() -> None:
    rows, _ = rows_of(
        said(Edit, "e", completion_id="a", edited_completion="Scattering."),
        said(Edit, "again", who="bob", completion_id="a", edited_completion="Scattering. "),
        said(Edit, "none", edited_completion="It reflects the sea.\n"),
        said(Critique, "c", comment=COMMENT),
    )
    (made,), dropped = pairs_of("edits", Edits(), Material(critiques=rows, prompts=(), round=1))
    assert made.chosen == ({"role": "assistant", "content": "Scattering."},)
    assert (made.rejected_id, made.rejected_token_ids, made.rejected_by_policy) == ("a", (5, 6, 7), True)
    assert (made.chosen_token_ids, made.chosen_by_policy, made.chosen_finished) == (None, False, True)
    assert (made.origin, made.feedback_ids) == ("edit", ("e",))
    assert dropped == {"the_same_edit_again": 1, "leaves_the_answer_as_it_was": 1}
