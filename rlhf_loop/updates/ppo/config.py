"""Every setting of PPO, on top of TRL's GRPOConfig, from which sampling, vLLM, batching and logging come."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from trl import GRPOConfig

from rlhf_loop.errors import UserError
from rlhf_loop.models.distributed import world_size
from rlhf_loop.updates.reward_functions import TIME_LIMIT

logger = logging.getLogger(__name__)

_FORMER = {
    "response_length": "`max_completion_length`",
    "stop_token": "nothing: a completion ends with what the model's generation config and the tokenizer call EOS",
    "stop_token_id": "nothing: a completion ends with what the model's generation config and the tokenizer call EOS",
    "local_rollout_forward_batch_size": "`per_device_train_batch_size`",
    "num_sample_generations": "`log_completions`",
    "dataset_num_proc": "nothing",
    "sft_model_path": "PPOTrainer's `model`",
    "reward_model_path": "PPOTrainer's `reward_funcs`",
    "model_adapter_name": "PPOTrainer's `model` or `peft_config`",
    "ref_adapter_name": "PPOTrainer's `model` or `peft_config`",
    "exp_name": "`run_name`",
    **dict.fromkeys(("world_size", "num_total_batches"), "nothing: it is computed"),
    **dict.fromkeys(
        ("batch_size", "local_batch_size"),
        "`num_mini_batches`: a rollout is as many minibatches of `per_device_train_batch_size * "
        "gradient_accumulation_steps` completions a process",
    ),
    **dict.fromkeys(
        ("mini_batch_size", "local_mini_batch_size", "micro_batch_size"),
        "`per_device_train_batch_size` and `gradient_accumulation_steps`, whose product it is, a process",
    ),
    "model_name": "PPOTrainer's `model`",
    "log_with": "`report_to`",
    "steps": "`total_episodes`",
    "ppo_epochs": "`num_ppo_epochs`",
    "init_kl_coef": "`kl_coef`",
    "adap_kl_ctrl": "`kl_target`",
    "target": "`kl_target`",
    "horizon": "`kl_horizon`",
    "early_stopping": "`kl_budget`",
    "target_kl": "`kl_budget`",
    "kl_penalty": "`kl_estimator`",
    "use_score_scaling": "`normalize_scores`",
    "use_score_norm": "`normalize_scores`",
    "forward_batch_size": "`per_device_train_batch_size`",
}
"""Settings of TRL's former PPOConfigs (to 0.11, and to 1.12) that are called otherwise -> what to set instead."""

_INSTEAD = {
    "num_iterations": "`num_ppo_epochs`",
    "beta": "`kl_coef`",
    "epsilon": "`cliprange`",
    "epsilon_high": "`cliprange`",
    "delta": "`cliprange`",
    "loss_type": "nothing: PPO's loss is a mean over the tokens of a minibatch",
    "scale_rewards": "`whiten_advantages`, `whiten_rewards` or `normalize_scores`",
    "importance_sampling_level": "nothing: PPO's ratio is that of a token",
    "multi_objective_aggregation": "nothing: rewards are added with `reward_weights`",
    "mask_truncated_completions": "`missing_eos_penalty`",
    "top_entropy_quantile": "nothing: PPO trains on every sampled token",
    "off_policy_mask_threshold": "`cliprange`",
    "use_bias_correction_kl": "`kl_estimator`",
    "use_adaptive_entropy": "`entropy_coef`",
    "load_best_model_at_end": "nothing: the critic would stay that of the last step",
    "sync_ref_model": "nothing: the KL penalty needs a reference that stays",
    "steps_per_generation": "`num_mini_batches`",
    "generation_batch_size": "`num_mini_batches`, `per_device_train_batch_size` and `gradient_accumulation_steps`",
}
"""Fields of GRPOConfig that mean nothing to PPO -> what to set in their place."""


