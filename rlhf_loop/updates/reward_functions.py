"""Reward functions of online updates, watched: what is wrong with a reward is said before it moves a weight.

The interface is TRL's: `f(prompts, completions, completion_ids, **columns) -> list of numbers`, None where a completion
is none of its business. `completion_ids` end with EOS where a completion did; the texts do not show it.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from trl.trainer.utils import is_async_callable

from rlhf_loop.batches import batches
from rlhf_loop.errors import UserError, shortened
from rlhf_loop.models.turns import Turns
from rlhf_loop.reward_values import BadReward, checked_rewards

RewardFunction = Callable[..., Any]

TIME_LIMIT = 600.0
"""Seconds that a reward function may take for one rollout, unless a setting says otherwise."""


def watched(function: RewardFunction, time_limit: float | None = TIME_LIMIT) -> RewardFunction:
    """`function` with its rewards checked: one number or None a completion, all finite, within `time_limit` seconds.

    Raises `UserError` naming the function, and the prompt and completion where there is one to name. A function that
    hangs is left behind in its thread, since Python cannot end it; the training ends.
    """
    name = _name(function)

    if is_async_callable(function):

        @functools.wraps(function, updated=())
        async def checked_later(
            prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
        ) -> list[float | None]:
            limit = asyncio.timeout(time_limit)
            try:
                async with limit:
                    rewards = await function(prompts=prompts, completions=completions, **columns)
            except Exception as error:
                if time_limit is not None and limit.expired():
                    raise _hangs(name, time_limit, len(completions)) from None
                raise _raised(name, error, prompts, completions) from error
            return check_rewards(name, rewards, prompts, completions)

        checked_later.__name__ = name
        return checked_later

    @functools.wraps(function, updated=())
    def checked(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        try:
            rewards = _within(time_limit, lambda: function(prompts=prompts, completions=completions, **columns))
        except _TooLate as late:
            raise _hangs(name, late.limit, len(completions)) from None
        except Exception as error:
            raise _raised(name, error, prompts, completions) from error
        return check_rewards(name, rewards, prompts, completions)

    checked.__name__ = name
    return checked


def check_rewards(name: str, rewards: Any, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float | None]:
    """`rewards` as floats; a `UserError` says which one is missing or not finite, and for what."""
    if isinstance(rewards, torch.Tensor):
        rewards = rewards.flatten().tolist()
    try:
        return checked_rewards(rewards, len(completions), booleans=True)
    except BadReward as bad:
        told = f"the reward function {name} gave {bad}"
        if bad.place is not None:
            raise UserError(
                f"{told}, for {shown(prompts[bad.place], completions[bad.place])}. Give a number, or None where it has "
                "nothing to say. No weight was changed by this rollout"
            ) from None
        if bad.count is not None:
            raise UserError(
                f"{told} rewards for {len(completions)} completions; it must give one each, in their order (None where "
                "it has nothing to say)"
            ) from None
        raise UserError(
            f"{told}; it must give a list with one number for each of the {len(completions)} completions"
        ) from None


def classifier_reward(
    model: Any, tokenizer: Any, ended: Callable[[Sequence[int]], bool], batch_tokens: int = 16384
) -> RewardFunction:
    """A sequence classifier with one output as a reward function: texts tokenised by its own tokenizer, with its EOS
    where `ended(completion_ids)`, scored in batches of at most `batch_tokens` padded tokens.

    TRL alone would score a whole rollout in one batch, on texts that do not show whether they ended.
    """
    turns = Turns(tokenizer, model)
    name = str(getattr(model.config, "_name_or_path", "") or type(model).__name__).rstrip("/").split("/")[-1]
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id

    def classifier(
        prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **_: Any
    ) -> list[float]:
        rows = [
            _classifier_ids(turns, prompt, completion, ended(ids))
            for prompt, completion, ids in zip(prompts, completions, completion_ids, strict=True)
        ]
        rewards = [0.0] * len(rows)
        for numbers in batches([len(row) for row in rows], batch_tokens):
            padded = tokenizer.pad(
                {"input_ids": [rows[i] for i in numbers]}, padding_side="right", return_tensors="pt"
            ).to(model.device)
            with torch.inference_mode():
                values = model(**padded).logits[:, 0].float().tolist()
            for i, value in zip(numbers, values, strict=True):
                rewards[i] = value
        return rewards

    classifier.__name__ = name
    return classifier


def shown(prompt: Any, completion: Any, limit: int = 200) -> str:
    """A prompt and a completion for an error message, of text or of messages."""
    return f"prompt {_text(prompt, limit)!r}, completion {_text(completion, limit)!r}"


class _TooLate(Exception):
    def __init__(self, limit: float):
        self.limit = limit


def _within(seconds: float | None, work: Callable[[], Any]) -> Any:
    """What `work` gives, from a thread that is waited for no longer than `seconds`."""
    if seconds is None:
        return work()
    outcome: dict[str, Any] = {}
    place = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def run() -> None:
        try:
            if place is not None:  # a thread begins on device 0, whichever its rank's is
                torch.cuda.set_device(place)
            with torch.no_grad():  # nor does a thread inherit this
                outcome["value"] = work()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True, name="reward function")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise _TooLate(seconds)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def _hangs(name: str, time_limit: float, count: int) -> UserError:
    return UserError(
        f"the reward function {name} gave no rewards for {count} completions within {time_limit:g} s; make it answer, "
        "or raise `reward_time_limit`"
    )


def _raised(name: str, error: Exception, prompts: Sequence[Any], completions: Sequence[Any]) -> Exception:
    if isinstance(error, UserError):
        return error
    first = f"; the first of {len(completions)}: {shown(prompts[0], completions[0])}" if len(completions) else ""
    # As signals and SQLite connections do.
    thread = ". It runs in a thread of its own unless `reward_time_limit` is null" if "thread" in str(error) else ""
    return UserError(f"the reward function {name} raised {type(error).__name__}: {error}{first}{thread}")


def _name(function: Any) -> str:
    inner = function.func if isinstance(function, functools.partial) else function
    return str(getattr(inner, "__name__", type(inner).__name__))


def _text(value: Any, limit: int) -> str:
    text = value if isinstance(value, str) else str(value[-1]["content"]) if value else ""
    return shortened(text, limit)


def _classifier_ids(turns: Turns, prompt: Any, completion: Any, finished: bool) -> list[int]:
    tokenizer = turns.tokenizer
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt + completion)["input_ids"])
        ended = bool(ids) and ids[-1] == tokenizer.eos_token_id  # some tokenizers add it by themselves
        return [*ids, tokenizer.eos_token_id] if finished and not ended else ids
    text = "".join(turn["content"] or "" for turn in completion)
    tokens = turns.tokens(prompt, [{"role": "assistant", "content": text}], finished=finished)
    return [*tokens.prompt, *tokens.answer]
