"""Data sets in folders, as `datasets` saves them, and on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples.formats import winners

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.intake.read_whole import read


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
