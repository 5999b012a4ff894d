"""The queue of questions: slots, leases, and what frees them."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections import Counter
from dataclasses import replace

from samples.annotation import claim, release
from samples.feedback import completion, preference, prompt

from rlhf_loop.feedback.store import question_queue
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Annotator, Preference, Question, Retraction, Skip


def ask(store: Store, n: int, overlap: int) -> None:
    store.add_prompts([prompt()])
    store.add_completions([completion("a"), *(completion(f"b{i}") for i in range(n))])
    store.add_questions(
        [Question(id=f"q{i}", prompt_id="p", a_id="a", b_id=f"b{i}", round=0, overlap=overlap) for i in range(n)]
    )


def verdict(id: str, who: str, number: int = 0, **values: object) -> Preference:
    return replace(preference(id, "a", f"b{number}"), annotator=Annotator(id=who), **values)


def claimed(store: Store, who: str, n: int = 10) -> list[str]:
    return [question.id for question in claim(store, who, n)]


def test_as_many_people_get_a_question_as_it_asks_for(store: Store) -> None:
    ask(store, 1, overlap=2)
    assert [claimed(store, who) for who in ("ann", "bob", "cid")] == [["q0"], ["q0"], []]
    store.add_feedback([verdict("f1", "ann")])
    assert [q.id for q in store.questions(status="open")] == ["q0"]
    assert claimed(store, "cid") == []  # bob still holds the other slot
    release(store, "bob")
    assert claimed(store, "ann") == []  # has spoken
    assert claimed(store, "cid") == ["q0"]
    store.add_feedback([verdict("f2", "cid")])
    assert store.questions(status="open") == []
    assert claimed(store, "bob") == []


def test_a_verdict_that_is_taken_back_opens_its_slot_again(store: Store) -> None:
    ask(store, 1, overlap=1)
    store.add_feedback([verdict("f1", "ann")])
    assert store.questions(status="open") == []
    store.add_feedback([Retraction(id="f2", prompt_id="p", annotator=Annotator(id="ann"), supersedes="f1")])
    assert [q.id for q in store.questions(status="open")] == ["q0"]
    assert store.feedback() == []
    assert claimed(store, "ann") == ["q0"]
    store.add_feedback([verdict("f3", "ann", winner="b")])
    assert [f.id for f in store.feedback()] == ["f3"]
    assert store.questions(status="open") == []


def test_a_correction_counts_as_one_verdict(store: Store) -> None:
    ask(store, 1, overlap=2)
    store.add_feedback([verdict("f1", "ann"), verdict("f2", "ann", supersedes="f1")])
    assert claimed(store, "bob") == ["q0"]


def test_a_skip_that_is_taken_back_is_offered_again(store: Store) -> None:
    ask(store, 1, overlap=1)
    claim(store, "ann")
    skip = Skip(id="s", prompt_id="p", a_id="a", b_id="b0", annotator=Annotator(id="ann"))
    store.add_feedback([skip])
    assert claimed(store, "ann") == []
    store.add_feedback([Retraction(id="r", prompt_id="p", annotator=Annotator(id="ann"), supersedes="s")])
    assert claimed(store, "ann") == ["q0"]


def test_a_lease_that_is_extended_outlives_its_time(store: Store) -> None:
    ask(store, 1, overlap=1)
    claim(store, "ann", seconds=1.5)
    with store.database.write() as connection:
        assert question_queue.extend(connection, "ann", "q0", 60.0)
    time.sleep(1.6)
    assert claimed(store, "bob") == []
    with store.database.read() as connection:
        (held,) = question_queue.held(connection, "ann")
    assert held[0].id == "q0"
    assert held[1] <= time.time() - 1.5


def test_a_lease_that_has_ended_cannot_be_extended(store: Store) -> None:
    ask(store, 1, overlap=1)
    claim(store, "ann", seconds=0.0)
    time.sleep(0.01)
    with store.database.write() as connection:
        assert not question_queue.extend(connection, "ann", "q0", 60.0)
    assert claimed(store, "bob") == ["q0"]


def test_processes_that_claim_and_judge_at_once_never_overfill_a_question(store_url: str) -> None:
    with Store.open(store_url) as store:
        ask(store, 30, overlap=2)
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        pool.starmap(_sitting, [(store_url, f"person{i}", i) for i in range(4)], chunksize=1)
    with Store.open(store_url) as store:
        verdicts = Counter(f.b_id for f in store.feedback() if isinstance(f, Preference))
        assert verdicts == {f"b{i}": 2 for i in range(30)}
        assert store.questions(status="open") == []


def _sitting(store_url: str, who: str, seed: int) -> None:
    chance = random.Random(seed)
    with Store.open(store_url) as store:
        idle = 0
        while idle < 20:
            questions = claim(store, who, chance.randint(1, 3))
            idle = 0 if questions else idle + 1
            for question in questions:
                if chance.random() < 0.2:
                    release(store, who)
                    break
                store.add_feedback([verdict(f"{who}-{question.id}", who, int(question.id[1:]))])
            if not questions:
                time.sleep(0.01)
