"""The jobs for Slurm: a sentence outside it; on a cluster they go on after their time limit and a node's death."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
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


SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export SLURM_NODEID=1
exec "$@"
"""
SAID = """#!/bin/bash
echo "$(basename "$0") $*" >"$SAID"
"""


CONFIG = {"RLHF_LOOP_ACCELERATE_CONFIG": "my config.yaml"}
CONTAINER = {"RLHF_LOOP_CONTAINER": "apptainer exec --nv x.sif"}
TORCHRUN = "--node_rank 1 --nproc_per_node 1 --master_addr n1 --master_port 20012"
ACCELERATE = "--machine_rank 1 --num_processes {} --main_process_ip n1 --main_process_port 20012"


@pytest.mark.parametrize(
    ("gpus", "nodes", "variables", "words", "started"),
    [
        (0, 2, {}, "r.yaml", f"torchrun --nnodes 2 {TORCHRUN} -m rlhf_loop run r.yaml"),
        (0, 1, {}, "--stage x.json", f"torchrun --nnodes 1 {TORCHRUN} -m rlhf_loop.stages x.json"),
        (8, 2, {}, "r.yaml", f"accelerate launch --multi_gpu --mixed_precision bf16 --num_machines 2 "
                             f"{ACCELERATE.format(16)} -m rlhf_loop run r.yaml"),
        (1, 1, {}, "r.yaml", f"accelerate launch --mixed_precision bf16 --num_machines 1 {ACCELERATE.format(1)} "
                             "-m rlhf_loop run r.yaml"),
        (8, 1, CONFIG, "--stage x.json", f"accelerate launch --config_file my config.yaml --num_machines 1 "
                                         f"{ACCELERATE.format(8)} -m rlhf_loop.stages x.json"),
        (8, 1, CONTAINER, "r.yaml", "apptainer exec --nv x.sif python3 -m rlhf_loop.launch.node slurm rlhf_loop run "
                                    "r.yaml"),
    ],
)  # fmt: skip
def test_each_node_starts_what_its_accelerators_and_the_profile_ask_for(
    tmp_path: Path, gpus: int, nodes: int, variables: dict[str, str], words: str, started: str
) -> None:
    for name in ("srun", "torchrun", "accelerate", "apptainer", "scontrol"):
        text = {"srun": SRUN, "scontrol": "#!/bin/bash\necho n1\n"}.get(name, SAID)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": nodes, "SLURM_GPUS_ON_NODE": gpus}
    place = {"SAID": tmp_path / "said", "RLHF_LOOP_LOGS": tmp_path, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = bash(
        "slurm.sh", *words.split(), **{name: str(value) for name, value in {**job, **place, **variables}.items()}
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "said").read_text().startswith(started)


@pytest.mark.parametrize("attempt", [0, 1, 2, 3])
def test_two_attempts_in_a_row_have_no_number_of_a_step_in_common(tmp_path: Path, attempt: int) -> None:
    """Ranks, and what looks for a dead node after them: see `RANKS` in the script."""
    programs = {
        "srun": 'if [[ "$*" == *" true" ]]; then echo other; else echo ranks; fi >>"$SAID"; exit 1',
        "scontrol": "echo n1",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n1", "SLURM_RESTART_COUNT": str(attempt)}
    place = {
        "SAID": str(tmp_path / "said"),
        "RLHF_LOOP_LOGS": str(tmp_path),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    assert "stopped by the death of a node; queued again" in bash("slurm.sh", "r.yaml", **job, **place).stdout
    first = 2 * (attempt % 2)
    assert (tmp_path / "said").read_text().split() == ["other"] * first + ["ranks", "other"]


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
    ended = cluster.ends(job)
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
    ended = cluster.ends(job)
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
    ended = cluster.ends(job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0")
    assert cluster.ends(submit(cluster, run, 1))["JobState"] == "COMPLETED"
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
    before = RunDir(run).complete_rounds()  # round 0 may have been done before it was cancelled
    job = watch()
    assert cluster.ends(job)["JobState"] == "COMPLETED", (tmp_path / f"{job}.out").read_text()
    assert RunDir(run).complete_rounds() == [*before, len(before)]
    waiting = cluster("squeue", "-h", "-n", "rlhf-loop-watch").splitlines()
    assert len(waiting) == 1, "the next look is queued"
    cluster("scancel", "--name", "rlhf-loop-watch")
