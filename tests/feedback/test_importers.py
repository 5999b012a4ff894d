from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples.feedback import contents, fill, write_lines

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.exporters.export import export
from rlhf_loop.feedback.intake.import_file import import_file
from rlhf_loop.feedback.intake.prompts import read_prompts, split_groups
from rlhf_loop.feedback.intake.read_whole import read
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Critique, Preference, Prompt, Question, Skip, Thumb

DATA = Path(__file__).parents[3] / "shared" / "data"
PAIR = {"prompt": "Why?", "chosen": "Because of light.", "rejected": "No idea."}


def turn(content: str, role: str = "assistant") -> dict:
    return {"role": role, "content": content}


def only_preference(path: Path, format_name: str = "auto") -> tuple[Prompt, str, str, Preference]:
    """The one preference of a file, with its prompt, winning and losing text."""
    result = read(path, format_name)
    assert result.refused == []
    texts = {c.id: c.text for c in result.completions}
    (preference,) = [f for f in result.feedback if isinstance(f, Preference)]
    assert preference.winner == "a"
    return result.prompts[0], texts[preference.a_id], texts[preference.b_id], preference


def test_pairs_become_a_prompt_two_completions_a_preference_and_critiques(tmp_path: Path) -> None:
    votes = {"chosen": 4, "rejected": 1, "tie": 0}
    row = {
        **PAIR,
        "id": "7",
        "group": "g",
        "votes": votes,
        "critiques": ["Says nothing.", "Give a reason."],
        "meta": {},
    }
    path = write_lines(tmp_path / "people.jsonl.gz", [row])
    result = read(path)
    assert result.format == "pairs"
    preference, critique = result.feedback
    assert isinstance(preference, Preference)
    assert (preference.strength, preference.comment, preference.external_id) == (0.6, "Says nothing.", "7")
    assert preference.annotator.id == "import:people"
    assert preference.source == f"{path}:1"
    assert isinstance(critique, Critique)
    assert (critique.comment, critique.completion_id) == ("Give a reason.", preference.b_id)
    assert result.prompts[0].group == "g"
    assert [c.text for c in result.completions] == [PAIR["chosen"], PAIR["rejected"]]


@pytest.mark.parametrize("prompt", ["Why?", [turn("Why?", "user")]])
@pytest.mark.parametrize("conversational", [False, True])
def test_standard_and_conversational_pairs_are_the_same_records(
    tmp_path: Path, prompt: object, conversational: bool
) -> None:
    chosen, rejected = PAIR["chosen"], PAIR["rejected"]
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if conversational:
        row |= {"chosen": [turn(chosen)], "rejected": [turn(rejected)]}
    result = read(write_lines(tmp_path / "f.jsonl", [row]))
    plain = read(write_lines(tmp_path / "f.jsonl", [PAIR]))
    assert (result.prompts, result.completions, result.feedback) == (plain.prompts, plain.completions, plain.feedback)


def test_the_same_answer_in_many_pairs_is_one_completion(tmp_path: Path) -> None:
    result = read(write_lines(tmp_path / "f.jsonl", [PAIR, {**PAIR, "rejected": "Ask somebody."}]))
    assert len(result.prompts) == 1
    assert len(result.completions) == 3


def test_votes_against_the_verdict_leave_it_without_a_strength_and_are_counted(tmp_path: Path) -> None:
    rows = [{**PAIR, "votes": {"chosen": 1, "rejected": 2}}, {**PAIR, "id": "2", "votes": {"chosen": 0, "rejected": 0}}]
    result = read(write_lines(tmp_path / "f.jsonl", rows))
    assert [f.strength for f in result.feedback if isinstance(f, Preference)] == [None, None]
    assert list(result.notes.values()) == [1]


def test_a_margin_in_0_1_is_the_strength_and_another_is_left_out_and_counted(tmp_path: Path) -> None:
    result = read(write_lines(tmp_path / "f.jsonl", [{**PAIR, "margin": 0.4}, {**PAIR, "margin": 7.5}]))
    assert [f.strength for f in result.feedback if isinstance(f, Preference)] == [0.4, None]
    assert result.lines()[1].startswith("1 rows: `margin` is outside 0..1")


