"""The precision that a machine is fast in, and a run that keeps to the one that it was begun in."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rlhf_loop import machine
from rlhf_loop.kept_recipe import RecipeChanged, check_recipe, keep_recipe
from rlhf_loop.recipe import Policy, Recipe
from rlhf_loop.run_dir import RunDir

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"


def a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, accelerators: str = "") -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\nprocessor\t: 1\n{flags}\n")
    monkeypatch.setattr(machine, "_CPU", tmp_path / "cpuinfo")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", accelerators)


@pytest.mark.parametrize(
    ("flags", "accelerators", "dtype"),
    [
        ("flags\t\t: fpu sse avx avx2", "", "float32"),
        ("flags\t\t: fpu avx2 avx512f", "", "float32"),
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", "", "bfloat16"),
        ("flags\t\t: fpu avx2 amx_bf16 amx_tile", "", "bfloat16"),
        ("Features\t: fp asimd sve bf16 i8mm", "", "bfloat16"),
        ("Features\t: fp asimd", "", "float32"),
        ("vendor_id\t: amx_bf16", "", "float32"),
        ("flags\t\t: fpu avx2", "0,1", "bfloat16"),
        ("flags\t\t: fpu avx2", "-1", "float32"),
    ],
)
def test_auto_is_what_the_machine_multiplies_fast(
    flags: str, accelerators: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_machine(tmp_path, monkeypatch, flags, accelerators)
    assert Policy(model="m").precision == dtype
    assert Policy(model="m", dtype="float16").precision == "float16"


def test_a_machine_that_does_not_say_gets_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CPU", tmp_path / "none")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.native_dtype() == "float32"


def test_a_run_keeps_to_the_precision_that_it_was_begun_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, auto = RunDir(tmp_path / "run"), Recipe.load(SMOKE, ["policy.dtype=auto"])
    a_machine(tmp_path, monkeypatch, "flags\t\t: avx2")
    assert keep_recipe(auto, run).policy.dtype == "float32"
    assert Recipe.load(run.path / "recipe.yaml").policy.dtype == "float32"

    a_machine(tmp_path, monkeypatch, "flags\t\t: avx2 amx_bf16")
    assert check_recipe(auto, run).policy.dtype == keep_recipe(auto, run).policy.dtype == "float32"
    assert keep_recipe(auto, RunDir(tmp_path / "another")).policy.dtype == "bfloat16"
    with pytest.raises(RecipeChanged, match=r"policy\.dtype: 'float32' -> 'bfloat16'"):
        check_recipe(Recipe.load(SMOKE, ["policy.dtype=bfloat16"]), run)


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/jobs/one\n", {"jobs/cpu.max": "350000 100000\n", "jobs/one/cpu.max": "max 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        (
            "5:memory:/x\n4:cpu,cpuacct:/x\n0::/\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "400000\n", "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"},
            4,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("", {}, None),
    ],
)
def test_the_quota_of_a_container_is_that_of_its_group_or_of_one_around_it(
    groups: str, files: dict[str, str], quota: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "fs")
    assert machine.cpu_quota() == quota


def test_torch_takes_no_more_threads_than_the_quota_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from rlhf_loop.models import memory

    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(memory, "cpu_quota", lambda: 2)
    memory.fit_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    memory.fit_threads()
    monkeypatch.setattr(memory, "cpu_quota", lambda: None)
    memory.fit_threads()
    assert taken == [2]


def test_auto_is_attention_of_ours_on_a_cpu_and_transformers_choice_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_machine(tmp_path, monkeypatch, "flags\t\t: avx2")
    assert Policy(model="m").attention == "grouped"
    assert Policy(model="m", attn_implementation=None).attention is None
    assert Policy(model="m", attn_implementation="eager").attention == "eager"
    a_machine(tmp_path, monkeypatch, "flags\t\t: avx2", "0,1")
    assert Policy(model="m").attention is None


@pytest.mark.parametrize(("written", "kept"), [("eager", "eager"), (None, None), ("nothing", None)])
def test_a_run_keeps_to_the_attention_that_it_was_begun_with(
    written: str | None, kept: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_machine(tmp_path, monkeypatch, "flags\t\t: avx2")
    run, auto = RunDir(tmp_path / "run"), Recipe.load(SMOKE)
    assert keep_recipe(auto, run).policy.attn_implementation == "grouped"
    a_machine(tmp_path, monkeypatch, "flags\t\t: avx2", "0")
    assert check_recipe(auto, run).policy.attn_implementation == "grouped"
    assert keep_recipe(auto, RunDir(tmp_path / "another")).policy.attn_implementation is None

    values = yaml.safe_load((run.path / "recipe.yaml").read_text())
    values["policy"] |= {"attn_implementation": written}
    if written == "nothing":  # of before there was `auto`
        del values["policy"]["attn_implementation"]
    (run.path / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert check_recipe(auto, run).policy.attn_implementation == kept
    with pytest.raises(RecipeChanged, match=r"policy\.attn_implementation: .* -> 'grouped'"):
        check_recipe(Recipe.load(SMOKE, ["policy.attn_implementation=grouped"]), run)
