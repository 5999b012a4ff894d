"""Candidates: what a policy answers to prompts.

The random numbers of an answer depend on (recipe seed, round, prompt, sample) alone: never on the batch it was
sampled in, on the other prompts, or on the number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from rlhf_loop import recipe
from rlhf_loop.engines import ENGINES
from rlhf_loop.progress import Count
from rlhf_loop.records import Completion, Prompt, stable_id


def generate(
    policy: str | Path | tuple[Any, Any],
    prompts: Sequence[Prompt],
    settings: recipe.Generation,
    *,
    policy_settings: recipe.Policy,
    policy_id: str,
    round: int,
    seed: int,
    progress: Count | None = None,
) -> list[Completion]:
    """`settings.samples_per_prompt` completions of each prompt: prompts as given, samples from 0.

    `policy`: a model reference, a folder, or a loaded (model, tokenizer). `progress(done, total)` is called with
    numbers of finished completions. Raises `UserError` for a prompt that leaves no room in the model's context.
    """
    from rlhf_loop.models.loading import load_policy, to_messages

    if not prompts:
        return []
    model, tokenizer = policy if isinstance(policy, tuple) else load_policy(policy, policy_settings, merged=True)
    answers = resolve_name(ENGINES[settings.engine])(
        model,
        tokenizer,
        [to_messages(prompt, policy_settings) for prompt in prompts],
        [(seed, round, prompt.id) for prompt in prompts],
        settings,
        progress,
    )
    sampling = settings.model_dump(include={"temperature", "top_p", "top_k", "max_new_tokens"})
    return [
        _completion(
            prompt_id=prompt.id,
            text=answer.text,
            policy=policy_id,
            round=round,
            sample=sample,
            seed=seed,
            sampling=sampling,
            finish_reason=answer.finish_reason,
            tokens=len(answer.ids),
            token_ids=answer.ids,
        )
        for prompt, samples in zip(prompts, answers, strict=True)
        for sample, answer in enumerate(samples)
    ]


def _completion(**fields: Any) -> Completion:
    """An answer under an id of all that it is, so that two runs in one store never give one id to two answers."""
    return Completion(id=stable_id("completion", fields), **fields)
