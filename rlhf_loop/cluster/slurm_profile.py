"""What the jobs of a Slurm cluster ask for: a file that `rlhf-loop submit` and `launch: slurm` read.

`recipes/cluster/profile.yaml` is an example of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from rlhf_loop.cluster.per_stage import PerStage
from rlhf_loop.cluster.profile_file import Text, Variable, read
from rlhf_loop.settings import Settings


def _one_word(text: str) -> str:
    if not text or re.search(r"[\s#\"']", text):
        raise ValueError(f"{text!r} would not stay one word of an #SBATCH line; take spaces, quotes and # out")
    return text


def _one_line(text: str) -> str:
    if not text.startswith("-") or "\n" in text:
        raise ValueError(f"{text!r} is no option of sbatch; write one a line, such as --exclude=n17")
    if re.match(_OURS, text):
        raise ValueError(f"{text!r} is said by rlhf-loop, which finds its jobs and their logs by it; leave it out")
    return text


_OURS = r"--(job-name|output|array|chdir|dependency|parsable)\b|-[JoaDd]"
"""Options that each job has already."""


def _memory(text: str) -> str:
    if not re.fullmatch(r"\d+[KMGT]?", text):
        raise ValueError(f"mem: {text!r} is no amount of memory; write it as in 480G, or 0 for all of a node")
    return text


def _duration(text: str) -> str:
    if not re.fullmatch(r"\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2}", text):
        raise ValueError(
            f"time: {text!r} is no time limit; write hours:minutes:seconds, as in 08:00:00, or days-hours, as in 2-00"
        )
    return text


def _gpus(value: int | str) -> int | str:
    if not re.fullmatch(r"([\w.-]+:)?\d+", str(value)):
        raise ValueError(f"gpus_per_node: {value!r} is neither a number nor a kind and a number, as in a100:8")
    return value


Word = Annotated[str, AfterValidator(_one_word)]
Line = Annotated[str, AfterValidator(_one_line)]
Memory = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_memory)]
Duration = Annotated[str, AfterValidator(_duration)]
Gpus = Annotated[int | str, AfterValidator(_gpus)]


class StageResources(Settings):
    """What one stage asks for in place of what the profile says; None: as it says."""

    partition: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    nodes: int | None = Field(None, ge=1)
    gpus_per_node: Gpus | None = None  # 8, or a kind and a number: a100:8
    cpus_per_task: int | None = Field(None, ge=1)  # of a node: one launcher runs on each
    mem: Memory | None = None  # of a node, such as 480G
    time: Duration | None = None
    sbatch: list[Line] | None = None  # further options


class Steering(Settings):
    """The job that steers a run whose stages are jobs of their own: one node, no accelerator. Account, partition and
    qos are the profile's where none is given."""

    partition: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    cpus_per_task: int = Field(1, ge=1)
    mem: Memory = "4G"
    time: Duration = "24:00:00"
    sbatch: list[Line] = Field(default_factory=list)


class Profile(Settings):
    """A cluster, as its users know it. What is left out is Slurm's default."""

    account: Word | None = None
    partition: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    nodes: int = Field(1, ge=1)
    gpus_per_node: Gpus = 1  # or a kind and a number: a100:8
    cpus_per_task: int = Field(8, ge=1)  # of a node: one launcher runs on each
    mem: Memory | None = None  # of a node, such as 480G; 0: all of it
    time: Duration = "08:00:00"
    sbatch: list[Line] = Field(default_factory=list)  # further options, such as --exclude=n17
    setup: list[str] = Field(default_factory=list)  # lines of bash that run first in each job
    container: str | None = None  # words before the command on each node, such as `apptainer exec --nv rlhf.sif`
    env: dict[Variable, Text] = Field(default_factory=dict)
    steering: Steering = Field(default_factory=Steering)
    stages: PerStage[StageResources] = Field(default_factory=PerStage[StageResources])

    @property
    def accelerated(self) -> bool:
        """Whether its nodes have accelerators."""
        return gpu_count(self.gpus_per_node) > 0

    def options(self, stage: str | None = None) -> list[str]:
        """The options of sbatch for all of a run, or for a stage."""
        values = self.model_dump(exclude={"steering", "stages", "setup", "container", "env"})
        own: StageResources | None = getattr(self.stages, stage) if stage else None
        values |= {} if own is None else own.model_dump(exclude_none=True)
        return _options({**values, "ntasks_per_node": 1})

    def steering_options(self) -> list[str]:
        """The options of sbatch for the job that steers."""
        above = self.model_dump(include={"account", "partition", "qos"})
        return _options(above | self.steering.model_dump(exclude_none=True) | {"nodes": 1, "ntasks_per_node": 1})


def gpu_count(gpus_per_node: int | str) -> int:
    """8 for 8 and for a100:8."""
    return int(str(gpus_per_node).rpartition(":")[2])


def read_profile(file: Path | None, overrides: Iterable[str] = ()) -> Profile:
    """See `profile_file.read`."""
    return read(Profile, file, overrides, "recipes/cluster/profile.yaml")


def _options(values: dict[str, Any]) -> list[str]:
    further = values.pop("sbatch")
    if not gpu_count(values.get("gpus_per_node", 0)):  # a cluster without GPUs knows no such option
        values.pop("gpus_per_node", None)
    named = [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]
    return [*named, *further]
