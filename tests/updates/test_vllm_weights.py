"""What the online updates send to vLLM, and that it leaves no trace in the weights that it is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from samples import colocated
from samples.updates import policy, settings, train
from trl.generation.vllm_generation import VLLMGeneration

from rlhf_loop.lora import Lora
from rlhf_loop.updates.adapters import load_base, lora_config
from rlhf_loop.updates.ppo.critic import is_critic
from rlhf_loop.updates.vllm_weights import restore_base_after_sync

SYNCS = 50


def base_of(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items() if "lora_" not in name and not is_critic(name)}


def adapter_of(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items() if "lora_" in name}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def added(model: PeftModel, base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`base` and the adapter by the names that vLLM knows: added in float32, rounded once."""
    adapter, scale = adapter_of(model), model.peft_config["default"].lora_alpha / model.peft_config["default"].r
    sums = {}
    for name, weight in base.items():
        place = name.removesuffix("base_layer.weight")
        if place != name:
            product = adapter[f"{place}lora_B.default.weight"] @ adapter[f"{place}lora_A.default.weight"]
            weight = (weight.float() + scale * product).to(weight.dtype)
        sums[name.removeprefix("base_model.model.").replace(".base_layer", "")] = weight
    return sums


@pytest.fixture
def engine(tiny_policy: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """TRL's, of a policy in bfloat16 with an adapter that was trained."""
    from accelerate import Accelerator

    colocated.stands_in(monkeypatch)
    torch.manual_seed(0)
    model, tokenizer = load_base(policy(tiny_policy, dtype="bfloat16"))
    model = get_peft_model(model, lora_config(Lora(r=4, alpha=8)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return VLLMGeneration(model, Accelerator(cpu=True), tokenizer)


def test_trls_own_sync_moves_a_base_in_bfloat16(engine: Any) -> None:
    """Where it no longer does, `restore_base_after_sync` can go."""
    before = base_of(engine.model)
    engine.sync_weights()
    assert not same(base_of(engine.model), before)


def test_a_base_is_bit_by_bit_the_same_after_fifty_syncs(engine: Any) -> None:
    base, adapter = base_of(engine.model), adapter_of(engine.model)
    expected = added(engine.model, base)
    restore_base_after_sync(engine)
    for _ in range(SYNCS):
        engine.sync_weights()
    assert same(base_of(engine.model), base)
    assert same(adapter_of(engine.model), adapter)
    assert engine.llm.weights.keys() == expected.keys() - {"lm_head.weight"}  # the embeddings again
    assert all(torch.equal(tensor, expected[name]) for name, tensor in engine.llm.weights.items())


def test_a_base_is_restored_when_a_sync_fails(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of(engine.model)
    restore_base_after_sync(engine)

    def failing(weights: Any) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(engine.llm, "load_weights", failing)
    with pytest.raises(ConnectionError):
        engine.sync_weights()
    assert same(base_of(engine.model), base)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_a_training_with_vllm_sends_its_policy_and_keeps_its_base(
    algorithm: str, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colocated.stands_in(monkeypatch)
    own = VLLMGeneration.sync_weights
    bases: list[dict[str, torch.Tensor]] = []

    def sync(self: Any) -> None:
        base, expected = base_of(self.model), added(self.model, base_of(self.model))
        own(self)
        assert same(base_of(self.model), base)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in self.llm.weights.items())
        bases.append(base)

    monkeypatch.setattr(VLLMGeneration, "sync_weights", sync)
    more = {"num_ppo_epochs": 1, "num_mini_batches": 1} if algorithm == "ppo" else {}
    update = settings(algorithm, use_vllm=True, max_steps=SYNCS, **more)
    train(tiny_policy, tmp_path, update, dtype="bfloat16")
    assert len(bases) == SYNCS
    assert same(bases[0], bases[-1])
