"""A run that surely cannot have the memory that it takes is refused before anything is computed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_loop import machine
from rlhf_loop.cli.submit import _submission
from rlhf_loop.comparison.runner import command
from rlhf_loop.comparison.sweep import CellRun
from rlhf_loop.errors import UserError
from rlhf_loop.loop import Loop
from rlhf_loop.plan import floor, hardware
from rlhf_loop.plan.floor import check_memory, least, sharing_of, weights_of
from rlhf_loop.plan.shape import shape_of
from rlhf_loop.recipe import Recipe
from rlhf_loop.watch.watcher import Watcher

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "recipes" / "smoke.yaml"
GIB = 2**30


@pytest.mark.parametrize("checked", [True, False])
def test_every_command_that_starts_runs_can_leave_the_check_out(tmp_path: Path, checked: bool) -> None:
    cell = CellRun(cell="a", seed=0, folder=tmp_path / "a" / "seed_0", recipe=Recipe.load(SMOKE))
    watcher = Watcher(SMOKE, run_dir=tmp_path / "watched", check_memory=checked)
    submission, _ = _submission(SMOKE, [], [], None, tmp_path / "submitted", stages=False, check_memory=checked)
    for words in (command(cell, checked), watcher._command, submission.runs[0].words):
        assert ("--no-check-memory" in words) is not checked


def header_only(folder: Path, shapes: dict[str, list[int]]) -> Path:
    """Files of weights that have their headers, of numbers that are not there (a sparse file)."""
    folder.mkdir()
    tensors: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        tensors[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(tensors).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


@pytest.fixture
def billion(tmp_path: Path, tiny_policy: Path) -> Path:
    """A model of 2**30 weights, a quarter of them an output layer of its own."""
    shapes = {"model.embed_tokens.weight": [3, 2**28], "lm_head.weight": [2**18, 2**10]}
    folder = header_only(tmp_path / "billion", shapes)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tiny_policy / name).exists():
            (folder / name).write_bytes((tiny_policy / name).read_bytes())
    return folder


def recipe(model: Path, *overrides: str) -> Recipe:
    return Recipe.load(SMOKE, [f"policy.model={model}", "policy.dtype=float32", *overrides], to_run=False)


def on_a_cpu(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(hardware, "memory_limit", lambda: int(gib * GIB))


def test_weights_are_counted_by_the_headers_of_files(tiny_policy: Path, billion: Path, tmp_path: Path) -> None:
    assert weights_of(str(tiny_policy)) == (shape_of(str(tiny_policy)).parameters, 0)
    assert weights_of(str(billion)) == (GIB, GIB // 4)
    assert weights_of("nobody/nothing") is None
    assert weights_of(str(tmp_path)) is None


def test_weights_in_several_files_are_counted_when_all_are_there(billion: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    with (billion / "model.safetensors").open("rb") as file:
        whole = file.read(4096)
    weight_map = {"model.embed_tokens.weight": "a.safetensors", "x": "b.safetensors"}
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in ("a.safetensors", "b.safetensors"):
        (parts / name).write_bytes(whole)
    assert weights_of(str(parts)) == (2 * GIB, GIB // 2)
    (parts / "b.safetensors").unlink()
    assert weights_of(str(parts)) is None


def test_a_damaged_file_is_left_to_who_loads_it(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    assert weights_of(str(tmp_path)) is None
    for index in ("{", "{}"):
        (tmp_path / "model.safetensors.index.json").write_text(index)
        assert weights_of(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("overrides", "gib"),
    [  # of 4 GiB a copy in float32: weights, gradients, two moments, and a reference
        (["update.algorithm=sft", "update.lora=null"], 16),
        (["update.algorithm=dpo", "update.lora=null"], 20),
        (["update.algorithm=ppo", "update.lora=null"], 16 + 4 + 12),  # the critic is without the output layer
        (["update.algorithm=ppo", "update.lora=null", "update.trainer={critic: head}"], 20),
        (["update.algorithm=grpo", "update.lora=null"], 16),
        (["update.algorithm=dpo"], 4),
    ],
)
def test_the_least_that_an_update_takes(
    overrides: list[str], gib: int, billion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_cpu(monkeypatch, 1000)
    found = least(recipe(billion, "update.trainers={}", "update.trainer={}", *overrides), GIB, GIB // 4)
    algorithm = overrides[0].partition("=")[2]
    assert sum(found[f"the update ({algorithm})"].values()) == gib * GIB


def test_a_run_is_refused_only_where_it_surely_does_not_fit(billion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = recipe(billion, "update.lora=null")
    on_a_cpu(monkeypatch, 20.1)
    check_memory(full)
    on_a_cpu(monkeypatch, 19.9)
    with pytest.raises(
        UserError, match=r"the update \(dpo\) takes 20\.0 GiB or more .* has 19\.9 in all.*--no-check-memory"
    ):
        check_memory(full)
    check_memory(full, updates=False)  # `--rounds 0`
    check_memory(recipe(billion))  # an adapter
    for elsewhere in ("slurm", "kubernetes"):
        check_memory(recipe(billion, "update.lora=null", f"launch={elsewhere}"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")  # of one machine's memory
    with pytest.raises(UserError, match=r"writing candidates takes 20\.0"):
        check_memory(recipe(billion))


def test_a_gpu_of_a_known_name_is_told_and_another_is_let_pass(
    billion: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (tmp_path / "driver" / "0").mkdir(parents=True)
    information = tmp_path / "driver" / "0" / "information"
    monkeypatch.setattr(hardware, "_DRIVER", tmp_path / "driver")
    information.write_text("Model: \t\t Tesla T4\n")
    with pytest.raises(UserError, match=r"a GPU here has 16\.0 in all"):
        check_memory(recipe(billion, "update.lora=null"))
    information.write_text("Model: \t\t NVIDIA A100-SXM4-40GB\n")
    assert hardware.memory_here() == 40 * GIB
    check_memory(recipe(billion, "update.lora=null"))
    information.write_text("Model: \t\t NVIDIA of tomorrow\n")
    assert hardware.memory_here() is None
    check_memory(recipe(billion, "update.lora=null"))


def test_a_config_that_shares_out_makes_less(billion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_cpu(monkeypatch, 1000)
    found = {}
    for path in sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")):
        given = recipe(billion, "launch=child", f"accelerate_config={path}")
        sharing, shares = sharing_of(given)
        assert sharing is not None
        found[path.stem] = (sharing.name, shares)
    assert found == {
        "cpu": ("single", 1), "ddp": ("single", 1), "single_gpu": ("single", 1), "fsdp2": ("fsdp2", 8),
        "fsdp2_hsdp": ("fsdp2", 8), "deepspeed_zero2": ("zero2", 8), "deepspeed_zero3": ("zero3", 8),
        "deepspeed_zero3_offload": ("zero3_offload", 8),
    }  # fmt: skip
    two = tmp_path / "two.yaml"
    values = yaml.safe_load((ROOT / "recipes" / "accelerate" / "fsdp2.yaml").read_text())
    two.write_text(yaml.safe_dump({**values, "num_processes": 2}))
    shared = least(recipe(billion, "update.lora=null", "launch=child", f"accelerate_config={two}"), GIB, 0)
    own = least(recipe(billion, "update.lora=null", "launch=child", f"stages.generate.accelerate_config={two}"), GIB, 0)
    assert shared["writing candidates"] == own["writing candidates"] == {"weights": 2 * GIB}
    assert sum(shared["the update (dpo)"].values()) == 10 * GIB


def test_the_loop_refuses_before_round_0_unless_it_is_told(
    billion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_cpu(monkeypatch, 8)
    loop = Loop(recipe(billion, "update.lora=null"), run_dir=tmp_path / "run")
    with pytest.raises(UserError, match="rlhf-loop plan RECIPE"):
        loop.run()
    assert not list((tmp_path / "run").glob("round_*/*"))
    asked: list[Any] = []
    monkeypatch.setattr(floor, "check_memory", lambda *given, **more: asked.append(given))
    monkeypatch.setattr("rlhf_loop.loop.make_round", lambda at, n: None)
    loop.run(check_memory=False)
    assert asked == []
    loop.run()
    assert len(asked) == 1


def test_the_check_imports_no_torch() -> None:
    code = "import sys, rlhf_loop.plan.floor; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("line", "file", "text", "gib"),
    [
        ("0::/a/b", "a/memory.max", "3221225472", 3),
        ("0::/a/b", "a/b/memory.max", "max", None),
        ("4:memory:/a", "memory/a/memory.limit_in_bytes", "2147483648", 2),
        ("4:memory:/a", "memory/a/memory.limit_in_bytes", "9223372036854771712", None),
        ("4:cpu:/a", "memory/a/memory.limit_in_bytes", "2147483648", None),
    ],
)
def test_a_container_s_limit_is_the_memory_that_there_is(
    line: str, file: str, text: str, gib: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup").write_text(line + "\n")
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text + "\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    whole = machine.memory_limit()
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "none")
    assert whole == (machine.memory_limit() if gib is None else gib * GIB)
