"""What a run cannot do without, known in milliseconds and without torch: refused before anything is computed where the
machine has less.

Counted are weights, gradients and the optimizer's state alone, by the headers of the model's files. All that comes on
top (activations, libraries, the reward model) is left out, so what is refused here could not have run.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_loop.cluster import PLATFORMS
from rlhf_loop.errors import UserError
from rlhf_loop.plan.formulas import BYTES, FLOAT32
from rlhf_loop.plan.hardware import GIB, memory_here
from rlhf_loop.plan.sharing import CPU, SHARINGS, Sharing, held_for_sure
from rlhf_loop.plan.trainer import trainer_of
from rlhf_loop.plan.update import COMPARES, critic_of
from rlhf_loop.recipe import Recipe
from rlhf_loop.recipe.launching import StageName
from rlhf_loop.settings import read_yaml

UNCHECKED = "--no-check-memory"
"""The option of `rlhf-loop run` that leaves this out."""


def check_memory(recipe: Recipe, updates: bool = True) -> None:
    """Raises `UserError` where a stage of the run surely takes more than the whole memory of a device, or of the
    machine on a CPU; with what to do. `updates`: False where only the base is to write its candidates.

    A quantised policy, a model whose files are not here yet, a device of unknown size, and a run whose stages are jobs
    on other machines are let pass."""
    if recipe.launch in PLATFORMS or recipe.policy.endpoint is not None or recipe.policy.quantization is not None:
        return
    memory, counted = memory_here(), weights_of(recipe.policy.model)
    if memory is None or counted is None:
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _on_cpu() else 1
    for stage, parts in least(recipe, *counted, updates=updates).items():
        needed = processes * sum(parts.values())
        if needed > memory:
            told = ", ".join(f"{name} {processes * size / GIB:.1f}" for name, size in parts.items() if size)
            raise UserError(
                f"{stage} takes {needed / GIB:.1f} GiB or more ({told}), and {_place()} has {memory / GIB:.1f} in all. "
                "`rlhf-loop plan RECIPE` says what to change so that it fits: LoRA (`update.lora={r: 16, alpha: 32}`), "
                "a config of recipes/accelerate/ that shares a training out, or a smaller model. If you know better, "
                f"`rlhf-loop run {UNCHECKED}` starts it as it is"
            )


def least(recipe: Recipe, parameters: int, head: int, updates: bool = True) -> dict[str, dict[str, int]]:
    """Bytes of a process that two stages cannot do without, by part: writing candidates, and the update.

    `parameters`: of the policy; `head`: of them, those of an output layer of its own."""
    update, element = recipe.update, BYTES[recipe.policy.precision]
    trains = updates and update.algorithm != "none"
    found: dict[str, dict[str, int]] = {}
    sharing, shares = sharing_of(recipe, "generate")
    if recipe.generation.engine == "transformers" and sharing is not None:
        merged = trains and update.lora is not None and _on_cpu()  # in float32, in main memory
        weights = (FLOAT32 if merged else element) * parameters
        found["writing candidates"] = {"weights": weights // (shares if sharing.weights else 1)}
    sharing, shares = sharing_of(recipe)
    if not trains or sharing is None:
        return found
    optimizer = trainer_of(update.algorithm, update.trainer_settings())
    full = update.lora is None

    def held(total: int, trained: int) -> tuple[int, int, int]:
        return held_for_sure(
            sharing, shares, total=total, trained=trained, element=element, precise=False, optimizer=optimizer.optimizer
        )

    networks = {"": held(parameters, parameters if full else 0)}
    if full and (update.algorithm in COMPARES or (update.algorithm in ("ppo", "grpo", "rloo") and optimizer.reference)):
        networks["reference"] = held(parameters, 0)
    if critic_of(update) == "separate":
        networks["critic"] = held(parameters - head, parameters - head)
    parts = {name or "weights": sizes[0] for name, sizes in networks.items()}
    parts["gradients"] = sum(sizes[1] for sizes in networks.values())
    parts["optimizer"] = sum(sizes[2] for sizes in networks.values())
    found[f"the update ({update.algorithm})"] = parts
    return found


def sharing_of(recipe: Recipe, stage: StageName = "update") -> tuple[Sharing | None, int]:
    """How the models of a stage are shared out, and among how many; None where that is not known here."""
    known = {sharing.name: sharing for sharing in SHARINGS}
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") or os.environ.get("ACCELERATE_USE_FSDP"):
        return None, 1  # launched by Accelerate: its config is not here any more
    own = recipe.stages.get(stage)
    path = own.accelerate_config if own and own.accelerate_config else recipe.accelerate_config
    if path is None or recipe.launch in ("inline", "ranks"):
        return (CPU if _on_cpu() else known["single"]), 1
    config = _config(path)
    processes = (own.devices if own else None) or int(config.get("num_processes") or 1)
    kind = str(config.get("distributed_type", "NO"))
    if kind == "FSDP":
        shards = (config.get("parallelism_config") or {}).get("parallelism_config_dp_shard_size")
        return known["fsdp2"], int(shards or processes)
    if kind == "DEEPSPEED":
        settings = config.get("deepspeed_config") or {}
        if "none" not in (
            settings.get("offload_param_device", "none"),
            settings.get("offload_optimizer_device", "none"),
        ):
            return known["zero3_offload"], processes
        stages = {2: "zero2", 3: "zero3"}
        name = stages.get(int(settings.get("zero_stage") or 0))
        return (None if name is None else known[name]), processes
    return (known["single"] if kind in ("NO", "MULTI_GPU") else None), 1


def weights_of(reference: str) -> tuple[int, int] | None:
    """How many weights the files of a model hold, and of them in an output layer of its own; None where there are no
    safetensors on this machine."""
    files, total, head = 0, 0, 0
    try:
        for file in _files(reference):
            files += 1
            for name, tensor in _header(file).items():
                if name != "__metadata__":
                    count = math.prod(tensor["shape"])
                    total += count
                    head += count if name.rpartition(".")[0].endswith(("lm_head", "embed_out")) else 0
    except (OSError, ValueError, KeyError, TypeError):  # who loads it says what is wrong with it
        return None
    return (total, head) if files else None


def _files(reference: str) -> Iterator[Path]:
    folder = Path(reference).expanduser()
    if not folder.is_dir():
        if ":" in reference or reference.count("/") > 1:
            return
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(reference, "config.json")
        if not isinstance(found, str):
            return
        folder = Path(found).parent
    index = folder / "model.safetensors.index.json"
    whole = folder / "model.safetensors"
    if index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if all((folder / name).is_file() for name in named):
            yield from (folder / name for name in sorted(named))
    elif whole.is_file():
        yield whole


def _header(file: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors: its length in eight bytes, then JSON."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError("a header longer than its file")
        header: dict[str, Any] = json.loads(opened.read(length))
    return header


def _config(path: Path) -> dict[str, Any]:
    try:
        found = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UserError):  # whose start says what is wrong with it
        return {}
    return found if isinstance(found, dict) else {}


def _on_cpu() -> bool:
    from rlhf_loop.machine import visible_accelerators

    return not visible_accelerators()


def _place() -> str:
    return "this machine (or its container)" if _on_cpu() else "a GPU here"
