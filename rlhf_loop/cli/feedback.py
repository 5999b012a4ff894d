"""`rlhf-loop feedback ...`: bring feedback in and out, check it, count it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rlhf_loop.cli.shared import AsJson, StoreOption, store_url, validation_settings

app = typer.Typer(help="Bring feedback in and out, check it, count it.", no_args_is_help=True)


@app.command("import")
def feedback_import(
    path: Annotated[Path, typer.Argument(help="File of feedback: JSONL, CSV or Parquet.")],
    store: StoreOption,
    format: Annotated[str, typer.Option(help="A format's name, or auto.")] = "auto",
    annotator: Annotated[str | None, typer.Option(help="Who gave feedback that names nobody (a pseudonym).")] = None,
    as_json: AsJson = False,
) -> None:
    """Bring feedback into a store; rows that cannot be used are quarantined with file and line."""
    from rlhf_loop.feedback.importers import read, save
    from rlhf_loop.feedback.store import Store

    result = read(path, format, annotator)
    with Store.open(store_url(store)) as opened:
        new = save(opened, result)
    if as_json:
        print(json.dumps({**new, "refused": len(result.refused)}))
        return
    print("\n".join(result.lines()))
    print("new: " + (", ".join(f"{count} {name}" for name, count in new.items() if count) or "nothing"))


@app.command("export")
def feedback_export(
    path: Annotated[Path, typer.Argument(help="File to write.")],
    store: StoreOption,
    format: Annotated[str, typer.Option(help="native, trl, trl-unpaired or questions.")] = "native",
    as_json: AsJson = False,
) -> None:
    """Write feedback to a file that other tools read."""
    from rlhf_loop.feedback.export import export
    from rlhf_loop.feedback.store import Store

    with Store.open(store_url(store), create=False) as opened:
        summary = export(opened, path, format)
    print(json.dumps(summary) if as_json else f"{path}: " + ", ".join(f"{v} {k}" for k, v in summary.items()))


@app.command("check")
def feedback_check(store: StoreOption, as_json: AsJson = False) -> None:
    """What validation says of the feedback, and what is in quarantine and why."""
    from rlhf_loop.feedback.store import Store
    from rlhf_loop.feedback.validation import validate
    from rlhf_loop.recipe import Validation

    with Store.open(store_url(store), create=False) as opened:
        settings = validation_settings(store) or Validation()
        feedback = opened.feedback()
        completions = {c.id: c for c in opened.completions()}
        result = validate(feedback, completions, {p.id: p for p in opened.prompts()}, settings)
        quarantined = opened.quarantined()
    if as_json:
        print(json.dumps({**result.to_dict(), "quarantine": len(quarantined)}, indent=2))
        return
    for line in result.lines():
        print(line)
    for row in quarantined[:20]:
        print(f"quarantined {row.file}:{row.line}: {row.reason}")
    if len(quarantined) > 20:
        print(f"... and {len(quarantined) - 20} more")


@app.command("stats")
def feedback_stats(store: StoreOption, as_json: AsJson = False) -> None:
    """Counts, agreement and biases of the feedback in a store."""
    from rlhf_loop.feedback.stats import lines, stats
    from rlhf_loop.feedback.store import Store

    with Store.open(store_url(store), create=False) as opened:
        numbers = stats(opened)
    print(json.dumps(numbers, indent=2) if as_json else "\n".join(lines(numbers)))
