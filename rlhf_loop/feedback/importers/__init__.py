"""The formats of feedback that can be read, in the order in which `auto` tries them: the more particular first.

A format is one file here that has four things: `RECOGNISES`, what a row of it looks like, in words; `REQUIRED`, the
fields that it cannot do without (any one of the lists is enough); `recognises(row)`; and `parse(row, place)`, which
gives the row's records or raises `RowError` with what is wrong. `FORMATS` names them.
"""

from __future__ import annotations

from types import ModuleType

from rlhf_loop.feedback.importers import (
    arena,
    argilla,
    chat,
    comparison,
    gradio,
    hh_rlhf,
    label_studio,
    langfuse,
    mlflow,
    native,
    open_webui,
    pairs,
    phoenix,
    potato,
    trl,
    tutorial,
    ultrafeedback,
)

FORMATS: dict[str, ModuleType] = {
    "native": native,
    "hh-rlhf": hh_rlhf,
    "ultrafeedback": ultrafeedback,
    "arena": arena,
    "argilla": argilla,
    "label-studio": label_studio,
    "open-webui": open_webui,
    "mlflow": mlflow,
    "langfuse": langfuse,
    "phoenix": phoenix,
    "potato": potato,
    "gradio": gradio,
    "comparison": comparison,
    "pairs": pairs,
    "tutorial": tutorial,
    "chat": chat,
    "trl": trl,
}
"""Name of a format -> the file that reads it."""
