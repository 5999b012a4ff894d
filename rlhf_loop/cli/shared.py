"""What several commands have in common: their arguments, and finding runs and stores."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_loop.errors import UserError
from rlhf_loop.files.paths import absolute_store
from rlhf_loop.near import near

if TYPE_CHECKING:
    from rlhf_loop.feedback.store.store import Store

RunFolder = Annotated[Path, typer.Argument(help="Folder of the run.", metavar="RUN")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
CheckMemory = Annotated[bool, typer.Option(help="Refuse what surely takes more memory than there is.")]
StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        help="Store to work on: a URL, an SQLite file (?project=NAME behind it for a project), or a run's folder.",
        metavar="STORE",
    ),
]


def existing_run(path: Path) -> Path:
    """The absolute folder of a run; a `UserError` where there is none."""
    if not (path / "recipe.yaml").exists():
        runs = near(path / "RUN" if path.is_dir() else path, _is_run)
        raise UserError(f"{path} is no run: it has no recipe.yaml{runs}. Runs are made by `rlhf-loop run RECIPE`")
    return path.resolve()


def store_url(store: str) -> str:
    """The store's URL or file; a run's folder stands for the run's store."""
    folder = Path(store).expanduser()
    if not folder.is_dir():
        if "://" not in store and store != ":memory:" and not folder.suffix and not folder.exists():
            raise UserError(  # a mistyped run would become a file
                f"there is no run at {store}{near(folder, _is_run)}. `rlhf-loop run RECIPE --run-dir {store}` makes "
                f"one; a store alone is a file, such as {store}.db"
            )
        return absolute_store(store, Path.cwd())
    from rlhf_loop.runs import open_run

    return open_run(existing_run(folder)).store_url


def new_store(store: Store, named: str) -> str:
    """That a store was made by opening it, in words: who mistyped its name sees it. `named`: as it was typed."""
    project = store.database.location.project
    if project is None:
        return f"there was no store at {named}; it is made now"
    return f"there was no project {project} in {store.database.location.of_project(None).name}; it is made now"


def _is_run(path: Path) -> bool:
    return (path / "recipe.yaml").exists()


def validation_settings(store: str) -> Any:
    """The validation settings of the run that the store belongs to, or None where only a store is named."""
    if not Path(store).is_dir():
        return None
    from rlhf_loop.runs import open_run

    return open_run(existing_run(Path(store))).recipe.feedback.validation


def shortest(path: Path) -> str:
    """Relative to the working folder where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


def command() -> str:
    """How this program was called: .venv/bin/rlhf-loop, rlhf-loop, or python -m rlhf_loop."""
    program = Path(sys.argv[0])
    return f"{sys.executable} -m rlhf_loop" if program.name == "__main__.py" else shortest(program)
