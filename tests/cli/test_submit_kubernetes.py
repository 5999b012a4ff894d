"""`rlhf-loop submit --kubernetes`: profiles, what is rendered and applied, what is refused; and that the manifests are
what Kubernetes and Kubeflow Trainer take, by their own schemas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from samples.stub_kubectl import StubKubectl
from samples.user_project import enter_project

from rlhf_loop.cli import app
from rlhf_loop.cluster import manifests
from rlhf_loop.cluster.kubernetes_profile import KubernetesProfile, read_profile
from rlhf_loop.cluster.per_stage import PerStage
from rlhf_loop.errors import UserError
from rlhf_loop.kept_recipe import check_recipe
from rlhf_loop.recipe import Recipe
from rlhf_loop.run_dir import RunDir
from rlhf_loop.stages import STAGES

ROOT = Path(__file__).parents[2]
FILES = ROOT / "recipes" / "cluster" / "kubernetes"
SHIPPED = FILES / "profile.yaml"
VERSION = "1.34"  # of Kubernetes
SMALL = "image: rlhf:1\nvolume: {claim: runs}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return enter_project(tmp_path, monkeypatch, SMALL)


@pytest.fixture
def cluster(project: Path, monkeypatch: pytest.MonkeyPatch) -> StubKubectl:
    return StubKubectl(project / "stub", monkeypatch)


def submit(*words: str | Path, profile: str | Path = "small.yaml") -> None:
    app(
        ["submit", "mine.yaml", "--kubernetes", "--profile", str(profile), *map(str, words)], standalone_mode=False
    )  # fmt: skip


def full() -> KubernetesProfile:
    """One that says everything that can be said."""
    return read_profile(
        SHIPPED,
        [
            "namespace=team",
            "image_pull_secrets=[registry]",
            "queue=gpus",
            "workdir=/rlhf/mine",
            "node_selector={kind: h100}",
            "steering={queue: cpus, node_selector: {kind: cpu}, tolerations: [{key: a, value: b}]}",
            "stages={update: {nodes: 4, gpus_per_node: 4, queue: big, memory: 900Gi}}",
        ],
    )


def train_job(profile: KubernetesProfile) -> dict[str, Any]:
    return manifests.stage(
        profile.of("update"),
        name="smoke-r001-update-0123abcd-1",
        run="rlhf-loop-smoke",
        labels={"rlhf-loop/stage": "0123abcd"},
        arguments="/rlhf/runs/smoke/round_001/update.arguments.json",
        variables={"RLHF_LOOP_LOGS": "/rlhf/runs/smoke/logs/x"},
        owner=manifests.Owner(name="rlhf-loop-smoke", uid="1-2-3"),
    )


def is_valid(document: dict[str, Any]) -> None:
    """Raises for a field that the kind has not, or of the wrong type."""
    validate = pytest.importorskip("kubernetes_validate", reason="pip install -e '.[dev]'").validate
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install -e '.[dev]'")
    if document["apiVersion"].startswith("trainer.kubeflow.org/"):
        known = getattr(models, f"TrainerV1alpha1{document['kind']}").from_dict(document)
        assert without_empty(known.to_dict()) == without_empty(document), "a field that Kubeflow does not know"
        pod = document["spec"]["template"]["spec"]["replicatedJobs"][0] if "template" in document["spec"] else None
        if pod is not None:  # the models of a pod drop what they do not know, too
            validate({"apiVersion": "batch/v1", "kind": "Job", **pod["template"]}, VERSION, strict=True)
    else:
        validate(document, VERSION, strict=True)


def without_empty(value: Any) -> Any:
    """Models write out some of what is empty."""
    if isinstance(value, dict):
        return {name: without_empty(inner) for name, inner in value.items() if inner not in (None, {}, [])}
    return [without_empty(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("profile", ["full", "small"])
def test_what_is_made_for_a_run_is_what_kubernetes_takes(tmp_path: Path, profile: str) -> None:
    (tmp_path / "small.yaml").write_text(SMALL + "gpus_per_node: 0\n")
    one = full() if profile == "full" else read_profile(tmp_path / "small.yaml")
    for document in [*manifests.steering(one, "rlhf-loop-smoke", ["mine.yaml"]), train_job(one)]:
        is_valid(document)


@pytest.mark.parametrize("file", sorted(path.name for path in FILES.glob("*.yaml") if path.name != "profile.yaml"))
def test_the_shipped_manifests_are_what_kubernetes_takes(file: str) -> None:
    documents = list(yaml.safe_load_all((FILES / file).read_text()))
    assert documents
    for document in documents:
        is_valid(document)


def test_a_field_that_is_misspelt_is_found() -> None:
    """Else the two tests above would say nothing."""
    job = train_job(full())
    job["spec"]["trainer"]["numNode"] = 2
    with pytest.raises(AssertionError, match="does not know"):
        is_valid(job)
    patch = train_job(full())
    patch["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJob"] = [1]
    with pytest.raises(AssertionError, match="does not know"):
        is_valid(patch)
    steering = manifests.steering(full(), "x", [])[1]
    steering["spec"]["backofLimit"] = 1
    with pytest.raises(Exception, match="backofLimit"):
        is_valid(steering)
    (runtime,) = yaml.safe_load_all((FILES / "runtime.yaml").read_text())
    runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["restart"] = "x"
    with pytest.raises((AssertionError, ValueError)):
        is_valid(runtime)


def test_a_stage_asks_for_what_its_profile_says() -> None:
    assert set(PerStage.model_fields) == set(STAGES)
    spec = train_job(full())["spec"]
    assert (spec["suspend"], spec["trainer"]["numNodes"], spec["trainer"]["numProcPerNode"]) == (True, 4, 4)
    assert spec["trainer"]["resourcesPerNode"] == {
        "requests": {"cpu": "64", "memory": "900Gi", "nvidia.com/gpu": "4"},
        "limits": {"memory": "900Gi", "nvidia.com/gpu": "4"},
    }
    metadata = train_job(full())["metadata"]
    assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "big"
    assert metadata["namespace"] == "team"
    assert metadata["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": "rlhf-loop-smoke", "uid": "1-2-3"}
    ]
    env = {one["name"]: one for one in spec["trainer"]["env"]}
    assert env["HF_TOKEN"] == {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    assert (env["RLHF_LOOP_GPUS"]["value"], env["RLHF_LOOP_FOLDER"]["value"]) == ("4", "/rlhf/mine")
    (patch,) = spec["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"kind": "h100"}
    assert pod["volumes"] == [{"name": "rlhf-loop", "persistentVolumeClaim": {"claimName": "rlhf-loop"}}]
    (runtime,) = yaml.safe_load_all((FILES / "runtime.yaml").read_text())
    (of,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    containers = of["template"]["spec"]["template"]["spec"]["containers"]
    assert spec["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert (node["name"], pod["containers"][0]["name"]) == (of["name"], containers[0]["name"]) == ("node", "node")


def test_on_cpus_a_node_has_one_process_and_no_accelerators(tmp_path: Path) -> None:
    (tmp_path / "cpu.yaml").write_text(SMALL + "gpus_per_node: 0")
    trainer = train_job(read_profile(tmp_path / "cpu.yaml"))["spec"]["trainer"]
    assert trainer["numProcPerNode"] == 1
    assert trainer["resourcesPerNode"]["limits"] == {"memory": "64Gi"}
    assert "suspend" not in train_job(read_profile(tmp_path / "cpu.yaml"))["spec"]


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("gpu_per_node: 8", "unknown key `gpu_per_node`; did you mean `gpus_per_node`?"),
        ("stages: {update: {node: 2}}", "unknown key `stages.update.node`; did you mean `nodes`?"),
        ("volume: {claims: x}", "unknown key `volume.claims`; did you mean `claim`?"),
        ("memory: 480", "`memory`: Input should be a valid string"),
        ("memory: 480GB", "'480GB' is no amount of memory; write it as in 480Gi"),
        ("queue: My_Queue", "'My_Queue' is no name in Kubernetes"),
        ("workdir: rlhf", "'rlhf' is no folder of a container"),
        ("secrets: {HF_TOKEN: hf_abc}", "`secrets.HF_TOKEN`: Input should be a valid dictionary"),
        ("secrets: {HF-TOKEN: {secret: a, key: b}}", "'HF-TOKEN' is no name of an environment variable"),
        ("tolerations: [{effect: NoSchedul}]", "did you mean `NoSchedule`?"),
    ],
)
def test_a_mistake_in_a_profile_is_told_with_its_place_and_the_remedy(
    tmp_path: Path, written: str, sentence: str
) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text(f"image: x\n{written}" + ("" if written.startswith("volume") else "\nvolume: {claim: runs}"))
    with pytest.raises(UserError, match=re.escape(sentence)) as refused:
        read_profile(file)
    assert str(refused.value).startswith(str(file))


def test_what_nobody_can_guess_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "profile.yaml").write_text("nodes: 2")
    with pytest.raises(UserError, match=r"`image` is missing\n.*`volume` is missing"):
        read_profile(tmp_path / "profile.yaml")
    with pytest.raises(UserError, match=r"names an image and a volume: --profile FILE"):
        read_profile(None)


def test_a_run_is_a_job_that_steers_with_the_profile_beside_it(
    cluster: StubKubectl, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit("--set", "namespace=team", "--set", "workdir=/rlhf/mine", "seed=3", "--rounds", "1")
    (name,) = cluster.names("job")
    assert name == "rlhf-loop-smoke"
    (container,) = cluster.read("job", name)["spec"]["template"]["spec"]["containers"]
    run = "/rlhf/mine/runs/smoke"
    assert container["command"] == [
        "rlhf-loop", "run", "/rlhf/mine/mine.yaml", "seed=3", "--run-dir", run, "--rounds", "1",
        "launch=kubernetes", "cluster_profile=/etc/rlhf-loop/cluster.yaml", "--stay",
    ]  # fmt: skip
    assert container["workingDir"] == "/rlhf/mine"
    kept = project / "kept.yaml"
    kept.write_text(cluster.read("configmap", name)["data"]["cluster.yaml"])
    assert read_profile(kept) == read_profile(project / "small.yaml", ["namespace=team", "workdir=/rlhf/mine"])
    told = capsys.readouterr().out
    assert f"submitted job team/job/{name}," in told
    assert f"kubectl logs -f job/{name} --namespace=team\n" in told
    assert f"kubectl delete job/{name} --namespace=team\n" in told
    app(["status", "runs/smoke"], standalone_mode=False)
    assert f"kubernetes job team/job/{name} (steering): Pending, attempt 0" in capsys.readouterr().out


def test_each_run_has_a_name_of_its_own_and_one_that_loses_nothing_its_own() -> None:
    kept = ["rlhf-loop-smoke", "rlhf-loop-smoke-seed-5", "a" * 52]
    assert [manifests.object_name(text) for text in kept] == kept
    assert manifests.object_name("rlhf-loop-a_b") == "rlhf-loop-a-b-30d0d901"
    pairs = ["a_b a-b", "run-α run-β", "lr-0.1 lr-0-1", "Smoke smoke", "a- a", f"{'x' * 60}1 {'x' * 60}2", "1 2", "α β"]
    texts = [text for pair in pairs for text in pair.split()]
    names = {manifests.object_name(text) for text in texts} | {manifests.object_name(f"rlhf-loop-{t}") for t in texts}
    assert len(names) == 2 * len(texts)
    assert all(re.fullmatch("[a-z]([a-z0-9-]*[a-z0-9])?", name) and len(name) <= 52 for name in names)


def test_what_a_dry_run_shows_is_yaml_as_it_stands(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(project))  # no kubectl is needed
    submit("--dry-run", "--sweep", "seed=1,2", profile=SHIPPED)
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [one["kind"] for one in documents] == ["ConfigMap", "Job", "ConfigMap", "Job"]
    assert len({one["metadata"]["name"] for one in documents}) == 2
    for document in documents:
        is_valid(document)
    assert not (project / "runs").exists()


def test_a_job_that_has_not_ended_is_left_and_one_that_has_makes_room(cluster: StubKubectl, project: Path) -> None:
    submit()
    (name,) = cluster.names("job")
    with pytest.raises(UserError, match=f"submitted already, as job job/{name}, which has not ended"):
        submit()
    (project / "runs" / "smoke" / "job.json").unlink()  # submitted from another machine
    with pytest.raises(UserError, match=f"there is a job job/{name} already, which has not ended"):
        submit()
    cluster.becomes("job", name, "Failed")
    submit()
    assert "status" not in cluster.read("job", name), "made anew: Kubernetes changes no Job"


def test_what_lies_outside_of_the_folder_that_pods_see_is_refused(cluster: StubKubectl, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"the run's folder, .*elsewhere, is outside of .*, and nodes see only what is within"
    ):
        submit("--run-dir", tmp_path.parent / "elsewhere")
    assert cluster.names("job") == []


def test_what_kubernetes_refuses_and_does_not_answer_is_told(
    cluster: StubKubectl, monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    (cluster.folder / "refused").write_text("jobs.batch is forbidden: User cannot create")
    with pytest.raises(UserError, match=r"Kubernetes refused: jobs.batch is forbidden"):
        submit()
    (cluster.folder / "refused").unlink()
    (cluster.folder / "lost").touch()
    with pytest.raises(UserError, match=r"does not answer: .*look with `kubectl get job/rlhf-loop-"):
        submit()
    monkeypatch.setenv("PATH", str(project))
    with pytest.raises(UserError, match="no kubectl on the PATH"):
        submit("--run-dir", "runs/other")


def test_what_auto_is_follows_the_nodes_of_the_stages(project: Path) -> None:
    words = ["policy.dtype=auto", "launch=kubernetes", f"cluster_profile={project / 'small.yaml'}"]
    in_force = check_recipe(Recipe.load("mine.yaml", words), RunDir(project / "run"))
    assert in_force.policy.dtype == "bfloat16"
    with pytest.raises(UserError, match=r"with `launch: kubernetes` the profile's `stages` says it"):
        Recipe.load("mine.yaml", [*words, "stages.update.devices=2"])
