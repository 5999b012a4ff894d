"""Stages in processes of their own: memory is really freed between them, and each may have its own Accelerate config.

Inside a Slurm allocation of several nodes `srun` starts `launch/node.py` on each.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub.constants import HF_HOME

from rlhf_loop import processes
from rlhf_loop.cluster import slurm_commands
from rlhf_loop.errors import UserError
from rlhf_loop.files import read_json
from rlhf_loop.launch.heard import Heard
from rlhf_loop.launch.launcher import refuse_while_a_job_makes
from rlhf_loop.machine import visible_accelerators
from rlhf_loop.progress import Progress
from rlhf_loop.recipe.launching import StageLaunch, StageName, launch_of


class Child:
    """Starts `accelerate launch ... -m rlhf_loop.stages ARGUMENTS` for each stage; without it where one process is to
    be started and nothing says how: it would import torch once more, and on a CPU leave the stage a single thread."""

    def __init__(
        self, accelerate_config: Path | None = None, stages: Mapping[StageName, StageLaunch] | None = None
    ) -> None:
        """`stages`: how those are started that are not started as all are. Raises `UserError` for more devices than
        this machine shows."""
        self.accelerate_config = accelerate_config
        self.stages = stages or {}
        visible = visible_accelerators()
        for name, stage in self.stages.items():
            if stage.devices is not None and stage.devices > visible:
                raise UserError(
                    f"stages.{name}.devices is {stage.devices}, and this machine shows {visible} accelerators"
                )

    def run(self, arguments_file: Path, progress: Progress) -> None:
        """Waits for the child; its last lines are in the error when it fails. Raises `UserError` for what it says to
        users, and where something killed it."""
        refuse_while_a_job_makes(arguments_file)
        heard, stage = Heard(progress), self._stage(arguments_file)
        environment = {**_devices(stage.devices), **(_of_nodes(stage) if _nodes() > 1 else {})}
        code = processes.run(self.command(arguments_file), heard, environment=environment)
        if code < 0 and heard.last.error is None:
            said = f". The last it said: {heard.last.last}" if heard.last.last else ""
            raise UserError(
                f"the stage's process {processes.how_ended(code)}. Type the same command again to go on{said}"
            )
        if code != 0:
            raise heard.fail(f"the stage {processes.how_ended(code)}")

    def command(self, arguments_file: Path) -> list[str]:
        """The command line of a stage."""
        started, nodes = self._stage(arguments_file), _nodes()
        stage = ["-m", "rlhf_loop.stages", str(arguments_file)]
        if nodes > 1:
            fewer = [] if started.devices is None else ["env", f"SLURM_GPUS_ON_NODE={started.devices}"]
            return [
                "srun", f"--nodes={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1", *fewer,
                sys.executable, "-m", "rlhf_loop.launch.node", "slurm", *stage[1:],
            ]  # fmt: skip
        if _alone(started):
            return [sys.executable, *stage]
        config = ["--config_file", str(started.accelerate_config)] if started.accelerate_config else []
        number = [] if started.devices is None else ["--num_processes", str(started.devices)]  # a config's is of all
        return [sys.executable, "-m", "accelerate.commands.launch", *config, *number, *stage]

    def _stage(self, arguments_file: Path) -> StageLaunch:
        """How the stage with these arguments is started."""
        name = read_json(arguments_file)["stage"] if self.stages else ""
        return launch_of(name, self.stages, self.accelerate_config)

    def close(self) -> None:
        """Nothing waits."""


def _alone(started: StageLaunch) -> bool:
    """Whether there is nothing to launch: one process, and neither a config of ours nor one that `accelerate config`
    has kept."""
    if started.accelerate_config is not None or (Path(HF_HOME) / "accelerate" / "default_config.yaml").exists():
        return False
    return (started.devices or visible_accelerators()) <= 1


def _devices(number: int | None) -> dict[str, str]:
    """What shows a process the first `number` of the accelerators that this one sees; None: all of them."""
    if number is None:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = [str(n) for n in range(number)] if visible is None else visible.split(",")[:number]
    return {"CUDA_VISIBLE_DEVICES": ",".join(ids)}


def _nodes() -> int:
    """Of the Slurm allocation in which this process is; else one."""
    return int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))


def _of_nodes(started: StageLaunch) -> dict[str, str]:
    """What `launch/node.py` reads on each node, and where it finds the programs that it becomes."""
    config = started.accelerate_config
    return {
        "MASTER_ADDR": slurm_commands.hosts(os.environ["SLURM_JOB_NODELIST"])[0],
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        **({} if config is None else {"RLHF_LOOP_ACCELERATE_CONFIG": str(config)}),
    }