def test_importing_twice_or_under_another_name_adds_nothing(tmp_path: Path) -> None:
    rows = [{**PAIR, "critiques": ["a b c", "d e f"]}, {**PAIR, "chosen": "Rayleigh."}]
    with Store.open(":memory:") as store:
        assert import_file(store, write_lines(tmp_path / "f.jsonl", rows)).new["feedback"] == 3
        for name in ("f.jsonl", "g.jsonl"):
            again = import_file(store, write_lines(tmp_path / name, rows))
            assert (again.accepted, set(again.new.values())) == (0, {0})


def test_rows_that_repeat_are_taken_once_and_counted(tmp_path: Path) -> None:
    result = read(write_lines(tmp_path / "f.jsonl", [PAIR, PAIR, {**PAIR, "id": "other"}]))
    assert len(result.feedback) == 2
    assert result.repeated == 1


def test_annotators_are_told_apart(tmp_path: Path) -> None:
    rows = [{**PAIR, "annotator": "ann"}, {**PAIR, "annotator": {"id": "gpt", "kind": "LLM"}}, PAIR]
    result = read(write_lines(tmp_path / "f.jsonl", rows), annotator="me")
    assert [(f.annotator.id, f.annotator.kind) for f in result.feedback] == [
        ("ann", "HUMAN"),
        ("gpt", "LLM"),
        ("me", "HUMAN"),
    ]


def test_trl_preferences_with_the_prompt_inside_the_answers(tmp_path: Path) -> None:
    question = turn("Why?", "user")
    row = {"chosen": [question, turn("Because of light.")], "rejected": [question, turn("No idea.")]}
    prompt, chosen, rejected, _ = only_preference(write_lines(tmp_path / "f.jsonl", [row]))
    assert (prompt.messages, chosen, rejected) == ((question,), "Because of light.", "No idea.")
    row = {"chosen": "The sky is blue because of light.", "rejected": "The sky is blueish."}
    prompt, chosen, rejected, _ = only_preference(write_lines(tmp_path / "f.jsonl", [row]))
    assert (prompt.messages[0]["content"], chosen, rejected) == ("The sky is", "blue because of light.", "blueish.")


def test_trl_answers_that_repeat_an_explicit_prompt(tmp_path: Path) -> None:
    question = turn("Why?", "user")
    row = {"prompt": "Why?", "chosen": [question, turn("Light.")], "rejected": [question, turn("No.")]}
    assert only_preference(write_lines(tmp_path / "f.jsonl", [row]))[1:3] == ("Light.", "No.")


def test_trl_unpaired_rows_become_thumbs(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "completion": "Light.", "label": True}]
    rows += [{"prompt": [turn("Why?", "user")], "completion": [turn("No.")], "label": False}]
    result = read(write_lines(tmp_path / "f.jsonl", rows))
    assert result.format == "trl"
    assert [f.label for f in result.feedback if isinstance(f, Thumb)] == [True, False]
    assert len(result.prompts) == 1


def test_csv_and_parquet_hold_the_same_as_json_lines(tmp_path: Path) -> None:
    rows = [{"prompt": "Why,\n exactly?", "completion": 'They said "light".', "label": True}]
    json_lines = read(write_lines(tmp_path / "f.jsonl", rows))
    (tmp_path / "f.csv").write_text('\ufeffprompt,completion,label\n"Why,\n exactly?","They said ""light"".",True\n')
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "f.parquet")
    for name in ("f.csv", "f.parquet"):
        other = read(tmp_path / name)
        assert (other.prompts[0].messages, other.completions) == (
            json_lines.prompts[0].messages,
            json_lines.completions,
        )
        assert [f.id for f in other.feedback] == [f.id for f in json_lines.feedback]


