"""Proximal policy optimisation of a language model with a learned critic, on TRL's GRPOTrainer.

Sampling with vLLM (server and colocate), rewards, batching, logging and checkpoints are those of GRPOTrainer; sampling
with transformers is our own. This class adds to what GRPOTrainer's methods give, and replaces one: the loss. Nothing of
theirs is copied; `tests/test_ppo_seams.py` fails when one of those that are leant on changes.
"""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Any, ClassVar, cast

import safetensors.torch
import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, TrainerCallback
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import disable_dropout_in_model, shuffle_sequence_dict, split_tensor_dict

from rlhf_loop.errors import UserError
from rlhf_loop.models.loading import tune_cpu_memory
from rlhf_loop.models.weights import whole_copy, whole_state
from rlhf_loop.updates.ppo.advantages import (
    RunningScale,
    adapted_kl_coef,
    generalized_advantages,
    kl_per_token,
    last_index,
    moments,
    token_rewards,
    whiten,
)
from rlhf_loop.updates.ppo.checks import (
    Signal,
    check_columns,
    check_lengths,
    check_tokenizer,
    loaded_reward_model,
    paired_tokenizers,
    refuse_former_arguments,
    without_empty_completions,
)
from rlhf_loop.updates.ppo.config import PPOConfig
from rlhf_loop.updates.ppo.critic import (
    CRITIC,
    Placement,
    ValueTap,
    attach_critic,
    is_critic,
    load_critic,
    policy_is_active,
    thaw_critic,
    without_critic_adapter,
)
from rlhf_loop.updates.ppo.minibatches import loss_mask, trimmed
from rlhf_loop.updates.reward_functions import classifier_reward, watched
from rlhf_loop.updates.rollouts import Rollouts, check_prompts

logger = logging.getLogger(__name__)


_PROMPTS_CHECKED_AT_START = 10_000


