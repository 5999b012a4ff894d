"""Stages on ranks that were launched together: `accelerate launch -m rlhf_loop run ...` or `torchrun ...`.

Rank 0 runs the loop. The others wait on a TCP store for the next stage (a collective would time out while people
think or files are copied) and take part in it. An exception in one ends its process, and the launcher ends the rest.
"""

from __future__ import annotations

import json
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

from rlhf_loop.launch.launcher import refuse_while_a_job_makes
from rlhf_loop.models import distributed
from rlhf_loop.progress import Progress

_FOREVER = timedelta(days=30)


class Ranks:
    """Rank 0's side: says which stage is next."""

    def __init__(self) -> None:
        self.store = _store()
        self.sent = 0

    def run(self, arguments_file: Path, progress: Progress) -> None:
        """Tells the other ranks, then takes part."""
        refuse_while_a_job_makes(arguments_file)
        from rlhf_loop.stages import run_stage

        self._send({"arguments": str(arguments_file)})
        run_stage(arguments_file, progress)

    def close(self) -> None:
        """Lets the other ranks go."""
        self._send({"done": True})
        distributed.barrier()

    def _send(self, command: dict[str, object]) -> None:
        self.store.set(f"command/{self.sent}", json.dumps(command))
        self.sent += 1


def follow() -> None:
    """What every rank but 0 does: takes part in stage after stage until rank 0 is done."""
    from rlhf_loop.stages import run_stage

    store = _store()
    number = 0
    while True:
        store.wait([f"command/{number}"], _FOREVER)
        command = json.loads(store.get(f"command/{number}"))
        number += 1
        if "done" in command:
            distributed.barrier()
            return
        run_stage(Path(command["arguments"]))


def _store() -> Any:
    """A TCP store of our own, at a free port that rank 0 tells the others."""
    import torch.distributed as dist

    distributed.start()
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    main = distributed.is_main()
    if main:
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        store = dist.TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=_FOREVER)
    told = [port if main else None]
    dist.broadcast_object_list(told, src=0)
    return store if main else dist.TCPStore(host, told[0], is_master=False, timeout=_FOREVER)