def test_conversational_parquet_and_a_json_list(tmp_path: Path) -> None:
    rows = [{"prompt": [turn("Why?", "user")], "chosen": [turn("Light.")], "rejected": [turn("No.")]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "f.parquet")
    (tmp_path / "f.json").write_text(json.dumps(rows))
    assert only_preference(tmp_path / "f.parquet")[1:3] == ("Light.", "No.")
    assert only_preference(tmp_path / "f.json")[1:3] == ("Light.", "No.")


def test_bad_rows_are_refused_with_line_and_reason_and_the_others_kept(tmp_path: Path) -> None:
    bad = {
        '{"prompt": "x", "cho': "not valid JSON",
        "[1, 2]": "must be a JSON object, this is a list",
        json.dumps({"prompt": "x", "chosen": "y"}): "missing: `rejected`",
        json.dumps({**PAIR, "chosen": 5}): "`chosen` must be text, got 5",
        json.dumps({**PAIR, "prompt": []}): "`prompt` is an empty conversation",
        json.dumps({**PAIR, "prompt": [{"role": "boss", "content": "x"}]}): "`prompt[0].role` must be one of",
        json.dumps({**PAIR, "votes": {"chosen": -1}}): "`votes` must hold counts",
        json.dumps({**PAIR, "votes": 3}): "`votes` must be",
        json.dumps({**PAIR, "critiques": [1]}): "`critiques[0]` must be text",
        json.dumps({**PAIR, "chosen": "nul \0"}): "NUL",
        json.dumps({**PAIR, "chosen": "half \ud83d"}): "surrogate",
        json.dumps({**PAIR, "chosen": [turn("x", "user")]}): "must be one turn of the assistant",
        json.dumps({**PAIR, "annotator": {"kind": "ROBOT"}}): "`annotator.kind`",
        "[" * 100_000: "nested too deeply",
        json.dumps({**PAIR, "margin": "wide"}): "`margin` must be a number",
    }
    path = write_lines(tmp_path / "f.jsonl", [PAIR, "", *bad, {**PAIR, "id": "last"}])
    result = read(path)
    assert len(result.feedback) == 2
    assert [r.line for r in result.refused] == list(range(3, 3 + len(bad)))
    for refused, (raw, reason) in zip(result.refused, bad.items(), strict=True):
        assert reason in refused.reason
        assert refused.file == str(path)
        assert refused.raw == raw[:10_000]


@pytest.mark.parametrize(("odd", "said"), [("nul \0", "a NUL character"), ("half \ud83d", "half of a surrogate pair")])
def test_critiques_that_cannot_be_shown_are_refused_whatever_field_it_is(tmp_path: Path, odd: str, said: str) -> None:
    about = {"record": "critique", "id": "f", "prompt_id": "p", "completion_id": "c", "annotator": {"id": "ann"}}
    span = {"start": 0, "end": 1}
    rows = [
        {**about, "comment": odd},
        {**about, "comment": "x", "spans": [{**span, "comment": odd}]},
        {**about, "comment": "x", "spans": [{**span, "label": odd}]},
        {**about, "comment": "x", "annotator": {"id": odd}},
        {**about, "comment": "x", "external_id": odd},
        {**about, "record": "edit", "edited_completion": odd},
        {**about, "record": "implicit", "action": odd},
    ]
    result = read(write_lines(tmp_path / "f.jsonl", rows))
    assert result.feedback == []
    fields = ["comment", "comment", "label", "id", "external_id", "edited_completion", "action"]
    for refused, field in zip(result.refused, fields, strict=True):
        assert f"`{field}` holds {said}" in refused.reason


def test_a_truncated_gzip_file_gives_what_is_whole_and_says_so(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "f.jsonl.gz", [{**PAIR, "id": str(i), "chosen": f"{i * 7919 % 1000}"} for i in range(5000)]
    )
    path.write_bytes(path.read_bytes()[:-2000])
    result = read(path)
    assert 0 < len(result.feedback) < 5000
    assert "cut off or damaged" in result.refused[-1].reason
    assert result.refused[-1].line >= len(result.feedback)


def test_encodings(tmp_path: Path) -> None:
    good = json.dumps({**PAIR, "prompt": "Où?"}, ensure_ascii=False)
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + good.encode() + b"\r\n" + good.encode("latin-1") + b"\n")
    result = read(path)
    assert result.prompts[0].messages[0]["content"] == "Où?"
    assert [(r.line, r.reason[:24]) for r in result.refused] == [(2, "not UTF-8: byte 0xf9 at ")]
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        path.write_bytes(f"{good}\r\n{good}\r\n".encode(encoding))
        assert [p.messages[0]["content"] for p in read(path).prompts] == ["Où?"], encoding
    path.write_bytes(f"{good}\n{good}".encode("utf-16")[:-3])
    assert "no UTF-16 from here on" in read(path).refused[-1].reason
    path.write_bytes(good.encode() + b"\r" + good.encode() + b"\r" + good.encode())
    with pytest.raises(UserError, match="end in CR alone"):
        read(path)


