"""Who answers without people: kinds of automatic annotators, by the `kind` of the recipe's `feedback.annotator`.

To add one: a file here with a class that has `answer(questions, completions, prompts, round) -> list[Feedback]`, one
preference a question first, and a line below.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

ANNOTATORS = {"simulated": "rlhf_loop.annotators.simulated:SimulatedAnnotator"}
"""Kind -> where the class is."""


def make_annotator(settings: Any, seed: int) -> Any:
    """The annotator that the recipe's `feedback.annotator` block asks for; its draws follow from `seed`."""
    return resolve_name(ANNOTATORS[settings.kind])(settings, seed)
