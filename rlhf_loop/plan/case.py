"""All that a stage's memory and time are functions of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf_loop.machine import GROUPED, Dtype
from rlhf_loop.plan.formulas import BYTES, GROUPED_KEYS, NF4, Numbers
from rlhf_loop.plan.hardware import GIB, Hardware
from rlhf_loop.plan.implied import Implied
from rlhf_loop.plan.shape import Shape
from rlhf_loop.plan.sharing import Sharing, at_work
from rlhf_loop.recipe import Recipe
from rlhf_loop.reward_spec import RewardSpec

PROCESS = {"cpu": 540 * 2**20, "gpu": GIB}
"""What a process has without a model: its libraries (measured: `benchmarks/plan.py`); on a GPU CUDA's context and the
libraries' workspaces, which is an assumption."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A recipe, the shapes of its models, and what it is planned for."""

    recipe: Recipe
    policy: Shape
    rewards: Mapping[Path, tuple[RewardSpec, Shape | None]]  # of the folders that the recipe names
    implied: Implied
    hardware: Hardware
    dtype: Dtype
    sharing: Sharing

    @property
    def element(self) -> int:
        """Bytes of a weight."""
        return BYTES[self.dtype]

    @property
    def on_cpu(self) -> bool:
        """Where our own attention and head compute."""
        return self.hardware.kind == "cpu"

    @property
    def of_policy(self) -> int:
        """Bytes of the policy's base."""
        return self.element * self.policy.parameters - self.saved

    @property
    def saved(self) -> int:
        """Bytes of the policy's base that quantisation takes away: of its matrices, not of the output layer."""
        if self.recipe.policy.quantization is None:
            return 0
        matrices = sum(linear.inputs * linear.outputs for linear in self.policy.linears)
        return int((self.element - NF4) * matrices)

    def shares(self) -> int:
        """Among how many devices a training's weights are shared out."""
        return self.hardware.devices if self.sharing.over_machine else self.hardware.total

    def read(self, size: int) -> int:
        """Bytes on a device of a model of `size` bytes that is only read (`models/shares.py`)."""
        return size // self.shares() if self.sharing.weights else size

    def gathered(self, shape: Shape) -> int:
        """Bytes that are put together while such a model reads: a layer, the next one, and what is in no layer."""
        return self.element * at_work(shape) if self.sharing.weights else 0

    def attention(self) -> str:
        """The attention that the policy computes with."""
        named = self.recipe.policy.attn_implementation
        return (GROUPED if self.on_cpu else "sdpa") if named == "auto" else named or "sdpa"

    def numbers(self, length: int, adapter_copies: bool = False, dtype: Dtype | None = None) -> Numbers:
        """How rows of so many tokens are computed."""
        element, attention = BYTES[dtype or self.dtype], self.attention()
        score = 0
        if attention == GROUPED and length <= GROUPED_KEYS:
            score = element
        elif attention == "eager":  # a softmax in float32, and its rounded copy
            score = 4 if element == 4 else 4 + element
        return Numbers(
            element=element,
            score=score,
            cpu_head=self.on_cpu,
            adapter_copies=adapter_copies and element < 4,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of a stage on each device at its peak, by part; `moment` says when that is."""

    stage: str
    moment: str
    parts: Mapping[str, int]
    sure: int = 0  # what is there whatever the batch is
    host: int = 0  # in main memory of each machine

    @property
    def total(self) -> int:
        """All parts."""
        return sum(self.parts.values())


def read_again(case: Case, trained: int, element: int) -> int:
    """Bytes of what a training on a CPU saves."""
    return element * trained if case.on_cpu else 0


def peak_of_training(case: Case, stage: str, moments: Mapping[str, Mapping[str, int]], sure: int, host: int) -> Memory:
    """As `peak`. On a CPU the process of a training keeps all memory that it was given (`models/memory.py`), and what
    tensors of one kind leave is seldom of use for those of another, which have other sizes: each part counts by its own
    most, whenever that is."""
    if case.on_cpu:
        names = dict.fromkeys(name for parts in moments.values() for name in parts)
        moments = {
            "each part at its most": {name: max(parts.get(name, 0) for parts in moments.values()) for name in names}
        }
    return peak(stage, moments, sure, host)


def peak(stage: str, moments: Mapping[str, Mapping[str, int]], sure: int = 0, host: int = 0) -> Memory:
    """The moment at which a stage takes the most; parts of nothing are left out."""
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    parts = {name: size for name, size in moments[moment].items() if size}
    return Memory(stage=stage, moment=moment, parts=parts, sure=sure, host=host)
