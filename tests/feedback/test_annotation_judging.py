"""One person's sitting, without a page."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from samples.annotation import fill_queue, held

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.asking.calibration import add_calibration, is_calibration_turn
from rlhf_loop.feedback.asking.judgements import Judgement, Remarks, shown_order
from rlhf_loop.feedback.asking.judging import Kept, extend, next_card, progress, submit, undo
from rlhf_loop.feedback.asking.top_up import queue_more
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Completion, Critique, Edit, Preference, Question, Retraction, Score, Skip, Span
from rlhf_loop.rows.pairs import pairs_from_feedback


def test_two_pages_that_one_person_opens_at_once_show_the_same_card(store: Store) -> None:
    fill_queue(store, 20)
    pages = 4
    for person in range(5):
        ready = threading.Barrier(pages)

        def open_page(who: str, ready: threading.Barrier = ready) -> str | None:
            ready.wait()
            card = next_card(store, who, 60)
            return card[0].id if card is not None else None

        with ThreadPoolExecutor(pages) as pool:
            found = list(pool.map(open_page, [f"person {person}"] * pages))
        assert [question.id for question in held(store, f"person {person}")] == found[:1]
        assert len(set(found)) == 1


def judge(store: Store, who: str, card: Question, verdict: Any = "first", submission: str = "s", **more: Any) -> Kept:
    judgement = Judgement(submission=f"{submission}-{card.id}", question_id=card.id, verdict=verdict, **more)
    return submit(store, who, judgement, round=0)


def card_of(store: Store, who: str, **more: Any) -> Question:
    found = next_card(store, who, 60, **more)
    assert found is not None
    return found[0]


def test_a_card_stays_with_its_person_until_it_is_answered(store: Store) -> None:
    fill_queue(store)
    first = card_of(store, "ann")
    assert card_of(store, "ann") == first
    assert card_of(store, "bob") != first
    judge(store, "ann", first)
    assert card_of(store, "ann").id == "q2"
    assert next_card(store, "cat", 60) is None


def test_the_order_differs_between_people_and_cards_and_stays(store: Store) -> None:
    questions = fill_queue(store, 40)
    orders = {who: [shown_order(who, question) for question in questions] for who in ("ann", "bob", "cat")}
    assert orders == {who: [shown_order(who, question) for question in questions] for who in orders}
    assert len({tuple(order) for order in orders.values()}) == 3
    assert all(10 <= order.count("ab") <= 30 for order in orders.values())


@pytest.mark.parametrize("verdict", ["first", "second", "tie", "both_bad"])
def test_a_verdict_is_stored_as_what_was_shown_where(store: Store, verdict: Any) -> None:
    for card in fill_queue(store, 4):
        judge(store, "ann", card, verdict, strength="slightly")
    for record in store.feedback():
        assert isinstance(record, Preference)
        assert record.shown_order == shown_order("ann", Question(**_named(store, record)))
        if verdict in ("tie", "both_bad"):
            assert (record.winner, record.strength) == (verdict, None)
        else:
            shown_as = {"first": 0, "second": 1}[verdict]
            assert (record.winner, record.strength) == (record.shown_order[shown_as], 0.5)
        assert record.source == "annotation"
        assert record.blind
        assert record.annotator.id == "ann"


def _named(store: Store, record: Preference) -> dict[str, Any]:
    found = next(question for question in store.questions() if question.id == record.external_id)
    return {name: getattr(found, name) for name in Question.__dataclass_fields__}


def test_critiques_and_edits_come_with_the_verdict(store: Store) -> None:
    (card,) = fill_queue(store, 1)
    order = shown_order("ann", card)
    remarks = (
        Remarks(comment="Say the number first.", tags=("too long",), spans=(Span(start=0, end=5, label="unclear"),)),
        Remarks(edit="It is 0."),
    )
    kept = judge(store, "ann", card, "second", strength="clearly", remarks=remarks, visible_seconds=7.0)
    preference, critique, edit = store.feedback()
    first, second = (card.a_id, card.b_id) if order == "ab" else (card.b_id, card.a_id)
    assert isinstance(preference, Preference)
    assert preference.comment == "Say the number first."
    assert isinstance(critique, Critique)
    assert (critique.completion_id, critique.comment) == (first, "Say the number first.")
    length = len(next(c.text for c in store.completions() if c.id == first))
    assert critique.spans == (Span(start=0, end=5, label="unclear"), Span(start=0, end=length, label="too long"))
    assert isinstance(edit, Edit)
    assert (edit.completion_id, edit.edited_completion) == (second, "It is 0.")
    assert set(kept.feedback_ids) == {preference.id, critique.id, edit.id}
    pairs, _ = pairs_from_feedback(
        [preference], {c.id: c for c in store.completions()}, {p.id: p for p in store.prompts()}
    )
    assert pairs[0].chosen_id == second
    assert pairs[0].critiques == ("Say the number first.",)


def test_an_edit_that_changes_nothing_is_none(store: Store) -> None:
    (card,) = fill_queue(store, 1)
    text = {c.id: c.text for c in store.completions()}
    order = shown_order("ann", card)
    shown = (card.a_id, card.b_id) if order == "ab" else (card.b_id, card.a_id)
    judge(store, "ann", card, remarks=(Remarks(edit=text[shown[0]] + "\n"), Remarks(edit="  ")))
    assert [record.kind for record in store.feedback()] == ["preference"]


def test_the_same_submission_twice_is_stored_once(store: Store) -> None:
    (card,) = fill_queue(store, 1)
    first = judge(store, "ann", card, remarks=(Remarks(comment="too vague to use"), Remarks()))
    again = judge(store, "ann", card, remarks=(Remarks(comment="too vague to use"), Remarks()))
    assert first == again
    assert len(store.feedback(effective=False)) == 2


def test_double_clicks_at_the_same_moment_store_one_record(store: Store) -> None:
    for card in fill_queue(store, 5):
        with ThreadPoolExecutor(8) as pool:
            kept = set(pool.map(lambda _, card=card: judge(store, "ann", card).feedback_ids, range(8)))
        assert len(kept) == 1
    assert len(store.feedback(effective=False)) == 5


def test_a_later_answer_to_the_same_card_replaces_the_earlier_one_and_its_remarks(store: Store) -> None:
    (card,) = fill_queue(store, 1)
    judge(store, "ann", card, "first", remarks=(Remarks(comment="I do not like this"), Remarks()))
    assert judge(store, "ann", card, "tie", submission="other tab").note == "replaced"
    assert [getattr(record, "winner", None) for record in store.feedback()] == ["tie"]


def test_an_answer_that_comes_late_fills_the_slot_when_it_is_free(store: Store) -> None:
    (card,) = fill_queue(store, 1)
    next_card(store, "ann", 0.0)
    assert judge(store, "ann", card).note == ""
    assert store.questions(status="open") == []


def test_an_answer_that_comes_too_late_is_kept_as_an_extra_one(store: Store) -> None:
    (card,) = fill_queue(store, 1)
    next_card(store, "ann", 0.0)
    judge(store, "bob", card_of(store, "bob"))
    assert judge(store, "ann", card).note == "extra"
    assert {record.annotator.id for record in store.feedback()} == {"ann", "bob"}


def test_a_lease_can_be_extended_while_it_lasts(store: Store) -> None:
    (card,) = fill_queue(store, 1)
    next_card(store, "ann", 60)
    assert extend(store, "ann", card.id, 60)
    assert not extend(store, "bob", card.id, 60)


def test_undo_gives_the_card_back_and_nobody_can_take_it_meanwhile(store: Store) -> None:
    (card,) = fill_queue(store, 1)
    card_of(store, "ann")
    judge(store, "ann", card, remarks=(Remarks(comment="Wrong, it is two."), Remarks(edit="It is 2.")))
    assert undo(store, "ann", 60, round=0) == card
    assert store.feedback() == []
    assert sum(isinstance(record, Retraction) for record in store.feedback(effective=False)) == 3
    assert next_card(store, "bob", 60) is None
    assert card_of(store, "ann") == card
    judge(store, "ann", card, "tie", submission="second thoughts")
    assert [getattr(record, "winner", None) for record in store.feedback()] == ["tie"]
    assert store.questions(status="open") == []


def test_undo_again_goes_further_back(store: Store) -> None:
    fill_queue(store, 2)
    for verdict in ("first", "skip"):
        judge(store, "ann", card_of(store, "ann"), verdict)
    assert [undo(store, "ann", 60, 0).id for _ in range(2)] == ["q1", "q0"]
    assert undo(store, "ann", 60, 0) is None
    assert store.feedback() == []
    assert progress(store, "ann", 0).total == 0


def test_undo_takes_nothing_back_that_was_not_said_here(store: Store) -> None:
    (card,) = fill_queue(store, 1)
    from samples.feedback import preference

    store.add_feedback([preference("imported", card.a_id, card.b_id, prompt_id=card.prompt_id, who="ann")])
    assert undo(store, "ann", 60, 0) is None


def test_a_skip_gives_the_card_to_somebody_else(store: Store) -> None:
    (card,) = fill_queue(store, 1)
    judge(store, "ann", card_of(store, "ann"), "skip")
    assert isinstance(store.feedback()[0], Skip)
    assert next_card(store, "ann", 60) is None
    assert card_of(store, "bob") == card


def test_the_lead_time_is_how_long_the_card_was_in_sight_but_never_longer_than_it_was_held(store: Store) -> None:
    fill_queue(store, 3)
    for seconds in (0.5, 500.0, None):
        judge(store, "ann", card_of(store, "ann"), visible_seconds=seconds)
    assert all(record.lead_time is not None and record.lead_time < 5 for record in store.feedback())


def test_feedback_counts_for_the_round_that_can_still_learn_from_it(store: Store) -> None:
    (card,) = fill_queue(store, 1)
    submit(store, "ann", Judgement(submission="s", question_id=card.id, verdict="tie"), round=3)
    assert store.feedback()[0].round == 3


def test_a_passage_outside_the_answer_is_refused_and_nothing_is_stored(store: Store) -> None:
    (card,) = fill_queue(store, 1)
    with pytest.raises(UserError, match="not inside answer A"):
        judge(store, "ann", card, remarks=(Remarks(spans=(Span(start=0, end=9999),)), Remarks()))
    with pytest.raises(UserError, match="no question"):
        submit(store, "ann", Judgement(submission="s", question_id="nowhere", verdict="tie"), round=0)
    assert store.feedback(effective=False) == []


def test_progress_counts_todays_cards_and_the_queue(store: Store) -> None:
    fill_queue(store, 3)
    judge(store, "ann", card_of(store, "ann"), "skip")
    judge(store, "ann", card_of(store, "ann"), "first", remarks=(Remarks(comment="a comment is no card"), Remarks()))
    found = progress(store, "ann", since=0)
    assert (found.today, found.total, found.open) == (2, 2, 2)
    assert progress(store, "ann", since=4e9).today == 0


# -- calibration -------------------------------------------------------------------------------------------------------


def calibration_file(folder: Path, n: int = 4) -> Path:
    rows = [{"prompt": f"Spell {i}.", "chosen": f"right {i}", "rejected": f"wrong {i}"} for i in range(n)]
    path = folder / "known.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_calibration_cards_are_mixed_in_for_everybody_once_and_no_round_waits_for_them(
    store: Store, tmp_path: Path
) -> None:
    assert add_calibration(store, calibration_file(tmp_path)).new == 4
    assert store.questions(status="open") == []
    assert next_card(store, "ann", 60, calibration_share=0.9) is None, "with nothing to judge there is nothing to check"
    fill_queue(store, 60)
    met: dict[str, list[str]] = {"ann": [], "bob": []}
    for who, cards in met.items():
        for _ in range(20):
            card = card_of(store, who, calibration_share=0.5)
            assert card == card_of(store, who, calibration_share=0.5)
            cards.append(card.id if card.known else "")
            judge(store, who, card)
    for cards in met.values():
        assert len({id for id in cards if id}) == sum(1 for id in cards if id) == 4
    assert [c for c in met["ann"] if c] != [c for c in met["bob"] if c]


def test_the_share_of_calibration_cards_is_kept() -> None:
    turns = [is_calibration_turn("ann", done, 0.1) for done in range(5000)]
    assert 0.08 < sum(turns) / 5000 < 0.12
    assert turns == [is_calibration_turn("ann", done, 0.1) for done in range(5000)]
    assert not any(is_calibration_turn("ann", done, 0.0) for done in range(500))


def test_calibration_trains_nothing(store: Store, tmp_path: Path) -> None:
    add_calibration(store, calibration_file(tmp_path))
    fill_queue(store, 1)
    card = card_of(store, "ann", calibration_share=0.999)
    assert card.known is not None
    judge(store, "ann", card)
    (prompt,) = store.prompts(ids=[card.prompt_id])
    assert prompt.split == "dev"
    other = add_calibration(store, calibration_file(tmp_path, 5), evaluated_split="dev")
    assert (other.questions, other.new) == (5, 1)
    assert {p.split for p in store.prompts() if p.id not in ("p0",)} == {"dev", "test"}


def test_a_pair_on_a_training_prompt_is_no_calibration_card(store: Store, tmp_path: Path) -> None:
    fill_queue(store, 1)
    path = tmp_path / "known.jsonl"
    path.write_text(json.dumps({"prompt": "what is 0  and 0?", "chosen": "0", "rejected": "1"}) + "\n")
    found = add_calibration(store, path)
    assert (found.questions, found.left_out) == (0, {"the prompt is a training prompt too": 1})
    assert "left out" in "\n".join(found.lines())


# -- more questions ----------------------------------------------------------------------------------------------------


def test_more_questions_come_from_the_newest_answers_and_never_twice(store: Store) -> None:
    fill_queue(store, 3)
    newest = [
        Completion(id=f"n{i}{k}", prompt_id=f"p{i}", text=f"new answer {k} of {i}", policy="policy-1", round=1)
        for i in range(3)
        for k in range(2)
    ]
    store.add_completions(newest)
    store.add_scores([Score(completion_id=c.id, reward_model="rm", value=float(i)) for i, c in enumerate(newest)])
    assert queue_more(store, None, 2) == 2
    assert queue_more(store, None, 5) == 1
    assert queue_more(store, None, 5) == 0
    added = [question for question in store.questions() if question.round == 1]
    assert len({question.prompt_id for question in added}) == 3
    assert all(question.a_id.startswith("n") for question in added)


def test_more_questions_of_an_empty_store_are_none(store: Store) -> None:
    assert queue_more(store, None, 5) == 0
    with store.database.read() as connection:
        assert connection.execute(tables.questions.select()).first() is None
