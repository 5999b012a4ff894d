"""PPO's settings: what is refused with its remedy, and what the optimizer does with the critic's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from samples import token_task as task
from samples.ppo import gradients, placed, with_random_critic
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import GRPOConfig

from rlhf_loop.errors import UserError
from rlhf_loop.updates import PPOConfig
from rlhf_loop.updates.ppo import config as ppo_config
from rlhf_loop.updates.ppo.critic import is_critic

OF_GRPO = {
    "num_iterations": 2,
    "beta": 0.04,
    "epsilon": 0.1,
    "epsilon_high": 0.28,
    "delta": 1.5,
    "loss_type": "dr_grpo",
    "scale_rewards": "batch",
    "importance_sampling_level": "sequence",
    "multi_objective_aggregation": "normalize_then_sum",
    "mask_truncated_completions": True,
    "top_entropy_quantile": 0.2,
    "off_policy_mask_threshold": 0.5,
    "use_bias_correction_kl": False,
    "use_adaptive_entropy": True,
    "load_best_model_at_end": True,
    "sync_ref_model": True,
    "steps_per_generation": 3,
    "generation_batch_size": 64,
}


@pytest.mark.parametrize("name", OF_GRPO)
def test_settings_of_grpo_that_mean_nothing_here_are_refused_with_what_to_set(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name}=.*PPO does not use it; set ") as refused:
        task.config(tmp_path, **{name: OF_GRPO[name]})
    assert ppo_config._INSTEAD[name] in str(refused.value)


def test_every_refused_setting_is_tried() -> None:
    assert set(OF_GRPO) == set(ppo_config._INSTEAD)


def test_a_setting_may_be_given_as_what_it_follows_from(tmp_path: Path) -> None:
    made = task.config(tmp_path, beta=0.05, num_iterations=4, steps_per_generation=2, num_mini_batches=2)
    assert (made.beta, made.num_iterations, made.steps_per_generation) == (0.05, 4, 2)


OUT_OF_RANGE = {
    "num_ppo_epochs": 0,
    "num_mini_batches": 0,
    "num_generations": 0,
    "kl_coef": -0.1,
    "kl_estimator": "k2",
    "kl_target": 0.0,
    "kl_horizon": 0.0,
    "kl_budget": 0.0,
    "gamma": 1.01,
    "lam": -0.01,
    "cliprange": 0.0,
    "cliprange_value": 0.0,
    "score_clip": 0.0,
    "critic": "shared",
    "value_warmup_steps": -1,
    "reward_time_limit": 0.0,
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_numbers_out_of_range_are_refused_with_the_range(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name}=.* is out of range: ") as refused:
        task.config(tmp_path, **{name: OUT_OF_RANGE[name]})
    assert ppo_config._RANGES[name] in str(refused.value)


def test_every_range_is_tried() -> None:
    assert set(OUT_OF_RANGE) == set(ppo_config._RANGES)


def test_a_kl_target_needs_a_coefficient_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="with `kl_coef` above 0 to start from"):
        task.config(tmp_path, kl_target=1.0, kl_coef=0.0)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("ref_model", "the reference is the model that `model` was loaded from"),
        ("reward_model", "`reward_funcs`"),
        ("tokenizer", "`processing_class`"),
        ("data_collator", "the column `prompt`"),
        ("config", "`args`"),
        ("dataset", "`train_dataset`"),
        ("policy", "`model`"),
        ("ref_policy", "the reference is the model that `model` was loaded from"),
    ],
)
def test_arguments_of_the_former_trainer_are_refused_with_todays(tmp_path: Path, name: str, instead: str) -> None:
    from rlhf_loop.updates import PPOTrainer

    with pytest.raises(UserError, match=f"no argument `{name}`") as refused:
        PPOTrainer(task.model_folder(), task.share_of_a, task.config(tmp_path), **{name: object()})
    assert instead in str(refused.value)


def test_a_config_that_is_given_first_as_the_former_trainers_took_it_is_refused(tmp_path: Path) -> None:
    from rlhf_loop.updates import PPOTrainer

    with pytest.raises(UserError, match="takes `model` first and its config as `args`"):
        PPOTrainer(task.config(tmp_path), task.share_of_a)


@pytest.mark.parametrize("given", [[None], [None] * 3])
def test_tokenizers_of_rewards_that_are_not_one_each_are_refused(tmp_path: Path, given: list[None]) -> None:
    said = f"{len(given)} reward_processing_classes for 2 reward_funcs: give one for each"
    with pytest.raises(UserError, match=said):
        task.trainer(tmp_path, reward_funcs=[task.share_of_a] * 2, reward_processing_classes=given)


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_a_data_set_of_token_ids_is_refused_with_the_column_to_give(tmp_path: Path, name: str) -> None:
    of_ids = Dataset.from_list([{"input_ids": [1, 2, 3]}] * 64)
    with pytest.raises(UserError, match=rf"{name} has the columns input_ids and no `prompt`.*not `input_ids`"):
        task.trainer(tmp_path, **{name: of_ids})
    with pytest.raises(UserError, match=rf"{name}\['a'\] has the columns text and no `prompt`"):
        task.trainer(tmp_path, **{name: {"a": of_ids.rename_column("input_ids", "text")}})


def test_a_value_model_beside_an_adapter_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    said = r"the default of a policy with an adapter: leave `value_model` out, or set critic='separate'"
    value_model = AutoModelForCausalLM.from_pretrained(task.model_folder())
    with pytest.raises(UserError, match=said):
        task.trainer(tmp_path, peft_config=task.lora(), value_model=value_model)


def test_a_cpu_is_trained_on_when_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    for precision in ({}, {"fp16": True}):
        with pytest.raises(UserError, match="no accelerator here: set `use_cpu=True`"):
            PPOConfig(str(tmp_path), **precision)
    assert PPOConfig(str(tmp_path), bf16=False).bf16 is False


def test_groups_that_do_not_fill_a_rollout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a rollout of 16 completions cannot be made of groups of 3"):
        task.config(tmp_path, num_generations=3)


@pytest.mark.parametrize(("generations", "epochs", "minibatches"), [(1, 4, 1), (4, 1, 2), (16, 2, 4)])
def test_what_follows_from_the_settings(tmp_path: Path, generations: int, epochs: int, minibatches: int) -> None:
    made = task.config(
        tmp_path, num_generations=generations, num_ppo_epochs=epochs, num_mini_batches=minibatches,
        per_device_train_batch_size=4, gradient_accumulation_steps=4,
    )  # fmt: skip
    assert made.num_generations == generations  # GRPO's settings alone would refuse 1
    assert made.generation_batch_size == 16 * minibatches
    assert made.steps_per_rollout == epochs * minibatches
    assert isinstance(made, GRPOConfig)


# The critic's optimizer


@pytest.mark.parametrize("placement", ["separate", "head", "adapter"])
@pytest.mark.parametrize("rate", [None, 5e-3, 0.0])
def test_the_critic_has_a_learning_rate_of_its_own(tmp_path: Path, placement: str, rate: float | None) -> None:
    made = task.trainer(tmp_path, critic_learning_rate=rate, weight_decay=0.1, **placed(placement))
    with_random_critic(made, policy_too=True)
    before = {name: parameter.detach().clone() for name, parameter in made.model.named_parameters()}
    optimizer = made.create_optimizer()
    rates, decays = {}, {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert id(parameter) not in rates  # in one group
            rates[id(parameter)], decays[id(parameter)] = group["lr"], group["weight_decay"]
    for name, parameter in made.model.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == (rate if is_critic(name) and rate is not None else 1e-3)
            assert decays[id(parameter)] == (0.0 if "norm" in name or name.endswith("bias") else 0.1)
        else:
            assert id(parameter) not in rates
    made.train()
    changed = {name for name, p in made.model.named_parameters() if not torch.equal(p, before[name])}
    assert any(not is_critic(name) for name in changed)
    assert any(is_critic(name) for name in changed) == (rate != 0.0)


def test_a_critics_rate_on_an_optimizer_of_ones_own_is_refused(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(task.model_folder())
    own = (torch.optim.SGD(model.parameters(), lr=0.1), None)
    with pytest.raises(UserError, match="leave one of them out"):
        task.trainer(tmp_path, model=model, optimizers=own, critic_learning_rate=1e-3)
    assert task.trainer(tmp_path, model=model, optimizers=own).create_optimizer() is own[0]


def test_a_second_call_of_train_goes_on_with_the_same_rates(tmp_path: Path) -> None:
    made = task.trainer(tmp_path, critic_learning_rate=1e-2)
    made.train()
    made.train()
    assert {group["lr"] for group in made.optimizer.param_groups} == {1e-3, 1e-2}


@pytest.mark.parametrize(("own", "expected"), [(None, 0.5), (0.01, 0.01)])
def test_gradients_of_policy_and_critic_are_clipped_apart(tmp_path: Path, own: float | None, expected: float) -> None:
    made = with_random_critic(task.trainer(tmp_path, max_grad_norm=0.5, critic_max_grad_norm=own, vf_coef=10.0))
    batch = task.rollout(made)
    batch["advantages"] = 10 * batch["advantages"]

    def norms(found: dict[str, torch.Tensor]) -> dict[bool, float]:
        return {
            which: float(torch.cat([g.flatten() for name, g in found.items() if is_critic(name) == which]).norm())
            for which in (False, True)
        }

    before = norms(gradients(made, batch))
    assert min(before.values()) > 1
    made.create_optimizer()
    logged = made._clip_grad_norm(made.model)
    after = norms({name: p.grad for name, p in made.model.named_parameters() if p.grad is not None})
    assert after[False] == pytest.approx(0.5, rel=1e-4)
    assert after[True] == pytest.approx(expected, rel=1e-4)
    assert float(logged) == pytest.approx(before[False], rel=1e-5)
    got = {name: (total / count).item() for name, (total, count) in made.step_metrics.sums("train").items()}
    assert got["policy/grad_norm"] == pytest.approx(before[False], rel=1e-5)
    assert got["val/grad_norm"] == pytest.approx(before[True], rel=1e-5)


# Where the critic goes


def test_a_critic_that_does_not_go_with_the_policy_is_refused(tmp_path: Path) -> None:
    classifier: Any = AutoModelForSequenceClassification.from_pretrained(task.model_folder(), num_labels=1)
    with pytest.raises(UserError, match="pass `peft_config`"):
        task.trainer(tmp_path, critic="adapter")
    with pytest.raises(UserError, match="needs `value_model`"):
        task.trainer(tmp_path, critic="separate", peft_config=task.lora())
    with pytest.raises(UserError, match="leave `value_model` out"):
        task.trainer(tmp_path, critic="head", value_model=classifier)
    classifier.resize_token_embeddings(20)
    with pytest.raises(UserError, match="embeddings for 20 tokens and the policy's for 32"):
        task.trainer(tmp_path, value_model=classifier)


def test_the_critic_goes_where_the_policy_suggests(tmp_path: Path) -> None:
    assert task.trainer(tmp_path).placement == "separate"
    assert task.trainer(tmp_path, peft_config=task.lora()).placement == "adapter"
    assert task.trainer(tmp_path, peft_config=task.lora(), critic="head").placement == "head"


def test_an_adapters_weights_are_those_of_the_seed(tmp_path: Path) -> None:
    def critic(seed: int) -> torch.Tensor:
        made = task.trainer(tmp_path, peft_config=task.lora(), seed=seed)
        return torch.cat(
            [p.detach().flatten() for n, p in made.model.named_parameters() if is_critic(n) and "lora_A" in n]
        )

    assert torch.equal(critic(1), critic(1))
    assert not torch.equal(critic(1), critic(2))


def test_the_defaults_are_those_of_the_reproduction_that_they_cite() -> None:
    made = PPOConfig("out", use_cpu=True, bf16=False)
    assert (made.num_ppo_epochs, made.num_mini_batches, made.kl_coef, made.lam) == (4, 1, 0.05, 0.95)
    assert (made.cliprange, made.cliprange_value, made.vf_coef, made.gamma) == (0.2, 0.2, 0.1, 1.0)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("response_length", "max_completion_length"),
        ("sft_model_path", "model"),
        ("stop_token", "EOS"),
        ("world_size", "it is computed"),
        ("num_total_batches", "it is computed"),
        ("batch_size", "num_mini_batches"),
        ("local_batch_size", "num_mini_batches"),
        ("mini_batch_size", "gradient_accumulation_steps"),
        ("micro_batch_size", "gradient_accumulation_steps"),
        ("init_kl_coef", "kl_coef"),
        ("ppo_epochs", "num_ppo_epochs"),
        ("target_kl", "kl_budget"),
        ("log_with", "report_to"),
    ],
)
def test_settings_of_the_former_config_are_refused_with_todays(tmp_path: Path, name: str, instead: str) -> None:
    with pytest.raises(UserError, match=rf"no `{name}`.*{instead}"):
        PPOConfig(str(tmp_path), **{name: 1})


def test_a_checkpoint_within_a_rollout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="within a rollout"):
        task.config(tmp_path, save_strategy="best", eval_strategy="steps", metric_for_best_model="reward")
