"""What a folder of the catalogue says: `reward_model.yaml`, checked when it is read, before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from rlhf_loop import trainer_fields
from rlhf_loop.endpoints.judging import SCORE_RUBRIC
from rlhf_loop.errors import UserError
from rlhf_loop.files import write_text
from rlhf_loop.files.paths import absolute_model, relocated
from rlhf_loop.lora import Lora
from rlhf_loop.near import did_you_mean
from rlhf_loop.settings import Settings, parse_settings, read_yaml, write_yaml

FILE = "reward_model.yaml"


class RewardSpec(Settings):
    """What every kind of reward model has."""

    kind: str
    _folder: Path | None = PrivateAttr(None)

    @property
    def folder(self) -> Path | None:
        """Where it was read from."""
        return self._folder


class TrainedSpec(RewardSpec):
    """What every kind has that is trained on pairs."""

    base: str = "policy"  # the recipe's base policy, or any model reference


class TrainerSpec(TrainedSpec):
    """What every kind has that is trained by gradient descent: a `trainer` block, which a recipe may change.

    `trainer` goes verbatim to the kind's config in `algorithms.TRAINER_CONFIGS`."""

    trainer: dict[str, Any] = Field(default_factory=dict)


class BradleyTerrySpec(TrainerSpec):
    """A language model with one output, trained on pairs through TRL's RewardTrainer.

    `trainer` goes verbatim to TRL's RewardConfig; `per_device_train_batch_size` counts prompts there, each with all its
    pairs (see `rewards/bradley_terry.py`)."""

    kind: Literal["bradley_terry"] = "bradley_terry"
    lora: Lora | None = Field(default_factory=Lora)  # null: train every weight
    max_length: int = Field(1024, ge=8)  # tokens of prompt and completion; pairs with a longer side are left out
    probe: bool = (
        True  # begin from the best linear output on the untrained features (arXiv 2202.10054), not a random one
    )
    max_texts: int = Field(32, ge=2)  # distinct texts of a prompt in one batch element; bounds memory

    @model_validator(mode="after")
    def _trainer_is_known(self) -> BradleyTerrySpec:
        trainer_fields.check_trainer("bradley_terry", self.trainer, "trainer")
        if "max_length" in self.trainer:
            raise ValueError(
                "trainer.max_length: set `max_length` of the reward model itself, which counts what it drops"
            )
        if "model_init_kwargs" in self.trainer:
            raise ValueError(
                "trainer.model_init_kwargs: dtype, attention and trust come from the recipe's `policy` block"
            )
        return self


class CriticSpec(TrainerSpec):
    """A language model that writes a critique of an answer and scores the answer having read it (CLoud, Ankner et al.
    2024, arXiv 2408.11791).

    `question`: what it is asked after the answer. `sft`: of learning to write people's critiques; `trainer`: of
    learning the reward on its own; both go verbatim to transformers' TrainingArguments, and
    `per_device_train_batch_size` counts critiques in the first, prompts with all their pairs in the second."""

    kind: Literal["critic"] = "critic"
    lora: Lora = Field(default_factory=Lora)
    question: str = "What is good and what is bad about this answer? Say it in a sentence or two."
    max_length: int = Field(1024, ge=8)  # tokens of prompt, answer and question; pairs with a longer side are left out
    max_critique: int = Field(64, ge=1)  # tokens of a critique; people's longer ones are cut off there
    lm_weight: float = Field(1.25, ge=0)  # of the critiques' cross-entropy beside the Bradley-Terry loss
    max_texts: int = Field(32, ge=2)  # distinct texts of a prompt in one batch element; bounds memory
    sft: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _trainers_are_known(self) -> CriticSpec:
        trainer_fields.check_trainer("critic", self.sft, "sft")
        trainer_fields.check_trainer("critic", self.trainer, "trainer")
        return self


