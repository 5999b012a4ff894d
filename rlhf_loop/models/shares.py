"""Models that are only read, shared out over the ranks where Accelerate's config shares out those in training.

Each rank holds a share of every layer (torch's own FSDP2, which goes by storage alone: adapters, classifiers and trunks
are the same to it, under DeepSpeed's config too). A layer is put together on every rank while it computes, so each rank
goes on with its own texts, and all make a forward together: a rank that has no more texts makes it with a token of its
own, until all are done (`rlhf_loop.models.distributed.in_step`).
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rlhf_loop.files.damage import reading
from rlhf_loop.models.distributed import add_collective, begin_collective, is_main, said_by_main, start, world_size
from rlhf_loop.models.memory import device


def shared_out() -> bool:
    """Whether Accelerate's config shares out weights (FSDP2, HSDP, ZeRO-3): then those that are only read are too."""
    if world_size() == 1:
        return False
    return _says("ACCELERATE_USE_FSDP") or (_says("ACCELERATE_USE_DEEPSPEED") and _zero_stage() == 3)


def without_numbers() -> bool:
    """Whether this rank loads models for `share_out` without their numbers, which the main one has."""
    return shared_out() and not is_main()


def loading_options() -> dict[str, Any]:
    """What `from_pretrained` is told of a model that is only read."""
    return {"device_map": "meta"} if without_numbers() else {}


def placed(model: Any) -> Any:
    """A model that was loaded with `loading_options`: shared out where Accelerate's config says so, else whole on this
    process's accelerator or the CPU. In `eval()`."""
    return share_out(model) if shared_out() else model.to(device()).eval()


def share_out(model: Any) -> Any:
    """`model`, of which this rank holds a share from now on, in `eval()` and not to be trained.

    To be called on every rank with a model of the same layers, of which the main rank has the numbers, on the CPU, and
    the others need none. They are sent one tensor after the other, so that no rank ever has more than one beyond its
    share on its device."""
    start()
    numbers = _tensors(model) if is_main() else {}
    dtypes = said_by_main(lambda: {name: tensor.dtype for name, tensor in numbers.items()}, patient=True)
    _empty(model, dtypes)
    place, kind = device(), type(model)
    options: dict[str, Any] = {"mesh": _mesh(place), "reshard_after_forward": True}
    for layer in _layers(model):
        fully_shard(layer, **options)
    fully_shard(model, **options)
    model.to_empty(device=place)
    _fill(model, numbers, dtypes, place)
    model.__class__ = kind  # FSDP's is another, under which transformers does not know what it can record
    return _in_step(model.eval())


def _in_step(model: Any) -> Any:
    """Every forward of `model` waits for the other ranks, which take part in it."""
    taking_part = False
    itself = weakref.ref(model)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def take_part() -> None:
        nonlocal taking_part
        taking_part = True
        model: Any = itself()
        try:
            ones = torch.ones((1, 1), dtype=torch.long, device=device())
            model(input_ids=ones, attention_mask=ones)
        finally:
            taking_part = False

    number = add_collective(take_part)

    def begin(*_: Any) -> None:
        if not taking_part:
            begin_collective(number)

    model.register_forward_pre_hook(begin, prepend=True)  # before FSDP's own
    return model


def _layers(model: Any) -> Iterator[nn.Module]:
    """The elements of outermost lists of modules: the layers of every transformer, whatever it calls them."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _empty(model: Any, dtypes: dict[str, torch.dtype]) -> None:
    """Takes the numbers out of all parameters, and keeps ties."""
    made: dict[int, nn.Parameter] = {}
    kinds = {id(parameter): dtypes[name] for name, parameter in model.named_parameters()}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in made:
                empty = torch.empty_like(parameter, device="meta", dtype=kinds[id(parameter)])
                made[id(parameter)] = nn.Parameter(empty, requires_grad=False)
            setattr(module, name, made[id(parameter)])


def _fill(model: Any, numbers: dict[str, torch.Tensor], dtypes: dict[str, torch.dtype], place: torch.device) -> None:
    """Puts the main rank's `numbers` into the shares of all."""
    with torch.no_grad():
        for name, tensor in _tensors(model).items():
            if is_main():
                whole = numbers.pop(name).to(place)
            else:
                whole = torch.empty(tensor.shape, dtype=dtypes[name], device=place)
            torch.distributed.broadcast(whole, src=0)
            if isinstance(tensor, DTensor):
                share = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
                tensor.to_local().copy_(share.to_local())
            else:
                tensor.copy_(whole)


def _mesh(place: torch.device) -> Any:
    """Over all ranks, or as HSDP's config says: copies, of which each is shared out."""
    copies = int(os.environ.get("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", "1"))
    if copies == 1:
        return init_device_mesh(place.type, (world_size(),))
    return init_device_mesh(place.type, (copies, world_size() // copies), mesh_dim_names=("replicate", "shard"))


def _says(name: str) -> bool:
    return os.environ.get(name, "").lower() == "true"


def _zero_stage() -> int:
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if file is None:
        return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    with reading(Path(file)):
        return int(json.loads(Path(file).read_text(encoding="utf-8")).get("zero_optimization", {}).get("stage", 0))
