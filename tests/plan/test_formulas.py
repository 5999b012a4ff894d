"""The formulas against torch's own account of what it keeps, and against the papers' figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from rlhf_loop.models.attention import with_attention
from rlhf_loop.plan.formulas import Numbers, Texts, activations, kept_in_a_layer, logits_kept, moments
from rlhf_loop.plan.shape import Adapter, Shape, adapter_of, shape_of_model
from rlhf_loop.plan.sharing import SHARINGS, held
from rlhf_loop.recipe import Policy

ROWS, LENGTH = 4, 48
LLAMA = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": LLAMA,
    "Qwen3": {**LLAMA, "head_dim": 16},
    "Gemma2": {**LLAMA, "head_dim": 16},
    "GPT2": {"vocab_size": 256, "n_embd": 64, "n_head": 4, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0},
}


def kept_by_torch(model: Any, bits: int) -> int:
    """Bytes of floating point that a forward pass of the layers keeps for the backward pass, weights left out."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and tensor.dtype.is_floating_point:
            kept[storage._cdata] = storage
        return tensor

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids = torch.randint(5, 200, (ROWS, LENGTH))
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=bits == 16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        output = base.base_model(input_ids=ids, use_cache=False).last_hidden_state
        found = sum(storage.nbytes() for storage in kept.values())
    assert output.requires_grad
    return found


def made(family: str, layers: int, attention: str, bits: int, lora: bool) -> tuple[Any, Shape, Adapter | None]:
    name = "n_layer" if family == "GPT2" else "num_hidden_layers"
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family], **{name: layers})
    config._attn_implementation = "eager" if attention == "grouped" else attention
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if bits == 16 else torch.float32)
    if attention == "grouped":
        model = with_attention(model, Policy(model="m", attn_implementation="grouped"))
    shape = shape_of_model(model, family)
    if not lora:
        return model.train(), shape, None
    import peft

    model = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    return model.train(), shape, adapter_of(shape, 8, "all-linear")


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(
    ("family", "attention", "bits"),
    [
        ("Llama", "grouped", 32), ("Llama", "grouped", 16), ("Llama", "sdpa", 32), ("Llama", "sdpa", 16),
        ("Llama", "eager", 32), ("Llama", "eager", 16), ("Qwen3", "grouped", 32), ("Gemma2", "grouped", 32),
        ("GPT2", "sdpa", 32),
    ],
)  # fmt: skip
def test_what_a_layer_keeps_is_what_torch_keeps(family: str, attention: str, bits: int, lora: bool) -> None:
    """To a tenth: the difference of two depths, so that what is in no layer is left out."""
    few, _, _ = made(family, 2, attention, bits, lora)
    many, shape, adapter = made(family, 4, attention, bits, lora)
    measured = (kept_by_torch(many, bits) - kept_by_torch(few, bits)) / 2
    element = bits // 8
    score = {"grouped": element, "eager": 4 if bits == 32 else 6, "sdpa": 0}[attention]
    numbers = Numbers(element=element, score=score, cpu_head=True, adapter_copies=lora and bits == 16)
    texts = Texts(rows=ROWS, length=LENGTH, scored=0)
    assert kept_in_a_layer(shape, texts, numbers, adapter) == pytest.approx(measured, rel=0.1)


def test_layers_below_an_adapter_keep_nothing_and_checkpoints_keep_inputs() -> None:
    _, shape, _ = made("Llama", 4, "sdpa", 32, lora=False)
    upper = adapter_of(shape, 8, r".*layers\.[23]\..*_proj")
    numbers = Numbers(element=4, score=0, cpu_head=True)
    texts = Texts(rows=2, length=10, scored=0)
    one = kept_in_a_layer(shape, texts, numbers, upper)
    assert activations(shape, texts, numbers, upper, checkpointing=False) == 2 * one
    assert activations(shape, texts, numbers, upper, checkpointing=True) == 4 * 4 * 64 * 20 + one  # e L h tokens


def test_exponentials_of_logits_are_kept_while_they_are_few() -> None:
    _, shape, _ = made("Llama", 2, "sdpa", 32, lora=False)
    numbers = Numbers(element=4, score=0, cpu_head=True)
    few, many = Texts(rows=1, length=64, scored=64), Texts(rows=1, length=2**20, scored=2**20)
    assert logits_kept(shape, few, numbers) == 64 * 4 * (256 + 64)
    assert logits_kept(shape, many, numbers) == 2**20 * 4 * 64  # the hidden states alone


@pytest.mark.parametrize(
    ("optimizer", "bytes_of_a_weight"),
    [("adamw_torch_fused", 8), ("adamw_8bit", 2), ("paged_adamw_8bit", 2), ("sgd", 4), ("adafactor", 0)],
)
def test_bytes_of_an_optimizer(optimizer: str, bytes_of_a_weight: int) -> None:
    assert moments(1000, optimizer, 4) == 1000 * bytes_of_a_weight


def of_devices(name: str, devices: int, trained: int = 7_500_000_000) -> int:
    """Gigabytes that a device holds of 7.5 billion weights, the example of the ZeRO paper."""
    _, shape, _ = made("Llama", 2, "sdpa", 32, lora=False)
    sharing = next(sharing for sharing in SHARINGS if sharing.name == name)
    return held(
        sharing, devices, shape, total=7_500_000_000, trained=trained, element=2, precise=False, optimizer="adamw_torch"
    ).sure


def test_shares_are_those_of_the_zero_paper() -> None:
    """arXiv 1910.02054, figure 1: 16.6 GB and 1.9 GB of 7.5 billion weights with Adam on 64 GPUs."""
    assert of_devices("zero2", 64) / 1e9 == pytest.approx(16.6, abs=0.05)
    assert of_devices("zero3", 64) / 1e9 == pytest.approx(1.9, abs=0.05)
    assert of_devices("fsdp2", 64) / 1e9 == pytest.approx(1.9, abs=0.05)  # 4 and 4 in the place of 2, 2 and 4


def test_alone_a_policy_in_bfloat16_is_trained_in_bfloat16() -> None:
    assert of_devices("single", 1) == 7_500_000_000 * (2 + 2 + 2 * 2)
    assert of_devices("single", 1, trained=0) == 7_500_000_000 * 2  # a reference
    assert of_devices("zero3_offload", 64) == 0
