"""A stage as a TrainJob: what becomes of it, and of who follows it. Kubernetes itself is a stub; that the manifests are
what it takes is tests/cli/test_submit_kubernetes.py."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from samples.stage_job import Event, StageInAJob
from samples.stub_kubectl import StubKubectl

from rlhf_loop.cluster import manifests
from rlhf_loop.cluster.jobs import JobRecord, read_record, stage_record
from rlhf_loop.cluster.kubernetes_profile import KubernetesProfile, Volume
from rlhf_loop.errors import UserError
from rlhf_loop.files.locks import locked
from rlhf_loop.launch import choose
from rlhf_loop.launch import kubernetes as launcher
from rlhf_loop.recipe import Recipe
from rlhf_loop.recipe.launching import StageLaunch

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
PROFILE = KubernetesProfile(image="rlhf:1", volume=Volume(claim="runs"))


class Stage(StageInAJob):
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        super().__init__(folder, launcher, monkeypatch, title="My Run")
        self.kubectl = StubKubectl(folder / "kubectl", monkeypatch)

    def follow(self, *events: Event, profile: KubernetesProfile = PROFILE) -> None:
        self.follow_by(launcher.Kubernetes(profile), *events)

    @property
    def names(self) -> list[str]:
        return self.kubectl.names("trainjob")

    def becomes(self, condition: str | None = None, **status: object) -> None:
        """The last attempt."""
        self.kubectl.becomes("trainjob", self.names[-1], condition, **status)

    def runs(self) -> None:
        self.becomes(None, jobsStatus=[{"name": "node", "ready": 1}])

    def pod(self, rank: int = 0, *, phase: str, **status: object) -> None:
        self.kubectl.pod(self.names[-1], rank, phase=phase, **status)

    def ended(self, code: int, reason: str = "Error", **status: object) -> None:
        """The pod, and with it the TrainJob."""
        end = {"name": "node", "state": {"terminated": {"exitCode": code, "reason": reason}}}
        self.pod(phase="Failed", containerStatuses=[end], **status)
        self.becomes("Failed")

    def disrupted(self) -> None:
        why = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
        self.ended(143, conditions=[why])

    def completes(self, key: str = "key") -> None:
        self.make(key)
        self.becomes("Complete")

    def says(self, text: str) -> None:
        self.log(self.names[-1], text)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


@pytest.fixture
def steering(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the pod of a Job."""
    for variable, value in zip(manifests.OWNER, ("rlhf-loop-run", "1-2-3"), strict=True):
        monkeypatch.setenv(variable, value)


def stops() -> None:
    raise KeyboardInterrupt


def test_a_stage_is_made_and_followed_until_its_folder_is_there(stage: Stage) -> None:
    def goes_on() -> None:
        record = read_record(stage_record(stage.file))
        assert record is not None
        assert record.id == f"trainjob/{stage.names[-1]}"
        stage.says('ne\n::progress::[4, 8, "loss 0.4"]\n')

    def speaks() -> None:
        stage.runs()
        stage.says('::progress::[3, 8, "loss 0.5"]\nhalf a li')
        (name,) = stage.names
        assert name.startswith("my-run-r001-update-")
        assert len(f"{name}-node-0-0-abcde") <= 63
        document = stage.kubectl.read("trainjob", name)
        env = {one["name"]: one.get("value") for one in document["spec"]["trainer"]["env"]}
        assert env["RLHF_LOOP_LOGS"] == f"{stage.run}/logs/{name}"
        assert document["spec"]["trainer"]["command"][-1] == str(stage.file)
        assert "ownerReferences" not in document["metadata"]

    stage.follow(speaks, goes_on, stage.completes)
    waits, *told = stage.heard
    assert waits[2].endswith("waits (Pending)")
    assert told == [(3, 8, "loss 0.5"), (4, 8, "loss 0.4")]
    assert stage.names == [], "its logs are in the run"
    assert not stage_record(stage.file).exists()


