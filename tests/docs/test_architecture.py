"""The package's imports keep to the layers of docs/architecture.md, and go round in no circle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import architecture  # noqa: E402


def test_every_import_keeps_to_the_layers_and_there_is_no_circle() -> None:
    checked = subprocess.run(
        [sys.executable, ROOT / "docs" / "architecture.py", "--check"], capture_output=True, text=True
    )
    assert checked.stderr == ""
    assert checked.returncode == 0


def test_each_exception_is_used() -> None:
    found = {(a, b.split(".")[0]) for a, b in architecture.imports(architecture.modules())}
    assert set(architecture.EXCEPTIONS) <= found


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (("feedback.store.store", "loop"), "feedback.store.store (memory) imports loop (loop)"),
        (("updates.dpo", "generation.sampling"), "updates.dpo (work) imports generation.sampling (work)"),
        (("loop", "models.loading"), "loop (loop) imports models.loading (models)"),
        (("records", "somewhere"), "somewhere is in no layer"),
    ],
)
def test_an_import_against_the_layers_is_named(found: tuple[str, str], said: str) -> None:
    assert architecture.violations([found]) == [said]


def test_a_circle_is_found_between_modules_and_between_folders() -> None:
    assert set(architecture.circle([("a", "b"), ("b", "c"), ("c", "a")])) == {"a", "b", "c"}
    apart = [("a.one", "b.one"), ("b.two", "a.two")]
    assert architecture.circle(apart) == []
    assert set(architecture.circle(apart, folders=True)) == {"a", "b"}


def test_each_folder_says_in_a_sentence_what_lives_there() -> None:
    folders = {path.parent for path in architecture.PACKAGE.rglob("*.py")} - {architecture.PACKAGE}
    silent = [
        folder
        for folder in folders
        if "migrations" not in folder.parts and not (folder / "__init__.py").read_text().startswith('"""')
    ]
    assert silent == []
