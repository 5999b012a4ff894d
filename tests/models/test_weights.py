"""What a training saves is looked at again before its step is done."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM
from transformers.integrations import deepspeed

from rlhf_loop.errors import UserError
from rlhf_loop.models.distributed import whole_models
from rlhf_loop.models.weights import save_weights


def causal(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base)


def classifier(base: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)


def adapted(base: Path) -> Any:
    return get_peft_model(causal(base), LoraConfig(r=4, target_modules="all-linear"))


def adapted_classifier(base: Path) -> Any:
    lora = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["score"], task_type="SEQ_CLS")
    return get_peft_model(classifier(base), lora)


KINDS = [causal, classifier, adapted, adapted_classifier]


@pytest.mark.parametrize("kind", KINDS)
def test_all_and_only_what_was_trained_is_written(kind: Any, tiny_policy: Path, tmp_path: Path) -> None:
    model = kind(tiny_policy)
    save_weights(model, tmp_path, "base", remedy="lower the learning rate")
    file = next(tmp_path.glob("*.safetensors"))
    written = load_file(file)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(written) == len(trained)
    assert sum(tensor.numel() for tensor in written.values()) == sum(p.numel() for p in trained)
    total = sum(float(tensor.double().sum()) for tensor in written.values())
    assert total == pytest.approx(sum(float(p.detach().double().sum()) for p in trained), abs=1e-9)


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    save_weights(model, tmp_path, "", remedy="")
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_not_finite_are_not_written(kind: Any, tiny_policy: Path, tmp_path: Path) -> None:
    model = kind(tiny_policy)
    last = [parameter for parameter in model.parameters() if parameter.requires_grad][-1]
    last.data.view(-1)[-1] = float("nan")
    with pytest.raises(UserError, match=r"weights that are not finite .*; lower the learning rate"):
        save_weights(model, tmp_path / "out", "base", remedy="lower the learning rate")
    assert not (tmp_path / "out").exists()


def emptied(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name][:0]


def infinite(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name].view(-1)[0] = float("inf")


def cut(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name][:1].contiguous()


def moved(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] += 1e-3


def lost(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def everything_lost(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors.clear()


DAMAGES = [
    (emptied, "is empty"),
    (infinite, "is not finite"),
    (cut, r"has the shape \(1, "),
    (moved, "has other numbers"),
    (lost, "was written without"),
    (everything_lost, "was written without"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_written_as_it_was_ends_the_step(
    kind: Any, damage: Any, said: str, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = kind(tiny_policy)
    save = model.save_pretrained

    def saving(folder: str, **named: Any) -> None:
        save(folder, **named)
        file = next(Path(folder).glob("*.safetensors"))
        tensors = load_file(file)
        name = next(name for name, tensor in tensors.items() if tensor.dim() == 2 and len(tensor) > 1)
        tensors[name] = tensors[name].clone()
        damage(tensors, name)
        save_file(tensors, file, metadata={"format": "pt"})

    monkeypatch.setattr(model, "save_pretrained", saving)
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))}.*{said}"):
        save_weights(model, tmp_path, "base", remedy="")


def test_a_file_cut_short_ends_the_step(tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = causal(tiny_policy)
    save = model.save_pretrained

    def saving(folder: str, **named: Any) -> None:
        save(folder, **named)
        file = Path(folder) / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])

    monkeypatch.setattr(model, "save_pretrained", saving)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read again after it was written"):
        save_weights(model, tmp_path, "base", remedy="")


def test_outside_trainings_models_are_whole_whatever_accelerate_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stage3:
        def is_zero3(self) -> bool:
            return True

    config = Stage3()
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    deepspeed.set_hf_deepspeed_config(config)
    try:
        with whole_models():
            assert not deepspeed.is_deepspeed_zero3_enabled()
            assert "FSDP_CPU_RAM_EFFICIENT_LOADING" not in os.environ
        assert deepspeed.is_deepspeed_zero3_enabled()
        assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
    finally:
        deepspeed.unset_hf_deepspeed_config()
