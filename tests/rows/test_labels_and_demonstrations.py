"""Labels, demonstrations and best-of-n answers: what updates other than those on pairs train on."""

from __future__ import annotations

import pytest

from rlhf_loop.errors import UserError
from rlhf_loop.records import Annotator, Completion, Edit, Implicit, Preference, Prompt, Score, Thumb
from rlhf_loop.rows.demonstrations import best_of_n, demonstrations
from rlhf_loop.rows.labels import labels_from_feedback


def prompt(id: str, reference: str | None = None) -> Prompt:
    return Prompt(id=id, messages=({"role": "user", "content": f"Say {id}"},), group=id, reference=reference)


def completion(id: str, prompt_id: str = "p", finished: bool = True, sample: int = 0) -> Completion:
    reason = "stop" if finished else "length"
    return Completion(
        id=id, prompt_id=prompt_id, text=f"text {id}", policy="base", round=0, sample=sample, finish_reason=reason
    )


def thumb(id: str, about: str, label: bool, round: int = 0) -> Thumb:
    return Thumb(id=id, prompt_id="p", annotator=Annotator(id=id), completion_id=about, label=label, round=round)


def score(about: str, value: float, model: str = "m") -> Score:
    return Score(completion_id=about, reward_model=model, value=value)


PROMPTS = {"p": prompt("p")}
COMPLETIONS = {"a": completion("a"), "b": completion("b", finished=False), "c": completion("c")}


def test_each_thumb_is_a_label_that_knows_where_it_came_from() -> None:
    rows, dropped = labels_from_feedback([thumb("1", "a", True), thumb("2", "b", False, 3)], COMPLETIONS, PROMPTS)
    assert [(row.completion[0]["content"], row.label, row.finished) for row in rows] == [
        ("text a", True, True),
        ("text b", False, False),
    ]
    assert [(row.feedback_ids, row.round, row.origin) for row in rows] == [(("1",), 0, "human"), (("2",), 3, "human")]
    assert not dropped


def test_both_bad_is_a_thumb_down_for_both_and_a_decided_pair_is_no_label() -> None:
    def said(id: str, winner: str) -> Preference:
        return Preference(id=id, prompt_id="p", annotator=Annotator(id="x"), a_id="a", b_id="b", winner=winner)

    rows, _ = labels_from_feedback([said("1", "both_bad")], COMPLETIONS, PROMPTS)
    assert [(row.completion_id, row.label) for row in rows] == [("a", False), ("b", False)]
    assert labels_from_feedback([said("1", "a"), said("2", "tie")], COMPLETIONS, PROMPTS) == ([], {})


def test_thumbs_that_contradict_each_other_are_settled_or_counted() -> None:
    thumbs = [thumb("1", "a", True), thumb("2", "a", True), thumb("3", "a", False)]
    rows, dropped = labels_from_feedback(thumbs, COMPLETIONS, PROMPTS)
    assert [(row.label, row.feedback_ids) for row in rows] == [(True, ("1", "2"))]
    rows, dropped = labels_from_feedback(thumbs, COMPLETIONS, PROMPTS, "drop")
    assert (rows, dropped["contradictory_thumbs"]) == ([], 1)
    rows, dropped = labels_from_feedback(thumbs[1:], COMPLETIONS, PROMPTS)
    assert (rows, dropped["contradictory_thumbs"]) == ([], 1)


def act(id: str, action: str, about: str = "a", round: int = 0) -> Implicit:
    who = Annotator(id=id)
    return Implicit(id=id, prompt_id="p", annotator=who, completion_id=about, action=action, round=round)


def test_what_users_do_is_no_label_unless_the_recipe_says_so() -> None:
    acts = [act("1", "copy"), act("2", "regenerate", "b"), act("3", "copy", round=2)]
    rows, dropped = labels_from_feedback(acts, COMPLETIONS, PROMPTS)
    assert rows == []
    assert dropped == {"implicit_without_meaning": 3}
    rows, dropped = labels_from_feedback(acts, COMPLETIONS, PROMPTS, implicit={"copy": True})
    assert [(row.completion_id, row.label, row.origin, row.feedback_ids, row.round) for row in rows] == [
        ("a", True, "implicit", ("1", "3"), 2)
    ]
    assert dropped == {"implicit_without_meaning": 1}
    rows, _ = labels_from_feedback(acts, COMPLETIONS, PROMPTS, implicit={"copy": True, "regenerate": False})
    assert [(row.completion_id, row.label) for row in rows] == [("a", True), ("b", False)]