class HeadSpec(TrainedSpec):
    """A linear Bradley-Terry head on features of a frozen model: trains in seconds, good with 60-300 pairs.

    `layers`: hidden states to read, as shares of the depth (1.0 is the last). `l2`: candidates, of which grouped
    cross-validation on the training pairs takes the best."""

    kind: Literal["head"] = "head"
    layers: list[float] = Field(default=[0.5, 0.75], min_length=1)
    pooling: list[Literal["mean", "last"]] = Field(default=["mean", "last"], min_length=1)
    l2: list[float] = Field(default=[0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0], min_length=1)
    folds: int = Field(5, ge=2)
    max_length: int = Field(1024, ge=8)

    @field_validator("layers")
    @classmethod
    def _layers_are_shares(cls, layers: list[float]) -> list[float]:
        if not all(0 < layer <= 1 for layer in layers):
            raise ValueError("layers are shares of the depth, above 0 and at most 1 (1.0: the last layer)")
        return layers

    @field_validator("l2")
    @classmethod
    def _l2_is_positive(cls, l2: list[float]) -> list[float]:
        if not all(value > 0 for value in l2):
            raise ValueError("l2: penalties must be above 0")
        return l2


class PretrainedSpec(RewardSpec):
    """A reward model that somebody else trained: a sequence classifier of the hub or in a folder, used as it is.

    `outputs`: how much of each of its outputs makes the reward, by the label's name in the model's config or its
    number; a model with one output needs none. `format`: how it reads a conversation: as its own chat template writes
    it, or (`pair`) the prompt and the answer as a pair of texts, as encoders such as DeBERTa do."""

    kind: Literal["pretrained"] = "pretrained"
    model: str
    outputs: dict[str, float] | None = None
    format: Literal["chat_template", "pair"] = "chat_template"
    max_length: int = Field(2048, ge=8)  # tokens of prompt and completion; of longer ones the end is scored

    @field_validator("outputs", mode="before")
    @classmethod
    def _numbers_are_names_too(cls, outputs: Any) -> Any:
        return {str(name): weight for name, weight in outputs.items()} if isinstance(outputs, dict) else outputs

    @field_validator("outputs")
    @classmethod
    def _weighs_something(cls, outputs: dict[str, float] | None) -> dict[str, float] | None:
        if outputs is not None and not any(outputs.values()):
            raise ValueError("outputs: give a weight to at least one, such as {helpfulness: 0.7, verbosity: -0.1}")
        return outputs


class FunctionSpec(RewardSpec):
    """A Python function with TRL's interface: `f(prompts, completions, **columns) -> list[float]`.

    `format`: what it is handed: conversations (lists of messages) or plain strings."""

    kind: Literal["function"] = "function"
    function: str  # FILE.py:NAME, the file in the same folder; or MODULE:NAME, such as trl.rewards:accuracy_reward
    arguments: dict[str, Any] = Field(default_factory=dict)
    format: Literal["conversational", "plain"] = "conversational"

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, function: str) -> str:
        if not re.fullmatch(r"\w+(\.\w+)*:[A-Za-z_]\w*", function):
            raise ValueError(
                "`function` must be FILE.py:NAME with the file in the same folder, or MODULE:NAME of an installed "
                f"package, got {function!r}"
            )
        return function

    @property
    def file(self) -> str | None:
        """The file that holds the function; None where it is of an installed module."""
        place = self.function.partition(":")[0]
        return place if place.endswith(".py") else None


class JudgeSpec(RewardSpec):
    """A score that a model of the recipe's `endpoints` gives each answer; nothing is trained.

    `method`: the mean of the scores of `samples` draws, or the expectation of the scale's numbers under the model's
    probabilities for its first token, where the server tells them."""

    kind: Literal["judge"] = "judge"
    endpoint: str  # a name in the recipe's `endpoints`
    rubric: str = SCORE_RUBRIC
    scale: tuple[int, int] = (1, 9)  # worst and best
    method: Literal["mean", "expectation"] = "mean"
    samples: int = Field(1, ge=1)  # draws for each answer
    temperature: float | None = Field(None, ge=0)  # null: the endpoint's

    @model_validator(mode="after")
    def _can_score(self) -> JudgeSpec:
        low, high = self.scale
        if low >= high:
            raise ValueError("scale: give the worst and then the best, such as [1, 9]")
        if self.method == "expectation" and (low < 0 or high > 9):
            raise ValueError("scale: an expectation is over numbers that are one token: from 0 to 9")
        if self.method == "expectation" and self.samples > 1:
            raise ValueError("samples: an expectation takes one request; remove it, or set `method: mean`")
        if self.samples > 1 and not self.temperature:
            raise ValueError("samples: several draws are equal at temperature 0; set `temperature: 1.0`")
        return self


