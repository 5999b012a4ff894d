"""Settings that save memory leave the loss, and what is learned from it, as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import updates as samples
from samples.updates import DEMONSTRATIONS
from trl import SFTConfig

from rlhf_loop.recipe import Policy
from rlhf_loop.updates import sft
from rlhf_loop.updates.train_and_save import Training


def first_step(base: Path, output: Path, attention: str, **trainer: Any) -> tuple[float, torch.Tensor, torch.Size]:
    """The loss of sft on one batch of all rows, its gradient, and the shape of the batch."""
    policy = Policy(model=str(base), dtype="float32", attn_implementation=attention)
    update = samples.settings("sft", per_device_train_batch_size=8, **trainer)
    training = Training(
        start=policy.model, reference=policy.model, output=output, policy=policy, settings=update, seed=0
    )
    arguments = training.arguments(SFTConfig, {"completion_only_loss": True})
    made, _, _ = sft._trainer(DEMONSTRATIONS, training, arguments)
    torch.manual_seed(0)
    for name, parameter in made.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    batch = made.data_collator([made.train_dataset[row] for row in range(len(made.train_dataset))])
    shape = batch["input_ids"].shape
    trained = (batch["labels"] != -100).sum()
    made.model.train()
    loss = made.compute_loss(made.model, batch, num_items_in_batch=trained)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in made.model.parameters() if p.grad is not None])
    return loss.item(), gradient, shape


@pytest.mark.parametrize("attention", ["grouped", "sdpa", "eager"])
@pytest.mark.parametrize("setting", ["padding_free", "packing"])
def test_texts_in_one_row_do_not_see_each_other(
    setting: str, attention: str, tiny_policy: Path, tmp_path: Path
) -> None:
    limit = {"max_length": 256 if setting == "packing" else None}
    padded, gradient, shape = first_step(tiny_policy, tmp_path, attention, **limit)
    joined, of_joined, in_one = first_step(tiny_policy, tmp_path, attention, **limit, **{setting: True})
    assert len(shape) == 2
    assert shape[0] == 8
    assert in_one[0] == 1
    assert in_one.numel() < shape.numel()
    assert joined == pytest.approx(padded, rel=1e-5)
    assert torch.allclose(of_joined, gradient, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("algorithm", ["dpo", "kto", "sft"])
def test_ligers_kernels_give_the_same_losses(algorithm: str, tiny_policy: Path, tmp_path: Path) -> None:
    pytest.importorskip("liger_kernel")

    def losses(name: str, **trainer: Any) -> list[float]:
        samples.train(tiny_policy, tmp_path / name, samples.settings(algorithm, max_steps=3, **trainer))
        log = (tmp_path / name / "train_log.jsonl").read_text().splitlines()
        return [row["loss"] for row in map(json.loads, log) if "loss" in row]

    assert losses("with", use_liger_kernel=True) == pytest.approx(losses("without"), rel=1e-4)
