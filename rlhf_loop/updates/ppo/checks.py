"""What a user's prompts, tokenizer, rewards and rollouts are refused for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, TrainingArguments

from rlhf_loop.errors import UserError
from rlhf_loop.models.distributed import whole_models
from rlhf_loop.updates.rollouts import check_prompts

logger = logging.getLogger(__name__)

_ROLLOUTS_WITHOUT_SIGNAL = 3
_PROMPTS_CHECKED_AT_START = 10_000

_FORMER_ARGUMENTS = {
    "ref_model": "nothing: the reference is the model that `model` was loaded from, or the policy without its adapter",
    "reward_model": "`reward_funcs`",
    "tokenizer": "`processing_class`",
    "data_collator": "nothing: give prompts as text or messages in the column `prompt`",
    "config": "`args`",
    "dataset": "`train_dataset`",
    "policy": "`model`",
    "ref_policy": "nothing: the reference is the model that `model` was loaded from",
    "optimizer": "`optimizers=(optimizer, scheduler)`",
    "lr_scheduler": "`optimizers=(optimizer, scheduler)`",
    "num_shared_layers": "nothing: the reference is the model that `model` was loaded from",
    "train_generation_config": "`args`: `temperature`, `top_p`, `top_k`, `generation_kwargs`",
}


def refuse_former_arguments(model: Any, names: Iterable[str]) -> None:
    """Says what an argument of TRL's former PPOTrainers is called now; they took their config first."""
    if isinstance(model, TrainingArguments) or type(model).__name__ == "PPOConfig":
        raise UserError(
            "PPOTrainer takes `model` first and its config as `args`: give both by name. See docs/updates.md"
        )
    for name in set(names) & set(_FORMER_ARGUMENTS):
        raise UserError(f"PPOTrainer has no argument `{name}`; use {_FORMER_ARGUMENTS[name]}. See docs/updates.md")


def paired_tokenizers(functions: Sequence[Any], given: Any) -> list[Any]:
    """`reward_processing_classes` as a list with one for each of `reward_funcs`; None where none was given."""
    tokenizers = list(given) if isinstance(given, (list, tuple)) else [given] * (given is not None)
    if tokenizers and len(tokenizers) != len(functions):
        raise UserError(
            f"{len(tokenizers)} reward_processing_classes for {len(functions)} reward_funcs: give one for each, in "
            "their order, with None for functions and for classifiers whose tokenizer lies with them"
        )
    return tokenizers or [None] * len(functions)


def check_columns(dataset: Any, name: str, needed: bool = True) -> None:
    """A data set without `prompt` is refused: the former trainers took token ids. `needed`: False where an environment
    gives the prompts."""
    for part, rows in dataset.items() if isinstance(dataset, dict) else [("", dataset)]:
        columns = getattr(rows, "column_names", None)
        if not needed or columns is None or "prompt" in columns:
            continue
        ids = ", not `input_ids`: the trainer tokenizes them" if "input_ids" in columns else ""
        which = f"{name}[{part!r}]" if part else name
        raise UserError(
            f"{which} has the columns {', '.join(columns) or 'none'} and no `prompt`: give prompts as "
            f"text or messages in the column `prompt`{ids}. See docs/updates.md"
        )


def check_tokenizer(tokenizer: Any) -> None:
    """One without EOS is refused."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no EOS token, so no completion could ever end: set `tokenizer.eos_token` to the token "
            "that ends an answer"
        )


def without_empty_completions(rollout: Any) -> Any:
    """A rollout function whose empty completions are refused, and so are lists that do not belong together."""

    def checked(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        result: dict[str, Any] = rollout(prompts, trainer)
        for name in ("prompt_ids", "completion_ids"):
            if len(result.get(name, ())) != len(prompts):
                raise UserError(
                    f"rollout_func gave {len(result.get(name, ()))} {name} for {len(prompts)} prompts; it must give "
                    "one each, in their order"
                )
        for prompt, ids in zip(prompts, result["completion_ids"], strict=True):
            if len(ids) == 0:
                raise UserError(
                    f"rollout_func gave an empty completion for {str(prompt)[:200]!r}: a completion has at least the "
                    "token that ends it"
                )
        return result

    return checked


def loaded_reward_model(function: Any) -> Any:
    """A reward model given by its name or folder, as a module."""
    if not isinstance(function, str):
        return function
    with whole_models():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            function, num_labels=1, output_loading_info=True
        )
    if report["missing_keys"]:
        raise UserError(
            f"{function} is no reward model: it lacks {sorted(report['missing_keys'])[0]}, which would be random. Give "
            "a sequence classifier with one output, or a function"
        )
    return model


def check_start(dataset: Any, args: Any, tokenize: Callable[[list[Any]], Any] | None) -> None:
    """Checks what is known of the prompts at the start: their number, and by `tokenize` the first ones' lengths."""
    if not isinstance(dataset, Dataset):
        return
    check_prompts(len(dataset), args)
    if tokenize is not None and "prompt" in dataset.column_names:
        for first in range(0, min(len(dataset), _PROMPTS_CHECKED_AT_START), 1000):
            tokenize(list(dataset[first : first + 1000]["prompt"]))


def check_lengths(
    prompts: Sequence[Any], ids: Sequence[Sequence[int]], *, limit: int | None, context: int | None, new_tokens: int
) -> None:
    """Refuses a prompt of more tokens than `limit`, or that with `new_tokens` more does not fit into `context`."""
    room = None if context is None else context - new_tokens
    for prompt, tokens in zip(prompts, ids, strict=True):
        if limit is not None and len(tokens) > limit:
            why, instead = f"`max_prompt_length` is {limit}", "raise `max_prompt_length`"
        elif room is not None and len(tokens) > room:
            why, instead = f"{new_tokens} more do not fit into the model's {context}", "lower `max_completion_length`"
        else:
            continue
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        raise UserError(
            f"a prompt has {len(tokens)} tokens, and {why}: {str(text)[:200]!r}. Shorten it, leave it out, or {instead}"
        )


class Signal:
    """Rewards that never differ teach nothing; ones that came to be equal are the mark of a solved task."""

    def __init__(self) -> None:
        self.differed = False
        self.constant: float | None = None  # the reward of every completion so far
        self.rollouts = 0

    def check(self, rewards: torch.Tensor, weights: torch.Tensor) -> None:
        """`rewards` (N, functions) of a rollout, all ranks. Warns of a constant, and raises `UserError` the third time
        in a row since the training began."""
        if self.differed:
            return
        scores = (rewards * weights.to(rewards.device)).nansum(1)[~torch.isnan(rewards).all(1)]
        if len(scores):
            low, high = float(scores.min()), float(scores.max())
            if low != high or self.constant not in (None, low):
                self.differed = True
                return
            self.constant = low
            said = f"every one of {len(scores)} completions got the reward {low:g}"
        else:
            said = f"none of {len(rewards)} completions got a reward"
        self.rollouts += 1
        if self.rollouts >= _ROLLOUTS_WITHOUT_SIGNAL:
            raise UserError(
                f"{said}, {self.rollouts} rollouts in a row since the training began: there is nothing to learn. Check "
                "the reward function, sample with a higher `temperature`, or take easier prompts"
            )
        logger.warning("%s: nothing to learn from this rollout", said)

    def state(self) -> dict[str, Any]:
        """What `load` needs."""
        return dict(vars(self))

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from `state`."""
        vars(self).update(state)
