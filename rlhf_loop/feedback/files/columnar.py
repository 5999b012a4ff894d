"""Rows of Parquet and Arrow files, however large one of them is: in pieces whose memory is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.files.row import MAX_ROW, Refused, Row

if TYPE_CHECKING:
    import pyarrow as pa

PIECE = 32 * 2**20  # bytes of rows that are made Python objects at once
MOST_ROWS = 1000  # of a Parquet file that are decoded at once
FEW_ROWS = 8  # in a row group of more bytes than `SMALL`; still 100,000 rows a second
SMALL = 4 * 2**20
OBJECT = 64  # bytes of a Python object, about
LARGEST = 512 * 2**20  # bytes of a row group's rows on average beyond which none of them is decoded


def parquet_rows(path: Path) -> Iterator[Row | Refused]:
    """The rows of a Parquet file; keys that are null are left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.stat().st_size == 0:
        yield Refused(str(path), 1, "the file is empty", "")
        return
    number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise UserError(f"{path} has the column {', '.join(twice)[:200]} twice; rename one of them")
            for group in range(file.metadata.num_row_groups):
                size, count = _size(file.metadata.row_group(group)), file.metadata.row_group(group).num_rows
                if count and size // count > LARGEST:
                    for _ in range(count):
                        number += 1
                        yield _too_large(path, number)
                    continue
                for batch in file.iter_batches(batch_size=_rows_at_once(size, count), row_groups=[group]):
                    yield from batch_rows(path, batch, number)
                    number += batch.num_rows
    except (pa.ArrowException, OSError, MemoryError) as error:
        if isinstance(error, (FileNotFoundError, PermissionError)):
            raise
        if number == 0:
            with path.open("rb") as start:
                if start.read(24).startswith(b"version https://git-lfs"):
                    raise UserError(f"{path} is a pointer of Git LFS, not the file; fetch it: git lfs pull") from None
            raise UserError(f"{path} cannot be read as Parquet ({error}); write or fetch it again") from None
        yield Refused(str(path), number + 1, f"the Parquet file is damaged from here on ({error})", "")


def batch_rows(path: Path, batch: pa.RecordBatch, before: int) -> Iterator[Row | Refused]:
    """The rows of a part of a table, after `before` others of the file; one larger than `MAX_ROW` is refused."""
    start = 0
    step = max(1, batch.num_rows * PIECE // max(1, _weight(batch)))
    while start < batch.num_rows:
        piece = batch.slice(start, step)
        weight = _weight(piece)
        if piece.num_rows > 1 and weight > PIECE:  # rows differ much
            step = max(1, piece.num_rows // 2)
            continue
        if piece.num_rows == 1 and weight > MAX_ROW:
            yield _too_large(path, before + start + 1)
        else:
            for place, values in enumerate(piece.to_pylist(), before + start + 1):
                yield Row(place, {key: value for key, value in values.items() if value is not None})
        start += piece.num_rows


def _weight(batch: pa.RecordBatch) -> int:
    """Bytes of a part of a table, and of the objects that its lists become, of which Arrow may hold next to nothing."""
    return int(batch.nbytes) + OBJECT * sum(_objects(column) for column in batch.columns)


def _objects(array: Any) -> int:
    import pyarrow.types as kinds

    if kinds.is_struct(array.type):
        return sum(len(field) + _objects(field) for field in array.flatten())
    if kinds.is_list(array.type) or kinds.is_large_list(array.type):
        inner = array.flatten()
        return len(inner) + _objects(inner)
    return 0


def _size(group: Any) -> int:
    """Bytes of a row group's values, which a dictionary may repeat."""
    return int(group.total_byte_size)


def _rows_at_once(size: int, count: int) -> int:
    """How many rows of a group are decoded at once: few where the group is large, as a value that its dictionary holds
    once may be that of every row."""
    return max(1, min(FEW_ROWS if size > SMALL else MOST_ROWS, PIECE // max(1, size // max(1, count))))


def _too_large(path: Path, number: int) -> Refused:
    return Refused(str(path), number, f"the row is larger than {MAX_ROW >> 20} MiB", "")
