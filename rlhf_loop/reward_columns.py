"""What a reward function may ask for beside prompts and completions: the same names wherever it is called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rlhf_loop.records import Prompt

OF_PROMPTS = ("prompt_id", "group", "reference", "tags")
"""Columns that every prompt has; further ones are those of its file."""

OF_COMPLETIONS = ("finished",)
"""Columns that every completion has: whether it ended by itself rather than at the length limit."""

OF_TRAINERS = ("completion_ids", "prompt_ids", "trainer_state", "log_extra", "log_metric", "environments")
"""What TRL's trainers add while they train; not there where answers are only scored."""

COMPLAINTS = "complaint_checks"
"""What people complained of in answers to a training prompt: rules and their limits (`rows/check_rules.py`), where
the recipe has `critiques.checks`."""

RESERVED = ("prompts", "completions", *OF_PROMPTS[:1], *OF_COMPLETIONS, *OF_TRAINERS, COMPLAINTS)
"""Names that a column of a prompt file cannot have."""


def columns_of(prompts: Sequence[Prompt], among: Iterable[Prompt] | None = None) -> dict[str, list[Any]]:
    """One value a prompt under each name; None where a prompt lacks what another has.

    `among`: the prompts whose further columns count, where `prompts` are a share of them (default: `prompts`).
    """
    further = dict.fromkeys(name for prompt in (prompts if among is None else among) for name in prompt.columns)
    return {
        "prompt_id": [prompt.id for prompt in prompts],
        "group": [prompt.group for prompt in prompts],
        "reference": [prompt.reference for prompt in prompts],
        "tags": [list(prompt.tags) for prompt in prompts],
        **{name: [prompt.columns.get(name) for prompt in prompts] for name in further},
    }
