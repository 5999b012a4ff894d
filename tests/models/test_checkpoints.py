"""Checkpoints that a kill, a full disk or a copy left behind: what is resumed from is whole, or nothing is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from samples.updates import settings, train
from transformers import TrainerState, TrainingArguments

from rlhf_loop.models import checkpoints
from rlhf_loop.models.checkpoints import MARK, MarkComplete, last_complete, remove_all


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, and the files stay as they are."""


@contextmanager
def killed_after(removals: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process dies when it wants to remove one file or folder more."""
    left = removals

    def counted(remove: Any) -> Any:
        def removing(*arguments: Any, **named: Any) -> None:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            remove(*arguments, **named)

        return removing

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", counted(os.unlink))
        patch.setattr(os, "rmdir", counted(os.rmdir))
        with suppress(Killed):
            yield
    assert left == 0, "it ended before"


def checkpoint(folder: Path, step: int) -> Path:
    """A whole one, as `Trainer` writes it, without its mark."""
    made = folder / f"checkpoint-{step}"
    (made / "ppo_critic").mkdir(parents=True)
    save_file({"weight": torch.ones(8)}, made / "model.safetensors")
    save_file({"head": torch.ones(8)}, made / "ppo_critic" / "critic.safetensors")
    torch.save({"step": step}, made / "optimizer.pt")
    (made / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return made


def saved(folder: Path, step: int) -> Path:
    """The same after `on_save`."""
    made = checkpoint(folder, step)
    state = TrainerState(global_step=step, is_world_process_zero=True)
    MarkComplete().on_save(TrainingArguments(str(folder), use_cpu=True), state, None)
    return made


def test_a_marked_checkpoint_is_resumed_from_and_the_ones_before_it_go(tmp_path: Path) -> None:
    assert last_complete(tmp_path) is None
    saved(tmp_path, 9)
    newest = saved(tmp_path, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
    checkpoint(tmp_path, 11)  # killed before its mark
    assert last_complete(tmp_path) == str(newest)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


REMOVALS = range(8)  # five files with the mark, a folder inside, the checkpoint, the folder of all


@pytest.mark.parametrize("removals", REMOVALS)
def test_a_kill_in_the_last_clean_up_leaves_no_torn_checkpoint(
    tmp_path: Path, removals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = saved(tmp_path / "checkpoints", 1)
    with killed_after(removals, monkeypatch):
        remove_all(tmp_path / "checkpoints")
    left = last_complete(tmp_path / "checkpoints")
    assert left == (str(whole) if removals == 0 else None)
    remove_all(tmp_path / "checkpoints")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("removals", REMOVALS[:7])
def test_a_kill_while_the_one_before_is_removed_leaves_the_new_one(
    tmp_path: Path, removals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 1)
    with killed_after(removals, monkeypatch):
        saved(tmp_path, 2)
    assert last_complete(tmp_path) == str(tmp_path / "checkpoint-2")


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def zeroed(path: Path) -> None:
    """What a file of the right length holds when the machine went down before its content was on the disk."""
    path.write_bytes(bytes(path.stat().st_size))


def damaged_inside(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:104] = bytes(4) if content[100:104] != bytes(4) else b"torn"
    path.write_bytes(content)


@pytest.mark.parametrize("mark", ["ours", "empty"])
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", Path.unlink),
        ("model.safetensors", shortened),
        ("model.safetensors", zeroed),
        ("ppo_critic/critic.safetensors", shortened),
        ("optimizer.pt", shortened),
        ("optimizer.pt", zeroed),
        ("optimizer.pt", damaged_inside),
        ("trainer_state.json", shortened),
        ("trainer_state.json", zeroed),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_torn(
    tmp_path: Path, name: str, damage: Any, mark: str, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = saved(tmp_path / "a", 1), saved(tmp_path / "b", 2)
    newer = newer.rename(tmp_path / "a" / newer.name)
    if mark == "empty":
        (newer / MARK).write_text("")
    damage(newer / name)
    assert last_complete(tmp_path / "a") == str(older)
    assert not newer.exists()
    assert "checkpoint-2 is not whole" in caplog.text


@pytest.mark.parametrize("lost", ["optimizer.pt", "ppo_critic/critic.safetensors", "trainer_state.json"])
def test_a_checkpoint_that_lost_a_file_is_torn(tmp_path: Path, lost: str) -> None:
    (saved(tmp_path, 1) / lost).unlink()
    assert last_complete(tmp_path) is None


def update(algorithm: str, base: Path, output: Path) -> None:
    short = {"num_train_epochs": 1} if algorithm == "kto" else {"num_ppo_epochs": 1, "max_steps": 2}
    train(base, output, settings(algorithm, save_steps=1, **short))


@pytest.mark.parametrize("at", ["rotation", "end"])
@pytest.mark.parametrize("algorithm", ["kto", "ppo"])
def test_an_update_killed_while_it_removes_checkpoints_is_made_whole_by_the_next_attempt(
    algorithm: str, at: str, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update(algorithm, tiny_policy, tmp_path / "whole")

    def rmtree(folder: Path, **_: Any) -> None:
        if at == "rotation" or (tmp_path / "killed" / "policy").exists():
            (folder / "adapter_model.safetensors").unlink()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "shutil", SimpleNamespace(rmtree=rmtree))
        with pytest.raises(Killed):
            update(algorithm, tiny_policy, tmp_path / "killed")
    update(algorithm, tiny_policy, tmp_path / "killed")
    for name in ("policy/adapter_model.safetensors", "train_log.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("mark", ["null", "[1]", "3", "{"])
def test_a_mark_that_lists_no_files_is_damaged(tmp_path: Path, mark: str) -> None:
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    torch.save({"a": torch.zeros(2)}, checkpoint / "pytorch_model.bin")
    (checkpoint / MARK).write_text(mark)
    assert last_complete(tmp_path) is None


def test_a_checkpoint_whose_list_of_parts_is_damaged_anywhere_is_whole_or_torn(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-1" / "pytorch_model.bin"
    path.parent.mkdir()
    torch.save({"a": torch.zeros(2)}, path)
    sound = path.read_bytes()
    torn = set()
    for place in range(len(sound) - 700, len(sound)):  # the list of its parts
        damaged = bytearray(sound)
        damaged[place] ^= 1
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(damaged)
        (path.parent / MARK).write_text(json.dumps({path.name: len(sound)}))
        torn.add(last_complete(tmp_path))
    assert torn == {None, str(path.parent)}
