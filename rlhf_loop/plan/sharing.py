"""What a training holds of a network on each device, for each way of sharing out that `recipes/accelerate/` has.

Terms are those of ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3): weights, gradients and the optimizer's
state, each whole on every device or a share of it. Bytes follow what the libraries do, not what they could: DDP copies
gradients into buckets; FSDP2 (by Accelerate) and DeepSpeed keep trained weights in float32, of which the first computes
in a rounded copy that is gathered layer by layer; alone and with DDP a policy in bfloat16 is trained in bfloat16,
with moments of that size.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_loop.plan.formulas import FLOAT32, moments
from rlhf_loop.plan.shape import Shape

ZERO_BUCKET = 500_000_000
"""Gradients that DeepSpeed brings together at a time (`reduce_bucket_size`)."""
ZERO_LIVE = 1_000_000_000
"""Weights that ZeRO-3 has gathered at a time, at most (`stage3_max_live_parameters`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharing:
    """One way. What is not shared out is whole on every device."""

    name: str
    config: str  # in recipes/accelerate
    weights: bool = False
    gradients: bool = False
    optimizer: bool = False
    over_machine: bool = False  # shares are of the devices of one machine
    deepspeed: bool = False
    offload: bool = False  # shares lie in main memory
    several: bool = True  # devices
    machines: bool = True  # may be more than one

    @property
    def left_to_trl(self) -> bool:
        """Whether updates leave to TRL what needs whole weights (`updates/log_probs.py`, `updates/rollouts.py`)."""
        return self.optimizer


SHARINGS: tuple[Sharing, ...] = (
    Sharing(name="single", config="single_gpu.yaml", several=False, machines=False),
    Sharing(name="ddp", config="ddp.yaml"),
    Sharing(name="zero2", config="deepspeed_zero2.yaml", gradients=True, optimizer=True, deepspeed=True),
    Sharing(
        name="hsdp", config="fsdp2_hsdp.yaml", weights=True, gradients=True, optimizer=True, over_machine=True,
    ),
    Sharing(name="fsdp2", config="fsdp2.yaml", weights=True, gradients=True, optimizer=True),
    Sharing(name="zero3", config="deepspeed_zero3.yaml", weights=True, gradients=True, optimizer=True, deepspeed=True),
    Sharing(
        name="zero3_offload", config="deepspeed_zero3_offload.yaml", weights=True, gradients=True, optimizer=True,
        deepspeed=True, offload=True,
    ),
)  # fmt: skip
"""From the fastest to the one that takes the least: what is gathered crosses the network between devices."""

CPU = Sharing(name="cpu", config="cpu.yaml", several=False, machines=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Bytes on a device, of one network in training."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int = 0  # copies for the layers at work, and buckets
    host: int = 0  # in main memory, for each device

    @property
    def sure(self) -> int:
        """What is there at the end of a step whatever the batch is."""
        return self.weights + self.gradients + self.optimizer


def held(
    sharing: Sharing,
    shares: int,
    shape: Shape,
    *,
    total: int,
    trained: int,
    element: int,
    precise: bool,
    optimizer: str,
) -> Held:
    """`total` weights of a network of `shape`, `trained` of them (0: a reference), by one of `shares` devices.

    `element`: bytes of a weight as it is loaded; `precise`: trained weights are float32 whatever that is (an adapter).
    """
    weights, gradients, state = held_for_sure(
        sharing, shares, total=total, trained=trained, element=element, precise=precise, optimizer=optimizer
    )
    host = 0
    if not sharing.optimizer:
        gathered = gradients if sharing.several else 0
    elif not sharing.deepspeed:  # a layer at work and the next one, what is in no layer, and a layer's whole gradient
        gathered = element * (min(total, at_work(shape)) + min(trained, shape.a_layer))
    else:
        gathered = 2 * element * min(trained, ZERO_BUCKET)
        gathered += element * min(total, ZERO_LIVE) if sharing.weights else 0
        if sharing.offload:  # weights, their precise copies and moments, and of gradients a float32 share
            host = (element * total + FLOAT32 * trained + moments(trained, optimizer, FLOAT32)) // shares
            host += FLOAT32 * trained // shares
    return Held(weights=weights, gradients=gradients, optimizer=state, gathered=gathered, host=host)


def at_work(shape: Shape) -> int:
    """Weights that FSDP2 has put together at a time: a layer, the next one, and what is in no layer."""
    return 2 * shape.a_layer + shape.embedding + shape.head


def held_for_sure(
    sharing: Sharing, shares: int, *, total: int, trained: int, element: int, precise: bool, optimizer: str
) -> tuple[int, int, int]:
    """Bytes of weights, gradients and the optimizer's state alone (with DeepSpeed's precise weights in the last)."""
    of_trained = FLOAT32 if precise or (sharing.optimizer and trained) else element
    frozen = element * (total - trained)
    if sharing.offload:
        return 0, 0, 0
    if not sharing.optimizer:  # alone, or DDP
        return frozen + of_trained * trained, of_trained * trained, moments(trained, optimizer, of_trained)
    state = moments(trained, optimizer, FLOAT32)
    if not sharing.deepspeed:
        return (frozen + FLOAT32 * trained) // shares, FLOAT32 * trained // shares, state // shares
    weights = element * total // (shares if sharing.weights else 1)
    return weights, element * trained // shares, (FLOAT32 * trained + state) // shares
