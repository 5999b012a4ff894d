"""Rows of a file that people made: JSON Lines, JSON, CSV or Parquet, plain or gzipped, whatever has happened to it.

A row that cannot be read is refused with its line and the reason, and the others are kept. What cannot be read at all
is a `UserError`. Rows come one by one: a file of any length takes the memory of its longest row, and a row is refused
when it is longer than `MAX_ROW`. Folders and data sets of a hub are read by `data_sets.py`.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from rlhf_loop.errors import UserError, shortened
from rlhf_loop.feedback.files.json_elements import Elements, name_of
from rlhf_loop.feedback.files.lines import lines_of, start_of
from rlhf_loop.feedback.files.row import MAX_ROW, RAW_LENGTH, Refused, Row
from rlhf_loop.near import near
from rlhf_loop.records import sound, to_dict

TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|"}
"""Ends of the names of tables, and what usually parts their cells."""
DELIMITERS = (",", ";", "\t", "|")
SHORT: dict[tuple[str, ...], tuple[str, ...]] = {
    ("conversation", "index", "value", "flag", "timestamp"): ("conversation", "index", "value", "timestamp"),
}
"""Headers that a tool (Gradio) writes above rows of fewer cells -> what these are."""
OTHER_FILES = {
    b"PK\x03\x04": "a zip archive or a workbook; unpack it, or save the sheet as CSV (UTF-8)",
    b"BZh": "compressed by bzip2; unpack it: bunzip2 FILE",
    b"\xfd7zXZ\0": "compressed by xz; unpack it: unxz FILE",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard; unpack it: unzstd FILE",
    b"\x04\x22\x4d\x18": "compressed by LZ4; unpack it: unlz4 FILE",
    b"7z\xbc\xaf\x27\x1c": "an archive of 7-Zip; unpack it",
    b"ARROW1": "an Arrow file; give the folder of the data set that it is of, or save it as Parquet",
    b"SQLite format 3": "an SQLite database; if it is a store, `feedback export` writes what it holds",
    b"\x80\x04\x95": "a pickle, which could run anything and is not read; save it as JSON Lines or Parquet",
    b"version https://git-lfs": "a pointer of Git LFS, not the file; fetch it: git lfs pull",
    b"<!DOCTYPE": "a web page, not the file that was to be fetched",
    b"<!doctype": "a web page, not the file that was to be fetched",
    b"<html": "a web page, not the file that was to be fetched",
}
"""How files begin that are not read -> what they are, and the remedy."""
LISTS = ("data", "items", "rows", "records", "traces", "results")
"""Where a JSON file that is one object may hold its rows: what an API answers is often saved as it came."""


def read_rows(path: str | Path) -> Iterator[Row | Refused]:
    """The rows of a file, in order, each read or refused.

    The kind of file is told by its name (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, each also `.gz`; JSON Lines
    otherwise), gzip, Parquet and UTF-16 by its first bytes, and what parts the cells of a table by its header. A folder
    of a data set and `hf:OWNER/NAME` are read as `data_sets.py` says.
    Raises `UserError` when the file cannot be opened.
    """
    from rlhf_loop.feedback.files import columnar, data_sets

    if data_sets.is_data_set(path):
        yield from data_sets.read_data_set(path)
        return
    path = Path(path)
    try:
        with path.open("rb") as start:
            magic = start.read(4)
        if path.suffix.lower() == ".parquet" or magic == b"PAR1":
            yield from columnar.parquet_rows(path)
            return
        with gzip.open(path) if magic[:2] == b"\x1f\x8b" else path.open("rb") as file:
            yield from _text_rows(path, file, magic)  # type: ignore[arg-type]
    except FileNotFoundError:
        raise UserError(f"there is no file {path}{near(path, _holds_rows)}") from None
    except PermissionError:
        raise UserError(f"no permission to read {path}; check its owner and mode") from None


def _holds_rows(path: Path) -> bool:
    ends = [end.lower() for end in path.suffixes if end.lower() != ".gz"]
    return path.is_file() and bool(ends) and ends[-1] in (*TABLES, ".jsonl", ".json", ".parquet")


def shown(value: Any) -> str:
    """A value in a message: its beginning, on one line."""
    return shortened(repr(value), 60)


def line_of(record: Any) -> str:
    """A record as a line of the native format (`importers/native.py`), without the line's end."""
    values = to_dict(record)
    name = values.pop("kind") if "annotator" in values else type(record).__name__.lower()
    return json.dumps({"record": name, **values}, ensure_ascii=False)


def _text_rows(path: Path, file: BinaryIO, magic: bytes) -> Iterator[Row | Refused]:
    if not magic:
        yield Refused(str(path), 1, "the file is empty", "")
        return
    start = start_of(file, 64).lstrip()
    other = next((what for begins, what in OTHER_FILES.items() if start.startswith(begins)), None)
    if other is not None:
        raise UserError(f"{path} is {other}")
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    lines = lines_of(path, file)
    if suffix in TABLES:
        yield from _csv(path, lines, TABLES[suffix])
    elif suffix == ".json":
        yield from _json(path, lines)
    else:
        yield from _jsonl(path, lines)


def _jsonl(path: Path, lines: Iterator[tuple[int, str] | Refused]) -> Iterator[Row | Refused]:
    any_line = False
    for item in lines:
        any_line = True
        if isinstance(item, Refused):
            yield item
            continue
        number, text = item
        text = text.strip()
        if text:
            yield _loads(path, number, text)
    if not any_line:
        yield Refused(str(path), 1, "the file is empty", "")


_decode = json.JSONDecoder().decode


