"""The settings of a `trainer:` block, which go verbatim to the TRL config of the algorithm.

Their names are kept in `data/trl_fields.json` (a test holds it against the installed TRL), so that a wrong one is
refused when a recipe is loaded, without importing torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any

from rlhf_loop.algorithms import ALGORITHMS, TRAINER_CONFIGS
from rlhf_loop.errors import UserError
from rlhf_loop.near import nearest

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

LOSSES = {
    "DPOConfig": (
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
        "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
    ),
    "KTOConfig": ("kto", "apo_zero_unpaired"),
    "GRPOConfig": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
    "SFTConfig": ("nll", "dft", "chunked_nll"),
}  # fmt: skip
"""What `loss_type` may name in the configs that have it; TRL's trainers would say so in their first step only."""


def check_trainers(algorithm: str, trainer: Mapping[str, Any], trainers: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises `ValueError` for an unknown algorithm or key in `trainers`, or an unknown key in `trainer`, which is
    shared by whichever algorithm is chosen (`none` trains nothing and reads none of it)."""
    for name, own in trainers.items():
        if name not in ALGORITHMS:
            raise ValueError(f"update.trainers: there is no algorithm `{name}`{nearest(name, ALGORITHMS)}")
        check_trainer(name, own, f"update.trainers.{name}")
    if algorithm != "none":
        check_trainer(algorithm, trainer, "update.trainer")


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
            owner = {"trl": "TRL's", "transformers": "transformers'"}.get(module, "our")
            raise ValueError(f"{where}.{key}: {owner} {config} has no such field{remedy}")
        if not _is(known[key], value):
            raise ValueError(f"{where}.{key} must be {known[key]}, got {value!r}")
        if key == "loss_type" and value is not None and config in LOSSES:
            _check_losses(config, value, f"{where}.{key}")


def _check_losses(config: str, value: Any, where: str) -> None:
    """Raises `ValueError` for a loss that TRL's trainer does not know; DPO takes several."""
    several = isinstance(value, list)
    for name in value if several else [value]:
        if name not in LOSSES[config]:
            raise ValueError(f"{where}: {config} knows no loss {name!r}{nearest(str(name), LOSSES[config])}")
    if several and config != "DPOConfig":
        raise ValueError(f"{where} must be one of {', '.join(LOSSES[config])}, got {value!r}")


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


def refuse_overrides_without_effect(values: Mapping[str, Any], overrides: Iterable[str]) -> None:
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