def test_a_stage_may_have_resources_and_an_accelerate_config_of_its_own(stage: Stage) -> None:
    profile = KubernetesProfile.model_validate(
        {"image": "x", "volume": {"claim": "runs"}, "stages": {"update": {"nodes": 3}}}
    )
    own = {"update": StageLaunch(accelerate_config=Path("/rlhf/fsdp2.yaml"))}
    made = launcher.Kubernetes(profile, Path("/rlhf/ddp.yaml"), own)  # type: ignore[arg-type]
    trainer = made.manifest(launcher._Stage(stage.file, profile), "x-1")["spec"]["trainer"]
    assert trainer["numNodes"] == 3
    assert {"name": "RLHF_LOOP_ACCELERATE_CONFIG", "value": "/rlhf/fsdp2.yaml"} in trainer["env"]


def test_two_volumes_with_paths_that_are_the_same_have_jobs_of_their_own(stage: Stage) -> None:
    other = PROFILE.model_copy(update={"volume": Volume(claim="theirs")})
    assert launcher._Stage(stage.file, PROFILE).name != launcher._Stage(stage.file, other).name


def test_a_disrupted_job_is_made_again(stage: Stage) -> None:
    stage.follow(stage.disrupted, stage.completes)
    assert stage.names == []
    made = [call for call in stage.kubectl.calls() if call.startswith("delete trainjob/")]
    assert [call.split()[1][-2:] for call in made] == ["-1", "-2"]


def test_a_node_that_does_not_answer_is_no_fault_of_the_stage(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "SETTLES", 0)

    def survivor_fails() -> None:
        stage.pod(1, phase="Running")
        stage.says("torch.distributed.DistBackendError: connection closed by peer\n")
        stage.ended(1)

    stage.follow(survivor_fails, stage.completes)


def test_the_pods_of_a_failed_job_have_time_to_end(stage: Stage) -> None:
    def one_is_ending() -> None:
        stage.pod(1, phase="Running")
        stage.ended(1)

    def it_is_gone() -> None:
        stage.kubectl.delete("pod", f"{stage.names[-1]}-node-0-1")

    with pytest.raises(RuntimeError, match="failed"):
        stage.follow(one_is_ending, it_is_gone)


def test_pods_that_somebody_deleted_are_no_fault_of_the_stage(stage: Stage) -> None:
    stage.follow(lambda: stage.becomes("Failed"), stage.completes)


def test_attempts_that_get_no_further_end_the_run_and_those_that_do_go_on(stage: Stage) -> None:
    def gets_further() -> None:
        stage.checkpoint(5)
        stage.disrupted()

    with pytest.raises(UserError, match=r"update: 5 attempts .*DeletionByTaintManager.*`node_selector`.*`save_steps`"):
        stage.follow(*[stage.disrupted] * 4, gets_further, *[stage.disrupted] * 5)


def test_the_stages_own_error_is_told_and_not_tried_again(stage: Stage) -> None:
    def fails() -> None:
        stage.says("Traceback ...\nerror: evaluation.plain_text: x.jsonl holds no texts\n")
        stage.ended(1)

    with pytest.raises(UserError, match=r"^evaluation\.plain_text: x\.jsonl holds no texts$"):
        stage.follow(fails)


def test_a_crash_is_told_with_its_last_lines_and_where_the_logs_are(stage: Stage) -> None:
    def fails() -> None:
        stage.says("RuntimeError: no kernel image\n")
        stage.ended(1)

    with pytest.raises(RuntimeError, match=r"logs: .*run/logs/my-run.*\) failed.*\n.*kernel"):
        stage.follow(fails)


def test_too_little_memory_is_told_with_the_setting(stage: Stage) -> None:
    with pytest.raises(UserError, match="`memory` in the cluster's profile"):
        stage.follow(lambda: stage.ended(137, "OOMKilled"))


def test_a_job_that_was_deleted_ends_the_run_with_a_sentence(stage: Stage) -> None:
    with pytest.raises(UserError, match="was deleted"):
        stage.follow(lambda: stage.kubectl.delete("trainjob", stage.names[0]))


