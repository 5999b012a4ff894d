"""Who answers without people: kinds of automatic annotators, by the `kind` of the recipe's `feedback.annotator`.

To add one: a file here with a class that is an `AutomaticAnnotator`, and a line below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, Protocol

from rlhf_loop.records import Completion, Feedback, Prompt, Question

ANNOTATORS = {"simulated": "rlhf_loop.annotators.simulated:SimulatedAnnotator"}
"""Kind -> where the class is."""


class AutomaticAnnotator(Protocol):
    """What answers questions in the place of people."""

    def answer(
        self,
        questions: Sequence[Question],
        completions: Mapping[str, Completion],
        prompts: Mapping[str, Prompt],
        round: int,
    ) -> Sequence[Feedback]:
        """One preference a question, in order, then what else it says; the same questions give the same again."""


def make_annotator(settings: Any, seed: int) -> AutomaticAnnotator:
    """The annotator that the recipe's `feedback.annotator` block asks for; its draws follow from `seed`."""
    made: AutomaticAnnotator = resolve_name(ANNOTATORS[settings.kind])(settings, seed)
    return made
