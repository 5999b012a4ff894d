"""What a stage may know of the other ranks: how many there are, which part is ours, how to gather.

One process without any of this set up is rank 0 of 1, so stages read the same on a laptop and on a cluster.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

from rlhf_loop.errors import UserError
from rlhf_loop.machine import visible_accelerators

T = TypeVar("T")


def rank() -> int:
    """This process among all of them, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes take part."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes the files."""
    return rank() == 0


def start() -> None:
    """Joins the process group (NCCL with accelerators, Gloo without), once, when there is more than one process.

    Raises `UserError` where Accelerate's config asks for FSDP's first version, whose weights we cannot put together.
    """
    if world_size() > 1:
        if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and os.environ.get("FSDP_VERSION", "1") == "1":
            raise UserError(
                "the Accelerate config asks for version 1 of FSDP; set `fsdp_version: 2` under `fsdp_config`, as in "
                "recipes/accelerate/fsdp2.yaml"
            )
        from accelerate import PartialState

        PartialState()


@contextmanager
def whole_models() -> Iterator[None]:
    """Within it, a model that is loaded is there whole on every rank, also where Accelerate's config shares out the
    weights of trainings: FSDP would give them to the main rank alone, and ZeRO-3 a part of them to each."""
    from transformers.integrations import deepspeed

    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    efficient = os.environ.pop(name, None)
    reference = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = reference
        if efficient is not None:
            os.environ[name] = efficient


def shard(items: Sequence[T], every: int = 1) -> list[T]:
    """This rank's share of `items`: every `world_size`-th one, so that sorted work is spread evenly.

    `every`: of so many ranks the first alone takes a share, where they work together."""
    if rank() % every:
        return []
    return list(items[rank() // every :: -(-world_size() // every)])


def gather(items: Sequence[T], patient: bool = False) -> list[T]:
    """The shares of all ranks, put back in the order that `shard` took them from; on every rank.

    `patient`: waits for days and not for the process group's few minutes, where some ranks have no share."""
    if world_size() == 1:
        return list(items)
    import torch.distributed as dist

    start()
    shares: list[Any] = [None] * world_size()
    dist.all_gather_object(shares, list(items), group=_patient_group() if patient else None)
    longest = max(len(share) for share in shares)
    return [share[i] for i in range(longest) for share in shares if i < len(share)]


def sharded_map(function: Callable[[Sequence[T]], Sequence[Any]], items: Sequence[T], every: int = 1) -> list[Any]:
    """`function` of all `items`, each rank doing its share; the result, in order, on every rank.

    `function` gives one result an item. `every`: as in `shard`.
    """
    with in_step():
        results = function(shard(items, every))
    return gather(results, patient=every > 1)


def own_accelerators(count: int, where: str) -> list[str]:
    """The accelerators that this rank and the `count` - 1 after it have together, as CUDA_VISIBLE_DEVICES names them;
    none where the machine has none. Raises `UserError`, naming the setting `where`, when there are too few."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [str(n) for n in range(visible_accelerators())] if named is None else named.replace(" ", "").split(",")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if world_size() > 1 and here % count:
        raise UserError(
            f"{where}: {here} processes on this machine cannot be put together by {count}; set a number that divides "
            f"{here}, or start another number of processes"
        )
    if not visible_accelerators() and count == 1:
        return []
    first = int(os.environ.get("LOCAL_RANK", "0")) // count * count
    if first + count > visible_accelerators():
        raise UserError(
            f"{where}: {max(here, count)} GPUs are needed, and this machine shows {visible_accelerators()}; set a "
            "lower number, or start one process for each GPU"
        )
    return visible[first : first + count]


def environment_of_one() -> dict[str, str]:
    """This process's environment without what says that it is a rank, for a process that is none."""
    told = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kinds = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "GROUP_", "ROLE_")
    return {name: value for name, value in os.environ.items() if name not in told and not name.startswith(kinds)}


def said_by_main(function: Callable[[], T], patient: bool = False) -> T:
    """What `function` gives on the main rank, which alone calls it; on every rank. `patient`: as in `gather`."""
    if world_size() == 1:
        return function()
    import torch.distributed as dist

    start()
    said: list[Any] = [function() if is_main() else None]
    dist.broadcast_object_list(said, src=0, group=_patient_group() if patient else None)
    return cast(T, said[0])


_collectives: list[Callable[[], object]] = []
_DONE = sys.maxsize


def add_collective(take_part: Callable[[], object]) -> int:
    """The number of what all ranks do together although each comes to it another number of times; `take_part`: does
    this rank's part where another has come to it. To be called on every rank, in one order."""
    _collectives.append(take_part)
    return len(_collectives) - 1


def begin_collective(number: int) -> None:
    """Returns when all ranks do it together, and takes part in what others come to before."""
    while (first := _least(number)) != number:
        _collectives[first]()


@contextmanager
def in_step() -> Iterator[None]:
    """Within it the ranks may come to what all do together as often as each needs to, or never; the end is reached
    when all have. To be entered by every rank."""
    yield
    if _collectives:
        begin_collective(_DONE)


def _least(number: int) -> int:
    """The least that any rank says."""
    import torch
    import torch.distributed as dist

    said = torch.tensor(number)
    dist.all_reduce(said, op=dist.ReduceOp.MIN, group=_patient_group())
    return int(said)


@cache
def _patient_group() -> Any:
    """On the CPU, so that waiting has no time limit of NCCL's."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=timedelta(days=30))


def barrier() -> None:
    """Waits until all ranks are here."""
    if world_size() > 1:
        import torch.distributed as dist

        start()
        dist.barrier()
