"""What learns from critiques: one line each says what it gives, where it is and which settings it has.

To add one: a settings class here, a line in `METHODS`, and a file:

- `gives="pairs"`: `rlhf_loop/rows/critiques/NAME.py` (torch-free) with `f(settings, material)`, see `Material` there;
  its pairs join those of an update that consumes pairs.
- `gives="demonstrations"`: the same, with `Demonstration`s for an update that imitates.
- `gives="checks"`: questions that every new policy is asked (`rlhf_loop/rows/checks.py`); nothing is trained on them.
- `gives="rows"`: further rows that the other methods learn from.
- `gives="term"`: `rlhf_loop/updates/terms/NAME.py`, a loss beside the update's own. It finds the critiques in
  `Training.critiques` and its settings in `Training.critique_settings` (`rlhf_loop/updates/train_and_save.py`).

The recipe's `critiques:` block has a key for each line; a method is on when its key is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, create_model, model_serializer, model_validator

from rlhf_loop.settings import Settings

Gives = Literal["pairs", "demonstrations", "term", "checks", "rows"]


class Edits(Settings):
    """People's edits as pairs: what they wrote is better than what they edited."""


class Fresh(Settings):
    """A fresh candidate over each answer that was complained of."""

    margin: float = Field(0.0, ge=0)  # of the reward model's scores, by which it must be better


class Revisions(Settings):
    """A revision over the answer that it revises, where `generation.strategy` makes revisions."""

    margin: float = Field(0.0, ge=0)  # of the reward model's scores, by which it must be better


class Predict(Settings):
    """The policy also learns to say what was said of its answers: a loss of `weight` times the mean negative
    log-probability of a critique's tokens (RLTF-FM, arXiv 2602.02482)."""

    weight: float = Field(0.1, gt=0)
    batch_size: int | None = Field(None, ge=1)  # critiques beside a batch of the update; None: as many as it has rows


class Unlikelihood(Settings):
    """What a critique complains of becomes less likely, the rest of the answer stays (CUT, arXiv 2312.14591)."""

    weight: float = Field(1.0, gt=0)
    threshold: float = Field(1.1, ge=1)  # a token is meant where told the critique makes it so many times as likely
    penalty: float = Field(1.0, ge=0)  # of a token that is meant; 0.5 for answers of other policies
    good_share: float = Field(0.25, ge=0)  # answers called good, of the number of those complained of
    batch_size: int | None = Field(None, ge=1)  # answers beside a batch of the update; None: as many as it has rows


class Hindsight(Settings):
    """The policy learns what it would make of its answers, told what was said of them (arXiv 2603.12273). Refused where
    it makes nothing of that (`entry_test`)."""

    weight: float = Field(1.0, gt=0)
    batch_size: int | None = Field(None, ge=1)  # answers beside a batch of the update; None: as many as it has rows
    entry_test: bool = True
    unrelated_share: float = Field(0.5, gt=0, lt=1)  # what critiques of other answers may signal, of what its own do


class Naive(Settings):
    """The answer and its critique as one text to imitate: a baseline to beat, for comparisons alone."""


class NextMessage(Settings):
    """What users say next, after an answer, as what they say of it (as OpenClaw-RL prepares chats)."""

    complaints_only: bool = False  # leave out what a short English list does not know for a complaint
    min_messages: int = Field(3, ge=3)  # of a conversation, the message itself among them
    max_answer_characters: int = Field(4096, ge=1)
    context: int = Field(5, ge=1)  # messages before the answer that are read, beside those of the system


class CheckJudge(Settings):
    """A model of the recipe's `endpoints` that says how far an answer takes up a complaint, 0 to 100."""

    endpoint: str  # a name in `endpoints`
    samples: int = Field(3, ge=1)  # how often each is asked; the mean counts
    temperature: float | None = Field(1.0, ge=0)  # of the samples; null: the endpoint's
    above: float = Field(50, ge=0, lt=100)  # a complaint is fixed where the mean is above


class Checks(Settings):
    """Each complaint is asked again of every new policy on the same prompt (after RLCF, arXiv 2507.18624)."""

    max_checks: int = Field(200, ge=1)  # the newest; what is left out is counted
    judge: CheckJudge | None = None  # of what no rule understands; null: this round's reward model


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
    "revisions": Method(
        gives="pairs", function="rlhf_loop.rows.critiques.revisions:pairs", settings=Revisions, needs_fresh=True
    ),
    "predict": Method(gives="term", function="rlhf_loop.updates.terms.predict:PredictTerm", settings=Predict),
    "unlikelihood": Method(
        gives="term", function="rlhf_loop.updates.terms.unlikelihood:UnlikelihoodTerm", settings=Unlikelihood
    ),
    "hindsight": Method(gives="term", function="rlhf_loop.updates.terms.hindsight:HindsightTerm", settings=Hindsight),
    "naive": Method(gives="demonstrations", function="rlhf_loop.rows.critiques.naive:demonstrations", settings=Naive),
    "next_message": Method(gives="rows", function="rlhf_loop.rows.next_messages:next_messages", settings=NextMessage),
    "checks": Method(gives="checks", function="rlhf_loop.rows.checks:checks_of", settings=Checks),
}
"""The key in a recipe's `critiques:` block -> the method."""


class Critiques(Settings):
    """What is learned from critiques: one key for each method (`critique_methods.py`), which is on when its key is
    there: `critiques: {edits: {}}`. See docs/critiques.md."""

    control: Literal["shuffled"] | None = None  # shuffled: each critique goes to another answer; nothing to be learned
    kinds: list[Literal["human", "simulated", "llm", "code"]] = Field(  # whose critiques count
        default=["human", "simulated", "llm", "code"], min_length=1
    )

    if TYPE_CHECKING:
        checks: Checks | None = None
        next_message: NextMessage | None = None

    def methods(self) -> dict[str, Settings]:
        """The methods that are on, with their settings, in the order of the table."""
        return {name: value for name in METHODS if (value := getattr(self, name, None)) is not None}

    def gives(self, what: str) -> dict[str, Settings]:
        """Those of `methods` that give `what` (`pairs`, `demonstrations`, `term`, `rows`, `checks`)."""
        return {name: value for name, value in self.methods().items() if METHODS[name].gives == what}

    @property
    def need_fresh(self) -> bool:
        """Whether answers that were complained of are scored by each round's reward model, and their prompts drawn
        before others."""
        return any(METHODS[name].needs_fresh for name in self.methods())

    @model_validator(mode="before")
    @classmethod
    def _on_or_left_out(cls, values: Any) -> Any:
        for name in METHODS if isinstance(values, dict) else ():
            if name in values and values[name] is None:
                raise ValueError(f"critiques.{name}: write `{name}: {{}}` to use it, or leave the key out")
        return values

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """So that a new method in the table changes nothing of the runs there are."""
        values: dict[str, Any] = dump(self)
        return {name: value for name, value in values.items() if name not in METHODS or value is not None}


if not TYPE_CHECKING:
    _FIELDS = {name: (method.settings | None, None) for name, method in METHODS.items()}
    Critiques = create_model("Critiques", __base__=Critiques, __doc__=Critiques.__doc__, **_FIELDS)
