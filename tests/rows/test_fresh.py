"""Fresh candidates, and revisions, over answers that were complained of."""

from __future__ import annotations

from typing import Any

import pytest
from samples.feedback import completion, prompt

from rlhf_loop.critique_methods import Fresh, Revisions
from rlhf_loop.records import Completion, CritiquedCompletion, PreferencePair
from rlhf_loop.rows.critiques import Material, pairs_of
from rlhf_loop.rows.critiques.fresh import answers, complained_of
from rlhf_loop.rows.parts import answer

PROMPTS = [prompt("p"), prompt("q")]


def row(id: str, text: str, label: bool | None = False, prompt_id: str = "p", who: str = "ann", **more: Any) -> Any:
    given = {"group": prompt_id, "prompt": PROMPTS[0].messages, "origin": "human", "annotator": who, **more}
    return CritiquedCompletion(
        id=f"{id} {who}", prompt_id=prompt_id, completion_id=id, completion=answer(text), label=label,
        feedback_ids=(f"{id} by {who}",), **given,
    )  # fmt: skip


def made(
    rows: list[CritiquedCompletion], scores: dict[str, float], candidates: list[Completion], margin: float = 0.0
) -> tuple[list[PreferencePair], dict[str, int]]:
    material = Material(
        critiques=rows, prompts=PROMPTS, candidates=candidates, scores=scores, reward_model="rm", round=2
    )
    pairs, dropped = pairs_of("fresh", Fresh(margin=margin), material)
    return pairs, dict(dropped)


BAD = row("bad", "It reflects the sea.", token_ids=(1, 2), round=1, critique="That is the cause of the sea's colour.")
CANDIDATES = [
    completion("x", "Because of dust.", finish_reason="length"),
    completion("y", "Because of scattering.", token_ids=(3, 4)),
    completion("z", " It reflects the sea. "),
]


def test_the_best_fresh_candidate_goes_over_the_answer() -> None:
    (pair,), dropped = made([BAD], {"bad": 0.0, "x": 0.5, "y": 1.25, "z": 9.0}, CANDIDATES)
    assert (pair.chosen_id, pair.rejected_id, pair.margin) == ("y", "bad", 1.25)
    assert pair.chosen[0]["content"] == "Because of scattering."
    assert pair.rejected == answer("It reflects the sea.")
    assert (pair.chosen_token_ids, pair.rejected_token_ids) == ((3, 4), (1, 2))
    assert (pair.origin, pair.reward_model, pair.feedback_ids, pair.round) == ("fresh", "rm", ("bad by ann",), 1)
    assert pair.critiques == ("That is the cause of the sea's colour.",)
    assert dropped == {}


@pytest.mark.parametrize(
    ("scores", "margin", "reason"),
    [
        ({"bad": 0.0, "x": 0.5, "y": 0.5}, 0.6, "none_better_by_the_margin"),
        ({"bad": 1.0, "x": 0.5, "y": 0.5}, 0.0, "none_better_by_the_margin"),
        ({"bad": 0.5, "x": 0.5, "y": 0.5}, 0.0, "none_better_by_the_margin"),
        ({"x": 0.5, "y": 0.5}, 0.0, "without_a_score"),
        ({"bad": 0.0, "z": 9.0}, 0.0, "all_candidates_are_copies"),
    ],
)
def test_without_a_better_one_there_is_no_pair_and_it_is_counted(
    scores: dict[str, float], margin: float, reason: str
) -> None:
    assert made([BAD], scores, CANDIDATES, margin) == ([], {reason: 1})


def test_a_margin_is_reached_by_what_is_as_much_better() -> None:
    assert len(made([BAD], {"bad": 0.0, "y": 0.5}, CANDIDATES, margin=0.5)[0]) == 1


