"""The three ways to start a stage give the same run."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from rlhf_loop import Loop, Recipe, launch, processes
from rlhf_loop.errors import UserError
from rlhf_loop.launch.child import Child
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Completion, Score
from rlhf_loop.run_dir import RunDir

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"


def candidates(run: Path, number: int) -> list[tuple[str, str]]:
    file = RunDir(run).step(number, "generate") / "completions.parquet"
    return [(completion.prompt_id, completion.text) for completion in read_records(file, Completion)]


def scores(run: Path, number: int) -> list[float]:
    return [score.value for score in read_records(RunDir(run).step(number, "rescore") / "scores.parquet", Score)]


def told(mode: str, *settings: str) -> Recipe:
    return Recipe.load(SMOKE, [f"launch={mode}", *settings])


@pytest.fixture(scope="module")
def inline_run(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    run = tmp_path_factory.mktemp("inline") / "smoke"
    Loop(Recipe.load(SMOKE, ["launch=inline"]), run_dir=run).run(rounds=1)
    return run


def test_two_ranks_of_torchrun_run_the_loop_together(inline_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "smoke"
    finished = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone",
         "-m", "rlhf_loop", "run", str(SMOKE), "--rounds", "1", "--run-dir", str(run)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert RunDir(run).complete_rounds() == [0, 1]
    # The base policy's candidates do not depend on how many ranks wrote them.
    assert candidates(run, 0) == candidates(inline_run, 0)
    assert len(candidates(run, 1)) == len(candidates(inline_run, 1))


def test_what_stays_between_stages_is_set_aside_for_collections_until_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_loop.stages.run_stage", lambda file, progress: None)
    launcher = launch.choose(told("inline"))
    launcher.run(tmp_path / "generate.arguments.json", lambda done, total, text: None)
    assert gc.get_freeze_count() > 1000
    launcher.close()
    assert gc.get_freeze_count() == 0


def test_an_error_on_one_rank_ends_all_ranks(tmp_path: Path) -> None:
    broken = tmp_path / "prompts.jsonl"
    broken.write_text("")
    finished = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone",
         "-m", "rlhf_loop", "run", str(SMOKE), f"prompts.train.0={broken}", "--run-dir", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert finished.returncode != 0
    assert str(broken) in finished.stderr


def test_children_make_the_same_run_as_inline(inline_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "smoke"
    Loop(Recipe.load(SMOKE, ["launch=child"]), run_dir=run).run(rounds=1)
    assert candidates(run, 1) == candidates(inline_run, 1)
    assert scores(run, 1) == scores(inline_run, 1)


def test_a_mistake_in_a_child_comes_back_as_the_users_error(tmp_path: Path) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_text("not json\n")
    recipe = Recipe.load(SMOKE, ["launch=child", f"evaluation.plain_text={plain}"])
    with pytest.raises(UserError, match=r"evaluation\.plain_text"):
        Loop(recipe, run_dir=tmp_path / "run").run(rounds=1)


def test_ranks_with_one_process_is_refused_and_names_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="torchrun --nproc_per_node"):
        launch.choose(told("ranks"))


def test_the_way_is_chosen_by_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert type(launch.choose(told("auto"))).__name__ == "Inline"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert type(launch.choose(told("auto"))).__name__ == "Child"


def test_one_process_is_started_without_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would import torch once more, and leave it one thread."""
    monkeypatch.setattr("rlhf_loop.launch.child.HF_HOME", str(tmp_path))
    alone = [sys.executable, "-m", "rlhf_loop.stages", "a.json"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert Child().command(Path("a.json")) == alone
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert "accelerate.commands.launch" in Child().command(Path("a.json"))
    one = told("child", "stages={generate: {devices: 1}}").stages
    assert Child(None, one).command(arguments(tmp_path, "generate"))[:-1] == alone[:-1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "accelerate.commands.launch" in Child(Path("ddp.yaml")).command(Path("a.json"))
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").touch()
    assert "accelerate.commands.launch" in Child().command(Path("a.json"))


STAGES = (
    "stages={generate: {devices: 1}, update: {accelerate_config: fsdp.yaml}, "
    "reward: {devices: 2, accelerate_config: two.yaml}}"
)


def arguments(folder: Path, stage: str) -> Path:
    file = folder / f"{stage}.arguments.json"
    file.write_text(json.dumps({"stage": stage}))
    return file


def test_each_stage_is_started_with_its_own_devices_and_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    monkeypatch.chdir(tmp_path)
    launcher = launch.choose(told("auto", "accelerate_config=all.yaml", STAGES))
    assert isinstance(launcher, Child)
    commands: dict[str, tuple[list[str], str | None]] = {}

    def run(command: list[str], hear: object, environment: Mapping[str, str]) -> int:
        commands[Path(command[-1]).name.split(".")[0]] = (command[3:-3], environment.get("CUDA_VISIBLE_DEVICES"))
        return 0

    monkeypatch.setattr("rlhf_loop.processes.run", run)
    for stage in ("generate", "update", "reward", "score"):
        launcher.run(arguments(tmp_path, stage), lambda done, total, text: None)
    assert commands == {
        "generate": (["--config_file", str(tmp_path / "all.yaml"), "--num_processes", "1"], "4"),
        "update": (["--config_file", str(tmp_path / "fsdp.yaml")], None),
        "reward": (["--config_file", str(tmp_path / "two.yaml"), "--num_processes", "2"], "4,5"),
        "score": (["--config_file", str(tmp_path / "all.yaml")], None),
    }


SRUN = """#!/bin/bash
echo "srun ${*%% python*}"
while [[ $1 == --* ]]; do shift; done
export SLURM_NNODES=2 SLURM_NODEID=1
exec "$@"
"""
ACCELERATE = "--num_machines 2 --machine_rank 1 --num_processes {} --main_process_ip n1 --main_process_port 29500"


@pytest.mark.parametrize(
    ("gpus", "stage", "started"),
    [
        ("", "score", "torchrun --nnodes 2 --node_rank 1 --nproc_per_node 1 --master_addr n1 --master_port 29500"),
        ("4", "score", f"accelerate launch --multi_gpu --mixed_precision bf16 {ACCELERATE.format(8)}"),
        ("4", "generate", f"accelerate launch --multi_gpu --mixed_precision bf16 {ACCELERATE.format(2)}"),
        ("4", "reward", f"accelerate launch --config_file FOLDER/my two.yaml {ACCELERATE.format(4)}"),
        ("4", "update", f"accelerate launch --config_file FOLDER/my fsdp.yaml {ACCELERATE.format(8)}"),
    ],
)
def test_a_child_in_a_slurm_allocation_of_several_nodes_has_a_launcher_on_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: str, stage: str, started: str
) -> None:
    says = '#!/bin/bash\necho "$(basename "$0") $*"\nexit 3\n'
    programs = {"srun": SRUN, "python": f'#!/bin/bash\nexec {sys.executable} "$@"\n', "torchrun": says}
    for name, text in {**programs, "accelerate": says, "scontrol": "#!/bin/bash\nprintf 'n1\\nn2\\n'\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    job = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_GPUS_ON_NODE": gpus}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    launcher = Child(None, told("child", STAGES.replace("fsdp", "my fsdp").replace("two", "my two")).stages)
    file = arguments(tmp_path, stage).rename(tmp_path / "a run; of $HOME.arguments.json")
    with pytest.raises(RuntimeError, match="the stage ended with exit code 3") as ended:
        launcher.run(file, lambda done, total, text: None)
    srun, said = str(ended.value).splitlines()[-2:]
    assert srun.startswith("srun --nodes=2 --ntasks-per-node=1 --kill-on-bad-exit=1")
    assert said == f"{started.replace('FOLDER', str(tmp_path))} -m rlhf_loop.stages {file}"


def test_a_child_that_something_killed_is_told_with_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = ["bash", "-c", "echo loading; kill -9 $$"]
    monkeypatch.setattr(Child, "command", lambda self, file: killed)
    with pytest.raises(UserError) as ended:
        Child().run(arguments(tmp_path, "update"), lambda done, total, text: None)
    assert str(ended.value) == (
        "the stage's process was ended by signal 9; the machine may be out of memory. Type the same command again to "
        "go on. The last it said: loading"
    )


def test_a_stage_sees_only_its_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    said: list[str] = []
    command = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['HOME'])"]
    assert processes.run(command, said.append, environment={"CUDA_VISIBLE_DEVICES": "2"}) == 0
    assert said == [f"2 {os.environ['HOME']}"]


