"""From the rows of a file to records, one by one: columns renamed, texts redacted, the format's `parse` called."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.files.row import Note, Refused, Row, RowError, raw_text
from rlhf_loop.feedback.files.rows import read_rows
from rlhf_loop.feedback.importers import FORMATS
from rlhf_loop.feedback.importers.asked import holds_question
from rlhf_loop.feedback.importers.conversations import decoded
from rlhf_loop.feedback.importers.fields import Place, id_of
from rlhf_loop.feedback.importers.scales import Scale, Scales
from rlhf_loop.feedback.importers.words import plain
from rlhf_loop.feedback.intake.redacting import redact_row
from rlhf_loop.feedback.privacy.redaction import Redactor
from rlhf_loop.records import FEEDBACK_KINDS, Annotator, sound

SAMPLE = 100  # rows that `auto` looks at
SAMPLE_SIZE = 32 * 2**20  # characters of them, whichever comes first
NOTES = 200  # different notes of a file; what further ones say is counted together
IDS = ("id", "instance_id", "item_id", "span_id", "context.span_id", "trace_id", "traceId", "external_id")
"""Under which names the rows of a file of texts hold their ids."""

ODD = (ValueError, TypeError, ArithmeticError, RecursionError)
"""What a reader raises where a value is not of the kind that a format has there: a list for a name, a number beyond all
numbers. It refuses that row, and no other."""


class Parsed(NamedTuple):
    """A row that was understood."""

    row: Row
    place: Place
    records: list[Any]  # prompts before their completions before what is said of them
    notes: tuple[str, ...] = ()  # what was left out of it
    redacted: Mapping[str, int] = {}  # how often what was redacted in it


class OpenRows(NamedTuple):
    """What a file is, and its rows; each is read when it is asked for, once."""

    format: str
    rows: Iterator[Parsed | Refused]


def open_rows(
    path: str | Path,
    format_name: str = "auto",
    annotator: str | None = None,
    columns: Mapping[str, str] | None = None,
    redactor: Redactor | None = None,
    scales: Mapping[str, Scale] | None = None,
    texts: str | Path | None = None,
) -> OpenRows:
    """Begins to read feedback.

    `path`: a file, a folder of a data set or `hf:OWNER/NAME`. `format_name`: a name in `FORMATS`, or `auto`.
    `annotator`: the id of the person who gave feedback that names nobody; by default `import:` and the file's name.
    `columns`: a name that the format knows -> the file's own name for it (`a.b`, `a[0].b`: inside of a).
    `scales`: question -> its worst and its best number, where the file does not say (`importers/scales.py`); files of
    numbers are read once more before for that. `texts`: a file of what was judged, for feedback that names it by an
    id; it is held in memory.
    Raises `UserError` when it cannot be read at all, when no format fits, and for a column or a question that is
    nowhere.
    """
    if format_name != "auto" and format_name not in FORMATS:
        close = difflib.get_close_matches(format_name, [*FORMATS, "auto"], n=1, cutoff=0.3)
        nearest = f"; did you mean `{close[0]}`?" if close else "."
        raise UserError(f"there is no format `{format_name}`{nearest} Known: auto, {', '.join(FORMATS)}")
    found = read_rows(path)
    start: list[Row | Refused] = []
    rows: list[Row] = []
    size = 0
    for item in islice(found, SAMPLE * 100):
        start.append(item)
        if isinstance(item, Row):
            rows.append(item)
            size += _size(item.values if item.text is None else item.text)
            if len(rows) == SAMPLE or size > SAMPLE_SIZE:
                break
    if not rows and start and isinstance(start[0], Refused) and start[0].reason != "the file is empty":
        table = "; if it is a table, name it .csv" if Path(path).suffix not in (".csv", ".tsv", ".parquet") else ""
        raise UserError(f"no row of {path} can be read. The first problem: {start[0]}{table}. {_formats()}")
    columns = dict(columns or {})
    _check_columns(path, rows, columns)
    renamed = columns
    if (
        rows
        and format_name == "auto"
        and not any(module.recognises(row.values) for module in FORMATS.values() for row in rows)
    ):
        plain_names = _plain_names(rows[0].values).items()
        renamed = {**{name: own for name, own in plain_names if own not in columns.values()}, **columns}
    values = [_renamed(row.values, renamed) if renamed else row.values for row in rows]
    name = format_name if format_name != "auto" or not rows else _detect(path, rows[0], values)
    default = Annotator(id=annotator or f"import:{_stem(path)}")
    if name not in FORMATS:  # nothing but refused rows, and nobody named a format
        return OpenRows(name, (item for item in start if isinstance(item, Refused)))
    place = Place(
        file=str(path),
        line=0,
        annotator=default,
        scales=_scales(path, FORMATS[name], renamed, scales),
        columns=columns,
        texts={} if texts is None else _texts(texts, redactor),
    )
    return OpenRows(name, _parsed(chain(start, found), FORMATS[name], place, renamed, redactor))


def _scales(path: str | Path, importer: Any, columns: Mapping[str, str], given: Mapping[str, Scale] | None) -> Scales:
    """The scales of a file's questions: what was said of them, and what all their numbers allow."""
    scales = Scales(given)
    if hasattr(importer, "numbers"):
        for item in read_rows(path):
            if isinstance(item, Row):
                with suppress(*ODD):
                    for question, number in importer.numbers(
                        _renamed(item.values, columns) if columns else item.values
                    ):
                        scales.see(question, number)
    unknown = scales.unknown()
    if unknown:
        there = ", ".join([*scales.seen, *scales.others][:12]) or "none"
        raise UserError(f"{path}: --scale {unknown[0]}=...: there is no such question; there are: {there}")
    return scales


