"""The import: it stores what a file holds, counts every row, and survives hostile files."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples.feedback import contents, fill, write_lines

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.exporters.export import export
from rlhf_loop.feedback.files import lines as files_lines
from rlhf_loop.feedback.files import row, rows
from rlhf_loop.feedback.files.json_elements import Elements
from rlhf_loop.feedback.importers import FORMATS
from rlhf_loop.feedback.intake import batches
from rlhf_loop.feedback.intake.import_file import column_map, import_and_split, import_file
from rlhf_loop.feedback.intake.prompts import split_groups
from rlhf_loop.feedback.intake.read_whole import ImportResult, read
from rlhf_loop.feedback.intake.summary import ImportSummary
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.table_rows import as_columns, completion_row, feedback_row, prompt_row
from rlhf_loop.recipe import Recipe
from rlhf_loop.records import Annotator, Completion, Preference, Prompt, Question, loads, stable_id, to_dict

FIXTURES = Path(__file__).parents[1] / "data" / "feedback_formats"
PAIR = {"prompt": "Why?", "chosen": "Because of light.", "rejected": "No idea."}


def counts(summary: ImportSummary) -> tuple[int, int, int, int]:
    assert summary.rows == summary.accepted + summary.duplicate + summary.rejected
    return summary.accepted, summary.duplicate, summary.contradictory, summary.rejected


def assert_holds(store: Store, result: ImportResult) -> None:
    """The store has all that was read and nothing else."""
    stored = {"prompts": store.prompts(), "completions": store.completions(), "feedback": store.feedback()}
    for name, records in stored.items():
        assert {record.id: record for record in records} == {record.id: record for record in getattr(result, name)}
    assert sorted(store.quarantined()) == sorted(result.refused)


@pytest.mark.parametrize("path", sorted(FIXTURES.iterdir()), ids=lambda path: path.name)
def test_every_format_is_stored_as_it_is_read(store: Store, path: Path) -> None:
    result = read(path)
    summary = import_file(store, path, redact="none")
    assert summary.format == result.format
    assert_holds(store, result)
    assert dict(summary.notes) == result.notes
    before = store.counts()
    again = import_file(store, path, redact="none")
    assert (again.accepted, again.rejected) == (0, summary.rejected)
    assert again.duplicate == summary.accepted + summary.duplicate
    assert store.counts() == before


def test_an_export_of_everything_comes_back_whole(store: Store, tmp_path: Path) -> None:
    with Store.open(":memory:") as first:
        fill(first)
        export(first, tmp_path / "all.jsonl.gz")
        summary = import_file(store, tmp_path / "all.jsonl.gz", redact="none")
        assert contents(store) == contents(first)
        assert counts(summary) == (summary.rows, 0, 0, 0)
        assert counts(import_file(store, tmp_path / "all.jsonl.gz", redact="none")) == (0, summary.rows, 0, 0)


def test_every_row_is_accepted_duplicate_or_rejected(store: Store, tmp_path: Path) -> None:
    rows = [
        {**PAIR, "id": "1", "annotator": "ann"},
        {**PAIR, "id": "1", "annotator": "ann"},
        {"prompt": "Why?", "chosen": PAIR["rejected"], "rejected": PAIR["chosen"], "id": "2", "annotator": "ann"},
        {"prompt": "Why?", "chosen": PAIR["rejected"], "rejected": PAIR["chosen"], "id": "3", "annotator": "bob"},
        {"prompt": "Why?", "chosen": "x"},
        "{",
    ]
    path = write_lines(tmp_path / "votes.jsonl", rows)
    summary = import_file(store, path)
    assert counts(summary) == (3, 1, 1, 2)
    assert [str(example) for example in summary.examples] == [
        f"{path}:5: missing: `rejected`",
        f"{path}:6: not valid JSON: Expecting property name enclosed in double quotes at column 2",
    ]
    assert [(row.line, row.raw) for row in store.quarantined()] == [(5, json.dumps(rows[4])), (6, "{")]
    lines = summary.lines()
    assert lines[0].startswith("6 rows (pairs) in ")
    assert lines[1:6] == [
        "  accepted      3  1 prompts, 2 completions, 3 feedback",
        "  duplicate     1  nothing new in them",
        "  contradictory 1  accepted, against an earlier verdict of the same person",
        "  redacted      0",
        "  rejected      2  kept in the quarantine",
    ]
    later = import_file(store, write_lines(tmp_path / "later.jsonl", [{**PAIR, "id": "4", "annotator": "bob"}]))
    assert counts(later) == (1, 0, 1, 0)  # bob said the opposite in the other file


def test_importing_again_says_that_nothing_has_changed(store: Store, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "f.jsonl", [{**PAIR, "id": str(i)} for i in range(10)])
    import_file(store, path)
    before = contents(store)
    again = import_file(store, path.rename(tmp_path / "other_name.jsonl"))
    assert again.lines()[-1] == "everything in it is in the store already: nothing has changed"
    assert contents(store) == before


def test_a_row_whose_id_stands_for_something_else_is_rejected(store: Store, tmp_path: Path) -> None:
    import_file(store, write_lines(tmp_path / "a.jsonl", [{**PAIR, "id": "1", "created_at": 5}]))
    summary = import_file(
        store, write_lines(tmp_path / "b.jsonl", [{**PAIR, "id": "1", "created_at": 6}, {**PAIR, "id": "2"}])
    )
    assert counts(summary) == (1, 0, 0, 1)
    assert "stands for something else in the store" in summary.examples[0].reason
    summary = import_file(
        store, write_lines(tmp_path / "c.jsonl", [{**PAIR, "id": "3", "created_at": t} for t in (1, 2)])
    )
    assert "stands for something else in an earlier row" in summary.examples[0].reason


def test_a_prompt_keeps_the_split_it_has(store: Store, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "f.jsonl", [PAIR])
    prompt = read(path).prompts[0]
    store.add_prompts([Prompt(id=prompt.id, messages=prompt.messages, group=prompt.group, split="test")])
    assert counts(import_file(store, path)) == (1, 0, 0, 0)
    assert store.prompts()[0].split == "test"


def test_prompts_are_split_by_their_groups_as_assigned(store: Store, tmp_path: Path) -> None:
    rows = [{**PAIR, "prompt": f"Why {i}?", "group": f"topic {i % 10}", "id": str(i)} for i in range(40)]
    path = write_lines(tmp_path / "f.jsonl", [*rows[:30], "broken"])
    import_and_split(store, path, "auto", "none", seed=3, test_fraction=0.2, judge_fraction=0.3)
    prompts = read(path).prompts
    split_of = split_groups({p.group for p in prompts}, 3, 0.2, 0.3)
    assert {p.id: p.split for p in store.prompts()} == {p.id: split_of[p.group] for p in prompts}
    write_lines(path, [*rows, "broken"])  # there is more now: what was in a split stays there
    before = {p.id: p.split for p in store.prompts()}
    assert counts(import_and_split(store, path, "auto", "none", 3, 0.5, 0.3)) == (10, 30, 0, 1)
    assert {p.id: p.split for p in store.prompts()}.items() >= before.items()
    other = write_lines(tmp_path / "g.jsonl", [{**PAIR, "prompt": "How?"}])
    import_and_split(
        store, write_lines(tmp_path / "h.jsonl", [{**PAIR, "prompt": "Who?"}]), "auto", "none", 3, 0.0, 0.0
    )
    assert [p.split for p in store.prompts() if p.messages[0]["content"] == "Who?"] == ["train"]
    import_file(store, other, splits="judge")
    assert [p.split for p in store.prompts() if p.messages[0]["content"] == "How?"] == ["judge"]


def test_a_recipe_maps_the_columns_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("".join(["Question;Better;Worse\n", *(f"Why {n}?;yes {n};no {n}\n" for n in range(8))]))
    own = Path(__file__).parents[2] / "recipes" / "own_pairs.yaml"
    names = {"prompt": "Question", "chosen": "Better", "rejected": "Worse"}
    typed = [f"feedback.imports.0.map.{name}={column}" for name, column in names.items()]
    wanted = Recipe.load(own, [f"feedback.imports.0.path={path}", *typed]).feedback.imports[0]
    assert wanted.map == names
    with Store.open(":memory:") as store:
        summary = import_and_split(store, path, "auto", "none", 0, 0.2, 0.3, columns=wanted.map)
        assert (summary.accepted, summary.rejected) == (8, 0)
        assert len({prompt.split for prompt in store.prompts()}) > 1


def test_what_was_deleted_at_a_persons_wish_does_not_come_back(store: Store, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "f.jsonl", [PAIR, {**PAIR, "prompt": "How?"}])
    gone = read(path).feedback[0].id
    with store.database.write() as connection:
        row = {"kind": "feedback", "record_id": gone, "user": "u", "deleted_at": 1.0}
        connection.execute(tables.tombstones.insert(), [row])
    summary = import_file(store, path)
    assert counts(summary) == (1, 0, 0, 1)
    assert "was deleted at a person's wish" in summary.examples[0].reason


def test_questions_are_answered_by_an_import(store: Store, tmp_path: Path) -> None:
    fill(store)
    store.add_questions([Question(id="q4", prompt_id="p", a_id="b", b_id="c", round=2)])
    export(store, tmp_path / "q.jsonl", "questions")
    rows = [json.loads(line) | {"winner": "a"} for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    summary = import_file(store, write_lines(tmp_path / "q.jsonl", rows))
    assert (counts(summary), summary.new["feedback"]) == ((2, 0, 0, 0), 2)
    assert store.questions(status="open") == []


def test_many_batches_and_transactions_store_the_same(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Any] = [
        {
            **PAIR,
            "prompt": f"Why {i % 7}?",
            "chosen": f"{i % 11}",
            "annotator": f"p{i % 3}",
            "critiques": ["Too short."] * (i % 2),
        }
        for i in range(200)
    ]
    rows[50] = "broken"
    rows[120] = {**PAIR, "prompt": 5}
    path = write_lines(tmp_path / "f.jsonl", rows)
    monkeypatch.setattr(batches, "BATCH_ROWS", 9)
    summary = import_file(store, path, redact="none")
    assert_holds(store, read(path))
    assert summary.rejected == 2


def test_an_import_that_is_interrupted_goes_on(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "f.jsonl", [{**PAIR, "prompt": f"Why {i}?"} for i in range(100)])
    monkeypatch.setattr(batches, "BATCH_ROWS", 10)

    def stop(summary: ImportSummary) -> None:
        if summary.rows >= 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_file(store, path, progress=stop)
    assert store.counts()["feedback"] == 50
    assert counts(import_file(store, path)) == (50, 50, 0, 0)


def test_answers_that_were_there_before_are_found(store: Store, tmp_path: Path) -> None:
    """Many files in one store: batches that are all new, partly new and not new at all, one after another."""
    parts = [(0, 30), (30, 60), (20, 80), (0, 80), (80, 100)]
    for number, (first, last) in enumerate(parts):
        rows = [{**PAIR, "prompt": f"Why {i}?", "id": str(i), "annotator": "ann"} for i in range(first, last)]
        path = write_lines(tmp_path / f"{number}.jsonl", rows)
        known = max((end for _, end in parts[:number]), default=0)
        new = max(last - known, 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batches, "BATCH_ROWS", 7)
            assert counts(import_file(store, path)) == (new, last - first - new, 0, 0)
        assert store.counts()["feedback"] == max(last, known)
    opposite = {**PAIR, "prompt": "Why 3?", "chosen": PAIR["rejected"], "rejected": PAIR["chosen"], "annotator": "ann"}
    assert counts(import_file(store, write_lines(tmp_path / "o.jsonl", [opposite]))) == (1, 0, 1, 0)


def test_personal_data_is_redacted_before_ids_are_made(store: Store, tmp_path: Path) -> None:
    rows: list[Any] = [
        {**PAIR, "prompt": "Write to jane@example.org", "annotator": "jane@example.org"},
        {
            **PAIR,
            "prompt": "Write to joan@example.org",
            "annotator": "joan@example.org",
            "critiques": ["Call +1 415 555 2671"],
        },
        {"prompt": "jane@example.org", "chosen": 7, "rejected": ""},
        "jane@example.org {",
    ]
    summary = import_file(store, write_lines(tmp_path / "f.jsonl", rows))
    assert (summary.redacted, summary.redactions["EMAIL"]) == (2, 4)
    assert [p.messages[0]["content"] for p in store.prompts()] == ["Write to [EMAIL]"]
    people = {f.annotator.id for f in store.feedback()}
    assert len(people) == 2
    everything = str(contents(store)) + str(store.quarantined()) + str(summary.lines())
    assert "example.org" not in everything
    with store.database.read() as connection:
        for table in tables.metadata.sorted_tables:
            assert "example.org" not in str(connection.execute(table.select()).all())
    assert counts(import_file(store, tmp_path / "f.jsonl"))[:2] == (0, 2)


def test_columns_under_other_names(store: Store, tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("question,better,worse,topic\nWhy?,Light.,No.,sky\n")
    columns = column_map(["prompt=question,chosen=better", "rejected=worse, group=topic"])
    assert counts(import_file(store, tmp_path / "f.csv", columns=columns)) == (1, 0, 0, 0)
    assert store.prompts()[0].group == "sky"
    nested = [{"data": {"q": "Why?"}, "chosen": "Light.", "rejected": "No.", "id": "x"}]
    summary = import_file(store, write_lines(tmp_path / "n.jsonl", nested), columns={"prompt": "data.q"})
    assert counts(summary) == (1, 0, 0, 0)
    with pytest.raises(
        UserError, match=r"--map prompt=Question: there is no column `Question`; the first row has: que"
    ):
        import_file(store, tmp_path / "f.csv", columns={"prompt": "Question"})
    with pytest.raises(UserError, match="give NAME=COLUMN"):
        column_map(["prompt"])


# -- rows of tables --------------------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts}), min_size=1
)


@given(id=texts, turns=messages, group=texts, reference=st.none() | texts, tags=st.lists(texts))
def test_rows_of_prompts_hold_all_of_them(id: str, turns: Any, group: str, reference: Any, tags: Any) -> None:
    prompt = Prompt(id=id, messages=tuple(turns), group=group, reference=reference, tags=tuple(tags), source=id)
    columns = as_columns("prompts", prompt_row(prompt))
    assert loads(columns["body"]) == to_dict(prompt)
    assert (columns["id"], columns["split"], columns["group_name"]) == (id, "train", group)
    assert columns["text"] == "\n".join(turn["content"] for turn in turns)


@given(
    id=texts, text=st.text(max_size=40), tokens=st.integers(), parent=st.none() | texts,
    sampling=st.dictionaries(texts, st.floats(allow_nan=False) | st.integers() | texts),
)  # fmt: skip
def test_rows_of_completions_hold_all_of_them(id: str, text: str, tokens: int, parent: Any, sampling: Any) -> None:
    completion = Completion(
        id=id, prompt_id=id, text=text, policy="p", round=3, tokens=tokens, parent=parent, sampling=sampling
    )
    columns = as_columns("completions", completion_row(completion))
    body = loads(columns["body"])
    assert {**columns, "token_ids": None, "critique": None, **body} == {"body": columns["body"], **to_dict(completion)}
    assert ("text" in body) == (columns["text"] != text)  # it stands in its column, if that can hold it
    assert "policy" not in body
    assert (columns["id"], columns["prompt_id"], columns["policy"], columns["round"]) == (id, id, "p", 3)
    assert columns["parent"] == parent


numbers = st.none() | st.floats(allow_nan=False)


@given(
    id=texts, who=texts, comment=st.none() | st.text(max_size=40), strength=numbers, lead_time=numbers,
    winner=st.sampled_from(["a", "b", "tie", "both_bad"]), order=st.sampled_from([None, "ab", "ba"]),
    blind=st.booleans(), created=st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip
def test_rows_of_preferences_hold_all_of_them(
    id: str, who: str, comment: Any, strength: Any, lead_time: Any, winner: Any, order: Any, blind: bool, created: float
) -> None:
    preference = Preference(
        id=id, prompt_id="p", a_id="a", b_id=id, winner=winner, annotator=Annotator(id=who), comment=comment,
        strength=strength, lead_time=lead_time, shown_order=order, blind=blind, created_at=created,
    )  # fmt: skip
    columns = as_columns("feedback", feedback_row(preference))
    assert loads(columns["body"]) == to_dict(preference)
    assert (columns["a_id"], columns["b_id"], columns["completion_id"]) == ("a", id, None)
    assert columns["pair"] == ("|".join(sorted(("a", id))) if id else None)
    assert (columns["annotator"], columns["created_at"]) == (who, created)


def test_rows_of_every_kind_of_feedback_hold_all_of_them() -> None:
    from samples.feedback import every_kind_of_feedback

    for record in every_kind_of_feedback():
        columns = as_columns("feedback", feedback_row(record))
        assert loads(columns["body"]) == to_dict(record)
        assert (columns["id"], columns["kind"], columns["prompt_id"]) == (record.id, record.kind, record.prompt_id)
        assert columns["completion_id"] == getattr(record, "completion_id", None)
        assert columns["supersedes"] == record.supersedes


@given(st.lists(st.none() | st.integers() | st.floats(allow_nan=False) | texts | messages | st.booleans()))
def test_ids_are_the_hash_of_the_json_of_their_parts(parts: list[Any]) -> None:
    import hashlib

    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    assert stable_id(*parts) == hashlib.sha256(text.encode()).hexdigest()[:24]


# -- hostile files -----------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = [
    *sorted({key for module in FORMATS.values() for keys in module.REQUIRED for key in keys}),
    "messages", "label", "votes", "critiques", "id", "group", "annotator", "margin", "feedback", "created_at", "trace",
    "scores", "record", "labels", "completions", "dataType", "traceId", "name", "value", "comment",
]  # fmt: skip
near = st.dictionaries(st.sampled_from(KEYS), json_values, max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(format_name=st.sampled_from(sorted(FORMATS)), values=st.lists(near | json_values, min_size=1, max_size=6))
def test_any_json_is_accepted_or_rejected_with_a_reason(tmp_path: Path, format_name: str, values: list[Any]) -> None:
    lines = [json.dumps(value) for value in values]  # a text is a row too, and an empty line none
    path = write_lines(tmp_path / "f.jsonl", [*lines, PAIR if format_name in ("pairs", "trl") else "{}"])
    with Store.open(":memory:") as store:
        summary = import_file(store, path, format_name)
        assert summary.rows == sum(bool(line.strip()) for line in path.read_text().splitlines())
        counts(summary)
        assert all(row.reason and row.line for row in store.quarantined())
        assert len(store.quarantined()) == summary.rejected


def mutated(value: Any, draw: Any) -> Any:
    """A value with some of what is in it replaced or left out."""
    if draw(st.integers(0, 9)) == 0:
        return draw(json_values)
    if isinstance(value, dict):
        return {key: mutated(inner, draw) for key, inner in value.items() if draw(st.integers(0, 14))}
    if isinstance(value, list):
        return [mutated(inner, draw) for inner in value if draw(st.integers(0, 14))]
    return value


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_files_of_tools_with_anything_wrong_in_them_are_read(tmp_path: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([path for path in sorted(FIXTURES.iterdir()) if path.suffix != ".csv"]))
    format_name = read(path).format
    found = [found.values for found in rows.read_rows(path) if isinstance(found, row.Row)]
    with Store.open(":memory:") as store:
        values = [mutated(row, data.draw) for row in found]
        summary = import_file(store, write_lines(tmp_path / "f.jsonl", [{"prompt": 1}, *values]), format_name)
        counts(summary)
        assert len(store.quarantined()) == summary.rejected


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), name=st.sampled_from(["f.jsonl", "f.json", "f.csv", "f.parquet", "f.jsonl.gz"]))
def test_any_bytes_are_read_refused_or_a_users_error(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with Store.open(":memory:") as store:
        with suppress(UserError):  # of a file that cannot be read at all
            counts(import_file(store, tmp_path / name))


def test_long_lines_deep_nesting_bad_text_and_paths(store: Store, tmp_path: Path) -> None:
    long = "x" * (10 * 2**20)
    good = {**PAIR, "id": "last"}
    lines = [
        json.dumps({**PAIR, "chosen": long}).encode(),
        b'{"prompt": "' + b"[" * 200_000,
        b"[" * 200_000,
        json.dumps(PAIR).encode().replace(b"Why", b"\xff\xfe"),
        json.dumps({**PAIR, "rejected": "nul \0"}).encode(),
        json.dumps({**PAIR, "group": "../../etc/passwd", "annotator": "../../../x", "id": "/etc/shadow"}).encode(),
        json.dumps({**PAIR, "chosen": "\ud83d"}).encode(),
        json.dumps(good).encode(),
    ]
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    summary = import_file(store, path)
    assert counts(summary) == (3, 0, 0, 5)
    assert [row.line for row in store.quarantined()] == [2, 3, 4, 5, 7]
    assert sorted(item.name for item in tmp_path.iterdir() if "store" not in item.name) == ["f.jsonl"]


def test_a_line_beyond_the_limit_is_refused_and_the_next_one_read(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_lines, "MAX_ROW", 2**20)
    path = write_lines(tmp_path / "f.jsonl", [{**PAIR, "chosen": "x" * 2**21}, PAIR])
    summary = import_file(store, path)
    assert counts(summary) == (1, 0, 0, 1)
    assert summary.examples[0].reason == "the line is longer than 1 MiB"


@given(st.lists(json_values, max_size=6), st.integers(1, 40), st.integers(0, 2))
@settings(deadline=None)
def test_a_json_list_is_read_element_by_element_however_it_is_cut(values: list[Any], cut: int, indent: int) -> None:
    text = json.dumps(values, indent=indent or None)
    pieces = iter([text[start : start + cut] for start in range(0, len(text), cut)])
    read = list(Elements(pieces, row.MAX_ROW))
    assert json.dumps(read) == json.dumps(values)


def test_a_json_list_that_breaks_off_gives_what_is_before(store: Store, tmp_path: Path) -> None:
    text = json.dumps([{**PAIR, "id": str(i)} for i in range(5)])
    (tmp_path / "f.json").write_text(text[:-20])
    summary = import_file(store, tmp_path / "f.json")
    assert counts(summary) == (4, 0, 0, 1)
    assert summary.examples[0].line == 5
    assert "not valid JSON from here on" in summary.examples[0].reason


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    import subprocess
    import sys

    peaks = []
    for count in (20_000, 80_000):
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as file:
            for i in range(count):
                file.write(json.dumps({**PAIR, "prompt": f"Why {i}?", "chosen": f"light {i} " * 20}) + "\n")
        code = (
            "import resource, sys\n"
            "from rlhf_loop.feedback.intake.import_file import import_file\n"
            "from rlhf_loop.feedback.store.store import Store\n"
            "with Store.open(sys.argv[2]) as store: import_file(store, sys.argv[1], redact='none')\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        command = [sys.executable, "-c", code, str(path), str(tmp_path / f"{count}.db")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < peaks[0] * 1.15


def test_reading_a_row_takes_no_time_that_grows_with_its_neighbours(tmp_path: Path) -> None:
    """A JSON list on one line is not scanned again from its start for every element."""
    times = []
    for count in (2000, 8000):
        (tmp_path / "f.json").write_text(json.dumps([PAIR] * count))
        started = time.process_time()
        assert sum(1 for _ in rows.read_rows(tmp_path / "f.json")) == count
        times.append(time.process_time() - started)
    assert times[1] < times[0] * 16
