"""One process at a time: locks tell the living from the dead, on one machine and on several."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlhf_loop.errors import UserError
from rlhf_loop.files import locks
from rlhf_loop.files.locks import InUse, check, locked
from rlhf_loop.files.step_folders import step_folder
from rlhf_loop.run_dir import RunDir

HOLDER = """
import sys
from rlhf_loop.files import locks
from rlhf_loop.run_dir import RunDir
locks.HEARTBEAT, locks.LEASE = 0.3, 2.0
with RunDir(sys.argv[1]).locked():
    print("in", flush=True)
    sys.stdin.readline()
    locks.check(RunDir(sys.argv[1]).path / "round_000")
    print("out", flush=True)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT", 0.3)
    monkeypatch.setattr(locks, "LEASE", 2.0)


@contextmanager
def holder(run: Path, *prefix: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a run until it is told a line."""
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", HOLDER, str(run)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def taken(run: Path) -> bool:
    with RunDir(run).locked():
        return f"pid={os.getpid()}\n" in (run / "lock").read_text()


def as_if_of(lock: Path, **fields: str) -> None:
    """A lock as another owner would have left it."""
    with locked(lock, "it"):
        lines = lock.read_text().splitlines()
    lines = [f"{line.split('=')[0]}={fields.get(line.split('=')[0], line.partition('=')[2])}" if "=" in line else line
             for line in lines]  # fmt: skip
    lock.write_text("\n".join(lines) + "\n")


def test_a_run_in_use_is_refused_and_one_whose_process_was_killed_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holder(tmp_path) as other:
        with pytest.raises(InUse, match=f"in use by process {other.pid} on") as found:
            taken(tmp_path)
        assert "delete" not in str(found.value)
        assert RunDir(tmp_path).used_by() is not None
        other.kill()
        other.wait()
        monkeypatch.setattr(locks, "LEASE", 1e9)  # nobody waits for it: a dead process of this machine is known
        assert taken(tmp_path)
    assert RunDir(tmp_path).used_by() is None
    assert list(tmp_path.iterdir()) == []


def test_threads_of_one_process_keep_each_other_out(tmp_path: Path) -> None:
    found = []

    def other() -> None:
        try:
            taken(tmp_path)
        except UserError as error:
            found.append(str(error))

    with RunDir(tmp_path).locked():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in found[0]
    assert taken(tmp_path)


@pytest.mark.parametrize("left_behind", [None, "dead", "reused", ""])
def test_processes_that_start_at_once_never_work_on_a_run_together(tmp_path: Path, left_behind: str | None) -> None:
    context = multiprocessing.get_context("fork")
    run = RunDir(tmp_path / "run")
    for _ in range(1 if left_behind == "" else 3):
        run.path.mkdir(exist_ok=True)
        lock = run.path / "lock"
        if left_behind == "dead":
            as_if_of(lock, pid=str(2**22 - 7))
        elif left_behind == "reused":  # process 1 lives, and began at another time
            as_if_of(lock, pid="1", start="1")
        elif left_behind is not None:
            lock.write_text(left_behind)
        count = 8
        ready, results = context.Barrier(count), context.SimpleQueue()

        def work(ready: Any = ready, results: Any = results) -> None:
            ready.wait()
            try:
                with run.locked():
                    ready.wait()
                    results.put("in")
            except UserError:
                ready.wait()
                results.put("out")

        processes = [context.Process(target=work) for _ in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert sorted(results.get() for _ in processes) == ["in"] + ["out"] * (count - 1)
        assert list(run.path.iterdir()) == []


def test_a_lock_of_another_machine_is_kept_while_it_is_renewed_whatever_the_clocks_say(tmp_path: Path) -> None:
    as_if_of(tmp_path / "lock", host="n1")
    stop = threading.Event()

    def renew() -> None:
        at = 2_000_000_000.0  # of a clock that is years ahead, and is set back
        while not stop.wait(0.2):
            at -= 3600
            os.utime(tmp_path / "lock", (at, at))

    renewing = threading.Thread(target=renew)
    renewing.start()
    with pytest.raises(InUse, match=f"process {os.getpid()} on n1"):
        taken(tmp_path)
    stop.set()
    renewing.join()
    started = time.monotonic()
    assert taken(tmp_path), "its machine died"
    assert time.monotonic() - started >= 2


@pytest.mark.parametrize("content", ["{damaged", "", "\udcff", json.dumps({"pid": 1, "host": "n1", "since": 0})])
def test_a_damaged_lock_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "lock").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert taken(tmp_path)
    assert not (tmp_path / "lock").exists()


def test_a_process_that_was_suspended_and_lost_its_lock_stops_before_it_writes(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        os.kill(other.pid, signal.SIGSTOP)
        with RunDir(tmp_path).locked():
            os.kill(other.pid, signal.SIGCONT)
            said, error = other.communicate("\n", timeout=30)
            assert other.returncode != 0
            assert "out" not in said
            assert "was taken over" in error
            assert f"pid={os.getpid()}\n" in (tmp_path / "lock").read_text(), "it does not release what it lost"


def test_a_step_is_not_put_in_its_place_by_a_process_that_lost_the_lock_nor_by_its_child(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    child = "import sys; from pathlib import Path; from rlhf_loop.files.locks import check; check(Path(sys.argv[1]))"
    folder = run.step(0, "snapshot")

    def of_child() -> str:
        done = subprocess.run([sys.executable, "-c", child, str(folder)], check=False, capture_output=True, text=True)
        return done.stderr

    def lose_it() -> None:
        with step_folder(folder, "key", {}) as partial:
            (partial / "file").touch()
            (tmp_path / "lock").write_text("somebody else's")

    with run.locked():
        check(folder)
        assert of_child() == ""
        with pytest.raises(UserError, match="was taken over"):
            lose_it()
        assert "was taken over" in of_child()
    assert not folder.exists()


def test_what_is_made_once_is_waited_for_and_who_makes_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with holder(tmp_path) as other:
        assert other.stdin is not None
        threading.Timer(2.0, lambda: other.stdin and (other.stdin.write("\n"), other.stdin.flush())).start()
        with locked(tmp_path / "lock", "a model", wait=True):
            assert other.wait(timeout=10) == 0
        who = f"process {other.pid} on {socket.gethostname()}"
    assert capsys.readouterr().err == f"a model is in use by {who}; waiting until it is done\n"


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(UserError, match=str(blocked)), RunDir(blocked / "run").locked():
        pass


def test_a_container_with_the_same_name_and_low_process_ids_is_another_machine(tmp_path: Path) -> None:
    """As a restarted pod: its host's name, its process's id, another process table."""
    namespace = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs process namespaces (unshare --pid)")
    with holder(tmp_path, *namespace) as other:
        with pytest.raises(InUse):
            taken(tmp_path)
        other.kill()
        other.wait()
        assert taken(tmp_path)


def test_a_process_of_an_earlier_version_that_is_alive_keeps_its_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": socket.gethostname(), "since": 0}))
    with pytest.raises(InUse, match="process 1 on"):
        taken(tmp_path)