class PPOTrainer(Rollouts, GRPOTrainer):  # type: ignore[misc]
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
        tokenizers = [
            given or AutoTokenizer.from_pretrained(function.config._name_or_path)
            if isinstance(function, PreTrainedModel)
            else None
            for function, given in zip(
                classifiers, paired_tokenizers(functions, reward_processing_classes), strict=True
            )
        ]
        super().__init__(
            model,
            [
                watched(self._scorer(function, tokenizer), args.reward_time_limit)
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
            value_model = self._reward_model_of_same_vocabulary(classifiers, tokenizers)
        attach_critic(self.model, self.placement, value_model, args.seed)
        for classifier in classifiers:
            if isinstance(classifier, PreTrainedModel) and getattr(classifier, "hf_device_map", None) is None:
                classifier.to(self.accelerator.device)
        if args.disable_dropout:
            _disable_dropout(self.model)
        self.kl_coef = args.kl_coef
        self.score_scale = RunningScale()
        self.episodes = 0  # completions sampled so far, over all ranks
        self._raw_rewards = torch.empty(0)  # (W * B, functions) of the last rollout
        self._rollout: dict[str, Any] = {}  # the last one, whole, to be shuffled anew for each epoch
        self._wants_values = False  # whether the policy's next forward without gradients is a rollout's
        self._rollout_values: torch.Tensor | None = None
        self.signal = Signal()
        self._over_budget = False
        self._clipped: tuple[list[nn.Parameter], list[nn.Parameter]] | None = None  # the critic's, the policy's
        self._began: tuple[float, int] | None = None  # when the first rollout did, and the episodes until then
        self._sums: dict[str, dict[str, torch.Tensor]] = {"train": {}, "eval": {}}
        self.add_callback(_Freezing(self))
        if self.use_vllm:
            self._hide_critic_from_vllm()
        # Elsewhere a token's absolute place matters, and cutting padding off on the left would change it.
        self._has_rotary_positions = any("rotary" in name for name, _ in self._unwrapped().named_modules())
        self._check_prompts()
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
        missing_eos = self._missing_eos(out)
        scores = self._shaped(raw_scores, out["scored"], missing_eos)
        reference = out.pop("ref_per_token_logps", None)
        has_reference = reference is not None
        kl = kl_per_token(log_probs, reference if has_reference else log_probs, mask, cast(Any, args.kl_estimator))
        token_level = token_rewards(scores, kl, mask, self.kl_coef)
        if args.whiten_rewards:
            token_level = whiten(token_level, mask, self._total, shift_mean=False)
        advantages, returns = generalized_advantages(token_level, values, mask, args.gamma, args.lam)
        _, error_variance = moments(returns - values, mask, self._total)
        _, return_variance = moments(returns, mask, self._total)
        if args.whiten_advantages:
            advantages = whiten(advantages, mask, self._total)

        kl_of_rollout = self._record_rollout(
            mode,
            out["scored"],
            per_completion={
                "objective/kl": kl_per_token(log_probs, reference, mask, "k1").sum(1) if has_reference else None,
                "objective/entropy": -(log_probs * mask).sum(1),
                "objective/non_score_reward": -self.kl_coef * kl.sum(1),
                "objective/scores": raw_scores,
                "objective/rlhf_reward": scores - self.kl_coef * kl.sum(1),
                "val/missing_eos": missing_eos,
            },
        )
        self._metrics[mode]["val/mean"].append(float(moments(values, mask, self._total)[0]))
        explained = 1 - error_variance / return_variance.clamp(min=1e-8)
        self._metrics[mode]["val/explained_variance"].append(float(explained))
        if mode == "train":
            completions = len(scores) * self.accelerator.num_processes
            self.episodes += completions
            if args.kl_target is not None:
                self.kl_coef = adapted_kl_coef(
                    self.kl_coef, kl_of_rollout, args.kl_target, args.kl_horizon, completions
                )
            if args.kl_budget is not None and kl_of_rollout > args.kl_budget:
                self._stop_over_budget(kl_of_rollout)
        out |= {"advantages": advantages, "returns": returns, "old_values": values}
        if mode == "train":  # an evaluation between two epochs leaves the rollout of the training as it is
            self._rollout = out
        return out

    def _record_rollout(self, mode: str, scored: torch.Tensor, per_completion: dict[str, torch.Tensor | None]) -> float:
        """Means over the scored completions of all ranks, each metric (B,); gives the KL, 0 without a reference."""
        known = {name: values for name, values in per_completion.items() if values is not None}
        sums = [scored.float().sum(), *((values * scored).sum().float() for values in known.values())]
        count, *summed = self._total(torch.stack(sums)).tolist()
        for name, value in zip(known, summed, strict=True):
            self._metrics[mode][name].append(value / max(count, 1.0))
        missing = summed[list(known).index("val/missing_eos")]
        self._metrics[mode]["val/num_eos_tokens"].append(count - missing)
        if "objective/kl" in known:
            self._metrics[mode]["objective/kl_coef"].append(self.kl_coef)
        self._metrics[mode].pop("frac_reward_zero_std", None)  # of groups, which PPO does not have
        return self._metrics[mode]["objective/kl"][-1] if "objective/kl" in known else 0.0

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

    def _missing_eos(self, out: dict[str, Any]) -> torch.Tensor:
        """Whether each completion was cut off, (B,)."""
        last = out["completion_ids"].gather(1, last_index(out["completion_mask"])[:, None])[:, 0]
        return ~torch.isin(last, torch.tensor(self.eos_token_ids, device=last.device))

    def _shaped(self, scores: torch.Tensor, scored: torch.Tensor, missing_eos: torch.Tensor) -> torch.Tensor:
        """Scores (B,) normalised, clipped, and with the penalty for a missing end, in this order."""
        args = self.args
        if args.normalize_scores:
            if self._mode() == "train":
                self.score_scale.update(scores[scored], self._total)
            scores = scores / self.score_scale.std
        if args.score_clip is not None:
            scores = scores.clamp(-args.score_clip, args.score_clip)
        if args.missing_eos_penalty is not None:
            scores = scores - args.missing_eos_penalty * missing_eos
        return scores

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
            self._buffered_inputs = self._trimmed_and_counted(self._buffered_inputs)
            inputs = self._buffered_inputs[self._step % parts]
        return inputs

    def _trimmed_and_counted(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Micro-batches without columns that are padding in every row, each with the number of tokens (all ranks) of
        the minibatch that it belongs to."""
        counts = self._total(torch.stack([loss_mask(batch).sum() for batch in batches]).float())
        accumulated = self.args.gradient_accumulation_steps
        windows = counts.view(-1, accumulated).sum(1).repeat_interleave(accumulated)
        if self.pad_to_multiple_of is None:
            batches = trimmed(batches, prompts=self._has_rotary_positions)
        return [{**batch, "minibatch_tokens": tokens} for batch, tokens in zip(batches, windows, strict=True)]

    # The loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Clipped policy and value losses (Schulman et al. 2017, eq. 7 and 9), means over the tokens of a minibatch.

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
        values = tap.values(mask.shape[1])
        advantages, returns = inputs["advantages"], inputs["returns"]
        if advantages.dim() == 1:
            advantages = advantages[:, None]

        log_ratio = (log_probs - inputs["old_per_token_logps"]) * mask
        ratio = log_ratio.exp()
        unclipped = -advantages * ratio
        clipped = -advantages * ratio.clamp(1 - args.cliprange, 1 + args.cliprange)
        policy_loss = torch.max(unclipped, clipped)
        if "importance_sampling_ratio" in inputs:  # vLLM's probabilities are not quite the trainer's
            policy_loss = policy_loss * inputs["importance_sampling_ratio"]
        value_unclipped = (values - returns) ** 2
        value_clipped = value_unclipped
        if args.cliprange_value is not None:
            change = (values - inputs["old_values"]).clamp(-args.cliprange_value, args.cliprange_value)
            value_clipped = (inputs["old_values"] + change - returns) ** 2
        value_loss = 0.5 * torch.max(value_unclipped, value_clipped)

        tokens = (
            inputs["minibatch_tokens"] / self.accelerator.num_processes if "minibatch_tokens" in inputs else mask.sum()
        )
        tokens = tokens.clamp(min=1.0)
        actor = (policy_loss * mask).sum() / tokens
        if self.entropy_coef:
            actor = actor - self.entropy_coef * (entropy * mask).sum() / tokens
        if self.aux_loss_enabled:
            actor = actor + self.router_aux_loss_coef * auxiliary / self.current_gradient_accumulation_steps
        if self.in_value_warmup:
            actor = actor * 0.0
        loss = actor + args.vf_coef * (value_loss * mask).sum() / tokens

        with torch.no_grad():
            means = {
                "loss/policy_avg": policy_loss,
                "loss/value_avg": value_loss,
                "policy/clipfrac_avg": clipped > unclipped,
                "val/clipfrac_avg": value_clipped > value_unclipped,
                "policy/approxkl_avg": 0.5 * log_ratio**2,
                "policy/entropy_avg": entropy,
                "val/ratio": ratio,
                "val/ratio_var": ratio**2,  # turned into the variance when it is logged
            }
            for name, per_token in means.items():
                self._add(mode, name, (per_token * mask).sum(), mask.sum())
            if self.aux_loss_enabled:  # of a mixture of experts
                self._add(mode, "aux_loss", auxiliary, None)
        return loss

    @property
    def in_value_warmup(self) -> bool:
        """Whether only the critic learns now."""
        return bool(self.model.training and self.state.global_step < self.args.value_warmup_steps)

    # Optimizer

    def create_optimizer(self, model: Any = None) -> Any:
        """Parameter groups of the critic have its own learning rate."""
        if self.optimizer is not None:  # the user's, or that of an earlier `train()`
            return super().create_optimizer(model)
        optimizer = super().create_optimizer(model)
        named = (self.model if model is None else model).named_parameters()
        critic = {id(parameter) for name, parameter in named if is_critic(name)}
        rate = self.args.critic_learning_rate
        rate = self.args.learning_rate if rate is None else rate
        groups = []
        for group in optimizer.param_groups:
            mine = [p for p in group["params"] if id(p) in critic]
            others = [p for p in group["params"] if id(p) not in critic]
            groups += [{**group, "params": others}] if others else []
            groups += [{**group, "params": mine, "lr": rate}] if mine else []
        optimizer.param_groups[:] = groups
        return optimizer

    def _clip_grad_norm(self, model: Any) -> Any:
        """The critic's gradient and the policy's are clipped apart, except under FSDP and DeepSpeed."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        if self._clipped is None:  # names are not walked at each step
            named = list(model.named_parameters())
            self._clipped = [p for name, p in named if is_critic(name)], [p for name, p in named if not is_critic(name)]
        critic, policy = self._clipped
        limit = self.args.max_grad_norm
        of_critic = self.accelerator.clip_grad_norm_(critic, self.args.critic_max_grad_norm or limit)
        of_policy = nn.utils.clip_grad_norm_(policy, limit)  # already unscaled by the call before
        self._add("train", "val/grad_norm", of_critic.detach().float(), None)
        self._add("train", "policy/grad_norm", of_policy.detach().float(), None)
        return of_policy

    def frozen_parameters(self) -> list[nn.Parameter]:
        """Parameters that the next optimizer step must not touch."""
        if self._over_budget:
            return list(self.model.parameters())
        if self.in_value_warmup:
            return [parameter for name, parameter in self.model.named_parameters() if not is_critic(name)]
        return []

    def _stop_over_budget(self, kl: float) -> None:
        logger.warning(
            "KL to the reference is %.3f nats a completion, over the budget of %s: training stops here",
            kl, self.args.kl_budget,
        )  # fmt: skip
        self._over_budget = True
        self.control.should_training_stop = True

    # Metrics: sums and counts on the device, added up over the ranks when they are logged

    def _add(self, mode: str, name: str, value: torch.Tensor, count: torch.Tensor | None) -> None:
        """Adds to a mean over tokens, or (count None) to a mean over steps, of something equal on all ranks."""
        counted = torch.ones((), device=value.device) if count is None else count
        pair = torch.stack([value.detach().float(), counted.float()])
        sums = self._sums[mode]
        sums[name] = sums[name] + pair if name in sums else pair

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's metrics and PPO's, under the names of TRL's former PPOTrainer."""
        mode = self._mode()
        if self._sums[mode]:
            summed = self._total(torch.stack(list(self._sums[mode].values()))).tolist()
            means = {
                name: value / max(count, 1.0) for name, (value, count) in zip(self._sums[mode], summed, strict=True)
            }
            if "val/ratio_var" in means:
                means["val/ratio_var"] = max(0.0, means["val/ratio_var"] - means["val/ratio"] ** 2)
            for name, value in means.items():
                self._metrics[mode][name] = [value]
            self._sums[mode] = {}
        if mode == "train" and self.episodes and self._began is not None and "train_runtime" not in logs:
            self._metrics[mode]["episode"] = [self.episodes]
            began, before = self._began
            self._metrics[mode]["eps"] = [(self.episodes - before) / max(time.monotonic() - began, 1e-9)]
            if "learning_rate" in logs:
                self._metrics[mode]["lr"] = [logs["learning_rate"]]
        super().log(logs, start_time)

    # Checkpoints: the policy is saved as it would be without a critic, and the critic in a folder beside it

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The policy, and the critic beside it; on every rank, since both may be shared out."""
        super().save_model(output_dir, _internal_call)
        critic = whole_state(self._unwrapped(), is_critic)
        if self.args.should_save:
            folder = os.path.join(output_dir or self.args.output_dir, CRITIC)
            os.makedirs(folder, exist_ok=True)
            tensors = {name: tensor.contiguous().clone() for name, tensor in critic.items()}
            safetensors.torch.save_file(tensors, os.path.join(folder, _CRITIC_FILE))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = output_dir or self.args.output_dir
        model = self._unwrapped()
        state = model.state_dict() if state_dict is None else state_dict
        policy = {name: tensor for name, tensor in state.items() if not is_critic(name)}
        with without_critic_adapter(model):
            super()._save(folder, state_dict=policy)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state = {
                "kl_coef": self.kl_coef,
                "episodes": self.episodes,
                "score_scale": self.score_scale.state(),
                "signal": self.signal.state(),
            }
            with open(os.path.join(output_dir, _STATE_FILE), "w") as file:
                json.dump(state, file)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not os.path.isfile(os.path.join(checkpoint, _STATE_FILE)):
            return
        with open(os.path.join(checkpoint, _STATE_FILE)) as file:
            state = json.load(file)
        self.kl_coef, self.episodes = state["kl_coef"], state["episodes"]
        self.score_scale.load(state["score_scale"])
        self.signal.load(state["signal"])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        target = self.model if model is None else model
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = os.path.join(resume_from_checkpoint, CRITIC)
        if not os.path.isfile(os.path.join(folder, _CRITIC_FILE)):
            raise UserError(f"{resume_from_checkpoint} holds no critic ({CRITIC}/): it is not a checkpoint of PPO")
        different = load_critic(target, safetensors.torch.load_file(os.path.join(folder, _CRITIC_FILE)))
        if different:
            raise UserError(
                f"the critic in {folder} is not this one (critic={self.placement!r}): {min(different)} differs; resume "
                "with the settings that it was made with"
            )
        thaw_critic(target)  # frozen by PEFT when it loaded the policy's adapter

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if not is_critic(name)]
        super()._issue_warnings_after_load(load_result)

    # What is refused

    def _check_prompts(self) -> None:
        """At the start, what can be known of the prompts."""
        dataset = self.train_dataset
        if not isinstance(dataset, Dataset):
            return
        check_prompts(len(dataset), self.args)
        if self.environment_factories is None and "prompt" in dataset.column_names:
            for first in range(0, min(len(dataset), _PROMPTS_CHECKED_AT_START), 1000):
                self._tokenize_prompts(list(dataset[first : first + 1000]["prompt"]))

    # Small things

    def _hide_critic_from_vllm(self) -> None:
        named = self.vllm_generation._iter_named_params
        self.vllm_generation._iter_named_params = lambda: (item for item in named() if not is_critic(item[0]))

    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _unwrapped(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    def _has_adapter(self) -> bool:
        return isinstance(self._unwrapped(), PeftModel)

    def _total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks."""
        return cast(torch.Tensor, self.accelerator.reduce(tensor.float(), reduction="sum"))

    def _scorer(self, function: Any, tokenizer: Any) -> Any:
        """A reward given as a classifier becomes a function."""
        if not isinstance(function, PreTrainedModel):
            return function
        function.eval().requires_grad_(False)
        return classifier_reward(function, tokenizer, lambda ids: ids[-1] in self.eos_token_ids)

    def _reward_model_of_same_vocabulary(self, functions: list[Any], tokenizers: list[Any]) -> Any:
        """A copy of the first reward model that reads the policy's tokens, to start the critic from."""
        policy = self._unwrapped()
        size = policy.get_input_embeddings().num_embeddings
        for function, tokenizer in zip(functions, tokenizers, strict=True):
            if (
                isinstance(function, PreTrainedModel)
                and function.get_input_embeddings().num_embeddings >= size
                and tokenizer.get_vocab() == self._tokenizer.get_vocab()
            ):
                return whole_copy(function).to(policy.dtype)
        return None


_STATE_FILE = "ppo_state.json"
_CRITIC_FILE = "critic.safetensors"


class _Freezing(TrainerCallback):  # type: ignore[misc]
    """Takes the gradients of frozen parameters away before the optimizer sees them: no momentum, no weight decay."""

    def __init__(self, trainer: PPOTrainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After clipping, before the step."""
        for parameter in self.trainer.frozen_parameters():
            parameter.grad = None


def _disable_dropout(model: nn.Module) -> None:
    """That of layers, and that of attention, which modules keep as a number."""
    disable_dropout_in_model(model)
    for module in model.modules():
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
