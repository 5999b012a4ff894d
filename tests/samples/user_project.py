"""A folder in which a user types: recipes, reward models, a recipe of the user's own, and a profile."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def enter_project(folder: Path, monkeypatch: pytest.MonkeyPatch, profile: str) -> Path:
    """Lays it out in `folder`, with `profile` as small.yaml, and goes there."""
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "reward_models").symlink_to(ROOT / "reward_models")
    recipe = (ROOT / "recipes" / "smoke.yaml").read_text()
    (folder / "mine.yaml").write_text(recipe.replace("data/", "recipes/data/").replace("../reward", "reward"))
    (folder / "small.yaml").write_text(profile)
    monkeypatch.chdir(folder)
    return folder
