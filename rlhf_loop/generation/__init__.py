"""Candidates: what a policy answers to prompts.

The random numbers of an answer depend on (recipe seed, round, prompt, sample) alone: never on the batch it was
sampled in, on the other prompts, or on the number of processes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from rlhf_loop import recipe
from rlhf_loop.engines import ENGINES, WHOLE
from rlhf_loop.progress import Count
from rlhf_loop.records import Completion, Message, Prompt, stable_id

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a policy reads to answer a prompt: the prompt's own messages, or a conversation that leads to an answer."""

    prompt: Prompt
    messages: tuple[Message, ...] | None = None  # None: the prompt's
    draws: str = ""  # names other random numbers, where a prompt is asked in two ways
    first_sample: int = 0  # the number of the first answer among the prompt's
    parent: str | None = None  # of each answer: the completion it revises
    critique: str | None = None
    note: Mapping[str, Any] = field(default_factory=dict)  # goes into `Completion.sampling`


def generate(
    policy: str | Path | tuple[Any, Any],
    prompts: Sequence[Prompt | Asked],
    settings: recipe.Generation,
    *,
    policy_settings: recipe.Policy,
    policy_id: str,
    round: int,
    seed: int,
    progress: Count | None = None,
) -> list[Completion]:
    """`settings.samples_per_prompt` completions of each prompt: prompts as given, samples from 0; an endpoint may write
    fewer. A completion of what was `Asked` is one of its prompt, whatever conversation the policy read.

    `policy`: a model reference, a folder, or a loaded (model, tokenizer); for the engine `vllm` (`Writer`, tokenizer),
    for `endpoint` (`Client`, None).
    `progress(done, total)` is called with numbers of finished completions. Raises `UserError` for a prompt that leaves
    no room in the model's context.
    """
    groups = generate_groups(
        policy,
        prompts,
        settings,
        policy_settings=policy_settings,
        policy_id=policy_id,
        round=round,
        seed=seed,
        progress=progress,
    )
    return [completion for group in groups for completion in group]


def generate_groups(
    policy: str | Path | tuple[Any, Any],
    prompts: Sequence[Prompt | Asked],
    settings: recipe.Generation,
    *,
    policy_settings: recipe.Policy,
    policy_id: str,
    round: int,
    seed: int,
    progress: Count | None = None,
) -> list[list[Completion]]:
    """As `generate`, the completions of each prompt by themselves."""
    from rlhf_loop.models.turns import with_system_prompt

    if not prompts:
        return []
    if not isinstance(policy, tuple):
        with loaded(policy, settings, policy_settings=policy_settings, policy_id=policy_id) as ready:
            return generate_groups(
                ready,
                prompts,
                settings,
                policy_settings=policy_settings,
                policy_id=policy_id,
                round=round,
                seed=seed,
                progress=progress,
            )
    asked = [one if isinstance(one, Asked) else Asked(prompt=one) for one in prompts]
    model, tokenizer = policy
    answers = resolve_name(ENGINES[settings.engine])(
        model,
        tokenizer,
        [with_system_prompt(one.messages or one.prompt.messages, policy_settings.system_prompt) for one in asked],
        [(seed, round, f"{one.prompt.id} {one.draws}" if one.draws else one.prompt.id) for one in asked],
        settings,
        progress,
    )
    sampling = settings.model_dump(include={"temperature", "top_p", "top_k", "max_new_tokens"})
    return [
        [
            _completion(
                prompt_id=one.prompt.id,
                text=answer.text,
                policy=policy_id,
                round=round,
                sample=one.first_sample + sample,
                seed=seed,
                sampling={**sampling, **one.note},
                finish_reason=answer.finish_reason,
                tokens=answer.tokens,
                token_ids=answer.ids,
                **({"parent": one.parent, "critique": one.critique} if one.parent is not None else {}),
            )
            for sample, answer in enumerate(samples)
        ]
        for one, samples in zip(asked, answers, strict=True)
    ]


@contextmanager
def loaded(
    policy: str | Path, settings: recipe.Generation, *, policy_settings: recipe.Policy, policy_id: str
) -> Iterator[tuple[Any, Any]]:
    """A policy, a model reference or a folder, as `settings.engine` takes it.

    For sampling an adapter is added to its base in float32 and rounded once, which samples twice as fast and is no
    further from the float32 policy than the adapter in bf16 beside a bf16 base. vLLM keeps it apart.

    Where Accelerate's config shares out weights and a device has no room for them whole (`WHOLE`), each rank has a
    share of them, and all write in step."""
    if settings.engine == "vllm":
        from rlhf_loop.generation.vllm_engine import Writer

        writer = Writer(policy, policy_id, policy_settings, settings.vllm)
        try:
            yield writer, writer.files.tokenizer
        finally:
            writer.close()
    else:
        from rlhf_loop.models.loading import load_policy

        yield load_policy(policy, policy_settings, merged=True, only_read=_is_too_large(policy, policy_settings))


def _is_too_large(policy: str | Path, settings: recipe.Policy) -> bool:
    """Whether the ranks must hold a policy together, and may; a warning says what that takes."""
    from rlhf_loop.models.checks import weights_of
    from rlhf_loop.models.distributed import said_by_main
    from rlhf_loop.models.memory import device_memory
    from rlhf_loop.models.shares import shared_out

    def too_large() -> bool:
        memory, weights = device_memory(), weights_of(policy, settings)
        if memory is None or weights <= WHOLE * memory:
            return False
        logger.warning(
            "the policy has %.1f GiB of weights and a device %.1f GiB of memory: the processes share it out and gather "
            "it for every token that they write, which is slow. `generation.engine: vllm` is made for it, with "
            "`generation.vllm.tensor_parallel_size` as many GPUs as one copy takes",
            weights / 2**30,
            memory / 2**30,
        )
        return True

    return shared_out() and said_by_main(too_large)


def write_greedily(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], most: int, batch_tokens: int = 16384
) -> list[list[int]]:
    """What `model` writes after each prompt of token ids, the likeliest token each time, `most` at most: token ids with
    the one that ended it, if one did. `batch_tokens`: prompts times padded length of one batch."""
    from rlhf_loop.generation.transformers_engine import sample_ids

    settings = recipe.Generation(temperature=0, samples_per_prompt=1, max_new_tokens=most, batch_tokens=batch_tokens)
    keys = [(0, 0, str(number)) for number in range(len(prompts))]  # of random numbers, which it takes none of
    return [ids for [ids] in sample_ids(model, tokenizer, prompts, keys, [1] * len(prompts), settings)]


def _completion(**fields: Any) -> Completion:
    """An answer under an id of all that it is, so that two runs in one store never give one id to two answers."""
    return Completion(id=stable_id("completion", fields), **fields)
