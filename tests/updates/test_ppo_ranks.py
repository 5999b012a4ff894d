"""Two processes, one process, and one with accumulation steps make the same PPO.

Run by torchrun, this file is what the two processes do.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import token_task as task

PLACEMENTS = ["separate", "adapter"]
STEPS = 6  # three rollouts of two epochs
TIMES = {"eps", "step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
ROUNDING = {"total_flos", "train_loss"}


def ragged_rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Completions of 1 to 16 tokens that follow from the prompt and the step, on whatever rank."""
    tokenizer, ids = task.tokenizer(), []
    for prompt in prompts:
        digest = hashlib.sha256(f"{prompt}{trainer.state.global_step}".encode()).digest()
        draw = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        length = 1 + int(torch.randint(task.LENGTH, (1,), generator=draw))
        row = torch.randint(6, len(task.VOCABULARY), (length,), generator=draw).tolist()
        ids.append([*row[:-1], 1] if length < task.LENGTH else row)
    return {
        "prompt_ids": [tokenizer(prompt)["input_ids"] for prompt in prompts], "completion_ids": ids,
        "logprobs": [[0.0] * len(row) for row in ids],
    }  # fmt: skip


def trainer(folder: Path, placement: str, size: int, accumulated: int, **settings: Any) -> Any:
    adapted = {"peft_config": task.lora(), "gradient_checkpointing": True} if placement == "adapter" else {}
    return task.trainer(
        folder, rollout_func=ragged_rollout, per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulated, num_ppo_epochs=2, max_steps=STEPS, learning_rate=1e-2, optim="sgd",
        missing_eos_penalty=0.3, vf_coef=0.5, normalize_scores=True, whiten_rewards=True, kl_target=1.0,
        entropy_coef=0.01, max_grad_norm=0.5, **adapted, **settings,
    )  # fmt: skip


def trained(folder: Path, placement: str, size: int, accumulated: int) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Weights and log of a training."""
    made = trainer(folder, placement, size, accumulated)
    made.train()
    return {name: tensor.clone() for name, tensor in made.model.state_dict().items()}, made.state.log_history


def as_one_of_two(folder: Path) -> None:
    """What each of the two processes does."""
    import torch.distributed as dist

    for placement in PLACEMENTS:
        weights, log = trained(folder, placement, 8, 1)
        assert dist.get_world_size() == 2
        everyones: list[Any] = [None, None]
        dist.all_gather_object(everyones, {name: tensor.double().sum().item() for name, tensor in weights.items()})
        assert everyones[0] == everyones[1]
        if dist.get_rank() == 0:
            torch.save(weights, folder / f"{placement}.pt")
            (folder / f"{placement}.json").write_text(json.dumps(log))
        saved = folder / f"{placement}_saved"
        made = trainer(saved, placement, 8, 1, save_strategy="steps", save_steps=2)
        made.train()
        dist.barrier()
        resumed = trainer(saved, placement, 8, 1, save_strategy="steps", save_steps=2)
        resumed.train(resume_from_checkpoint=str(saved / "checkpoint-2"))
        for name, tensor in resumed.model.state_dict().items():
            assert torch.equal(tensor, made.model.state_dict()[name]), name
        assert resumed.kl_coef == made.kl_coef != 0.05
        assert resumed.score_scale.state() == made.score_scale.state()
    sharded_critic_loads_whole_weights()
    (folder / f"rank_{dist.get_rank()}_of_{dist.get_world_size()}").touch()


def sharded_critic_loads_whole_weights() -> None:
    """Under FSDP2, which Accelerate does not enter without a GPU."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from transformers import AutoModelForCausalLM

    from rlhf_loop.updates.ppo.critic import attach_critic, is_critic, load_critic

    model = AutoModelForCausalLM.from_pretrained(task.model_folder())
    attach_critic(model, "separate")
    saved = {name: tensor + 1 for name, tensor in model.state_dict().items() if is_critic(name)}
    policy = {name: tensor.clone() for name, tensor in model.state_dict().items() if not is_critic(name)}
    for layer in [*model.model.layers, *model.ppo_critic.trunk.layers, model]:
        fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    assert not load_critic(model, saved)
    for name, tensor in model.state_dict().items():
        assert isinstance(tensor, DTensor)
        assert torch.equal(tensor.full_tensor(), saved[name] if is_critic(name) else policy[name]), name


def as_one_of_two_with_an_error(folder: Path) -> None:
    """Rank 1's reward function fails."""

    def judge(completions: list[str], **_: Any) -> list[float]:
        return [float("nan") if os.environ["RANK"] == "1" else 1.0] * len(completions)

    task.trainer(folder, reward_funcs=judge, per_device_train_batch_size=8).train()


def on_two_ranks(work: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone",
         __file__, work, str(folder)],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},  # the samples too
    )  # fmt: skip


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_ranks")
    finished = on_two_ranks("train", folder)
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert {file.name for file in folder.glob("rank_*")} == {"rank_0_of_2", "rank_1_of_2"}
    return folder


def assert_same(
    mine: tuple[dict[str, torch.Tensor], list[dict]], theirs: tuple[dict[str, torch.Tensor], list[dict]]
) -> None:
    assert list(mine[0]) == list(theirs[0])
    for name, tensor in mine[0].items():
        torch.testing.assert_close(tensor, theirs[0][name], atol=1e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert len(mine[1]) == len(theirs[1]) == STEPS + 1
    for row, other in zip(mine[1], theirs[1], strict=True):
        assert set(row) == set(other)
        for name in set(row) - TIMES - ROUNDING:
            assert row[name] == pytest.approx(other[name], abs=2e-5, rel=1e-4), (name, row["step"])


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_two_processes_make_the_ppo_of_one(tmp_path: Path, two_ranks: Path, placement: str) -> None:
    one = trained(tmp_path, placement, 16, 1)
    lengths = {row["completions/mean_length"] for row in one[1] if "completions/mean_length" in row}
    assert len(lengths) == 3  # ragged, and of three rollouts
    start = task.trainer(tmp_path, **({"peft_config": task.lora()} if placement == "adapter" else {}))
    assert max((one[0][name] - tensor).abs().max() for name, tensor in start.model.state_dict().items()) > 1e-2
    two = torch.load(two_ranks / f"{placement}.pt"), json.loads((two_ranks / f"{placement}.json").read_text())
    assert_same(two, one)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_accumulation_steps_make_the_ppo_of_one_batch(tmp_path: Path, placement: str) -> None:
    assert_same(trained(tmp_path, placement, 4, 4), trained(tmp_path, placement, 16, 1))


def test_an_error_on_one_rank_ends_the_other(tmp_path: Path) -> None:
    finished = on_two_ranks("fail", tmp_path)
    assert finished.returncode != 0
    assert "the reward function judge gave nan, which is no finite number, for prompt '" in finished.stderr


if __name__ == "__main__":
    {"train": as_one_of_two, "fail": as_one_of_two_with_an_error}[sys.argv[1]](Path(sys.argv[2]))
