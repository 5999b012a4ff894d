"""kubectl without Kubernetes: objects are files, and a test says what becomes of them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, pathlib, sys, time
here = pathlib.Path(__file__).parent.parent
words, options = [], {}
for word in sys.argv[1:]:
    name, _, value = word.partition("=")
    options.update({name: value}) if word.startswith("--") else words.append(word)
with (here / "calls").open("a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
if (here / "away").exists():
    sys.exit("Unable to connect to the server: dial tcp 10.0.0.1:443: i/o timeout")
def write(one):
    kind, name = one["kind"].lower(), one["metadata"]["name"]
    file = here / "objects" / kind / (name + ".json")
    if words[0] == "create" and file.exists():
        sys.exit(f'Error from server (AlreadyExists): error when creating "STDIN": {kind}s "{name}" already exists')
    file.parent.mkdir(parents=True, exist_ok=True)
    one["metadata"]["creationTimestamp"] = str(time.time_ns())
    file.write_text(json.dumps(one))
    print(f"{kind}/{name} created")
if words[0] in ("apply", "create"):
    if (here / "refused").exists():
        sys.exit("Error from server (Forbidden): " + (here / "refused").read_text())
    if words[-1] == "-":
        write(json.loads(sys.stdin.read()))
    else:
        import yaml
        for one in yaml.safe_load_all(open(words[-1])):
            write(one)
    if (here / "lost").exists():
        (here / "lost").unlink()
        sys.exit("Unable to connect to the server: net/http: TLS handshake timeout")
elif words[0] == "get" and "/" in words[1]:
    file = here / "objects" / (words[1] + ".json")
    print(file.read_text() if file.exists() else "")
elif words[0] == "get":
    found = [json.loads(file.read_text()) for file in (here / "objects" / words[1].removesuffix("s")).glob("*.json")]
    wanted = [pair.split("=") for pair in options["--selector"].split(",")]
    labels = lambda one: one["metadata"].get("labels", {})
    print(json.dumps({"items": [one for one in found if all(labels(one).get(k) == v for k, v in wanted)]}))
elif words[0] == "delete":
    (here / "objects" / (words[1] + ".json")).unlink(missing_ok=True)
"""


class StubKubectl:
    """It is first on the PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder = folder
        program = folder / "bin" / "kubectl"
        program.parent.mkdir(parents=True)
        (folder / "objects").mkdir()
        program.write_text(f"#!{sys.executable}\n{PROGRAM}")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    def names(self, kind: str) -> list[str]:
        found = [path.stem for path in (self.folder / "objects" / kind).glob("*.json")]
        return sorted(found, key=lambda name: (len(name), name))  # x-9 before x-10

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def read(self, kind: str, name: str) -> Any:
        return json.loads(self._file(kind, name).read_text())

    def becomes(self, kind: str, name: str, condition: str | None = None, **status: Any) -> None:
        """`condition`: the one that holds, with `status` beside it."""
        found = self.read(kind, name)
        holds = [{"type": condition, "status": "True", "reason": f"Because{condition}"}] if condition else []
        found["status"] = {"conditions": holds, **status}
        self._file(kind, name).write_text(json.dumps(found))

    def pod(self, of: str, rank: int = 0, *, phase: str, **status: Any) -> None:
        """A pod of a TrainJob, as it is now."""
        name = f"{of}-node-0-{rank}"
        labels = {"jobset.sigs.k8s.io/jobset-name": of}
        pod = {
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels},
            "spec": {"nodeName": f"n{rank}"},
            "status": {"phase": phase, **status},
        }
        self._file("pod", name).parent.mkdir(exist_ok=True)
        self._file("pod", name).write_text(json.dumps(pod))

    def delete(self, kind: str, name: str) -> None:
        self._file(kind, name).unlink()

    def away(self, away: bool = True) -> None:
        """The API server does not answer."""
        (self.folder / "away").touch() if away else (self.folder / "away").unlink()

    def _file(self, kind: str, name: str) -> Path:
        return self.folder / "objects" / kind / f"{name}.json"
