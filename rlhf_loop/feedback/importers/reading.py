"""From the rows of a file to records, one by one: columns renamed, texts redacted, the format's `parse` called."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.importers.fields import Note, Place
from rlhf_loop.feedback.importers.formats import FORMATS
from rlhf_loop.feedback.importers.redacting import redact_row
from rlhf_loop.feedback.redaction import Redactor
from rlhf_loop.feedback.rows import Refused, Row, RowError, raw_text, read_rows, sound
from rlhf_loop.records import FEEDBACK_KINDS, Annotator

SAMPLE = 100  # rows that `auto` looks at


class Parsed(NamedTuple):
    """A row that was understood."""

    row: Row
    place: Place
    records: list[Any]  # prompts before their completions before what is said of them
    notes: tuple[str, ...] = ()  # what was left out of it
    redacted: Mapping[str, int] = {}  # how often what was redacted in it


class Reading(NamedTuple):
    """What a file is, and its rows; each is read when it is asked for, once."""

    format: str
    rows: Iterator[Parsed | Refused]


def open_rows(
    path: str | Path,
    format: str = "auto",
    annotator: str | None = None,
    columns: Mapping[str, str] | None = None,
    redactor: Redactor | None = None,
) -> Reading:
    """Begins to read feedback.

    `path`: a file, a folder of a data set or `hf:OWNER/NAME`. `format`: a name in `FORMATS`, or `auto`.
    `annotator`: the id of the person who gave feedback that names nobody; by default `import:` and the file's name.
    `columns`: a name that the format knows -> the file's own name for it (`a.b`: b within a).
    Raises `UserError` when it cannot be read at all, when no format fits, and for a column that is nowhere.
    """
    if format != "auto" and format not in FORMATS:
        close = difflib.get_close_matches(format, [*FORMATS, "auto"], n=1, cutoff=0.3)
        nearest = f"; did you mean `{close[0]}`?" if close else "."
        raise UserError(f"there is no format `{format}`{nearest} Known: auto, {', '.join(FORMATS)}")
    found = read_rows(path)
    start: list[Row | Refused] = []
    rows: list[Row] = []
    for item in islice(found, SAMPLE * 100):
        start.append(item)
        if isinstance(item, Row):
            rows.append(item)
            if len(rows) == SAMPLE:
                break
    if not rows and start and isinstance(start[0], Refused) and start[0].reason != "the file is empty":
        raise UserError(f"no row of {path} can be read. The first problem: {start[0]}. Formats: {_formats()}")
    columns = dict(columns or {})
    _check_columns(path, rows, columns)
    values = [_renamed(row.values, columns) if columns else row.values for row in rows]
    name = format if format != "auto" or not rows else _detect(path, rows[0].line, values)
    default = Annotator(id=annotator or f"import:{_stem(path)}")
    if name not in FORMATS:  # nothing but refused rows, and nobody named a format
        return Reading(name, (item for item in start if isinstance(item, Refused)))
    return Reading(name, _parsed(str(path), chain(start, found), FORMATS[name], default, columns, redactor))


def _parsed(
    file: str,
    items: Iterator[Row | Refused],
    format: Any,
    annotator: Annotator,
    columns: Mapping[str, str],
    redactor: Redactor | None,
) -> Iterator[Parsed | Refused]:
    parse = format.parse
    for item in items:
        if isinstance(item, Refused):
            yield item if redactor is None else item._replace(raw=redactor.redact(item.raw)[0])
            continue
        values = _renamed(item.values, columns) if columns else item.values
        redacted: Mapping[str, int] = {}
        place = Place(file=item.file or file, line=item.line, annotator=annotator)
        try:
            if redactor is not None:
                values, redacted = redact_row(values, redactor)
            records = parse(values, place)
        except RowError as error:
            reason = str(error)
        except ValidationError as error:
            reason = explain(error)
        except RecursionError:
            reason = "it is nested too deeply"
        else:
            notes: tuple[str, ...] = ()
            if Note in map(type, records):
                notes = tuple(sound(record.text) for record in records if isinstance(record, Note))
                records = [record for record in records if not isinstance(record, Note)]
            yield Parsed(_as_redacted(item, values, redacted), place, records, notes, redacted)
            continue
        raw = item.raw if redactor is None else _redacted_raw(values, item, redactor)
        yield Refused(place.file, item.line, sound(reason if redactor is None else redactor.redact(reason)[0]), raw)


def _as_redacted(item: Row, values: dict[str, Any], redacted: Mapping[str, int]) -> Row:
    return item._replace(values=values, text=None) if redacted else item


def explain(error: ValidationError) -> str:
    """The first problem that pydantic found, in a line."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"] if part not in FEEDBACK_KINDS)
    return f"`{key}`: {problem['msg']}" if key else str(problem["msg"])


def _redacted_raw(values: dict[str, Any], row: Row, redactor: Redactor) -> str:
    try:
        return redactor.redact(raw_text(values) if values is not row.values else row.raw)[0]
    except RecursionError:
        return ""


def _renamed(values: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row under the format's names; what is renamed stands under its old name no more."""
    row = dict(values)
    for own in columns.values():
        row.pop(own, None)
    for name, own in columns.items():
        value = _at(values, own)
        if value is not None:
            row[name] = value
    return row


def _at(values: dict[str, Any], name: str) -> Any:
    if name in values:
        return values[name]
    inside: Any = values
    for part in name.split("."):
        inside = inside.get(part) if isinstance(inside, dict) else None
    return inside


def _check_columns(path: str | Path, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
    if not rows:
        return
    for name, own in columns.items():
        if all(_at(row.values, own) is None for row in rows):
            there = ", ".join(list(rows[0].values)[:12])
            raise UserError(f"{path}: --map {name}={own}: there is no column `{own}`; the first row has: {there}")


def _stem(path: str | Path) -> str:
    name = Path(path).name.removesuffix(".gz")
    return name.rpartition(".")[0] or name


def _detect(path: str | Path, line: int, rows: Sequence[dict[str, Any]]) -> str:
    votes = Counter(next((name for name, module in FORMATS.items() if module.recognises(row)), "") for row in rows)
    known = [(name, count) for name, count in votes.most_common() if name]
    if known:
        return known[0][0]
    keys = ", ".join(list(rows[0])[:8])
    raise UserError(
        f"{path}: the format is not known. Row {line} has the keys {keys}; {_nearest(rows[0])}. "
        f"Formats: {_formats()}. Name one with --format, or columns with --map"
    )


def _nearest(row: dict[str, Any]) -> str:
    """Which format lacks the fewest keys, and which these are."""
    lacking = {
        name: [key for key in keys if key not in row] for name, module in FORMATS.items() for keys in module.REQUIRED
    }
    name = min(lacking, key=lambda n: len(lacking[n]))
    return f"the nearest format is `{name}`, which also needs {', '.join(lacking[name]) or 'other values'}"


def _formats() -> str:
    return "; ".join(f"{name}: {module.RECOGNISES}" for name, module in FORMATS.items())
