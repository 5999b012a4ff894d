"""What is made, typed and read for SkyPilot is what SkyPilot itself takes, knows and gives, by its own code."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from samples.stub_sky import FULL, PLAIN, StubSky, smoke

from rlhf_loop.cluster import skypilot
from rlhf_loop.cluster.jobs import JobRecord, read_record, run_record

ROOT = Path(__file__).parents[2]
FILES = ROOT / "recipes" / "cluster" / "skypilot"
SHIPPED = FILES / "profile.yaml"
SKYPILOT = os.environ.get("RLHF_LOOP_TEST_SKYPILOT")

pytestmark = pytest.mark.skipif(
    SKYPILOT is None, reason="RLHF_LOOP_TEST_SKYPILOT (a Python with skypilot, as of .ci/skypilot.sh) is not set"
)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("recipes", "reward_models"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "dist").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def itself(script: str, *words: Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """A script that asks SkyPilot, which keeps files in its user's home."""
    command = [str(SKYPILOT), str(ROOT / "tests" / "samples" / script), *map(str, words)]
    home = {"PATH": os.environ["PATH"], "HOME": str(Path.cwd()), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    return subprocess.run(command, env=home, text=True, input=given, capture_output=True, timeout=300)


def test_what_is_made_for_a_run_is_what_skypilot_takes(project: Path) -> None:
    files = []
    for number, settings in enumerate([[], FULL, PLAIN, [*PLAIN, "folder=/mnt/nfs", "nodes=3"]]):
        (text,) = skypilot.plan(smoke(), SHIPPED, settings).files.values()
        files.append(project / f"{number}.yaml")
        files[-1].write_text(text)
    done = itself("sky_tasks.py", *files, FILES / "volume.yaml")
    assert done.returncode == 0, done.stderr
    misspelt = yaml.safe_load(files[0].read_text())
    misspelt["resources"]["disk_sizes"] = misspelt["resources"].pop("disk_size")
    files[0].write_text(yaml.safe_dump(misspelt))
    assert "did you mean 'disk_size'" in itself("sky_tasks.py", files[0]).stderr, "else the check above says nothing"


def submitted(name: str, *settings: str) -> tuple[JobRecord, list[str]]:
    """What is written down of a job, and what its user is told to type."""
    plan = skypilot.plan(smoke(name), SHIPPED, settings)
    told = skypilot.told(plan, skypilot.submit(plan))
    record = read_record(run_record(plan.submission.runs[0].folder))
    assert record
    assert skypilot.alive(record)
    return record, [line.partition(": ")[2] for line in told if ": sky " in line]


def test_what_is_typed_and_read_is_what_sky_knows_and_gives(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sky = StubSky(project / "stub", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "x")
    managed, told = submitted("managed")
    plain, told_too = submitted("plain", *PLAIN)
    typed = [f"sky {call}" for call in (sky.folder / "calls").read_text().splitlines()]
    verbs = {call.replace("jobs ", "").split()[1] for call in [*typed, *told, *told_too]}
    assert verbs == {"launch", "queue", "status", "logs", "cancel"}
    done = itself("sky_contract.py", given="\n".join([*typed, *told, *told_too]))
    assert done.returncode == 0, done.stderr
    known = json.loads(done.stdout.splitlines()[-1])
    assert {"job_id", "job_name", "status", "failure_reason", "infra", "recovery_count"} <= {*known["answers"]["jobs"]}
    assert {"job_id", "job_name", "status", "resources"} <= {*known["answers"]["cluster jobs"]}
    assert {"name", "status", "init_status_reason"} <= {*known["answers"]["clusters"]}
    for record, states in ((managed, known["jobs"]), (plain, known["cluster jobs"])):
        for state, ended in states.items():
            sky.becomes(1, state)
            assert skypilot.alive(record) is not ended, state
    assert itself("sky_contract.py", given="sky jobs queue --outputs json").returncode != 0, "else it reads nothing"
