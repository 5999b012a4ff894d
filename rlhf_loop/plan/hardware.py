"""What a plan is for: this machine as it is, or GPUs by their name."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlhf_loop.errors import UserError
from rlhf_loop.machine import Dtype, memory_limit, native_dtype, visible_accelerators
from rlhf_loop.near import nearest

GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """By the maker's data sheet: memory, multiplications with their additions counted as two, dense."""

    gib: float
    bfloat16: float  # operations a second; float16 where there is no bfloat16
    float32: float
    bandwidth: float  # bytes a second


GPUS: dict[str, Gpu] = {
    "B200": Gpu(gib=180, bfloat16=2250e12, float32=80e12, bandwidth=8.0e12),
    "H200": Gpu(gib=141, bfloat16=989e12, float32=67e12, bandwidth=4.8e12),
    "H100": Gpu(gib=80, bfloat16=989e12, float32=67e12, bandwidth=3.35e12),
    "A100-80GB": Gpu(gib=80, bfloat16=312e12, float32=19.5e12, bandwidth=2.04e12),
    "A100-40GB": Gpu(gib=40, bfloat16=312e12, float32=19.5e12, bandwidth=1.56e12),
    "L40S": Gpu(gib=48, bfloat16=362e12, float32=91.6e12, bandwidth=0.864e12),
    "A10": Gpu(gib=24, bfloat16=125e12, float32=31.2e12, bandwidth=0.6e12),
    "L4": Gpu(gib=24, bfloat16=121e12, float32=30.3e12, bandwidth=0.3e12),
    "V100": Gpu(gib=32, bfloat16=125e12, float32=15.7e12, bandwidth=0.9e12),
    "T4": Gpu(gib=16, bfloat16=65e12, float32=8.1e12, bandwidth=0.32e12),
    "RTX-4090": Gpu(gib=24, bfloat16=165e12, float32=82.6e12, bandwidth=1.01e12),
    "RTX-3090": Gpu(gib=24, bfloat16=71e12, float32=35.6e12, bandwidth=0.936e12),
    "MI300X": Gpu(gib=192, bfloat16=1307e12, float32=163e12, bandwidth=5.3e12),
}
DEFAULT_GPU = "H100"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """`devices` a machine, all alike; a CPU is one device whose memory is the machine's."""

    kind: Literal["cpu", "gpu"]
    name: str
    memory: int  # bytes of a device
    devices: int = 1
    machines: int = 1
    peak: float | None = None  # operations a second in the plan's dtype; None: not known
    bandwidth: float | None = None  # bytes a second
    measured: bool = False  # the two before were, on this machine

    @property
    def total(self) -> int:
        """Devices in all."""
        return self.devices * self.machines


def chosen(
    gpus: int | None, machines: int, gpu_memory: float | None, gpu: str | None, dtype: Dtype | Literal["auto"]
) -> tuple[Hardware, Dtype]:
    """The hardware that options name (none: this machine's), and what `auto` is there.

    Raises `UserError` for a name that is in no table, and for no GPUs at all.
    """
    visible = visible_accelerators()
    if gpus is None and gpu is None and gpu_memory is None and not visible:
        if machines > 1:
            raise UserError("--nodes is for machines with GPUs: say how many each has, such as --gpus 8")
        return this_cpu(), native_dtype() if dtype == "auto" else dtype
    name = gpu or _name_here() or DEFAULT_GPU
    if name not in GPUS:
        raise UserError(f"--gpu: {name} is not known{nearest(name, GPUS)}; or give --gpu-memory and the nearest name")
    known = GPUS[name]
    precision: Dtype = "bfloat16" if dtype == "auto" else dtype
    return Hardware(
        kind="gpu",
        name=name,
        memory=int((gpu_memory or known.gib) * GIB),
        devices=gpus or visible or 1,
        machines=machines,
        peak=known.float32 if precision == "float32" else known.bfloat16,
        bandwidth=known.bandwidth,
    ), precision


def this_cpu() -> Hardware:
    """This machine without accelerators, and as much of it as a container leaves."""
    memory = memory_limit()
    if memory is None:
        raise UserError("how much memory this machine has is not known: plan for GPUs with --gpus and --gpu-memory")
    return Hardware(kind="cpu", name=f"CPU, {os.cpu_count()} cores", memory=memory)


def measured(hardware: Hardware, dtype: Dtype, seconds: float = 1.0) -> Hardware:
    """A CPU with its speed: of products of matrices for so long, and of a matrix with a vector for half of it."""
    import torch

    from rlhf_loop.models.memory import fit_threads

    fit_threads()
    kind = getattr(torch, dtype)
    a, b = torch.ones(512, 1024, dtype=kind), torch.ones(1024, 1024, dtype=kind)
    matrix, vector = torch.ones(4096, 4096, dtype=kind), torch.ones(4096, 1, dtype=kind)
    products = _rate(lambda: a @ b, seconds)
    passes = _rate(lambda: matrix @ vector, seconds / 2)
    return Hardware(
        kind="cpu", name=hardware.name, memory=hardware.memory, peak=products * 2 * 512 * 1024 * 1024,
        bandwidth=passes * matrix.nbytes, measured=True,
    )  # fmt: skip


def _rate(work: Callable[[], object], seconds: float) -> float:
    """How often a second something can be done."""
    work()
    count, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < seconds:
        work()
        count += 1
    return count / taken


def _name_here() -> str | None:
    """The name in the table of this machine's first GPU, where its driver tells."""
    return next(iter(_names_here()), None)


def memory_here() -> int | None:
    """Bytes of a GPU of this machine, or of a CPU's machine, and no less; None where nobody can tell without starting
    the driver."""
    if not visible_accelerators():
        return memory_limit()
    names = _names_here()
    return int(max(GPUS[name].gib for name in names) * GIB) if names else None


def _names_here() -> list[str]:
    """Those of the table that it may be, the likeliest first."""
    for path in sorted(_DRIVER.glob("*/information")):
        text = path.read_text(errors="replace")
        exact = [name for name in GPUS if all(part in text for part in name.split("-"))]
        return exact or [name for name in GPUS if name.partition("-")[0] in text]
    return []


_DRIVER = Path("/proc/driver/nvidia/gpus")
