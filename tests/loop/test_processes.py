"""Child processes are heard whatever they print, and end when the one who waits for them is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from rlhf_loop import processes
from rlhf_loop.errors import UserError
from rlhf_loop.launch.child import Child
from rlhf_loop.run_dir import PROGRESS, RunDir

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"

DEAF = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
if len(sys.argv) == 1:
    rank = subprocess.Popen([sys.executable, __file__, "rank"], start_new_session=True, stdout=subprocess.PIPE)
    rank.stdout.readline()
    print(os.getpid(), rank.pid, flush=True)
else:
    print("ready", flush=True)
time.sleep(3600)
"""


def child(monkeypatch: pytest.MonkeyPatch, code: str) -> list[tuple[int, int, str]]:
    heard: list[tuple[int, int, str]] = []
    launcher = Child()
    monkeypatch.setattr(launcher, "command", lambda arguments: [sys.executable, "-c", code])
    launcher.run(Path("a.json"), lambda *counts: heard.append(counts))
    return heard


def test_bytes_that_are_no_text_and_mixed_lines_of_progress_do_not_end_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        b"caf\xe9 \xff\n", b"\x00\r\n", PROGRESS.encode() + b"[1, 2, \"a\"]\n", PROGRESS.encode() + b"[1, 2, \xff\n",
        PROGRESS.encode() + b"7\n", b"no end of line",
    ]  # fmt: skip
    assert child(monkeypatch, f"import sys; sys.stdout.buffer.write({b''.join(lines)!r})") == [(1, 2, "a")]


def test_a_stage_that_fails_says_its_error_among_other_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no file x\ufffd"):
        child(
            monkeypatch, "import sys; sys.stderr.buffer.write(b'error: no file x\\xff\\n\\xfe later\\n'); sys.exit(2)"
        )
    with pytest.raises(RuntimeError, match=r"exit code 3\. Its last lines:\ncaf\ufffd"):
        child(monkeypatch, "import sys; sys.stderr.buffer.write(b'caf\\xe9\\n'); sys.exit(3)")


def test_a_child_and_a_rank_in_another_session_that_ignore_signals_are_killed(tmp_path: Path) -> None:
    script = tmp_path / "deaf.py"
    script.write_text(DEAF)
    found: list[int] = []

    def hear(line: str) -> None:
        found.extend(map(int, line.split()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processes.run([sys.executable, str(script)], hear, stop_seconds=0.5)
    assert len(found) == 2
    assert not [pid for pid in found if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    script = tmp_path / "deaf.py"
    script.write_text(DEAF)

    def hear(line: str) -> None:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processes.run([sys.executable, str(script)], hear, stop_seconds=3600)


def test_a_child_that_listens_to_sigterm_ends_by_itself(tmp_path: Path) -> None:
    done = tmp_path / "done"
    code = (
        "import signal, sys, time, pathlib\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(done)!r}).touch(), sys.exit(0)))\n"
        "print('ready', flush=True); time.sleep(60)"
    )

    def hear(line: str) -> None:
        raise ValueError("whoever hears fails")

    with pytest.raises(ValueError, match="whoever hears"):
        processes.run([sys.executable, "-c", code], hear)
    assert done.exists()


def test_sigterm_is_an_interrupt_meanwhile() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), processes.terminable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


WAITS = """
import sys, time
from rlhf_loop import processes
from rlhf_loop.cli import main
from rlhf_loop.loop import Loop

STAGE = "import os, time; print(os.getpid(), flush=True); print('@', flush=True); time.sleep(60)"

def run(self, rounds, wait, check_memory):
    with self.run_dir.locked():
        if self.recipe.launch == "child":
            processes.run([sys.executable, "-c", STAGE], lambda line: print(line, flush=True))
        print("0\\n@", flush=True)
        time.sleep(60)

Loop.run = run
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("launch", ["inline", "child"])
def test_signals_end_a_run_with_a_sentence_and_leave_nothing(launch: str, number: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", WAITS, "run", str(SMOKE), f"launch={launch}", "--run-dir", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    stage = int(process.stdout.readline())
    assert process.stdout.readline() == "@\n"
    for _ in range(2 if number == signal.SIGTERM else 1):  # Slurm and torchrun may both send one
        process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert said.strip() == "stopped. Nothing is lost: type the same command again to go on."
    assert RunDir(run).used_by() is None
    assert not stage or not psutil.pid_exists(stage)


def test_the_last_line_and_the_error_are_found() -> None:
    lines = processes.LastLines(3)
    assert (lines.error, lines.last) == (None, None)
    for line in (b"error: gone\n", b"error: a\xff\n", "b", "  \n"):
        lines.add(line)
    assert (lines.error, lines.last, str(lines)) == ("a\ufffd", "b", "error: a\ufffd\nb\n")


def test_a_command_that_does_not_exist_is_an_error_of_the_system() -> None:
    with pytest.raises(FileNotFoundError):
        processes.run(["/nowhere/x"], print)


def test_no_other_module_kills_groups() -> None:
    package = Path(processes.__file__).parent
    found = [file.name for file in package.rglob("*.py") if "killpg(" in file.read_text()]
    assert found == ["processes.py"]
