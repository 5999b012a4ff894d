"""One launcher on each node of an allocation: `python -m rlhf_loop.launch.node PLATFORM MODULE [WORDS]`.

The scripts in `recipes/cluster/` start it; it becomes `accelerate launch`, or `torchrun` where nodes have no
accelerators, told with the platform's variables how many others there are and where. `RLHF_LOOP_ACCELERATE_CONFIG`
names a config of Accelerate.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Variables:
    """Names of the variables in which a platform says what a node is told."""

    nodes: str
    rank: str  # of this one
    gpus: str  # of each
    main: str  # the address of the first node, or of all, the first one first
    port: str


PLATFORMS = {
    "slurm": Variables(
        nodes="SLURM_NNODES", rank="SLURM_NODEID", gpus="SLURM_GPUS_ON_NODE", main="MASTER_ADDR", port="MASTER_PORT"
    ),
    "kubernetes": Variables(
        nodes="PET_NNODES", rank="PET_NODE_RANK", gpus="RLHF_LOOP_GPUS", main="PET_MASTER_ADDR", port="PET_MASTER_PORT"
    ),
    "skypilot": Variables(
        nodes="SKYPILOT_NUM_NODES",
        rank="SKYPILOT_NODE_RANK",
        gpus="SKYPILOT_NUM_GPUS_PER_NODE",
        main="SKYPILOT_NODE_IPS",
        port="MASTER_PORT",
    ),
}


def command(platform: str, module: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """What is started on this node. `module`: what follows `-m`."""
    names = PLATFORMS[platform]
    nodes, rank = environment[names.nodes], environment[names.rank]
    gpus = int(environment.get(names.gpus) or 0)
    main, port = environment[names.main].split()[0], environment.get(names.port) or "29500"
    if not gpus:
        return [
            "torchrun", "--nnodes", nodes, "--node_rank", rank, "--nproc_per_node", "1",
            "--master_addr", main, "--master_port", port, "-m", *module,
        ]  # fmt: skip
    processes = int(nodes) * gpus
    if config := environment.get("RLHF_LOOP_ACCELERATE_CONFIG"):
        share = ["--config_file", config]
    elif processes == 1:
        share = ["--mixed_precision", "bf16"]  # Accelerate refuses --multi_gpu with one
    else:
        share = ["--multi_gpu", "--mixed_precision", "bf16"]
    return [
        "accelerate", "launch", *share, "--num_machines", nodes, "--machine_rank", rank,
        "--num_processes", str(processes), "--main_process_ip", main, "--main_process_port", port, "-m", *module,
    ]  # fmt: skip


if __name__ == "__main__":
    started = command(sys.argv[1], sys.argv[2:], os.environ)
    os.execvp(started[0], started)
