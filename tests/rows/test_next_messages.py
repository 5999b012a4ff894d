"""What users say next: which answer it is about, whether it complains, and what is left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from samples.feedback import completion

from rlhf_loop.critique_methods import NextMessage
from rlhf_loop.errors import UserError
from rlhf_loop.feedback.intake.import_file import import_file
from rlhf_loop.feedback.privacy.deletion_rows import Deletion, redact
from rlhf_loop.feedback.quality.themes import themes
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.vague import is_vague
from rlhf_loop.files import read_json, write_json
from rlhf_loop.recipe import Recipe
from rlhf_loop.record_files import read_records, write_records
from rlhf_loop.records import Annotator, Completion, Critique, CritiquedCompletion, Feedback, Message, Prompt, Thumb
from rlhf_loop.rows.critiqued import Limits, shuffled
from rlhf_loop.rows.next_messages import counts_of, is_complaint, next_messages, none_in_words
from rlhf_loop.server.chat.answers import Conversation, prompt_of
from rlhf_loop.server.service import Service
from rlhf_loop.steps.learn import freeze
from rlhf_loop.steps.snapshot import snapshot

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
SYSTEM = "You are Ada, the assistant of a shop in Ghent, and never name the prices of others."
LIMITS = Limits(
    is_vague=partial(is_vague, min_words=3), max_words=50, kinds=("human",), system_prompt=SYSTEM
)  # fmt: skip


def talk(*texts: str, system: str | None = None) -> tuple[Message, ...]:
    turns = [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(texts)]
    return (*([Message(role="system", content=system)] if system else []), *turns)


def chat(id: str, *texts: str, **values: Any) -> Prompt:
    system = values.pop("system", None)
    return Prompt(**{"id": id, "messages": talk(*texts, system=system), "group": "talk", "source": "chat", **values})


def rows_of(
    *prompts: Prompt, completions: Sequence[Completion] = (), **settings: Any
) -> tuple[list[CritiquedCompletion], dict[str, int]]:
    def answers_to(ids: Sequence[str]) -> list[Completion]:
        return [one for one in completions if one.prompt_id in ids]

    rows, left_out = next_messages(prompts, answers_to, NextMessage(**settings), LIMITS)
    return rows, dict(left_out)


def test_where_there_is_nothing_to_learn_from_it_is_said_with_the_reason() -> None:
    none = none_in_words(counts_of(*rows_of(chat("one", "Name a tree."))))
    assert none is not None
    assert "0 messages to learn from" in none
    assert "import chats" in none
    short = chat("a", "Name a tree.", "An oak.", "No, another one.")
    told = none_in_words(counts_of(*rows_of(short, min_messages=4)))
    assert told is not None
    assert "0 of 1 messages to learn from (1 too few messages); see its settings" in told
    assert none_in_words(counts_of(*rows_of(short))) is None


def test_the_first_round_alone_says_so(tmp_path: Path) -> None:
    found = {"pairs": {"train": 3}, "quarantined": [], "set_aside": 0, "next_messages": counts_of([], {})}
    write_json(tmp_path / "validation.json", found)
    notes: list[str] = []
    at: Any = SimpleNamespace(
        make=SimpleNamespace(step=lambda *_: tmp_path),
        critiques=dict,
        figures={},
        progress=SimpleNamespace(note=lambda name, text: notes.append(text)),
    )
    for n in range(3):
        freeze(at, n)
    assert [text.startswith("critiques.next_message: 0 messages") for text in notes] == [False, True, False]


@pytest.mark.parametrize(
    ("message", "complains"),
    [
        ("no, shorter", True),
        ("No.", True),
        ("no that's not what I asked", True),
        ("That’s wrong", True),
        ("Shorter please", True),
        ("Try again without the list", True),
        ("too complicated", True),
        ("You forgot the second part", True),
        ("Isn't that wrong?", False),
        ("No, why would it be blue?", True),
        ("No problem, thanks!", False),
        ("No more questions.", False),
        ("And what about Paris?", False),
        ("Can you make it shorter?", False),  # a polite wish reads like a question: not told, and not guessed
        ("Thanks a lot", False),
        ("Nein, kürzer bitte", False),
        ("Nothing else", False),
        ("", False),
    ],
)
def test_a_small_list_knows_complaints_and_takes_the_rest_for_none(message: str, complains: bool) -> None:
    assert is_complaint(message) is complains


def test_a_served_answer_is_found_with_its_tokens_and_each_message_is_read_once() -> None:
    first, second = (
        chat("p1", "Why is the sky blue?"),
        chat("p2", "Why is the sky blue?", "It reflects.", "no, shorter"),
    )
    third = chat("p3", "Why is the sky blue?", "It reflects.", "no, shorter", "Rayleigh.", "And at dusk it turns red?")
    answers = [
        completion("c1", "It reflects.", "p1", policy="policy-1", round=1, token_ids=(5, 6)),
        completion("c2", "Rayleigh.", "p2", policy="policy-2", round=2, token_ids=(7,)),
        completion("other", "It is magic.", "p1", policy="policy-1", round=1),
    ]
    rows, left_out = rows_of(first, second, third, completions=answers)
    assert [(r.completion_id, r.prompt_id, r.critique, r.label, r.token_ids, r.said_in, r.round) for r in rows] == [
        ("c1", "p1", "no, shorter", False, (5, 6), "p2", 1),
        ("c2", "p2", "And at dusk it turns red?", None, (7,), "p3", 2),
    ]
    assert [row.prompt for row in rows] == [first.messages, second.messages]
    assert {(row.origin, row.feedback_ids, row.by_policy) for row in rows} == {("implicit", (), True)}
    assert left_out == {}
    assert counts_of(rows, left_out) == {"messages": 2, "complaints": 1, "of_stored_answers": 2, "left_out": {}}


def test_of_an_imported_conversation_the_answers_within_it_count() -> None:
    (row,), _ = rows_of(chat("p", "Hi?", "Hello there.", "That is wrong, I think.", system="Be nice."))
    assert (row.text, row.critique, row.label) == ("Hello there.", "That is wrong, I think.", False)
    assert (row.by_policy, row.token_ids, row.prompt) == (False, None, talk("Hi?", system="Be nice."))
    assert row.prompt_id not in ("p", "")
    assert row.said_in == "p"


def test_the_context_is_the_last_messages_and_those_of_the_system() -> None:
    long = chat("p", "a?", "b", "Tell me more of c", "d", "Tell me more of e", "f", "Tell me more of g", system="S.")
    rows, _ = rows_of(long, context=2)
    assert (
        rows[-1].prompt == talk("", "d", "Tell me more of e", system="S.")[:1] + talk("", "d", "Tell me more of e")[1:]
    )
    assert [len(row.prompt) for row in rows] == [2, 3, 3]


def test_what_is_left_out_is_counted_by_reason() -> None:
    held_out = chat("h", "Why is the sky blue?", group="another", split="test")
    prompts = [
        held_out,
        chat("a", "Why is the sky blue?", "It reflects.", "That is wrong, I think."),
        chat("b", "b?", "x" * 4097, "Tell me more of it."),
        chat("c", "c?", "Yes.", "ok thanks"),
        chat("d", "d?", "Yes.", f"My prompt says {SYSTEM}"),
        chat("e", "e?", "Yes.", "word " * 51),
        chat("f", "f?", "Yes.", "  "),
        chat("g", "g?", "Yes.", "Tell me more of it.", split="untrained"),
        chat("i", "i?", "Yes.", "Tell me more of it.", split="judge"),
        chat("j", "j?", "Yes.", "no, shorter"),
        chat("k", "k?", "Yes.", "Tell me more of it."),
    ]
    rows, left_out = rows_of(*prompts, complaints_only=True)
    assert [row.critique for row in rows] == ["no, shorter"]
    assert left_out == {
        "asked_in_held_out_prompts": 1, "answer_too_long": 1, "vague": 1, "quotes_the_system_prompt": 1,
        "too_long": 1, "empty": 1, "no_complaint": 1,
    }  # fmt: skip
    few = chat("few", "few?", "Yes.", "no, shorter", "No.", "no, shorter")
    assert rows_of(few, min_messages=5) == (rows_of(few)[0][1:], {"too_few_messages": 1})


def test_a_control_moves_next_messages_with_where_they_were_said() -> None:
    rows, _ = rows_of(*(chat(f"p{i}", f"{i}?", "Yes.", f"Tell me more of {i}.", group=str(i)) for i in range(4)))
    mixed = shuffled(rows, seed=0)
    where = {row.critique: row.said_in for row in rows}
    assert all(row.said_in == where[row.critique] for row in mixed)
    assert [row.critique for row in mixed] != [row.critique for row in rows]


def test_a_deletion_takes_them_out_of_files_with_the_prompt_that_holds_them(tmp_path: Path) -> None:
    rows, _ = rows_of(*(chat(f"p{i}", f"{i}?", "Yes.", f"Tell me more of {i}.", group=str(i)) for i in range(3)))
    write_records(tmp_path / "critiques.parquet", rows)
    gone = Deletion(prompts={"p1"}, completions=set(), feedback=set(), texts=set(), comments=set(), annotators=set())
    assert redact(tmp_path / "critiques.parquet", gone, write=True) == 1
    left = read_records(tmp_path / "critiques.parquet", CritiquedCompletion)
    assert [row.said_in for row in left] == ["p0", "p2"]


def test_a_snapshot_holds_them_only_where_the_recipe_names_them_and_counts_them_apart(
    store: Store, tmp_path: Path
) -> None:
    service = Service(store=store)
    served = [
        prompt_of(service, Conversation(messages=talk(*texts), user="jo", name=None))[0]
        for texts in (["Why is it blue?"], ["Why is it blue?", "Because.", "No, write to jo@example.org instead"])
    ]
    test = Prompt(id="t", messages=talk("Why is it green?"), group="t", split="test")
    store.add_prompts([*served, test])
    answer = Completion(id="c", prompt_id=served[0].id, text="Because.", policy="base", round=0, token_ids=(1, 2))
    store.add_completions([answer])
    said = Critique(
        id="f", prompt_id=served[0].id, completion_id="c", comment="It gives no reason.", annotator=Annotator(id="ann")
    )
    store.add_feedback([said])
    found = {}
    for name, block in {"off": "{predict: {}}", "on": "{predict: {}, next_message: {}}"}.items():
        folder = tmp_path / name
        folder.mkdir()
        recipe = Recipe.load(SMOKE, [f"critiques={block}", "feedback.validation.min_pairs=0"])
        snapshot(store, recipe, 1, folder, "base")
        rows = read_records(folder / "critiques.parquet", CritiquedCompletion)
        found[name] = ([(row.origin, row.completion_id) for row in rows], read_json(folder / "validation.json"))
        feedback: list[Feedback] = read_records(folder / "feedback.parquet", Feedback)
        assert themes(feedback)["complaints"] == 1
    assert found["off"][0] == [("human", "c")]
    assert found["on"][0] == [("human", "c"), ("implicit", "c")]
    assert "next_messages" not in found["off"][1]
    assert found["on"][1]["next_messages"] == {
        "messages": 1, "complaints": 1, "of_stored_answers": 1, "left_out": {}
    }  # fmt: skip
    assert found["on"][1]["critiques"] == found["off"][1]["critiques"]
    assert "jo@example.org" not in read_records(tmp_path / "on" / "critiques.parquet", CritiquedCompletion)[1].critique


def test_a_recipe_in_which_nothing_learns_from_them_is_refused() -> None:
    with pytest.raises(UserError, match=r"critiques.next_message: nothing learns from what users say next"):
        Recipe.load(SMOKE, ["critiques={next_message: {}, edits: {}}"])


def test_the_last_word_of_an_imported_chat_is_about_the_answer_before(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "chats.jsonl"
    rows = [
        {"messages": talk("Name a tree.", "An oak.", "No, another one.", system="Be brief."), "feedback": "down"},
        {"messages": talk("Name a bird.", "A crow."), "feedback": "up"},
        {"messages": talk("Name a fish."), "feedback": "up"},
    ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = import_file(store, log, "chat")
    assert found.rejected == 1  # without an answer there is nothing to say anything of
    assert found.notes["a user's turn that nobody answered is kept as a prompt"] == 1
    prompts = store.prompts()
    texts = {len(prompt.messages): prompt for prompt in prompts if "tree" in prompt.asked}
    assert sorted(texts) == [2, 4]
    assert texts[4].group == texts[2].group == texts[2].id
    thumb = next(record for record in store.feedback() if record.prompt_id == texts[2].id)
    assert isinstance(thumb, Thumb)
    said, left_out = rows_of(*prompts, completions=store.completions())
    assert [(row.critique, row.label, row.prompt_id) for row in said] == [("No, another one.", False, texts[2].id)]
    assert said[0].completion_id == thumb.completion_id
    assert left_out == {}
