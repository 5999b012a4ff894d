"""The workflows call what is there: targets of the Makefile, and files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name)
def test_a_workflow_calls_what_is_there(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert set(workflow[True]) <= {"push", "pull_request", "schedule", "workflow_dispatch"}  # YAML reads `on` as true
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    for job in workflow["jobs"].values():
        for command in (step["run"] for step in job["steps"] if "run" in step):
            assert set(re.findall(r"\bmake (\w+)", command)) <= targets
            assert all((ROOT / name).exists() for name in re.findall(r"(?:tests|\.ci)/[\w/.]+", command))


def test_pull_requests_run_check_and_test_on_the_oldest_python_and_a_current_one() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert {"push", "pull_request"} <= set(workflow[True])
    (job,) = workflow["jobs"].values()
    commands = "\n".join(step.get("run", "") for step in job["steps"])
    assert all(f"make {target} PYTHON=python" in commands for target in ("check", "test", "docs"))
    assert ".ci/postgres.sh" in commands
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert oldest
    assert job["strategy"]["matrix"]["python"][0] == oldest[1]
