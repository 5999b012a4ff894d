"""The formats of feedback that can be read.

A format is one file here that has four things: `RECOGNISES`, what a row of it looks like, in words; `REQUIRED`, the
fields that it cannot do without (any one of the lists is enough); `recognises(row)`; and `parse(row, place)`, which
gives the row's records or raises `RowError` with what is wrong. `NAMES` has its name.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

NAMES = [
    "native",
    "hh-rlhf",
    "ultrafeedback",
    "arena",
    "argilla",
    "label-studio",
    "open-webui",
    "mlflow",
    "langfuse",
    "phoenix",
    "potato",
    "gradio",
    "comparison",
    "pairs",
    "tutorial",
    "chat",
    "trl",
]
"""In the order in which `auto` tries them: the more particular first. `hh-rlhf` is `hh_rlhf.py`."""

FORMATS: dict[str, ModuleType] = {name: import_module(f"{__name__}.{name.replace('-', '_')}") for name in NAMES}
"""Name of a format -> the file that reads it."""
