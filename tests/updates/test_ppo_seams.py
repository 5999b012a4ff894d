"""The private parts of TRL, transformers and PEFT that PPO leans on, as they were when it was written.

A failure here names what moved and what of ours to look at. CONTRIBUTING.md shows a job that runs this file with newer
releases.
"""

from __future__ import annotations

import inspect
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from samples import token_task as task
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback
from transformers.utils import ModelOutput
from trl import GRPOConfig, GRPOTrainer, RLOOConfig
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import (
    FusedCausalLMOutput,
    add_fused_lm_head,
    is_async_callable,
    shuffle_sequence_dict,
    split_tensor_dict,
    use_adapter,
)

from rlhf_loop.updates import PPOConfig, PPOTrainer
from rlhf_loop.updates import grpo as grpo_update
from rlhf_loop.updates import rloo as rloo_update
from rlhf_loop.updates.cpu_head import Head
from rlhf_loop.updates.ppo.config import _INSTEAD
from rlhf_loop.updates.ppo.critic import CRITIC, attach_critic, hide_critic_from_vllm

TRAINER, CRITIC_FILE, CONFIG = (f"rlhf_loop/updates/ppo/{name}.py" for name in ("trainer", "critic", "config"))


def look(what: str, where: str) -> str:
    """What a failed contract says."""
    return f"{what}. This is TRL {trl.__version__}. Look at {where}, then change this test"


# Signatures

SIGNATURES = {
    GRPOTrainer._calculate_rewards: "inputs prompts completions completion_ids_list",
    GRPOTrainer._generate_and_score_completions: "inputs",
    GRPOTrainer._prepare_inputs: "generation_batch",
    GRPOTrainer._compute_loss: "model inputs",
    GRPOTrainer._tokenize_prompts: "prompts",
    GRPOTrainer.log: "logs start_time",
    Trainer.create_optimizer: "model",
    Trainer._clip_grad_norm: "model",
    Trainer._save: "output_dir state_dict",
    Trainer._load_from_checkpoint: "resume_from_checkpoint model",
    Trainer._save_optimizer_and_scheduler: "output_dir",
    Trainer._load_optimizer_and_scheduler: "checkpoint",
    Trainer._issue_warnings_after_load: "load_result",
    TrainerCallback.on_pre_optimizer_step: "args state control kwargs",
}
"""Methods that PPO adds to or calls -> their arguments."""


@pytest.mark.parametrize("method", SIGNATURES, ids=lambda method: method.__qualname__)
def test_methods_that_are_added_to_take_the_same_arguments(method: Any) -> None:
    found = " ".join(list(inspect.signature(method).parameters)[1:])
    assert found == SIGNATURES[method], look(
        f"{method.__qualname__} now takes ({found})", f"the method of that name in {TRAINER}"
    )


def test_the_helper_for_log_probabilities_begins_with_the_same_arguments() -> None:
    found = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert found[1:8] == [
        "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy", "compute_aux_loss",
    ], look("its arguments moved", f"_get_per_token_logps_and_entropies in {TRAINER}")  # fmt: skip


def test_the_trainer_takes_the_arguments_that_are_passed_on() -> None:
    found = list(inspect.signature(GRPOTrainer.__init__).parameters)
    assert found[1:4] == ["model", "reward_funcs", "args"], look("GRPOTrainer's first arguments moved", TRAINER)
    passed = {"processing_class", "reward_processing_classes", "rollout_func", "optimizers", "peft_config"}
    assert passed <= set(found), look(f"GRPOTrainer no longer takes {passed - set(found)}", f"__init__ in {TRAINER}")


def test_settings_that_are_refused_or_derived_are_settings_of_grpo() -> None:
    fields = set(GRPOConfig.__dataclass_fields__)
    assert set(_INSTEAD) <= fields, look(f"GRPOConfig lost {set(_INSTEAD) - fields}", f"_INSTEAD in {CONFIG}")
    derived = {"num_iterations", "steps_per_generation", "generation_batch_size", "num_generations", "beta"}
    assert derived <= fields, look(f"GRPOConfig lost {derived - fields}", f"__post_init__ in {CONFIG}")


