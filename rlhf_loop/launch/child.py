"""Stages in processes of their own: memory is really freed between them, and each may have its own Accelerate config.

Inside a Slurm allocation of several nodes `srun` starts one `accelerate launch` a node.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from rlhf_loop import processes
from rlhf_loop.launch.heard import Heard
from rlhf_loop.launch.launcher import refuse_while_a_job_makes
from rlhf_loop.progress import Progress


class Child:
    """Starts `accelerate launch ... -m rlhf_loop.stages ARGUMENTS` for each stage."""

    def __init__(self, accelerate_config: Path | None = None):
        self.accelerate_config = accelerate_config

    def run(self, arguments_file: Path, progress: Progress) -> None:
        """Waits for the child; its last lines are in the error when it fails."""
        refuse_while_a_job_makes(arguments_file)
        heard = Heard(progress)
        code = processes.run(self.command(arguments_file), heard)
        if code != 0:
            raise heard.fail(f"the stage ended with exit code {code}")

    def command(self, arguments_file: Path) -> list[str]:
        """The command line of a stage."""
        config = ["--config_file", str(self.accelerate_config)] if self.accelerate_config else []
        accelerate = [sys.executable, "-m", "accelerate.commands.launch", *config]
        stage = ["-m", "rlhf_loop.stages", str(arguments_file)]
        nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
        if nodes == 1:
            return [*accelerate, *stage]
        gpus = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
        if gpus and self.accelerate_config is None:  # Accelerate would share one node's number among all nodes
            accelerate += ["--multi_gpu", "--num_processes", str(nodes * gpus)]
        line = " ".join(
            [
                shlex.join(accelerate),
                f"--num_machines {nodes}",
                "--machine_rank $SLURM_NODEID",
                "--main_process_ip $(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)",
                "--main_process_port ${MASTER_PORT:-29500}",
                shlex.join(stage),
            ]
        )
        return ["srun", f"--nodes={nodes}", "--ntasks-per-node=1", "bash", "-c", line]

    def close(self) -> None:
        """Nothing waits."""
