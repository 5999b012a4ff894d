"""What the profiles of all platforms have in common: they are read in one way, and set variables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

from rlhf_loop.errors import UserError
from rlhf_loop.settings import Settings, apply_override, parse_settings, read_file

P = TypeVar("P", bound=Settings)


def _variable(name: str) -> str:
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(
            f"{name!r} is no name of an environment variable; use letters, digits and _, the first no digit"
        )
    return name


Variable = Annotated[str, AfterValidator(_variable)]
"""A name of one."""
Text = Annotated[str, Field(coerce_numbers_to_str=True)]
"""A value: YAML's numbers too."""


def read(kind: type[P], file: Path | None, overrides: Iterable[str], example: str) -> P:
    """The profile in a file (None: the defaults), with `key.sub=value` over it. Raises `UserError` naming the file, the
    key and the nearest valid name for anything that is wrong; a file with three keys or more that are unknown is taken
    for one of another kind. `example`: a file that is right."""
    values: dict[str, Any] = {} if file is None else read_file(file, "profile", example)
    if len(foreign := [str(key) for key in values if key not in kind.model_fields]) >= 3:
        raise UserError(
            f"{file} is no profile of the kind of {example}, which knows nothing of {', '.join(foreign)}. Name another "
            "one, or the cluster that it is for: --slurm, --kubernetes or --skypilot"
        )
    for override in overrides:
        apply_override(values, override)
    profile: P = parse_settings(kind, values, where=str(file or "the profile"))
    return profile
