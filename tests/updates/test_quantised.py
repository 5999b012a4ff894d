"""A base of 4 bits with an adapter: one policy in sampling, in training, where it is measured, and as exported."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from samples.updates import PROMPTS, SAMPLING, policy, settings, train
from transformers import AutoModelForCausalLM

from rlhf_loop.errors import UserError
from rlhf_loop.generation.transformers_engine import sample
from rlhf_loop.models.card import model_card
from rlhf_loop.models.loading import load_policy, merge_policy, to_messages
from rlhf_loop.recipe import parse
from rlhf_loop.records import Artifact

with_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
DTYPES = ["float32", "bfloat16"]
IDS = torch.arange(10, 60).view(2, 25)


@pytest.fixture(scope="module")
def trained(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that was trained on the quantised base."""
    folder = tmp_path_factory.mktemp("trained")
    train(tiny_policy, folder, settings("sft", max_steps=3), quantization="nf4")
    return folder / "policy"


@pytest.fixture(scope="module")
def plain(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The numbers that the 4 bits stand for, as an ordinary model."""
    folder = tmp_path_factory.mktemp("plain")
    merge_policy(tiny_policy, folder, policy(tiny_policy, quantization="nf4"))
    return folder


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@with_bitsandbytes
@pytest.mark.parametrize("algorithm", ["dpo", "kto", "sft", "grpo", "rloo", "ppo"])
def test_a_training_is_that_on_the_numbers_that_the_bits_stand_for(
    algorithm: str, tiny_policy: Path, trained: Path, plain: Path, tmp_path: Path
) -> None:
    update = settings(algorithm, max_steps=3, **({"num_mini_batches": 1} if algorithm == "ppo" else {}))
    train(tiny_policy, tmp_path / "bits", update, start=trained, quantization="nf4")
    train(plain, tmp_path / "numbers", update, start=trained)
    assert losses(tmp_path / "bits") == pytest.approx(losses(tmp_path / "numbers"), rel=1e-4, abs=1e-6)
    assert len(losses(tmp_path / "bits")) == 3


@with_bitsandbytes
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_one_policy_where_it_is_trained_read_and_exported(
    dtype: str, tiny_policy: Path, trained: Path, tmp_path: Path
) -> None:
    settings = policy(tiny_policy, dtype=dtype, quantization="nf4")
    merge_policy(trained, tmp_path, settings)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert exported.dtype == getattr(torch, dtype)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    whole = load_policy(trained, policy(tiny_policy, dtype=dtype))[0]
    with torch.no_grad():
        expected = exported(IDS).logits.float()
        of_another_base = whole(IDS).logits.float()
        for options in ({}, {"merged": True}, {"only_read": True}, {"trainable": True}):
            model, _ = load_policy(trained, settings, **options)
            error = (model(IDS).logits.float() - expected).abs().max()
            assert error < (1e-4 if dtype == "float32" else 0.1)
            assert error < (of_another_base - expected).abs().max() / 4
            assert sum(parameter.dtype == torch.uint8 for parameter in model.parameters()) == 14


@with_bitsandbytes
def test_it_writes_what_its_export_writes(tiny_policy: Path, trained: Path, tmp_path: Path) -> None:
    quantised = policy(tiny_policy, quantization="nf4")
    merge_policy(trained, tmp_path, quantised)
    conversations = [to_messages(prompt, quantised) for prompt in PROMPTS]
    keys = [(0, 1, prompt.id) for prompt in PROMPTS]
    written = []
    for reference, of_policy in ((trained, quantised), (tmp_path, policy(tmp_path))):
        model, tokenizer = load_policy(reference, of_policy, merged=True)
        answers = sample(model, tokenizer, conversations, keys, SAMPLING)
        written.append([[answer.ids for answer in of_prompt] for of_prompt in answers])
    assert written[0] == written[1]


@with_bitsandbytes
def test_an_export_in_another_precision_has_the_base_that_was_trained_on(tiny_policy: Path, tmp_path: Path) -> None:
    of_run = policy(tiny_policy, dtype="bfloat16", quantization="nf4")
    for dtype in DTYPES:
        merge_policy(tiny_policy, tmp_path / dtype, of_run, dtype)
    precise, rounded = (AutoModelForCausalLM.from_pretrained(tmp_path / dtype).state_dict() for dtype in DTYPES)
    assert {tensor.dtype for tensor in precise.values()} == {torch.float32}
    assert all(torch.equal(tensor.bfloat16(), rounded[name]) for name, tensor in precise.items())


def test_the_card_of_an_adapter_says_on_what_it_was_trained(tiny_policy: Path) -> None:
    artifact = Artifact(id="policy-1", kind="policy", path="policy", parent=None, round=1, metrics={}, trained_on=())
    recipe = parse(
        {
            "name": "small",
            "policy": {"model": str(tiny_policy), "quantization": "nf4"},
            "prompts": {"train": ["train.jsonl"], "test": ["test.jsonl"]},
            "feedback": {"annotator": {"kind": "simulated"}},
            "reward": {"model": "reward_models/frozen_head"},
            "evaluation": {"judge": {"kind": "rule"}},
        }
    )
    assert 'bnb_4bit_quant_type="nf4"' in model_card(recipe, artifact, {}, "adapter", "small")
    assert "4 bits" not in model_card(recipe, artifact, {}, "merged", "small")


@with_bitsandbytes
def test_adapters_are_trained_in_float32(tiny_policy: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    train(tiny_policy, tmp_path, settings("dpo", max_steps=3), quantization="nf4", dtype="bfloat16")
    tensors = load_file(tmp_path / "policy" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert not all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in tensors.values())


def test_what_is_missing_is_named(tiny_policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str, *more: Any) -> Any:
        return None if name == "bitsandbytes" else real(name, *more)

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", found)
    with pytest.raises(UserError, match=r"pip install 'rlhf-loop\[qlora\]'"):
        load_policy(tiny_policy, policy(tiny_policy, quantization="nf4"))


@with_bitsandbytes
def test_weights_of_4_bits_are_not_shared_out(tiny_policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_loop.models.quantised.shared_out", lambda: True)
    with pytest.raises(UserError, match=r"recipes/accelerate/ddp\.yaml"):
        load_policy(tiny_policy, policy(tiny_policy, quantization="nf4"))
