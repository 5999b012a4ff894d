"""What leaves the store: everything in our own format, data sets for other tools, or open questions to be answered.

Everything is written page by page, whole or not at all.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.exporters import argilla, trl
from rlhf_loop.feedback.exporters.pages import PAGE, pages
from rlhf_loop.feedback.exporters.table import write_table
from rlhf_loop.feedback.files.rows import line_of
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import explain_os_error, refuse_folder
from rlhf_loop.records import Prompt


def export(store: Store, path: str | Path, format_name: str = "native") -> dict[str, int]:
    """Writes what the store holds to a file, whole or not at all.

    Gives the number of `rows`, and of the records that were left out, by reason.

    `format_name`:
    - `native`: everything, one record a line; importing it into an empty store gives an equal one, but for the
      quarantine, the history of promotions and the summaries of rounds.
    - `trl`: `prompt, chosen, rejected` (conversations) and `margin`, the strength of the preference.
    - `trl-unpaired`: `prompt, completion, label`, from thumbs and from pairs of which both are bad.
    - `questions`: open questions with both answers and an empty `winner`; fill it in and import the file.
    - `argilla`: one record a judged pair, as a JSON list that Argilla's `records.from_json` reads.
    - `parquet`: all effective feedback with its texts, and a data card; `path` is the folder for both.
    The name decides how: `.parquet` (TRL formats), `.jsonl`, `.jsonl.gz`; `.json` (Argilla).
    Raises `UserError` for an unknown format or a place that cannot be written.
    """
    path = Path(path)
    if format_name not in (*FORMATS, "parquet"):
        raise UserError(f"there is no export format `{format_name}`; known: {', '.join(FORMATS)}, parquet")
    if format_name == "parquet":
        return _export_table(store, path)
    if {".csv", ".tsv", ".tab", ".xls", ".xlsx", ".xlsm", ".ods"} & {end.lower() for end in path.suffixes}:
        # a spreadsheet would cut the lines at commas, and run what begins with `=` then
        raise UserError(f"{format_name} is no table for a spreadsheet; name the file {path.with_suffix('.jsonl')}")
    parquet = path.suffix == ".parquet"
    if format_name == "argilla" and path.suffix != ".json":
        raise UserError(f"argilla is written as one JSON list; name the file {path.with_suffix('.json')}")
    if parquet and not format_name.startswith("trl"):
        raise UserError(f"{format_name} is written as JSON Lines; name the file {path.with_suffix('.jsonl')}")
    refuse_folder(path)
    left_out: Counter[str] = Counter()
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with store.database.read():  # one state of the store, whatever is added or deleted meanwhile
            rows = FORMATS[format_name](store, left_out)
            if parquet:
                count = _write_parquet(partial, rows, format_name)
            elif format_name == "argilla":
                count = _write_list(partial, rows)
            else:
                count = _write_lines(partial, rows, path.suffix == ".gz")
        partial.replace(path)
    except OSError as error:
        raise explain_os_error(error, path) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return {"rows": count, **left_out}


def _export_table(store: Store, folder: Path) -> dict[str, int]:
    """Table and data card, in a folder that takes its place when both are written."""
    if folder.suffix:
        raise UserError(f"a table with its data card is written to a folder; name one such as {folder.with_suffix('')}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already; name a folder that is not, or an empty one")
    left_out: Counter[str] = Counter()
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        with store.database.read():
            count = write_table(store, partial, left_out)
        partial.replace(folder)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"rows": count, **left_out}


def _native(store: Store, left_out: Counter[str]) -> Iterator[str]:
    for table in (tables.prompts, tables.completions):
        for page in pages(store, table):
            yield from map(line_of, page)
    yield from map(line_of, store.artifacts())
    for page in pages(store, tables.scores):
        yield from map(line_of, page)
    yield from map(line_of, sorted(store.questions(), key=lambda question: question.id))
    for page in pages(store, tables.feedback):
        yield from map(line_of, page)


def _questions(store: Store, left_out: Counter[str]) -> Iterator[str]:
    questions = store.questions(status="open")
    completions = {c.id: c for c in store.completions(ids={id for q in questions for id in (q.a_id, q.b_id)})}
    prompts = {p.id: p for p in store.prompts(ids={q.prompt_id for q in questions})}
    for question in questions:
        texts = {
            "prompt": _conversation(prompts[question.prompt_id]),
            "a": completions[question.a_id].text,
            "b": completions[question.b_id].text,
            "winner": "",
            "comment": "",
        }
        yield json.dumps(json.loads(line_of(question)) | texts, ensure_ascii=False)


FORMATS: dict[str, Callable[[Store, Counter[str]], Iterator[Any]]] = {
    "native": _native,
    "trl": trl.preferences,
    "trl-unpaired": trl.unpaired,
    "questions": _questions,
    "argilla": argilla.records,
}


def _conversation(prompt: Prompt) -> str:
    if len(prompt.messages) == 1:
        return prompt.messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt.messages)


def _write_lines(path: Path, rows: Iterator[Any], compress: bool) -> int:
    count = 0
    with gzip.open(path, "wt", encoding="utf-8") if compress else path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n")
            count += 1
        file.flush()
    return count


def _write_list(path: Path, rows: Iterator[Any]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for row in rows:
            file.write(("," if count else "") + "\n" + json.dumps(row, ensure_ascii=False))
            count += 1
        file.write("\n]\n")
    return count


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]], format_name: str) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    fields = {"prompt": turns, "chosen": turns, "rejected": turns, "margin": pa.float64()}
    if format_name == "trl-unpaired":
        fields = {"prompt": turns, "completion": turns, "label": pa.bool_()}
    schema = pa.schema(list(fields.items()))
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        while page := list(islice(rows, PAGE)):
            writer.write_table(pa.Table.from_pylist(page, schema=schema))
            count += len(page)
    return count
