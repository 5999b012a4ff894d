"""How our online trainers sample and score tokens, put before a trainer of TRL among its base classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from trl import GRPOTrainer

from rlhf_loop.errors import UserError
from rlhf_loop.generation.transformers_engine import sample_ids
from rlhf_loop.models.checks import check_adapted
from rlhf_loop.models.distributed import rank
from rlhf_loop.models.loading import merged_for_sampling
from rlhf_loop.models.turns import Turns
from rlhf_loop.recipe import Generation
from rlhf_loop.records import stable_id
from rlhf_loop.updates.cpu_head import add_cpu_head
from rlhf_loop.updates.prompt_order import resumable
from rlhf_loop.updates.vllm_weights import restore_base_after_sync


class Rollouts:
    """Samples with `rlhf_loop.generation` in place of `generate`: prompts are read once for all their completions, rows
    that have ended leave the batch, an adapter is merged meanwhile. Random numbers are those of (seed, step, prompt,
    sample, rank), so a training that was resumed samples the same.

    vLLM, continuous batching, sharded weights, images, and settings of `generate` that our sampler does not have are
    left to TRL."""

    generation_batch_tokens = 1 << 17
    """Rows x padded length that are sampled together at most."""

    def __init__(self: Any, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        policy = self.accelerator.unwrap_model(self.model)
        if isinstance(policy, PeftModel):
            check_adapted(policy, "the policy")
        # TRL knows the eos of the generation config and of the tokenizer.
        ends = Turns(self._tokenizer, policy).ends
        self.eos_token_ids = [*self.eos_token_ids, *sorted(ends - set(self.eos_token_ids))]
        if self.use_vllm:
            restore_base_after_sync(self.vllm_generation)
        else:
            self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = self.eos_token_ids
        if self.accelerator.device.type == "cpu" and not getattr(self.args, "cast_lm_head_to_fp32", False):
            add_cpu_head(policy, self.temperature)
            if self.ref_model is not None:
                add_cpu_head(self.accelerator.unwrap_model(self.ref_model), self.temperature)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return resumable(super()._get_train_sampler(dataset))  # type: ignore[misc]

    def _generate_single_turn(self: Any, prompt_ids: Any, images: Any, *more: Any, **named: Any) -> Any:
        if images is not None or not _can_sample(self):
            return super()._generate_single_turn(prompt_ids, images, *more, **named)  # type: ignore[misc]
        completions = _sampled(self, prompt_ids)
        return (completions, None) if isinstance(self, GRPOTrainer) else completions

    def _calculate_rewards(self: Any, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        """Reward functions are told which completions ended, which neither texts nor ids of another tokenizer show."""
        ends = set(self.eos_token_ids)
        ended = [bool(len(ids)) and int(ids[-1]) in ends for ids in completion_ids_list]
        told = [{"finished": of_ids, **row} for row, of_ids in zip(inputs, ended, strict=True)]
        return super()._calculate_rewards(told, prompts, completions, completion_ids_list)  # type: ignore[misc]


def check_prompts(count: int, arguments: Any) -> None:
    """TRL leaves out the prompts that do not fill a rollout; with too few of them it would train nothing."""
    needed = arguments.generation_batch_size // arguments.num_generations
    if count < needed:
        raise UserError(
            f"the data set has {count} prompts and a rollout takes {needed}: lower `num_mini_batches` "
            "(`steps_per_generation` of grpo and rloo), `gradient_accumulation_steps` or "
            "`per_device_train_batch_size`, raise `num_generations`, or give more prompts"
        )


def _can_sample(trainer: Any) -> bool:
    args = trainer.args
    return not (
        trainer.use_vllm
        or trainer.is_fsdp_enabled
        or trainer.is_deepspeed_enabled
        or getattr(args, "use_transformers_continuous_batching", False)
        or args.generation_kwargs
        or args.cache_implementation
        or args.min_p
        or args.repetition_penalty != 1.0
    )


def _sampled(trainer: Any, prompt_ids: Sequence[Sequence[int]]) -> list[list[int]]:
    """A completion for each row of `prompt_ids`; equal prompts are read once."""
    distinct: dict[tuple[int, ...], int] = {}
    samples: list[int] = []
    rows = []
    for ids in prompt_ids:
        number = distinct.setdefault(tuple(ids), len(distinct))
        if number == len(samples):
            samples.append(0)
        rows.append((number, samples[number]))
        samples[number] += 1
    mode = "train" if trainer.model.training else "eval"
    keys = [(trainer.args.seed, trainer.state.global_step, stable_id(mode, rank(), ids)) for ids in distinct]
    settings = Generation(
        max_new_tokens=trainer.max_completion_length,
        temperature=trainer.temperature,
        top_p=trainer.top_p,
        top_k=trainer.top_k or 0,
        batch_tokens=trainer.generation_batch_tokens,
    )
    model = trainer.accelerator.unwrap_model(trainer.model)
    with merged_for_sampling(model):
        completions = sample_ids(
            model, trainer.processing_class, [list(ids) for ids in distinct], keys, samples, settings
        )
    return [completions[prompt][sample] for prompt, sample in rows]
