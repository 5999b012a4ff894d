"""Who answers without people: kinds of automatic annotators, by the `kind` of the recipe's `feedback.annotator`.

To add one: a file here with its settings and an `AutomaticAnnotator` that names them as `Settings`, and a line below.
Recipes import these files, so what is large (torch, a client of some API) is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, ClassVar, Protocol

from rlhf_loop.endpoints.client import Endpoints
from rlhf_loop.records import Completion, Feedback, Prompt, Question
from rlhf_loop.settings import Settings as Block

ANNOTATORS = {
    "simulated": "rlhf_loop.annotators.simulated:SimulatedAnnotator",
    "endpoint": "rlhf_loop.annotators.endpoint:EndpointAnnotator",
}
"""Kind -> MODULE:CLASS."""


class AnnotatorSettings(Block):
    """What every kind of automatic annotator has."""

    kind: str
    called: ClassVar[str] = "an automatic annotator"  # who gave the feedback, on pages and cards

    @property
    def gives(self) -> frozenset[str]:
        """The kinds of feedback that it gives."""
        return frozenset({"preference"})


class AutomaticAnnotator(Protocol):
    """What answers questions in the place of people; made with its settings and a seed, and one whose settings name an
    `endpoint` with who asks it."""

    Settings: ClassVar[type[Any]]

    def answer(
        self,
        questions: Sequence[Question],
        completions: Mapping[str, Completion],
        prompts: Mapping[str, Prompt],
        round: int,
    ) -> Sequence[Feedback]:
        """One preference (or skip) a question, in order, then what else it says; the same questions give the same
        again."""


def annotator_class(kind: str) -> Any:
    """The class of a kind of annotator."""
    return resolve_name(ANNOTATORS[kind])


def make_annotator(settings: AnnotatorSettings, seed: int, endpoints: Endpoints | None = None) -> AutomaticAnnotator:
    """The annotator that the recipe's `feedback.annotator` block asks for; its draws follow from `seed`. `endpoints`:
    the recipe's, for one that asks one of them."""
    named = getattr(settings, "endpoint", None)
    client = () if named is None else ((endpoints or Endpoints({}))[named],)
    made: AutomaticAnnotator = annotator_class(settings.kind)(settings, seed, *client)
    return made


def called(kind: str | None) -> str:
    """Who answers, on pages and cards, by the kind in a recipe; None: people do."""
    if kind is None:
        return "people"
    name: str = annotator_class(kind).Settings.called if kind in ANNOTATORS else AnnotatorSettings.called
    return name
