"""What the jobs of a Kubernetes cluster ask for: a file that `rlhf-loop submit --kubernetes` and `launch: kubernetes`
read.

`recipes/cluster/kubernetes/profile.yaml` is an example of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from rlhf_loop.cluster.per_stage import PerStage
from rlhf_loop.cluster.profile_file import Text, Variable, read
from rlhf_loop.errors import UserError
from rlhf_loop.settings import Settings

EXAMPLE = "recipes/cluster/kubernetes/profile.yaml"


def _name(text: str) -> str:
    if len(text) > 63 or not re.fullmatch("[a-z0-9]([a-z0-9-]*[a-z0-9])?", text):
        raise ValueError(f"{text!r} is no name in Kubernetes: up to 63 of the letters a to z, digits and - within")
    return text


def _memory(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?([kMGT]|[KMGT]i)", text):
        raise ValueError(f"memory: {text!r} is no amount of memory; write it as in 480Gi")
    return text


def _absolute(text: str) -> str:
    if not re.fullmatch(r"/[^\s:]+", text) or text.endswith("/") or "/../" in f"{text}/":
        raise ValueError(f"{text!r} is no folder of a container; write it from / on, as in /rlhf")
    return text


Name = Annotated[str, AfterValidator(_name)]
Memory = Annotated[str, AfterValidator(_memory)]
Folder = Annotated[str, AfterValidator(_absolute)]


class SecretKey(Settings):
    """A value of the environment that stands in a Secret of the namespace, and nowhere else."""

    secret: str  # its name
    key: str  # in it


class Toleration(Settings):
    """Taints of nodes that pods do not mind."""

    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Volume(Settings):
    """Where runs, recipes and data lie: a PersistentVolumeClaim that many nodes may write to (ReadWriteMany)."""

    claim: Name
    mount: Folder = "/rlhf"


class StageResources(Settings):
    """What one stage asks for in place of what the profile says; None: as it says."""

    nodes: int | None = Field(None, ge=1)
    gpus_per_node: int | None = Field(None, ge=0)
    cpus: int | None = Field(None, ge=1)
    memory: Memory | None = None
    node_selector: dict[str, Text] | None = None
    tolerations: list[Toleration] | None = None
    queue: Name | None = None


class Steering(Settings):
    """The pod that steers a run: no accelerator."""

    cpus: int = Field(1, ge=1)
    memory: Memory = "4Gi"
    node_selector: dict[str, Text] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    queue: Name | None = None


class KubernetesProfile(Settings):
    """A cluster, as its users know it."""

    image: str = Field(min_length=1)  # with rlhf-loop, bash and kubectl in it
    image_pull_secrets: list[Name] = Field(default_factory=list)
    namespace: Name | None = None  # None: kubectl's
    service_account: Name = "rlhf-loop"  # of the pod that steers, which makes TrainJobs
    runtime: Name = "rlhf-loop"  # a ClusterTrainingRuntime
    volume: Volume
    workdir: Folder | None = None  # what the folder is called there from which runs are submitted; None: the mount
    queue: Name | None = None  # of Kueue, for TrainJobs; None: no queue
    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(1, ge=0)
    gpu: str = "nvidia.com/gpu"  # the resource's name
    cpus: int = Field(8, ge=1)  # of a node
    memory: Memory = "64Gi"  # of a node
    node_selector: dict[str, Text] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    env: dict[Variable, Text] = Field(default_factory=dict)
    secrets: dict[Variable, SecretKey] = Field(default_factory=dict)
    steering: Steering = Field(default_factory=Steering)
    stages: PerStage[StageResources] = Field(default_factory=PerStage[StageResources])

    @property
    def accelerated(self) -> bool:
        """Whether its nodes have accelerators."""
        return self.gpus_per_node > 0

    @property
    def folder(self) -> str:
        """Where pods stand."""
        return self.workdir or self.volume.mount

    def of(self, stage: str) -> KubernetesProfile:
        """The profile as a stage has it."""
        own: StageResources | None = getattr(self.stages, stage)
        changed = {} if own is None else {name: getattr(own, name) for name in own.model_dump(exclude_none=True)}
        return self.model_copy(update=changed)


def read_profile(file: Path | None, overrides: Iterable[str] = ()) -> KubernetesProfile:
    """See `profile_file.read`; raises `UserError` where there is no file too: nobody can guess an image and a
    volume."""
    if file is None:
        raise UserError(f"Kubernetes needs a profile, which names an image and a volume: --profile FILE, as {EXAMPLE}")
    return read(KubernetesProfile, file, overrides, EXAMPLE)
