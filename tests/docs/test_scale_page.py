"""The plan that docs/scale.md shows is what its command prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rlhf_loop.cli import app

ROOT = Path(__file__).parents[2]


def test_the_plan_of_the_page_is_what_its_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from scale_gpu import TASKS

    page = (ROOT / "docs" / "scale.md").read_text()
    [command] = re.findall(r"^rlhf-loop (plan .*)$", page, re.MULTILINE)
    [shown] = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    (tmp_path / "7B").mkdir()
    (tmp_path / "7B" / "config.json").write_text(json.dumps({"model_type": "qwen2", **TASKS["7B"].config}))
    for name in ("recipes", "reward_models"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    app(command.split(), standalone_mode=False)
    printed = capsys.readouterr().out.replace(str(tmp_path / "7B"), "/home/you/7B")
    assert printed.split() == shown.split()
