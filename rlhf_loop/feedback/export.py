"""What leaves the store: everything in our own format, TRL data sets, or open questions for people to answer."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.rows import line_of
from rlhf_loop.feedback.store import Store
from rlhf_loop.records import Completion, Preference, Prompt, Thumb
from rlhf_loop.run_dir import explain_os_error


def export(store: Store, path: str | Path, format: str = "native") -> dict[str, int]:
    """Writes what the store holds to a file, whole or not at all.

    Gives the number of `rows`, and of the records that were left out, by reason.

    `format`:
    - `native`: everything, one record a line; importing it into an empty store gives an equal one, but for the
      quarantine, the history of promotions and the summaries of rounds.
    - `trl`: `prompt, chosen, rejected` (conversations) and `margin`, the strength of the preference.
    - `trl-unpaired`: `prompt, completion, label`, from thumbs and from pairs of which both are bad.
    - `questions`: open questions with both answers and an empty `winner`; fill it in and import the file.
    The name decides how: `.parquet` (TRL formats), `.jsonl`, `.jsonl.gz`.
    Raises `UserError` for an unknown format or a place that cannot be written.
    """
    path = Path(path)
    if format not in FORMATS:
        raise UserError(f"there is no export format `{format}`; known: {', '.join(FORMATS)}")
    parquet = path.suffix == ".parquet"
    if parquet and not format.startswith("trl"):
        raise UserError(f"{format} is written as JSON Lines; name the file {path.with_suffix('.jsonl')}")
    left_out: Counter[str] = Counter()
    rows = FORMATS[format](store, left_out)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        count = _write_parquet(partial, rows, format) if parquet else _write_lines(partial, rows, path.suffix == ".gz")
        partial.replace(path)
    except OSError as error:
        raise explain_os_error(error, path) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return {"rows": count, **left_out}


def _native(store: Store, left_out: Counter[str]) -> Iterator[str]:
    for records in (
        store.prompts(),
        store.completions(),
        store.artifacts(),
        store.scores(),
        sorted(store.questions(), key=lambda question: question.id),
        store.feedback(effective=False),
    ):
        yield from map(line_of, records)


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


def _trl_preference(store: Store, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    prompts, completions = _lookup(store)
    for record in _effective(store, left_out):
        if not isinstance(record, Preference) or record.winner not in ("a", "b"):
            what = record.winner if isinstance(record, Preference) else record.kind
            left_out[f"{what} left out (no pair)"] += 1
            continue
        chosen, rejected = record.a_id, record.b_id
        if record.winner == "b":
            chosen, rejected = rejected, chosen
        yield {
            "prompt": list(prompts[record.prompt_id].messages),
            "chosen": [{"role": "assistant", "content": completions[chosen].text}],
            "rejected": [{"role": "assistant", "content": completions[rejected].text}],
            "margin": record.strength or 0.0,  # TRL looks at the first row only to see whether there are margins
        }


def _trl_unpaired(store: Store, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    prompts, completions = _lookup(store)
    for record in _effective(store, left_out):
        if isinstance(record, Thumb):
            labelled = [(record.completion_id, record.label)]
        elif isinstance(record, Preference) and record.winner == "both_bad":
            labelled = [(record.a_id, False), (record.b_id, False)]
        else:
            what = record.winner if isinstance(record, Preference) and record.winner == "tie" else record.kind
            left_out[f"{what} left out (of no single answer it says good or bad)"] += 1
            continue
        for completion_id, label in labelled:
            yield {
                "prompt": list(prompts[record.prompt_id].messages),
                "completion": [{"role": "assistant", "content": completions[completion_id].text}],
                "label": label,
            }


FORMATS: dict[str, Callable[[Store, Counter[str]], Iterator[Any]]] = {
    "native": _native,
    "trl": _trl_preference,
    "trl-unpaired": _trl_unpaired,
    "questions": _questions,
}


def _lookup(store: Store) -> tuple[dict[str, Prompt], dict[str, Completion]]:
    return {p.id: p for p in store.prompts()}, {c.id: c for c in store.completions()}


def _effective(store: Store, left_out: Counter[str]) -> list[Any]:
    effective = store.feedback()
    superseded = len(store.feedback(effective=False)) - len(effective)
    if superseded:
        left_out["superseded left out (a correction stands in for each)"] += superseded
    return list(effective)


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


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]], format: str) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    fields = {"prompt": turns, "chosen": turns, "rejected": turns, "margin": pa.float64()}
    if format == "trl-unpaired":
        fields = {"prompt": turns, "completion": turns, "label": pa.bool_()}
    table = pa.Table.from_pylist(list(rows), schema=pa.schema(list(fields.items())))
    pq.write_table(table, path)
    return int(table.num_rows)
