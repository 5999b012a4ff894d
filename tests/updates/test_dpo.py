"""DPO through TRL: what is the start, what is the reference, what is trained."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from samples import updates as samples
from samples.updates import LOSSES, PAIRS, answer_log_probs, losses, pair, policy
from trl import DPOConfig, DPOTrainer

from rlhf_loop.errors import UserError
from rlhf_loop.models.loading import load_policy
from rlhf_loop.recipe import Lora, Update
from rlhf_loop.updates import dpo, update_policy
from rlhf_loop.updates.train_and_save import Training


def settings(lora: bool = True, **trainer: object) -> Update:
    return samples.settings("dpo", lora, **trainer)


def train(base: Path, output: Path, *, start: Path, reference: Path, lora: bool = True, **trainer: object) -> dict:
    return samples.train(base, output, settings(lora, **trainer), start=start, reference=reference)


def log_probs(model: torch.nn.Module, tokenizer: object, side: str) -> torch.Tensor:
    return answer_log_probs(model, tokenizer, [(row.prompt, getattr(row, side)) for row in PAIRS])


def first_step(output: Path) -> dict:
    return json.loads((output / "train_log.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("reference", ["base", "previous"])
def test_in_round_two_the_reference_is_the_one_asked_for(
    tiny_policy: Path, tmp_path: Path, lora: bool, reference: str
) -> None:
    train(tiny_policy, tmp_path / "one", start=tiny_policy, reference=tiny_policy, lora=lora)
    first = tmp_path / "one" / "policy"
    asked = tiny_policy if reference == "base" else first
    # One step over all pairs: its logged rewards are those of the start weights against the reference.
    train(
        tiny_policy, tmp_path / "two", start=first, reference=asked, lora=lora,
        per_device_train_batch_size=8, num_train_epochs=1,
    )  # fmt: skip
    start_model, tokenizer = load_policy(first, policy(tiny_policy))
    reference_model, _ = load_policy(asked, policy(tiny_policy))
    for side in ("chosen", "rejected"):
        expected = 0.1 * (log_probs(start_model, tokenizer, side) - log_probs(reference_model, tokenizer, side)).mean()
        assert first_step(tmp_path / "two")[f"rewards/{side}"] == pytest.approx(expected.item(), abs=1e-4)
    if reference == "base":
        assert first_step(tmp_path / "two")["rewards/chosen"] > 0.01  # the first round moved away from the base


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_training_prefers_the_chosen_answers(tiny_policy: Path, tmp_path: Path, lora: bool) -> None:
    metrics = train(tiny_policy, tmp_path, start=tiny_policy, reference=tiny_policy, lora=lora)
    assert metrics["steps"] == 4
    assert metrics["pairs"] == 8
    base, tokenizer = load_policy(tiny_policy, policy(tiny_policy))
    trained, _ = load_policy(tmp_path / "policy", policy(tiny_policy))
    margin_before = log_probs(base, tokenizer, "chosen") - log_probs(base, tokenizer, "rejected")
    margin_after = log_probs(trained, tokenizer, "chosen") - log_probs(trained, tokenizer, "rejected")
    assert (margin_after > margin_before).float().mean() > 0.8


def test_start_from_base_against_the_previous_policy_starts_at_the_base(tiny_policy: Path, tmp_path: Path) -> None:
    train(tiny_policy, tmp_path / "one", start=tiny_policy, reference=tiny_policy)
    previous = tmp_path / "one" / "policy"
    train(
        tiny_policy, tmp_path / "two", start=tiny_policy, reference=previous,
        per_device_train_batch_size=8, num_train_epochs=1,
    )  # fmt: skip
    base_model, tokenizer = load_policy(tiny_policy, policy(tiny_policy))
    previous_model, _ = load_policy(previous, policy(tiny_policy))
    expected = 0.1 * (log_probs(base_model, tokenizer, "chosen") - log_probs(previous_model, tokenizer, "chosen"))
    assert first_step(tmp_path / "two")["rewards/chosen"] == pytest.approx(expected.mean().item(), abs=1e-4)


def test_an_answer_that_was_cut_off_is_trained_without_an_end_token(tiny_policy: Path, tmp_path: Path) -> None:
    training = Training(
        start=tiny_policy,
        reference=tiny_policy,
        output=tmp_path,
        policy=policy(tiny_policy),
        settings=settings(),
        seed=0,
    )
    rows = [pair(0, chosen_finished=True), pair(1, chosen_finished=False)]
    trainer, tokenizer, _ = dpo._trainer(rows, training, training.arguments(DPOConfig))
    end = tokenizer.eos_token_id
    finished, cut = trainer.train_dataset[0], trainer.train_dataset[1]
    assert end in finished["chosen_ids"]
    assert end not in cut["chosen_ids"]
    assert end in cut["rejected_ids"]
    assert tokenizer.decode(cut["chosen_ids"]).strip() == rows[1].chosen[0]["content"]


def test_prompts_are_trained_with_the_system_prompt_that_they_were_answered_with(
    tiny_policy: Path, tmp_path: Path
) -> None:
    brief = policy(tiny_policy).model_copy(update={"system_prompt": "Be brief."})
    training = Training(
        start=tiny_policy, reference=tiny_policy, output=tmp_path, policy=brief, settings=settings(), seed=0
    )
    trainer, tokenizer, _ = dpo._trainer([pair(0)], training, training.arguments(DPOConfig))
    assert "Be brief." in tokenizer.decode(trainer.train_dataset[0]["prompt_ids"])


def test_the_losses_are_found() -> None:
    assert len(losses()) == 15
    assert {"sigmoid", "ipo", "hinge"} <= set(losses())


@pytest.mark.parametrize("loss", losses())
def test_every_loss_of_trl_runs_by_its_name(tiny_policy: Path, tmp_path: Path, loss: str) -> None:
    metrics = train(
        tiny_policy, tmp_path, start=tiny_policy, reference=tiny_policy,
        loss_type=loss, max_steps=1, learning_rate=1e-4, **LOSSES.get(loss, {}),
    )  # fmt: skip
    assert metrics["steps"] == 1
    assert (tmp_path / "policy" / "adapter_model.safetensors").exists()


def test_over_long_pairs_are_counted(tiny_policy: Path, tmp_path: Path) -> None:
    metrics = train(tiny_policy, tmp_path, start=tiny_policy, reference=tiny_policy, max_length=30, max_steps=1)
    assert metrics["truncated"] + metrics["dropped_prompt_too_long"] > 0


def test_nothing_to_train_on_is_refused_with_the_remedy(tiny_policy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="min_margin"):
        update_policy(
            [], start=tiny_policy, reference=tiny_policy, output=tmp_path, policy=policy(tiny_policy),
            settings=settings(),
        )  # fmt: skip


def test_an_adapter_of_another_rank_is_refused(tiny_policy: Path, tmp_path: Path) -> None:
    train(tiny_policy, tmp_path / "one", start=tiny_policy, reference=tiny_policy, max_steps=1)
    other = Update(lora=Lora(r=2, alpha=4), trainer={"max_steps": 1})
    with pytest.raises(UserError, match="does not fit"):
        update_policy(
            PAIRS, start=tmp_path / "one" / "policy", reference=tiny_policy, output=tmp_path / "two",
            policy=policy(tiny_policy), settings=other,
        )  # fmt: skip


def test_the_seams_of_trl_that_this_leans_on_are_there() -> None:
    assert list(inspect.signature(DPOTrainer._prepare_dataset).parameters) == [
        "self", "dataset", "processing_class", "args", "dataset_name",
    ]  # fmt: skip
    source = inspect.getsource(DPOTrainer.__init__)
    assert 'model.add_adapter("ref", default_config)' in source  # a PeftModel's adapter becomes the reference
    assert "peft_config" in inspect.signature(DPOTrainer.__init__).parameters
