"""Each prompt is answered as it stands."""

from __future__ import annotations

from rlhf_loop.generation import Asked
from rlhf_loop.generation.strategies.given import Given, Written


def write(given: Given) -> Written:
    """`samples_per_prompt` answers to each prompt."""
    groups = given.sample([Asked(prompt=prompt) for prompt in given.prompts], given.settings.samples_per_prompt)
    return Written(completions=[completion for group in groups for completion in group])
