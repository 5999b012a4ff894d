from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from samples.feedback import contents, fill, preference

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.exporters import pages
from rlhf_loop.feedback.exporters.argilla import user_id
from rlhf_loop.feedback.exporters.export import export
from rlhf_loop.feedback.intake.import_file import import_file
from rlhf_loop.feedback.intake.read_whole import read
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Annotator, Preference, Thumb


def test_argilla_records_carry_everybodys_verdict_and_come_back(tmp_path: Path) -> None:
    with Store.open(":memory:") as store:
        fill(store)
        store.add_feedback([preference("g1", a="b", b="a", winner="a", who="bob", comment="Names the cause.")])
        summary = export(store, tmp_path / "pairs.json", "argilla")
        assert summary["rows"] == 1
        (record,) = json.loads((tmp_path / "pairs.json").read_text())
        assert set(record) == {"id", "fields", "metadata", "suggestions", "responses", "vectors", "_server_id"}
        assert record["fields"] == {
            "prompt": [{"role": "user", "content": "Why is the sky blue?"}],
            "response_a": "answer a",
            "response_b": "answer b",
        }
        verdicts = {answer["user_id"]: answer["value"] for answer in record["responses"]["preference"]}
        assert verdicts == {user_id("rule"): "both_bad", user_id("llm"): "response_b", user_id("bob"): "response_b"}
        assert record["responses"]["comment"] == [{"value": "Names the cause.", "user_id": user_id("bob")}]
        assert f"{user_id('bob')}=bob" in record["metadata"]["annotators"]
    back = read(tmp_path / "pairs.json")
    assert back.format == "argilla"
    found = {f.annotator.id: (f.winner, f.comment) for f in back.feedback if isinstance(f, Preference)}
    assert found[user_id("bob")] == ("b", "Names the cause.")
    assert found[user_id("rule")] == ("both_bad", None)


def test_a_table_comes_with_a_data_card(tmp_path: Path) -> None:
    with Store.open(":memory:") as store:
        fill(store)
        store.add_feedback([preference("g1", winner="b", who="bob"), preference("g2", winner="tie", who="eve")])
        summary = export(store, tmp_path / "table", "parquet")
        rows = pq.read_table(tmp_path / "table" / "feedback.parquet").to_pylist()
        assert summary == {"rows": 10, "superseded left out (a correction stands in for each)": 1}
        assert len(rows) == 10
        effective = {record.id: record for record in store.feedback()}
        assert [row["id"] for row in rows] == list(effective)
        by_id = {row["id"]: row for row in rows}
        assert (by_id["g1"]["answer_a"], by_id["g1"]["winner"]) == ("answer a", "b")
        assert (by_id["f3"]["score"], by_id["f3"]["scale_high"]) == (3.5, 100.0)
        assert json.loads(by_id["f5"]["spans"])[0]["label"] == "fact"
    card = (tmp_path / "table" / "README.md").read_text()
    assert card.startswith("---\n")
    lines = [json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":")) for row in rows]
    assert f"`{hashlib.sha256(''.join(line + chr(10) for line in lines).encode()).hexdigest()}`" in card
    for part in (
        "| ann | HUMAN | 6 |",
        "| rule | HUMAN | 1 |",
        "Krippendorff's alpha ",
        "95% interval ",
        "- 1 ties (25.0% of the preferences)",
        "- 1 verdicts that both answers are bad (25.0% of the preferences)",
        "- 1 superseded left out",
        "| train | 10 |",
    ):
        assert part in card


def test_the_hash_of_a_table_depends_on_its_content_alone(tmp_path: Path) -> None:
    def hash_in(folder: Path) -> str:
        return (folder / "README.md").read_text().split("Content hash")[1].split("`")[1]

    with Store.open(":memory:") as first, Store.open(tmp_path / "second.db") as second:
        fill(first)
        fill(second)
        for number, store in enumerate((first, second)):
            export(store, tmp_path / str(number), "parquet")
        assert hash_in(tmp_path / "0") == hash_in(tmp_path / "1")
        second.add_feedback([preference("g1", who="bob")])
        export(second, tmp_path / "2", "parquet")
        assert hash_in(tmp_path / "2") != hash_in(tmp_path / "0")


def test_a_table_of_nothing_says_so(tmp_path: Path) -> None:
    with Store.open(":memory:") as store:
        assert export(store, tmp_path / "t", "parquet") == {"rows": 0}
    card = (tmp_path / "t" / "README.md").read_text()
    assert "Not defined" in card
    assert "Nothing was left out" in card


