"""Every setting of a run, checked when the recipe is loaded, before anything is computed.

A recipe is one YAML file. Relative paths in it are relative to the file, those typed on the command line to where one
stands. `Recipe` names the blocks: each stands with others of its kind in this folder, or beside the table that its keys
are of, and all are imported from here. `trainer:` blocks go verbatim to the TRL config of the algorithm
(`trainer_fields.py`). What cannot work together is refused, with the remedy (`rules.py`).
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from rlhf_loop.critique_methods import Critiques
from rlhf_loop.endpoints.settings import EndpointSettings
from rlhf_loop.errors import UserError
from rlhf_loop.files.paths import relocated
from rlhf_loop.files.store_address import project_name
from rlhf_loop.lora import Lora
from rlhf_loop.model_checks import check_files, check_folder
from rlhf_loop.near import did_you_mean
from rlhf_loop.recipe.evaluation import EndpointJudge, Evaluation, Gate, RewardModelJudge, RuleJudge
from rlhf_loop.recipe.feedback import (
    Annotation,
    FeedbackSettings,
    Import,
    Prompts,
    RedactorName,
    Validation,
    Watch,
)
from rlhf_loop.recipe.launching import StageLaunch, StageName
from rlhf_loop.recipe.policy import Policy
from rlhf_loop.recipe.rules import RULES, check_judge
from rlhf_loop.recipe.rules_of_memory import NO_BITSANDBYTES, lacks_bitsandbytes, liger_has_a_gpu
from rlhf_loop.recipe.training import EVAL_FRACTION, Pairing, Reward, RewardComponent, Update, WarmStart
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
from rlhf_loop.strategies import Generation
from rlhf_loop.trainer_fields import check_trainer, check_trainers, refuse_overrides_without_effect

__all__ = [
    "EVAL_FRACTION",
    "Annotation",
    "Critiques",
    "EndpointJudge",
    "EndpointSettings",
    "Evaluation",
    "FeedbackSettings",
    "Gate",
    "Generation",
    "Import",
    "Lora",
    "Pairing",
    "Policy",
    "Prompts",
    "Recipe",
    "RedactorName",
    "Reward",
    "RewardComponent",
    "RewardModelJudge",
    "RuleJudge",
    "StageLaunch",
    "Tracker",
    "Update",
    "Validation",
    "WarmStart",
    "Watch",
    "parse",
]

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Recipe(Settings):
    """One experiment, whole."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    seed: int = Field(0, ge=0, lt=2**63)
    rounds: int = Field(3, ge=1)
    run_dir: Path | None = None  # None: runs/NAME in the working folder
    store: str | None = None  # None: SQLite inside the run; or FILE, sqlite:///FILE, postgresql://...
    project: str | None = None  # of the `store`; None: the one that it has from the beginning
    launch: Literal["auto", "inline", "child", "ranks", "slurm", "kubernetes"] = "auto"
    accelerate_config: Path | None = None  # for `launch: child`, `slurm` and `kubernetes`
    cluster_profile: Path | None = None  # for `launch: slurm` and `kubernetes`: what stages ask for
    stages: dict[StageName, StageLaunch] = Field(default_factory=dict)  # those that are started otherwise
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

    @field_validator("project")
    @classmethod
    def _is_a_name(cls, project: str | None) -> str | None:
        return None if project is None else project_name(project)

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

    @field_validator("endpoints")
    @classmethod
    def _names_of_endpoints(cls, endpoints: dict[str, EndpointSettings]) -> dict[str, EndpointSettings]:
        for name in endpoints:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
                raise ValueError(
                    f"endpoints: `{name}` must be letters, digits, `_` and `-`, the first no sign: other settings and "
                    "the names of its answers hold it"
                )
        return endpoints

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
            _refuse_missing_packages(recipe, str(path))
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


def _refuse_missing_packages(recipe: Recipe, where: str) -> None:
    """Looked for and not imported, which takes seconds."""
    if recipe.generation.engine == "vllm" and not importlib.util.find_spec("vllm"):
        raise UserError(
            f"{where}: generation.engine: vLLM is not installed: `pip install 'rlhf-loop[vllm]'` (for GPUs; "
            "docs/generation.md says what a CPU needs), or set `engine: transformers`"
        )
    if lacks_bitsandbytes(recipe.policy):
        raise UserError(f"{where}: {NO_BITSANDBYTES}")
    if (wrong := liger_has_a_gpu(recipe)) is not None:
        raise UserError(f"{where}: {wrong}")
    for name in recipe.report_to:
        packages = ("tensorboard", "tensorboardX") if name == "tensorboard" else (name,)
        if not any(importlib.util.find_spec(package) for package in packages):
            raise UserError(
                f"{where}: report_to: {name} is not installed: `pip install {name}`, or take it out of `report_to`"
            )
