"""The jobs for Slurm: a sentence outside it; on a cluster they go on after their time limit and a node's death."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import slurm
from samples.slurm import Cluster

from rlhf_loop.run_dir import RunDir

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "recipes" / "cluster"
SMOKE = ROOT / "recipes" / "smoke.yaml"
SCRIPTS = ["slurm.sh", "watch.slurm.sh"]


def bash(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    command = ["bash", str(CLUSTER / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env={**kept, **variables})


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("arguments", [(), ("r.yaml",)])
def test_outside_slurm_a_job_says_how_it_is_submitted(script: str, arguments: tuple[str, ...]) -> None:
    done = bash(script, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert f"sbatch recipes/cluster/{script} RECIPE" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_job_without_a_recipe_says_so(script: str) -> None:
    done = bash(script, SLURM_JOB_ID="1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no recipe")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Iterator[Cluster]:
    if reason := slurm.why_not():
        pytest.skip(reason)
    before = dict(os.environ)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.environ["PYTHONPATH"] = str(ROOT)
    with Cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made
    os.environ.clear()
    os.environ.update(before)


def state(cluster: Cluster, job: str) -> str:
    return cluster.job(job).get("JobState", "")


def ends(cluster: Cluster, job: str, seconds: float = 600) -> dict[str, str]:
    cluster.until(
        lambda: state(cluster, job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), f"{job} ends", seconds
    )
    return cluster.job(job)


def submit(cluster: Cluster, run: Path, nodes: int, *options: str, rounds: int = 1) -> str:
    return cluster.submit(
        f"--nodes={nodes}", "--gpus-per-node=0", "--cpus-per-task=1", *options, f"--output={run.parent}/%j.out",
        str(CLUSTER / "slurm.sh"), str(SMOKE), "--rounds", str(rounds), "--run-dir", str(run),
        RLHF_LOOP_LOGS=str(run.parent / "logs"), OMP_NUM_THREADS="1",
    )  # fmt: skip


def in_stage(cluster: Cluster, run: Path, *steps: str) -> None:
    """Waits for one of these to have begun."""
    paths = [RunDir(run).step(int(step[0]), step[2:]) for step in steps]
    began = [path.with_name(path.name + ".partial") for path in paths]
    cluster.until(lambda: any(path.exists() for path in [*began, *paths]), f"{steps} begins", 300)


@pytest.mark.slow
def test_a_job_is_queued_again_at_its_time_limit_and_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit(cluster, run, 2, "--time=2", "--signal=B:USR1@60", rounds=14)
    ended = ends(cluster, job)
    said = (tmp_path / f"{job}.out").read_text()
    assert ended["JobState"] == "COMPLETED", said
    assert int(ended["Restarts"]) >= 1, said
    assert "stopped by its time limit; queued again" in said
    assert "Nothing is lost" in "".join(file.read_text() for file in (tmp_path / "logs").rglob("attempt-0/*.log"))
    assert "attempt 1 on" in said, "the output of both attempts is kept"
    assert RunDir(run).complete_rounds() == list(range(15))
    assert RunDir(run).used_by() is None


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_job_whose_node_dies_goes_on(cluster: Cluster, tmp_path: Path, nodes: int) -> None:
    run = tmp_path / "run"
    job = submit(cluster, run, nodes)
    in_stage(cluster, run, "0/generate", "1/reward")
    died = cluster.job(job)["BatchHost"] if nodes == 1 else "n2"
    cluster.kill(died)
    if nodes == 2:
        cluster.until(lambda: int(cluster.job(job)["Restarts"]) > 0, "it is queued again", 240)
        cluster.start_node(died)
    ended = ends(cluster, job)
    if nodes == 1:
        cluster.start_node(died)
        assert ended["BatchHost"] != died
    assert ended["JobState"] == "COMPLETED"
    assert int(ended["Restarts"]) >= 1
    assert RunDir(run).complete_rounds() == [0, 1]


@pytest.mark.slow
def test_a_job_that_was_cancelled_and_submitted_again_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit(cluster, run, 1)
    in_stage(cluster, run, "0/generate", "1/reward")
    cluster("scancel", job)
    ended = ends(cluster, job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0")
    assert ends(cluster, submit(cluster, run, 1))["JobState"] == "COMPLETED"
    assert RunDir(run).complete_rounds() == [0, 1]


@pytest.mark.slow
def test_a_chain_of_watchers_that_was_cancelled_goes_on_when_it_is_submitted_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    run, script = tmp_path / "run", tmp_path / "watch.slurm.sh"
    script.write_text((CLUSTER / script.name).read_text().replace("#SBATCH --gpus=1\n", ""))  # there are none here

    def watch() -> str:
        return cluster.submit(
             "--cpus-per-task=1", f"--output={tmp_path}/%j.out", str(script), str(SMOKE),
            "watch.min_new=4", "--run-dir", str(run), WATCH_EVERY="now+1hour", OMP_NUM_THREADS="1",
            WATCH_SCRIPT=str(script),
        )  # fmt: skip

    watch()
    in_stage(cluster, run, "0/generate")
    cluster("scancel", "--name", "rlhf-loop-watch")
    cluster.until(lambda: not cluster("squeue", "-h", "-n", "rlhf-loop-watch").strip(), "the chain ends", 60)
    job = watch()
    assert ends(cluster, job)["JobState"] == "COMPLETED", (tmp_path / f"{job}.out").read_text()
    assert RunDir(run).complete_rounds() == [0]
    waiting = cluster("squeue", "-h", "-n", "rlhf-loop-watch").splitlines()
    assert len(waiting) == 1, "the next look is queued"
    cluster("scancel", "--name", "rlhf-loop-watch")