def _texts(path: str | Path, redactor: Redactor | None) -> dict[str, Mapping[str, Any]]:
    """Rows of a file of texts by their ids, redacted as those that name them are."""
    texts: dict[str, Mapping[str, Any]] = {}
    for item in read_rows(path):
        if isinstance(item, Refused):
            continue
        values = item.values if redactor is None else redact_row(item.values, redactor)[0]
        for name in IDS:
            for held in (item.values, values):
                with suppress(RowError):
                    id = id_of(_at(held, name), name)
                    if id is not None:
                        texts.setdefault(id, values)
    if not texts:
        raise UserError(f"--texts {path}: no row of it has an id, such as {', '.join(IDS[:4])}")
    return texts


def _size(value: Any) -> int:
    """About how many characters a value holds."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8


def _parsed(
    items: Iterator[Row | Refused],
    importer: Any,
    source: Place,
    columns: Mapping[str, str],
    redactor: Redactor | None,
) -> Iterator[Parsed | Refused]:
    parse = importer.parse
    noted: set[str] = set()
    for item in items:
        if isinstance(item, Refused):
            yield item if redactor is None else item._replace(raw=redactor.redact(item.raw)[0])
            continue
        values = _renamed(item.values, columns) if columns else item.values
        redacted: Mapping[str, int] = {}
        place = replace(source, file=item.file or source.file, line=item.line)
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
        except UnicodeEncodeError:
            reason = "it holds half of a surrogate pair: broken escapes like \\ud83d"
        except KeyError as error:
            reason = f"`{error.args[0]}` is missing"
        except ODD as error:
            reason = f"a value is not of the kind that the format has there: {error}"
        else:
            notes: tuple[str, ...] = ()
            if Note in map(type, records):
                notes = _noted([sound(record.text) for record in records if isinstance(record, Note)], noted)
                records = [record for record in records if not isinstance(record, Note)]
            yield Parsed(_as_redacted(item, values, redacted), place, records, notes, redacted)
            continue
        raw = item.raw if redactor is None else _redacted_raw(values, item, redactor)
        yield Refused(place.file, item.line, sound(reason if redactor is None else redactor.redact(reason)[0]), raw)


def _noted(texts: list[str], noted: set[str]) -> tuple[str, ...]:
    """Notes, of which a file has no more than `NOTES` different ones."""
    for place, text in enumerate(texts):
        if text not in noted and len(noted) >= NOTES:
            texts[place] = "something else of them is left out"
        noted.add(texts[place])
    return tuple(dict.fromkeys(texts))


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
    """The value under a name, or inside of others: `a.b`, `a.0.b`, `a[0].b`, `a[-1]`; JSON in a text is looked into."""
    if name in values:
        return values[name]
    inside: Any = values
    parts = re.sub(r"\[(-?\d+)\]", r".\1", name).split(".")
    while parts:
        inside = decoded(inside)
        if isinstance(inside, dict):
            # a key may hold dots itself: the longest that is there
            taken = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in inside), 1)
            inside = inside.get(".".join(parts[:taken]))
            parts = parts[taken:]
        elif isinstance(inside, list) and re.fullmatch(r"-?\d+", parts[0]):
            number = int(parts.pop(0))
            inside = inside[number] if -len(inside) <= number < len(inside) else None
        else:
            return None
    return inside


def _plain_names(row: Mapping[str, Any]) -> dict[str, str]:
    """Names in small letters for columns that have capitals or spaces: `Prompt` is `prompt`."""
    names = {plain(name): str(name) for name in row}
    return (
        {name: own for name, own in names.items() if name != own and name not in row} if len(names) == len(row) else {}
    )


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


def _detect(path: str | Path, first: Row, rows: Sequence[dict[str, Any]]) -> str:
    votes = Counter(next((name for name, module in FORMATS.items() if module.recognises(row)), "") for row in rows)
    known = [(name, count) for name, count in votes.most_common() if name]
    if known:
        name = known[0][0]
        # Of pairs some have no prompt: these are no data set of TRL whose prompts stand in the answers.
        return "pairs" if name == "trl" and votes["pairs"] and all("chosen" in row for row in rows) else name
    keys = ", ".join(list(first.values)[:8])
    raise UserError(
        f"{path}: the format is not known. Row {first.line} has the keys {keys}; {_nearest(rows[0])}. Say which column "
        "is what: --map prompt=COLUMN,chosen=COLUMN,rejected=COLUMN for pairs, "
        f"--map prompt=COLUMN,completion=COLUMN,label=COLUMN for answers called good or bad. {_formats()}"
    )


def _nearest(row: dict[str, Any]) -> str:
    """Which format the keys of a row come closest to, and what it lacks of that one."""
    telling = row.keys() - {"id", "name", "type", "data", "timestamp", "input", "output"}  # of half the world's files
    asks = holds_question(row)
    ranked = []
    for order, name in enumerate((*PLAIN, *(name for name in FORMATS if name not in PLAIN))):
        for keys in FORMATS[name].REQUIRED:
            common = name in PLAIN
            lacking = [key for key in keys if key not in row and not (common and asks and key in ("prompt", "input"))]
            there = len(set(keys) & telling) + (common and asks and not set(keys) & telling & {"prompt"})
            if there:
                share = (len(keys) - len(lacking)) / len(keys) + common / 2
                ranked.append((share, -len(lacking), -order, name, lacking))
    if not ranked:
        return "none of them is a prompt or an answer by its name"
    *_, name, lacking = max(ranked)
    return f"the nearest format is `{name}`, which also needs {', '.join(lacking) or 'other values'}"


PLAIN = ("pairs", "trl", "chat", "tutorial")  # formats that any tool may write, nearest first


def _formats() -> str:
    lines = (f"  {name:<13}  {module.RECOGNISES}" for name, module in FORMATS.items())
    return "\n".join(("Formats, for --format:", *lines))
