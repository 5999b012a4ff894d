"""`rlhf-loop submit --skypilot`: profiles, what is rendered and launched, what is refused, and what `status`
says of it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from samples.stub_sky import FULL, PLAIN, StubSky, smoke
from samples.user_project import enter_project

from rlhf_loop.cli import app
from rlhf_loop.cluster import SubmittedRun, skypilot, words_there
from rlhf_loop.cluster.jobs import JobRecord, run_record
from rlhf_loop.cluster.skypilot_profile import read_profile
from rlhf_loop.errors import UserError

ROOT = Path(__file__).parents[2]
FILES = ROOT / "recipes" / "cluster" / "skypilot"
SHIPPED = FILES / "profile.yaml"
SMALL = "copies: s3://mine/rlhf\nfiles: [recipes, mine.yaml]\n"
NAME = "rlhf-loop-smoke"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dist").mkdir()
    return enter_project(tmp_path, monkeypatch, SMALL)


@pytest.fixture
def sky(project: Path, monkeypatch: pytest.MonkeyPatch) -> StubSky:
    return StubSky(project / "stub", monkeypatch)


def submit(*words: str | Path, profile: str | Path = "small.yaml") -> None:
    app(["submit", "mine.yaml", "--skypilot", "--profile", str(profile), *map(str, words)], standalone_mode=False)


def task(*settings: str) -> dict[str, Any]:
    """Of a run with the shipped profile."""
    (text,) = skypilot.plan(smoke(), SHIPPED, settings).files.values()
    made: dict[str, Any] = yaml.safe_load(text)
    return made


def test_a_task_has_what_its_profile_says(project: Path) -> None:
    made = task(*FULL)
    assert made["resources"] == {
        "accelerators": ["H100:8", "A100-80GB:8"], "infra": "k8s/my-context", "cpus": "32+", "memory": "480+",
        "disk_size": 500, "image_id": "docker:registry.example/rlhf-loop:0.1.0", "use_spot": True,
        "network_tier": "best", "labels": {"team": "a"},
    }  # fmt: skip
    assert (made["num_nodes"], made["volumes"]) == (2, {"/rlhf": "rlhf"})
    assert made["secrets"] == {"HF_TOKEN": None, "PGPASSWORD": None}
    assert made["envs"] == {"HF_XET_HIGH_PERFORMANCE": "1", "RLHF_LOOP_RUN": "/rlhf/runs/smoke"}
    assert made["file_mounts"] == {
        f"~/rlhf-loop/{name}": str(project / name) for name in ("recipes", "reward_models", "dist")
    }  # fmt: skip
    assert "~/venv/bin/pip install ~/rlhf-loop/dist/*.whl s3fs\n" in made["setup"]
    shipped = (FILES / "run.sh").read_text()
    assert made["run"].endswith(shipped[shipped.index("set -euo pipefail\n") :])
    assert subprocess.run(["bash", "-n"], input=made["run"] + made["setup"], text=True).returncode == 0


@pytest.mark.parametrize(
    ("settings", "down"), [(PLAIN, False), ([*PLAIN, "folder=/mnt/nfs"], True), ([*PLAIN, "idle_minutes=5"], False)]
)
def test_a_plain_cluster_stops_by_itself_and_goes_where_the_run_lies_elsewhere(
    project: Path, settings: list[str], down: bool
) -> None:
    assert task(*settings)["resources"] == {"disk_size": 500, "autostop": {"idle_minutes": 5, "down": down}}


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("copies: s3://a\naccelerator: H100", "unknown key `accelerator`; did you mean `accelerators`?"),
        ("volume: {name: a, mounts: /b}", "unknown key `volume.mounts`; did you mean `mount`?"),
        ("copies: s3://a\naccelerators: 8", "`accelerators"),
        ("copies: s3://a\naccelerators: 8xH100", "'8xH100' is no kind and number of accelerators of a node"),
        ("copies: s3://a\ncpus: many", "'many' is no number of CPUs or GB; write it as in 32"),
        ("copies: s3://a\nsecrets: {HF_TOKEN: hf_abc}", "`secrets`: Input should be a valid list"),
        ("copies: s3://a\nsecrets: [HF_TOKEN=hf_abc]", "'HF_TOKEN=hf_abc' is no name of an environment variable"),
        ("copies: s3://a\nsecrets: [A]\nenv: {A: x}", "`A` stands in `env` too"),
        ("copies: s3://a\nfiles: [../recipes]", "'../recipes' names nothing within the folder of the project"),
        ("copies: s3://a\nresources: {region: x}", "`region` is said by `infra` of the profile"),
        ("folder: mnt", "'mnt' is no folder of a container"),
        ("nodes: 1", "the disk of a managed job is gone with it"),
        ("copies: s3://a\nfolder: /mnt", "`folder` and `copies` both say where the run lies"),
        ("copies: s3://a\nnodes: 2", "2 nodes need one place that all see: `volume` or `folder`"),
        ("managed: false\nnodes: 2", "2 nodes need one place that all see"),
        ("managed: false\ncopies: s3://a", "a plain cluster keeps its disk"),
        ("copies: somewhere", "'somewhere' is a folder on the node's own disk, which is gone with it; give a URL"),
        ("copies: /mnt/runs", "'/mnt/runs' is a folder on the node's own disk"),
        ("managed: false\nspot: true", "nothing brings a plain cluster back"),
    ],
)
def test_a_mistake_in_a_profile_is_told_with_its_place_and_the_remedy(
    tmp_path: Path, written: str, sentence: str
) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text(written)
    with pytest.raises(UserError, match=re.escape(sentence)) as refused:
        read_profile(file)
    assert str(refused.value).startswith(str(file))
    with pytest.raises(UserError, match=r"says where the run lies: --profile FILE"):
        read_profile(None)


def test_a_run_is_a_managed_job(
    sky: StubSky, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    submit("--set", "secrets=[HF_TOKEN]", "seed=3", "update.trainer.beta=0.2", "--rounds", "1")
    (words,) = sky.launched()
    path = project / "runs" / "smoke" / "logs" / "submitted.yaml"
    assert words == ["jobs", "launch", "--yes", "--detach-run", "--secret", "HF_TOKEN", str(path)]
    (made,) = sky.tasks()
    assert made["name"] == NAME
    assert "set -- ./mine.yaml seed=3 update.trainer.beta=0.2 --run-dir ./runs/smoke --rounds 1\n" in made["run"]
    assert made["envs"] == {"RLHF_LOOP_RUN": "./runs/smoke", "RLHF_LOOP_COPIES": "s3://mine/rlhf/smoke"}
    assert made["secrets"] == {"HF_TOKEN": None}
    written = [file for file in (project / "runs").rglob("*") if file.is_file()]
    assert not any("hf_secret" in file.read_text() for file in written)
    assert {file.stat().st_mode & 0o777 for file in written} == {0o600}, "what is typed may hold other secrets"
    told = capsys.readouterr().out
    assert "submitted job 1\n  follow: sky jobs logs 1\n  cancel: sky jobs cancel 1\n" in told
    assert "its whole rounds: rlhf-loop fetch s3://mine/rlhf/smoke FOLDER\n" in told


def test_paths_in_the_folder_of_the_project_are_those_of_nodes_and_others_stay(sky: StubSky, project: Path) -> None:
    stores = [f"store=sqlite:///{project}/votes.db", f"store=sqlite:////mnt{project}/votes.db", f"name={project}-2"]
    paths = ["run_dir=runs/smoke", *stores, f"prompts.train=[{project}/a.jsonl, '{project}/b.jsonl']"]
    run = SubmittedRun(folder=project / "runs" / "smoke", words=[str(project / "mine.yaml"), *paths])
    assert words_there(run, "/rlhf") == [
        "/rlhf/mine.yaml", "run_dir=runs/smoke", "store=sqlite:////rlhf/votes.db", *stores[1:],
        "prompts.train=[/rlhf/a.jsonl, '/rlhf/b.jsonl']",
    ]  # fmt: skip


def test_status_asks_sky(sky: StubSky, capsys: pytest.CaptureFixture[str]) -> None:
    def status() -> str:
        capsys.readouterr()
        app(["status", "runs/smoke"], standalone_mode=False)
        return capsys.readouterr().out

    submit()
    assert status() == "skypilot job 1 (whole run): PENDING, attempt 0\n  logs: sky jobs logs 1\n"
    sky.becomes(1, "RECOVERING", recovery_count=2, infra="AWS (us-east-1)")
    assert "(whole run): RECOVERING AWS (us-east-1), attempt 2" in status()
    with pytest.raises(UserError, match="submitted already, as job 1, which has not ended"):
        submit()
    sky.away()
    assert "state unknown here" in status()
    sky.away(False)
    sky.becomes(1, "SUCCEEDED")  # people must answer, or the run is at its end
    submit()
    assert "skypilot job 2 (whole run): PENDING" in status()
    sky.becomes(2, "PENDING", job_name="another one's, of a controller that counts anew")
    assert "skypilot job 2 (whole run): GONE" in status()


def test_a_run_is_a_job_of_a_plain_cluster(sky: StubSky, capsys: pytest.CaptureFixture[str]) -> None:
    plain = ("--set", "managed=false", "--set", "copies=null")
    submit(*plain)
    assert sky.launched()[0][:5] == ["launch", "--cluster", NAME, "--yes", "--detach-run"]
    told = capsys.readouterr().out
    assert f"submitted job {NAME}/1\n  follow: sky logs {NAME} 1\n  cancel: sky cancel {NAME} 1\n" in told
    assert "RLHF_LOOP_COPIES" not in sky.tasks()[0]["envs"]

    def status() -> str:
        app(["status", "runs/smoke"], standalone_mode=False)
        return capsys.readouterr().out

    assert f"skypilot job {NAME}/1 (whole run): PENDING" in status()
    with pytest.raises(UserError, match="which has not ended"):
        submit(*plain)
    sky.cluster_becomes(NAME, "STOPPED")
    assert "(whole run): STOPPED" in status()
    submit(*plain)
    assert f"submitted job {NAME}/2\n" in capsys.readouterr().out
    sky.cluster_becomes(NAME, None)
    assert f"skypilot job {NAME}/2 (whole run): GONE" in status()


def test_a_plain_cluster_keeps_the_name_that_it_has(sky: StubSky, project: Path) -> None:
    words = ("--set", "managed=false", "--set", "copies=null", "--run-dir", "runs/a_b")
    record = JobRecord(platform="skypilot", id="rlhf-loop-a-b/1", name="rlhf-loop-a-b", what="whole run", logs="sky")
    submit(*words)
    (name,) = [one["name"] for one in sky.tasks()]
    assert re.fullmatch(r"rlhf-loop-a-b-[0-9a-f]{8}", name)
    record.write(run_record(project / "runs" / "a_b"))
    submit(*words)
    assert sky.launched()[1][:3] == ["launch", "--cluster", "rlhf-loop-a-b"]


def test_a_sweep_is_a_job_for_each_run(sky: StubSky, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submit("--sweep", "seed=5,6")
    assert [one["name"] for one in sky.tasks()] == [f"{NAME}-seed-5", f"{NAME}-seed-6"]
    assert [one["envs"]["RLHF_LOOP_COPIES"] for one in sky.tasks()] == [
        f"s3://mine/rlhf/smoke-seed-{seed}" for seed in (5, 6)
    ]
    assert [one["run"].count("seed=6") for one in sky.tasks()] == [0, 1]
    told = capsys.readouterr().out
    assert "submitted job 1\n" in told
    assert "submitted job 2\n" in told
    assert (project / "runs" / "smoke-logs" / "smoke-seed-6.yaml").exists()


def test_what_a_dry_run_shows_is_yaml_as_it_stands(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(project))  # no sky is needed, nor a secret
    submit("--dry-run", "--sweep", "seed=1,2", "--set", "secrets=[NOWHERE]")
    told = capsys.readouterr().out
    assert [one["name"] for one in yaml.safe_load_all(told)] == [f"{NAME}-seed-1", f"{NAME}-seed-2"]
    assert (
        f"\n# sky jobs launch --yes --detach-run --secret NOWHERE {project}/runs/smoke-logs/smoke-seed-2.yaml\n" in told
    )
    assert "\n  set -- ./mine.yaml seed=1 --run-dir ./runs/smoke-seed-1\n" in told, "a script is shown in lines"
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--stages"], "SkyPilot gives a run one allocation"),
        (
            ["--set", "files=[recipes]"],
            r"the recipe, .*mine.yaml, is in nothing that nodes get \(recipes\): name it in",
        ),
        (["--set", "files=[data]"], "there is no data in .*: make it there .*, or take it out of `files`"),
        (["--set", "files=[.]"], "names nothing within the folder"),
        (["--set", "files=[recipes, mine.yaml, runs]"], "would send the run's folder"),
        (["--run-dir", "../elsewhere"], r"the run's folder, .*elsewhere, is outside of"),
        (["--run-dir", "."], r"the run's folder is .* itself, which stands for your project: name one in it"),
        (["--set", "secrets=[NOWHERE]"], "NOWHERE has no value here: `export NOWHERE=...` first"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_launched(
    sky: StubSky, project: Path, words: list[str], sentence: str
) -> None:
    (project / "runs").mkdir()
    with pytest.raises(UserError, match=sentence):
        submit(*words)
    assert sky.launched() == []


def test_what_skypilot_refuses_and_does_not_answer_is_told(
    sky: StubSky, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sky.folder / "refused").write_text("No cloud access is set up. Run: sky check")
    with pytest.raises(UserError, match=r"SkyPilot ended with exit code 1; what it says stands above"):
        submit()
    assert not (project / "runs" / "smoke" / "job.json").exists()
    (sky.folder / "refused").unlink()
    (sky.folder / "lost").touch()
    with pytest.raises(
        UserError, match=r"smoke was submitted, but SkyPilot does not say as which job: .*sky jobs queue"
    ):
        submit()
    monkeypatch.setenv("PATH", str(project))
    with pytest.raises(UserError, match="no sky on the PATH"):
        submit("--run-dir", "runs/other")


@pytest.mark.parametrize(
    "said",
    ['{"a": 1}', "[1]", '[{"job_id": 1}]', '[{"job_id": null, "job_name": "x", "status": "RUNNING"}]', "[[[", ""],
)
def test_an_answer_of_another_form_is_none(sky: StubSky, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    submit()
    (sky.folder / "bin" / "sky").write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    app(["status", "runs/smoke"], standalone_mode=False)
    assert "skypilot job 1 (whole run): state unknown here" in capsys.readouterr().out
    for record in ("1", f"{NAME}/1"):
        job = JobRecord(platform="skypilot", id=record, what="whole run", logs="", name=NAME)
        assert skypilot.alive(job) is None
    with pytest.raises(UserError, match="smoke was submitted, but SkyPilot does not say as which job"):
        submit()


def test_a_sweep_that_fails_half_way_says_what_was_submitted(
    sky: StubSky, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = skypilot.sky.launch

    def once(command: Sequence[str]) -> None:
        if sky.launched():
            (sky.folder / "refused").write_text("no quota")
        launch(command)

    monkeypatch.setattr(skypilot.sky, "launch", once)
    with pytest.raises(UserError, match=r"smoke-seed-6: SkyPilot ended .* not cancelled: job 1\. For the rest give"):
        submit("--sweep", "seed=5,6,7")
    assert [path.parent.name for path in (project / "runs").glob("*/job.json")] == ["smoke-seed-5"]
    (sky.folder / "refused").unlink()
    monkeypatch.setattr(skypilot.sky, "launch", launch)
    submit("--sweep", "seed=6,7")
    assert len(list((project / "runs").glob("*/job.json"))) == 3