def test_a_gzip_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "f.jsonl.gz", [PAIR]).rename(tmp_path / "f.jsonl")
    assert len(read(path).feedback) == 1


@pytest.mark.parametrize("name", ["f.jsonl", "f.csv", "f.parquet", "f.json", "f.jsonl.gz"])
def test_an_empty_file_is_refused_whole(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    result = read(tmp_path / name)
    assert (result.feedback, [r.reason for r in result.refused]) == ([], ["the file is empty"])


def test_csv_rows_with_too_few_cells_are_refused(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("prompt,completion,label\nx,y,true\nx,y\nx,y,maybe\n")
    result = read(tmp_path / "f.csv")
    assert len(result.feedback) == 1
    assert [(r.line, r.reason) for r in result.refused] == [
        (3, "2 cells where the header has 3"),
        (4, "`label` must be true or false, got 'maybe'"),
    ]


def test_what_cannot_be_read_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*nothing\.jsonl"):
        read(tmp_path / "nothing.jsonl")
    with pytest.raises(UserError, match="is a folder"):
        read(tmp_path)
    (tmp_path / "f.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read(tmp_path / "f.parquet")
    path = write_lines(tmp_path / "f.jsonl", ["\x89PNG", "binary"])
    with pytest.raises(
        UserError, match=r"no row of .*f\.jsonl can be read. The first problem: .*f\.jsonl:1: not valid"
    ):
        read(path)


def test_an_unknown_format_is_an_error_that_names_the_nearest(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "f.jsonl", [{"prompt": "x", "chosen": "y", "score": 1}])
    with pytest.raises(UserError, match=r"keys prompt, chosen, score; the nearest format is .* also needs rejected"):
        read(path)
    with pytest.raises(UserError, match="no format `pair`; did you mean `pairs`"):
        read(path, "pair")


def test_columns_are_named_as_the_file_has_them_and_a_mapped_one_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("Question;Better Answer;Worse Answer\nWhat is 1+1?;2;3\n")
    with pytest.raises(UserError, match=r"the keys Question, Better Answer, Worse Answer; (?s:.*)\n  trl  "):
        read(path)
    columns = {"prompt": "Question", "chosen": "Better Answer", "rejected": "Worse Answer"}
    with Store.open(":memory:") as store:
        summary = import_file(store, path, columns=columns)
        assert [message["content"] for message in store.prompts()[0].messages] == ["What is 1+1?"]
        assert {completion.text for completion in store.completions()} == {"2", "3"}
    assert (summary.accepted, summary.notes) == (1, {})


def test_a_file_of_rows_is_no_damaged_store(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "pairs.jsonl", [{"prompt": "x", "chosen": "y", "rejected": "z"}])
    with pytest.raises(UserError, match=r"is no store but a file of rows; `rlhf-loop feedback import .*pairs\.db`"):
        Store.open(path)


def test_everything_in_a_store_survives_export_and_import(tmp_path: Path) -> None:
    with Store.open(":memory:") as first, Store.open(":memory:") as second:
        fill(first)
        for name in ("all.jsonl", "all.jsonl.gz"):
            export(first, tmp_path / name)
            result = read(tmp_path / name)
            assert (result.format, result.refused) == ("native", [])
            import_file(second, tmp_path / name, redact="none")
            assert contents(second) == contents(first)
        export(second, tmp_path / "again.jsonl")
        assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "all.jsonl").read_text()


def test_imported_pairs_survive_export_and_import(tmp_path: Path) -> None:
    rows = [
        {
            **PAIR,
            "id": i,
            "group": f"g{i % 3}",
            "chosen": f"text {i}\n\t🙂",
            "critiques": ["one two", "three"] * (i % 2),
        }
        for i in range(20)
    ]
    with Store.open(":memory:") as first, Store.open(":memory:") as second:
        import_file(first, write_lines(tmp_path / "f.jsonl", rows), redact="none")
        export(first, tmp_path / "all.jsonl")
        import_file(second, tmp_path / "all.jsonl", redact="none")
        assert contents(second) == contents(first)
        assert len(first.feedback()) == 30


def test_native_rows_that_are_wrong_are_refused(tmp_path: Path) -> None:
    with Store.open(":memory:") as store:
        fill(store)
        export(store, tmp_path / "all.jsonl")
    lines = (tmp_path / "all.jsonl").read_text().splitlines()
    preference = next(json.loads(line) for line in lines if '"f2"' in line and '"preference"' in line)
    rows = [
        {**preference, "id": "x1", "winner": "c"},
        {**preference, "id": "x2", "colour": "red"},
        {**preference, "winner": "a"},
        {"record": "preferences", "id": "x"},
        {key: value for key, value in preference.items() if key != "a_id"},
    ]
    result = read(write_lines(tmp_path / "more.jsonl", [*lines, *rows]))
    reasons = [r.reason for r in result.refused]
    assert [r.line for r in result.refused] == list(range(len(lines) + 1, len(lines) + 6))
    for reason, part in zip(
        reasons, ["`winner`", "no field colour", "something else", "`record` must be", "`a_id`"], strict=True
    ):
        assert part in reason


def test_feedback_about_what_is_not_there_goes_to_the_quarantine(tmp_path: Path) -> None:
    with Store.open(":memory:") as first, Store.open(":memory:") as second:
        fill(first)
        export(first, tmp_path / "all.jsonl")
        lines = [x for x in (tmp_path / "all.jsonl").read_text().splitlines() if '"record": "completion"' not in x]
        new = import_file(second, write_lines(tmp_path / "part.jsonl", lines), redact="none").new
        assert (new["feedback"], new["scores"], new["questions"]) == (0, 0, 0)
        assert new["quarantined"] == len(second.quarantined()) == 9 + 2 + 1
        assert all("neither before it in the file nor in the store" in row.reason for row in second.quarantined())


def test_open_questions_can_be_answered_by_hand(tmp_path: Path) -> None:
    with Store.open(":memory:") as store:
        fill(store)
        store.add_questions([Question(id="q4", prompt_id="p", a_id="b", b_id="c", round=2)])
        assert export(store, tmp_path / "q.jsonl", "questions") == {"rows": 2}
        rows = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
        assert (rows[0]["prompt"], rows[0]["a"], rows[0]["b"]) == ("Why is the sky blue?", "better", "answer a")
        untouched = read(tmp_path / "q.jsonl")
        assert untouched.feedback == []
        assert untouched.notes == {"the question has no `winner` yet and stays open": 2}
        rows[0] |= {"winner": "A", "comment": "It gives the reason."}
        rows[1] |= {"winner": "skip"}
        answered = read(write_lines(tmp_path / "q.jsonl", rows))
        preference, skip = answered.feedback
        assert isinstance(preference, Preference)
        assert (preference.a_id, preference.winner, preference.comment) == ("c", "a", "It gives the reason.")
        assert isinstance(skip, Skip)
        assert import_file(store, tmp_path / "q.jsonl").new["feedback"] == 2
        assert [q.id for q in store.questions(status="open")] == ["q4"]
        rows[1]["winner"] = "left"
        assert "`winner` must be one of" in read(write_lines(tmp_path / "q.jsonl", rows)).refused[0].reason


def test_exported_trl_data_sets_are_as_trl_wants_them(tmp_path: Path) -> None:
    with Store.open(":memory:") as store:
        fill(store)
        summary = export(store, tmp_path / "pairs.parquet", "trl")
        rows = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
        question = [turn("Why is the sky blue?", "user")]
        chosen, rejected = [turn("answer b")], [turn("answer a")]
        assert rows == [{"prompt": question, "chosen": chosen, "rejected": rejected, "margin": 0.0}]
        assert summary["rows"] == 1
        assert sum(summary.values()) == 9
        assert summary["both_bad left out (no pair)"] == 1
        export(store, tmp_path / "pairs.jsonl", "trl")
        assert json.loads((tmp_path / "pairs.jsonl").read_text()) == rows[0]
        unpaired = export(store, tmp_path / "unpaired.parquet", "trl-unpaired")
        rows = pq.read_table(tmp_path / "unpaired.parquet").to_pylist()
        labels = [(row["completion"][0]["content"], row["label"]) for row in rows]
        assert labels == [("answer a", False), ("answer b", False), ("answer b", False)]
        assert unpaired["rows"] == 3


def test_export_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    with Store.open(":memory:") as store:
        with pytest.raises(UserError, match="no export format `csv`; known: native"):
            export(store, tmp_path / "x.csv", "csv")
        with pytest.raises(UserError, match=r"name the file .*x\.jsonl"):
            export(store, tmp_path / "x.parquet")
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=r"x\.jsonl"):
            export(store, tmp_path / "file" / "x.jsonl")
        assert export(store, tmp_path / "empty.parquet", "trl") == {"rows": 0}


def test_prompts_are_read_with_their_fields(tmp_path: Path) -> None:
    rows = [
        {"id": 5, "prompt": "Why?", "group": "g", "reference": "Light.", "tags": ["short"], "category": "x"},
        {"messages": [turn("Be brief.", "system"), turn("Why?", "user")]},
        {"prompt": "How?"},
    ]
    path = write_lines(tmp_path / "p.jsonl", rows)
    first, second, third = read_prompts(path, "dev")
    assert (first.id, first.group, first.reference, first.tags) == ("5", "g", "Light.", ("short",))
    assert [m["role"] for m in second.messages] == ["system", "user"]
    assert (third.split, third.group, third.source) == ("dev", third.id, path.name)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": " "}, "`prompt` is empty"),
        ({"text": "x"}, "a prompt needs `prompt`"),
        ({"prompt": "x", "messages": []}, "not both"),
        ({"prompt": [turn("x")]}, "ends with the assistant's turn"),
        ({"id": "1", "prompt": "another"}, "stands for another prompt"),
        ("{", "not valid JSON"),
    ],
)
def test_a_wrong_prompt_is_an_error_with_its_line(tmp_path: Path, row: object, message: str) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"id": "1", "prompt": "fine"}, row])
    with pytest.raises(UserError, match=rf"p\.jsonl:2: .*{message}"):
        read_prompts(path)