def test_pseudonyms_cannot_break_the_cards_tables(tmp_path: Path) -> None:
    with Store.open(":memory:") as store:
        fill(store)
        store.add_feedback([preference("g1", who="a|b\n# <script>[x](y)")])
        export(store, tmp_path / "t", "parquet")
    assert "| a b #  script  x (y) | HUMAN | 1 |" in (tmp_path / "t" / "README.md").read_text()


def test_exports_are_the_same_however_many_pages_they_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"native": "x.jsonl", "trl": "x.parquet", "trl-unpaired": "y.jsonl", "argilla": "x.json"}
    with Store.open(":memory:") as store:
        fill(store)
        for step in ("whole", "paged"):
            for format_name, name in names.items():
                export(store, tmp_path / step / name, format_name)
            monkeypatch.setattr(pages, "PAGE", 2)
        for name in names.values():
            if name.endswith("parquet"):
                assert pq.read_table(tmp_path / "whole" / name) == pq.read_table(tmp_path / "paged" / name)
            else:
                assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "paged" / name).read_bytes()
        with Store.open(":memory:") as other:
            import_file(other, tmp_path / "paged" / "x.jsonl", redact="none")
            assert contents(other) == contents(store)


@pytest.mark.parametrize("format_name", ["native", "trl", "trl-unpaired", "argilla", "parquet", "questions"])
def test_an_export_is_of_one_state_of_the_store(
    format_name: str, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All feedback is deleted while it is written."""
    names = {"argilla": "x.json", "parquet": "x"}
    monkeypatch.setattr(pages, "PAGE", 2)
    with Store.open(store_url) as store, Store.open(store_url) as other:
        fill(store)
        whole = export(store, tmp_path / "whole" / names.get(format_name, "x.jsonl"), format_name)
        seen, made = [], pages.records_of

        def deleting(*arguments: Any) -> list[Any]:
            if not seen:
                with other.database.write() as connection:
                    for table in (tables.feedback, tables.scores, tables.questions, tables.completions):
                        connection.execute(table.delete())
            seen.append(arguments)
            return made(*arguments)

        monkeypatch.setattr(pages, "records_of", deleting)
        monkeypatch.setattr("rlhf_loop.feedback.store.queries.records_of", deleting)
        assert export(store, tmp_path / "during" / names.get(format_name, "x.jsonl"), format_name) == whole
        assert seen
        assert other.counts()["completions"] == 0
    for path in (tmp_path / "whole").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "during" / path.relative_to(tmp_path / "whole")).read_bytes()


@pytest.mark.parametrize("format_name", ["trl", "trl-unpaired"])
def test_a_conversation_that_is_not_trained_on_is_counted_and_not_exported_for_training(
    tmp_path: Path, format_name: str
) -> None:
    with Store.open(":memory:") as store:
        fill(store)
        before = export(store, tmp_path / "before.jsonl", format_name)["rows"]
        (prompt,) = (p for p in store.prompts() if p.id == store.completions(ids=["a"])[0].prompt_id)
        calls = replace(prompt, id="calls", group="calls", split="untrained")
        answers = [replace(store.completions(ids=[id])[0], id=f"call {id}", prompt_id="calls") for id in "ab"]
        store.add_prompts([calls])
        store.add_completions(answers)
        about = {"prompt_id": "calls", "annotator": Annotator(id="ann")}
        store.add_feedback(
            [
                Preference(id="p", a_id="call a", b_id="call b", winner="a", **about),
                Thumb(id="t", completion_id="call a", label=True, **about),
            ]
        )
        summary = export(store, tmp_path / "x.jsonl", format_name)
        assert summary["rows"] == before
        assert {name.split()[0]: count for name, count in summary.items() if "more than text" in name} == {
            "preference": 1, "thumb": 1,
        }  # fmt: skip
        export(store, tmp_path / "native.jsonl", "native")
    with Store.open(":memory:") as store:
        import_file(store, tmp_path / "native.jsonl", splits="train")
        assert store.prompts(ids=["calls"])[0].split == "untrained"


def test_places_that_do_not_fit_the_format_are_refused(tmp_path: Path) -> None:
    with Store.open(":memory:") as store:
        with pytest.raises(UserError, match=r"one JSON list; name the file .*x\.json"):
            export(store, tmp_path / "x.jsonl", "argilla")
        with pytest.raises(UserError, match="written to a folder; name one such as"):
            export(store, tmp_path / "x.parquet", "parquet")
        for name in ("x.csv", "x.TSV", "x.csv.gz", "x.xlsx"):
            with pytest.raises(UserError, match="no table for a spreadsheet"):
                export(store, tmp_path / name, "native")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        with pytest.raises(UserError, match="is there already"):
            export(store, tmp_path / "full", "parquet")
        assert not list(tmp_path.glob("*.partial"))
