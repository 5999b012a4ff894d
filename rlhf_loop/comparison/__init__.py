"""Strategies compared: cells of one recipe, run with the same seeds, measured on the same prompts, at equal cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_loop.comparison.budget import SPENT, expected, unequal
from rlhf_loop.comparison.results import Measured, measure, write_results
from rlhf_loop.comparison.runner import at_a_time, make_runs
from rlhf_loop.comparison.shown import CellResult, cell_results, other_yardsticks, sentence
from rlhf_loop.comparison.sweep import Budget, Cell, CellRun, Sweep, load_sweep, runs_of
from rlhf_loop.errors import UserError
from rlhf_loop.files import explain_os_error, private, write_text
from rlhf_loop.files.locks import locked
from rlhf_loop.kept_recipe import RecipeChanged, check_recipe
from rlhf_loop.progress import RunProgress
from rlhf_loop.run_dir import RunDir

__all__ = ["Budget", "Comparison", "Sweep", "compare"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How a call of `compare` ended."""

    folder: Path
    results: Path  # results.parquet: a row for each cell, seed and round
    report: Path
    sentence: str  # what it showed
    cells: Mapping[str, CellResult]  # those with a complete run, the reference first
    unequal: Sequence[str]  # budgets that differ by more than the tolerance, in words
    yardsticks: Sequence[str]  # cells that are measured otherwise than the reference, in words
    errors: Mapping[str, str]  # by the name of a run that is not complete: why


def compare(
    sweep: str | Path,
    folder: str | Path | None = None,
    jobs: int | None = None,
    progress: RunProgress | None = None,
    check_memory: bool = True,
) -> Comparison:
    """Makes the runs of a sweep file, or goes on where a call stopped, and writes results and report of what is there.

    compare("recipes/compare/algorithms.yaml", jobs=2).sentence

    `folder` (default: runs/NAME) holds `CELL/seed_N`, ordinary runs. `jobs`: runs at a time (default: one for each
    accelerator, one on a CPU). `check_memory`: as in `Loop.run`. A run that fails is in `errors` and does not stop the
    others. Raises `UserError` for what is wrong with the sweep or a recipe, for a cell whose settings are no longer
    those of its runs, for cells that will spend unequally, for a folder that is something else, and while another
    process works on it.
    """
    path, progress = Path(sweep), progress or RunProgress(quiet=True)
    settings, cells = load_sweep(path)
    place = Path(folder or Path("runs") / (settings.name or path.stem)).resolve()
    runs = runs_of(settings, cells, place)
    jobs = at_a_time(runs, jobs)
    _make_folder(place)
    with locked(place / "lock", str(place)):
        _refuse_changed(runs)
        _refuse_unequal(settings, cells, path, progress)
        _tell_others(place, runs, progress)
        write_text(place / "sweep.yaml", path.read_text(encoding="utf-8"))
        errors = make_runs(runs, jobs, progress.say, check_memory)
        return _conclude(settings, cells, runs, place, errors)


def _make_folder(place: Path) -> None:
    if (place / "recipe.yaml").exists():
        raise UserError(f"{place} is a run, whose report a comparison would overwrite; choose another --folder")
    try:
        private.make_folder(place)
    except OSError as error:
        raise explain_os_error(error, place) from error


def _conclude(
    sweep: Sweep, cells: Sequence[Cell], runs: Sequence[CellRun], folder: Path, errors: Mapping[str, str]
) -> Comparison:
    from rlhf_loop.comparison.page import write_page  # jinja2 and matplotlib

    measured: dict[str, list[Measured]] = {cell.name: [] for cell in cells}
    for run in runs:
        measured[run.cell].append(measure(run, sweep.budget.prices))
    found = cell_results(measured, sweep.reference, sweep.confidence)
    budgets = {cell: spent_by(several, sweep) for cell, several in measured.items() if cell in found}
    different = unequal(budgets, sweep.reference, sweep.budget.tolerance) if sweep.reference in budgets else []
    comparison = Comparison(
        folder=folder,
        results=folder / "results.parquet",
        report=folder / "report.html",
        sentence=sentence(found, sweep.reference, sweep.confidence),
        cells=found,
        unequal=different,
        yardsticks=other_yardsticks(measured, sweep.reference),
        errors=errors,
    )
    write_results(comparison.results, [one for several in measured.values() for one in several])
    write_page(comparison, sweep, cells, measured, budgets)
    return comparison


def spent_by(measured: Sequence[Measured], sweep: Sweep) -> dict[str, float]:
    """What a cell's complete runs spent, on average."""
    ended = [one.spent[-1] for one in measured if one.complete]
    totals = {
        "labels": sum(one.labels(sweep.budget.prices) for one in ended),
        "samples": sum(one.samples for one in ended),
        "updates": sum(one.updates for one in ended),
    }
    return {what: totals[what] / len(ended) for what in SPENT}


def _refuse_changed(runs: Sequence[CellRun]) -> None:
    changed: dict[str, str] = {}
    for run in runs:
        try:
            check_recipe(run.recipe, RunDir(run.folder))
        except RecipeChanged as error:
            changed.setdefault(run.cell, f"cell {run.cell} changed since {run.folder} was begun:\n  {error.changes}")
    if changed:
        raise UserError(
            "\n".join(changed.values()) + "\nPut the old values back, give the changed cell another name (what is "
            "complete of the others is kept), delete the cell's folder, or name another one with --folder. Nothing was "
            "touched"
        )


def _refuse_unequal(sweep: Sweep, cells: Sequence[Cell], path: Path, progress: RunProgress) -> None:
    budgets = {cell.name: expected(cell.recipe, sweep.budget.prices) for cell in cells}
    different = unequal(budgets, sweep.reference, sweep.budget.tolerance)
    if not different:
        return
    listed = "\n  ".join(different)
    if not sweep.budget.allow_unequal:
        raise UserError(
            f"{path}: cells will spend unequally, and what they differ in would be that too:\n  {listed}\nMake them "
            "equal (feedback.questions_per_round, generation, max_steps of the trainer; `budget.prices` says what a "
            "label costs), or set `budget: {allow_unequal: true}` to compare them all the same"
        )
    progress.say(f"cells will spend unequally (allow_unequal):\n  {listed}")


def _tell_others(folder: Path, runs: Sequence[CellRun], progress: RunProgress) -> None:
    """Runs of cells and seeds that the sweep no longer names."""
    named = {run.folder for run in runs}
    others = sorted(str(p.relative_to(folder)) for p in folder.glob("*/seed_*") if p.is_dir() and p not in named)
    if others:
        progress.say(f"not in the sweep, left as they are and out of the report: {', '.join(others)}")