@dataclass
class PPOConfig(GRPOConfig):  # type: ignore[misc]
    """Settings of `PPOTrainer`. Names are those of TRL's former PPOConfig where it had them.

    One optimizer step is a minibatch of `per_device_train_batch_size * gradient_accumulation_steps * processes`
    completions; a rollout is `num_mini_batches` of them; each rollout is gone through `num_ppo_epochs` times.
    Defaults are those of Huang et al. 2024 (arXiv 2403.17031), which reproduces Stiennon et al. 2020.
    """

    learning_rate: float = field(
        default=3e-6, metadata={"help": "Of the policy; of the critic too unless it has its own."}
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "With dropout the ratio of an unchanged policy is not 1."}
    )
    num_generations: int = field(default=1, metadata={"help": "Completions of each prompt in a rollout."})
    total_episodes: int | None = field(
        default=None, metadata={"help": "Completions to sample in all, rounded up to whole rollouts; sets `max_steps`."}
    )
    num_ppo_epochs: int = field(default=4, metadata={"help": "Times that each rollout is trained on."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimizer steps in one pass over a rollout."})
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Longer prompts, in tokens, are an error. None: what fits into the model."}
    )
    kl_coef: float = field(default=0.05, metadata={"help": "Weight of the KL to the reference in a token's reward."})
    kl_estimator: str = field(default="k1", metadata={"help": "`k1` or `k3` (Schulman 2020)."})
    kl_target: float | None = field(
        default=None,
        metadata={"help": "Nats a completion that `kl_coef` adapts towards (Ziegler et al. 2019). None: it is fixed."},
    )
    kl_horizon: float = field(default=10000.0, metadata={"help": "Completions over which `kl_coef` adapts."})
    kl_budget: float | None = field(
        default=None, metadata={"help": "Training stops at the first rollout with more KL, in nats a completion."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalised advantage estimation."})
    cliprange: float = field(default=0.2, metadata={"help": "Clipping of the probability ratio."})
    cliprange_value: float | None = field(
        default=0.2, metadata={"help": "Clipping of the value's change. None: the value loss is not clipped."}
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    whiten_advantages: bool = field(default=True, metadata={"help": "Mean 0 and variance 1 over a rollout, all ranks."})
    whiten_rewards: bool = field(
        default=False, metadata={"help": "Token rewards of variance 1 over a rollout, all ranks."}
    )
    normalize_scores: bool = field(
        default=False, metadata={"help": "Divide scores by their standard deviation so far, over all ranks."}
    )
    score_clip: float | None = field(default=None, metadata={"help": "Scores are cut to +- this, after normalisation."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Taken off the score of a completion that did not end, after clipping."}
    )
    critic: str | None = field(
        default=None,
        metadata={"help": "`separate`, `head` or `adapter`. None: `adapter` for a LoRA policy, otherwise `separate`."},
    )
    critic_learning_rate: float | None = field(default=None, metadata={"help": "None: `learning_rate`."})
    critic_max_grad_norm: float | None = field(
        default=None, metadata={"help": "The critic's gradient is clipped on its own. None: to `max_grad_norm`."}
    )
    value_warmup_steps: int = field(
        default=0, metadata={"help": "Optimizer steps at the start in which only the critic learns."}
    )
    reward_time_limit: float | None = field(
        default=TIME_LIMIT,
        metadata={"help": "Seconds that a reward function may take for one rollout. None: no limit."},
    )

    def __new__(cls, *arguments: Any, **settings: Any) -> Any:
        """Says what a setting of the former PPOConfig is called now."""
        for name in settings.keys() & _FORMER.keys():
            raise UserError(f"PPOConfig has no `{name}`; set {_FORMER[name]}. See docs/updates.md")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        trl: Any = self  # its fields have no types
        self._refuse_what_means_nothing()
        self._check_ranges()
        if not self.use_cpu and (trl.fp16 or trl.bf16 is not False) and not torch.accelerator.is_available():
            raise UserError(
                "there is no accelerator here: set `use_cpu=True` to train on the CPU, with `bf16=False` where the "
                "weights are float32"
            )
        self.num_iterations = self.num_ppo_epochs
        self.steps_per_generation = self.gradient_accumulation_steps * self.num_mini_batches
        self.generation_batch_size = None  # follows from it
        self.beta = self.kl_coef or (1.0 if self.kl_budget else 0.0)  # not 0: TRL then makes the reference
        wanted, self.num_generations = self.num_generations, self._any_that_trl_takes()
        wanted_in_evaluation, self.num_generations_eval = trl.num_generations_eval, trl.num_generations_eval or wanted
        super().__post_init__()
        self.num_generations = wanted
        self.num_generations_eval = wanted_in_evaluation
        if trl.generation_batch_size % wanted:
            raise UserError(
                f"num_generations: a rollout of {self.generation_batch_size} completions cannot be made of groups of "
                f"{wanted}"
            )
        if self.total_episodes is not None:
            self.max_steps = math.ceil(self.total_episodes / trl.generation_batch_size) * self.steps_per_rollout
        self._save_between_rollouts()

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps from one rollout to the next."""
        return self.num_ppo_epochs * self.num_mini_batches

    def _refuse_what_means_nothing(self) -> None:
        derived = {
            "num_iterations": self.num_ppo_epochs,
            "beta": self.kl_coef,
            "steps_per_generation": self.gradient_accumulation_steps * self.num_mini_batches,
        }
        defaults = {f.name: f.default for f in dataclasses.fields(GRPOConfig)}
        for name, instead in _INSTEAD.items():
            if getattr(self, name) not in (defaults[name], derived.get(name, defaults[name])):
                raise UserError(f"{name}={getattr(self, name)!r}: PPO does not use it; set {instead}")

    def _check_ranges(self) -> None:
        mistakes = {
            "num_ppo_epochs": self.num_ppo_epochs < 1,
            "num_mini_batches": self.num_mini_batches < 1,
            "num_generations": self.num_generations < 1,
            "kl_coef": self.kl_coef < 0,
            "kl_estimator": self.kl_estimator not in ("k1", "k3"),
            "kl_target": self.kl_target is not None and (self.kl_target <= 0 or self.kl_coef == 0),
            "kl_horizon": self.kl_horizon <= 0,
            "kl_budget": self.kl_budget is not None and self.kl_budget <= 0,
            "gamma": not 0 <= self.gamma <= 1,
            "lam": not 0 <= self.lam <= 1,
            "cliprange": self.cliprange <= 0,
            "cliprange_value": self.cliprange_value is not None and self.cliprange_value <= 0,
            "score_clip": self.score_clip is not None and self.score_clip <= 0,
            "critic": self.critic not in (None, "separate", "head", "adapter"),
            "value_warmup_steps": self.value_warmup_steps < 0,
            "reward_time_limit": self.reward_time_limit is not None and self.reward_time_limit <= 0,
        }
        for name, wrong in mistakes.items():
            if wrong:
                raise UserError(f"{name}={getattr(self, name)!r} is out of range: {_RANGES[name]}")

    def _any_that_trl_takes(self) -> int:
        """GRPO's settings insist on 2 or more completions a prompt; PPO has a critic and needs no group."""
        rollout = self.per_device_train_batch_size * world_size() * self.steps_per_generation
        if rollout < 2:
            raise UserError(
                "a rollout of 1 completion has no variance to whiten: raise `per_device_train_batch_size`, "
                "`gradient_accumulation_steps` or `num_mini_batches`"
            )
        return int(rollout)

    def _save_between_rollouts(self) -> None:
        """A rollout is not saved, so a training can only be resumed where the next one begins."""
        trl: Any = self
        steps = trl.save_steps
        if self.save_strategy == "best":
            raise UserError("save_strategy='best' would save within a rollout; use 'steps' or 'epoch'")
        if self.save_strategy != "steps" or steps % self.steps_per_rollout == 0:
            return
        if steps < 1:
            raise UserError(
                f"save_steps={steps}: give a number of optimizer steps, a multiple of {self.steps_per_rollout}"
            )
        self.save_steps = max(1, math.ceil(steps / self.steps_per_rollout)) * self.steps_per_rollout
        logger.warning(
            "save_steps=%s is within a rollout of %s steps; saving every %s steps, where a training can be resumed",
            steps, self.steps_per_rollout, self.save_steps,
        )  # fmt: skip


_RANGES = {
    "num_ppo_epochs": "at least 1",
    "num_mini_batches": "at least 1",
    "num_generations": "at least 1",
    "kl_coef": "0 or more; 0 trains without a reference",
    "kl_estimator": "k1 or k3",
    "kl_target": "above 0, and with `kl_coef` above 0 to start from",
    "kl_horizon": "above 0",
    "kl_budget": "above 0",
    "gamma": "0 to 1",
    "lam": "0 to 1",
    "cliprange": "above 0",
    "cliprange_value": "above 0, or None",
    "score_clip": "above 0, or None",
    "critic": "separate, head, adapter or None",
    "value_warmup_steps": "0 or more",
    "reward_time_limit": "above 0, or None",
}
