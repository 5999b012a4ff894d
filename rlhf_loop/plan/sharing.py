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
    of_trained = FLOAT32 if precise or (sharing.optimizer and trained) else element
    frozen = total - trained
    if not sharing.optimizer:  # alone, or DDP
        gradients = of_trained * trained
        return Held(
            weights=element * frozen + of_trained * trained,
            gradients=gradients,
            optimizer=moments(trained, optimizer, of_trained),
            gathered=gradients if sharing.several else 0,
        )
    state = moments(trained, optimizer, FLOAT32)
    if not sharing.deepspeed:  # a layer at work and the next one, what is in no layer, and a layer's whole gradient
        at_work = element * (min(total, 2 * shape.a_layer + shape.embedding + shape.head) + min(trained, shape.a_layer))
        return Held(
            weights=(element * frozen + FLOAT32 * trained) // shares,
            gradients=FLOAT32 * trained // shares,
            optimizer=state // shares,
            gathered=at_work,
        )
    buckets = 2 * element * min(trained, ZERO_BUCKET)
    master = (FLOAT32 * trained + state) // shares
    if not sharing.weights:
        whole = element * total
        return Held(weights=whole, gradients=element * trained // shares, optimizer=master, gathered=buckets)
    live = element * min(total, ZERO_LIVE)
    weights, gradients = element * total // shares, element * trained // shares
    if sharing.offload:  # of gradients a float32 share, too
        on_host = weights + master + FLOAT32 * trained // shares
        return Held(weights=0, gradients=0, optimizer=0, gathered=live + buckets, host=on_host)
    return Held(weights=weights, gradients=gradients, optimizer=master, gathered=live + buckets)
