"""What goes wrong in a user's PPO is said with what to do, before a weight is moved."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from samples import token_task as task
from samples.ppo import log_of
from transformers import AutoModelForCausalLM

from rlhf_loop.errors import UserError
from rlhf_loop.updates.reward_functions import watched


def made_async(function: Callable[..., Any]) -> Callable[..., Any]:
    async def later(**given: Any) -> Any:
        await asyncio.sleep(0)
        return function(**given)

    later.__name__ = function.__name__
    return later


def refused(tmp_path: Path, reward: Any, match: str, **settings: Any) -> UserError:
    """The error of a training with this reward function, which may not have moved a weight."""
    made = task.trainer(tmp_path, reward_funcs=reward, num_ppo_epochs=1, max_steps=9, weight_decay=0.1, **settings)
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    with pytest.raises(UserError, match=match) as error:
        made.train()
    assert made.state.global_step == 0
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    return error.value


def tenth(value: Any) -> Callable[..., list[Any]]:
    """A function that gives `value` for the tenth completion."""

    def judge(completions: list[str], **_: Any) -> list[Any]:
        return [value if i == 9 else float(i) for i in range(len(completions))]

    return judge


# Rewards


@pytest.mark.parametrize("wrap", [lambda f: f, made_async], ids=["function", "async"])
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, "good", [1.0, 2.0], np.float32("nan"), torch.tensor(math.inf)], ids=str
)
def test_a_reward_that_is_no_finite_number_is_refused_with_what_it_was_for(
    tmp_path: Path, value: Any, wrap: Any
) -> None:
    shown: list[dict[str, Any]] = []
    judge = tenth(value)

    def remembered(**given: Any) -> list[Any]:
        shown.append(given)
        return judge(**given)

    remembered.__name__ = "judge"
    error = refused(tmp_path, wrap(remembered), "the reward function judge gave .* no finite number")
    assert repr(shown[0]["prompts"][9]) in str(error)
    assert repr(shown[0]["completions"][9]) in str(error)
    assert "No weight was changed" in str(error)


@pytest.mark.parametrize("wrap", [lambda f: f, made_async], ids=["function", "async"])
@pytest.mark.parametrize(
    ("given", "match"),
    [
        ([1.0] * 15, "gave 15 rewards for 16 completions"),
        ([], "gave 0 rewards for 16 completions"),
        (np.zeros((16, 2)).ravel(), "gave 32 rewards for 16 completions"),
        (1.0, "gave float; it must give a list"),
        (None, "gave NoneType; it must give a list"),
    ],
    ids=["one short", "none", "two each", "a number", "nothing"],
)
def test_rewards_of_another_number_are_refused(tmp_path: Path, given: Any, match: str, wrap: Any) -> None:
    def judge(**_: Any) -> Any:
        return given

    refused(tmp_path, wrap(judge), match)


@pytest.mark.parametrize("wrap", [lambda f: f, made_async], ids=["function", "async"])
@pytest.mark.parametrize(
    "error", [KeyError("colour"), TimeoutError("no answer from the server")], ids=["key", "timeout"]
)
def test_a_function_that_raises_is_named_with_its_error(tmp_path: Path, error: Exception, wrap: Any) -> None:
    def judge(**_: Any) -> list[float]:
        raise error

    for limit in (600.0, None):
        said = refused(
            tmp_path, wrap(judge), f"the reward function judge raised {type(error).__name__}", reward_time_limit=limit
        )
        assert str(error) in str(said)
        assert "the first of 16: prompt '" in str(said)
        assert said.__cause__ is error


@pytest.mark.parametrize("wrap", ["function", "async"])
def test_a_function_that_hangs_is_given_up_in_time(tmp_path: Path, wrap: str) -> None:
    def judge(**_: Any) -> list[float]:
        time.sleep(3600)
        return []

    async def patient(**_: Any) -> list[float]:
        await asyncio.sleep(3600)
        return []

    patient.__name__ = "judge"
    refused(
        tmp_path, judge if wrap == "function" else patient,
        r"the reward function judge gave no rewards for 16 completions within 0\.2 s.*`reward_time_limit`",
        reward_time_limit=0.2,
    )  # fmt: skip


def test_a_function_that_must_run_in_the_main_thread_is_told_how(tmp_path: Path) -> None:
    def judge(completions: list[str], **_: Any) -> list[float]:
        signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGALRM))  # as time limits of its own do
        return [float(i) for i in range(len(completions))]

    refused(tmp_path, judge, "judge raised ValueError: signal only works .* unless `reward_time_limit` is null")
    task.trainer(tmp_path, reward_funcs=judge, reward_time_limit=None, max_steps=1).train()


def test_a_process_ends_although_its_reward_function_hangs() -> None:
    script = (
        "import time; from rlhf_loop.updates.reward_functions import watched\n"
        "watched(lambda **_: time.sleep(3600), 0.1)(prompts=['a'], completions=['b'])"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 1
    assert "gave no rewards for 1 completions within 0.1 s" in ended.stderr


def test_a_function_within_its_time_is_left_alone() -> None:
    judge = watched(lambda completions, **_: [len(text) for text in completions], 5.0)
    assert judge(prompts=["a", "b"], completions=["cd", ""]) == [2.0, 0.0]


def test_completions_that_are_no_ones_business_are_left_out_but_not_all_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = task.trainer(
        tmp_path, reward_funcs=lambda completions, **_: [None if i % 2 else float(i) for i in range(16)],
    )  # fmt: skip
    half.train()
    assert log_of(half)[0]["objective/scores"] == 7
    with pytest.raises(UserError, match="none of 16 completions got a reward, 3 rollouts in a row"):
        task.trainer(tmp_path, reward_funcs=lambda completions, **_: [None] * 16, num_ppo_epochs=1, max_steps=9).train()
    assert "none of 16 completions got a reward: nothing to learn" in caplog.text


def test_rewards_that_never_differ_are_warned_of_and_then_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = task.trainer(tmp_path, reward_funcs=lambda completions, **_: [0.25] * 16, num_ppo_epochs=1, max_steps=9)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(
            UserError, match=r"every one of 16 completions got the reward 0\.25, 3 rollouts in a row.*`temperature`"
        ),
    ):
        made.train()
    assert made.state.global_step == 2
    assert caplog.text.count("got the reward 0.25: nothing to learn") == 2


@pytest.mark.parametrize("differ", ["within the first rollout", "between rollouts"])
def test_rewards_that_differed_once_may_come_to_be_equal(tmp_path: Path, differ: str) -> None:
    """As they do when a task is solved."""
    calls: list[int] = []

    def solved(completions: list[str], **_: Any) -> list[float]:
        calls.append(1)
        first = [0.0] * 16 if differ == "between rollouts" else [0.0] * 15 + [1.0]
        return first if len(calls) == 1 else [1.0] * 16

    made = task.trainer(tmp_path, reward_funcs=solved, num_ppo_epochs=1, max_steps=6)
    made.train()
    assert made.state.global_step == 6


def test_broken_weights_are_said_to_be_broken(tmp_path: Path) -> None:
    made = task.trainer(tmp_path, num_ppo_epochs=1)
    with torch.no_grad():
        made.model.ppo_critic.head.bias.fill_(math.nan)
    with pytest.raises(UserError, match=r"not finite: .*`critic_learning_rate`.*`max_grad_norm: 1\.0`"):
        task.rollout(made)


# Rollout functions


def rollout_of(completion: Callable[[int], list[int]], count: int | None = None) -> Callable[..., dict[str, Any]]:
    tokenizer = task.tokenizer()

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        ids = [completion(i) for i in range(len(prompts) if count is None else count)]
        return {
            "prompt_ids": [tokenizer(prompt)["input_ids"] for prompt in prompts], "completion_ids": ids,
            "logprobs": [[0.0] * len(row) for row in ids],
        }  # fmt: skip

    return rollout


def test_an_empty_completion_is_refused_with_its_prompt(tmp_path: Path) -> None:
    made = task.trainer(tmp_path, rollout_func=rollout_of(lambda i: [] if i == 3 else [6, 1]))
    with pytest.raises(UserError, match=r"gave an empty completion for .*at least the token that ends it") as error:
        task.rollout(made)
    assert repr(made.train_dataset[3]["prompt"]) in str(error.value)


def test_a_rollout_that_does_not_belong_to_its_prompts_is_refused(tmp_path: Path) -> None:
    made = task.trainer(tmp_path, rollout_func=rollout_of(lambda i: [6, 1], count=15))
    with pytest.raises(UserError, match="gave 15 completion_ids for 16 prompts"):
        task.rollout(made)
    made = task.trainer(tmp_path, rollout_func=lambda prompts, trainer: {"prompt_ids": [[5]] * 16})
    with pytest.raises(UserError, match="gave 0 completion_ids for 16 prompts"):
        task.rollout(made)


def test_completions_of_one_token_are_trained_on(tmp_path: Path) -> None:
    made = task.trainer(tmp_path, rollout_func=rollout_of(lambda i: [6 + i % 3]), num_ppo_epochs=2)
    made.train()
    assert all(math.isfinite(value) for row in log_of(made) for value in row.values())


# Prompts


def test_prompts_over_the_limit_are_refused_at_the_start(tmp_path: Path) -> None:
    long = "hi : " + " ".join(["a"] * 8)
    rows = Dataset.from_list([*task.prompts(20), {"prompt": long}])
    with pytest.raises(
        UserError, match=r"a prompt has 10 tokens, and `max_prompt_length` is 6: 'hi : a a.*raise `max_prompt_length`"
    ):
        task.trainer(tmp_path, train_dataset=rows, max_prompt_length=6)
    assert task.trainer(tmp_path, train_dataset=rows, max_prompt_length=10).args.max_prompt_length == 10


def test_prompts_that_leave_no_room_in_the_model_are_refused_at_the_start(tmp_path: Path) -> None:
    rows = Dataset.from_list([*task.prompts(20), {"prompt": "hi : " + " ".join(["a"] * 8)}])
    with pytest.raises(
        UserError, match=r"has 10 tokens, and 119 more do not fit into the model's 128.*lower `max_completion_length`"
    ):
        task.trainer(tmp_path, train_dataset=rows, max_completion_length=119)
    task.trainer(tmp_path, train_dataset=rows, max_completion_length=118)


def test_an_over_long_prompt_that_comes_later_is_refused_when_it_comes(tmp_path: Path) -> None:
    """As that of a stream, which is not read at the start."""
    rows = [*task.prompts(16), {"prompt": "hi : " + " ".join(["a"] * 8)}] + [{"prompt": "hi : a"}] * 15
    made = task.trainer(
        tmp_path, train_dataset=Dataset.from_list(rows).to_iterable_dataset(), max_prompt_length=6, num_ppo_epochs=1,
        shuffle_dataset=False, max_steps=9,
    )  # fmt: skip
    with pytest.raises(UserError, match="a prompt has 10 tokens"):
        made.train()
    assert made.state.global_step == 1


def test_a_chat_is_named_by_its_last_message(tmp_path: Path) -> None:
    tokenizer = task.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": f"hi : {' a' * n}"}]} for n in range(1, 20)])
    with pytest.raises(UserError, match=r"`max_prompt_length` is 12: 'hi :  a a"):
        task.trainer(tmp_path, train_dataset=rows, processing_class=tokenizer, max_prompt_length=12)


def test_too_few_prompts_for_a_rollout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"the data set has 15 prompts and a rollout takes 16: lower `num_mini_batches`"
    ):
        task.trainer(tmp_path, train_dataset=task.prompts(15))
    with pytest.raises(UserError, match="has 7 prompts and a rollout takes 8"):
        task.trainer(tmp_path, train_dataset=task.prompts(7), num_generations=2)
    made = task.trainer(tmp_path, train_dataset=task.prompts(8), num_generations=2)
    made.train()
    assert made.state.global_step == 2


def test_a_rollout_of_one_completion_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a rollout of 1 completion has no variance to whiten: raise "):
        task.config(tmp_path, per_device_train_batch_size=1)
    made = task.trainer(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    made.train()
    assert all(math.isfinite(value) for row in log_of(made) for value in row.values())


# Tokenizers


@pytest.mark.parametrize("given", [True, False], ids=["as an argument", "beside the model"])
def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path, given: bool) -> None:
    tokenizer = task.tokenizer()
    tokenizer.eos_token = None
    AutoModelForCausalLM.from_pretrained(task.model_folder()).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"no EOS token.*set `tokenizer\.eos_token`"):
        task.trainer(tmp_path, model=str(tmp_path / "model"), processing_class=tokenizer if given else None)


def test_a_tokenizer_without_padding_pads_with_the_end_and_learns_the_same(tmp_path: Path) -> None:
    trained = []
    for padding in ("<pad>", None):
        tokenizer = task.tokenizer()
        tokenizer.pad_token = padding
        made = task.trainer(tmp_path, processing_class=tokenizer, max_steps=4)
        made.train()
        trained.append(made)
    ours, without = trained
    assert without._tokenizer.pad_token_id == 1
    for name, tensor in without.model.state_dict().items():
        torch.testing.assert_close(tensor, ours.model.state_dict()[name], atol=1e-6, rtol=0)
    assert log_of(without)[0]["val/missing_eos"] == log_of(ours)[0]["val/missing_eos"] < 1