def _loads(path: Path, number: int, text: str) -> Row | Refused:
    try:
        values = _decode(text)
    except json.JSONDecodeError as error:
        return Refused(str(path), number, f"not valid JSON: {error.msg} at column {error.colno}", text[:RAW_LENGTH])
    except RecursionError:
        return Refused(str(path), number, "JSON that is nested too deeply", text[:RAW_LENGTH])
    except ValueError as error:  # a number with more digits than Python converts
        return Refused(str(path), number, f"not valid JSON: {error}", text[:RAW_LENGTH])
    if not isinstance(values, dict):
        return Refused(str(path), number, f"a row must be a JSON object, this is {name_of(values)}", text[:RAW_LENGTH])
    return Row(number, values, text)


def _json(path: Path, lines: Iterator[tuple[int, str] | Refused]) -> Iterator[Row | Refused]:
    """One JSON list of objects, or an object that holds one; JSON Lines under the name .json are read as such."""
    held: list[tuple[int, str] | Refused] = []
    first = ""
    for item in lines:
        held.append(item)
        if isinstance(item, Refused):
            break
        first = item[1].strip()
        if first:
            break
    if not first.startswith("["):
        try:
            values = _decode(first)
            json_lines = isinstance(values, dict) and values.keys().isdisjoint(LISTS) and _by_column(values) is None
        except (ValueError, RecursionError):
            json_lines = first != "{" and not first.startswith('{"')
        if json_lines or not first:
            yield from _jsonl(path, chain(held, lines))
            return
    broken: list[Refused] = []

    def texts() -> Iterator[str]:
        for item in chain(held, lines):
            if isinstance(item, Refused):
                broken.append(item)
                return
            yield item[1]

    elements = Elements(texts(), MAX_ROW)
    if not first.startswith("["):
        yield from _wrapped(path, elements)
    else:
        yield from _list(path, elements)
    yield from broken


def _list(path: Path, elements: Elements) -> Iterator[Row | Refused]:
    number = 0
    try:
        for number, values in enumerate(elements, 1):
            yield _object(path, number, values)
    except (ValueError, RecursionError) as error:
        yield Refused(
            str(path), number + 1, f"not valid JSON from here on: {_said(error)}", sound(elements.rest()[:RAW_LENGTH])
        )


def _wrapped(path: Path, elements: Elements) -> Iterator[Row | Refused]:
    """The rows of one object: those of the list that it holds, or itself."""
    try:
        values = elements.whole()
    except (ValueError, RecursionError) as error:
        yield Refused(str(path), 1, f"not valid JSON: {_said(error)}", sound(elements.rest()[:RAW_LENGTH]))
        return
    name = next((name for name in LISTS if isinstance(values.get(name), list)), None)
    for number, row in enumerate(values[name] if name else _by_column(values) or [values], 1):
        yield _object(path, number, row)


def _by_column(values: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of a table that pandas wrote column by column, `{"prompt": {"0": ..., "1": ...}}`; None for others."""
    columns = list(values.values())
    if not columns or not all(isinstance(column, dict) and column.keys() == columns[0].keys() for column in columns):
        return None
    if not all(key.isdigit() for key in columns[0]):
        return None
    return [{name: column[key] for name, column in values.items() if column[key] is not None} for key in columns[0]]


def _object(path: Path, number: int, values: Any) -> Row | Refused:
    if isinstance(values, dict):
        return Row(number, values)
    reason = f"a row must be a JSON object, this is {name_of(values)}"
    return Refused(str(path), number, reason, sound(str(values)[:RAW_LENGTH]))


def _said(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else str(error)


def _csv(path: Path, lines: Iterator[tuple[int, str] | Refused], usual: str) -> Iterator[Row | Refused]:
    """The rows of a table, below its header, which says what parts its cells."""
    first = next(lines, None)
    lines = lines if first is None else chain([first], lines)
    delimiter = usual
    if first is not None and not isinstance(first, Refused):
        delimiter = _delimiter(first[1], usual)
        if first[1].strip("\r\n").lower().removeprefix("sep=") == delimiter:  # a line for Excel, above the header
            next(lines)
    refused: list[Refused] = []

    def texts() -> Iterator[str]:
        for item in lines:
            if isinstance(item, Refused):
                refused.append(item)
                yield "\n"  # keeps the count of lines
            else:
                yield item[1]

    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield Refused(str(path), reader.line_num, f"not valid CSV: {error}", "")
            continue
        yield from refused
        refused.clear()
        if not cells:
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            twice = sorted({name for name in header if name and header.count(name) > 1})
            if twice:
                raise UserError(f"the header of {path} names {', '.join(twice)[:200]} twice; rename one of the columns")
            continue
        if tuple(header) in SHORT and len(cells) == len(SHORT[tuple(header)]):
            header = list(SHORT[tuple(header)])
        if len(cells) != len(header):
            reason = f"{len(cells)} cells where the header has {len(header)}"
            yield Refused(str(path), reader.line_num, reason, delimiter.join(cells)[:RAW_LENGTH])
        else:
            row = {name: cell for name, cell in zip(header, map(_cell, cells), strict=True) if cell is not None}
            yield Row(reader.line_num, row)
    yield from refused
    if header is None:
        yield Refused(str(path), 1, "the file is empty", "")


def _delimiter(header: str, usual: str) -> str:
    """What parts the cells of a table: the sign that parts its header into most names, outside of quotes."""
    line = header.strip("\r\n")
    if line.lower().startswith("sep=") and len(line) == 5:
        return line[-1]
    outside = "".join(line.split('"')[::2])
    found = max(DELIMITERS, key=lambda sign: (outside.count(sign), sign == usual))
    return found if outside.count(found) else usual


def _cell(text: str) -> Any:
    """A cell of a CSV file: an empty one is None, a list or object in JSON is that, anything else is text."""
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text or None
