"""PPO's files: a saved policy is as if there had been no critic, and a training resumes bit for bit."""

from __future__ import annotations

import inspect
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors import safe_open
from samples import token_task as task
from samples.ppo import PLACEMENTS, log_of, placed, with_random_critic
from transformers import AutoModelForCausalLM

from rlhf_loop.errors import UserError
from rlhf_loop.updates import PPOConfig
from rlhf_loop.updates.ppo.critic import CRITIC, attach_critic, detach_critic

TIMES = {"eps", "step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
ROLLOUTS_OF_4_STEPS = {"num_ppo_epochs": 2, "num_mini_batches": 2, "per_device_train_batch_size": 8}
PROMPT = torch.tensor([[3, 5, 7, 9, 11]])


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=PROMPT).logits


def names_in(file: Path) -> set[str]:
    with safe_open(file, "pt") as tensors:
        return set(tensors.keys())


# What is saved


@pytest.mark.parametrize("way", ["checkpoint", "save_model"])
@pytest.mark.parametrize("placement", ["separate", "head"])
def test_a_saved_policy_is_an_ordinary_model(tmp_path: Path, placement: str, way: str) -> None:
    made = task.trainer(tmp_path, save_strategy="steps", save_steps=1, num_ppo_epochs=1, max_steps=1, critic=placement)
    made.train()
    folder = tmp_path / "checkpoint-1" if way == "checkpoint" else tmp_path / "saved"
    if way == "save_model":
        made.save_model(str(folder))
    assert not any(CRITIC in name for name in names_in(folder / "model.safetensors"))
    shutil.rmtree(folder / CRITIC)  # nobody but a resumed training needs it
    loaded, problems = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not problems["unexpected_keys"]
    assert not problems["missing_keys"]
    torch.testing.assert_close(logits(loaded), logits(made.model))
    assert not torch.equal(logits(loaded), logits(AutoModelForCausalLM.from_pretrained(task.model_folder())))


@pytest.mark.parametrize("way", ["checkpoint", "save_model"])
@pytest.mark.parametrize("placement", ["adapter", "head"])
def test_a_saved_adapter_is_an_ordinary_adapter(tmp_path: Path, placement: str, way: str) -> None:
    made = task.trainer(
        tmp_path, save_strategy="steps", save_steps=2, num_ppo_epochs=2, max_steps=2, critic=placement,
        peft_config=task.lora(),
    )  # fmt: skip
    made.train()
    folder = tmp_path / "checkpoint-2" if way == "checkpoint" else tmp_path / "saved"
    if way == "save_model":
        made.save_model(str(folder))
    assert not any(CRITIC in name for name in names_in(folder / "adapter_model.safetensors"))
    assert not list(folder.glob("*/adapter_model.safetensors"))  # and no second adapter
    shutil.rmtree(folder / CRITIC)
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder)
    assert list(loaded.peft_config) == ["default"]
    torch.testing.assert_close(logits(loaded), logits(made.model))
    assert CRITIC in made.model.peft_config or placement == "head"  # saving took nothing off the trainer


# The critic comes off


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_detached_critic_leaves_the_model_as_it_was(placement: str, adapted: bool) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification

    if placement == "adapter" and not adapted:
        pytest.skip("an adapter needs an adapter")
    model: Any = AutoModelForCausalLM.from_pretrained(task.model_folder())
    torch.manual_seed(0)
    value_model = None
    if adapted:
        model = get_peft_model(model, task.lora())
        if placement == "separate":
            value_model = AutoModelForSequenceClassification.from_pretrained(task.model_folder(), num_labels=1)
    keys = list(model.state_dict())
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    before, signature = logits(model), inspect.signature(model.forward)
    attach_critic(model, placement, value_model)
    torch.testing.assert_close(logits(model), before, atol=0, rtol=0)
    assert list(model.state_dict()) != keys
    attach_critic(model, placement, value_model)  # again: in the place of the first
    detach_critic(model)
    assert list(model.state_dict()) == keys
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trainable
    assert inspect.signature(model.forward) == signature
    assert torch.equal(logits(model), before)
    assert "state_values" not in model(input_ids=PROMPT, state_values="with")
    assert model.generate(input_ids=PROMPT, max_new_tokens=3, do_sample=False).shape == (1, 8)
    detach_critic(model)  # and nothing where there is none


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_critic_comes_off_after_training(tmp_path: Path, placement: str, mixed: bool) -> None:
    made = task.trainer(tmp_path, bf16=mixed, gradient_checkpointing=True, **placed(placement))
    made.train()
    assert all(torch.isfinite(torch.tensor(row["loss/value_avg"])) for row in log_of(made))
    trained = {name: tensor.clone() for name, tensor in made.model.state_dict().items() if CRITIC not in name}
    before = logits(made.model)
    detach_critic(made.model)
    assert list(made.model.state_dict()) == list(trained)
    policy = made.model if placement != "adapter" else made.model.get_base_model()
    assert "_original_forward" not in vars(policy)  # with the critic, which Accelerate would put back
    assert all(torch.equal(tensor, trained[name]) for name, tensor in made.model.state_dict().items())
    torch.testing.assert_close(logits(made.model).float(), before.float(), atol=0.02 if mixed else 0, rtol=0)
    assert made.model.generate(input_ids=PROMPT, max_new_tokens=3).shape[1] <= 8
    again = task.trainer(tmp_path, model=made.model, **({} if placement == "adapter" else placed(placement)))
    again.train()  # a second training takes the model from there
    assert len(log_of(again)) == 2


