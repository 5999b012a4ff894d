"""Everything that was said, as one Parquet table with a data card: `feedback.parquet` and `README.md` in a folder.

A row is one piece of effective feedback with the texts that it is about; columns of other kinds are null. The hash in
the card is that of the rows' content, line by line in their order, so it says whether two exports hold the same,
however the file was compressed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_loop.feedback.exporters.pages import effective_feedback, texts_of
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Annotator, Completion, Feedback, Prompt, to_dict

FILE, CARD = "feedback.parquet", "README.md"
PEOPLE = 50  # annotators that the card names


@dataclass(slots=True)
class Contents:
    """What a table holds, counted while it is written."""

    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    winners: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    annotators: Counter[Annotator] = field(default_factory=Counter)
    hash: Any = field(default_factory=hashlib.sha256)


def write_table(store: Store, folder: Path, left_out: Counter[str]) -> int:
    """Writes table and card into a folder that is there; returns the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    text, number = pa.string(), pa.float64()
    columns = {
        "id": text,
        "kind": text,
        "prompt_id": text,
        "group": text,
        "split": text,
        "prompt": turns,
        "a_id": text,
        "b_id": text,
        "answer_a": text,
        "answer_b": text,
        "winner": text,
        "strength": number,
        "shown_order": text,
        "blind": pa.bool_(),
        "completion_id": text,
        "completion": text,
        "label": pa.bool_(),
        "score": number,
        "scale_low": number,
        "scale_high": number,
        "edited_completion": text,
        "action": text,
        "comment": text,
        "spans": text,
        "annotator": text,
        "annotator_kind": text,
        "created_at": number,
        "lead_time": number,
        "round": pa.int64(),
        "rubric_version": text,
        "source": text,
        "external_id": text,
    }
    schema = pa.schema(list(columns.items()))
    contents = Contents()
    with pq.ParquetWriter(folder / FILE, schema) as writer:
        for page in effective_feedback(store, left_out):
            rows = list(_rows(store, page, contents, columns))
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    (folder / CARD).write_text(card(store, contents, left_out), encoding="utf-8")
    return contents.rows


def card(store: Store, contents: Contents, left_out: Counter[str]) -> str:
    """The data card: Markdown under the front matter that a hub reads."""
    from rlhf_loop.feedback.quality.measures import agreement
    from rlhf_loop.feedback.quality.votes import read_votes

    agreed = agreement(read_votes(store))
    size = next((name for bound, name in _SIZES if contents.rows < bound), "n>1M")
    lines = [
        "---",
        "task_categories:",
        "- text-generation",
        "tags:",
        "- preference",
        *(["- human-feedback"] if any(who.kind == "HUMAN" for who in contents.annotators) else []),
        "size_categories:",
        f"- {size}",
        "configs:",
        "- config_name: default",
        f"  data_files: {FILE}",
        "---",
        "",
        "# Feedback",
        "",
        f"{contents.rows:,} pieces of feedback, one a row, with the texts that they are about.",
        "",
        f"Content hash (SHA-256 of the rows): `{contents.hash.hexdigest()}`",
        "",
        "| kind | rows |",
        "| --- | ---: |",
        *(f"| {name} | {count:,} |" for name, count in contents.kinds.most_common()),
        "",
        "## Annotators",
        "",
        f"{len(contents.annotators):,} annotators, under pseudonyms: {_kinds(contents)}.",
        "",
        "| annotator | kind | rows |",
        "| --- | --- | ---: |",
        *(f"| {_cell(who.id)} | {who.kind} | {count:,} |" for who, count in contents.annotators.most_common(PEOPLE)),
    ]
    if len(contents.annotators) > PEOPLE:
        lines.append(f"| {len(contents.annotators) - PEOPLE:,} more | | |")
    lines += ["", "## Agreement", ""]
    if agreed.alpha is None or agreed.agreed is None:
        lines.append("Not defined: no pair was judged by two annotators, or all verdicts are the same.")
    else:
        interval = (
            "" if agreed.alpha_low is None else f", 95% interval {agreed.alpha_low:.3f} to {agreed.alpha_high:.3f}"
        )
        lines.append(
            f"Krippendorff's alpha {agreed.alpha:.3f}{interval}, over {agreed.pairs:,} pairs that two annotators "
            f"or more judged; they said the same in {agreed.agreed:.1%} of {agreed.comparisons:,} comparisons."
        )
    preferences = sum(contents.winners.values())
    lines += ["", "## Ties", ""]
    for name, what in (("tie", "ties"), ("both_bad", "verdicts that both answers are bad")):
        share = f" ({contents.winners[name] / preferences:.1%} of the preferences)" if preferences else ""
        lines.append(f"- {contents.winners[name]:,} {what}{share}")
    lines += ["", "## Filters", ""]
    lines += [f"- {count:,} {reason}" for reason, count in left_out.items()] or ["Nothing was left out."]
    lines += ["", "Validation has not been applied: ties, contradictions and duplicates are in the table.", ""]
    lines += ["| split of the prompt | rows |", "| --- | ---: |"]
    lines += [f"| {name} | {count:,} |" for name, count in contents.splits.most_common()]
    return "\n".join(lines) + "\n"


_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def _kinds(contents: Contents) -> str:
    """Of what kind the annotators are."""
    counts: Counter[str] = Counter(who.kind for who in contents.annotators)
    names = {"HUMAN": ("person", "people"), "LLM": ("language model", "language models"), "CODE": ("rule", "rules")}
    told = [f"{counts[kind]:,} {names[kind][counts[kind] != 1]}" for kind in names if counts[kind]]
    return ", ".join(told) or "none"


def _rows(store: Store, page: list[Feedback], contents: Contents, columns: dict[str, Any]) -> Iterator[dict[str, Any]]:
    prompts, completions = texts_of(store, page)
    for record in page:
        row = _row(record, prompts[record.prompt_id], completions)
        row = {name: row.get(name) for name in columns}
        contents.rows += 1
        contents.kinds[record.kind] += 1
        contents.splits[row["split"]] += 1
        contents.annotators[record.annotator] += 1
        if row["winner"]:
            contents.winners[row["winner"]] += 1
        line = json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        contents.hash.update(line.encode("utf-8", "replace") + b"\n")
        yield row


def _row(record: Feedback, prompt: Prompt, completions: dict[str, Completion]) -> dict[str, Any]:
    row = to_dict(record)
    row["annotator"], row["annotator_kind"] = record.annotator.id, record.annotator.kind
    row["spans"] = json.dumps(row["spans"], ensure_ascii=False) if row.get("spans") else None
    row["scale_low"], row["scale_high"] = row.get("scale") or (None, None)
    row["prompt"], row["group"], row["split"] = list(prompt.messages), prompt.group, prompt.split
    for name, id in (("completion", "completion_id"), ("answer_a", "a_id"), ("answer_b", "b_id")):
        row[name] = completions[row[id]].text if row.get(id) else None
    return row


def _cell(text: str) -> str:
    """Text that stays within its cell."""
    return "".join(" " if character in "|\n\r`<>[]" else character for character in text)[:80]
