"""Every format that is read has a file in the form its tool writes, in `data/feedback_formats`."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples.formats import FIXTURES, fixture, of_kind, read_row, rows_of, winners

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.importers import FORMATS
from rlhf_loop.feedback.intake.read_whole import read
from rlhf_loop.records import Critique, Edit, Preference, Rating, Thumb


def test_hh_rlhf_dialogues_are_split_into_turns() -> None:
    result = fixture("hh_rlhf.jsonl", "hh-rlhf")
    assert [[m["role"] for m in prompt.messages] for prompt in result.prompts] == [
        ["user", "assistant", "user"],
        ["user"],
        ["user", "assistant", "assistant", "user"],
    ]
    assert winners(result) == [
        ("a", "Then Ash would suit it.", "Cat."),
        ("a", "Air scatters blue light the most.\n\nIt is called Rayleigh scattering.", ""),
        ("a", "Oak.  Human: is what you are.", "Blue."),
    ]
    assert [(r.line, "no common prompt" in r.reason) for r in result.refused] == [(4, True)]


def test_hh_rlhf_dialogues_that_differ_earlier_are_refused(tmp_path: Path) -> None:
    row = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: x\n\nAssistant: c"}
    (tmp_path / "f.jsonl").write_text(json.dumps(row))
    assert "no common prompt" in read(tmp_path / "f.jsonl").refused[0].reason


def test_arena_votes_are_preferences_with_ties_and_both_bad() -> None:
    result = fixture("chatbot_arena.jsonl", "arena")
    assert [w for w, _, _ in winners(result)] == ["b", "both_bad"]
    assert [(r.line, "no common prompt" in r.reason) for r in result.refused] == [(3, True)]
    first = result.feedback[0]
    assert (first.annotator.id, first.external_id) == ("arena_user_41", "0f3a5b7c9d1e42688ac4e6f00b1d2c3e")
    assert first.created_at == 1683000000.25
    assert (first.shown_order, first.blind) == ("ab", True)  # type: ignore[union-attr]


def test_arena_votes_of_kaggle_may_be_about_no_answer() -> None:
    result = fixture("chatbot_arena_kaggle.csv", "arena")
    assert winners(result) == [
        ("a", 'It depends.\n\nSee "names".', "No."),
        ("tie", "Knock knock.", "Why did it cross?"),
        ("b", "", "Air scatters blue light."),
    ]
    assert [(r.line, "no common prompt" in r.reason) for r in result.refused] == [(5, True)]


def test_arena_votes_of_the_later_releases() -> None:
    votes = of_kind(fixture("chatbot_arena_100k.jsonl", "arena"), Preference)
    assert [(v.winner, v.blind, v.annotator.id, v.created_at) for v in votes] == [
        ("a", True, "9f2c51ab", 1718000000.25),
        ("tie", False, "9f2c51ab", 1718000000.25),
    ]
    result = fixture("chatbot_arena_140k.jsonl", "arena")
    assert winners(result) == [("both_bad", "Blue.", "Green.")]
    assert (result.feedback[0].external_id, result.feedback[0].annotator.id) == ("5d1e0f00-0001", "9b7c0001")
    assert result.feedback[0].created_at == 1748779200.25
    assert [r.line for r in result.refused] == [2, 3]
    assert "an earlier vote of the session" in result.refused[0].reason
    assert "not text (images" in result.refused[1].reason


def test_arena_votes_are_read_from_parquet_with_its_times(tmp_path: Path) -> None:
    (row, *_) = rows_of("chatbot_arena_140k.jsonl")
    row["timestamp"] = datetime.fromisoformat(row["timestamp"])
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "votes.parquet")
    assert [f.created_at for f in read(tmp_path / "votes.parquet").feedback] == [1748779200.25]


def test_open_webui_ratings_find_their_texts_in_the_snapshot() -> None:
    result = fixture("open_webui.json", "open-webui")
    first, second = of_kind(result, Thumb)
    assert (first.label, first.annotator.id, first.created_at) == (True, "u-1", 1729600130.0)
    assert first.comment == "accurate_information; Exactly.; Science"
    assert [(r.score, r.scale) for r in of_kind(result, Rating)] == [(9.0, (1.0, 10.0))]
    texts = {c.id: c.text for c in result.completions}
    assert texts[first.completion_id] == "Air scatters blue light the most."  # without what the model thought
    assert [m["role"] for m in result.prompts[0].messages] == ["system", "user", "assistant", "user"]
    assert result.prompts[0].messages[0]["content"] == "Be brief."
    assert [(r.line, r.reason.partition(",")[0]) for r in result.refused] == [
        (4, "`snapshot` holds no chat"),
        (5, "the chat holds images"),
    ]
    assert (texts[second.completion_id], second.label) == ("Trout.", True)  # the other answer was liked as well
    assert result.notes == {
        "thoughts and calls of tools are left out of the answers": 1,
        "no rival among the other answers in the snapshot; the rating is kept as a thumb": 1,
    }


def test_open_webui_arena_models_are_known_by_the_model_behind_them() -> None:
    result = fixture("open_webui.json", "open-webui")
    assert winners(result) == [("b", "Blue.", "Oak.")]
    (preference,) = of_kind(result, Preference)
    assert (preference.blind, preference.annotator.id) == (True, "u-2")


def test_open_webui_draws_are_ties(tmp_path: Path) -> None:
    row = rows_of("open_webui.json")[1]
    row["data"]["rating"] = "0"
    assert winners(read_row(tmp_path, row)) == [("tie", "Blue.", "Oak.")]
    row["data"]["sibling_model_ids"] = None
    assert "a draw, but no other answer" in read_row(tmp_path, row).refused[0].reason


def test_ultrafeedback_answers_are_rated_by_their_judge() -> None:
    result = fixture("ultrafeedback.jsonl", "ultrafeedback")
    assert [(r.score, r.scale, r.comment) for r in of_kind(result, Rating)] == [
        (2.5, (1.0, 5.0), "The answer gives no reason."),
        (5.0, (1.0, 5.0), "Right and brief."),
        (4.0, (1.0, 10.0), "Too short."),  # no aspect was judged
    ]
    assert {(r.annotator.id, r.annotator.kind) for r in of_kind(result, Rating)} == {("gpt-4", "LLM")}


def test_binarised_ultrafeedback_is_preferences_of_its_judge() -> None:
    result = fixture("ultrafeedback_binarized.jsonl", "ultrafeedback")
    assert winners(result) == [
        ("a", "Air scatters blue light the most.", "It just is."),
        ("tie", "Oak.", "Elm."),
        ("a", "Trout.", "Oak."),
        ("a", "Wren.", "Trout."),
    ]
    assert [p.strength for p in of_kind(result, Preference)] == [0.5, None, 0.5, 1.0]
    assert {(p.annotator.id, p.annotator.kind) for p in of_kind(result, Preference)} == {("gpt-4", "LLM")}
    assert [len(prompt.messages) for prompt in result.prompts] == [1, 1, 1, 1]


def test_chat_logs_with_and_without_feedback() -> None:
    result = fixture("openai_chat.jsonl", "chat")
    assert result.refused == []
    assert [m["role"] for m in result.prompts[0].messages] == ["system", "user"]
    thumb = of_kind(result, Thumb)[0]
    assert (thumb.label, thumb.comment, thumb.annotator.id) == (True, "Brief indeed.", "u-1")
    (rating,), (edit,) = of_kind(result, Rating), of_kind(result, Edit)
    assert (rating.score, rating.comment, edit.edited_completion) == (1.0, "That is a colour.", "An oak.")
    assert winners(result) == [("a", "Blue.", "Oak.")]
    assert result.notes == {"an answer has no feedback; it is kept without": 1}


def test_the_feedback_text_of_a_tutorial_becomes_a_critique() -> None:
    result = fixture("tutorial.jsonl", "tutorial")
    (critique,) = of_kind(result, Critique)
    assert critique.comment == "The answer gives no reason; name the scattering of light."
    assert [t.label for t in of_kind(result, Thumb)] == [True]
    assert [r.score for r in of_kind(result, Rating)] == [4.0]


def test_trl_data_sets_of_every_kind() -> None:
    assert winners(fixture("trl_implicit_prompt.jsonl", "trl")) == [("a", "Air scatters blue light.", "It just is.")]
    answers = fixture("trl_prompt_completion.jsonl", "trl").prompts
    assert [prompt.reference for prompt in answers] == ["Oak.", "Elm."]
    assert answers[0].group == answers[1].group
    steps = fixture("trl_stepwise.jsonl", "trl")
    (thumb,), (critique,) = of_kind(steps, Thumb), of_kind(steps, Critique)
    assert not thumb.label
    marked = [steps.completions[0].text[span.start : span.end] for span in critique.spans]
    assert marked == ["0.11 is greater than 0.8.", "Hence 9.11 is larger."]


def test_trl_prompts_alone_are_taken_and_plain_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "Why?"}\n')
    assert len(read(tmp_path / "p.jsonl").prompts) == 1
    (tmp_path / "t.jsonl").write_text('{"text": "The sky is blue."}\n')
    assert "no prompt and no answer" in read(tmp_path / "t.jsonl").refused[0].reason


def test_every_format_has_a_fixture_and_recognises_it() -> None:
    found = {read(path).format for path in FIXTURES.iterdir()}
    assert found | {"native", "pairs"} == set(FORMATS)


def test_open_webui_chats_hold_their_ratings_in_the_messages() -> None:
    result = fixture("open_webui_chats.json", "open-webui")
    (thumb,), (rating,) = of_kind(result, Thumb), of_kind(result, Rating)
    assert (thumb.label, thumb.external_id, thumb.annotator.id) == (True, "f-1", "u-1")
    assert (thumb.comment, thumb.created_at) == ("accurate_information; Exactly.; science", 1729600010.0)
    assert (rating.score, rating.scale) == (9.0, (1.0, 10.0))
    assert winners(result) == [("b", "Rose.", "Oak.")]  # of two models side by side
    assert [m["role"] for m in result.prompts[1].messages] == ["system", "user", "assistant", "user"]
    assert result.notes == {"a chat holds no rating; its answers are not taken": 1}


def test_gradio_likes_are_about_the_message_they_name(tmp_path: Path) -> None:
    result = fixture("gradio_chat_log.csv", "gradio")
    texts = {c.id: c.text for c in result.completions}
    assert [(texts[t.completion_id], t.label) for t in of_kind(result, Thumb)] == [("Oak.", True), ("Elm.", False)]
    assert of_kind(result, Thumb)[0].created_at == 1785578401.25
    assert result.notes == {
        "the flag Spam says neither good nor bad": 1,
        "an answer has no feedback; it is kept without": 1,
    }
    row = {"conversation": [["Hi", "Hello"], ["A tree?", "Oak."]], "index": [0, 1], "value": "Dislike", "timestamp": 5}
    (thumb,) = of_kind(read_row(tmp_path, row), Thumb)
    assert (thumb.label, thumb.created_at) == (False, 5.0)
    row["index"] = 7
    assert "`index` must be the number" in read_row(tmp_path, row).refused[0].reason
    talk = [
        {"role": "user", "content": "A tree?"},
        {"role": "assistant", "content": "hm", "metadata": {"title": "Thought"}},
        {"role": "assistant", "content": "Oak."},
    ]
    result = read_row(tmp_path, {"conversation": talk, "index": 2, "value": "Like", "timestamp": 5})
    assert ([c.text for c in result.completions], len(result.prompts[0].messages)) == (["Oak."], 1)


def test_gradio_flags(tmp_path: Path) -> None:
    path = tmp_path / "dataset1.csv"
    path.write_text("message,output,flag,username,timestamp\nA tree?,Oak.,👍,ann,2026-08-01 10:00:00.5\nB?,C.,odd,,\n")
    result = read(path)
    assert result.format == "gradio"
    assert [(t.label, t.annotator.id) for t in of_kind(result, Thumb)] == [(True, "ann")]
    assert result.notes == {"the flag odd says neither good nor bad": 1}


VOTE = {"model_a": "b", "model_b": "a"}


TALK = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Light."}]


OTHER = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Air."}]


@pytest.mark.parametrize(
    ("row", "winner"),
    [
        ({**VOTE, "winner": "model_b", "prompt": "Why?", "response_a": "Light.", "response_b": "Air."}, "b"),
        ({**VOTE, "winner": "model_a", "prompt": TALK[:1], "response_1": "Light.", "response_2": "Air."}, "a"),
        ({**VOTE, "winner": "a", "conversation_a": TALK, "conversation_b": OTHER}, "b"),  # the model of this name
        ({**VOTE, "winner": "tie", "conversation_a": repr(TALK), "conversation_b": repr(OTHER)}, "tie"),
        ({**VOTE, "winner": None, "conversation_a": TALK, "conversation_b": OTHER}, None),
    ],
)
def test_arena_votes_in_further_forms(tmp_path: Path, row: dict[str, Any], winner: str | None) -> None:
    result = read_row(tmp_path, row)
    assert winners(result) == ([] if winner is None else [(winner, "Light.", "Air.")])
    assert len(result.refused) == (winner is None)


def test_tables_of_two_answers_and_a_verdict() -> None:
    result = fixture("comparison.csv", "comparison")
    assert [winner for winner, *_ in winners(result)] == ["a", "b", "tie"]
    assert winners(result)[0] == ("a", "Leaves in hot water.", "A drink of kings and queens.")
    assert (result.notes, result.refused) == ({}, [])


Q, ONE, TWO = {"prompt": "Why?"}, "Light.", "Air."


@pytest.mark.parametrize(
    ("row", "winner", "strength"),
    [
        ({**Q, "answer_a": ONE, "answer_b": TWO, "winner": "B"}, "b", None),
        ({**Q, "Answer A": ONE, "Answer B": TWO, "preferred": "Answer A"}, "a", None),
        ({**Q, "answer_b": TWO, "answer_a": ONE, "choice": "answer_b"}, "b", None),
        ({**Q, "answer_a": ONE, "answer_b": TWO, "winner": "Air."}, "b", None),
        ({**Q, "answer_a": ONE, "answer_b": TWO, "verdict": "Both bad"}, "both_bad", None),
        ({**Q, "answer_a": ONE, "answer_b": TWO, "winner": "m2", "model_a": "m1", "model_b": "m2"}, "b", None),
        ({**Q, "model_a_response": ONE, "model_b_response": TWO, "winner": "a"}, "a", None),
        ({**Q, "response_0": ONE, "response_1": TWO, "better_response_id": 0}, "a", None),
        ({**Q, "response_0": ONE, "response_1": TWO, "better_response_id": "1"}, "b", None),
        ({**Q, "answer1": ONE, "answer2": TWO, "preferred": 2}, "b", None),
        ({**Q, "output_1": ONE, "output_2": TWO, "preference": 1.0}, "a", None),
        ({**Q, "output_1": ONE, "output_2": TWO, "preference": 1.75}, "b", 0.5),
        ({**Q, "output_1": ONE, "output_2": TWO, "preference": 1.5}, "tie", None),
        ({**Q, "output_1": ONE, "output_2": TWO, "preference": 0}, "tie", None),
        ({"context": TALK[:1], "response1": ONE, "response2": TWO, "overall_preference": -3}, "a", 1.0),
        ({"context": TALK[:1], "response1": ONE, "response2": TWO, "overall_preference": 1}, "b", 1 / 3),
        ({"context": TALK[:1], "response1": ONE, "response2": TWO, "overall_preference": 0}, "tie", None),
        ({"history": "Why?", "human_ref_A": ONE, "human_ref_B": TWO, "labels": 1}, "a", None),
        ({"history": "Why?", "human_ref_A": ONE, "human_ref_B": TWO, "labels": 0}, "b", None),
    ],
)
def test_two_answers_and_a_verdict_in_many_names(
    tmp_path: Path, row: dict[str, Any], winner: str, strength: float | None
) -> None:
    result = read_row(tmp_path, row)
    assert result.format == "comparison"
    assert winners(result) == [(winner, ONE, TWO)]
    assert result.feedback[0].strength == (None if strength is None else pytest.approx(strength))
    assert [message["content"] for message in result.prompts[0].messages] == ["Why?"]


@pytest.mark.parametrize(
    ("verdict", "why"),
    [
        ({"winner": 1}, "write a, b or tie, or call the answers 0 and 1, or 1 and 2"),
        ({"winner": None}, "`winner` is empty"),
        ({"winner": "perhaps"}, "must say which is better"),
        ({"winner": 10**400}, "must say which is better"),
        ({"winner": True}, "must say which is better"),
    ],
)
def test_a_verdict_that_does_not_say_which_is_refused(tmp_path: Path, verdict: dict[str, Any], why: str) -> None:
    result = read_row(tmp_path, {**Q, "answer_a": ONE, "answer_b": TWO, **verdict})
    assert (result.format, result.feedback) == ("comparison", [])
    assert why in result.refused[0].reason


def test_of_three_answers_no_two_are_compared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the format is not known"):
        read_row(tmp_path, {**Q, "answer_a": ONE, "answer_b": TWO, "answer_c": "Sky.", "winner": "c"})


def test_gradio_guards_against_formulas_are_no_part_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "prompt,output,flag,username,timestamp\n'=1+1,'-2,good,ann,2026-01-01\n'Why','tis,good,ann,2026-01-01\n"
    )
    result = read(path)
    assert [p.messages[0]["content"] for p in result.prompts] == ["=1+1", "'Why'"]
    assert [c.text for c in result.completions] == ["-2", "'tis"]


def test_a_field_that_a_format_looks_for_in_vain_is_named_and_the_other_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = FORMATS["pairs"]
    simple = ModuleType("simple")
    vars(simple).update(vars(kept), parse=lambda row, place: kept.parse({**row, "rejected": row["bad"]}, place))
    monkeypatch.setitem(FORMATS, "simple", simple)
    row = {"prompt": "Why?", "chosen": "Because.", "bad": "No."}
    (tmp_path / "f.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "bad": None}) + "\n")
    with (tmp_path / "f.jsonl").open("a") as file:
        file.write('{"prompt": "Why?", "chosen": "Because."}\n')
    result = read(tmp_path / "f.jsonl", "simple")
    assert [one.reason for one in result.refused] == ["missing: `rejected`", "`bad` is missing"]
    assert len(result.feedback) == 1
