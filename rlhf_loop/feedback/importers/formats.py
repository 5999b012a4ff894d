"""The formats of feedback that can be read, in the order in which `auto` tries them."""

from __future__ import annotations

from types import ModuleType

from rlhf_loop.feedback.importers import native, pairs, trl

FORMATS: dict[str, ModuleType] = {"native": native, "pairs": pairs, "trl": trl}
"""Name of a format -> the file that reads it."""
