"""sky without SkyPilot: what was launched is in a file, and a test says what becomes of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_loop.cluster import Submission, SubmittedRun

FULL = [
    "accelerators=[H100:8, A100-80GB:8]", "nodes=2", "infra=k8s/my-context", "cpus=32+", "memory=480+", "spot=true",
    "image=docker:registry.example/rlhf-loop:0.1.0", "resources={network_tier: best, labels: {team: a}}",
    "copies=null", "volume={name: rlhf, mount: /rlhf}", "secrets=[HF_TOKEN, PGPASSWORD]",
]  # fmt: skip
PLAIN = ["managed=false", "spot=false", "copies=null", "accelerators=null"]
"""Settings over the shipped profile: all that can be said, and a plain cluster."""

PROGRAM = """
import json, pathlib, sys
here = pathlib.Path(__file__).parent.parent
words = sys.argv[1:]
with (here / "calls").open("a") as calls:
    calls.write(" ".join(words) + "\\n")
if (here / "away").exists():
    sys.exit("sky.exceptions.ApiServerConnectionError: Could not connect to SkyPilot API server at http://x:46580.")
jobs = json.loads((here / "jobs.json").read_text())
clusters = json.loads((here / "clusters.json").read_text())
if "launch" in words:
    if (here / "refused").exists():
        sys.exit((here / "refused").read_text())
    import yaml
    task = yaml.safe_load(open(words[-1]))
    cluster = words[words.index("--cluster") + 1] if "--cluster" in words else None
    number = 1 + sum(job["cluster"] == cluster for job in jobs)
    jobs.append({"job_id": number, "job_name": task["name"], "status": "PENDING", "cluster": cluster})
    if cluster:
        clusters[cluster] = {"name": cluster, "status": "UP"}
    (here / "jobs.json").write_text(json.dumps(jobs))
    (here / "clusters.json").write_text(json.dumps(clusters))
    if (here / "lost").exists():
        (here / "lost").rename(here / "away")
elif words[:2] == ["jobs", "queue"]:
    print("[hint] a new version is there\\n" + json.dumps([job for job in jobs if not job["cluster"]][::-1], indent=2))
elif words[0] == "queue":
    print("Fetching...\\n" + json.dumps({words[1]: [job for job in jobs if job["cluster"] == words[1]]}, indent=2))
elif words[0] == "status":
    print("Cluster(s) not found." if words[1] not in clusters else "")
    print(json.dumps([cluster for name, cluster in clusters.items() if name == words[1]], indent=2))
"""


def smoke(name: str = "smoke") -> Submission:
    """A run of the shipped smoke recipe, made in the working folder."""
    folder, recipe = Path.cwd() / "runs" / name, Path.cwd() / "recipes" / "smoke.yaml"
    run = SubmittedRun(folder=folder, words=[str(recipe), "--run-dir", str(folder)])
    return Submission(name=name, runs=[run], stages=False, logs=folder / "logs")


class StubSky:
    """It is first on the PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder = folder
        program = folder / "bin" / "sky"
        program.parent.mkdir(parents=True)
        (folder / "jobs.json").write_text("[]")
        (folder / "clusters.json").write_text("{}")
        program.write_text(f"#!{sys.executable}\n{PROGRAM}")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    def launched(self) -> list[list[str]]:
        """The words of each launch."""
        path = self.folder / "calls"
        calls = path.read_text().splitlines() if path.exists() else []
        return [call.split() for call in calls if "launch" in call.split()]

    def tasks(self) -> list[dict[str, Any]]:
        return [yaml.safe_load(Path(words[-1]).read_text()) for words in self.launched()]

    def becomes(self, number: int, status: str, **more: Any) -> None:
        jobs = json.loads((self.folder / "jobs.json").read_text())
        for job in jobs:
            if job["job_id"] == number:  # a managed one, and those of clusters
                job.update(status=status, **more)
        (self.folder / "jobs.json").write_text(json.dumps(jobs))

    def cluster_becomes(self, name: str, status: str | None) -> None:
        """None: it is gone."""
        (self.folder / "clusters.json").write_text(
            json.dumps({name: {"name": name, "status": status}} if status else {})
        )

    def away(self, away: bool = True) -> None:
        """The API server does not answer."""
        (self.folder / "away").touch() if away else (self.folder / "away").unlink()
