"""The recipes and reward models that ship: in the wheel, or in the checkout it was installed from."""

from __future__ import annotations

import shutil
from pathlib import Path

from rlhf_loop.errors import UserError

FOLDERS = ("recipes", "reward_models")


def lay_out(folder: Path) -> list[Path]:
    """Copies `recipes/` and `reward_models/` into `folder`; refuses to write over what is there."""
    targets = [folder / name for name in FOLDERS]
    for target in targets:
        if target.exists():
            raise UserError(f"{target} exists; name another folder, or move it away first")
    for name, target in zip(FOLDERS, targets, strict=True):
        shutil.copytree(source() / name, target, ignore=shutil.ignore_patterns("__pycache__"))
    return targets


def source() -> Path:
    """The folder that holds the shipped `recipes/` and `reward_models/`."""
    package = Path(__file__).parents[1]
    for place in (package / "share", package.parent):
        if all((place / name).is_dir() for name in FOLDERS):
            return place
    raise UserError("the recipes that ship are missing from this installation; install rlhf-loop again")