def groups(n: int) -> list[str]:
    return [f"g{i}" for i in range(n)]


def test_splits_of_groups_meet_the_fractions() -> None:
    split_of = split_groups(groups(20), seed=1, test_fraction=0.2, judge_fraction=0.3)
    assert set(split_of) == set(groups(20))
    assert Counter(split_of.values()) == {"train": 10, "test": 4, "judge": 6}
    assert split_of == split_groups(reversed(groups(20)), seed=1, test_fraction=0.2, judge_fraction=0.3)
    assert split_of != split_groups(groups(20), seed=2, test_fraction=0.2, judge_fraction=0.3)


def test_each_wanted_split_gets_a_group_and_train_keeps_one() -> None:
    split_of = split_groups(groups(3), seed=0, test_fraction=0.01, judge_fraction=0.9)
    assert sorted(split_of.values()) == ["judge", "test", "train"]
    assert set(split_groups(groups(2), 0, 0.0).values()) == {"train"}
    with pytest.raises(UserError, match=r"2 groups .* at least 3"):
        split_groups(groups(2), 0, 0.2, 0.2)
    with pytest.raises(UserError, match="nothing to train on"):
        split_groups(groups(9), 0, 0.5, 0.5)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real feedback is not at {DATA.name} beside the checkout")
def test_real_debates_are_imported_whole() -> None:
    result = read(DATA / "ukp_pairs_train.jsonl.gz")
    assert (result.rows, result.refused, len(result.completions)) == (7162, [], 662)
    preferences = [f for f in result.feedback if isinstance(f, Preference)]
    assert len(preferences) == 7162
    assert all(f.strength is None or 0 <= f.strength <= 1 for f in preferences)
    split_of = split_groups({p.group for p in result.prompts}, seed=0, test_fraction=0.2, judge_fraction=0.3)
    splits = [split_of[p.group] for p in result.prompts]
    assert Counter(splits) == {"train": 10, "test": 4, "judge": 6}


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real feedback is not at {DATA.name} beside the checkout")
@pytest.mark.parametrize("name", ["fgqa_pairs", "llmfao_pairs", "ukp_pairs_valid"])
def test_real_pairs_survive_export_and_import(tmp_path: Path, name: str) -> None:
    result = read(DATA / f"{name}.jsonl.gz")
    assert result.refused == []
    with Store.open(":memory:") as first, Store.open(":memory:") as second:
        import_file(first, DATA / f"{name}.jsonl.gz", redact="none")
        export(first, tmp_path / "all.jsonl.gz")
        import_file(second, tmp_path / "all.jsonl.gz", redact="none")
        assert contents(second) == contents(first)
