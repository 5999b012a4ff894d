"""Records as Parquet files: a column a field, so that the file opens in any tool."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticSerializationError, from_json, to_json

from rlhf_loop.files.damage import reading
from rlhf_loop.records import adapter, to_dict

if TYPE_CHECKING:
    from pyarrow import Table


def write_records(path: Path, records: Sequence[Any]) -> None:
    """Writes records of one type (or of the `Feedback` union) to a Parquet file."""
    write_table(path, as_table(records))


def as_table(records: Sequence[Any]) -> Table:
    """Records of one type (or of the `Feedback` union) as a table.

    Plain fields become columns of their own type; nested fields become JSON text, so the file opens in any tool.
    """
    import pyarrow as pa  # a tenth of a second, which most commands need not spend

    kinds = list(dict.fromkeys(map(type, records)))
    columns: dict[str, list[Any]] = {}
    nested: list[str] = []
    for name in dict.fromkeys(f.name for kind in kinds for f in fields(kind)):
        read = attrgetter(name) if len(kinds) == 1 else partial(_get, name)
        values = list(map(read, records))
        if any(issubclass(kind, (tuple, list, dict)) or is_dataclass(kind) for kind in set(map(type, values))):
            values = [None if value is None else _json(value) for value in values]
            nested.append(name)
        columns[name] = values
    return pa.table(columns).replace_schema_metadata({"nested": json.dumps(nested)})


def joined(tables: Sequence[Table]) -> Table:
    """The rows of several tables of records, one table after the other."""
    import pyarrow as pa

    filled = [table for table in tables if table.num_rows]
    if len(filled) < 2:
        return filled[0] if filled else as_table([])
    nested = {name for table in filled for name in nested_columns(table)}
    table = pa.concat_tables(filled, promote_options="default").combine_chunks()
    return table.replace_schema_metadata({"nested": json.dumps([n for n in table.column_names if n in nested])})


def nested_columns(table: Table) -> set[str]:
    """The columns of a table of records whose cells are JSON."""
    return set(json.loads((table.schema.metadata or {}).get(b"nested", b"[]")))


def write_table(path: Path, table: Table) -> None:
    """Writes a table of records to a Parquet file, whole or not at all."""
    import pyarrow.parquet as pq

    unfinished = path.with_name(path.name + ".partial")
    pq.write_table(table, unfinished)
    unfinished.replace(path)


def _json(value: Any) -> str:
    try:
        return to_json(value, inf_nan_mode="constants").decode()
    except PydanticSerializationError:  # half of a surrogate pair
        return json.dumps(value, default=to_dict)


def _get(name: str, record: Any) -> Any:
    return getattr(record, name, None)


def read_records(path: Path, record_type: Any) -> list[Any]:
    """The records that `write_records` wrote, in order. A damaged file is a `UserError` with the remedy."""
    with reading(path):
        return _read_records(path, record_type)


def _read_records(path: Path, record_type: Any) -> list[Any]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    nested = nested_columns(table)
    allowed = _field_names(record_type)
    names = [name for name in table.column_names if allowed is None or name in allowed]
    columns = [_loaded(table.column(name).to_pylist(), name in nested) for name in names]
    rows = [
        {name: value for name, value in zip(names, values, strict=True) if value is not None}
        for values in zip(*columns, strict=True)
    ]
    records: list[Any] = adapter(list[record_type]).validate_python(rows)
    return records


def _loaded(column: list[Any], nested: bool) -> list[Any]:
    """A column's values; JSON is read at once, which takes a fraction of the time."""
    if not nested:
        return column
    texts = ["null" if text is None else text for text in column]
    try:
        values: list[Any] = from_json(f"[{','.join(texts)}]")
        return values
    except ValueError:  # half of a surrogate pair somewhere
        return [json.loads(text) for text in texts]


def _field_names(record_type: Any) -> set[str] | None:
    """Names of a record's fields; None for a union, whose members differ."""
    return {f.name for f in fields(record_type)} if isinstance(record_type, type) else None
