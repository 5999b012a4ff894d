"""What a run asks SkyPilot for: a file that `rlhf-loop submit --skypilot` reads.

`recipes/cluster/skypilot/profile.yaml` is an example of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from rlhf_loop.cluster.kubernetes_profile import Folder
from rlhf_loop.cluster.profile_file import Text, Variable, read
from rlhf_loop.errors import UserError
from rlhf_loop.files.shipped import FOLDERS
from rlhf_loop.settings import Settings

EXAMPLE = "recipes/cluster/skypilot/profile.yaml"

_SAID_AS = {
    "accelerators": "accelerators", "infra": "infra", "cloud": "infra", "region": "infra", "zone": "infra",
    "cpus": "cpus", "memory": "memory", "disk_size": "disk", "image_id": "image", "use_spot": "spot",
    "autostop": "idle_minutes",
}  # fmt: skip
"""Keys of SkyPilot's `resources` -> those of a profile that stand for them."""


def _accelerator(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][\w.-]*(:[1-9]\d*)?", text):
        raise ValueError(
            f"accelerators: {text!r} is no kind and number of accelerators of a node; write it as in H100:8"
        )
    return text


def _amount(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?\+?", text):
        raise ValueError(f"{text!r} is no number of CPUs or GB; write it as in 32, or 32+ for at least that many")
    return text


def _within(text: str) -> str:
    path = PurePosixPath(text)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"files: {text!r} names nothing within the folder of the project; write it as in recipes")
    return str(path)


def _elsewhere(url: str) -> str:
    if "://" not in url:
        raise ValueError(
            f"copies: {url!r} is a folder on the node's own disk, which is gone with it; give a URL, such as "
            "s3://my-bucket/rlhf-loop"
        )
    return url


Accelerator = Annotated[str, AfterValidator(_accelerator)]
Amount = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_amount)]
Elsewhere = Annotated[str, AfterValidator(_elsewhere)]
Within = Annotated[str, AfterValidator(_within)]


class Volume(Settings):
    """A SkyPilot volume (`sky volumes apply`) that all nodes may write to."""

    name: str = Field(min_length=1)
    mount: Folder = "/rlhf"


class SkyPilotProfile(Settings):
    """What one allocation for a whole run has. What is left out is SkyPilot's default."""

    accelerators: Accelerator | list[Accelerator] | None = None  # of a node: H100:8; a list: the first to be had
    nodes: int = Field(1, ge=1)
    infra: str | None = None  # k8s/my-context, aws/us-east-1; None: the cheapest that SkyPilot finds
    cpus: Amount | None = None  # of a node
    memory: Amount | None = None  # of a node, in GB
    disk: int | None = Field(None, ge=1)  # of a node, in GB
    image: str | None = None  # SkyPilot's image_id, such as docker:registry.example/rlhf-loop:0.1.0
    spot: bool = False
    resources: dict[str, Any] = Field(default_factory=dict)  # further keys of SkyPilot's `resources`
    managed: bool = True  # a managed job, which recovers; else a plain cluster
    idle_minutes: int = Field(5, ge=0)  # after which a plain cluster stops
    volume: Volume | None = None  # where the run lies: here,
    folder: Folder | None = None  # or in a folder that `setup` mounts on all nodes,
    copies: Elsewhere | None = None  # or on the node's disk, with its whole rounds at URL/RUN
    files: list[Within] = Field(default_factory=lambda: list(FOLDERS), min_length=1)  # that nodes get
    setup: list[str] = Field(default_factory=list)  # lines of bash, once on each new node
    activate: list[str] = Field(default_factory=list)  # lines of bash before the run, on each node
    env: dict[Variable, Text] = Field(default_factory=dict)
    secrets: list[Variable] = Field(default_factory=list)  # variables whose values SkyPilot is told when one submits

    @property
    def shared(self) -> str | None:
        """A folder that all nodes see and that outlives them; None: there is none."""
        return self.volume.mount if self.volume else self.folder

    @model_validator(mode="after")
    def _its_place_outlives_its_nodes(self) -> SkyPilotProfile:
        places = [name for name in ("volume", "folder", "copies") if getattr(self, name) is not None]
        if len(places) > 1:
            raise ValueError(f"`{places[0]}` and `{places[1]}` both say where the run lies: leave one out")
        if self.managed and not places:
            raise ValueError(
                "the disk of a managed job is gone with it: say with `volume`, `folder` or `copies` where the run "
                "lies, or `managed: false` for a plain cluster, which keeps its disk"
            )
        if self.nodes > 1 and self.shared is None:
            raise ValueError(f"nodes: {self.nodes} nodes need one place that all see: `volume` or `folder`")
        if self.copies and not self.managed:
            raise ValueError("copies: a plain cluster keeps its disk: leave `copies` or `managed: false` out")
        if self.spot and not self.managed:
            raise ValueError("spot: nothing brings a plain cluster back: leave `spot` or `managed: false` out")
        return self

    @model_validator(mode="after")
    def _says_each_thing_once(self) -> SkyPilotProfile:
        for key in self.resources:
            if key in _SAID_AS:
                raise ValueError(f"resources: `{key}` is said by `{_SAID_AS[key]}` of the profile")
        if both := set(self.env) & set(self.secrets):
            raise ValueError(f"secrets: `{min(both)}` stands in `env` too; leave it out there")
        return self


def read_profile(file: Path | None, overrides: Iterable[str] = ()) -> SkyPilotProfile:
    """See `profile_file.read`; raises `UserError` where there is no file too: nobody can guess where the run should
    lie."""
    if file is None:
        raise UserError(f"SkyPilot needs a profile, which says where the run lies: --profile FILE, as {EXAMPLE}")
    return read(SkyPilotProfile, file, overrides, EXAMPLE)
