"""Every format that is read has a file in the form its tool writes, in `data/feedback_formats`."""

from __future__ import annotations

import csv
import json
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.importers import FORMATS
from rlhf_loop.feedback.intake.import_file import import_file
from rlhf_loop.feedback.intake.read_whole import ImportResult, read
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Critique, Edit, Preference, Rating, Skip, Thumb

FIXTURES = Path(__file__).parents[1] / "data" / "feedback_formats"


def fixture(name: str, format_name: str) -> ImportResult:
    """A file that is recognised as that format."""
    result = read(FIXTURES / name)
    assert result.format == format_name
    return result


def winners(result: ImportResult) -> list[tuple[str, str, str]]:
    """Verdict, first and second answer of every preference."""
    texts = {c.id: c.text for c in result.completions}
    return [(f.winner, texts[f.a_id], texts[f.b_id]) for f in result.feedback if isinstance(f, Preference)]


def of_kind(result: ImportResult, kind: type) -> list[Any]:
    return [f for f in result.feedback if isinstance(f, kind)]


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file of `FIXTURES`, or of one with a list that has a row a line."""
    lines = (FIXTURES / name).read_text().splitlines()
    return [json.loads(line.rstrip(",")) for line in lines if line not in ("[", "]")]


def read_row(tmp_path: Path, row: dict[str, Any]) -> ImportResult:
    (tmp_path / "row.jsonl").write_text(json.dumps(row))
    return read(tmp_path / "row.jsonl")


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


def test_argilla_records_of_both_versions() -> None:
    result = fixture("argilla_v2.json", "argilla")
    assert winners(result) == [
        ("a", "Air scatters blue light.", "It is not."),
        ("tie", "Air scatters blue light.", "It is not."),
    ]
    first, second = of_kind(result, Preference)
    assert (first.comment, second.comment) == ("It names the cause.", None)
    assert first.annotator.id == "6ae2bc2e-24a5-4f4c-b0b4-2b1c6e4f0a11"
    (rating,) = of_kind(result, Rating)
    (edit,) = of_kind(result, Edit)
    assert (rating.score, rating.scale, edit.edited_completion) == (2.0, (1.0, 5.0), "Blue")
    assert result.notes["a record has no response yet"] == 1
    assert [count for note, count in result.notes.items() if "drafts or discarded" in note] == [2]
    old = fixture("argilla_v1.jsonl", "argilla")
    assert winners(old) == [("a", "Air scatters blue light.", "It is not.")]
    assert len(of_kind(old, Skip)) == 1
    (thumb,) = of_kind(old, Thumb)
    assert (thumb.label, thumb.comment, thumb.external_id) == (True, "Short and right.", "e2")


def test_label_studio_annotations() -> None:
    result = fixture("label_studio.json", "label-studio")
    assert result.refused == []
    assert winners(result) == [
        ("b", "Because air", "Air scatters blue light the most."),
        ("tie", "Because air", "Air scatters blue light the most."),
    ]
    preference = of_kind(result, Preference)[0]
    assert (preference.comment, preference.annotator.id) == ("The left one stops half way.", "3")
    assert (preference.lead_time, preference.created_at) == (14.25, 1710014400.5)
    (skip,) = of_kind(result, Skip)
    assert skip.annotator.id == "4"
    texts = {c.id: c.text for c in result.completions}
    assert [(texts[r.completion_id], r.score, r.scale, r.annotator.id) for r in of_kind(result, Rating)] == [
        ("Air scatters blue light the most.", 4.0, (1.0, 5.0), "5"),  # one of two answers, by its tag
        ("An oak.", 4.0, (1.0, 5.0), "3"),
        ("Blue.", 7.0, (1.0, 7.0), "3"),  # of a dialogue the last turn, on a Likert scale
    ]
    assert [(texts[t.completion_id], t.label) for t in of_kind(result, Thumb)] == [("An oak.", True)]
    assert result.notes == {
        "an annotation holds no verdict": 1,
        "the answer to the question hallucination is no verdict that is understood": 1,  # no
        "the answer to the question fails_to_follow is no verdict that is understood": 1,  # yes
        "the scale of likert_scale is not in the file; it is taken as 1 to 7 (or say it: --scale NAME=LOW:HIGH)": 1,
    }


def test_label_studio_json_min_says_the_same_as_json() -> None:
    result = fixture("label_studio_min.json", "label-studio")
    assert result.refused == []
    (preference,), (rating,), (thumb,) = (of_kind(result, kind) for kind in (Preference, Rating, Thumb))
    assert preference.id == of_kind(fixture("label_studio.json", "label-studio"), Preference)[0].id
    assert (preference.winner, preference.comment, preference.lead_time) == (
        "b",
        "The left one stops half way.",
        14.25,
    )
    assert (rating.score, rating.comment, rating.annotator.id) == (4.0, "Short.\nRight.", "ann@example.org")
    assert (thumb.label, thumb.created_at) == (True, 1710057600.0)
    assert result.notes == {
        "the answer to the question faults is no verdict that is understood": 1,
        "a task has no annotation yet": 1,
        "the field source is not read": 1,
    }


def test_label_studio_json_min_without_a_telling_order(tmp_path: Path) -> None:
    (row, *_) = rows_of("label_studio_min.json")
    result = read_row(tmp_path, {name: row[name] for name in sorted(row)})
    assert [f.winner for f in of_kind(result, Preference)] == ["b"]
    result = read_row(tmp_path, {"id": 5, **row})
    assert [f.winner for f in of_kind(result, Preference)] == ["b"]


@pytest.mark.parametrize(
    ("question", "answer", "label"),
    [("helpful", "Yes", True), ("is_correct", "No", False), ("not_helpful", "Yes", None), ("is_code", "Yes", None),
     ("toxic", "No", None), ("verdict", "Bad", False)],
)  # fmt: skip
def test_label_studio_yes_and_no_count_where_the_question_asks_for_something_good(
    tmp_path: Path, question: str, answer: str, label: bool | None
) -> None:
    said = {"from_name": question, "to_name": "response", "type": "choices", "value": {"choices": [answer]}}
    data = {"prompt": "Name a tree.", "response": "Oak."}
    result = read_row(
        tmp_path, {"id": 1, "data": data, "annotations": [{"id": 2, "completed_by": 3, "result": [said]}]}
    )
    assert [t.label for t in of_kind(result, Thumb)] == ([] if label is None else [label])


def test_label_studio_pairwise_with_nothing_selected_is_no_tie(tmp_path: Path) -> None:
    (row, *_) = rows_of("label_studio.json")
    row["annotations"] = row["annotations"][:1]
    row["annotations"][0]["result"][0]["value"]["selected"] = "none"
    result = read_row(tmp_path, row)
    assert result.feedback == []
    assert "an annotation holds no verdict, only a text about both answers" in result.notes


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


def test_langfuse_traces_with_scores() -> None:
    result = fixture("langfuse_traces.jsonl", "langfuse")
    texts = {c.id: c.text for c in result.completions}
    assert [
        (texts[t.completion_id], t.label, t.annotator.id, t.annotator.kind, t.comment) for t in of_kind(result, Thumb)
    ] == [
        ("Air scatters blue light.", True, "u-1", "HUMAN", "Just right."),  # users' feedback is the trace's user's
        ("Air scatters blue light.", False, "a-7", "HUMAN", None),
        ("Why is the sky blue?", True, "a-7", "HUMAN", None),  # of an observation
    ]
    (rating,), (critique,), (edit,) = (of_kind(result, kind) for kind in (Rating, Critique, Edit))
    assert (rating.score, rating.scale, rating.annotator.kind) == (0.75, (0.0, 1.0), "LLM")
    assert (critique.comment, critique.annotator.id) == ("It could name Rayleigh.", "a-7")
    assert (edit.edited_completion, edit.external_id) == ("Air scatters blue light the most.", "s-7")
    assert result.notes == {
        "hallucination says neither good nor bad (say what is good: --scale NAME=WORST:BEST)": 1,
        "toxicity says neither good nor bad (say what is good: --scale NAME=WORST:BEST)": 1,
        "tone says neither good nor bad (say what is good: --scale NAME=WORST:BEST)": 1,
        "a score is about a step that holds no prompt and answer, or is not in the file": 1,
    }
    assert [(m["content"]) for m in result.prompts[-1].messages] == ["Name a tree."]  # of the root observation
    assert [(r.line, "GET /api/public/traces/ID" in r.reason) for r in result.refused] == [(3, True)]


def test_langfuse_trace_as_its_page_downloads_it() -> None:
    result = fixture("langfuse_trace_download.json", "langfuse")
    assert [t.label for t in of_kind(result, Thumb)] == [True]
    assert [c.text for c in result.completions] == ["A wren."]


def check_export(result: ImportResult, second: str) -> None:
    texts = {c.id: c.text for c in result.completions}
    assert [(texts[t.completion_id], t.label, t.annotator.id) for t in of_kind(result, Thumb)] == [
        ("Air scatters blue light.", False, "u-5"),
        (second, True, "u-5"),
    ]
    (rating,), (critique,) = of_kind(result, Rating), of_kind(result, Critique)
    assert (rating.score, rating.annotator.kind, rating.created_at) == (0.5, "CODE", 1729598400.0)
    assert (critique.comment, critique.annotator.id) == ("Name the scattering.", "ann@example.org")
    assert (critique.created_at, critique.external_id) == (1729670400.0, "c-1")
    assert result.notes == {"tone says neither good nor bad (say what is good: --scale NAME=WORST:BEST)": 1}


def test_langfuse_export_of_many_traces() -> None:
    check_export(fixture("langfuse_export.jsonl", "langfuse"), '{"colour": "blue"}')  # a JSON that was the answer


def test_langfuse_export_of_many_traces_as_csv(tmp_path: Path) -> None:
    rows = rows_of("langfuse_export.jsonl")
    rows[1]["output"] = "Blue."
    with (tmp_path / "traces.csv").open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(rows[0])
        for row in rows:
            cells = [
                "" if cell is None else cell if isinstance(cell, str) else json.dumps(cell) for cell in row.values()
            ]
            writer.writerow(cells)
    result = read(tmp_path / "traces.csv")
    assert result.format == "langfuse"
    check_export(result, "Blue.")


def test_langfuse_scores_without_their_trace_are_refused_with_the_remedy(tmp_path: Path) -> None:
    result = fixture("langfuse_scores.jsonl", "langfuse")
    for trace, refused in zip(("t-9", "t-10", "t-11"), result.refused, strict=True):
        assert f"about trace {trace}, whose texts are not in the file; export the traces" in refused.reason
    (row, *_) = rows_of("langfuse_scores.jsonl")
    row |= {"value": 0, "trace": {"userId": "u-1", "input": "Name a tree.", "output": "Blue."}}
    assert [t.label for t in of_kind(read_row(tmp_path, row), Thumb)] == [False]


def test_mlflow_assessments_are_about_the_root_span() -> None:
    result = fixture("mlflow_traces.jsonl", "mlflow")
    assert result.prompts[0].messages == ({"role": "user", "content": "Why is the sky blue?"},)
    assert result.completions[0].text == "Air."
    (thumb,), (rating,), (edit,) = of_kind(result, Thumb), of_kind(result, Rating), of_kind(result, Edit)
    assert (thumb.label, thumb.comment, thumb.annotator.id) == (True, "Clear.", "ann")
    assert (rating.score, rating.scale, rating.annotator.kind) == (0.9, (0.0, 1.0), "LLM")
    assert edit.edited_completion == "Air scatters blue light the most."
    assert result.notes == {"an assessment holds an error in place of a value": 1}


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


def test_a_bare_1_of_a_tutorial_is_refused_for_it_may_be_the_worst_or_the_best(tmp_path: Path) -> None:
    row = {"input": "Why?", "response": "Light."}
    said = [{"feedback": 1}, {"feedback": 1, "scale": [1, 5]}, {"feedback": 1, "scale": [0, 1]}, {"feedback": 0}]
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps({**row, **one}) + "\n" for one in said))
    result = read(path)
    assert [refused.line for refused in result.refused] == [1]
    assert 'add "scale": [1, 5] or [0, 1]' in result.refused[0].reason
    assert [r.score for r in of_kind(result, Rating)] == [1.0]
    assert [t.label for t in of_kind(result, Thumb)] == [True, False]


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


def data_set(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A folder as `datasets.Dataset.save_to_disk` writes it."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file:
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


ROWS = [{"prompt": f"Why {i}?", "chosen": "Light.", "rejected": "No."} for i in range(5)]


def test_a_folder_that_datasets_saved_is_read(tmp_path: Path) -> None:
    result = read(data_set(tmp_path / "d", ROWS))
    assert (result.format, len(result.feedback)) == ("pairs", 5)
    assert result.feedback[4].source.endswith("data-00000-of-00001.arrow:5")


def test_datasets_itself_writes_what_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "d")
    assert len(read(tmp_path / "d").feedback) == 5


def test_the_training_split_is_read_or_the_one_that_is_named(tmp_path: Path) -> None:
    for split, rows in {"train": ROWS, "test": ROWS[:2]}.items():
        data_set(tmp_path / "d" / split, rows)
    (tmp_path / "d" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    assert len(read(tmp_path / "d").feedback) == 5
    assert len(read(tmp_path / "d" / "test").feedback) == 2
    (tmp_path / "d" / "dataset_dict.json").write_text(json.dumps({"splits": ["dev", "test"]}))
    with pytest.raises(UserError, match="has the splits dev, test; name one of them"):
        read(tmp_path / "d")


def test_a_folder_of_parquet_files_is_one_data_set(tmp_path: Path) -> None:
    for number in (1, 2):
        pq.write_table(pa.Table.from_pylist(ROWS[number : number + 2]), tmp_path / f"{number}.parquet")
    result = read(tmp_path)
    assert (len(result.feedback), result.repeated) == (3, 1)


def test_names_of_files_do_not_lead_out_of_a_data_sets_folder(tmp_path: Path) -> None:
    folder = data_set(tmp_path / "d", ROWS)
    (tmp_path / "secret.arrow").write_bytes((folder / "data-00000-of-00001.arrow").read_bytes())
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../secret.arrow"}]}))
    with pytest.raises(UserError, match=r"cannot be read as Arrow"):
        read(folder)


def test_a_data_set_as_the_hub_holds_it_is_streamed_split_by_split(tmp_path: Path) -> None:
    """`datasets` reads a folder on disk as it reads a repository of the hub."""
    row = {"prompt": "Why?", "chosen": "Light.", "rejected": "No.", "margin": None}
    for split, count in (("train", 3), ("test", 2)):
        lines = [json.dumps({**row, "prompt": f"{split} {i}?"}) for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    assert len(read(f"hf:{tmp_path}").feedback) == 3
    result = read(f"hf:{tmp_path}:test")
    assert (result.format, winners(result)) == ("pairs", [("a", "Light.", "No.")] * 2)
    assert result.feedback[1].source == f"hf:{tmp_path}:test:2"
    with pytest.raises(UserError, match=r"cannot be read from the hub: .*dev"):
        read(f"hf:{tmp_path}:dev")


def test_a_data_set_of_the_hub_that_cannot_be_had_is_an_error_with_remedies() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(UserError, match=r"hf:nobody/nothing cannot be read from the hub: .* Check its name"):
        read("hf:nobody/nothing")


def test_potato_annotations() -> None:
    result = fixture("potato.jsonl", "potato")
    assert winners(result) == [("b", "It is not.", "Air scatters blue light."), ("a", "Oak.", "Rose.")]
    first, second = of_kind(result, Preference)
    assert (first.comment, first.annotator.id, second.annotator.id) == ("It gives the cause.", "ann", "bob")
    assert [(r.score, r.scale) for r in of_kind(result, Rating)] == [(4.0, (1.0, 5.0))]
    assert of_kind(result, Thumb) == []  # is_toxic: no
    assert result.notes["spans that annotators marked are left out"] == 1


def with_texts(store: Store, tmp_path: Path, row: dict[str, Any], texts: list[dict[str, Any]]) -> list[Any]:
    (tmp_path / "said.jsonl").write_text(json.dumps(row))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    summary = import_file(store, tmp_path / "said.jsonl")
    assert (summary.rejected, "--texts FILE" in summary.examples[0].reason) == (1, True)
    import_file(store, tmp_path / "said.jsonl", texts=tmp_path / "texts.jsonl")
    return list(store.feedback())


def test_potato_names_instances_whose_texts_stand_elsewhere(store: Store, tmp_path: Path) -> None:
    state = {
        "i1": [[{"schema": "preference", "name": "selection"}, "tie"]],
        "i2": [[{"schema": "helpful", "name": "yes"}, "true"], [{"schema": "note", "name": "text_box"}, "Short."]],
    }
    texts = [
        {"id": "i1", "prompt": "Why?", "responses": ["Air.", "Light."]},
        {"id": "i2", "text": "Who?", "response": "I."},
    ]
    said = with_texts(store, tmp_path, {"user_id": "ann", "instance_id_to_label_to_value": state}, texts)
    assert [(f.kind, getattr(f, "winner", None), getattr(f, "label", None), f.comment) for f in said] == [
        ("preference", "tie", None, None),
        ("thumb", None, True, "Short."),
    ]


def test_potato_tables(tmp_path: Path) -> None:
    path = tmp_path / "annotations.csv"
    path.write_text("instance_id,user_id,preference.selection,prompt\n1,ann,A,x\n")
    assert "--texts FILE" in read(path).refused[0].reason


def test_phoenix_annotations_of_spans(store: Store, tmp_path: Path) -> None:
    result = fixture("phoenix_spans.jsonl", "phoenix")
    (thumb,), (rating,), (critique,) = (of_kind(result, kind) for kind in (Thumb, Rating, Critique))
    assert (thumb.label, thumb.comment, thumb.annotator.id) == (True, "Short and right.", "VXNlcjox")
    assert (rating.score, rating.scale, rating.annotator.kind) == (0.75, (0.0, 1.0), "LLM")
    assert (critique.comment, thumb.created_at) == ("It could name Rayleigh.", 1785578700.0)
    assert [c.text for c in result.completions] == ["Air scatters blue light.", "Rose."]
    span, *_ = rows_of("phoenix_spans.jsonl")
    annotation = {key: value for key, value in span["annotations"][0].items() if key != "name"}
    flat = {"annotation_name": "correctness", "result.label": "correct", "result.score": 1.0, **annotation}
    del flat["result"]
    assert [t.label for t in with_texts(store, tmp_path, flat, [span])] == [True]
    joined = {**flat, "context.span_id": "s1", "attributes.input.value": "Why?", "attributes.output.value": "Air."}
    assert [t.label for t in of_kind(read_row(tmp_path, joined), Thumb)] == [True]
    example = {
        "input": {"question": "Why?"},
        "output": {"answer": "Air."},
        "metadata": {"annotations": {"helpfulness": [{"label": None, "score": 0, "annotator_kind": "HUMAN"}]}},
    }
    assert [r.score for r in of_kind(read_row(tmp_path, example), Rating)] == [0.0]


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


def test_argilla_records_as_its_data_sets_hold_them(tmp_path: Path) -> None:
    result = fixture("argilla_flat.jsonl", "argilla")
    assert [w for w, _, _ in winners(result)] == ["a", "tie"]
    assert [f.comment for f in of_kind(result, Preference)] == ["A is a tree", None]
    assert [s.annotator.id for s in of_kind(result, Skip)] == ["u-2"]
    assert result.notes == {"a draft of a response is left out": 1, "the field m is not read": 1}
    pq.write_table(pa.Table.from_pylist(rows_of("argilla_flat.jsonl")[1:]), tmp_path / "hub.parquet")
    assert [w for w, _, _ in winners(read(tmp_path / "hub.parquet"))] == ["tie"]


@pytest.mark.parametrize(
    ("value", "order"),
    [
        (["response_3", "response_1", "response_2"], "312"),
        ([{"value": f"response_{n}", "rank": rank} for rank, n in enumerate((3, 1, 2), 1)], "312"),
        ("response_3", "3"),
    ],
)  # fmt: skip
def test_argilla_rankings_are_preferences_for_each_two(tmp_path: Path, value: Any, order: str) -> None:
    fields = {"prompt": "A tree?", "response_1": "Elm.", "response_2": "Cat.", "response_3": "Oak."}
    row = {
        "id": 1,
        "fields": fields,
        "responses": {"ranking": [{"value": value, "user_id": "u", "status": "submitted"}]},
    }
    found = {(a, b) if w == "a" else (b, a) for w, a, b in winners(read_row(tmp_path, row)) if w in "ab"}
    best = {("Oak.", "Elm."), ("Oak.", "Cat.")}
    assert found == (best | {("Elm.", "Cat.")} if order == "312" else best)


def label_studio(data: dict[str, Any], *results: dict[str, Any]) -> dict[str, Any]:
    return {"id": 1, "data": data, "annotations": [{"id": 2, "completed_by": 3, "result": list(results)}]}


def test_label_studio_templates(tmp_path: Path) -> None:
    items = [{"id": "x", "title": "M", "body": "Elm."}, {"id": "y", "title": "N", "body": "Oak."}]
    rank = {"from_name": "rank", "to_name": "answers", "type": "ranker", "value": {"ranker": ["y", "x"]}}
    data = {"task": "Rank these.", "prompt": "A tree?", "items": items}
    assert winners(read_row(tmp_path, label_studio(data, rank))) == [("b", "Elm.", "Oak.")]
    rank["value"] = {"ranker": {"relevant_results": ["y"], "biased_results": ["x"]}}
    assert any("groups of a ranker" in note for note in read_row(tmp_path, label_studio(data, rank)).notes)
    grade = {"from_name": "rating", "to_name": "summary", "type": "rating", "value": {"rating": 4}}
    grading = label_studio({"document": ["One.", "Two."], "summary": "Both."}, grade)
    result = read_row(tmp_path, grading)
    assert [(r.score, r.scale) for r in of_kind(result, Rating)] == [(4.0, (1.0, 5.0))]
    assert result.prompts[0].messages[0]["content"] == "One.\n\nTwo."
    text = {"from_name": "instruction", "to_name": "prompt", "type": "textarea", "value": {"text": ["Oak."]}}
    (prompt,) = read_row(tmp_path, label_studio({"prompt": "A tree?"}, text)).prompts
    assert (prompt.messages[0]["content"], prompt.reference) == ("A tree?", "Oak.")


def test_label_studio_csv() -> None:
    result = fixture("label_studio.csv", "label-studio")
    assert [w for w, _, _ in winners(result)] == ["tie", "b", "b"]
    assert [f.comment for f in of_kind(result, Preference)] == [None, "A cat is no bird.", None]
    assert (result.feedback[0].annotator.id, result.feedback[0].lead_time) == ("2", 12.5)
    assert result.notes == {"a task has no annotation yet": 1}


def test_mlflow_tables_of_search_traces(tmp_path: Path) -> None:
    result = fixture("mlflow_table.jsonl", "mlflow")
    (thumb,), (rating,) = of_kind(result, Thumb), of_kind(result, Rating)
    assert (thumb.label, thumb.created_at, rating.score, rating.scale) == (True, 1785578400.25, 0.25, (0.0, 1.0))
    assert [m["role"] for m in result.prompts[0].messages] == ["system", "user"]
    assert [note for note in result.notes if note.startswith("is_toxic says neither")]
    (row,) = rows_of("mlflow_table.jsonl")
    for cells in (json.dumps, repr):  # as pandas writes objects into CSV
        with (tmp_path / "traces.csv").open("w", newline="") as file:
            csv.writer(file).writerows(
                [list(row), [cells(v) if isinstance(v, (dict, list)) else v for v in row.values()]]
            )
        assert [t.label for t in of_kind(read(tmp_path / "traces.csv"), Thumb)] == [True]


@pytest.mark.parametrize(
    ("request_", "response", "turns", "answer", "notes"),
    [
        ({"question": "Q?"}, "A.", 1, "A.", []),
        ({"question": "Q?", "user_tier": "gold"}, "A.", 1, "A.", ["the further input user_tier is left out"]),
        ({"question": "Q?", "context": "C."}, {"answer": "A.", "sources": [1]}, 1, "A.", []),
        ({"messages": [["user", "Q?"]]},
         {"messages": [{"type": "human", "content": "Q?"}, {"type": "ai", "content": "A."}]}, 1, "A.", []),
        ({"messages": [{"role": "user", "content": "Q?"}]},
         {"messages": [{"role": "user", "content": "Q?"},
                       {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                       {"role": "tool", "content": "5"}, {"role": "assistant", "content": "A."}]},
         1, "A.", ["calls of tools are left out of a conversation"]),
        ({"messages": [{"role": "user", "content": "Q?"}]},
         {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
                       {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]}, 3, "A.", []),
        ({"input": [{"role": "user", "content": "Q?"}]},
         {"output": [{"type": "reasoning", "summary": []},
                     {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A."}]}]},
         1, "A.", []),
        ({"contents": [{"role": "user", "parts": [{"text": "Q?"}]}]},
         {"candidates": [{"content": {"role": "model", "parts": [{"text": "A."}]}}]}, 1, "A.", []),
        ("Q?", {"generations": [[{"text": "A."}]]}, 1, "A.", []),
        ("Q?", {"role": "assistant", "type": "message", "content": [{"type": "text", "text": "A."}]}, 1, "A.", []),
        ("Q?", '{"colour": "blue"}', 1, '{"colour": "blue"}', []),
    ],
)  # fmt: skip
def test_what_frameworks_log_is_read(
    tmp_path: Path, request_: Any, response: Any, turns: int, answer: str, notes: list[str]
) -> None:
    result = read_row(tmp_path, {"trace_id": "t", "request": request_, "response": response, "assessments": []})
    assert result.refused == []
    assert (len(result.prompts[0].messages), result.completions[0].text) == (turns, answer)
    assert [note for note in result.notes if note != "a trace has no assessment"] == notes


ANSWERS = {"prompt": "Why?", "answer1": "Light.", "answer2": "Air."}


def chosen_in_label_studio(question: str, chosen: str, data: dict[str, Any]) -> dict[str, Any]:
    said = {"from_name": question, "to_name": "prompt", "type": "choices", "value": {"choices": [chosen]}}
    return {"id": 1, "data": data, "annotations": [{"id": 5, "completed_by": 1, "result": [said]}]}


def argilla(question: str, chosen: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"id": "1", "fields": data, "responses": {question: [{"value": chosen, "user_id": "u"}]}}


def potato(question: str, chosen: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"instance_id": "1", "user_id": "u", "labels": {question: {chosen: "true"}}, "item": data}


@pytest.mark.parametrize("tool", [chosen_in_label_studio, argilla, potato])
def test_a_question_for_the_worse_answer_prefers_the_other_and_one_for_something_bad_is_left_out(
    tmp_path: Path, tool: Any
) -> None:
    better, worse, toxic = (
        read_row(tmp_path, tool(question, "answer1", ANSWERS)) for question in ("best", "worse_answer", "more_toxic")
    )
    assert [(f.winner, a, b) for f, (_, a, b) in zip(of_kind(better, Preference), winners(better), strict=True)] == [
        ("a", "Light.", "Air.")
    ]
    assert [f.winner for f in of_kind(worse, Preference)] == ["b"]
    assert of_kind(toxic, Preference) == []
    assert any("more_toxic asks for something bad" in note for note in toxic.notes)


@pytest.mark.parametrize("tool", [chosen_in_label_studio, argilla, potato])
def test_the_best_of_three_says_nothing_of_the_other_two(tmp_path: Path, tool: Any) -> None:
    result = read_row(tmp_path, tool("best", "answer2", {**ANSWERS, "answer3": "Dust."}))
    assert sorted(winners(result)) == [("a", "Air.", "Dust."), ("b", "Light.", "Air.")]


def test_best_and_worst_of_one_instance_agree(tmp_path: Path) -> None:
    row = potato("scaling", "x", ANSWERS) | {"labels": {"scaling": {"best": "answer1", "worst": "answer2"}}}
    assert [w for w, _, _ in winners(read_row(tmp_path, row))] == ["a", "a"]


@pytest.mark.parametrize("tool", [chosen_in_label_studio, argilla, potato])
def test_labels_that_are_numbers_are_ratings_of_one_answer(tmp_path: Path, tool: Any) -> None:
    rows = [tool("quality", number, {"prompt": f"Why {number}?", "response": "Light."}) for number in ("1", "5")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(f.score, f.scale) for f in of_kind(read(path), Rating)] == [(1.0, (1.0, 5.0)), (5.0, (1.0, 5.0))]


def test_argilla_ratings_of_two_answers_by_the_number_at_the_end(tmp_path: Path) -> None:
    row = argilla("rating-1", "4", {"prompt": "Why?", "response-1": "Light.", "response-2": "Air."})
    row["responses"]["rating-2"] = [{"value": 2, "user_id": "u"}]
    result = read_row(tmp_path, row)
    texts = {c.id: c.text for c in result.completions}
    assert [(texts[f.completion_id], f.score) for f in of_kind(result, Rating)] == [("Light.", 4.0), ("Air.", 2.0)]
    assert of_kind(result, Preference) == []


@pytest.mark.parametrize("as_columns", [False, True])
def test_argilla_records_as_version_1_put_them_on_the_hub(tmp_path: Path, as_columns: bool) -> None:
    ranked = [{"text": "response2", "rank": 1}, {"text": "response1", "rank": 2}]
    values: list[Any] = [{"rank": [1, 2], "value": ["response2", "response1"]} if as_columns else ranked]
    order: Any = [{"user_id": "u1", "status": "submitted", "value": value} for value in values]
    if as_columns:
        order = {key: [one[key] for one in order] for key in ("user_id", "value", "status")}
    row = {"prompt": "Why?", "response1": "Light.", "response2": "Air.", "order": order, "order-suggestion": None,
           "order-suggestion-metadata": {"type": None}, "external_id": None, "metadata": "{}"}  # fmt: skip
    result = read_row(tmp_path, row)
    assert winners(result) == [("b", "Light.", "Air.")]
    assert result.notes == {}


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


def test_mlflow_trace_without_an_output_has_no_answer(tmp_path: Path) -> None:
    span = {"parent_span_id": None, "attributes": {"mlflow.spanInputs": '"Why?"', "mlflow.spanOutputs": "null"}}
    said = {"assessment_name": "correctness", "feedback": {"value": False}, "source": {"source_type": "HUMAN"}}
    row = {"info": {"trace_id": "1", "assessments": [said]}, "data": {"spans": [span]}}
    assert read_row(tmp_path, row).completions == []


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