# What the methods do


@pytest.fixture
def grpo(tmp_path: Path) -> Any:
    """GRPOTrainer itself, with settings as PPO gives them."""
    return GRPOTrainer(
        model=task.model_folder(), reward_funcs=[task.share_of_a, lambda completions, **_: [None] * len(completions)],
        processing_class=task.tokenizer(), train_dataset=task.prompts(),
        args=task.config(tmp_path, GRPOConfig, per_device_train_batch_size=4, gradient_accumulation_steps=2,
                         steps_per_generation=4, num_iterations=2, num_generations=4, beta=0.1),
    )  # fmt: skip


def test_rewards_come_back_for_each_completion_and_function_with_nan_for_none(grpo: Any) -> None:
    given: list[torch.Tensor] = []
    inner = grpo._calculate_rewards
    grpo._calculate_rewards = lambda *args: given.append(inner(*args)) or given[-1]
    task.rollout(grpo)
    (rewards,) = given
    where = f"_calculate_rewards and _rewards_of_this_rank in {TRAINER}"
    assert rewards.shape == (16, 2), look(f"rewards are {tuple(rewards.shape)}, not (completions, functions)", where)
    assert torch.isnan(rewards[:, 1]).all(), look("None is no longer NaN", where)
    source = inspect.getsource(GRPOTrainer._calculate_rewards)
    assert "rewards_per_func = gather(rewards_per_func)" in source, look("rewards are not of all ranks", where)
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert "self.accelerator.process_index * len(prompts)" in source, look("ranks are not in order", where)


def test_a_rollout_has_the_fields_that_are_read(grpo: Any) -> None:
    batch = task.rollout(grpo)
    expected = {
        "prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch",
        "old_per_token_logps", "ref_per_token_logps",
    }  # fmt: skip
    where = f"_generate_and_score_completions and _BY_TOKEN in {TRAINER}"
    assert set(batch) == expected, look(f"fields differ: {set(batch) ^ expected}", where)
    assert batch["old_per_token_logps"].shape == batch["completion_ids"].shape, look("another shape", where)
    assert batch["prompt_mask"][:, -1].all(), look(
        "prompts are no longer padded on the left", "rlhf_loop/updates/ppo/minibatches.py"
    )
    assert batch["completion_mask"][:, 0].all(), look(
        "completions are not padded on the right", "rlhf_loop/updates/ppo/minibatches.py"
    )
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    for name in ("tool_mask", "importance_sampling_ratio", "sampling_per_token_logps"):
        assert f'output["{name}"]' in source, look(f"a rollout has no {name}", where)


def test_log_probabilities_come_from_the_model_that_is_given_called_by_keywords(grpo: Any) -> None:
    calls: list[dict[str, Any]] = []

    def model(*args: Any, **inputs: Any) -> Any:
        assert not args, look("the model is called with positional inputs", f"ValueTap in {CRITIC_FILE}")
        calls.append(inputs)
        return grpo.model(**inputs)

    batch = task.rollout(grpo)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    width = batch["completion_ids"].shape[1]
    log_probs, _, _ = grpo._get_per_token_logps_and_entropies(model, ids, attention, width, batch_size=6)
    where = f"ValueTap and _extend_forward in {CRITIC_FILE}"
    assert [len(call["input_ids"]) for call in calls] == [6, 6, 4], look("other chunks", where)
    expected = {"input_ids", "attention_mask", "labels", "fused_lm_head"}
    assert set(calls[0]) == expected, look(f"inputs differ: {set(calls[0]) ^ expected}", where)
    assert calls[0]["fused_lm_head"] is True, look("the fused head is asked for in another way", where)
    assert log_probs.shape == (16, width), look("log-probabilities have another shape", where)
    output = grpo.model(**calls[0])
    assert isinstance(output, FusedCausalLMOutput), look(f"the fused head gives {type(output).__name__}", where)
    assert output.log_probs.shape == (6, ids.shape[1] - 1), look("the fused head gives another length", where)
    assert issubclass(FusedCausalLMOutput, ModelOutput), look("its output is no ModelOutput", where)


