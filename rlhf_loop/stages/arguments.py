"""What a stage is told."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.files import read_json, write_json


@dataclass(frozen=True, kw_only=True, slots=True)
class StageArguments:
    """What a stage is told: a JSON file, so that any process on any machine can be told the same."""

    stage: str  # a name in rlhf_loop.stages.STAGES
    title: str  # what trackers call the run
    round: int
    key: str  # of the output's manifest
    output: str  # the folder to make
    recipe: dict[str, Any]  # the whole recipe, paths absolute
    inputs: dict[str, str] = field(default_factory=dict)  # files and folders to read, by name
    values: dict[str, Any] = field(default_factory=dict)  # plain settings of this call

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return Path(self.output).parent.parent

    @property
    def tracking(self) -> Path:
        """The run's folder for trackers that write files."""
        return self.run / "tracking"

    def write(self, path: Path) -> None:
        """As JSON."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> StageArguments:
        """The inverse of `write`."""
        values = read_json(path)
        if "run" in values:  # of an earlier version
            values["title"] = values.pop("run")
        try:
            return cls(**values)
        except TypeError:
            raise UserError(
                f"{path} holds no arguments of a stage of this version; type the `rlhf-loop run` command again, which "
                "writes them anew"
            ) from None
