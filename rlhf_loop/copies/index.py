"""What a place holds of a run: the file that says it, read from somewhere that anybody may have written to."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError, field_validator

from rlhf_loop.errors import UserError, printable
from rlhf_loop.settings import Settings

INDEX = "rlhf_loop_run.json"
"""Its name. A place holds one run."""

TOP = ("recipe.yaml", "places.json", "promotions.json", "report.html", "feedback.db", "endpoints.db")
"""Files of a run that are no round's."""

_IN_ROUND = re.compile(r"round_\d{3,9}(?:/[^/\\:]+)+")


class Entry(Settings):
    """One file that is there whole."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0, lt=2**63)]


class Index(Settings):
    """What is there whole."""

    format: Literal[1] = 1
    name: str  # of the run
    store: str | None = None  # where its feedback is, when it is in no file of the run
    rounds: dict[int, str] = Field(
        default_factory=dict
    )  # those that are there whole, with a hash of what they were made from
    files: dict[str, Entry] = Field(default_factory=dict)  # by path within the run

    @field_validator("files")
    @classmethod
    def _stay_within_the_run(cls, files: dict[str, Entry]) -> dict[str, Entry]:
        for name in files:
            inside = _IN_ROUND.fullmatch(name) and name.isprintable() and not {".", ".."} & set(name.split("/"))
            if name not in TOP and not inside:
                raise ValueError(f"{name[:80]!r} is no file of a run")
        return files

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(entry.bytes for entry in self.files.values())


def read_index(raw: bytes, place: str) -> Index:
    """The index with this content. Raises `UserError` for one that is damaged, or of a later version."""
    try:
        return Index.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = printable(".".join(map(str, first["loc"]))[:80])
        raise UserError(
            f"{place}/{INDEX} is not readable here ({where}: {first['msg']}); it is damaged, or of a newer rlhf-loop. "
            "Push the run again, to an empty place"
        ) from None