@pytest.mark.parametrize(
    ("content", "said"), [(None, "there is no file"), ('{"a": 1}\n{', "is not valid YAML"), ("- a", "is no config of")]
)
def test_an_accelerate_config_that_is_none_ends_a_run_before_it_begins(
    tmp_path: Path, content: str | None, said: str
) -> None:
    config = tmp_path / "config.yaml"
    if content is not None:
        config.write_text(content)
    for setting in (f"accelerate_config={config}", f"stages={{update: {{accelerate_config: {config}}}}}"):
        with pytest.raises(UserError, match=said):
            Loop(told("child", setting), run_dir=tmp_path / "run").run()
    assert not list((tmp_path / "run").glob("round_*"))


def test_more_devices_than_there_are_and_stages_without_child_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match=r"stages.reward.devices is 2, and this machine shows 1 accelerators"):
        launch.choose(told("auto", STAGES))
    with pytest.raises(UserError, match="stages is for `launch: child`, `slurm` and `kubernetes`"):
        told("inline", STAGES)
    with pytest.raises(UserError, match=r"stages.generate.devices is for `launch: child`"):
        told("slurm", STAGES)
    with pytest.raises(UserError, match="generate"):
        told("auto", "stages={genrate: {devices: 1}}")


@pytest.mark.slow
def test_a_stage_with_a_config_of_its_own_makes_the_same_run(inline_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "smoke"
    config = SMOKE.parent / "accelerate" / "cpu.yaml"
    recipe = told("auto", f"stages={{score: {{accelerate_config: {config}}}}}")
    Loop(recipe, run_dir=run).run(rounds=1)
    assert candidates(run, 1) == candidates(inline_run, 1)
    assert scores(run, 1) == scores(inline_run, 1)
