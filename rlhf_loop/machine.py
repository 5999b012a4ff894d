"""What this machine has, asked without importing torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Dtype = Literal["float32", "bfloat16", "float16"]

_BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # of x86-64, and of Arm
_CPU = Path("/proc/cpuinfo")


def visible_accelerators() -> int:
    """How many accelerators this machine shows."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len([name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()])


def native_dtype() -> Dtype:
    """bfloat16 on an accelerator and on a CPU that multiplies in it; else float32, where products in bfloat16 take
    several times as long."""
    return "bfloat16" if visible_accelerators() or cpu_flags() & _BFLOAT16_FLAGS else "float32"


def cpu_flags() -> set[str]:
    """What the first core can do, as Linux names it; nothing where it does not say."""
    try:
        lines = _CPU.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return set(next((line.split(":", 1)[1] for line in lines if line.startswith(("flags", "Features"))), "").split())
