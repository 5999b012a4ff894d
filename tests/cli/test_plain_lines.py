"""Where no terminal is, a run says plain lines: no library's bars or warnings among them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BAR = re.compile(r"\r|\x1b|it/s|s/it|%\||[█━▏]")


@pytest.mark.parametrize("launch", ["inline", pytest.param("child", marks=pytest.mark.slow)])
def test_a_run_without_a_terminal_prints_lines_of_its_own_alone(
    launch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_LOOP_CACHE", str(tmp_path / "cache"))  # the model is made anew, with its bars
    monkeypatch.delenv("TRL_EXPERIMENTAL_SILENCE", raising=False)
    small = ["rounds=1", f"launch={launch}", "generation.prompts_per_round=8", "evaluation.max_prompts=4"]
    command = [sys.executable, "-m", "rlhf_loop", "run", "recipes/smoke.yaml", *small, "--run-dir", str(tmp_path / "r")]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert not BAR.search(finished.stdout + finished.stderr), finished.stdout + finished.stderr
    assert finished.stderr == ""
    assert "\n  update " in finished.stdout


def test_a_bar_that_no_switch_turns_off_is_not_seen(capfd: pytest.CaptureFixture[str]) -> None:
    from tqdm.auto import tqdm

    from rlhf_loop.models.quiet import silent

    with silent():
        assert sum(tqdm(range(4), desc="Converting and de-quantizing GGUF tensors...")) == 6
    assert capfd.readouterr() == ("", "")
