"""Feedback as people really have it: fields under other names, texts in other shapes, other tables, other units."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples.real_feedback import PAIR, TALK, imported, mlflow, ratings, read_rows, write
from typer.testing import CliRunner

from rlhf_loop.cli import app
from rlhf_loop.errors import UserError
from rlhf_loop.feedback.files.row import Row
from rlhf_loop.feedback.files.rows import read_rows as rows_of_file
from rlhf_loop.feedback.importers.conversations import messages_of, turns_in
from rlhf_loop.feedback.intake.import_file import import_file
from rlhf_loop.feedback.intake.prompts import read_prompts
from rlhf_loop.feedback.intake.read_whole import ImportResult, read
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Preference, Rating, Thumb

FIXTURES = Path(__file__).parents[1] / "data" / "feedback_formats"
Turns = list[tuple[str, str]]


def asked(result: ImportResult) -> list[Turns]:
    return [[(turn["role"], turn["content"]) for turn in prompt.messages] for prompt in result.prompts]


def pairs(result: ImportResult) -> list[tuple[str, str]]:
    """Winning and losing text of each preference."""
    texts = {c.id: c.text for c in result.completions}
    return [(texts[f.a_id], texts[f.b_id]) for f in result.feedback if isinstance(f, Preference)]


# What was asked, under other names


@pytest.mark.parametrize(
    ("fields", "turns"),
    [
        ({"question": "Q?"}, [("user", "Q?")]),
        ({"instruction": "Do.", "input": ""}, [("user", "Do.")]),
        ({"instruction": "Sum.", "input": "A text."}, [("user", "Sum.\n\nA text.")]),
        ({"problem": "1+1"}, [("user", "1+1")]),
        ({"query": "Q?"}, [("user", "Q?")]),
        ({"input": "Q?"}, [("user", "Q?")]),
        ({"prompt": "", "question": "Q?"}, [("user", "Q?")]),
        ({"prompt": "Q?", "question": "Q?"}, [("user", "Q?")]),
        ({"system": "Be brief.", "question": "Q?"}, [("system", "Be brief."), ("user", "Q?")]),
        ({"system": "Be brief.", "prompt": "Q?"}, [("system", "Be brief."), ("user", "Q?")]),
        ({"system_prompt": "Be brief.", "prompt": [{"role": "user", "content": "Q?"}]},
         [("system", "Be brief."), ("user", "Q?")]),
        ({"context": "The sky.", "question": "Colour?"}, [("user", "The sky.\n\nColour?")]),
        ({"context": ["One.", {"text": "Two."}], "prompt": "Q?"}, [("user", "One.\n\nTwo.\n\nQ?")]),
        ({"history": [["Hi", "Hello"]], "instruction": "Q?"}, [("user", "Hi"), ("assistant", "Hello"), ("user", "Q?")]),
        ({"messages": [{"role": "user", "content": "Q?"}]}, [("user", "Q?")]),
        ({"conversations": [{"from": "human", "value": "Q?"}]}, [("user", "Q?")]),
        ({"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "good"}]}, [("user", "Q?")]),
    ],
)  # fmt: skip
def test_what_was_asked_is_read_whatever_its_fields_are_called(
    tmp_path: Path, fields: dict[str, Any], turns: Turns
) -> None:
    result = read_rows(tmp_path, {**fields, "chosen": "good", "rejected": "bad"})
    assert (result.format, asked(result), pairs(result)) == ("pairs", [turns], [("good", "bad")])
    unpaired = {name: value for name, value in fields.items() if name != "messages"}
    if unpaired:
        row = {**unpaired, "completion": "good", "label": "True"}
        assert asked(read_rows(tmp_path, row)) == [turns]
        assert asked(
            read_rows(tmp_path, {**unpaired, "response": "good", "feedback": "up"}, format_name="tutorial")
        ) == [turns]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": [{"role": "user", "content": ""}]}, "the prompt is empty"),
        ({"prompt": [{"role": "system", "content": "Be brief."}]}, "the prompt is empty"),
        ({"prompt": "A?", "question": "B?"}, "`prompt` and `question` may each be what was asked; say which: --map"),
        ({"prompt": "Continue:", "input": "A text."}, "`prompt` and `input` may each"),
        ({"messages": [{"role": "user", "content": "A?"}], "prompt": "B?"}, "may each be what was asked"),
        ({"topic": "birds"}, "name its column: --map prompt=COLUMN (there are: topic)"),
        ({"system": "Be brief."}, "there is no prompt"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused_with_the_remedy(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    result = read_rows(tmp_path, {**fields, "chosen": "good", "rejected": "bad"})
    assert (result.feedback, len(result.refused)) == ([], 1)
    assert reason in result.refused[0].reason


def test_a_column_named_by_the_user_is_the_only_prompt(tmp_path: Path) -> None:
    row = {"prompt": "A?", "question": "B?", "context": "C.", "chosen": "good", "rejected": "bad"}
    path = write(tmp_path / "f.jsonl", [row])
    with Store.open(":memory:") as store:
        summary = import_file(store, path, columns={"prompt": "question"})
        assert summary.notes == {"the column context is not read": 1}
        assert [p.messages[0]["content"] for p in store.prompts()] == ["B?"]
        import_file(store, path, columns={"prompt": "prompt", "context": "question"})
        assert store.prompts()[1].messages[0]["content"] == "B?\n\nA?"


def test_columns_that_are_not_read_are_counted(tmp_path: Path) -> None:
    row = {**PAIR, "model": "m", "score": 3, "empty": None, "none": []}
    result = read_rows(tmp_path, row, {**PAIR, "model": "n"})
    assert result.notes == {"the column model is not read": 2, "the column score is not read": 1}
    many = [{**PAIR, "id": i, f"column {i}": 1} for i in range(300)]
    assert len(read_rows(tmp_path, *many).notes) == 201  # a file makes no more of them
    assert "the column extra is not read" in read_rows(tmp_path, {"prompt": "Q?", "extra": 1}, format_name="trl").notes


def test_axolotl_rows_hold_one_message_as_each_answer(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1?"}]
    row: dict[str, Any] = {"messages": talk, "chosen": {"role": "assistant", "content": "2."}}
    row["rejected"] = {"role": "assistant", "content": "A number."}
    sharegpt = {"conversations": [{"from": "human", "value": "1+1?"}], "system": "Add."}
    sharegpt |= {"chosen": {"from": "gpt", "value": "2."}, "rejected": {"from": "gpt", "value": "A number."}}
    for one in (row, {name: json.dumps(value) for name, value in row.items()}, sharegpt):
        result = read_rows(tmp_path, one)
        assert asked(result) == [[("system", "Add."), ("user", "1+1?")]]
        assert pairs(result) == [("2.", "A number.")]


# Conversations in every shape and container

SHAPES = {
    "list": TALK,
    "json": json.dumps(TALK),
    "repr": repr(TALK),
    "array": str(TALK).replace("}, {", "}\n {"),  # as NumPy prints an array, which pandas writes into CSV
    "array()": f"array({TALK!r}, dtype=object)",
    "guarded": "'" + json.dumps(TALK),  # against formulas
    "sharegpt": [{"from": "human", "value": "What is 'tea'?"}, {"from": "gpt", "value": "Leaves."}],
    "langchain": [{"type": "human", "content": "What is 'tea'?", "id": None}, {"type": "ai", "content": "Leaves."}],
    "constructor": [
        {"lc": 1, "type": "constructor", "id": ["langchain", kind], "kwargs": {"content": turn["content"]}}
        for kind, turn in zip(("HumanMessage", "AIMessageChunk"), TALK, strict=True)
    ],
    "pairs": [["What is 'tea'?", "Leaves."]],
    "turns": [{"input": "What is 'tea'?", "output": "Leaves."}],
    "tuples": [["user", "What is 'tea'?"], ["ai", "Leaves."]],
    "parts": [{"role": t["role"], "content": [{"type": "text", "text": t["content"]}]} for t in TALK],
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("container", ["jsonl", "csv", "parquet", "json"])
def test_conversations_are_read_in_every_shape_from_every_container(tmp_path: Path, shape: str, container: str) -> None:
    chosen = SHAPES[shape]
    rejected = json.loads(json.dumps(chosen).replace("Leaves.", "Dunno."))
    row = {"chosen": chosen, "rejected": rejected}
    path = tmp_path / f"f.{container}"
    if container == "csv":
        with path.open("w", newline="") as file:
            cells = [value if isinstance(value, str) else json.dumps(value) for value in row.values()]
            csv.writer(file).writerows([list(row), cells])
    elif container == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps([row] if container == "json" else row))
    result = read(path)
    assert (result.refused, asked(result)) == ([], [[("user", "What is 'tea'?")]])
    assert pairs(result) == [("Leaves.", "Dunno.")]


def test_text_in_brackets_that_is_no_conversation_stays_text(tmp_path: Path) -> None:
    for text in ("[1, 2]", '{"a": 1}', "[sic] why?", '[{"name": "x"}]', "[]", "'[", '["role"]'):
        result = read_rows(tmp_path, {**PAIR, "prompt": text, "chosen": text})
        assert (asked(result), result.completions[0].text) == ([[("user", text)]], text)


def test_a_broken_list_of_messages_is_refused(tmp_path: Path) -> None:
    result = read_rows(tmp_path, {**PAIR, "prompt": '[{"role": "user", "content": "Wh'})
    assert "begins like a list of messages" in result.refused[0].reason


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(max_size=20)), min_size=1, max_size=4))
def test_a_conversation_says_the_same_however_it_is_written(turns: Turns) -> None:
    talk = [{"role": role, "content": content} for role, content in turns if "\0" not in content]
    if talk:
        for value in (json.dumps(talk), json.dumps(talk, ensure_ascii=False), repr(talk), f"  {json.dumps(talk)}\n"):
            assert turns_in(value, "x") == tuple(talk)


# Tables


@pytest.mark.parametrize("sign", [";", "\t", "|", ","])
@pytest.mark.parametrize("start", ["", "\ufeff", "sep"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_tables_are_read_whatever_parts_their_cells(
    tmp_path: Path, sign: str, start: str, end: str, encoding: str
) -> None:
    lines = [sign.join(PAIR), sign.join(['"Q, a;b|c?\n2"', '"g ""x"""', "bad"])]
    lines = (
        [f"sep={sign}", *lines] if start == "sep" else [start + lines[0] if encoding == "utf-8" else lines[0], lines[1]]
    )
    path = tmp_path / "f.csv"
    path.write_bytes(end.join([*lines, ""]).encode(encoding))
    result = read(path)
    assert (result.refused, asked(result), pairs(result)) == ([], [[("user", "Q, a;b|c?\n2")]], [('g "x"', "bad")])