def test_a_queue_may_suspend_a_job_and_let_it_go_on(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    queued = PROFILE.model_copy(update={"queue": "gpus"})

    def suspended() -> None:
        assert stage.kubectl.read("trainjob", stage.names[0])["spec"]["suspend"] is True
        stage.says("error: of those whom the queue ended\n")
        stage.becomes("Suspended")

    stage.follow(
        lambda: stage.becomes("Suspended"), stage.runs, suspended, stage.runs, stage.completes, profile=queued
    )  # fmt: skip
    assert capsys.readouterr().err.count("a queue has suspended") == 1
    assert [told[2].rpartition(" ")[2] for told in stage.heard] == ["(Pending)", "(Suspended)", "(Suspended)"]


def test_what_somebody_has_to_mend_is_told_once(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    def no_image() -> None:
        waits = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "rlhf:1"'}}
        stage.pod(phase="Pending", containerStatuses=[{"name": "node", "state": waits}])

    stage.follow(no_image, no_image, stage.completes)
    told = capsys.readouterr().err
    assert told.count('cannot begin: ImagePullBackOff Back-off pulling image "rlhf:1"') == 1
    assert stage.heard[-1][2].endswith("(ImagePullBackOff)")


def test_no_room_is_shown_while_it_is_waited_for(stage: Stage) -> None:
    why = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    stage.follow(lambda: stage.pod(phase="Pending", conditions=[why]), stage.completes)
    assert stage.heard[-1][2].endswith("waits (Unschedulable)")


def test_ctrl_c_deletes_the_job(stage: Stage) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.follow(stops)
    assert stage.names == []
    assert not stage_record(stage.file).exists()


@pytest.mark.usefixtures("steering")
def test_the_next_pod_that_steers_follows_the_same_job(stage: Stage) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            stage.follow(stops)
    (name,) = stage.names
    (owner,) = stage.kubectl.read("trainjob", name)["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "batch/v1", "kind": "Job", "name": "rlhf-loop-run", "uid": "1-2-3"}
    stage.follow(stage.completes)
    assert sum(call.startswith("create") for call in stage.kubectl.calls()) == 1


@pytest.mark.usefixtures("steering")
def test_a_job_is_found_by_its_label_where_nobody_wrote_down_its_name(stage: Stage) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.follow(stops)
    stage_record(stage.file).unlink()
    stage.follow(stage.completes)
    assert sum(call.startswith("create") for call in stage.kubectl.calls()) == 1


@pytest.mark.usefixtures("steering")
def test_a_job_that_ended_while_nobody_looked_is_no_reason_to_fail(stage: Stage) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.follow(stops)
    stage.ended(1)
    stage.follow(stage.completes)
    assert sum(call.startswith("create") for call in stage.kubectl.calls()) == 2


@pytest.mark.usefixtures("steering")
def test_a_job_that_ends_between_two_looks_is_not_made_again(stage: Stage) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.follow(stops)
    stage.completes()
    stage.follow()
    assert sum(call.startswith("create") for call in stage.kubectl.calls()) == 1
    assert stage.names == []
    assert not stage_record(stage.file).exists()


@pytest.mark.parametrize("key", ["key", "another key"])
def test_a_job_of_another_platform_that_makes_the_stage_is_not_made_beside(stage: Stage, key: str) -> None:
    JobRecord(platform="slurm", id="7", what="round 1, update", logs="", key=key).write(stage_record(stage.file))
    with pytest.raises(UserError, match=r"slurm job 7 was submitted to make round 1, update, .* `launch=slurm`"):
        stage.follow()
    assert stage.names == []
    assert stage_record(stage.file).exists()


@pytest.mark.usefixtures("steering")
def test_a_job_that_makes_what_nobody_needs_any_more_is_deleted(stage: Stage) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.follow(stops)
    (before,) = stage.names
    stage.write("another key")

    def completes() -> None:
        assert before not in stage.names
        stage.completes("another key")

    stage.follow(completes)


def test_who_lost_the_run_to_another_one_leaves_the_job_alone(stage: Stage) -> None:
    lock = stage.run / "lock"

    def lost() -> None:
        lock.write_text("somebody else's")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), locked(lock, "run"):
        stage.follow(lost)
    assert len(stage.names) == 1


def test_a_server_that_is_away_is_waited_for(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.follow(stage.kubectl.away, lambda: stage.kubectl.away(False), stage.completes)
    assert capsys.readouterr().err.count("Kubernetes does not answer") == 1


def test_a_job_whose_making_had_no_answer_is_not_made_twice(stage: Stage) -> None:
    (stage.kubectl.folder / "lost").touch()
    stage.follow(lambda: None, stage.completes)
    assert [call.split()[1][-2:] for call in stage.kubectl.calls() if call.startswith("delete")] == ["-1"]


def test_what_kubernetes_refuses_is_told_in_its_words(stage: Stage) -> None:
    (stage.kubectl.folder / "refused").write_text('trainjobs.trainer.kubeflow.org is forbidden: User "x" cannot create')
    with pytest.raises(UserError, match=r"Kubernetes refused: trainjobs.trainer.kubeflow.org is forbidden"):
        stage.follow()


@pytest.mark.usefixtures("steering")
def test_other_launchers_refuse_a_stage_that_a_job_makes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.follow(stops)
    inline = choose(Recipe.load(SMOKE, ["launch=inline"]))
    with pytest.raises(UserError, match=r"kubernetes job trainjob/my-run-.* makes round 1, update.*launch=kubernetes"):
        inline.run(stage.file, lambda *told: None)


def test_without_kubectl_the_launcher_says_where_it_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("image: x\nvolume: {claim: runs}")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no kubectl on the PATH"):
        choose(Recipe.load(SMOKE, ["launch=kubernetes", f"cluster_profile={tmp_path / 'p.yaml'}"]))


# The script of a pod, with stubs of what it starts.


def start(folder: Path, program: str, body: str, **environment: str) -> subprocess.Popen[str]:
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / program).write_text(f"#!/bin/bash\n{body}\n")
    (folder / "bin" / program).chmod(0o755)
    told = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "RLHF_LOOP_FOLDER": str(folder),
        "RLHF_LOOP_LOGS": str(folder / "logs"),
        "RLHF_LOOP_GPUS": "0",
        "PET_NNODES": "2",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "x-node-0-0.x",
        "PET_MASTER_PORT": "29500",
        **environment,
    }
    return subprocess.Popen(
        ["bash", "-c", manifests.script(), "bash", "/runs/a.json"], env=told, stdout=subprocess.PIPE, text=True
    )  # fmt: skip


def logged(folder: Path) -> str:
    (log,) = (folder / "logs").glob("*.log")
    return log.read_text()


def test_a_pod_starts_torchrun_on_cpus_and_says_what_it_says_twice(tmp_path: Path) -> None:
    for _ in range(2):  # a pod that a queue has begun again goes on in the same file
        pod = start(tmp_path, "torchrun", 'echo "$PWD $*"; echo "error: so it is" >&2; exit 3')
        said, _ = pod.communicate(timeout=30)
        assert pod.returncode == 3
        told = "--nnodes 2 --node_rank 1 --nproc_per_node 1 --master_addr x-node-0-0.x --master_port 29500"
        assert said == f"{tmp_path} {told} -m rlhf_loop.stages /runs/a.json\nerror: so it is\n"
    assert logged(tmp_path) == said * 2


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ({}, "--multi_gpu --mixed_precision bf16"),
        ({"PET_NNODES": "1", "RLHF_LOOP_GPUS": "1"}, "--mixed_precision bf16"),
        ({"RLHF_LOOP_ACCELERATE_CONFIG": "/rlhf/a b.yaml"}, "--config_file /rlhf/a b.yaml"),
    ],
)
def test_a_pod_with_gpus_starts_accelerate(tmp_path: Path, environment: dict[str, str], options: str) -> None:
    pod = start(tmp_path, "accelerate", 'echo "$*"', **{"RLHF_LOOP_GPUS": "4", **environment})
    said, _ = pod.communicate(timeout=30)
    nodes, processes = (1, 1) if environment.get("PET_NNODES") else (2, 8)
    assert said == (
        f"launch {options} --num_machines {nodes} --machine_rank 1 --num_processes {processes} --main_process_ip "
        "x-node-0-0.x --main_process_port 29500 -m rlhf_loop.stages /runs/a.json\n"
    )
    assert pod.returncode == 0


def test_a_pod_that_is_stopped_tells_the_ranks_and_waits_for_them(tmp_path: Path) -> None:
    body = "trap 'echo ending; sleep 0.3; echo ended; exit 7' TERM; echo ready; while :; do sleep 0.1; done"
    pod = start(tmp_path, "torchrun", body)
    assert pod.stdout is not None
    assert pod.stdout.readline() == "ready\n"
    pod.send_signal(signal.SIGTERM)
    pod.communicate(timeout=30)
    assert pod.returncode == 7
    assert logged(tmp_path) == "ready\nending\nended\n"
