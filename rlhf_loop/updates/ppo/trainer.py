"""Proximal policy optimisation of a language model with a learned critic, on TRL's GRPOTrainer.

Sampling with vLLM (server and colocate), rewards, batching, logging and checkpoints are those of GRPOTrainer; sampling
with transformers is our own. This class adds to what GRPOTrainer's methods give, and replaces one: the loss. Nothing of
theirs is copied; `tests/updates/test_ppo_seams.py` fails when one of those that are leant on changes.
"""

from __future__ import annotations

import logging
import time
from typing import Any, ClassVar, cast

import torch
from peft import PeftModel
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

from rlhf_loop.errors import UserError
from rlhf_loop.models.memory import tune_cpu_memory
from rlhf_loop.updates.ppo.advantages import RunningScale, adapted_kl_coef
from rlhf_loop.updates.ppo.checkpoint import CriticCheckpoints
from rlhf_loop.updates.ppo.checks import (
    Signal,
    check_columns,
    check_lengths,
    check_start,
    check_tokenizer,
    loaded_reward_model,
    paired_tokenizers,
    refuse_former_arguments,
    without_empty_completions,
)
from rlhf_loop.updates.ppo.config import PPOConfig
from rlhf_loop.updates.ppo.critic import (
    Placement,
    ValueTap,
    attach_critic,
    hide_critic_from_vllm,
    policy_is_active,
    thaw_critic,
)
from rlhf_loop.updates.ppo.loss import ppo_loss
from rlhf_loop.updates.ppo.metrics import Metrics, completion_means
from rlhf_loop.updates.ppo.minibatches import counted, loss_mask, trimmed
from rlhf_loop.updates.ppo.optimizer import CriticOptimizer, Freezing, without_dropout
from rlhf_loop.updates.ppo.reward_models import as_function, move_classifiers, start_of_critic, tokenizers_of
from rlhf_loop.updates.ppo.rollout import missing_end, shaped, targets
from rlhf_loop.updates.reward_functions import watched
from rlhf_loop.updates.rollouts import Rollouts
from rlhf_loop.updates.terms.trainer import WithTerms

logger = logging.getLogger(__name__)