def test_what_is_wrong_with_a_table_is_said(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("prompt,chosen,chosen\na,b,c\n")
    with pytest.raises(UserError, match="names chosen twice"):
        read(path)
    path.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(UserError, match="workbook; unpack it, or save the sheet as CSV"):
        read(path)
    other = tmp_path / "f.txt"
    other.write_text("prompt;chosen;rejected\nQ?;good;bad\n")
    with pytest.raises(UserError, match=r"if it is a table, name it \.csv"):
        read(other)


def test_a_table_that_pandas_wrote_by_columns_is_read(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(json.dumps({name: {"0": text, "1": text + "!"} for name, text in PAIR.items()}))
    assert len(pairs(read(path))) == 2


def test_parquet_is_known_by_its_content(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([PAIR]), tmp_path / "f.csv")
    assert len(read(tmp_path / "f.csv").feedback) == 1


# The command


def test_the_command_ends_with_1_when_no_row_can_be_used(tmp_path: Path) -> None:
    store = str(tmp_path / "s.db")
    bad = write(tmp_path / "bad.jsonl", [{**PAIR, "prompt": ""}])
    result = CliRunner().invoke(app, ["feedback", "import", str(bad), "--store", store])
    assert (result.exit_code, "rejected" in result.output) == (1, True)
    half = write(tmp_path / "half.jsonl", [{**PAIR, "prompt": ""}, PAIR])
    assert CliRunner().invoke(app, ["feedback", "import", str(half), "--store", store]).exit_code == 0
    rated = write(tmp_path / "rated.jsonl", [mlflow("quality", 3)])
    command = ["feedback", "import", str(rated), "--store", store, "--scale", "quality=1:7"]
    assert CliRunner().invoke(app, command).exit_code == 0
    with Store.open(store) as opened:
        assert ratings(opened.feedback()) == [(3, (1, 7))]


def test_names_reach_into_nested_fields(tmp_path: Path) -> None:
    rows = [{"in": {"turns": [{"text": "Why?"}]}, "out": [{"t": "good"}, {"t": "bad"}], "meta": '{"who": {"id": 3.0}}'}]
    path = write(tmp_path / "f.jsonl", rows)
    columns = {"prompt": "in.turns[0].text", "chosen": "out.0.t", "rejected": "out[-1].t", "annotator": "meta.who.id"}
    summary, feedback = imported(tmp_path, path, columns=columns)
    assert (summary.format, summary.notes) == ("pairs", {})
    assert feedback[0].annotator.id == "3"
    with pytest.raises(UserError, match=r"there is no column `out\[7\].t`; the first row has: in, out, meta"):
        imported(tmp_path, path, columns={"prompt": "out[7].t"})


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"prompt": "x", "chosen": "y", "id": 1}, "`pairs`, which also needs rejected"),
        (
            {"id": 1, "name": "x", "colour": "y"},
            "Say which column is what: --map prompt=COLUMN,chosen=COLUMN,rejected=COLUMN",
        ),
        ({"input": "x", "response": "y", "id": 1}, "`tutorial`, which also needs feedback"),
        ({"instruction": "x", "input": "y", "output": "z"}, "`trl`, which also needs completion"),
    ],
)
def test_the_nearest_format_is_a_useful_one(tmp_path: Path, row: dict[str, Any], hint: str) -> None:
    with pytest.raises(UserError) as error:
        read_rows(tmp_path, row)
    assert hint in str(error.value)


