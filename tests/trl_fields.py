"""Field names of the configs that `trainer:` blocks go to, from the installed TRL and from our own updates.

python tests/trl_fields.py     # writes them to rlhf_loop/data/trl_fields.json
"""

from __future__ import annotations

import dataclasses
import json
from importlib import import_module
from pathlib import Path

from rlhf_loop.algorithms import TRAINER_CONFIGS

FILE = Path(__file__).parent.parent / "rlhf_loop" / "data" / "trl_fields.json"


def fields_of(config: str) -> list[str]:
    """Sorted names of the settings of MODULE:CLASS."""
    module, _, name = config.partition(":")
    return sorted(field.name for field in dataclasses.fields(getattr(import_module(module), name)) if field.init)


if __name__ == "__main__":
    configs = sorted(set(TRAINER_CONFIGS.values()), key=lambda config: config.partition(":")[2])
    fields = {config.partition(":")[2]: fields_of(config) for config in configs}
    FILE.write_text(json.dumps(fields, indent=0) + "\n")
