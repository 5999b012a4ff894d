"""What a stage may know of the other ranks: how many there are, which part is ours, how to gather.

One process without any of this set up is rank 0 of 1, so stages read the same on a laptop and on a cluster.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from rlhf_loop.errors import UserError

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


def shard(items: Sequence[T]) -> list[T]:
    """This rank's share of `items`: every `world_size`-th one, so that sorted work is spread evenly."""
    return list(items[rank() :: world_size()])


def gather(items: Sequence[T]) -> list[T]:
    """The shares of all ranks, put back in the order that `shard` took them from; on every rank."""
    if world_size() == 1:
        return list(items)
    import torch.distributed as dist

    start()
    shares: list[Any] = [None] * world_size()
    dist.all_gather_object(shares, list(items))
    longest = max(len(share) for share in shares)
    return [share[i] for i in range(longest) for share in shares if i < len(share)]


def sharded_map(function: Callable[[Sequence[T]], Sequence[Any]], items: Sequence[T]) -> list[Any]:
    """`function` of all `items`, each rank doing its share; the result, in order, on every rank.

    `function` gives one result an item.
    """
    return gather(function(shard(items)))


def said_by_main(function: Callable[[], T]) -> T:
    """What `function` gives on the main rank, which alone calls it; on every rank."""
    if world_size() == 1:
        return function()
    import torch.distributed as dist

    start()
    said: list[Any] = [function() if is_main() else None]
    dist.broadcast_object_list(said, src=0)
    return cast(T, said[0])


def barrier() -> None:
    """Waits until all ranks are here."""
    if world_size() > 1:
        import torch.distributed as dist

        start()
        dist.barrier()
