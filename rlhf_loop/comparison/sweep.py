"""A sweep: one recipe, what differs between its cells, and the seeds that each cell is run with."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from rlhf_loop.errors import UserError
from rlhf_loop.near import nearest
from rlhf_loop.recipe import Recipe
from rlhf_loop.records import FEEDBACK_KINDS
from rlhf_loop.settings import Settings, parse_settings, read_file

PRICES = {"preference": 1.0, "critique": 3.0, "edit": 5.0, "rating": 1.0, "thumb": 0.5}
"""What a label costs where the sweep does not say, in preferences. Kinds that are not here cost nothing: a skip, what a
user did rather than said, a retraction."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_FILES = ("sweep.yaml", "results.parquet", "report.html")  # beside the folders of the cells
_OF_SWEEP = {
    "seed": "`seeds` of the sweep",
    "run_dir": "--folder",
    "store": "each run's own, since cells that share one learn from each other's feedback",
    "name": "`name` of the sweep",
}


class Budget(Settings):
    """What cells must spend alike: labels (by price), samples, optimizer steps."""

    prices: dict[str, float] = Field(default_factory=dict)  # by kind of feedback, in preferences; over the defaults
    tolerance: float = Field(0.05, ge=0)  # share of the reference's budget that a cell's may differ by
    allow_unequal: bool = False  # run cells that are known to spend unequally; the report says it all the same

    @field_validator("prices")
    @classmethod
    def _of_known_kinds(cls, prices: dict[str, float]) -> dict[str, float]:
        for kind, price in prices.items():
            if kind not in FEEDBACK_KINDS:
                raise ValueError(f"budget.prices: there is no feedback of kind `{kind}`{nearest(kind, FEEDBACK_KINDS)}")
            if not price >= 0:
                raise ValueError(f"budget.prices.{kind}: a price is 0 or more, got {price}")
        return {**PRICES, **prices}


