"""KTO through TRL: what is the start, what is the reference, what is trained."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from samples import updates as samples
from samples.updates import LABELLED as ROWS
from samples.updates import answer_log_probs
from samples.updates import labelled as row
from trl import KTOConfig, KTOTrainer

from rlhf_loop.models.loading import load_policy
from rlhf_loop.recipe import Policy, Update
from rlhf_loop.updates import kto
from rlhf_loop.updates.train_and_save import Training


def settings(lora: bool = True, **trainer: object) -> Update:
    return samples.settings("kto", lora, **trainer)


def train(base: Path, output: Path, *, start: Path, reference: Path, lora: bool = True, **trainer: object) -> dict:
    return samples.train(base, output, settings(lora, **trainer), start=start, reference=reference)


def log_probs(reference: Path, base: Path) -> torch.Tensor:
    model, tokenizer = load_policy(reference, Policy(model=str(base), dtype="float32"))
    return answer_log_probs(model, tokenizer, [(row.prompt, row.completion) for row in ROWS])


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("reference", ["base", "previous"])
def test_in_round_two_the_reference_is_the_one_asked_for(
    tiny_policy: Path, tmp_path: Path, lora: bool, reference: str
) -> None:
    train(tiny_policy, tmp_path / "one", start=tiny_policy, reference=tiny_policy, lora=lora)
    first = tmp_path / "one" / "policy"
    asked = tiny_policy if reference == "base" else first
    # One step over all rows: its logged rewards are those of the start weights against the reference.
    train(
        tiny_policy, tmp_path / "two", start=first, reference=asked, lora=lora,
        per_device_train_batch_size=8, num_train_epochs=1,
    )  # fmt: skip
    logged = json.loads((tmp_path / "two" / "train_log.jsonl").read_text().splitlines()[0])
    rewards = 0.1 * (log_probs(first, tiny_policy) - log_probs(asked, tiny_policy))
    good = torch.tensor([one.label for one in ROWS])
    assert logged["rewards/chosen"] == pytest.approx(rewards[good].mean().item(), abs=1e-4)
    assert logged["rewards/rejected"] == pytest.approx(rewards[~good].mean().item(), abs=1e-4)
    if reference == "base":
        assert logged["rewards/chosen"] > 0.01  # the first round moved away from the base


def test_training_makes_good_answers_likelier_than_bad_ones(tiny_policy: Path, tmp_path: Path) -> None:
    metrics = train(tiny_policy, tmp_path, start=tiny_policy, reference=tiny_policy, num_train_epochs=4)
    gained = log_probs(tmp_path / "policy", tiny_policy) - log_probs(tiny_policy, tiny_policy)
    good = torch.tensor([one.label for one in ROWS])
    assert gained[good].mean() > gained[~good].mean() + 0.1
    assert (metrics["algorithm"], metrics["steps"], metrics["desirable"], metrics["undesirable"]) == ("kto", 8, 6, 2)


def test_both_labels_count_alike_unless_the_recipe_says_otherwise(tiny_policy: Path, tmp_path: Path) -> None:
    metrics = train(tiny_policy, tmp_path / "one", start=tiny_policy, reference=tiny_policy, max_steps=1)
    assert metrics["desirable_weight"] * 6 == metrics["undesirable_weight"] * 2 == 6.0
    metrics = train(
        tiny_policy, tmp_path / "two", start=tiny_policy, reference=tiny_policy, max_steps=1, desirable_weight=2.0
    )
    assert (metrics["desirable_weight"], metrics["undesirable_weight"]) == (2.0, 1.0)
    assert kto.balanced_weights(ROWS[1:4]) == {"desirable_weight": 1.0, "undesirable_weight": 1.0}


def test_an_answer_that_was_cut_off_has_no_end_token_not_even_as_a_mismatch(tiny_policy: Path, tmp_path: Path) -> None:
    rows = [row(1), row(2, finished=False), row(3), row(5, finished=False)]
    policy = Policy(model=str(tiny_policy), dtype="float32", system_prompt="Be brief.")
    training = Training(
        start=tiny_policy, reference=tiny_policy, output=tmp_path, policy=policy,
        settings=settings(per_device_train_batch_size=2), seed=0,
    )  # fmt: skip
    trainer, tokenizer, _ = kto._trainer(rows, training, training.arguments(KTOConfig))
    end, made = tokenizer.eos_token_id, list(trainer.train_dataset)
    texts = {one.completion[0]["content"]: one.finished for one in rows}
    for one in made:
        text = tokenizer.decode(one["completion_ids"], skip_special_tokens=True).strip()
        assert (end in one["completion_ids"]) == texts[text]
        assert "Be brief." in tokenizer.decode(one["prompt_ids"])
    for first, second in (made[:2], made[2:]):
        assert first["KL_completion_ids"] == second["completion_ids"]
        assert second["KL_completion_ids"] == first["completion_ids"]


def test_the_seams_of_trl_that_this_leans_on_are_there() -> None:
    assert list(inspect.signature(KTOTrainer._prepare_dataset).parameters) == [
        "self", "dataset", "processing_class", "args", "dataset_name",
    ]  # fmt: skip
    assert 'model.add_adapter("ref", default_config)' in inspect.getsource(KTOTrainer.__init__)
    assert KTOConfig.train_sampling_strategy == "sequential"
