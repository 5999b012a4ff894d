"""`rlhf-loop run --stay` waits for people and goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from samples.feedback import completion, preference, prompt

from rlhf_loop.cli import app
from rlhf_loop.errors import UserError
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.loop import Loop, RunResult
from rlhf_loop.records import Question

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
PEOPLE = ["feedback.annotator=null", "watch.poll_seconds=7"]


def test_it_looks_until_people_have_answered_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    with Store.open(url) as store:
        store.add_prompts([prompt("p")])
        store.add_completions([completion("a"), completion("b")])
        store.add_questions([Question(id="q", prompt_id="p", a_id="a", b_id="b", round=0)])
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            with Store.open(url) as store:
                store.add_feedback([preference("f")])
        assert len(slept) < 3

    def make(self: Loop, rounds: int | None, wait: bool, check_memory: bool) -> RunResult:
        with Store.open(url) as store:
            waits = store.open_questions()
        made = RunResult(run_dir=tmp_path, complete_rounds=1 - waits, waiting_for_labels=waits, report=tmp_path)
        calls.append(waits)
        return made

    calls: list[int] = []
    monkeypatch.setattr("rlhf_loop.cli.run.time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(Loop, "run", make)
    words = ["run", str(SMOKE), "--run-dir", str(tmp_path / "run"), f"store={url}", *PEOPLE]
    app([*words, "--stay"], standalone_mode=False)
    assert slept == [7, 7]
    assert calls == [1, 0]
    assert "1 questions are open" in capsys.readouterr().out


def test_a_sweep_does_not_stay(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--stay waits for the answers to one run"):
        app(["run", str(SMOKE), "--stay", "--sweep", "seed=0,1"], standalone_mode=False)