def test_the_fused_head_runs_the_trunk_so_that_a_hook_sees_its_states() -> None:
    model = AutoModelForCausalLM.from_pretrained(task.model_folder())
    add_fused_lm_head(model)
    seen: list[torch.Tensor] = []
    model.base_model.register_forward_hook(lambda _, __, output: seen.append(output.last_hidden_state))
    ids = torch.tensor([[3, 5, 7, 9]])
    model(input_ids=ids, labels=ids, fused_lm_head=True)
    assert [tuple(states.shape) for states in seen] == [(1, 4, 64)], look(
        "the fused head no longer calls the trunk", f"critic='head' of _extend_forward in {CRITIC_FILE}"
    )


def test_a_rollout_is_buffered_in_parts_and_counted_by_micro_batches(grpo: Any) -> None:
    made: list[int] = []
    inner = grpo._generate_and_score_completions
    grpo._generate_and_score_completions = lambda rows: made.append(grpo._step) or inner(rows)
    grpo.model.train()
    rows = [grpo.train_dataset[i] for i in range(16)]
    where = f"_prepare_inputs in {TRAINER}"
    assert grpo._step == 0, look("_step does not begin at 0", where)
    assert grpo._buffered_inputs is None, look("_buffered_inputs does not begin as None", where)
    for step in range(9):
        grpo._step = step
        inputs = grpo._prepare_inputs(rows)
        assert len(grpo._buffered_inputs) == 4, look("a rollout is not in steps_per_generation parts", where)
        assert inputs is grpo._buffered_inputs[step % 4], look("parts are not taken in turn", where)
        assert len(inputs["completion_ids"]) == 4, look("a part is not a micro-batch", where)
    assert made == [0, 8], look(f"rollouts were made at micro-batches {made}, not every 2 x 4", where)


def test_losses_are_expected_divided_by_the_accumulation_steps(grpo: Any) -> None:
    where = f"_compute_loss in {TRAINER}"
    assert grpo.loss_is_scaled_for_ga is True, look("the Trainer would divide the loss again", where)
    assert "loss_is_scaled_for_ga" in inspect.getsource(Trainer), look("transformers no longer reads it", where)
    assert "self._step += 1" in inspect.getsource(GRPOTrainer.training_step), look("_step is counted elsewhere", where)


def test_metrics_are_lists_by_mode_and_name_that_log_averages(grpo: Any) -> None:
    where = f"log and _generate_and_score_completions in {TRAINER}"
    assert set(grpo._metrics) == {"train", "eval"}, look("_metrics has other modes", where)
    grpo.model.train()
    grpo._metrics["train"]["own"].append(1.0)
    grpo._metrics["train"]["own"].append(3.0)
    grpo.log({"loss": 0.0})
    assert grpo.state.log_history[-1]["own"] == 2.0, look("metrics are not averaged into the log", where)
    assert not grpo._metrics["train"], look("metrics are not cleared", where)
    task.rollout(grpo)
    assert "frac_reward_zero_std" in grpo._metrics["train"], look("a metric that PPO takes out has another name", where)


def test_ends_rewards_and_the_reference_are_where_they_were(grpo: Any) -> None:
    where = f"__init__ and _generate_and_score_completions in {TRAINER}"
    assert list(grpo.eos_token_ids) == [1], look("eos_token_ids are not a list of ids", where)
    assert grpo.reward_weights.tolist() == [1, 1], look("reward_weights are not a tensor of weights", where)
    assert grpo.ref_model is not None, look("beta above 0 no longer makes a reference", f"beta in {CONFIG}")
    assert grpo._tokenizer.eos_token_id == 1, look("_tokenizer is gone", where)
    read = (
        "_is_vlm environment_factories entropy_coef aux_loss_enabled router_aux_loss_coef pad_to_multiple_of use_vllm "
        "max_completion_length num_generations num_iterations"
    )
    for name in read.split():
        assert hasattr(grpo, name), look(f"GRPOTrainer has no {name}", where)