def test_a_prompt_that_was_not_drawn_gives_none() -> None:
    elsewhere = row("bad", "Ten minutes.", prompt_id="q")
    assert made([elsewhere], {"bad": 0.0, "y": 1.0}, CANDIDATES) == ([], {"prompt_was_not_drawn": 1})


def test_one_that_was_complained_of_is_never_the_better_side() -> None:
    also = row("y", "Because of scattering.", who="bob")
    pairs, _ = made([BAD, also], {"bad": 0.0, "x": 0.5, "y": 1.25}, CANDIDATES)
    assert [(pair.chosen_id, pair.rejected_id) for pair in pairs] == [("x", "bad")]


def test_an_answer_that_as_many_call_good_is_not_complained_of() -> None:
    praised = row("bad", "It reflects the sea.", label=True, who="bob")
    unsure = row("bad", "It reflects the sea.", label=None, who="eve")
    assert complained_of([BAD, praised, unsure]) == {}
    thrice = [BAD, praised, row("bad", "It reflects the sea.", who="eve")]
    assert list(complained_of(thrice)) == ["bad"]
    (pair,), _ = made(thrice, {"bad": 0.0, "y": 1.0}, CANDIDATES)
    assert pair.feedback_ids == ("bad by ann", "bad by eve")


def revised(
    candidates: list[Completion], scores: dict[str, float], margin: float = 0.0
) -> tuple[list[PreferencePair], dict[str, int]]:
    material = Material(
        critiques=[BAD], prompts=PROMPTS, candidates=candidates, scores=scores, reward_model="rm", round=2
    )
    pairs, dropped = pairs_of("revisions", Revisions(margin=margin), material)
    return pairs, dict(dropped)


def test_the_best_revision_goes_over_what_it_revises() -> None:
    candidates = [
        completion("x", "Because of scattering.", parent="bad", critique=BAD.critique, token_ids=(3, 4)),
        completion("y", "Because of dust.", parent="bad"),
        completion("z", "Because of everything."),  # fresh, and better
    ]
    (pair,), dropped = revised(candidates, {"bad": 0.0, "x": 0.5, "y": 0.25, "z": 9.0})
    assert (pair.chosen_id, pair.rejected_id, pair.margin, pair.origin) == ("x", "bad", 0.5, "revision")
    assert (pair.prompt, pair.chosen_token_ids, pair.feedback_ids) == (BAD.prompt, (3, 4), ("bad by ann",))
    assert dropped == {}
    assert revised(candidates, {"bad": 0.0, "x": 0.5, "y": 0.25}, margin=0.6) == ([], {"none_better_by_the_margin": 1})


@pytest.mark.parametrize(
    ("candidate", "scores", "reason"),
    [
        (completion("x", "Dust.", parent="gone"), {"x": 1.0}, "of_an_answer_without_a_complaint"),
        (completion("x", " It reflects the sea.", parent="bad"), {"bad": 0.0, "x": 1.0}, "copies"),
        (completion("x", "Dust.", parent="bad"), {"bad": 0.0}, "without_a_score"),
        (completion("x", "Dust.", parent="bad"), {"x": 1.0}, "without_a_score"),
        (completion("x", "Dust.", parent="bad"), {"bad": 1.0, "x": 1.0}, "none_better_by_the_margin"),
    ],
)
def test_a_revision_that_gives_no_pair_is_counted(candidate: Completion, scores: dict[str, float], reason: str) -> None:
    assert revised([candidate], scores) == ([], {reason: 1})


def test_what_is_scored_is_the_answer_as_it_was_written() -> None:
    (one,) = answers([BAD, row("bad", "It reflects the sea.", who="bob")])
    assert (one.id, one.text, one.token_ids, one.finish_reason, one.by_policy) == (
        "bad", "It reflects the sea.", (1, 2), "stop", True,
    )  # fmt: skip
    (brought,) = answers([row("in", "Ten", finished=False, by_policy=False)])
    assert (brought.finish_reason, brought.by_policy) == ("length", False)
