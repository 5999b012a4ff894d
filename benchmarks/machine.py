"""What a figure was measured on, and how a command is measured."""

from __future__ import annotations

import os
import platform
import resource
import socket
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rlhf_loop.machine import cpu_flags


def describe() -> dict[str, object]:
    """Cores, CPU, memory, accelerator and versions of this machine."""
    import torch

    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "")
    return {
        "cores": os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),  # None: as many as cores
        "cpu": model or platform.processor(),
        "cpu_flags": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in cpu_flags()],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("rlhf-loop", "torch", "transformers", "trl", "peft")},
    }


def run_measured(command: Sequence[str], environment: dict[str, str] | None = None) -> tuple[float, float]:
    """Seconds and peak resident memory in GiB of a command, its output shown; a failure ends the benchmark."""
    started = time.perf_counter()
    process = subprocess.Popen(list(command), env={**os.environ, **(environment or {})})
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status != 0:
        raise SystemExit(f"ended with status {status}: {' '.join(command)}")
    return seconds, usage.ru_maxrss / 2**20 if platform.system() == "Linux" else usage.ru_maxrss / 2**30


def peak_memory() -> float:
    """Peak resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if platform.system() == "Linux" else 2**30)


def memory(name: str) -> int:
    """Bytes of this process, by a name in /proc/self/status: VmRSS now, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
