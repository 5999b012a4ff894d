"""Rules of settings that save memory in a training: where each can work."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlhf_loop.algorithms import TRAINER_CONFIGS
from rlhf_loop.cluster import PLATFORMS
from rlhf_loop.machine import visible_accelerators

if TYPE_CHECKING:
    from rlhf_loop.recipe import Policy, Recipe


NO_BITSANDBYTES = (
    "policy.quantization: bitsandbytes is not installed: `pip install 'rlhf-loop[qlora]'`, or leave the setting out"
)


def lacks_bitsandbytes(policy: Policy) -> bool:
    """Whether a policy's base wants what is not installed here. Looked for and not imported, which takes a second."""
    return policy.quantization is not None and importlib.util.find_spec("bitsandbytes") is None


def padding_free_is_padding_free(recipe: Recipe) -> str | None:
    """TRL's DPO takes the name and pads all the same, and its SFT cuts nothing at `max_length` then."""
    for where, algorithm, trainer in _trainings(recipe):
        if not trainer.get("padding_free"):
            continue
        config = TRAINER_CONFIGS[algorithm].partition(":")[2]
        if config == "DPOConfig":
            return (
                f"{where}.padding_free: TRL's DPO has switched it off and pads all the same; leave it out. What can be "
                "saved there is: a pair's prompt is read once for both answers"
            )
        if not trainer.get("packing") and trainer.get("max_length", _CUTS) is not None:
            return (
                f"{where}.padding_free: TRL cuts nothing at `max_length` then; set `max_length: null`, or "
                "`packing: true`, which is without padding too and cuts"
            )
    return None


def a_quantised_base_has_an_adapter(recipe: Recipe) -> str | None:
    """4 bits are not trained, and vLLM would answer from the whole base."""
    if recipe.policy.quantization is None:
        return None
    if recipe.policy.endpoint is not None:
        return "policy.quantization: the policy is behind a server, whose weights are its own matter; leave it out"
    trains = recipe.update.algorithm != "none" or recipe.warm_start is not None
    if trains and recipe.update.lora is None:
        return (
            "policy.quantization: weights of 4 bits cannot be trained; set `update.lora: {r: 16, alpha: 32}`, or leave "
            "the setting out"
        )
    if recipe.generation.engine == "vllm":
        return (
            "policy.quantization: vLLM would write from the base as it was before it was quantised; set "
            "`generation.engine: transformers`, or leave the setting out"
        )
    if recipe.update.trainer_settings().get("use_vllm"):
        return (
            "update.trainer.use_vllm: TRL would send vLLM a base that it adds the adapter to and quantises again, "
            "another one each time; leave it out, or `policy.quantization`"
        )
    return None


def liger_has_a_gpu(recipe: Recipe) -> str | None:
    """Its kernels are Triton's, which are compiled for GPUs alone. Not one of `RULES`: of a run to be begun here, and
    of none that is looked at, or sent to a cluster."""
    if recipe.launch in PLATFORMS:
        return None
    blocks = [(where, trainer) for where, _, trainer in _trainings(recipe)]
    if recipe.reward is not None:
        blocks.append(("reward.trainer", recipe.reward.trainer))
    for where, trainer in blocks:
        if not trainer.get("use_liger_kernel"):
            continue
        if not visible_accelerators():
            return (
                f"{where}.use_liger_kernel: Liger's kernels run on GPUs, and this machine shows none; leave it out "
                "here: on a CPU the loop has an attention and a head of its own"
            )
        if importlib.util.find_spec("liger_kernel") is None:
            return f"{where}.use_liger_kernel: Liger is not installed: `pip install liger-kernel`, or leave it out"
    return None


_CUTS = object()
"""Stands for TRL's own `max_length`, which is a number."""


def _trainings(recipe: Recipe) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Where the settings stand, the algorithm and the settings of each training of the policy."""
    update = recipe.update
    found: list[tuple[str, str, Mapping[str, Any]]] = []
    if update.algorithm in TRAINER_CONFIGS:
        found.append(("update.trainer", update.algorithm, update.trainer_settings()))
    if recipe.warm_start is not None:
        found.append(("warm_start.trainer", "sft", recipe.warm_start.trainer))
    return found
