"""`rlhf-loop feedback ...`: bring feedback in and out, check it, count it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_loop.cli.shared import AsJson, StoreOption, new_store, store_url, validation_settings
from rlhf_loop.errors import UserError

if TYPE_CHECKING:
    from rlhf_loop.feedback.store.store import Store
    from rlhf_loop.recipe import Validation

app = typer.Typer(help="Bring feedback in and out, check it, count it.", no_args_is_help=True)


@app.command("import")
def feedback_import(
    path: Annotated[str, typer.Argument(help="A file, a folder of a data set, or hf:OWNER/NAME[:SPLIT].")],
    store: StoreOption,
    format_name: Annotated[
        str, typer.Option("--format", help="A format's name, or auto (docs/feedback_formats.md).")
    ] = "auto",
    columns: Annotated[
        list[str] | None,
        typer.Option("--map", help="Columns under other names: prompt=question,chosen=a.b[0].", metavar="NAME=COLUMN"),
    ] = None,
    scales: Annotated[
        list[str] | None,
        typer.Option("--scale", help="Worst and best number of a question: stars=1:5.", metavar="NAME=LOW:HIGH"),
    ] = None,
    texts: Annotated[
        str | None,
        typer.Option(help="The texts, for feedback that names them by id (Potato, Phoenix).", metavar="FILE"),
    ] = None,
    annotator: Annotated[str | None, typer.Option(help="Who gave feedback that names nobody (a pseudonym).")] = None,
    redact: Annotated[
        str, typer.Option(help="What takes personal data and secrets out of texts: patterns, presidio or none.")
    ] = "patterns",
    as_json: AsJson = False,
) -> None:
    """Bring feedback into a store; rows that cannot be used are quarantined with file and line.

    Ends with status 1 when no row can be used.
    """
    from rlhf_loop.feedback.intake.import_file import column_map, import_file, redactor_name, scale_map
    from rlhf_loop.feedback.intake.summary import ImportSummary
    from rlhf_loop.feedback.store.store import Store

    def progress(summary: ImportSummary) -> None:
        if sys.stderr.isatty():
            print(f"\r{summary.rows:,} rows, {summary.rows / summary.seconds:,.0f} a second", end="", file=sys.stderr)

    kind, named, by_question = redactor_name(redact), column_map(columns or []), scale_map(scales or [])
    with Store.open(store_url(store)) as opened:
        if opened.is_new and opened.database.location.project is not None:
            print(new_store(opened, store), file=sys.stderr)
        summary = import_file(
            opened,
            path,
            format_name,
            annotator=annotator,
            columns=named,
            redact=kind,
            scales=by_question,
            texts=texts,
            progress=progress,
        )
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    print(json.dumps(summary.to_dict()) if as_json else "\n".join(summary.lines()))
    if summary.all_rejected:
        raise typer.Exit(1)


@app.command("export")
def feedback_export(
    path: Annotated[Path, typer.Argument(help="File to write (parquet: the folder).")],
    store: StoreOption,
    format_name: Annotated[
        str, typer.Option("--format", help="native, trl, trl-unpaired, questions, argilla or parquet.")
    ] = "native",
    as_json: AsJson = False,
) -> None:
    """Write feedback to a file that other tools read."""
    from rlhf_loop.feedback.exporters.export import export
    from rlhf_loop.feedback.store.store import Store

    with Store.open(store_url(store), create=False) as opened:
        summary = export(opened, path, format_name)
    print(json.dumps(summary) if as_json else f"{path}: " + ", ".join(f"{v} {k}" for k, v in summary.items()))


@app.command("check")
def feedback_check(
    place: Annotated[
        str | None, typer.Argument(metavar="[STORE_OR_RUN]", help="A URL, an SQLite file, or a run's folder.")
    ] = None,
    store: Annotated[str | None, typer.Option("--store", metavar="STORE", help="The same.", hidden=True)] = None,
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option(help="Write the findings as one offline HTML file.")] = None,
    near_duplicates: Annotated[bool, typer.Option(help="Look for texts that are almost the same.")] = True,
) -> None:
    """What may train and what not, and how good the feedback is: agreement, reliability, biases, drift."""
    from rlhf_loop.feedback.quality.check import check
    from rlhf_loop.feedback.quality.summary import lines
    from rlhf_loop.feedback.quality.themes import lines as theme_lines
    from rlhf_loop.feedback.store.store import Store

    named = place or store
    if named is None or (place and store):
        raise UserError("name one store to check: rlhf-loop feedback check STORE_OR_RUN")
    with Store.open(store_url(named), create=False) as opened:
        validation, said, reasons = _validated(opened, validation_settings(named))
        quality = {**check(opened, duplicates=near_duplicates), "themes": reasons}
        quarantined = opened.quarantined()
    if html is not None:
        from rlhf_loop.report.quality_page import write_page

        write_page(html, named, validation, quality)
    if as_json:
        print(json.dumps({**validation, "quality": quality, "quarantine": len(quarantined)}, indent=2))
        return
    print("\n".join([*said, *theme_lines(reasons), "", *lines(quality)]))
    for row in quarantined[:20]:
        print(f"quarantined {row.file}:{row.line}: {row.reason}")
    if len(quarantined) > 20:
        print(f"... and {len(quarantined) - 20} more")
    if html is not None:
        print(f"written to {html}")


def _validated(store: Store, settings: Validation | None) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """What validation says, as values and as lines, and what is complained of; the records that it reads are let go of
    here, before the next measures need memory."""
    from rlhf_loop.feedback.quality.themes import themes
    from rlhf_loop.feedback.validation import limits_of, validate
    from rlhf_loop.recipe import Validation
    from rlhf_loop.rows.critiqued import counts_of, critique_lines, critiqued_completions

    completions, prompts = {c.id: c for c in store.completions()}, {p.id: p for p in store.prompts()}
    limits, feedback = settings or Validation(), store.feedback()
    result = validate(feedback, completions, prompts, limits)
    training = {prompt.id: prompt for prompt in prompts.values() if prompt.split == "train"}
    sound = [record for record in [*result.usable, *result.set_aside] if record.prompt_id in training]
    critiques = counts_of(*critiqued_completions(sound, completions, training, limits_of(limits)))
    values, text = {**result.to_dict(), "critiques": critiques}, [*result.lines(), *critique_lines(critiques)]
    return values, text, themes(feedback)


@app.command("stats")
def feedback_stats(store: StoreOption, as_json: AsJson = False) -> None:
    """Counts, agreement and biases of the feedback in a store."""
    from rlhf_loop.feedback.borrowed import borrowed_in
    from rlhf_loop.feedback.quality.stats import lines, stats
    from rlhf_loop.feedback.store.store import Store
    from rlhf_loop.run_dir import RunDir

    with Store.open(store_url(store), create=False) as opened:
        numbers = stats(opened)
    if Path(store).is_dir() and (borrowed := borrowed_in(RunDir(store))):
        numbers["borrowed"] = borrowed
    print(json.dumps(numbers, indent=2) if as_json else "\n".join(lines(numbers)))