def test_frozen_weights_keep_their_gradients_from_the_optimizer(grpo: Any) -> None:
    """Clipping, then the callback that takes gradients away, then the step."""
    source = inspect.getsource(Trainer)
    order = [
        source.index(call) for call in ("self._clip_grad_norm(", "on_pre_optimizer_step(", "self.optimizer.step()")
    ]
    assert order == sorted(order), look("an optimizer step goes in another order", "rlhf_loop/updates/ppo/optimizer.py")


def test_helpers_do_what_they_did() -> None:
    where = f"_prepare_inputs in {TRAINER}"
    whole = {"a": torch.arange(6), "b": torch.arange(6) * 10, "scalar": torch.tensor(3), "none": None}
    shuffled = shuffle_sequence_dict(whole)
    assert torch.equal(shuffled["b"], shuffled["a"] * 10), look("rows are shuffled apart", where)
    assert torch.equal(shuffled["a"].sort().values, whole["a"]), look("a shuffle loses rows", where)
    parts = split_tensor_dict(whole, 3)
    assert [part["a"].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]], look("parts are cut elsewhere", where)
    assert "gradient_checkpointing_kwargs" in inspect.signature(disable_gradient_checkpointing).parameters, look(
        "checkpointing is switched off in another way", f"_log_probs_of_rollout in {TRAINER}"
    )

    async def later() -> None: ...

    assert is_async_callable(later), look("async functions are not known", "rlhf_loop/updates/reward_functions.py")


# vLLM


def test_weights_go_to_vllm_through_one_method_and_without_the_critic(tmp_path: Path) -> None:
    from trl.distributed import DistributedBackend
    from trl.generation.vllm_generation import VLLMGeneration

    where = f"hide_critic_from_vllm in {CRITIC_FILE}"
    source = inspect.getsource(VLLMGeneration.sync_weights)
    assert source.count("self._iter_named_params()") >= 2, look("weights go to vLLM in another way", where)
    base = set(AutoModelForCausalLM.from_pretrained(task.model_folder()).state_dict())
    for adapted in ({}, {"peft_config": task.lora()}):
        made = task.trainer(tmp_path, **adapted)
        engine = VLLMGeneration.__new__(VLLMGeneration)
        engine.model, engine._dist = made.model, DistributedBackend(made.accelerator)
        made.vllm_generation = engine
        unfiltered = {name for name, _ in engine._iter_named_params()}
        hide_critic_from_vllm(engine)
        assert {name for name, _ in engine._iter_named_params()} == base, look("other weights go to vLLM", where)
        assert any(CRITIC in name for name in unfiltered), look("the filter is no longer needed", where)


# PEFT


def adapted_model() -> PeftModel:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(task.model_folder()), task.lora())
    attach_critic(model, "adapter")
    return model


def trainable(model: Any) -> set[str]:
    return {name.split(".")[-2] for name, p in model.named_parameters() if "lora_" in name and p.requires_grad}


def test_the_reference_pass_freezes_the_critics_adapter_and_a_rollout_thaws_it(tmp_path: Path) -> None:
    model = adapted_model()
    assert trainable(model) == {"default", CRITIC}
    with use_adapter(model, adapter_name=None):
        pass
    where = f"thaw_critic in {CRITIC_FILE}"
    assert trainable(model) == {"default"}, look("PEFT no longer freezes; thawing may not be needed", where)
    made = task.trainer(tmp_path, peft_config=task.lora())
    task.rollout(made)
    assert trainable(made.model) == {"default", CRITIC}, look("a rollout leaves the critic frozen", where)


