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

from pydantic import Field

from rlhf_loop.settings import Settings

Gives = Literal["pairs", "term"]


class Edits(Settings):
    """People's edits as pairs: what they wrote is better than what they edited."""


class Fresh(Settings):
    """A fresh candidate over each answer that was complained of."""

    margin: float = Field(0.0, ge=0)  # of the reward model's scores, by which it must be better


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One way to learn from critiques."""

    gives: Gives
    function: str  # MODULE:FUNCTION
    settings: type[Settings]
    needs_fresh: bool = False  # whether it compares what was complained of with fresh candidates of the same prompts


METHODS: dict[str, Method] = {
    "edits": Method(gives="pairs", function="rlhf_loop.rows.critiques.edits:pairs", settings=Edits),
    "fresh": Method(gives="pairs", function="rlhf_loop.rows.critiques.fresh:pairs", settings=Fresh, needs_fresh=True),
}
"""The key in a recipe's `critiques:` block -> the method."""
