"""Supervised fine-tuning through TRL, as an update, as rejection sampling and as a warm start."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from samples import updates as samples
from samples.updates import DEMONSTRATIONS as ROWS
from samples.updates import answer_log_probs
from samples.updates import demonstration as row
from trl import SFTConfig, SFTTrainer

from rlhf_loop.errors import UserError
from rlhf_loop.models.loading import load_policy
from rlhf_loop.recipe import Policy, Update
from rlhf_loop.records import Demonstration
from rlhf_loop.updates import sft
from rlhf_loop.updates.train_and_save import Training


def settings(lora: bool = True, algorithm: str = "sft", **trainer: object) -> Update:
    return samples.settings(algorithm, lora, **trainer)


def train(base: Path, output: Path, start: Path, update: Update, rows: list[Demonstration] = ROWS) -> dict:
    return samples.train(base, output, update, start=start, rows=rows)


def log_prob(reference: Path, base: Path) -> float:
    """Mean of the log-probabilities of the answers."""
    model, tokenizer = load_policy(reference, Policy(model=str(base), dtype="float32"))
    return answer_log_probs(model, tokenizer, [(row.prompt, row.completion) for row in ROWS]).mean().item()


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_each_round_goes_on_from_the_policy_it_starts_from(tiny_policy: Path, tmp_path: Path, lora: bool) -> None:
    metrics = train(tiny_policy, tmp_path / "one", tiny_policy, settings(lora))
    train(tiny_policy, tmp_path / "two", tmp_path / "one" / "policy", settings(lora))
    likelihoods = [log_prob(p, tiny_policy) for p in (tiny_policy, *(tmp_path / n / "policy" for n in ("one", "two")))]
    assert likelihoods[0] + 1 < likelihoods[1] < likelihoods[2] - 1
    assert (metrics["algorithm"], metrics["steps"], metrics["demonstrations"]) == ("sft", 4, 8)


def test_rejection_sampling_is_the_same_training_under_its_own_name(tiny_policy: Path, tmp_path: Path) -> None:
    train(tiny_policy, tmp_path / "sft", tiny_policy, settings(max_steps=2))
    metrics = train(tiny_policy, tmp_path / "best", tiny_policy, settings(algorithm="rejection_sampling", max_steps=2))
    assert metrics["algorithm"] == "rejection_sampling"
    weights = [tmp_path / name / "policy" / "adapter_model.safetensors" for name in ("sft", "best")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def made(rows: list[Demonstration], policy: Policy, output: Path, options: dict[str, object]) -> tuple[SFTTrainer, Any]:
    """The trainer of `rows` and its tokenizer, before it trains."""
    training = Training(
        start=policy.model, reference=policy.model, output=output, policy=policy, settings=settings(**options), seed=0
    )
    return sft._trainer(rows, training, training.arguments(SFTConfig))[:2]


@pytest.mark.parametrize("packing", [False, True])
def test_only_the_answer_is_trained_and_its_end_only_if_it_ended(
    tiny_policy: Path, tmp_path: Path, packing: bool
) -> None:
    policy = Policy(model=str(tiny_policy), dtype="float32", system_prompt="Be brief.")
    rows = [row(0), row(1, finished=False)]
    options = {"completion_only_loss": True, "packing": packing, "max_length": 256}
    trainer, tokenizer = made(rows, policy, tmp_path, options)
    trained = [[t for t in one["labels"] if t != -100] for one in trainer.train_dataset]
    texts = [tokenizer.decode(ids).strip() for ids in trained]
    end = tokenizer.eos_token
    if packing:
        assert len(texts) == 1
        assert texts[0].count(end) == 1
    else:
        assert texts[0].startswith(f"red it is{end}")
        assert texts[1] == "green it is"
    asked = tokenizer.decode(trainer.train_dataset[0]["input_ids"])
    assert "Be brief." in asked
    assert "Say red 0" in asked


def test_an_answer_cut_by_the_length_limit_keeps_what_is_left_of_it(tiny_policy: Path, tmp_path: Path) -> None:
    rows = [row(1, finished=False)]
    whole, *_ = _lengths(rows, tiny_policy, tmp_path, 512)
    cut, trainer = _lengths(rows, tiny_policy, tmp_path, whole - 3)
    assert cut == whole - 3  # an end token of the prompt is not taken for one of the answer
    assert trainer.truncated == 1


def _lengths(rows: list[Demonstration], base: Path, folder: Path, limit: int) -> tuple[int, SFTTrainer]:
    policy = Policy(model=str(base), dtype="float32")
    trainer, _ = made(rows, policy, folder, {"completion_only_loss": True, "max_length": limit})
    return len(trainer.train_dataset[0]["input_ids"]), trainer


def test_nothing_to_imitate_is_refused_with_the_remedy(tiny_policy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no demonstrations"):
        train(tiny_policy, tmp_path, tiny_policy, settings(), rows=[])


def test_full_fine_tuning_does_not_start_from_an_adapter(tiny_policy: Path, tmp_path: Path) -> None:
    train(tiny_policy, tmp_path / "one", tiny_policy, settings(max_steps=1))
    with pytest.raises(UserError, match="needs full weights"):
        train(tiny_policy, tmp_path / "two", tmp_path / "one" / "policy", settings(lora=False))


def test_the_seams_of_trl_that_this_leans_on_are_there() -> None:
    assert list(inspect.signature(SFTTrainer._prepare_dataset).parameters) == [
        "self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name",
    ]  # fmt: skip
