"""`rlhf-loop submit --slurm --stages` on a real Slurm: nothing is made twice, what is lost, and how long it takes until
it goes on. The training only waits (samples/steered.py); in the last test it is a real one."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from samples import steered as stand_in
from samples.slurm import Cluster

from rlhf_loop import Loop, Recipe
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Annotator, Preference
from rlhf_loop.run_dir import RunDir

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "recipes" / "smoke.yaml"
STEPS = 40

pytestmark = pytest.mark.slow


class Steered:
    """A run, and its jobs."""

    def __init__(self, cluster: Cluster, folder: Path):
        self.cluster, self.folder, self.run = cluster, folder, folder / "run"
        self.setup: list[str] = []
        self.words: list[str] = []
        self.env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def stand_in(self, seconds: float = 1.0) -> None:
        """Neither loop nor training needs torch."""
        programs = self.folder / "programs"
        programs.mkdir()
        for name in ("rlhf-loop", "torchrun"):
            (programs / name).write_text(f'#!/bin/bash\nexec {sys.executable} {stand_in.__file__} "$@"\n')
            (programs / name).chmod(0o755)
        self.setup = [f"export PATH={programs}:$PATH"]
        self.env |= {"STEPS": str(STEPS), "PAUSE": str(seconds)}

    def submit(self, *how: str, **profile: object) -> str:
        """The job that steers, or that `how` asks for."""
        file = self.folder / "profile.yaml"
        given = {"gpus_per_node": 0, "cpus_per_task": 1, "env": self.env, "setup": self.setup}
        file.write_text(json.dumps({**given, **profile}))
        said = self.cluster(
            sys.executable, "-m", "rlhf_loop", "submit", str(SMOKE), "--slurm", *(how or ["--stages"]), "--profile",
            str(file), *self.words, "--run-dir", str(self.run), "--rounds", "1",
        )  # fmt: skip
        found = re.match(r"submitted job (\d+)", said)
        assert found is not None, said
        return found[1]

    def status(self) -> list[dict[str, str]]:
        """What `rlhf-loop status` says of jobs."""
        said = self.cluster(sys.executable, "-m", "rlhf_loop", "status", str(self.run), "--json")
        return json.loads(said)["jobs"]

    def at_step(self, step: int, attempt: int = 0) -> str:
        """Waits until an attempt of the update has come so far; the id of its job."""
        self.cluster.until(lambda: max(self.steps(attempt), default=0) >= step, f"step {step} is done", 240)
        return json.loads((self.run / "round_001" / "update.job.json").read_text())["id"]

    def steps(self, attempt: int) -> list[int]:
        """Steps of the update that an attempt says it has done."""
        return [step for log in self.run.glob(f"logs/slurm-*/attempt-{attempt}/n?.log") for step in steps_in(log)]

    def stage_jobs(self) -> list[str]:
        """Ids of all jobs of stages that ran."""
        return sorted(
            path.parents[1].name.removeprefix("slurm-") for path in self.run.glob("logs/slurm-*/attempt-0/n?.log")
        )

    def said(self) -> str:
        """What the steering job has said."""
        files = sorted(self.run.glob("logs/slurm-*/attempt-*/steer.log"), key=os.path.getmtime)
        return "".join(file.read_text() for file in files)

    def completes(self, job: str) -> None:
        ended = self.cluster.ends(job, 400)
        assert ended["JobState"] == "COMPLETED", self.said()

    def lost(self, before: int = 0, after: int = 1) -> int:
        """Steps that the second attempt made again."""
        return max(self.steps(before)) - (min(self.steps(after)) - 1)


@pytest.fixture
def steered(cluster: Cluster, tmp_path: Path) -> Iterator[Steered]:
    made = Steered(cluster, tmp_path)
    yield made
    cluster("scancel", "--user=root")
    cluster.until(lambda: not cluster("squeue", "-h").strip(), "all jobs end", 120)


Measured = Callable[[str, object], None]


def test_the_death_of_the_stages_node_costs_less_than_a_checkpoint(steered: Steered, record_property: Measured) -> None:
    steered.stand_in()
    job = steered.submit(steering={"sbatch": ["--nodelist=n2"]})
    stage = steered.at_step(8)
    assert steered.cluster.job(stage)["NodeList"] == "n1"
    died = time.monotonic()
    steered.cluster.kill("n1")
    steered.cluster.until(lambda: steered.steps(1) != [], "another attempt trains", 240)
    record_property("node_death_seconds", round(time.monotonic() - died, 1))
    steered.cluster.start_node("n1")
    steered.completes(job)
    record_property("node_death_lost_steps", steered.lost())
    assert steered.lost() <= stand_in.EVERY
    assert steered.cluster.job(stage)["NodeList"] == "n2"
    assert steered.stage_jobs() == [stage]
    assert "Slurm queued job" in steered.said()


def test_the_death_of_the_steering_node_costs_nothing(steered: Steered, record_property: Measured) -> None:
    steered.stand_in(seconds=3)
    job = steered.submit(steering={"sbatch": ["--exclude=n2"]}, sbatch=["--nodelist=n2"])
    stage = steered.at_step(3)
    died = time.monotonic()
    steered.cluster.kill("n1")
    steered.cluster.until(lambda: int(steered.cluster.job(job)["Restarts"]) == 1, "it is queued again", 120)
    steered.cluster.start_node("n1")
    steered.cluster.until(lambda: "following it" in steered.said(), "it follows the stage", 120)
    record_property("steering_death_seconds", round(time.monotonic() - died, 1))
    assert steered.cluster.job(stage)["Restarts"] == "0"
    steered.completes(job)
    assert steered.steps(0) == list(range(1, STEPS + 1)), "the training was never interrupted"
    assert steered.stage_jobs() == [stage]


def test_a_stage_goes_on_after_its_time_limit(steered: Steered, record_property: Measured) -> None:
    steered.stand_in(seconds=3)
    job = steered.submit(stages={"update": {"time": "00:02:00", "sbatch": ["--signal=B:USR1@60"]}})
    stage = steered.at_step(8)
    steered.cluster.until(lambda: steered.steps(1) != [], "another attempt trains", 240)
    record_property("stage_limit_lost_steps", steered.lost())
    assert steered.lost() <= stand_in.EVERY
    [steering, of_stage] = steered.status()
    assert (steering["id"], steering["state"]) == (job, "RUNNING")
    assert (of_stage["id"], of_stage["what"], of_stage["attempt"]) == (stage, "round 1, update", 1)
    assert of_stage["logs"] == str(steered.run / "logs" / f"slurm-{stage}" / "attempt-1")
    steered.completes(job)
    assert steered.stage_jobs() == [stage]


def test_the_steering_job_leaves_its_stage_at_its_time_limit_and_follows_it_again(steered: Steered) -> None:
    steered.stand_in(seconds=4)
    job = steered.submit(steering={"time": "00:02:00", "sbatch": ["--signal=B:USR1@60"]})
    stage = steered.at_step(3)
    steered.cluster.until(lambda: int(steered.cluster.job(job)["Restarts"]) >= 1, "it queues itself again", 180)
    steered.completes(job)
    assert "leaving the job of update alone" in steered.said()
    assert steered.steps(0) == list(range(1, STEPS + 1))
    assert steered.stage_jobs() == [stage]


@pytest.mark.parametrize("steering", ["main", "low"])
def test_a_stage_goes_on_after_preemption(steered: Steered, record_property: Measured, steering: str) -> None:
    steered.stand_in()
    job = steered.submit(partition="low", steering={"partition": steering})
    stage = steered.at_step(8)
    began, where = time.monotonic(), steered.cluster.job(stage)["NodeList"]
    others = steered.cluster.submit(
        "--partition=high",
        f"--nodelist={where}",
        f"--cpus-per-task={8 if steering == 'low' else 7}",
        "--output=/dev/null",
        "--wrap=sleep 10",
    )
    steered.cluster.until(lambda: len(attempts(steered)) > 1, "another attempt trains", 240)
    record_property(f"preemption_{steering}_seconds", round(time.monotonic() - began, 1))
    steered.completes(job)
    first, second = attempts(steered)
    record_property(f"preemption_{steering}_lost_steps", first[-1] - (second[0] - 1))
    assert 0 <= first[-1] - (second[0] - 1) <= stand_in.EVERY
    assert steered.cluster.state(others) == "COMPLETED"
    if steering == "main":
        assert steered.stage_jobs() == [stage], "Slurm queued it again"
    else:  # both were preempted: its job was cancelled, and submitted anew
        assert steered.cluster.job(job)["Restarts"] == "1"


def test_scancel_of_the_stage_ends_the_run_with_a_sentence_and_it_goes_on(steered: Steered) -> None:
    steered.stand_in()
    job = steered.submit()
    stage = steered.at_step(7)
    steered.cluster("scancel", stage)
    assert steered.cluster.ends(job)["JobState"] == "FAILED"
    assert f"Slurm job {stage} of update" in steered.said()
    assert "was cancelled. Nothing is lost" in steered.said()
    steered.completes(steered.submit())
    assert attempts(steered)[1][0] == stand_in.EVERY + 1, "from the checkpoint"


def test_scancel_of_the_steering_job_cancels_its_stage(steered: Steered) -> None:
    steered.stand_in()
    job = steered.submit()
    stage = steered.at_step(2)
    refused = steered.cluster(
        sys.executable, "-m", "rlhf_loop", "submit", str(SMOKE), "--slurm", "--run-dir", str(steered.run)
    )
    assert f"submitted already, as job {job}" in refused
    steered.cluster("scancel", job)
    assert steered.cluster.ends(job)["JobState"] == "CANCELLED"
    assert steered.cluster.ends(stage)["JobState"] == "CANCELLED"
    assert not (steered.run / "round_001" / "update.job.json").exists()


def test_a_steering_process_that_is_killed_leaves_a_stage_that_the_next_one_follows(steered: Steered) -> None:
    steered.stand_in()
    job = steered.submit()
    stage = steered.at_step(2)
    [process] = [one for one in psutil.process_iter(["cmdline"]) if is_loop_of(steered.run, one.info["cmdline"] or [])]
    process.kill()
    assert steered.cluster.ends(job)["JobState"] == "FAILED"
    assert steered.cluster.state(stage) == "RUNNING"
    steered.completes(steered.submit())
    assert steered.steps(0) == list(range(1, STEPS + 1))
    assert steered.stage_jobs() == [stage]


def is_loop_of(run: Path, words: list[str]) -> bool:
    """Whether these are the words of the process that steers a run."""
    return words[1:3] == [stand_in.__file__, "run"] and str(run) in words


def attempts(steered: Steered) -> list[list[int]]:
    """Steps of each attempt of the update that trained, in order."""
    files = sorted(steered.run.glob("logs/slurm-*/attempt-*/n?.log"), key=os.path.getmtime)
    return [steps for steps in map(steps_in, files) if steps]


def steps_in(log: Path) -> list[int]:
    """Steps that a log of the update tells of."""
    lines = [
        line.removeprefix("::progress::") for line in log.read_text().splitlines() if line.startswith("::progress::")
    ]
    return [done for done, total, _ in map(json.loads, lines) if total == STEPS]


def test_a_sweep_is_an_array_whose_elements_are_runs(steered: Steered) -> None:
    steered.stand_in()
    job = steered.submit("--sweep", "seed=4,5", nodes=2)
    for number, seed in enumerate((4, 5)):
        run = steered.run.with_name(f"run-seed-{seed}")
        assert steered.cluster.ends(f"{job}_{number}")["JobState"] == "COMPLETED"
        started = (run / "started.txt").read_text()
        assert "--nnodes 2 --node_rank" in started
        assert f"{SMOKE} seed={seed} --run-dir {run} --rounds 1" in started
        [logs] = run.glob("logs/slurm-*/attempt-0")
        assert sorted(path.name for path in logs.iterdir()) == ["n1.log", "n2.log"]
        steered.run = run
        [told] = steered.status()
        assert (told["id"], told["state"], told["logs"]) == (f"{job}_{number}", "COMPLETED", str(logs))
        steered.run = run.with_name("run")


RECIPE = [
    "feedback.annotator=null", "reward=null", "pairing.sources=[feedback]", f"update.trainer.max_steps={STEPS}",
    f"update.trainer.save_steps={stand_in.EVERY}", "generation.max_new_tokens=4", "evaluation.max_prompts=4",
    "watch.poll_seconds=2",
]  # fmt: skip


def answer(run: Path) -> None:
    """People prefer the first answer of each question."""
    with Store.open(RunDir(run).store_url) as store:
        store.add_feedback(
            Preference(
                id=f"by-a-person-{question.id}", prompt_id=question.prompt_id, a_id=question.a_id, b_id=question.b_id,
                winner="a", annotator=Annotator(id="ann"),
            )
            for question in store.questions(status="open")
        )  # fmt: skip


def test_a_run_waits_for_people_on_one_cpu_and_goes_on_after_the_death_of_a_node(
    steered: Steered, tmp_path: Path, model_cache: Path, record_property: Measured
) -> None:
    begun = tmp_path / "begun"
    Loop(Recipe.load(SMOKE, RECIPE), run_dir=begun).run(rounds=0)
    shutil.copytree(begun, steered.run)
    steered.words = RECIPE
    job = steered.submit(steering={"sbatch": ["--nodelist=n2"]})
    steered.cluster.until(lambda: "questions are open" in steered.said(), "it waits for people", 120)
    assert steered.cluster("squeue", "-h", "-o", "%A %C").split() == [job, "1"], "nothing else is held"
    answer(steered.run)
    stage = steered.at_step(8)
    steered.cluster.kill("n1")
    steered.cluster.until(lambda: int(steered.cluster.job(stage)["Restarts"]) == 1, "it is queued again", 240)
    steered.cluster.start_node("n1")
    steered.completes(job)
    record_property("real_training_lost_steps", steered.lost())
    assert steered.lost() <= stand_in.EVERY
    assert RunDir(steered.run).complete_rounds() == [0, 1]
    answer(begun)
    Loop(Recipe.load(SMOKE, RECIPE), run_dir=begun).run(rounds=1)
    weights = "update/policy/adapter_model.safetensors"
    assert (RunDir(steered.run).round(1) / weights).read_bytes() == (RunDir(begun).round(1) / weights).read_bytes()