SPECS: dict[str, str] = {
    "bradley_terry": "rlhf_loop.reward_spec:BradleyTerrySpec",
    "head": "rlhf_loop.reward_spec:HeadSpec",
    "critic": "rlhf_loop.reward_spec:CriticSpec",
    "pretrained": "rlhf_loop.reward_spec:PretrainedSpec",
    "function": "rlhf_loop.reward_spec:FunctionSpec",
    "judge": "rlhf_loop.reward_spec:JudgeSpec",
}
"""Kind -> MODULE:CLASS of its settings, imported when a folder says that it is of this kind, before any stage runs: a
file in `rlhf_loop/rewards/` that has its own imports torch where it is used."""


def load_spec(folder: Path) -> RewardSpec:
    """The checked `reward_model.yaml` of `folder`.

    Raises `UserError` naming the file, the key and the nearest valid name for anything that is wrong.
    """
    path = Path(folder) / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is not a reward model: it has no {FILE}{_neighbours(Path(folder))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    values = read_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping of settings, as in reward_models/bradley_terry/{FILE}")
    spec = parse_spec(values, str(path))
    spec._folder = Path(folder)
    if isinstance(spec, TrainedSpec) and spec.base != "policy":
        spec.base = absolute_model(relocated(spec.base, path.parent.resolve()), path.parent)
    if isinstance(spec, PretrainedSpec):
        spec.model = absolute_model(relocated(spec.model, path.parent.resolve()), path.parent)
    return spec


def parse_spec(values: Mapping[str, Any], where: str = FILE) -> RewardSpec:
    """A spec from plain values; `where` is named in errors."""
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in SPECS:
        said = "`kind` is missing" if kind is None else f"`kind: {kind}` is not known"
        raise UserError(f"{where}: {said}; valid: {', '.join(SPECS)}")
    spec: RewardSpec = parse_settings(resolve_name(SPECS[kind]), values, where)
    return spec


def write_spec(spec: RewardSpec, folder: Path) -> None:
    """Writes `spec` as the `reward_model.yaml` of `folder`."""
    text = write_yaml(spec.model_dump(mode="json"))
    write_text(folder / FILE, text)


def with_trainer(spec: RewardSpec, trainer: Mapping[str, Any], where: str = "reward") -> RewardSpec:
    """`spec` with keys of its `trainer` block replaced; raises `UserError` for keys that cannot be there. `where`: the
    block of the recipe that `trainer` stands in."""
    if not trainer:
        return spec
    if not isinstance(spec, TrainerSpec):
        raise UserError(
            f"{where}.trainer: a reward model of kind {spec.kind} is not trained with TRL; remove the block"
        )
    values = spec.model_dump(mode="json")
    values["trainer"] = {**values["trainer"], **trainer}
    return parse_spec(values, where)


def check_trainer(specs: Sequence[RewardSpec], trainer: Mapping[str, Any], where: str) -> None:
    """Raises `UserError` for a recipe's `trainer` block that one of `specs` cannot take, or that none of them reads."""
    for spec in [spec for spec in specs if isinstance(spec, TrainerSpec)] or specs:
        with_trainer(spec, trainer, where)


def _neighbours(folder: Path) -> str:
    """Which folders beside a wrong one are reward models, for the error."""
    parent = folder.parent
    known = sorted(path.parent.name for path in parent.glob(f"*/{FILE}")) if parent.is_dir() else []
    return f". Those in {parent}: {', '.join(known)}{did_you_mean(folder.name, known)}" if known else ""
