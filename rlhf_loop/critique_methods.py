"""What learns from critiques: one line each says what it gives, where it is and which settings it has.

To add one: a settings class here, a line in `METHODS`, and a file:

- `gives="pairs"`: `rlhf_loop/rows/critiques/NAME.py` (torch-free) with `f(settings, material)`, see `Material` there;
  its pairs join those of an update that consumes pairs.
- `gives="term"`: `rlhf_loop/updates/terms/NAME.py`, a loss beside the update's own. It finds the critiques in
  `Training.critiques` and its settings in `Training.critique_settings` (`rlhf_loop/updates/train_and_save.py`).

The recipe's `critiques:` block has a key for each line; a method is on when its key is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf_loop.settings import Settings

Gives = Literal["pairs", "term"]


class Edits(Settings):
    """People's edits as pairs: what they wrote is better than what they edited."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One way to learn from critiques."""

    gives: Gives
    function: str  # MODULE:FUNCTION
    settings: type[Settings]


METHODS: dict[str, Method] = {
    "edits": Method(gives="pairs", function="rlhf_loop.rows.critiques.edits:pairs", settings=Edits),
}
"""The key in a recipe's `critiques:` block -> the method."""
