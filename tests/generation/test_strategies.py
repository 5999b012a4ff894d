"""Strategies on answers that are made up: which are kept, which are not and why, and what the policy reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from rlhf_loop.generation import Asked
from rlhf_loop.generation.strategies import best_of_n, exemplars, fresh, refine
from rlhf_loop.generation.strategies.given import Exemplar, Given
from rlhf_loop.recipe import Generation
from rlhf_loop.records import Completion, Message, Prompt, Recalled
from rlhf_loop.strategies import Refine


def prompt(name: str, *before: Message) -> Prompt:
    return Prompt(id=name, group=name, messages=(*before, Message(role="user", content=f"ask {name}")))


def given(
    prompts: Sequence[Prompt],
    text: Callable[[Asked, int], str] = lambda asked, sample: f"{asked.prompt.id} {sample}",
    settings: dict[str, Any] | None = None,
    room: int = 10_000,
    **more: Any,
) -> tuple[Given, list[tuple[Asked, int]]]:
    """What a strategy is given, and a list that fills with what it asks."""
    calls: list[tuple[Asked, int]] = []

    def sample(asked: Sequence[Asked], samples: int) -> list[list[Completion]]:
        calls.extend((one, samples) for one in asked)
        return [
            [
                Completion(
                    id=f"{one.prompt.id}/{one.draws}{one.first_sample + number}", prompt_id=one.prompt.id, policy="p",
                    text=text(one, number), round=1, sample=one.first_sample + number, parent=one.parent,
                    critique=one.critique, sampling=dict(one.note),
                )
                for number in range(samples)
            ]
            for one in asked
        ]  # fmt: skip

    def fits(messages: Sequence[Message]) -> bool:
        return sum(len(turn["content"]) for turn in messages) <= room

    values = Generation(**{"samples_per_prompt": 2, **(settings or {})})
    return Given(prompts=prompts, settings=values, sample=sample, fits=fits, **more), calls


def contents(asked: Asked) -> list[str]:
    return [turn["content"] for turn in asked.messages or asked.prompt.messages]


def test_fresh_asks_each_prompt_as_it_stands_and_counts_nothing() -> None:
    one, calls = given([prompt("a"), prompt("b")])
    written = fresh.write(one)
    assert [c.id for c in written.completions] == ["a/0", "a/1", "b/0", "b/1"]
    assert all(asked.messages is None and not asked.note for asked, _ in calls)
    assert (written.set_aside, written.shown, written.counts) == ([], [], {})


# --- best of n


def test_best_of_n_keeps_the_best_and_loses_none() -> None:
    scores = {"a/0": 0.1, "a/1": 0.9, "a/2": 0.5, "a/3": 0.7, "b/0": 3.0, "b/1": -1.0, "b/2": 2.0}
    one, _ = given([prompt("a"), prompt("b")], settings={"best_of_n": {"n": 4}}, score=lambda answers: scores)
    written = best_of_n.write(one)
    assert [c.id for c in written.completions] == ["a/1", "a/3", "b/0", "b/2"]  # by sample, as fresh ones
    everything = {c.id for c in written.completions} | {c.id for c, _ in written.set_aside}
    assert everything == {f"{name}/{number}" for name in "ab" for number in range(4)}
    assert {reason for _, reason in written.set_aside} == {"scored lower"}
    assert written.counts == {"samples": 8, "samples without a score": 1}
    assert written.completions[0].sampling == {"best_of": 4}


def test_best_of_n_keeps_each_text_once() -> None:
    one, _ = given(
        [prompt("a")], text=lambda asked, sample: ["same", "same ", "other"][sample],
        settings={"best_of_n": {"n": 3}}, score=lambda answers: {"a/0": 1.0, "a/1": 2.0, "a/2": 0.0},
    )  # fmt: skip
    written = best_of_n.write(one)
    assert [c.id for c in written.completions] == ["a/1", "a/2"]
    assert [(c.id, reason) for c, reason in written.set_aside] == [("a/0", "same text as a better one")]


def test_before_there_is_a_reward_model_best_of_n_is_fresh() -> None:
    one, calls = given([prompt("a")], settings={"best_of_n": {"n": 8}})
    written = best_of_n.write(one)
    assert [samples for _, samples in calls] == [2]
    assert written.counts == {"prompts before a reward model": 1}


# --- refine


EARLIER = Recalled(
    prompt_id="a", completion_id="old", text="The sky is blue because of the sea.", critique="It is not the sea.",
    before=("Because it is blue.",),
)  # fmt: skip


def test_a_revision_reads_the_answer_and_its_critique_and_answers_the_prompt() -> None:
    one, calls = given([prompt("a"), prompt("b")], earlier={"a": EARLIER}, settings={"samples_per_prompt": 4})
    written = refine.write(one)
    assert [(asked.prompt.id, asked.draws, samples) for asked, samples in calls] == [
        ("b", "", 4),
        ("a", "", 2),
        ("a", "revision", 2),
    ]
    turns = calls[-1][0].messages
    assert turns is not None
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert [turns[0]["content"], turns[1]["content"]] == ["ask a", EARLIER.text]
    assert "It is not the sea." in turns[2]["content"]
    assert [(c.prompt_id, c.sample, c.parent, c.critique) for c in written.completions] == [
        ("a", 0, None, None),
        ("a", 1, None, None),
        ("a", 2, "old", "It is not the sea."),
        ("a", 3, "old", "It is not the sea."),
        *(("b", sample, None, None) for sample in range(4)),
    ]
    assert written.counts["revisions"] == written.counts["revisions kept"] == written.counts["revisions by a critique"]
    assert written.counts["prompts without an answer to revise"] == 1
    assert [(shown.completion_id, shown.use) for shown in written.shown] == [("old", "to revise")]


def test_the_same_without_critiques_and_with_revisions_alone() -> None:
    one, calls = given([prompt("a")], earlier={"a": EARLIER}, settings={"refine": {"critiques": False, "share": 1.0}})
    written = refine.write(one)
    assert [samples for _, samples in calls] == [2]
    assert not any("sea." in text for text in contents(calls[0][0])[2:])
    assert [(c.parent, c.critique) for c in written.completions] == [("old", None)] * 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Short waves of light are scattered more.", None),
        ("the sky is blue because  of the sea.", "copy"),
        ("Because it is blue.", "back to an earlier answer"),
        (" ", "empty"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("As an AI language model, I have no eyes.", "refusal"),
        ("I cannot rewrite this.", "refusal"),
        ("Sorry, I meant the air.", None),
    ],
)
def test_what_is_no_revision_is_set_aside_with_its_reason(text: str, reason: str | None) -> None:
    assert refine.why_not(text, EARLIER, Refine()) == reason
    one, _ = given([prompt("a")], text=lambda asked, n: text, earlier={"a": EARLIER}, settings={"refine": {"share": 1}})
    written = refine.write(one)
    assert len(written.completions) == (2 if reason is None else 0)
    assert [why for _, why in written.set_aside] == ([] if reason is None else [reason] * 2)


def test_a_refusal_of_what_was_refused_before_is_a_revision() -> None:
    refused = Recalled(prompt_id="a", completion_id="old", text="I can't tell you how to do this.")
    assert refine.why_not("I cannot help with locks that are not yours.", refused, Refine()) is None


def test_a_prompt_whose_revision_leaves_no_room_is_answered_afresh() -> None:
    one, calls = given([prompt("a")], earlier={"a": EARLIER}, room=20)
    written = refine.write(one)
    assert [(asked.draws, samples) for asked, samples in calls] == [("", 2)]
    assert written.counts["prompts whose revision leaves no room"] == 1


# --- exemplars


def shown(name: str, similarity: float) -> Exemplar:
    asked = prompt(name, Message(role="system", content="not this one"))
    answer = Recalled(prompt_id=name, completion_id=f"answer-{name}", text=f"answer {name}")
    return Exemplar(prompt=asked, answer=answer, similarity=similarity)


def test_exemplars_are_turns_before_the_prompt_after_its_system_turn() -> None:
    system = Message(role="system", content="be brief")
    one, calls = given([prompt("a", system), prompt("b")], exemplars={"a": [shown("x", 0.1), shown("y", 0.8)]})
    written = exemplars.write(one)
    assert contents(calls[0][0]) == ["be brief", "ask x", "answer x", "ask y", "answer y", "ask a"]
    assert calls[1][0].messages is None
    assert [c.sampling for c in written.completions][::2] == [{"strategy": "exemplars", "exemplars": 2}, {}]
    assert written.counts == {"prompts with exemplars": 1, "prompts without exemplars": 1}
    assert [(s.prompt_id, s.completion_id, s.similarity) for s in written.shown] == [
        ("a", "answer-x", 0.1),
        ("a", "answer-y", 0.8),
    ]


def test_the_farthest_exemplars_go_first_where_there_is_no_room() -> None:
    one, calls = given([prompt("a")], exemplars={"a": [shown("x", 0.1), shown("y", 0.8)]}, room=20)
    written = exemplars.write(one)
    assert contents(calls[0][0]) == ["ask y", "answer y", "ask a"]
    assert written.counts["exemplars left out for length"] == 1
    assert len(written.shown) == 1


def test_refine_with_exemplars_puts_them_before_both_and_counts_them_once() -> None:
    one, calls = given([prompt("a")], earlier={"a": EARLIER}, exemplars={"a": [shown("x", 0.5)]})
    written = refine.write(one)
    plain, revision = calls[0][0], calls[1][0]
    assert contents(plain) == ["ask x", "answer x", "ask a"]
    assert contents(revision)[:4] == ["ask x", "answer x", "ask a", EARLIER.text]
    assert written.counts["prompts with exemplars"] == 1
    assert revision.note == {"strategy": "refine", "exemplars": 1}
    assert plain.note == {"strategy": "exemplars", "exemplars": 1}
