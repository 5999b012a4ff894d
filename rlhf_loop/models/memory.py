"""This process's memory and threads."""

from __future__ import annotations

import ctypes
import gc
import os
import sys

import torch

from rlhf_loop.machine import cpu_quota, memory_limit


def device() -> torch.device:
    """This process's accelerator, or the CPU."""
    from accelerate import PartialState

    if torch.accelerator.is_available():
        return torch.device(PartialState().device)
    return torch.device("cpu")


def device_memory() -> int | None:
    """Bytes of this process's accelerator; on a CPU its part of the machine's (or container's) memory; None where
    nobody can tell."""
    if torch.accelerator.is_available():
        return int(torch.accelerator.get_memory_info(device())[1])
    limit = memory_limit()
    return None if limit is None else limit // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def tune_cpu_memory() -> bool:
    """Lets glibc keep the memory it was given instead of returning it after each step; False where there is no glibc.

    Returned memory has to be cleared by the kernel when it is asked for again, page by page; in CPU training that
    is every activation of every step.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, top_pad, mmap_threshold, mmap_max = -1, -2, -3, -4
    done = mallopt(trim_threshold, 2**31 - 1) and mallopt(top_pad, 2**28)
    return bool(done and mallopt(mmap_threshold, 2**25) and mallopt(mmap_max, 0))


def fit_threads() -> None:
    """No more threads than a container's limit on CPU time keeps busy; torch counts the cores that there are, which
    is right without one. `OMP_NUM_THREADS` has the last word."""
    quota = cpu_quota()
    if "OMP_NUM_THREADS" not in os.environ and quota is not None and quota < torch.get_num_threads():
        torch.set_num_threads(quota)


def release_memory() -> None:
    """Gives back what nothing uses any more, to the accelerator's driver and (glibc) to the kernel.

    Between stages of one process; within training it is kept on purpose (`tune_cpu_memory`).
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform.startswith("linux") and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