def test_adapters_are_switched_as_here_assumed() -> None:
    model = adapted_model()
    where = f"_active_adapter and policy_is_active in {CRITIC_FILE}"
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    assert layers, look("PEFT's layers are of another class", where)
    for layer in layers:
        assert list(layer.active_adapters) == ["default"], look("active_adapters are no list of names", where)
        assert layer.disable_adapters is False, look("disable_adapters is no property", where)
    layers[0]._active_adapter = [CRITIC]
    assert list(layers[0].active_adapters) == [CRITIC], look("_active_adapter does not set the active one", where)
    layers[0]._active_adapter = ["default"]
    with use_adapter(model, adapter_name=None):
        assert all(layer.disable_adapters for layer in layers), look("the reference pass leaves adapters on", where)
    assert isinstance(model.peft_config["default"], LoraConfig), look("adapters are called otherwise", where)
    assert model.active_adapters == ["default"], look("the policy's adapter is called otherwise", where)


def test_an_adapter_is_saved_when_its_config_is_listed(tmp_path: Path) -> None:
    model = adapted_model()
    model.save_pretrained(tmp_path / "both")
    config = model.peft_config.pop(CRITIC)
    model.save_pretrained(tmp_path / "one")
    model.peft_config[CRITIC] = config
    where = f"without_critic_adapter in {CRITIC_FILE}"
    assert (tmp_path / "both" / CRITIC).is_dir(), look("adapters are saved elsewhere", where)
    assert not (tmp_path / "one" / CRITIC).exists(), look("an adapter cannot be left out of a save", where)


def test_a_new_reference_adapter_is_called_ref() -> None:
    source = inspect.getsource(GRPOTrainer)
    assert 'model.add_adapter("ref", default_config)' in source, look(
        "another name", f"policy_is_active, {CRITIC_FILE}"
    )
    assert 'adapter_name="ref" if "ref" in model.peft_config else None' in source, look(
        "another reference", CRITIC_FILE
    )


# The version


def test_trl_is_pinned_to_the_release_that_this_was_written_for() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert "trl>=1.16,<1.17" in project["dependencies"], "a newer TRL: run this file with it first, then move the pin"


@pytest.mark.parametrize("kind", [PPOTrainer, grpo_update._Trainer, rloo_update._Trainer])
def test_on_a_cpu_scored_positions_are_projected_by_our_kernel_and_give_what_trls_own_head_does(
    tmp_path: Path, grpo: Any, kind: Any
) -> None:
    batch = task.rollout(grpo)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    config = {grpo_update._Trainer: GRPOConfig, rloo_update._Trainer: RLOOConfig}.get(kind, PPOConfig)
    made = kind(
        model=task.model_folder(), reward_funcs=task.share_of_a, processing_class=task.tokenizer(),
        train_dataset=task.prompts(), args=task.config(tmp_path, config, num_generations=4),
    )  # fmt: skip
    projected: list[int] = []
    kernel = Head.apply

    def counted(hidden: torch.Tensor, *more: Any, **named: Any) -> Any:
        projected.append(len(hidden))
        return kernel(hidden, *more, **named)

    def scored(trainer: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        trainer.model.zero_grad()
        log_probs, entropy, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, attention, task.LENGTH, compute_entropy=True
        )
        (log_probs.sum() + 0.3 * entropy.sum()).backward()
        return log_probs, entropy, {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}

    where = "add_cpu_head in rlhf_loop/updates/cpu_head.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Head, "apply", counted)
        ours, our_entropy, our_gradients = scored(made)
        assert projected == [int(batch["completion_mask"].sum())], look("the head is asked for in another way", where)
        theirs, their_entropy, their_gradients = scored(grpo)
        assert len(projected) == 1, look("TRL's own trainer has our head", where)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    torch.testing.assert_close(our_entropy, their_entropy, atol=1e-5, rtol=0)
    assert set(their_gradients) <= set(our_gradients)
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(
            our_gradients[name], gradient, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
