"""Copies of the recipes and reward models that ship."""

from __future__ import annotations

import shutil
from pathlib import Path

from rlhf_loop.errors import UserError
from rlhf_loop.files.shipped import FOLDERS, source


def lay_out(folder: Path) -> list[Path]:
    """Copies `recipes/` and `reward_models/` into `folder`; refuses to write over what is there."""
    targets = [folder / name for name in FOLDERS]
    for target in targets:
        if target.exists():
            raise UserError(f"{target} exists; name another folder, or move it away first")
    for name, target in zip(FOLDERS, targets, strict=True):
        shutil.copytree(source() / name, target, ignore=shutil.ignore_patterns("__pycache__"))
    return targets