def test_a_thumb_about_an_answer_silences_what_users_did_with_it() -> None:
    said = [act("1", "copy"), act("2", "copy"), thumb("3", "a", False), act("4", "copy", "c")]
    rows, dropped = labels_from_feedback(said, COMPLETIONS, PROMPTS, implicit={"copy": True})
    assert [(row.completion_id, row.label, row.origin, row.feedback_ids) for row in rows] == [
        ("a", False, "human", ("3",)),
        ("c", True, "implicit", ("4",)),
    ]
    assert dropped == {"implicit_beside_a_thumb": 2}
    both = [thumb("1", "a", True), thumb("2", "a", False), act("3", "copy")]
    rows, dropped = labels_from_feedback(both, COMPLETIONS, PROMPTS, implicit={"copy": True})
    assert (rows, dropped["contradictory_thumbs"]) == ([], 1)


def test_acts_that_contradict_each_other_are_settled_as_thumbs_are() -> None:
    acts = [act("1", "copy"), act("2", "regenerate"), act("3", "regenerate")]
    meaning = {"copy": True, "regenerate": False}
    rows, _ = labels_from_feedback(acts, COMPLETIONS, PROMPTS, implicit=meaning)
    assert [(row.label, row.feedback_ids) for row in rows] == [(False, ("2", "3"))]
    rows, dropped = labels_from_feedback(acts[:2], COMPLETIONS, PROMPTS, implicit=meaning)
    assert (rows, dropped["contradictory_thumbs"]) == ([], 1)


def test_demonstrations_are_edits_and_references_each_text_once() -> None:
    prompts = {"p": prompt("p", reference="the answer"), "q": prompt("q", reference=" "), "r": prompt("r")}

    def edit(id: str, text: str) -> Edit:
        return Edit(id=id, prompt_id="p", annotator=Annotator(id="x"), completion_id="b", edited_completion=text)

    rows = demonstrations([edit("1", "better "), edit("2", "better"), edit("3", "the answer")], COMPLETIONS, prompts)
    assert [(row.completion[0]["content"], row.origin, row.feedback_ids) for row in rows] == [
        ("better", "edit", ("1",)),
        ("the answer", "edit", ("3",)),
    ]
    assert all(row.finished for row in rows)  # the answer that was edited was cut off; the edit is whole
    assert [row.origin for row in demonstrations([], {}, prompts)] == ["reference"]


def test_the_best_of_n_must_beat_the_mean_of_the_others_by_the_margin() -> None:
    candidates = [completion("a", sample=0), completion("b", finished=False, sample=1), completion("c", sample=2)]
    scores = [score("a", 0.0), score("b", 2.0), score("c", 1.0)]
    rows, summary = best_of_n([prompt("p")], candidates, scores, min_margin=1.5, round=2)
    assert [(row.completion_id, row.score, row.margin, row.finished) for row in rows] == [("b", 2.0, 1.5, False)]
    assert (rows[0].reward_model, rows[0].origin, rows[0].round) == ("m", "best_of_n", 2)
    rows, summary = best_of_n([prompt("p")], candidates, scores, min_margin=1.6, round=2)
    assert (rows, summary["prompts_without_margin"]) == ([], 1)
    level = [score("a", 1.0), score("b", 1.0), score("c", 1.0)]
    assert best_of_n([prompt("p")], candidates, level, min_margin=0.0, round=2)[0] == []


def test_one_answer_alone_is_never_the_best_and_is_counted() -> None:
    rows, summary = best_of_n([prompt("p")], [completion("a")], [score("a", 5.0)], min_margin=0.0, round=1)
    assert (rows, summary["prompts_with_one_answer"]) == ([], 1)


def test_scores_of_several_reward_models_are_not_compared() -> None:
    candidates = [completion("a"), completion("b")]
    with pytest.raises(UserError, match="several reward models"):
        best_of_n([prompt("p")], candidates, [score("a", 1.0), score("b", 2.0, "other")], min_margin=0.0, round=1)
