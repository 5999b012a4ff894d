"""What works on this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rlhf_loop.files.paths import cache_folder
from rlhf_loop.machine import native_dtype

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
_EXTRAS = {
    "postgres": "psycopg",
    "server": "fastapi",
    "endpoints": "openai",
    "vllm": "vllm",
    "deepspeed": "deepspeed",
    "qlora": "bitsandbytes",
}


def examine(folder: Path | None = None) -> list[dict[str, Any]]:
    """One finding a line: `{name, state: works | lacks | fails, value, remedy}`. Starts a process to look at torch."""
    return [
        _python(),
        *(_package(name) for name in _PACKAGES),
        _memory(),
        _precision(),
        _disk(folder or Path.cwd()),
        _accelerators(),
        _models(),
        *(_extra(extra, module) for extra, module in _EXTRAS.items()),
    ]


def render(findings: list[dict[str, Any]]) -> str:
    """The findings as lines."""
    lines = []
    for finding in findings:
        remedy = f"  ({finding['remedy']})" if finding.get("remedy") else ""
        lines.append(f"{finding['state']:<6} {finding['name']:<14} {finding['value']}{remedy}")
    return "\n".join(lines)


def _finding(name: str, state: str, value: str, remedy: str = "") -> dict[str, Any]:
    return {"name": name, "state": state, "value": value, "remedy": remedy}


def _python() -> dict[str, Any]:
    works = sys.version_info >= (3, 11)
    return _finding(
        "python",
        "works" if works else "fails",
        platform.python_version(),
        "" if works else "install Python 3.11 or newer",
    )


def _package(name: str) -> dict[str, Any]:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return _finding(name, "fails", "not installed", "pip install rlhf-loop")
    if name == "trl" and not version.startswith("1.16."):
        return _finding(name, "fails", version, 'tested with 1.16 only: pip install "trl>=1.16,<1.17"')
    return _finding(name, "works", version)


def _memory() -> dict[str, Any]:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        return _finding("memory", "lacks", "unknown")
    enough = total >= 6
    return _finding(
        "memory",
        "works" if enough else "lacks",
        f"{total:.0f} GiB, {os.cpu_count()} cores",
        "" if enough else "the quickstart needs up to 6 GiB",
    )


def _precision() -> dict[str, Any]:
    dtype = native_dtype()
    more = "" if dtype == "bfloat16" else "this CPU is slow in bfloat16; `policy.dtype: auto` does without it"
    return _finding("precision", "works", dtype, more)


def _disk(folder: Path) -> dict[str, Any]:
    free = shutil.disk_usage(folder).free / 2**30
    enough = free >= 5
    return _finding(
        "disk",
        "works" if enough else "lacks",
        f"{free:.0f} GiB free",
        "" if enough else "runs keep weights; use --run-dir",
    )


def _accelerators() -> dict[str, Any]:
    code = (
        "import torch; a = torch.accelerator; "
        "print(str(a.device_count()) + ' ' + str(a.current_accelerator()) if a.is_available() else '')"
    )
    # Counted by the driver: to start CUDA takes seconds, and so does asking it for names.
    environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    try:
        process = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
        )
    except subprocess.TimeoutExpired:
        return _finding("accelerator", "fails", "torch does not answer", "check the driver: nvidia-smi")
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        return _finding("accelerator", "fails", f"torch does not start: {last}", "install torch again")
    found = process.stdout.strip()
    if not found:
        return _finding("accelerator", "lacks", "none", "small models train on CPU; the quickstart does")
    names = [_line(path, "Model:") for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    return _finding("accelerator", "works", f"{found} ({', '.join(names)})" if names else found)


def _line(path: Path, key: str) -> str:
    """What stands behind `key` in a file of the driver."""
    lines = path.read_text(errors="replace").splitlines()
    return next((line.removeprefix(key).strip() for line in lines if line.startswith(key)), "unknown")


def _models() -> dict[str, Any]:
    cache = cache_folder()
    place = cache if cache.exists() else cache.parent if cache.parent.exists() else Path.home()
    if not os.access(place, os.W_OK):
        return _finding(
            "model cache", "fails", f"{cache} cannot be written", "set RLHF_LOOP_CACHE to a folder of yours"
        )
    return _finding("model cache", "works", str(cache))


def _extra(extra: str, module: str) -> dict[str, Any]:
    found = importlib.util.find_spec(module) is not None
    return _finding(
        extra,
        "works" if found else "lacks",
        "installed" if found else "not installed",
        "" if found else f'pip install "rlhf-loop[{extra}]"',
    )
