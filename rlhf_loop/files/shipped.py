"""The recipes and reward models that ship: in the wheel, or in the checkout it was installed from."""

from __future__ import annotations

from pathlib import Path

from rlhf_loop.errors import UserError

FOLDERS = ("recipes", "reward_models")


def source() -> Path:
    """The folder that holds the shipped `recipes/` and `reward_models/`."""
    package = Path(__file__).parents[1]
    for place in (package / "share", package.parent):
        if all((place / name).is_dir() for name in FOLDERS):
            return place
    raise UserError("the recipes that ship are missing from this installation; install rlhf-loop again")