def test_messages_of_text_are_one_turn() -> None:
    assert messages_of("Why?", "prompt") == ({"role": "user", "content": "Why?"},)


def test_a_row_of_parquet_is_bounded_however_little_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    large = ["a" * (33 * 2**20), "Light."]
    pq.write_table(pa.table({"prompt": ["Why?"] * 2, "chosen": large, "rejected": ["No."] * 2}), path)
    assert path.stat().st_size < 3 * 2**20
    for file in (path, feather(path)):
        result = read(file)
        assert [(r.line, r.reason) for r in result.refused] == [(1, "the row is larger than 32 MiB")]
        assert pairs(result) == [("Light.", "No.")]
    message = pa.array([{"role": "user", "content": "x"}] * 300_000)
    talks = pa.ListArray.from_arrays([0, 299_999, 300_000], message)
    pq.write_table(pa.table({"prompt": talks, "chosen": ["c"] * 2, "rejected": ["r"] * 2}), path)
    result = read(path)
    assert ([r.line for r in result.refused], len(result.feedback)) == ([1], 1)


def feather(path: Path) -> Path:
    """The same as a folder with a file of Arrow."""
    folder = path.parent / "arrow"
    folder.mkdir()
    table = pq.read_table(path)
    with pa.OSFile(str(folder / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return folder


def test_rows_of_any_size_come_out_of_parquet_whole_and_in_order(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "chosen": "c" * (i * 7919 % 5000), "rejected": "r"} for i in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "f.parquet", row_group_size=700)
    found = list(rows_of_file(tmp_path / "f.parquet"))
    assert [row.values for row in found if isinstance(row, Row)] == rows
    assert [row.line for row in found] == list(range(1, 3001))


@pytest.mark.parametrize("redact", ["patterns", "none"])
def test_half_of_a_surrogate_pair_refuses_its_row_alone(tmp_path: Path, redact: Any) -> None:
    """In every text of every format's own file."""
    broken = "x\ud83d"
    for file in sorted(FIXTURES.glob("*.json*")):
        first = next(rows_of_file(file))
        assert isinstance(first, Row)
        row = first.values
        spoiled = [put(row, place, broken) for place in places(row)][:: 3 if redact == "none" else 4]
        (tmp_path / "f.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [row, *spoiled, row]))
        summary, _ = imported(tmp_path, tmp_path / "f.jsonl", redact=redact)
        assert summary.rows == len(spoiled) + 2
        json.dumps(summary.to_dict(), ensure_ascii=False).encode()


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the texts of a row are."""
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*before, key))
    else:
        yield before


def put(value: Any, place: tuple[Any, ...], text: str) -> Any:
    """The row with a text in one place."""
    value = json.loads(json.dumps(value))
    inside = value
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = text
    return value


def test_personal_data_inside_of_json_in_a_text_is_redacted_and_the_json_stays_whole(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Mail ann@example.org", "id": 4111111111111111}]
    path = write(tmp_path / "f.jsonl", [{**PAIR, "prompt": json.dumps(talk)}])
    with Store.open(":memory:") as store:
        summary = import_file(store, path)
        assert (summary.accepted, summary.redacted) == (1, 1)
        assert store.prompts()[0].messages[0]["content"] == "Mail [EMAIL]"


def test_columns_may_have_capitals(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("System,Prompt,Chosen,Rejected\nBe brief.,Q?,good,bad\n")
    result = read(tmp_path / "f.csv")
    assert (asked(result), pairs(result)) == ([[("system", "Be brief."), ("user", "Q?")]], [("good", "bad")])


def test_prompts_of_a_recipe_have_system_turns_and_other_names(tmp_path: Path) -> None:
    rows = [
        {"system": "Be brief.", "prompt": "Q?"},
        {"question": "R?", "solution": "4"},
        {"instruction": "S", "input": "T"},
    ]
    found = read_prompts(write(tmp_path / "p.jsonl", rows))
    assert [[(m["role"], m["content"]) for m in prompt.messages] for prompt in found] == [
        [("system", "Be brief."), ("user", "Q?")],
        [("user", "R?")],
        [("user", "S\n\nT")],
    ]


HUGE = 10**400


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q?", "response": "A.", "feedback": HUGE},
        {"prompt": "Q?", "response": "A.", "feedback": float("nan")},
        {"prompt": "Q?", "response": "A.", "feedback": float("inf")},
        {**PAIR, "votes_a": HUGE, "votes_b": 1, "margin": HUGE},
        {**PAIR, "created_at": "1 Jan 99999999999999999999 00:00:00"},
    ],
)
def test_an_odd_value_refuses_its_row_alone(tmp_path: Path, row: dict[str, Any]) -> None:
    sound = {"prompt": "Why?", "response": "So.", "feedback": "good"} if "feedback" in row else PAIR
    result = read_rows(tmp_path, sound, row)
    assert len(result.feedback) >= 1
    assert [refused.line for refused in result.refused] == [2]


def test_a_cell_that_is_nested_too_deeply_is_text(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("prompt,chosen,rejected\nQ?," + "[" * 100_000 + ",b\n")
    result = read(path)
    assert len(result.feedback) + len(result.refused) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "Why?", "answer": "Light.", "rating": 4}, (4.0, (1.0, 5.0))),
        ({"prompt": "Why?", "completion": "Light.", "rating": 2}, (2.0, (1.0, 5.0))),
        ({"messages": [{"role": "user", "content": "Why?"}], "response": "Light.", "rating": 4}, (4.0, (1.0, 5.0))),
        ({"prompt": "Why?", "completion": "Light.", "reward": -0.5}, (-0.5, (-1.0, 1.0))),
        ({"query": "Why?", "answer": "Light.", "feedback": "dislike"}, False),
        ({"prompt": "Why?", "response": "Light.", "label": "desirable"}, True),
    ],
)
def test_answers_with_a_verdict_beside_them_are_judged_and_no_references(
    tmp_path: Path, row: dict[str, Any], said: Any
) -> None:
    result = read_rows(tmp_path, row)
    (found,) = result.feedback
    assert (found.label if isinstance(found, Thumb) else (found.score, found.scale)) == said
    assert [p.reference for p in result.prompts] == [None]
    assert [c.text for c in result.completions] == ["Light."]
    named = read_rows(tmp_path, {"prompt": "Why?", "completion": "Light.", "rating": 1}, format_name="trl")
    assert "no reference answer" in named.refused[0].reason
    silent = read_rows(tmp_path, {"prompt": "Why?", "response": "", "rating": 1}, format_name="chat")
    assert "there is no answer" in silent.refused[0].reason


def test_feedback_in_the_messages_of_a_chat_is_about_them(tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Light.", "feedback": "down"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Air.", "rating": 5},
    ]
    result = read_rows(tmp_path, {"messages": talk})
    texts = {c.id: c.text for c in result.completions}
    thumb, rating = result.feedback
    assert isinstance(thumb, Thumb)
    assert isinstance(rating, Rating)
    assert (thumb.label, texts[thumb.completion_id]) == (False, "Light.")
    assert (rating.score, texts[rating.completion_id]) == (5.0, "Air.")
    assert [len(turns) for turns in asked(result)] == [1, 3]
    said = {"type": "down", "text": "Dull."}
    result = read_rows(tmp_path, {"messages": [talk[0], {**talk[1], "feedback": said}]})
    (thumb,) = result.feedback
    assert isinstance(thumb, Thumb)
    assert (thumb.label, thumb.comment) == (False, "Dull.")


def test_what_messages_hold_beside_their_text_is_left_out_and_counted(tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Light."}]},
    ]
    result = read_rows(
        tmp_path, {"system": [{"type": "text", "text": "Be brief."}], "messages": talk, "feedback": "up"}
    )
    assert asked(result) == [[("system", "Be brief."), ("user", "Why?")]]
    assert [c.text for c in result.completions] == ["Light."]
    assert result.notes == {
        "the tool_calls of a message is not read": 1,
        "calls of tools are left out of a conversation": 1,
        "thoughts and calls of tools in a message are left out": 1,
    }


def test_several_answers_of_which_one_was_judged_are_refused(tmp_path: Path) -> None:
    choices = [{"message": {"role": "assistant", "content": text}} for text in ("Light.", "Air.")]
    request = {"messages": [{"role": "user", "content": "Why?"}], "n": 2}
    result = read_rows(tmp_path, {"request": request, "response": {"choices": choices}, "rating": 4})
    assert "nothing says which of them was judged" in result.refused[0].reason


def test_a_dialogue_as_a_prompt_is_turns_and_a_chat_template_is_refused(tmp_path: Path) -> None:
    prompt = "\n\nHuman: Why?\n\nAssistant: Light.\n\nHuman: And?\n\nAssistant:"
    result = read_rows(tmp_path, {"prompt": prompt, "chosen": " Air.", "rejected": " Dust."})
    assert asked(result) == [[("user", "Why?"), ("assistant", "Light."), ("user", "And?")]]
    assert pairs(result) == [("Air.", "Dust.")]
    for start in (
        "<|im_start|>user\n",
        "<s>[INST] ",
        "<|begin_of_text|><|start_header_id|>user",
        "<start_of_turn>user\n",
    ):
        result = read_rows(tmp_path, {**PAIR, "prompt": f"{start}Why?"})
        assert "written in a chat template" in result.refused[0].reason


def test_an_empty_prompt_is_not_made_of_what_the_answers_share(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text(
        "prompt,chosen,rejected\n,The sky is blue.,The sky is red.\n,The sea is blue.,The sea is red.\nQ?,A,B\n"
    )
    result = read(path)
    assert [p.messages[0]["content"] for p in result.prompts] == ["Q?"]
    assert len(result.refused) == 2
    result = read_rows(tmp_path, {"prompt": None, "chosen": "The sky is blue.", "rejected": "The sky is red."})
    assert result.prompts == []
    assert len(result.refused) == 1


def test_pairs_about_images_are_refused(tmp_path: Path) -> None:
    result = read_rows(tmp_path, {**PAIR, "images": ["a.png"]}, {**PAIR, "images": []})
    assert [refused.line for refused in result.refused] == [1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"BZh91AY", "bunzip2"), (b"\xfd7zXZ\0\0", "unxz"), (b"\x28\xb5\x2f\xfd\x04", "unzstd"),
     (b"\x80\x04\x95a", "pickle"),
     (b"SQLite format 3\0", "SQLite"), (b"<!DOCTYPE html>", "web page"), (b"ARROW1\0\0", "Parquet"),
     (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")],
)  # fmt: skip
def test_a_file_of_another_kind_is_named_with_the_remedy(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        read(path)


def test_a_column_that_is_there_twice_is_refused_in_parquet_too(tmp_path: Path) -> None:
    pq.write_table(pa.table([["Q"], ["R"], ["A"], ["B"]], ["prompt", "prompt", "chosen", "rejected"]), tmp_path / "f")
    with pytest.raises(UserError, match="prompt twice"):
        read(tmp_path / "f")


def test_an_answer_that_only_calls_a_tool_is_refused(tmp_path: Path) -> None:
    call = [{"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}]
    result = read_rows(tmp_path, {**PAIR, "chosen": call})
    assert [refused.reason for refused in result.refused] == [
        "`chosen[0]` calls a tool and says nothing, which is not supported"
    ]


def test_the_system_prompt_of_an_answer_in_ultrafeedback_is_counted(tmp_path: Path) -> None:
    answer = {"response": "Light.", "custom_system_prompt": "Be brief.", "overall_score": 8}
    result = read_rows(tmp_path, {"instruction": "Why?", "completions": [answer]})
    assert result.notes == {"the system prompt that an answer was sampled with is left out": 1}
