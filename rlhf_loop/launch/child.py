"""Stages in processes of their own: memory is really freed between them, and each may have its own Accelerate config.

Inside a Slurm allocation of several nodes `srun` starts one `accelerate launch` a node.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path

from rlhf_loop.errors import UserError
from rlhf_loop.launch import Progress
from rlhf_loop.run_dir import PROGRESS


class Child:
    """Starts `accelerate launch ... -m rlhf_loop.stages ARGUMENTS` for each stage."""

    def __init__(self, accelerate_config: Path | None = None):
        self.accelerate_config = accelerate_config

    def run(self, arguments_file: Path, progress: Progress) -> None:
        """Waits for the child; its last lines are in the error when it fails."""
        process = subprocess.Popen(
            self.command(arguments_file),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        last: deque[str] = deque(maxlen=30)
        try:
            for line in process.stdout:
                if line.startswith(PROGRESS):
                    progress(*json.loads(line.removeprefix(PROGRESS)))
                else:
                    last.append(line)
            code = process.wait()
        except BaseException:  # Ctrl-C and kills: the child and its ranks must not outlive us
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        if code != 0:
            errors = [line.removeprefix("error: ").strip() for line in last if line.startswith("error: ")]
            if errors:
                raise UserError(errors[-1])
            raise RuntimeError(f"the stage ended with exit code {code}. Its last lines:\n{''.join(last)}")

    def command(self, arguments_file: Path) -> list[str]:
        """The command line of a stage."""
        config = ["--config_file", str(self.accelerate_config)] if self.accelerate_config else []
        accelerate = [sys.executable, "-m", "accelerate.commands.launch", *config]
        stage = ["-m", "rlhf_loop.stages", str(arguments_file)]
        nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
        if nodes == 1:
            return [*accelerate, *stage]
        line = " ".join(
            [
                *accelerate,
                f"--num_machines {nodes}",
                "--machine_rank $SLURM_NODEID",
                "--main_process_ip $(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)",
                "--main_process_port ${MASTER_PORT:-29500}",
                *stage,
            ]
        )
        return ["srun", f"--nodes={nodes}", "--ntasks-per-node=1", "bash", "-c", line]

    def close(self) -> None:
        """Nothing waits."""