class PPOTrainer(WithTerms, CriticCheckpoints, CriticOptimizer, Rollouts, GRPOTrainer):  # type: ignore[misc]
    """PPO (Schulman et al. 2017, arXiv 1707.06347; Ouyang et al. 2022, arXiv 2203.02155) with TRL's conventions.

        trainer = PPOTrainer(
            model="HuggingFaceTB/SmolLM2-135M-Instruct",
            reward_funcs=lambda completions, **_: [-abs(20 - len(c[0]["content"].split())) for c in completions],
            args=PPOConfig("out", num_mini_batches=2),
            train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "Why is the sky blue?"}]}]),
        )

    Takes GRPOTrainer's arguments, and `value_model`: what a separate critic starts from, a sequence classifier with one
    output or a headless model, of the policy's vocabulary. By default that is a reward model given as a classifier of
    this vocabulary, else a copy of the policy's trunk.

    Rewards come from functions of TRL's interface, or from classifiers (a module, a hub id or a folder), which read
    texts in tokens of their own. Before a rollout moves a weight, `UserError` is raised for rewards that are not
    finite, of the wrong number, not there in time, or the same number for every completion since the training began;
    for empty completions and over-long prompts; and for weights that are not finite.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "ppo", "rlhf-loop"]
    _name = "PPO"
    _paper: ClassVar[dict[str, str]] = {
        "title": "Training language models to follow instructions with human feedback",
        "id": "2203.02155",
        "citation": (
            "@inproceedings{ouyang2022training, title={Training language models to follow instructions with human "
            "feedback}, author={Long Ouyang and Jeff Wu and Xu Jiang and others}, year={2022}, "
            "booktitle={Advances in Neural Information Processing Systems}}"
        ),
    }

    args: PPOConfig
    _buffered_inputs: Any

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: PPOConfig | None = None,
        *,
        value_model: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        rollout_func: Any = None,
        **more: Any,
    ):
        refuse_former_arguments(model, more)
        if args is None:
            args = PPOConfig("trainer_output")
        if args.critic_learning_rate is not None and more.get("optimizers", (None, None))[0] is not None:
            raise UserError("`critic_learning_rate` has no effect on an optimizer that you made; leave one of them out")
        if processing_class is not None:
            check_tokenizer(processing_class)
        for name in ("train_dataset", "eval_dataset"):
            check_columns(more.get(name), name, needed=not more.get("environment_factory"))
        functions = _as_list(reward_funcs)
        classifiers = [loaded_reward_model(function) for function in functions]
        value_model = loaded_reward_model(value_model)  # by its name or folder too
        tokenizers = tokenizers_of(classifiers, paired_tokenizers(functions, reward_processing_classes))
        super().__init__(
            model,
            [
                watched(as_function(function, tokenizer, self._has_ended), args.reward_time_limit)
                for function, tokenizer in zip(classifiers, tokenizers, strict=True)
            ],
            args,
            processing_class=processing_class,
            rollout_func=None if rollout_func is None else without_empty_completions(rollout_func),
            **more,
        )
        self.reward_processing_classes[: len(tokenizers)] = tokenizers  # an environment's own rewards are behind them
        if self._is_vlm:
            raise UserError("PPOTrainer trains text models; the critic reads no images")
        check_tokenizer(self._tokenizer)
        self.placement: Placement = cast(Placement, args.critic) or ("adapter" if self._has_adapter() else "separate")
        if value_model is None and self.placement == "separate":
            value_model = start_of_critic(classifiers, tokenizers, self._unwrapped(), self._tokenizer)
        attach_critic(self.model, self.placement, value_model, args.seed)
        move_classifiers(classifiers, self.accelerator.device)
        if args.disable_dropout:
            without_dropout(self.model)
        self.kl_coef = args.kl_coef
        self.score_scale = RunningScale()
        self.episodes = 0  # completions sampled so far, over all ranks
        self._raw_rewards = torch.empty(0)  # (W * B, functions) of the last rollout
        self._rollout: dict[str, Any] = {}  # the last one, whole, to be shuffled anew for each epoch
        self._wants_values = False  # whether the policy's next forward without gradients is a rollout's
        self._rollout_values: torch.Tensor | None = None
        self.signal = Signal()
        self._over_budget = False
        self._began: tuple[float, int] | None = None  # when the first rollout did, and the episodes until then
        self.step_metrics = Metrics(self._total)
        self.add_callback(Freezing(self.frozen_parameters))
        if self.use_vllm:
            hide_critic_from_vllm(self.vllm_generation)
        # Elsewhere a token's absolute place matters, and cutting padding off on the left would change it.
        self._has_rotary_positions = any("rotary" in name for name, _ in self._unwrapped().named_modules())
        check_start(self.train_dataset, args, None if self.environment_factories else self._tokenize_prompts)
        if self.accelerator.device.type == "cpu":
            tune_cpu_memory()

    # The rollout

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        tokenized = super()._tokenize_prompts(prompts)
        check_lengths(
            prompts,
            tokenized[0],
            limit=self.args.max_prompt_length,
            context=getattr(self.model.config.get_text_config(), "max_position_embeddings", None),
            new_tokens=self.max_completion_length,
        )
        return tokenized

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._raw_rewards = super()._calculate_rewards(*args, **kwargs)
        return self._raw_rewards

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:
        """In a rollout, the policy's forward that TRL makes for the old log-probabilities gives the values too."""
        if not (self._wants_values and model is self.model and policy_is_active(self._unwrapped())):
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        tap = ValueTap(model)
        result = super()._get_per_token_logps_and_entropies(
            tap, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        self._rollout_values = tap.values(logits_to_keep)
        return result

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """GRPO's rollout with, (B, T) each: old_per_token_logps, old_values, advantages, returns; and scored (B,)."""
        args, mode = self.args, self._mode()
        self._began = self._began or (time.monotonic(), self.episodes)
        self._wants_values, self._rollout_values = True, None
        try:
            out: dict[str, Any] = super()._generate_and_score_completions(inputs)
            thaw_critic(self._unwrapped())  # frozen by PEFT when the reference was computed
            if "old_per_token_logps" not in out or self._rollout_values is None:
                out["old_per_token_logps"] = self._log_probs_of_rollout(out)
        finally:
            self._wants_values = False
        log_probs = out["old_per_token_logps"]
        # Rows that no reward function has anything to say of take no part.
        rewards = self._rewards_of_this_rank(len(log_probs))
        out["scored"] = ~torch.isnan(rewards).all(1)  # (B,)
        mask = loss_mask(out).float()
        values = cast(torch.Tensor, self._rollout_values) * mask
        if not (torch.isfinite(values).all() and torch.isfinite(log_probs * mask).all()):
            raise UserError(
                "the policy or its critic gives numbers that are not finite: the last updates broke their weights. "
                "Lower `learning_rate` or `critic_learning_rate`, or set `max_grad_norm: 1.0`"
            )
        if mode == "train" and not args.missing_eos_penalty:
            self.signal.check(self._raw_rewards, self.reward_weights)

        raw_scores = (rewards * self.reward_weights.to(rewards.device)).nansum(1)  # (B,)
        missing_eos = missing_end(out["completion_ids"], out["completion_mask"], self.eos_token_ids)
        if mode == "train" and args.normalize_scores:
            self.score_scale.update(raw_scores[out["scored"]], self._total)
        scores = shaped(raw_scores, missing_eos, self.score_scale, args)
        made = targets(
            log_probs=log_probs,
            reference=out.pop("ref_per_token_logps", None),
            values=values,
            scores=scores,
            mask=mask,
            kl_coef=self.kl_coef,
            args=args,
            total=self._total,
        )
        means = completion_means(
            out["scored"],
            {
                "objective/kl": made.kl,
                "objective/entropy": -(log_probs * mask).sum(1),
                "objective/non_score_reward": -made.penalty,
                "objective/scores": raw_scores,
                "objective/rlhf_reward": scores - made.penalty,
                "val/missing_eos": missing_eos,
            },
            self._total,
        )
        if made.kl is not None:
            means["objective/kl_coef"] = self.kl_coef
        means |= {"val/mean": made.mean_value, "val/explained_variance": made.explained_variance}
        for name, value in means.items():
            self._metrics[mode][name].append(value)
        self._metrics[mode].pop("frac_reward_zero_std", None)  # of groups, which PPO does not have
        out |= {"advantages": made.advantages, "returns": made.returns, "old_values": values}
        if mode == "train":
            self._count_episodes(len(scores) * self.accelerator.num_processes, kl=means.get("objective/kl", 0.0))
            self._rollout = out  # an evaluation between two epochs leaves it as it is
        return out

    def _count_episodes(self, completions: int, kl: float) -> None:
        """What a rollout of so many completions, of this KL to the reference (nats each), means for the next one."""
        args = self.args
        self.episodes += completions
        if args.kl_target is not None:
            self.kl_coef = adapted_kl_coef(self.kl_coef, kl, args.kl_target, args.kl_horizon, completions)
        if args.kl_budget is not None and kl > args.kl_budget:
            logger.warning(
                "KL to the reference is %.3f nats a completion, over the budget of %s: training stops here",
                kl,
                args.kl_budget,
            )
            self._over_budget = True
            self.control.should_training_stop = True

    def _log_probs_of_rollout(self, out: dict[str, Any]) -> torch.Tensor:
        """The policy's log-probabilities (and its values on the way), where TRL had no need of them."""
        ids = torch.cat([out["prompt_ids"], out["completion_ids"]], 1)
        attention = torch.cat([out["prompt_mask"], out["completion_mask"]], 1)
        args = self.args
        size = args.per_device_train_batch_size if self._mode() == "train" else args.per_device_eval_batch_size
        with torch.no_grad(), disable_gradient_checkpointing(self.model, args.gradient_checkpointing_kwargs):
            log_probs, _, _ = self._get_per_token_logps_and_entropies(
                self.model, ids, attention, out["completion_ids"].shape[1], batch_size=size
            )
        return cast(torch.Tensor, log_probs)

    def _rewards_of_this_rank(self, rows: int) -> torch.Tensor:
        """(B, functions)."""
        first = self.accelerator.process_index * rows
        return self._raw_rewards[first : first + rows]

    # Minibatches

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Each PPO epoch goes through the rollout in an order of its own."""
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        parts = self.args.steps_per_generation
        begins_rollout = self._step % (parts * self.num_iterations) == 0 or self._buffered_inputs is None
        begins_epoch = self._step % parts == 0
        if begins_epoch and not begins_rollout:
            self._buffered_inputs = split_tensor_dict(shuffle_sequence_dict(self._rollout), parts)
        inputs = super()._prepare_inputs(generation_batch)
        if begins_epoch or begins_rollout:
            batches = counted(self._buffered_inputs, self.args.gradient_accumulation_steps, self._total)
            if self.pad_to_multiple_of is None:
                batches = trimmed(batches, prompts=self._has_rotary_positions)
            self._buffered_inputs = batches
            inputs = self._buffered_inputs[self._step % parts]
        return inputs

    # The loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """That of `loss.py`, means over the tokens of a minibatch.

        Each rank and each accumulation step gives its sum over (tokens of the whole minibatch / ranks): what DDP's mean
        over ranks then gives is the mean over all tokens, however they are spread.
        """
        args, mode = self.args, self._mode()
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        mask = loss_mask(inputs).float()  # (B, T)
        tap = ValueTap(model, detached=self.in_value_warmup)
        log_probs, entropy, auxiliary = self._get_per_token_logps_and_entropies(
            tap, ids, attention, mask.shape[1], compute_entropy=True, compute_aux_loss=self.aux_loss_enabled
        )
        tokens = (
            inputs["minibatch_tokens"] / self.accelerator.num_processes if "minibatch_tokens" in inputs else mask.sum()
        )
        advantages = inputs["advantages"]
        policy_loss, value_loss, statistics = ppo_loss(
            log_probs=log_probs,
            old_log_probs=inputs["old_per_token_logps"],
            advantages=advantages if advantages.dim() == 2 else advantages[:, None],
            values=tap.values(mask.shape[1]),
            old_values=inputs["old_values"],
            returns=inputs["returns"],
            entropy=entropy,
            mask=mask,
            tokens=tokens.clamp(min=1.0),
            cliprange=args.cliprange,
            cliprange_value=args.cliprange_value,
            vf_coef=args.vf_coef,
            entropy_coef=self.entropy_coef,
            correction=inputs.get("importance_sampling_ratio"),  # vLLM's probabilities are not quite the trainer's
        )
        self.step_metrics.add_loss(mode, statistics)
        if self.aux_loss_enabled:  # of a mixture of experts
            policy_loss = policy_loss + self.router_aux_loss_coef * auxiliary / self.current_gradient_accumulation_steps
            self.step_metrics.add_step(mode, "aux_loss", auxiliary)
        if self.in_value_warmup:
            policy_loss = policy_loss * 0.0
        return policy_loss + value_loss

    # Metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's metrics and PPO's, under the names of TRL's former PPOTrainer."""
        mode = self._mode()
        for name, value in self.step_metrics.take_means(mode).items():
            self._metrics[mode][name] = [value]
        if mode == "train" and self.episodes and self._began is not None and "train_runtime" not in logs:
            self._metrics[mode]["episode"] = [self.episodes]
            began, before = self._began
            self._metrics[mode]["eps"] = [(self.episodes - before) / max(time.monotonic() - began, 1e-9)]
            if "learning_rate" in logs:
                self._metrics[mode]["lr"] = [logs["learning_rate"]]
        super().log(logs, start_time)

    # Small things

    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _unwrapped(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    def _has_adapter(self) -> bool:
        return isinstance(self._unwrapped(), PeftModel)

    def _total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks."""
        return cast(torch.Tensor, self.accelerator.reduce(tensor.float(), reduction="sum"))

    def _has_ended(self, ids: Any) -> bool:
        return ids[-1] in self.eos_token_ids


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
