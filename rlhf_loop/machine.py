"""What this machine has, asked without importing torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

Dtype = Literal["float32", "bfloat16", "float16"]
GROUPED = "grouped"
"""Attention for CPUs (`rlhf_loop/models/attention.py`), as recipes and a model's config name it."""

_BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # of x86-64, and of Arm
_CPU = Path("/proc/cpuinfo")
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def visible_accelerators() -> int:
    """How many accelerators this machine shows."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len([name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()])


def native_dtype(accelerated: bool | None = None) -> Dtype:
    """bfloat16 on an accelerator and on a CPU that multiplies in it; else float32, where products in bfloat16 take
    several times as long. `accelerated`: whether there are accelerators (None: whether this machine shows some)."""
    accelerated = bool(visible_accelerators()) if accelerated is None else accelerated
    return "bfloat16" if accelerated or cpu_flags() & _BFLOAT16_FLAGS else "float32"


def native_attention(accelerated: bool | None = None) -> str | None:
    """Ours on a CPU; elsewhere None, which leaves the choice to transformers."""
    accelerated = bool(visible_accelerators()) if accelerated is None else accelerated
    return None if accelerated else GROUPED


def cpu_flags() -> set[str]:
    """What the first core can do, as Linux names it; nothing where it does not say."""
    try:
        lines = _CPU.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return set(next((line.split(":", 1)[1] for line in lines if line.startswith(("flags", "Features"))), "").split())


def cpu_quota() -> int | None:
    """How many CPUs' time a container's limit leaves this process, whole ones, at least one; None without a limit.

    It is set beside the CPUs that the process may run on, and libraries that count those know nothing of it
    (`docker run --cpus 2` on 64 cores: 64 threads in the time of two). cgroups of both versions.
    """
    limits = [quota / period for quota, period in _quotas() if quota > 0 and period > 0]
    return max(1, int(min(limits))) if limits else None


def memory_limit() -> int | None:
    """Bytes of memory that this process may have: the machine's, or what a container leaves of it (cgroups of both
    versions); None where nobody can tell."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    limits = [int(text) for text in _limits("memory", "memory.max", "memory.limit_in_bytes") if text.isdigit()]
    return min([machine, *(limit for limit in limits if limit > 0)])


def _limits(controller: str, second: str, first: str) -> Iterator[str]:
    """What the files of a limit say, of the process's group and of those that it lies in: `second` of cgroups of
    version 2, `first` of version 1."""
    for place, controllers in _groups(controller):
        with suppress(OSError):  # no limit there
            yield (place / (first if controllers else second)).read_text().strip()


def _groups(controller: str) -> Iterator[tuple[Path, str]]:
    """Folders of the process's group and of those that it lies in, and the controllers of the first version that they
    are of (none of the second)."""
    try:
        lines = _CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        places = [Path(group.lstrip("/")), *Path(group.lstrip("/")).parents]
        root = _CGROUPS / controllers if controllers else _CGROUPS
        for place in dict.fromkeys(root / inner for inner in places):
            yield place, controllers


def _quotas() -> Iterator[tuple[int, int]]:
    """Microseconds of CPU time in how many, of the process's group and of those that it lies in."""
    for place, controllers in _groups("cpu"):
        with suppress(OSError, ValueError):  # "max" where there is none
            if controllers:
                quota, period = (place / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
                yield int(quota.read_text()), int(period.read_text())
            else:
                given, of = (place / "cpu.max").read_text().split()
                yield int(given), int(of)


def network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """The type of the network file system that holds `path`, or None where the disk is local or nobody can tell.

    `mounts`: the text of /proc/mounts.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
    real = Path(os.path.realpath(path))
    found, kind = Path(), ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        mount = Path(fields[1].replace("\\040", " "))
        if real.is_relative_to(mount) and len(mount.parts) >= len(found.parts):
            found, kind = mount, fields[2]
    return kind if kind in NETWORK_FILE_SYSTEMS else None


NETWORK_FILE_SYSTEMS = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "glusterfs",
    "9p",
    "afs",
    "pvfs2",
    "orangefs",
    "ocfs2",
    "gfs2",
    "fuse.sshfs",
    "fuse.glusterfs",
    "fuse.ceph-fuse",
    "fuse.s3fs",
    "fuse.gcsfuse",
    "fuse.rclone",
    "fuse.juicefs",
}
"""Where SQLite's write-ahead log is unsafe: it needs memory shared among all users of the file."""
