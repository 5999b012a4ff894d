"""A stage as a Slurm job: what becomes of it, and of who follows it. Slurm itself is a stub; test_slurm.py has a real
one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from samples.stage_job import Event, StageInAJob
from samples.stub_slurm import StubSlurm

from rlhf_loop.cluster.jobs import read_record, records, stage_record
from rlhf_loop.cluster.slurm_profile import Profile
from rlhf_loop.errors import UserError
from rlhf_loop.files.locks import locked
from rlhf_loop.launch import choose
from rlhf_loop.launch import slurm as launcher
from rlhf_loop.recipe import Recipe
from rlhf_loop.recipe.launching import StageLaunch, StageName

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"


def told(way: str) -> Recipe:
    return Recipe.load(SMOKE, [f"launch={way}"])


class Stage(StageInAJob):
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        super().__init__(folder, launcher, monkeypatch)
        self.slurm = StubSlurm(folder / "slurm", monkeypatch)

    def follow(self, *events: Event, **profile: object) -> None:
        self.follow_by(launcher.Slurm(Profile.model_validate(profile)), *events)

    def says(self, id: str, text: str, attempt: int = 0) -> None:
        self.log(f"slurm-{id}/attempt-{attempt}", text)

    def ends(self, id: str, state: str, **how: object) -> Event:
        return lambda: self.slurm.becomes(id, state, **how)  # type: ignore[arg-type]

    def completes(self, id: str, restarts: int = 0) -> None:
        self.make()
        self.slurm.becomes(id, "COMPLETED", restarts=restarts)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def test_a_stage_is_submitted_and_followed_until_its_folder_is_there(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "MASTER_PORT"):  # of the job that steers
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("RLHF_LOOP_LOCKS", "[]")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")

    def runs() -> None:
        stage.slurm.becomes("1", "RUNNING")
        stage.says("1", '::progress::[3, 8, "loss 0.5"]\nhalf a li')

    def goes_on() -> None:
        assert read_record(stage_record(stage.file)).id == "1"
        stage.says("1", 'ne\n::progress::[4, 8, "loss 0.4"]\n')

    stage.follow(runs, goes_on, lambda: stage.completes("1"), nodes=2, stages={"update": {"nodes": 4, "mem": 0}})
    assert stage.heard == [(0, 0, "Slurm job 1 waits (Priority)"), (3, 8, "loss 0.5"), (4, 8, "loss 0.4")]
    assert stage.slurm.ids == ["1"]
    assert not stage_record(stage.file).exists()
    script, there = stage.slurm.script("1"), stage.slurm.environment("1")
    assert {"#SBATCH --nodes=4", "#SBATCH --mem=0", "#SBATCH --dependency=singleton", "#SBATCH --requeue"} <= set(
        script.splitlines()
    )
    assert f"set -- --stage {stage.file}" in script
    assert there.keys().isdisjoint({"SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "MASTER_PORT", "RLHF_LOOP_LOCKS"})
    assert there["SLURM_CONF"] == "/etc/slurm.conf"


def test_a_stage_may_have_an_accelerate_config_of_its_own(stage: Stage) -> None:
    whole, own = Path("/shared/ddp.yaml"), Path("/shared/fsdp2.yaml")
    stages: tuple[StageName, ...] = ("update", "score")
    for name, expected in zip(stages, (own, whole), strict=True):  # the job is an update's
        started = launcher.Slurm(Profile(), whole, {name: StageLaunch(accelerate_config=own)})
        script = started.script(launcher._Stage(stage.file))
        assert f"RLHF_LOOP_ACCELERATE_CONFIG={expected}" in script


@pytest.mark.parametrize("state", ["TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL"])
def test_a_job_that_ends_early_is_submitted_again(stage: Stage, state: str) -> None:
    stage.follow(stage.ends("1", state), lambda: stage.completes("2"))
    assert stage.slurm.ids == ["1", "2"]


def test_a_job_that_may_not_be_queued_again_is_submitted_again(stage: Stage) -> None:
    stage.follow(stage.ends("1", "FAILED", code=75), lambda: stage.completes("2"))
    assert stage.slurm.ids == ["1", "2"]


def test_a_job_that_slurm_forgot_is_judged_by_what_it_made(stage: Stage) -> None:
    def made_and_forgotten() -> None:
        stage.make()
        stage.slurm.forget("2")

    stage.follow(lambda: stage.slurm.forget("1"), made_and_forgotten)
    assert stage.slurm.ids == ["1", "2"]


def test_a_job_that_slurm_queues_again_is_waited_for_and_its_new_log_read(stage: Stage) -> None:
    def queued_again() -> None:
        stage.slurm.becomes("1", "PENDING", "BeginTime", restarts=1, nodes="(null)")

    def runs() -> None:
        stage.slurm.becomes("1", "RUNNING", restarts=1)
        stage.says("1", '::progress::[5, 8, ""]\n', attempt=1)

    stage.says("1", '::progress::[4, 8, ""]\nerror: of the first attempt\n')
    stage.follow(queued_again, runs, lambda: stage.completes("1", restarts=1))
    assert stage.slurm.ids == ["1"]
    assert [told[0] for told in stage.heard if told[1]] == [4, 5]


def test_attempts_that_get_no_further_end_the_run_and_those_that_do_go_on(stage: Stage) -> None:
    limits = [stage.ends(str(number), "TIMEOUT") for number in range(1, 20)]

    def gets_further(number: int) -> Event:
        def event() -> None:
            stage.checkpoint(number)
            limits[number - 1]()

        return event

    early = [*limits[:4], gets_further(5), *limits[5:9]]
    with pytest.raises(UserError, match=r"update: 5 attempts .*TIMEOUT.*`time` in the cluster's profile"):
        stage.follow(*early, limits[9])
    assert len(stage.slurm.ids) == 10, "four without a checkpoint, one with, five that came no further"


def test_a_job_that_is_queued_again_without_getting_further_is_cancelled(stage: Stage) -> None:
    again = [stage.ends("1", "PENDING", restarts=number) for number in range(1, 6)]
    with pytest.raises(UserError, match="5 attempts"):
        stage.follow(*again)
    assert stage.slurm.state("1") == "CANCELLED"


def test_tries_are_counted_over_the_end_of_who_follows(stage: Stage) -> None:
    for number in range(1, 6):
        with pytest.raises(KeyboardInterrupt if number < 5 else UserError):
            stage.follow(stage.ends("1", "PENDING", restarts=number), lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert stage.slurm.ids == ["1"]


def test_the_stages_own_error_is_told(stage: Stage) -> None:
    stage.says("1", "Traceback ...\nerror: evaluation.plain_text: x.jsonl holds no texts\n")
    with pytest.raises(UserError, match=r"^evaluation\.plain_text: x\.jsonl holds no texts$"):
        stage.follow(stage.ends("1", "FAILED", code=2))


def test_a_crash_is_told_with_its_last_lines_and_where_the_logs_are(stage: Stage) -> None:
    stage.says("1", "RuntimeError: no kernel image\n")
    with pytest.raises(RuntimeError, match=r"logs: .*run/logs/slurm-1\) ended with exit code 1 \(FAILED\).*\n.*kernel"):
        stage.follow(stage.ends("1", "FAILED", code=1))
    assert stage.slurm.ids == ["1"], "what failed of itself is not tried again"


@pytest.mark.parametrize(
    ("state", "sentence"),
    [("CANCELLED", "was cancelled. Nothing is lost"), ("OUT_OF_MEMORY", "`mem` in the cluster's")],
)
def test_some_ends_are_the_runs_end_with_a_sentence(stage: Stage, state: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        stage.follow(stage.ends("1", state))
    stage.follow(lambda: stage.completes("2"))


def test_who_steers_is_stopped_and_cancels_the_job(stage: Stage) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.follow(stopped)
    assert stage.slurm.state("1") == "CANCELLED"
    assert not stage_record(stage.file).exists()


def test_who_steers_leaves_and_the_next_one_follows_the_same_job(stage: Stage) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.follow(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert stage.slurm.state("1") == "PENDING"
    stage.follow(lambda: stage.completes("1"))
    assert stage.slurm.ids == ["1"]


def test_who_lost_the_run_to_another_one_leaves_the_job_alone(stage: Stage) -> None:
    lock = stage.run / "lock"

    def lost() -> None:
        lock.write_text("somebody else's")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), locked(lock, "run"):
        stage.follow(lost)
    assert stage.slurm.state("1") == "PENDING"


def test_a_job_is_found_by_its_name_where_nobody_wrote_down_its_id(stage: Stage) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.follow(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    stage_record(stage.file).unlink()
    stage.follow(lambda: stage.completes("1"))
    assert stage.slurm.ids == ["1"]


def test_a_job_that_ended_while_nobody_looked_is_no_reason_to_fail(stage: Stage) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.follow(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    stage.slurm.becomes("1", "CANCELLED")
    stage.follow(lambda: stage.completes("2"))


def test_a_job_that_ends_between_two_looks_is_not_submitted_again(stage: Stage) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.follow(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    stage.completes("1")
    assert stage_record(stage.file).exists()
    assert records(stage.run) == [], "nothing is made any more"
    stage.follow()
    assert stage.slurm.ids == ["1"]
    assert not stage_record(stage.file).exists()


def test_a_job_that_makes_what_nobody_needs_any_more_is_cancelled(stage: Stage) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.follow(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    stage.write("another key")

    def completes() -> None:
        stage.make("another key")
        stage.slurm.becomes("2", "COMPLETED")

    stage.follow(completes)
    assert stage.slurm.state("1") == "CANCELLED"


@pytest.mark.parametrize("key", ["key", "another key"])
def test_a_number_that_slurm_gave_to_another_job_is_not_followed_nor_cancelled(stage: Stage, key: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.follow(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    stage.slurm.is_of_another("1")
    stage.write(key)
    assert stage_record(stage.file).exists()

    def completes() -> None:
        stage.make(key)
        stage.slurm.becomes("2", "COMPLETED")

    stage.follow(completes)
    assert stage.slurm.ids == ["1", "2"]
    assert stage.slurm.state("1") == "RUNNING"


def test_a_controller_that_is_away_is_waited_for(stage: Stage) -> None:
    stage.follow(stage.slurm.away, lambda: stage.slurm.away(False), lambda: stage.completes("1"))
    assert stage.slurm.ids == ["1"]


def test_a_submission_without_an_answer_is_looked_for_and_not_repeated(stage: Stage) -> None:
    (stage.slurm.folder / "lost").touch()
    stage.follow(lambda: None, lambda: stage.completes("1"))
    assert stage.slurm.ids == ["1"]


def test_what_slurm_refuses_is_told_in_its_words(stage: Stage) -> None:
    (stage.slurm.folder / "refused").write_text("Invalid account or account/partition combination specified\n")
    with pytest.raises(UserError, match=r"Slurm refused the job: .*Invalid account or account/partition"):
        stage.follow()


@pytest.mark.parametrize("way", ["inline", "child"])
def test_other_launchers_refuse_a_stage_that_a_job_makes(
    stage: Stage, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.follow(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    monkeypatch.setattr("rlhf_loop.stages.run_stage", lambda file, progress: None)
    monkeypatch.setattr("rlhf_loop.processes.run", lambda command, hear, environment: 0)
    for event, sentence in ((lambda: None, "launch=slurm"), (stage.slurm.away, "nobody can be asked here")):
        event()
        with pytest.raises(UserError, match=f"slurm job 1 .*round 1, update.*{sentence}"):
            choose(told(way)).run(stage.file, lambda *told: None)
    stage.slurm.away(False)
    stage.slurm.is_of_another("1")
    choose(told(way)).run(stage.file, lambda *told: None)
    assert not stage_record(stage.file).exists()


def test_without_slurm_the_launcher_says_where_it_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch on the PATH"):
        choose(told("slurm"))
