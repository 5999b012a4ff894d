"""PPO: what it optimises, beside other trainers and a known optimum; what the critic sees; what is logged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM
from samples import token_task as task
from samples.ppo import (
    PLACEMENTS,
    EachStep,
    copies,
    gradients,
    log_of,
    log_probs_of,
    loss_of,
    metrics,
    placed,
    with_random_critic,
)
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from rlhf_loop.updates.ppo.critic import ValueTap, is_critic

# The ratio


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_ratio_of_the_first_minibatch_is_1(tmp_path: Path, placement: str) -> None:
    made = task.trainer(
        tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, num_mini_batches=2,
        num_ppo_epochs=2, max_steps=4, **placed(placement),
    )  # fmt: skip
    made.train()
    first, last = log_of(made)[0], log_of(made)[-1]
    assert first["val/ratio"] == pytest.approx(1, abs=1e-6)
    assert first["policy/approxkl_avg"] == pytest.approx(0, abs=1e-10)
    assert first["policy/clipfrac_avg"] == 0
    assert first["objective/kl"] == 0
    assert last["policy/approxkl_avg"] > 1e-6  # it does move


def test_the_ratio_of_an_unchanged_policy_is_exactly_1(tmp_path: Path) -> None:
    made = task.trainer(tmp_path)
    loss_of(made, task.rollout(made))
    assert metrics(made)["val/ratio"] == 1
    assert metrics(made)["policy/approxkl_avg"] == 0


def test_learned_positions_are_those_of_the_rollout(tmp_path: Path) -> None:
    """A model that knows absolute positions reads a text with less padding on its left as another text."""
    torch.manual_seed(0)
    settings = GPT2Config(
        vocab_size=len(task.VOCABULARY), n_embd=32, n_layer=2, n_head=2, n_positions=64, eos_token_id=1,
        bos_token_id=1, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    GPT2LMHeadModel(settings).save_pretrained(tmp_path / "gpt2")
    made = task.trainer(
        tmp_path, model=str(tmp_path / "gpt2"), per_device_train_batch_size=4, num_mini_batches=4, num_ppo_epochs=1,
        max_steps=4, learning_rate=0.0,
    )  # fmt: skip
    made.train()
    for row in log_of(made):
        assert row["val/ratio"] == pytest.approx(1, abs=1e-5)
        assert row["val/ratio_var"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_dropout_is_off_in_attention_too(tmp_path: Path, adapted: bool) -> None:
    lora = task.lora()
    lora.lora_dropout = 0.5
    model = AutoModelForCausalLM.from_pretrained(task.model_folder(), attention_dropout=0.5)
    made = task.trainer(tmp_path, model=model, **({"peft_config": lora} if adapted else {}))
    with_random_critic(made, policy_too=True)
    loss_of(made, task.rollout(made))
    assert metrics(made)["policy/approxkl_avg"] == 0


# What the critic sees


@pytest.mark.parametrize("placement", PLACEMENTS)
@torch.no_grad()
def test_a_value_knows_the_prompt_and_the_tokens_before_its_own_and_no_other(tmp_path: Path, placement: str) -> None:
    made = with_random_critic(task.trainer(tmp_path, **placed(placement)))
    batch = task.rollout(made)
    prompt, width = batch["prompt_ids"].shape[1], batch["completion_ids"].shape[1]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)

    def values(tokens: torch.Tensor) -> torch.Tensor:
        tap = ValueTap(made.model)
        made._get_per_token_logps_and_entropies(tap, tokens, torch.ones_like(tokens), width)
        return tap.values(width)

    before = values(ids)
    for place in range(width):
        changed = ids.clone()
        changed[:, prompt + place] = (changed[:, prompt + place] + 5) % len(task.VOCABULARY)
        after = values(changed)
        torch.testing.assert_close(after[:, : place + 1], before[:, : place + 1], atol=1e-5, rtol=0)
        if place + 1 < width:
            assert (after[:, place + 1] - before[:, place + 1]).abs().min() > 1e-4
    other = ids.clone()
    other[:, prompt - 1] = (other[:, prompt - 1] + 5) % len(task.VOCABULARY)
    assert (values(other) - before).abs()[:, 0].min() > 1e-4


def test_values_of_the_rollout_are_those_of_the_loss(tmp_path: Path) -> None:
    """Chunked and without gradients in the one, with gradients in the other."""
    for placement in PLACEMENTS:
        made = with_random_critic(task.trainer(tmp_path, per_device_train_batch_size=4, **placed(placement)))
        batch = task.rollout(made)
        mask = batch["completion_mask"]
        expected = (0.5 * (batch["old_values"] - batch["returns"]) ** 2 * mask).sum() / mask.sum()
        loss_of(made, batch)
        assert metrics(made)["loss/value_avg"] == pytest.approx(expected.item(), rel=1e-5)
        assert batch["old_values"].abs().max() > 0.1


# What it optimises


def test_without_a_value_loss_it_is_grpo_with_the_loss_bnpo(tmp_path: Path) -> None:
    made = with_random_critic(task.trainer(tmp_path, vf_coef=0.0))
    batch = task.rollout(made)
    draw = torch.Generator().manual_seed(0)
    advantages = torch.randn(16, generator=draw)
    # Old probabilities that differ, so that the clipping is compared as well.
    batch["old_per_token_logps"] += 0.3 * torch.randn(batch["old_per_token_logps"].shape, generator=draw)
    assert batch["completion_mask"].float().mean() < 0.9  # ragged
    grpo = GRPOTrainer(
        model=task.model_folder(), reward_funcs=task.share_of_a, processing_class=task.tokenizer(),
        train_dataset=task.prompts(), args=task.config(tmp_path, GRPOConfig, loss_type="bnpo", num_generations=4),
    )  # fmt: skip
    grpo.model.train()
    theirs = loss_of(grpo, {**batch, "advantages": advantages})
    theirs_at = gradients(grpo, {**batch, "advantages": advantages})
    wide = {**batch, "advantages": advantages[:, None].expand(-1, task.LENGTH)}
    mine, mine_at = loss_of(made, wide), gradients(made, wide)
    assert metrics(made)["policy/clipfrac_avg"] > 0.05
    assert mine.item() == pytest.approx(theirs.item(), abs=1e-6)
    for name, gradient in theirs_at.items():
        torch.testing.assert_close(mine_at[name], gradient, atol=1e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_on_answers_of_equal_length_the_first_step_is_that_of_rloo(tmp_path: Path) -> None:
    """RLOO sums a completion's tokens and takes the mean over completions; PPO takes the mean over tokens. At the first
    minibatch (ratios of 1, RLOO's advantages on every token) the gradients are the same but for the factor T, the
    length, when all lengths are equal; otherwise RLOO weighs each completion alike and PPO each token."""
    endless = {"suppress_tokens": [1]}
    rloo = RLOOTrainer(
        model=task.model_folder(), reward_funcs=task.share_of_a, processing_class=task.tokenizer(),
        train_dataset=task.prompts(),
        args=task.config(tmp_path, RLOOConfig, num_generations=4, num_iterations=2, beta=0.05,
                         generation_kwargs=endless),
    )  # fmt: skip
    batch = task.rollout(rloo)
    assert batch["completion_mask"].all()
    theirs = gradients(rloo, batch)
    made = task.trainer(
        tmp_path, vf_coef=0.0, num_generations=4, gamma=1.0, lam=1.0, whiten_advantages=False,
        generation_kwargs=endless,
    )  # fmt: skip
    sampled = task.rollout(made)
    assert torch.equal(sampled["completion_ids"], batch["completion_ids"])
    # Without a critic and at the reference itself, PPO's advantages are the rewards; RLOO's are those less the mean of
    # the other completions of the prompt.
    rewards = sampled["advantages"][:, 0].view(-1, 4)
    left_out = (rewards - (rewards.sum(1, keepdim=True) - rewards) / 3).flatten()
    torch.testing.assert_close(left_out, batch["advantages"])
    mine = gradients(made, {**sampled, "advantages": left_out[:, None].expand(-1, task.LENGTH)})
    assert max(gradient.abs().max() for gradient in theirs.values()) > 1e-2
    for name, gradient in theirs.items():
        torch.testing.assert_close(mine[name] * task.LENGTH, gradient, atol=1e-5, rtol=1e-4)


def test_a_bandit_reaches_its_known_optimum(tmp_path: Path) -> None:
    """With one token an answer, E[r] - kl_coef KL is greatest at pi_ref exp(r / kl_coef) / Z."""
    kl_coef, prompt = 0.3, "hi : a"
    reward = torch.zeros(len(task.VOCABULARY))
    reward[6:10] = torch.tensor([1.0, 0.7, 0.4, -0.5])
    made = task.trainer(
        tmp_path, reward_funcs=lambda completion_ids, **_: [reward[ids[0]].item() for ids in completion_ids],
        train_dataset=Dataset.from_list([{"prompt": prompt}] * 256), max_completion_length=1, critic="head",
        per_device_train_batch_size=256, num_ppo_epochs=2, max_steps=60, learning_rate=3e-3, vf_coef=0.5,
        lr_scheduler_type="linear", kl_coef=kl_coef, logging_steps=100,
    )  # fmt: skip
    ids = torch.tensor([task.tokenizer()(prompt)["input_ids"]])

    def next_token(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids).logits[0, -1].log_softmax(-1)

    reference = next_token(AutoModelForCausalLM.from_pretrained(task.model_folder()))
    optimum = (reference + reward / kl_coef).log_softmax(-1)

    def objective(log_probs: torch.Tensor) -> float:
        return float((log_probs.exp() * (reward - kl_coef * (log_probs - reference))).sum())

    assert objective(optimum) == pytest.approx(kl_coef * (reference + reward / kl_coef).logsumexp(0).item(), abs=1e-5)
    made.train()
    assert objective(optimum) - objective(reference) > 0.15  # there is something to learn
    assert objective(next_token(made.model)) > objective(optimum) - 0.01


def test_the_entropy_bonus_is_its_mean_over_tokens(tmp_path: Path) -> None:
    made = with_random_critic(task.trainer(tmp_path, entropy_coef=0.5))
    batch = task.rollout(made)
    bonus = loss_of(made, batch).item()
    entropy = metrics(made)["policy/entropy_avg"]
    made.entropy_coef = 0.0
    assert loss_of(made, batch).item() - bonus == pytest.approx(0.5 * entropy, rel=1e-5)


def test_the_value_loss_is_clipped_around_the_values_of_the_rollout(tmp_path: Path) -> None:
    made = task.trainer(tmp_path, cliprange_value=0.2, vf_coef=1.0)  # values are 0
    batch = task.rollout(made)
    shape = batch["returns"].shape
    batch |= {"advantages": torch.zeros(shape), "old_values": torch.full(shape, 0.5), "returns": torch.ones(shape)}
    # The value fell from 0.5 to 0 and is counted as 0.3; the worse of the two counts: (0 - 1)^2.
    assert loss_of(made, batch).item() == pytest.approx(0.5, rel=1e-6)
    batch["returns"] = -torch.ones(shape)
    assert loss_of(made, batch).item() == pytest.approx(0.5 * 1.3**2, rel=1e-6)
    made.args.cliprange_value = None
    assert loss_of(made, batch).item() == pytest.approx(0.5, rel=1e-6)


# Steps


def test_each_minibatch_of_each_epoch_of_each_rollout_is_a_step(tmp_path: Path) -> None:
    asked: list[int] = []

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        asked.append(len(completion_ids))
        return task.share_of_a(prompts, completion_ids)

    made = task.trainer(
        tmp_path, reward_funcs=reward, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        num_mini_batches=2, num_ppo_epochs=3, total_episodes=40, max_steps=-1, learning_rate=1e-3,
    )  # fmt: skip
    steps = EachStep(lambda: copies(made.model))
    made.add_callback(steps)
    start = copies(made.model)
    made.train()
    assert asked == [16, 16, 16]  # 40 episodes, rounded up to whole rollouts
    assert made.episodes == 48
    assert log_of(made)[-1]["episode"] == 48
    assert made.state.global_step == len(steps.kept) == 3 * 3 * 2
    for before, after in zip([start, *steps.kept], steps.kept, strict=False):
        assert any(not torch.equal(before[name], after[name]) for name in before if not is_critic(name))
        assert any(not torch.equal(before[name], after[name]) for name in before if is_critic(name))


def test_an_epoch_sees_every_completion_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    made = task.trainer(tmp_path, per_device_train_batch_size=4, num_mini_batches=4, num_ppo_epochs=3, max_steps=12)
    seen: list[torch.Tensor] = []
    compute = made._compute_loss

    def watched(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        seen.append(inputs["old_per_token_logps"][:, 0])
        return compute(model, inputs)

    made._compute_loss = watched
    made.train()
    epochs = [torch.cat(seen[first : first + 4]) for first in (0, 4, 8)]
    for epoch in epochs[1:]:
        assert torch.equal(epoch.sort().values, epochs[0].sort().values)
        assert not torch.equal(epoch, epochs[0])


def test_an_evaluation_between_two_epochs_leaves_the_rollout_as_it_is(tmp_path: Path) -> None:
    made = task.trainer(
        tmp_path, eval_dataset=task.prompts(8), num_ppo_epochs=3, max_steps=3, eval_strategy="steps", eval_steps=1,
        per_device_eval_batch_size=4,
    )  # fmt: skip
    seen: list[torch.Tensor] = []
    compute = made._compute_loss

    def watched(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if model.training:
            seen.append(inputs["old_per_token_logps"][:, 0].sort().values)
        return compute(model, inputs)

    made._compute_loss = watched
    made.train()
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    evaluated = [row for row in made.state.log_history if "eval_loss" in row]
    assert len(evaluated) == 3
    assert {"eval_objective/scores", "eval_objective/kl", "eval_loss/value_avg"} <= set(evaluated[0])
    assert made.episodes == 16  # of the training alone


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_warm_up_changes_the_critic_alone(tmp_path: Path, placement: str) -> None:
    made = with_random_critic(
        task.trainer(
            tmp_path, value_warmup_steps=2, num_ppo_epochs=3, max_steps=3, weight_decay=0.1, entropy_coef=0.1,
            **placed(placement),
        ),
        policy_too=True,
    )  # fmt: skip
    steps = EachStep(lambda: (copies(made.model), {id(p) for p in made.optimizer.state}))
    made.add_callback(steps)
    before = copies(made.model)
    trained = {name for name, p in made.model.named_parameters() if p.requires_grad}
    made.train()
    assert [row["policy/grad_norm"] > 0 for row in log_of(made)] == [False, False, True]
    (_, _), (warm, touched), (after, _) = steps.kept
    for name, parameter in made.model.named_parameters():
        if not is_critic(name):
            assert torch.equal(warm[name], before[name]), name
            assert id(parameter) not in touched  # no momentum either
        elif name in trained:
            assert not torch.equal(warm[name], before[name]), name
    assert any(not torch.equal(after[name], before[name]) for name in trained if not is_critic(name))


def test_training_stops_at_the_kl_budget_and_leaves_the_weights_where_they_were(tmp_path: Path) -> None:
    settings = {"num_ppo_epochs": 2, "num_mini_batches": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-2}
    one_rollout = task.trainer(tmp_path, max_steps=4, weight_decay=0.1, **settings)
    one_rollout.train()
    made = task.trainer(tmp_path, max_steps=40, weight_decay=0.1, kl_budget=1e-3, **settings)
    made.train()
    assert made.state.global_step == 5
    assert log_of(made)[-1]["objective/kl"] > 1e-3
    expected = one_rollout.model.state_dict()
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_budget_works_without_a_penalty(tmp_path: Path) -> None:
    made = task.trainer(tmp_path, max_steps=9, num_ppo_epochs=2, kl_coef=0.0, kl_budget=1e-3, learning_rate=1e-2)
    made.train()
    assert made.state.global_step == 3
    assert log_of(made)[0]["objective/non_score_reward"] == 0


# The reference


@torch.no_grad()
def kl_against(reference: Any, policy: Any, batch: dict[str, Any]) -> float:
    """Mean over completions of the summed log-ratio."""
    ratio = log_probs_of(policy, batch) - log_probs_of(reference, batch)
    return float((ratio * batch["completion_mask"]).sum(1).mean())


def existing_adapter(folder: Path) -> Path:
    """A LoRA policy on disk that is not its base."""
    made = with_random_critic(task.trainer(folder, peft_config=task.lora()), policy_too=True)
    made.save_model(str(folder / "adapter"))
    return folder / "adapter"


@pytest.mark.parametrize("kind", ["full", "new adapter", "existing adapter"])
def test_at_the_start_the_kl_is_0_and_later_that_to_the_start(tmp_path: Path, kind: str) -> None:
    def start() -> Any:
        if kind == "existing adapter":
            return AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", is_trainable=True)
        return AutoModelForCausalLM.from_pretrained(task.model_folder())

    if kind == "existing adapter":
        existing_adapter(tmp_path)
    made = task.trainer(tmp_path, model=start(), **({"peft_config": task.lora()} if kind == "new adapter" else {}))
    task.rollout(made)
    assert made._metrics["train"]["objective/kl"] == [0.0]
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if parameter.requires_grad and not is_critic(name):
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    batch = task.rollout(made)
    # Of the policy itself, not of the rollout's numbers.
    expected = kl_against(start().eval(), made.model, batch)
    assert abs(expected) > 0.05
    assert made._metrics["train"]["objective/kl"][1] == pytest.approx(expected, rel=1e-3)


def test_the_reference_of_a_new_adapter_is_the_base_itself(tmp_path: Path) -> None:
    made = with_random_critic(task.trainer(tmp_path, peft_config=task.lora()), policy_too=True)
    batch = task.rollout(made)
    base = AutoModelForCausalLM.from_pretrained(task.model_folder()).eval()
    expected = kl_against(base, made.model, batch)
    assert abs(expected) > 0.05
    assert made._metrics["train"]["objective/kl"][0] == pytest.approx(expected, rel=1e-3)


# Adapters


def test_policy_and_critic_adapter_get_the_gradient_of_their_own_loss_alone(tmp_path: Path) -> None:
    made = with_random_critic(task.trainer(tmp_path, peft_config=task.lora(), vf_coef=1.0), policy_too=True)
    batch = task.rollout(made)

    def largest(found: dict[str, torch.Tensor]) -> tuple[float, float]:
        of_critic = max(float(g.abs().max()) for name, g in found.items() if is_critic(name))
        return max(float(g.abs().max()) for name, g in found.items() if not is_critic(name)), of_critic

    both = gradients(made, batch)
    assert min(largest(both)) > 1e-3
    assert all("lora_" in name or is_critic(name) for name in both)  # and none on the base
    assert sum(is_critic(name) for name in both) == sum("lora_" in name and not is_critic(name) for name in both) + 2
    of_policy, of_critic = largest(gradients(made, {**batch, "advantages": 0 * batch["advantages"]}))
    assert of_policy == 0
    assert of_critic > 1e-3
    made.args.vf_coef = 0.0
    of_policy, of_critic = largest(gradients(made, batch))
    assert of_policy > 1e-3
    assert of_critic == 0


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path, placement: str) -> None:
    def trained(checkpointing: bool) -> Any:
        made = task.trainer(
            tmp_path, gradient_checkpointing=checkpointing, num_ppo_epochs=3, max_steps=6, optim="sgd",
            learning_rate=0.1, vf_coef=1.0, max_grad_norm=0.5, **placed(placement),
        )  # fmt: skip
        with_random_critic(made, policy_too=True).train()
        assert made.model.is_activation_checkpointing == checkpointing
        return made

    on, off, start = trained(True), trained(False), task.trainer(tmp_path, **placed(placement))
    with_random_critic(start, policy_too=True)
    moved = {True: 0.0, False: 0.0}
    for (name, mine), theirs, first in zip(
        on.model.named_parameters(), off.model.parameters(), start.model.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
        moved[is_critic(name)] = max(moved[is_critic(name)], float((theirs - first).abs().max().detach()))
    assert min(moved.values()) > 1e-3


# Rewards of tokens


def test_a_score_is_normalised_then_clipped_then_penalised(tmp_path: Path) -> None:
    """With gamma = lambda = 1, no critic yet and no KL, every return of a completion is its shaped score."""
    rewards = [0.0, 10.0, -30.0, 4.0] * 4
    made = task.trainer(
        tmp_path, reward_funcs=lambda completions, **_: rewards, normalize_scores=True, score_clip=1.2,
        missing_eos_penalty=0.75, lam=1.0, whiten_advantages=False, kl_coef=0.0,
    )  # fmt: skip
    batch = task.rollout(made)
    scaled = torch.tensor(rewards) / torch.tensor(rewards).std()
    ended = (batch["completion_ids"] == 1).any(1)
    assert 0 < ended.sum() < 16
    expected = scaled.clamp(-1.2, 1.2) - 0.75 * ~ended
    assert (scaled.abs() > 1.2).any()
    torch.testing.assert_close(batch["returns"], expected[:, None] * batch["completion_mask"])
    torch.testing.assert_close(batch["advantages"], batch["returns"])
    assert made._metrics["train"]["val/missing_eos"] == [float((~ended).float().mean())]
    assert made._metrics["train"]["val/num_eos_tokens"] == [float(ended.sum())]
    assert made._metrics["train"]["objective/scores"] == [pytest.approx(sum(rewards) / 16)]  # as the reward gave them


def test_scores_of_an_evaluation_are_normalised_by_those_of_the_training(tmp_path: Path) -> None:
    made = task.trainer(tmp_path, normalize_scores=True)
    task.rollout(made)
    state = made.score_scale.state()
    assert state[0] == 16
    made.model.eval()
    made._generate_and_score_completions([made.train_dataset[i] for i in range(16)])
    assert made.score_scale.state() == state


def test_rewards_are_weighted_and_whitened(tmp_path: Path) -> None:
    made = task.trainer(
        tmp_path, reward_funcs=[lambda completions, **_: [1.0, 3.0] * 8, lambda completions, **_: [None, 1.0] * 8],
        reward_weights=[2.0, 10.0], whiten_rewards=True, whiten_advantages=False, lam=1.0, kl_coef=0.0,
    )  # fmt: skip
    batch = task.rollout(made)
    mask = batch["completion_mask"]
    per_token = torch.zeros(mask.shape)
    per_token[torch.arange(16), mask.sum(1) - 1] = torch.tensor([2.0, 16.0] * 8)
    counted = per_token[mask.bool()]
    whitened = (per_token - counted.mean()) / counted.std(correction=0) + counted.mean()
    torch.testing.assert_close(batch["returns"][:, 0], (whitened * mask).sum(1))


def test_a_completion_that_no_function_scores_takes_no_part(tmp_path: Path) -> None:
    some = [None if i % 2 else float(i) for i in range(16)]
    made = task.trainer(tmp_path, reward_funcs=lambda completions, **_: some, vf_coef=1.0)
    batch = task.rollout(made)
    assert batch["scored"].tolist() == [reward is not None for reward in some]
    assert not batch["advantages"][1::2].any()
    assert made._metrics["train"]["objective/scores"] == [7.0]
    whole = gradients(made, batch)
    half = {
        name: value[::2] if isinstance(value, torch.Tensor) and value.dim() else value for name, value in batch.items()
    }
    for name, gradient in gradients(made, half).items():
        torch.testing.assert_close(whole[name], gradient, atol=1e-6, rtol=1e-5)


def test_tokens_that_something_else_wrote_are_read_but_not_trained(tmp_path: Path) -> None:
    """`env_mask` of a rollout function: tokens 2 and 3 are a tool's."""
    tokenizer = task.tokenizer()

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        ids = [[6, 7, 8, 9, 10, 1] for _ in prompts]
        return {
            "prompt_ids": [tokenizer(prompt)["input_ids"] for prompt in prompts], "completion_ids": ids,
            "logprobs": [[0.0] * 6 for _ in prompts], "env_mask": [[1, 1, 0, 0, 1, 0] for _ in prompts],
        }  # fmt: skip

    made = with_random_critic(
        task.trainer(tmp_path, rollout_func=rollout, lam=0.5, gamma=0.9, kl_coef=0.0, whiten_advantages=False)
    )
    batch = task.rollout(made)
    score = task.share_of_a(["hi"], [[6]])[0]
    scores = torch.tensor([score if made.train_dataset[i]["prompt"].startswith("hi") else score - 1 for i in range(16)])
    values = batch["old_values"]
    assert not values[:, [2, 3, 5]].any()
    last = scores - values[:, 4]  # the last token of its own has the score
    second = 0.9 * values[:, 4] - values[:, 1] + 0.45 * last
    first = 0.9 * values[:, 1] - values[:, 0] + 0.45 * second
    zero = torch.zeros(16)
    expected = torch.stack([first, second, zero, zero, last, zero], 1)
    torch.testing.assert_close(batch["advantages"], expected)
    loss_of(made, batch)
    assert made.step_metrics.sums("train")["val/ratio"][1] == 16 * 3


def test_several_completions_of_a_prompt(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        asked.append(prompts)
        return task.share_of_a(prompts, completion_ids)

    made = task.trainer(tmp_path, reward_funcs=reward, num_generations=4, num_ppo_epochs=1, max_steps=2)
    made.train()
    assert len(asked) == 2
    for prompts in asked:
        groups = [prompts[first : first + 4] for first in range(0, 16, 4)]
        assert all(len(set(group)) == 1 for group in groups)
        assert len({group[0] for group in groups}) > 1


# Metrics

FORMER_NAMES = {
    "eps", "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward",
    "objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg",
    "loss/value_avg", "val/clipfrac_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "lr", "episode",
}  # fmt: skip
"""All that TRL's former PPOTrainer logged."""


def test_every_metric_of_the_former_trainer_is_logged(tmp_path: Path) -> None:
    made = task.trainer(tmp_path, max_steps=1)
    made.train()
    row = log_of(made)[0]
    assert set(row) >= FORMER_NAMES | {"objective/kl_coef", "policy/grad_norm", "val/grad_norm", "val/mean"}
    assert all(math.isfinite(value) for value in row.values())
    assert "frac_reward_zero_std" not in row


def test_metrics_count_no_padding(tmp_path: Path) -> None:
    made = with_random_critic(task.trainer(tmp_path))
    batch = task.rollout(made)
    noise = 0.3 * torch.randn(batch["old_per_token_logps"].shape, generator=torch.Generator().manual_seed(0))
    batch["old_per_token_logps"] = batch["old_per_token_logps"] + noise
    batch["old_values"] = batch["old_values"] + noise
    loss_of(made, batch)
    model = AutoModelForCausalLM.from_pretrained(task.model_folder()).eval()
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=attention).logits[:, -task.LENGTH - 1 : -1].log_softmax(-1)
    expected: dict[str, list[float]] = {name: [] for name in ("approxkl", "entropy", "ratio", "clipfrac", "loss")}
    for row in range(16):  # one token after the other
        for place in range(int(batch["completion_mask"][row].sum())):
            token = logits[row, place]
            log_ratio = float(token[batch["completion_ids"][row, place]] - batch["old_per_token_logps"][row, place])
            ratio, advantage = math.exp(log_ratio), float(batch["advantages"][row, place])
            unclipped, clipped = -advantage * ratio, -advantage * min(max(ratio, 0.8), 1.2)
            expected["approxkl"].append(0.5 * log_ratio**2)
            expected["entropy"].append(float(-(token.exp() * token).sum()))
            expected["ratio"].append(ratio)
            expected["clipfrac"].append(float(clipped > unclipped))
            expected["loss"].append(max(clipped, unclipped))
    assert 16 < len(expected["ratio"]) < 16 * task.LENGTH
    mean = {name: sum(values) / len(values) for name, values in expected.items()}
    got = metrics(made)
    assert got["policy/approxkl_avg"] == pytest.approx(mean["approxkl"], rel=1e-4)
    assert got["policy/entropy_avg"] == pytest.approx(mean["entropy"], rel=1e-4)
    assert got["val/ratio"] == pytest.approx(mean["ratio"], rel=1e-4)
    assert got["policy/clipfrac_avg"] == pytest.approx(mean["clipfrac"], rel=1e-4)
    assert got["loss/policy_avg"] == pytest.approx(mean["loss"], rel=1e-4)
    made.log({})
    assert made.state.log_history[-1]["val/ratio_var"] == pytest.approx(
        torch.tensor(expected["ratio"]).var().item(), rel=0.02
    )


def test_accumulation_steps_log_what_one_batch_logs_and_move_the_weights_alike(tmp_path: Path) -> None:
    def trained(size: int, steps: int) -> Any:
        made = task.trainer(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps, num_ppo_epochs=2,
            max_steps=4, optim="sgd", learning_rate=0.3, vf_coef=0.5, kl_target=1.0, logging_steps=2,
        )  # fmt: skip
        with_random_critic(made).train()
        return made

    one, four = trained(16, 1), trained(4, 4)
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(four.model.state_dict()[name], tensor, atol=1e-6, rtol=0)
    times = {"eps", "step_time"}
    for mine, theirs in zip(log_of(one), log_of(four), strict=True):
        assert set(mine) == set(theirs)
        for name in set(mine) - times:
            assert theirs[name] == pytest.approx(mine[name], abs=2e-5, rel=1e-4), name


def test_explained_variance_rises_when_the_critic_learns(tmp_path: Path) -> None:
    """The reward depends on the prompt alone; a critic that reads it can know every return."""
    made = task.trainer(
        tmp_path, reward_funcs=lambda prompts, **_: [float(p.startswith("hi")) for p in prompts], kl_coef=0.0,
        value_warmup_steps=99, num_ppo_epochs=4, max_steps=40, critic_learning_rate=3e-3, vf_coef=1.0,
    )  # fmt: skip
    made.train()
    explained = [row["val/explained_variance"] for row in log_of(made) if "val/explained_variance" in row]
    assert explained[0] == pytest.approx(0, abs=1e-6)
    assert explained[-1] > 0.9


def test_the_kl_coefficient_adapts_after_each_rollout(tmp_path: Path) -> None:
    made = task.trainer(tmp_path, kl_target=5.0, kl_horizon=100, num_ppo_epochs=1, max_steps=3)
    made.train()
    coefficients = [row["objective/kl_coef"] for row in log_of(made)]
    kls = [row["objective/kl"] for row in log_of(made)]
    assert coefficients[0] == 0.05
    for before, kl, after in zip(coefficients, kls, [*coefficients[1:], made.kl_coef], strict=True):
        error = max(-0.2, min(0.2, kl / 5 - 1))
        assert after == pytest.approx(before * (1 + error * 16 / 100))
