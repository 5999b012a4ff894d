"""Classifiers as rewards of PPO: each is asked as a function, and one of the policy's vocabulary starts the critic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from rlhf_loop.models.weights import whole_copy
from rlhf_loop.updates.reward_functions import classifier_reward


def tokenizers_of(functions: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    """For each classifier the tokenizer that is given for it or (None) its own; None for a function."""
    return [
        tokenizer or AutoTokenizer.from_pretrained(function.config._name_or_path)
        if isinstance(function, PreTrainedModel)
        else None
        for function, tokenizer in zip(functions, given, strict=True)
    ]


def as_function(function: Any, tokenizer: Any, has_ended: Callable[[Any], bool]) -> Any:
    """A reward given as a classifier becomes a function; `has_ended` says it of a completion's ids."""
    if not isinstance(function, PreTrainedModel):
        return function
    function.eval().requires_grad_(False)
    return classifier_reward(function, tokenizer, has_ended)


def move_classifiers(functions: Sequence[Any], device: Any) -> None:
    """Puts those on `device` that are not spread over devices already."""
    for function in functions:
        if isinstance(function, PreTrainedModel) and getattr(function, "hf_device_map", None) is None:
            function.to(device)


def start_of_critic(functions: Sequence[Any], tokenizers: Sequence[Any], policy: Any, tokenizer: Any) -> Any:
    """A copy of the first reward model that reads the policy's tokens, of the policy's dtype; None without one."""
    size = policy.get_input_embeddings().num_embeddings
    for function, its in zip(functions, tokenizers, strict=True):
        if (
            isinstance(function, PreTrainedModel)
            and function.get_input_embeddings().num_embeddings >= size
            and its.get_vocab() == tokenizer.get_vocab()
        ):
            return whole_copy(function).to(policy.dtype)
    return None