class Sweep(Settings):
    """Cells of one recipe, compared with a reference.

    A cell is settings over the recipe's, `key.sub: value`, as on the command line; `grid` makes a cell of each
    combination of values, of each of `cells` where there are both. Paths in it are relative to the sweep's file."""

    name: str | None = Field(None, pattern=f"^{_NAME}$")  # None: the file's
    recipe: Path
    common: dict[str, Any] = Field(default_factory=dict)  # settings of all cells
    cells: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    reference: str  # the cell that the others are compared with
    confidence: float = Field(0.95, gt=0, lt=1)
    budget: Budget = Field(default_factory=Budget)

    @field_validator("seeds", mode="before")
    @classmethod
    def _are_seeds(cls, seeds: Any) -> Any:
        for seed in seeds if isinstance(seeds, list) else ():
            if isinstance(seed, bool) or (isinstance(seed, int) and not 0 <= seed < 2**63):
                raise ValueError(f"seeds: a seed is a whole number from 0 to 2**63 - 1, got {str(seed).lower()}")
        return seeds

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds: {seeds} holds a seed twice, which would make the same run twice")
        return seeds

    @model_validator(mode="after")
    def _has_cells(self) -> Sweep:
        if not self.cells and not self.grid:
            raise ValueError("give `cells: {NAME: {key.sub: value}}`, `grid: {key.sub: [value, value]}`, or both")
        of_cells = {f"cells.{name}": settings or {} for name, settings in self.cells.items()}
        for place, settings in {"common": self.common, "grid": self.grid, **of_cells}.items():
            for key in _OF_SWEEP.keys() & settings.keys():
                raise ValueError(f"{place}: `{key}` is no setting of a cell: it is {_OF_SWEEP[key]}")
        named = self.settings_of_cells()
        if self.reference not in named:
            raise ValueError(f"reference: there is no cell `{self.reference}`{nearest(self.reference, named)}")
        if len(named) < 2:
            raise ValueError("there is one cell, and nothing to compare it with; give another one")
        return self

    def settings_of_cells(self) -> dict[str, dict[str, Any]]:
        """Each cell's settings over the recipe's, the reference first."""
        found: dict[str, dict[str, Any]] = {}
        options = [[(key, value) for value in values] for key, values in self.grid.items()]
        for name, settings in (self.cells or {"": {}}).items():
            for chosen in itertools.product(*options):
                cell = "-".join([*filter(None, [name]), *(_in_a_name(key, value) for key, value in chosen)])
                if not re.fullmatch(_NAME, cell):
                    raise ValueError(f"cells: `{cell}` must be letters, digits, `_`, `.` and `-`: it names a folder")
                if cell.casefold() in _FILES:
                    raise ValueError(f"cells: `{cell}` is a file of the comparison; give the cell another name")
                if cell in found:
                    raise ValueError(f"two cells would be called `{cell}`; name them under `cells`")
                if (same := {other.casefold(): other for other in found}.get(cell.casefold())) is not None:
                    raise ValueError(
                        f"cells: `{same}` and `{cell}` differ in capital letters alone, and some file systems would "
                        "take their folders for one; rename one of them under `cells`"
                    )
                found[cell] = {**self.common, **(settings or {}), **dict(chosen)}
        return dict(sorted(found.items(), key=lambda item: item[0] != self.reference))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One strategy: its recipe, whatever its seed."""

    name: str
    settings: Mapping[str, Any]  # over the recipe's
    recipe: Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class CellRun:
    """One cell with one seed: an ordinary run."""

    cell: str
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        """As lines of progress and errors call it."""
        return f"{self.cell} seed {self.seed}"


def load_sweep(path: Path) -> tuple[Sweep, list[Cell]]:
    """A sweep and its cells, the reference first, each recipe checked whole.

    Raises `UserError` naming file, cell and key for anything that is wrong.
    """
    sweep: Sweep = parse_settings(Sweep, read_file(path), str(path))
    base = (path.parent / sweep.recipe.expanduser()).resolve()
    cells, wrong = [], []
    for name, settings in sweep.settings_of_cells().items():
        try:
            recipe = Recipe.load(base, _overrides(settings), overridden_in=path.parent.resolve())
        except UserError as error:
            wrong.append(f"{path}: cell {name}: {error}")
            continue
        if recipe.store is not None:
            wrong.append(f"{path}: cell {name}: {base} names a `store`, but a store is {_OF_SWEEP['store']}")
        cells.append(Cell(name=name, settings=settings, recipe=recipe))
    if wrong:
        raise UserError("\n".join(wrong))
    return sweep, cells


def runs_of(sweep: Sweep, cells: Iterable[Cell], folder: Path) -> list[CellRun]:
    """The runs in the order in which they are made: all cells with the first seed come first."""
    cells = list(cells)
    return [
        CellRun(
            cell=cell.name,
            seed=seed,
            recipe=cell.recipe.model_copy(update={"seed": seed}),
            folder=folder / cell.name / f"seed_{seed}",
        )
        for seed in sweep.seeds
        for cell in cells
    ]


def _overrides(settings: Mapping[str, Any]) -> list[str]:
    try:
        return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
    except TypeError as error:
        raise UserError(f"settings are texts, numbers, lists and mappings; put a date into quotes ({error})") from None


def _in_a_name(key: str, value: Any) -> str:
    """Of words the last part, of a number its key too: `dpo`, `beta-0.1`."""
    if isinstance(value, str):
        return re.sub(r"[^\w.]+", "-", value.rstrip("/").rpartition("/")[2]).strip("-")
    if value is None or isinstance(value, (bool, int, float)):
        return re.sub(r"[^\w.-]+", "-", f"{key.rpartition('.')[2]}-{json.dumps(value)}")
    raise ValueError(f"grid: {key}: {value!r} is no single value and gives no name; make it a cell under `cells`")
