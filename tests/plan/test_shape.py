"""How many weights a model has, from its configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rlhf_loop.errors import UserError
from rlhf_loop.plan.formulas import kv_cache
from rlhf_loop.plan.shape import Shape, adapter_of, shape_of, shape_of_model

LLAMA_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip


def on_meta(kind: str, **settings: Any) -> Shape:
    config = getattr(transformers, f"{kind}Config")(**settings)
    with torch.device("meta"):
        return shape_of_model(transformers.AutoModelForCausalLM.from_config(config), kind)


@pytest.mark.parametrize(
    ("kind", "settings", "parameters"),
    [  # as their makers, or the hub, count them
        ("Llama", LLAMA_8B, 8_030_261_248),
        (
            "Llama",
            {
                **LLAMA_8B, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
                "num_attention_heads": 64,
            },
            70_553_706_496,
        ),
        (
            "Qwen2",
            {
                "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
            },
            494_032_768,
        ),
        ("GPT2", {}, 124_439_808),
        ("Mixtral", {}, 46_702_792_704),
    ],
)  # fmt: skip
def test_parameters_of_known_models(kind: str, settings: dict[str, Any], parameters: int) -> None:
    assert on_meta(kind, **settings).parameters == parameters


def test_the_parts_of_a_model_make_it_whole() -> None:
    shape = on_meta("Llama", **LLAMA_8B)
    assert shape.embedding == shape.head == 128256 * 4096  # not tied
    assert shape.layers * shape.a_layer + shape.embedding + shape.head <= shape.parameters
    assert shape.trunk() == shape.parameters - shape.head
    assert shape.trunk(16) == shape.embedding + 16 * shape.a_layer
    assert on_meta("GPT2").head == 0  # the embeddings again


def test_a_token_goes_to_some_experts_only() -> None:
    """Mixtral 8x7B: 12.9B of its weights multiply a token, of which the input embeddings are none."""
    shape = on_meta("Mixtral")
    total, active = shape.experts
    assert total == 32 * 8 * 3 * 4096 * 14336
    assert active == total // 4
    assert shape.multiplied + shape.embedding == pytest.approx(12.88e9, rel=0.001)


def test_bytes_of_a_cache_of_keys_and_values() -> None:
    assert kv_cache(on_meta("Llama", **LLAMA_8B), 1, 2) == 2 * 32 * 8 * 128 * 2 == 131_072


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"], r".*layers\.1\..*_proj"])
def test_an_adapter_has_the_weights_that_peft_gives_it(targets: str | list[str], tiny_policy: Path) -> None:
    import peft

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_policy)
    adapter = adapter_of(shape_of_model(model, "tiny"), 4, targets)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    trained = {name: p.numel() for name, p in adapted.named_parameters() if p.requires_grad}
    assert adapter.parameters == sum(trained.values())
    assert adapter.matrices == len(trained) / 2
    assert adapter.lowest == (1 if isinstance(targets, str) and "layers" in targets else 0)


def test_targets_that_are_nowhere_are_told(tiny_policy: Path) -> None:
    with pytest.raises(UserError, match="none of the modules"):
        adapter_of(shape_of(str(tiny_policy)), 4, ["attn_qkv"])


def test_a_configuration_is_enough(tmp_path: Path, tiny_policy: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_policy / "config.json").read_text())
    assert shape_of(str(tmp_path)).parameters == shape_of(str(tiny_policy)).parameters


def test_a_model_that_is_not_here_is_told_with_a_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="nobody/nothing cannot be planned with"):
        shape_of("nobody/nothing")
