"""What the online updates (ppo, grpo, rloo) share: prompts in, answers from our own sampler, rewards watched.

They sample answers themselves and ask the reward model about them while they train.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset

from rlhf_loop.errors import UserError
from rlhf_loop.models.files import resolve_model
from rlhf_loop.models.loading import adapter_folder, to_messages
from rlhf_loop.recipe import Generation, Policy
from rlhf_loop.records import Prompt
from rlhf_loop.reward_columns import columns_of
from rlhf_loop.updates.adapters import build_trainer
from rlhf_loop.updates.rollouts import check_prompts
from rlhf_loop.updates.train_and_save import Training, train_and_save


def train_online(
    kind: type[Any],
    config: type[Any],
    rows: Sequence[Prompt],
    training: Training,
    *,
    reward: Callable[..., Sequence[float | None]],
    generation: Generation,
    of_policy: Callable[[str], bool] = lambda name: True,
) -> dict[str, Any]:
    """See `rlhf_loop.updates.update_policy`. `kind`: the trainer's class, with `Rollouts`; `config`: of its settings.

    Answers are sampled as in `generation`, unless the trainer's settings say otherwise (`max_completion_length`,
    `temperature`, `top_p`, `top_k`). Gives the metrics of the training, with the prompts and the completions sampled,
    and the mean reward of the first and of the last rollout.
    """
    reference = training.reference
    with training.begun():
        dataset = Dataset.from_list([_row(prompt, training.policy) for prompt in rows])
        arguments = training.arguments(config, _as_sampled(generation))
        check_prompts(len(dataset), arguments)

        def make(model: Any, _: Any, *, processing_class: Any, peft_config: Any) -> Any:
            if adapter_folder(reference) is None:  # where TRL loads the reference of a full fine-tuning from
                model.config._name_or_path = str(resolve_model(str(reference)))
            return kind(
                model=model,
                reward_funcs=_with_columns(reward, rows),
                args=arguments,
                train_dataset=dataset,
                processing_class=processing_class,
                peft_config=peft_config,
            )

        trainer, tokenizer = build_trainer(
            make, training.start, reference, training.policy, training.settings, own_reference=True
        )
        trainer.generation_batch_tokens = generation.batch_tokens
        metrics = train_and_save(trainer, tokenizer, training, of_policy)
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    return {
        "algorithm": training.settings.algorithm,
        **metrics,
        "prompts": len(rows),
        "completions_sampled": _rollouts(metrics["steps"], arguments) * arguments.generation_batch_size,
        "first_reward": rewards[0] if rewards else None,
        "last_reward": rewards[-1] if rewards else None,
    }


def _as_sampled(generation: Generation) -> dict[str, Any]:
    """The sampling of a recipe in the words of TRL's configs."""
    if generation.temperature == 0:
        raise UserError(
            "generation.temperature is 0: an online update learns from answers that differ; set a temperature above 0"
        )
    return {
        "max_completion_length": generation.max_new_tokens,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "top_k": generation.top_k,
    }


def _row(prompt: Prompt, policy: Policy) -> dict[str, Any]:
    return {"prompt": to_messages(prompt, policy), "prompt_id": prompt.id}


def _with_columns(reward: Callable[..., Sequence[float | None]], rows: Sequence[Prompt]) -> Callable[..., list[float]]:
    """`reward`, given the columns of its prompts as they are: a data set would want one type for each."""
    by_id = {prompt.id: prompt for prompt in rows}

    @functools.wraps(reward, updated=())
    def with_columns(prompts: Sequence[Any], completions: Sequence[Any], prompt_id: Sequence[str], **more: Any) -> Any:
        columns = columns_of([by_id[id] for id in prompt_id], rows)
        return reward(prompts=prompts, completions=completions, **{**more, **columns})

    return with_columns


def _rollouts(steps: int, arguments: Any) -> int:
    """How many rollouts so many optimizer steps take."""
    batches: int = steps * arguments.gradient_accumulation_steps
    per_rollout: int = arguments.num_iterations * arguments.steps_per_generation
    return -(-batches // per_rollout)
