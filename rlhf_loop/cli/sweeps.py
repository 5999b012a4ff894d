"""One recipe with several values of a setting: what `--sweep KEY=V,V` stands for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlhf_loop.cli.shared import shortest
from rlhf_loop.errors import UserError
from rlhf_loop.recipe import Recipe


def swept(
    recipe: Path, overrides: Sequence[str], sweep: Sequence[str], run_dir: Path | None
) -> Iterator[tuple[Recipe, list[str], Path]]:
    """(recipe, its overrides, folder) of each run: one for each combination of values; without a sweep, one.

    Raises `UserError` for a sweep that is wrong, and where two runs would share a folder.
    """
    places: set[Path] = set()
    for setting in itertools.product(*map(_values, sweep)):
        typed = [*overrides, *(f"{key}={value}" for key, value in setting)]
        loaded = Recipe.load(recipe, typed)
        base = run_dir or loaded.run_dir or Path("runs") / loaded.name
        named = "-".join([base.name, *(f"{key.rpartition('.')[2]}-{_in_a_name(value)}" for key, value in setting)])
        place = base.with_name(named) if sweep else base
        if place.resolve() in places:
            raise UserError(
                f"--sweep: two runs would share {shortest(place.resolve())}; give values whose last parts differ"
            )
        places.add(place.resolve())
        yield loaded, typed, place


def _values(sweep: str) -> list[tuple[str, str]]:
    """`seed=0,1` -> [("seed", "0"), ("seed", "1")]."""
    key, separator, text = sweep.partition("=")
    values = [value.strip() for value in text.split(",")]
    if not separator or not key.strip() or not all(values):
        raise UserError(f"--sweep {sweep}: write KEY=VALUE,VALUE, such as --sweep seed=0,1,2")
    return [(key.strip(), value) for value in values]


def _in_a_name(value: str) -> str:
    """Of a path or a hub id its last part."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in value.rstrip("/").rpartition("/")[2])