# Resuming

RESUMED = {
    "separate": lambda: {"weight_decay": 0.1, "critic_learning_rate": 3e-3},
    "head": lambda: {"critic": "head", "value_warmup_steps": 5},
    "adapter": lambda: {"peft_config": task.lora(), "gradient_checkpointing": True},
    "existing adapter": lambda: {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("kind", RESUMED)
def test_a_resumed_training_is_the_one_that_was_not_interrupted(tmp_path: Path, kind: str) -> None:
    if kind == "existing adapter":
        first = with_random_critic(task.trainer(tmp_path, peft_config=task.lora()), policy_too=True)
        first.save_model(str(tmp_path / "start"))

    def trained(resume: str | None) -> Any:
        own = RESUMED[kind]()
        if kind == "existing adapter":
            own["model"] = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "start", is_trainable=True)
        made = task.trainer(
            tmp_path, save_strategy="steps", save_steps=4, max_steps=12, kl_target=1.0, kl_horizon=50,
            normalize_scores=True, missing_eos_penalty=0.1, lr_scheduler_type="cosine", **ROLLOUTS_OF_4_STEPS, **own,
        )  # fmt: skip
        made.train(resume_from_checkpoint=resume)
        return made

    through = trained(None)
    resumed = trained(str(tmp_path / "checkpoint-4"))
    expected = through.model.state_dict()
    assert set(resumed.model.state_dict()) == set(expected)
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    trainable = [name for name, parameter in through.model.named_parameters() if parameter.requires_grad]
    assert [name for name, parameter in resumed.model.named_parameters() if parameter.requires_grad] == trainable
    assert resumed.kl_coef == through.kl_coef != 0.05
    assert resumed.score_scale.state() == through.score_scale.state()
    assert resumed.episodes == through.episodes == 48
    assert len(log_of(resumed)) == 12
    for mine, theirs in zip(resumed.state.log_history, through.state.log_history, strict=True):
        if "train_loss" not in theirs:  # which counts the steps since the start of the process
            assert {k: v for k, v in mine.items() if k not in TIMES} == {
                k: v for k, v in theirs.items() if k not in TIMES
            }


def test_a_training_resumes_in_a_later_pass_over_its_prompts(tmp_path: Path) -> None:
    """Two rollouts are a pass over 40 prompts, 8 of which are left out of it; the third pass is resumed."""

    def trained(resume: str | None) -> Any:
        made = task.trainer(
            tmp_path, train_dataset=task.prompts(40), save_strategy="steps", save_steps=5, num_ppo_epochs=1, max_steps=8
        )
        made.train(resume_from_checkpoint=resume)
        return made

    through, resumed = trained(None), trained(str(tmp_path / "checkpoint-5"))
    assert through.state.epoch == 4
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, through.model.state_dict()[name]), name


def test_a_resumed_training_warns_of_no_missing_weights_and_counts_its_own_speed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "num_ppo_epochs": 1}
    task.trainer(tmp_path, max_steps=3, **settings).train()
    caplog.clear()
    logging.getLogger("transformers").propagate = True
    try:
        made = task.trainer(tmp_path, max_steps=4, **settings)
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    finally:
        logging.getLogger("transformers").propagate = False
    assert not [record for record in caplog.records if "missing keys" in record.getMessage()]
    assert made.episodes == 64
    seconds = made.state.log_history[-1]["train_runtime"]
    assert log_of(made)[-1]["eps"] >= 16 / seconds
    assert log_of(made)[-1]["eps"] < 64 / (seconds / 4)  # of the one rollout, not of all four


def test_a_checkpoint_of_another_critic_is_refused(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "num_ppo_epochs": 1, "max_steps": 1}
    task.trainer(tmp_path, **settings).train()
    other = task.trainer(tmp_path, critic="head", **(settings | {"max_steps": 2}))
    with pytest.raises(UserError, match=r"critic='head'.*resume with the settings that it was made with"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    shutil.rmtree(tmp_path / "checkpoint-1" / CRITIC)
    same = task.trainer(tmp_path, **(settings | {"max_steps": 2}))
    with pytest.raises(UserError, match="holds no critic"):
        same.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_checkpoints_are_made_between_rollouts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = task.trainer(tmp_path, save_strategy="steps", save_steps=3, max_steps=8, **ROLLOUTS_OF_4_STEPS)
    assert made.args.save_steps == 4
    assert "save_steps=3 is within a rollout of 4 steps" in caplog.text
    made.train()
    saved = sorted(folder.name for folder in tmp_path.glob("checkpoint-*"))
    assert saved == ["checkpoint-4", "checkpoint-8"]
    state = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["save_steps"] == 4


def test_a_share_of_the_training_is_no_interval_of_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"save_steps=0\.3: give a number of optimizer steps, a multiple of 4"):
        PPOConfig(str(tmp_path), use_cpu=True, bf16=False, save_steps=0.3, **ROLLOUTS_OF_4_STEPS)
