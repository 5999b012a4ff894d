from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from samples.feedback import completion, every_kind_of_feedback

from rlhf_loop.record_files import read_records, write_records
from rlhf_loop.records import Feedback, Score, to_dict


def test_a_file_holds_each_field_of_records_of_several_kinds(tmp_path: Path) -> None:
    records = every_kind_of_feedback()
    path = tmp_path / "feedback.parquet"
    write_records(path, records)
    assert read_records(path, Feedback) == records
    table = pq.read_table(path)
    nested = json.loads(table.schema.metadata[b"nested"])
    assert set(nested) == {"annotator", "scale", "spans"}
    rows = [to_dict(record) for record in records]
    assert table.column_names == list(dict.fromkeys(name for row in rows for name in row))
    for row, written in zip(rows, table.to_pylist(), strict=True):
        for name, value in written.items():
            expected = row.get(name)
            assert (json.loads(value) if name in nested and value is not None else value) == expected, name


def test_empty_nested_fields_and_numbers_of_numpy_keep_their_types(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    write_records(path, [completion("a", sampling={"top_p": 0.9}), completion("b")])
    assert pq.read_table(path)["sampling"].to_pylist() == ['{"top_p":0.9}', "{}"]
    scores = [Score(completion_id="a", reward_model="rm", value=np.float64(0.25), breakdown={"x": np.float64(0.5)})]
    write_records(path, scores)
    assert pq.read_table(path)["value"].to_pylist() == [0.25]
    assert read_records(path, Score) == scores
    write_records(path, [])
    assert read_records(path, Score) == []
