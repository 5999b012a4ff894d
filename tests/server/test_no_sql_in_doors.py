"""Who asks the store asks `feedback/`: only there is it known what its tables are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import rlhf_loop

PACKAGE = Path(rlhf_loop.__file__).parent
DOORS = ["server", "watch", "cli", "report", "stages", "steps", "loop.py", "policies.py"]
SQL = ("sqlalchemy", "rlhf_loop.feedback.store.tables", "rlhf_loop.feedback.store.trained_on")


@pytest.mark.parametrize("door", DOORS)
def test_doors_know_no_tables(door: str) -> None:
    place = PACKAGE / door
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    assert files
    for file in files:
        for name in imported(file):
            assert not name.startswith(SQL), f"{file.relative_to(PACKAGE)} imports {name}"


def imported(file: Path) -> list[str]:
    """Modules and names that a file imports, wherever in it."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names
