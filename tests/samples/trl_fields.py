"""Field names of the configs that `trainer:` blocks go to, and what their values are, from the installed TRL and from
our own updates.

python tests/samples/trl_fields.py     # writes them to rlhf_loop/data/trl_fields.json
"""

from __future__ import annotations

import dataclasses
import enum
import json
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

from rlhf_loop.algorithms import TRAINER_CONFIGS

FILE = Path(__file__).parents[2] / "rlhf_loop" / "data" / "trl_fields.json"


KINDS = (
    ({"int", "float"}, "a number"), ({"float"}, "a number"), ({"int"}, "a whole number"), ({"bool"}, "true or false"),
)  # fmt: skip


def fields_of(config: str) -> dict[str, str]:
    """Sorted names of the settings of MODULE:CLASS -> what their values are; nothing where several kinds may be."""
    module, _, name = config.partition(":")
    made = getattr(import_module(module), name)
    types = typing.get_type_hints(made)
    return {
        name: kind_of(types[name]) for name in sorted(field.name for field in dataclasses.fields(made) if field.init)
    }


def kind_of(type_: Any) -> str:
    """What a setting of this type is; of an enumeration, its values."""
    types = {*typing.get_args(type_)} - {type(None)} or {type_}
    for one in types:
        if isinstance(one, type) and issubclass(one, enum.Enum) and types <= {one, str}:
            return "one of " + ", ".join(sorted(str(member.value) for member in one))
    return next((kind for names, kind in KINDS if {getattr(one, "__name__", "") for one in types} == names), "")


if __name__ == "__main__":
    configs = sorted(set(TRAINER_CONFIGS.values()), key=lambda config: config.partition(":")[2])
    fields = {config.partition(":")[2]: fields_of(config) for config in configs}
    FILE.write_text(json.dumps(fields, indent=0) + "\n")
