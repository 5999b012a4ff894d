"""Grouped attention against transformers' `eager`, over families: the same to rounding, in sampling and in training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import families
from transformers import AutoModelForCausalLM, DeepseekV2Config, GptOssConfig, JetMoeConfig

from rlhf_loop.errors import UserError
from rlhf_loop.generation import transformers_engine
from rlhf_loop.models import attention
from rlhf_loop.models.attention import attention_option, grouped_attention, with_attention
from rlhf_loop.models.loading import load_policy, load_tokenizer
from rlhf_loop.recipe import Generation, Policy

FAMILIES = list(families.TOKENS)
LENGTHS = (40, 23, 3)  # the sliding windows are of 16


def model_of(folder: Path, implementation: str, dtype: str = "float32") -> Any:
    settings = Policy(model=str(folder), attn_implementation=implementation)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **attention_option(settings))
    with_attention(model, settings)
    assert model.config._attn_implementation == implementation
    return model


def batch(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, (3, 40) each; `side` is where the padding is."""
    lengths = (40, 40, 40) if side == "none" else LENGTHS
    ids = torch.randint(10, 250, (3, 40), generator=torch.Generator().manual_seed(0))
    place = torch.arange(40)
    mask = torch.stack([place >= 40 - n if side == "left" else place < n for n in lengths]).long()
    return ids, mask


def logits_and_gradients(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    logits = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    model.zero_grad()
    torch.log_softmax(logits.float(), -1)[:, :50].square().mean().backward()
    return logits.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("keys", [1024, 8])  # all of it grouped, and the prompts left to sdpa
@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_training_is_that_of_eager(
    family: Callable[[str], Path], name: str, side: str, keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_MOST_KEYS", keys)
    expected, gradients = logits_and_gradients(model_of(family(name), "eager"), *batch(side))
    logits, found = logits_and_gradients(model_of(family(name), "grouped"), *batch(side))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert found.keys() == gradients.keys()
    for weight, gradient in gradients.items():
        torch.testing.assert_close(found[weight], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()) + 1e-9)


@pytest.mark.parametrize("ending", [0, 40])  # tokens that end a turn: with many, rows and prompts leave all the time
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "lfm2"])  # whose states cannot be sampled
def test_sampling_is_that_of_eager(family: Callable[[str], Path], name: str, ending: int) -> None:
    tokenizer = load_tokenizer(family(name))
    prompts = [list(range(10, 10 + n)) for n in (30, 5, 17)]
    keys = [(0, 0, str(n)) for n in range(3)]
    settings = Generation(max_new_tokens=24)
    tokens = []
    for how in ("eager", "grouped"):
        model = model_of(family(name), how)
        model.generation_config.eos_token_id = list(range(10, 10 + ending)) or None
        tokens.append(transformers_engine.sample_ids(model, tokenizer, prompts, keys, [2, 1, 3], settings))
    assert tokens[0] == tokens[1]
    assert not ending or len({len(row) for rows in tokens[1] for row in rows}) > 1


@pytest.mark.parametrize(
    "config",
    [
        DeepseekV2Config(q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=12,
                         first_k_dense_replace=2, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=2,
                         hidden_size=32, intermediate_size=32, vocab_size=400, initializer_range=0.1),
        JetMoeConfig(num_key_value_heads=2, kv_channels=8, num_local_experts=2, num_experts_per_tok=2,
                     num_hidden_layers=2, hidden_size=32, intermediate_size=32, vocab_size=400, initializer_range=0.1),
    ],
    ids=["latents", "heads-of-experts"],
)  # fmt: skip
def test_models_whose_caches_hold_other_keys_than_attention_reads_are_sampled_as_with_eager(
    family: Callable[[str], Path], config: Any
) -> None:
    tokenizer, settings = load_tokenizer(family("llama3")), Policy(model="", attn_implementation="grouped")
    prompts = [list(range(10, 10 + n)) for n in (30, 5, 17)]
    keys = [(0, 0, str(n)) for n in range(3)]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = list(range(10, 50))
    tokens = []
    for how in (lambda: model, lambda: with_attention(model, settings)):
        tokens.append(
            transformers_engine.sample_ids(how(), tokenizer, prompts, keys, [2, 1, 3], Generation(max_new_tokens=24))
        )
    assert model.config._attn_implementation == "grouped"
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("name", ["llama3", "gemma", "gpt2"])
def test_in_bfloat16_it_is_as_near_to_exact_as_eager(family: Callable[[str], Path], name: str, side: str) -> None:
    ids, mask = batch(side)
    with torch.no_grad():
        exact = model_of(family(name), "eager")(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        off = {
            how: (
                model_of(family(name), how, "bfloat16")(input_ids=ids, attention_mask=mask).logits[mask.bool()] - exact
            )
            for how in ("eager", "grouped")
        }
    assert off["grouped"].square().mean() < 1.2 * off["eager"].square().mean()


def test_under_autocast_rows_of_padding_do_no_harm(family: Callable[[str], Path]) -> None:
    model = model_of(family("llama3"), "grouped")
    ids, mask = batch("left")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids, attention_mask=mask).logits
    assert logits.isfinite().all()
    expected = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(logits[mask.bool()].float(), expected[mask.bool()], rtol=0.1, atol=0.05)


def test_dropout_is_that_of_eager_and_off_in_evaluation(family: Callable[[str], Path]) -> None:
    results = []
    for how in ("eager", "grouped"):
        model = model_of(family("llama3"), how)
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.3
        kept = model.eval()(input_ids=batch("none")[0]).logits
        torch.manual_seed(1)
        logits, gradients = logits_and_gradients(model.train(), *batch("right"))
        assert not torch.allclose(logits, kept[batch("right")[1].bool()])
        results.append([kept.detach(), logits, *gradients.values()])
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(2, 2, 6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.zeros(2, 1, 3, 6, dtype=torch.float64).masked_fill_(torch.rand(2, 1, 3, 6) < 0.3, -1e300)
    for softcap in (None, 2.0):
        assert torch.autograd.gradcheck(
            lambda q, k, v, cap=softcap: grouped_attention(torch.nn.Module(), q, k, v, mask.clone(), softcap=cap)[0],
            (query, key, value),
        )


def test_a_model_with_sinks_keeps_the_attention_that_knows_them() -> None:
    small = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "head_dim": 8,
    }
    config = GptOssConfig(vocab_size=64, num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1, **small)
    model = AutoModelForCausalLM.from_config(config)
    assert with_attention(model, Policy(model="", attn_implementation="grouped")).config._attn_implementation == "eager"


def test_an_attention_that_there_is_not_is_refused_by_the_name_of_its_setting() -> None:
    with pytest.raises(UserError, match=r"policy\.attn_implementation: there is no `groupd`; did you mean `grouped`?"):
        attention_option(Policy(model="", attn_implementation="groupd"))
    for name in ("eager", "sdpa", "flash_attention_2", "kernels-community/flash-attn2"):
        assert attention_option(Policy(model="", attn_implementation=name)) == {"attn_implementation": name}
    assert attention_option(Policy(model="", attn_implementation=None)) == {}


def test_a_saved_model_does_not_name_it(family: Callable[[str], Path], tmp_path: Path) -> None:
    model, _ = load_policy(family("llama3"), Policy(model="", attn_implementation="grouped"))
    model.save_pretrained(tmp_path)
    assert "grouped" not in (tmp_path / "config.json").read_text()
