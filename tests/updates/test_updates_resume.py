"""An update that was killed goes on from its last checkpoint, and ends as if it had not been."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from samples.updates import settings, train, with_critiques

from rlhf_loop.models.training import TrainingLog

TERMS = {"predict": {}, "unlikelihood": {}, "hindsight": {"entry_test": False}}


@pytest.mark.parametrize(
    ("algorithm", "trainer", "killed_after", "last", "critiques"),
    [
        ("dpo", {"save_steps": 1}, 3, 2, {}),
        ("kto", {"save_steps": 1}, 3, 2, {}),
        ("sft", {"save_steps": 1}, 3, 2, {}),
        ("grpo", {"save_steps": 1}, 3, 2, {}),
        ("rloo", {"save_steps": 1}, 3, 2, {}),
        ("ppo", {"save_steps": 4, "max_steps": 12}, 10, 8, {}),  # four steps are one rollout
        ("dpo", {"save_steps": 1}, 3, 2, TERMS),
        ("sft", {"save_steps": 1, "gradient_accumulation_steps": 2, "num_train_epochs": 4}, 3, 2, TERMS),
        ("ppo", {"save_steps": 4, "max_steps": 12}, 10, 8, TERMS),
    ],
)
def test_a_killed_training_goes_on_to_the_same_policy(
    algorithm: str, trainer: dict[str, int], killed_after: int, last: int, critiques: dict[str, Any],
    tiny_policy: Path, tmp_path: Path,
) -> None:  # fmt: skip
    update, more = settings(algorithm, **trainer), with_critiques(critiques)
    train(tiny_policy, tmp_path / "whole", update, **more)
    child = os.fork()
    if child == 0:
        shown = TrainingLog.on_step_end

        def stepping(self, args, state, control, **kwargs):
            shown(self, args, state, control, **kwargs)
            if state.global_step == killed_after:
                os.kill(os.getpid(), signal.SIGKILL)

        TrainingLog.on_step_end = stepping
        train(tiny_policy, tmp_path / "killed", update, **more)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert (tmp_path / "killed" / "checkpoints" / f"checkpoint-{last}" / "COMPLETE").exists()
    train(tiny_policy, tmp_path / "killed", update, **more)
    for name in ("policy/adapter_model.safetensors", "policy/adapter_config.json", "train_log.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
