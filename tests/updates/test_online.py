"""The online updates of a round: ppo, grpo and rloo through `update_policy`, with our own sampler."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from samples.updates import PROMPTS, length, settings, train
from transformers import AutoModelForCausalLM

from rlhf_loop.errors import UserError
from rlhf_loop.models.loading import load_policy, merged_for_sampling
from rlhf_loop.recipe import Generation, Policy
from rlhf_loop.updates.online import _rollouts


def log(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "train_log.jsonl").read_text().splitlines()]


def weights(folder: Path, base: Path) -> dict[str, torch.Tensor]:
    model, _ = load_policy(folder, Policy(model=str(base), dtype="float32"))
    return dict(model.state_dict())


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_an_online_update_trains_and_leaves_a_policy_that_loads(
    algorithm: str, lora: bool, tiny_policy: Path, tmp_path: Path
) -> None:
    metrics = train(tiny_policy, tmp_path, settings(algorithm, lora))
    before, after = weights(tiny_policy, tiny_policy), weights(tmp_path / "policy", tiny_policy)
    assert metrics["algorithm"] == algorithm
    assert metrics["steps"] == 4
    assert metrics["completions_sampled"] == {"ppo": 4, "grpo": 16, "rloo": 16}[algorithm]
    assert not any("critic" in name for name in after)
    if lora:
        assert any(tensor.abs().sum() > 0 for name, tensor in after.items() if "lora_B" in name)
    else:
        _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", output_loading_info=True)
        assert not report["unexpected_keys"]
        assert not report["missing_keys"]
        assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_in_round_two_the_kl_is_to_the_reference_that_the_recipe_names(
    algorithm: str, lora: bool, tiny_policy: Path, tmp_path: Path
) -> None:
    train(tiny_policy, tmp_path / "1", settings(algorithm, lora, max_steps=8))
    moved = tmp_path / "1" / "policy"
    kl = "objective/kl" if algorithm != "grpo" else "kl"
    kl = "kl" if algorithm == "rloo" else kl
    train(tiny_policy, tmp_path / "base", settings(algorithm, lora), start=moved, reference=tiny_policy)
    train(tiny_policy, tmp_path / "previous", settings(algorithm, lora), start=moved, reference=moved)
    assert abs(log(tmp_path / "base")[0][kl]) > 1e-3  # the policy of round 1 is away from the base
    assert log(tmp_path / "previous")[0][kl] == pytest.approx(0, abs=1e-6)


def test_the_reward_sees_how_an_answer_ended_and_the_prompts_columns(tiny_policy: Path, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.update(columns)
        return length(prompts, completions)

    train(tiny_policy, tmp_path, settings("ppo"), reward=reward)
    assert len(seen["completion_ids"]) == len(seen["group"]) == 4
    assert all(1 <= len(ids) <= 8 for ids in seen["completion_ids"])
    assert set(seen["prompt_id"]) <= {prompt.id for prompt in PROMPTS}


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_reward_that_is_not_finite_stops_the_update_and_leaves_no_policy(
    algorithm: str, tiny_policy: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"nan.*prompt 'Say \d'"):
        train(tiny_policy, tmp_path, settings(algorithm), reward=lambda prompts, **_: [float("nan")] * len(prompts))
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_fewer_prompts_than_a_rollout_takes_are_refused(algorithm: str, tiny_policy: Path, tmp_path: Path) -> None:
    update = settings(algorithm, per_device_train_batch_size=32)
    with pytest.raises(UserError, match="a rollout takes"):
        train(tiny_policy, tmp_path, update)


def test_sampling_from_one_answer_alone_is_refused(tiny_policy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="temperature"):
        train(tiny_policy, tmp_path, settings("ppo"), generation=Generation(temperature=0))


def test_weights_are_merged_for_sampling_and_the_very_same_afterwards(tiny_policy: Path, tmp_path: Path) -> None:
    train(tiny_policy, tmp_path, settings("ppo"))
    model, tokenizer = load_policy(tmp_path / "policy", Policy(model=str(tiny_policy), dtype="float32"), trainable=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = tokenizer("red green blue", return_tensors="pt")
    model.eval()
    with torch.no_grad():
        apart = model(**ids).logits
        with merged_for_sampling(model):
            assert any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
            together = model(**ids).logits
        again = model(**ids).logits
    assert torch.allclose(apart, together, atol=1e-5)
    assert torch.equal(apart, again)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("steps", "iterations", "per_rollout", "accumulated", "rollouts"),
    [(4, 1, 1, 1, 4), (4, 2, 2, 1, 1), (5, 2, 2, 1, 2), (2, 1, 1, 4, 8), (3, 1, 6, 4, 2)],
)
def test_rollouts_are_counted_however_many_of_them_a_step_takes(
    steps: int, iterations: int, per_rollout: int, accumulated: int, rollouts: int
) -> None:
    arguments = SimpleNamespace(
        num_iterations=iterations, steps_per_generation=per_rollout, gradient_accumulation_steps=accumulated
    )
    assert _rollouts(steps, arguments) == rollouts
