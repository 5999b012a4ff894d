"""Events arrive signed, at least once, and are never lost or sent where they should not go."""

from __future__ import annotations

import errno
import hashlib
import hmac
import http.server
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_loop.errors import UserError
from rlhf_loop.watch import events
from rlhf_loop.watch.events import DeliveryError, Event, call, check_url, post, sign, verify_signature
from rlhf_loop.watch.outbox import ATTEMPTS, COMMAND, Outbox

SECRET = "a secret that both know"


def event(id: str = "e1", kind: events.Kind = "promoted") -> Event:
    return Event(id=id, kind=kind, run="smoke", round=3, at=1e9, details={"reason": "größer als 0.5"})


class Receiver(http.server.BaseHTTPRequestHandler):
    answers: list[int]
    requests: list[tuple[Message, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.requests.append((self.headers, body))
        code = self.answers.pop(0) if self.answers else 204
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "file:///etc/passwd")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[tuple[str, type[Receiver]]]:
    handler = type("Handler", (Receiver,), {"answers": [], "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", handler
    server.shutdown()
    server.server_close()


def test_an_event_arrives_with_a_signature_that_the_receiver_can_check(receiver: tuple[str, type[Receiver]]) -> None:
    url, handler = receiver
    post(url, event(), SECRET)
    ((headers, body),) = handler.requests
    assert json.loads(body) == {
        "id": "e1", "kind": "promoted", "run": "smoke", "round": 3, "at": 1e9, "details": {"reason": "größer als 0.5"},
    }  # fmt: skip
    header = headers["X-RLHF-Loop-Signature"]
    assert verify_signature(SECRET, header, body)
    assert not verify_signature("another secret", header, body)
    assert not verify_signature(SECRET, header, body + b" ")
    stamp, _, given = header.partition(",v1=")
    message = stamp.removeprefix("t=").encode() + b"." + body
    assert given == hmac.new(SECRET.encode(), message, hashlib.sha256).hexdigest()


def test_an_old_message_is_not_taken_again() -> None:
    header = sign(SECRET, b"{}", 1000)
    assert verify_signature(SECRET, header, b"{}", now=1200)
    assert not verify_signature(SECRET, header, b"{}", now=1301)
    assert not verify_signature(SECRET, header, b"{}", now=600)
    assert not verify_signature(SECRET, header.replace("t=1000", "t=1200"), b"{}", now=1200)


@given(st.text(max_size=80))
def test_any_header_that_is_not_ours_is_refused(header: str) -> None:
    assert not verify_signature(SECRET, header, b"{}", now=1000)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://example.org/x", "gopher://x", "example.org", "", "http://", "http://[", "http:x"],
)
def test_only_http_and_https_are_called(url: str) -> None:
    with pytest.raises(UserError, match="no http or https URL"):
        check_url(url)
    with pytest.raises(UserError):
        post(url, event(), SECRET)


def test_redirects_and_errors_are_failures_and_are_not_followed(receiver: tuple[str, type[Receiver]]) -> None:
    url, handler = receiver
    for code in (302, 404, 500):
        handler.answers.append(code)
        with pytest.raises(DeliveryError, match=str(code)):
            post(url, event(), SECRET)
    assert len(handler.requests) == 3
    with pytest.raises(DeliveryError, match="refused"):
        post("http://127.0.0.1:1/hook", event(), SECRET)


def test_a_receiver_that_hangs_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(events, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(DeliveryError, match="timed out"):
            post(f"http://127.0.0.1:{silent.getsockname()[1]}/", event(), SECRET)


def test_a_command_gets_the_event_on_its_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(f"cat > {tmp_path / 'event.json'}", event())
    assert json.loads((tmp_path / "event.json").read_text())["id"] == "e1"
    with pytest.raises(DeliveryError, match="exit code 3: no room"):
        call("echo no room >&2; exit 3", event())
    monkeypatch.setattr(events, "COMMAND_TIMEOUT", 0.1)
    with pytest.raises(DeliveryError, match="longer than"):
        call("exec sleep 5", event())


def test_a_command_that_hangs_with_children_prints_bytes_or_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeliveryError, match="exit code 1: caf\ufffd"):
        call("head -c 1000000 /dev/zero >&2; printf '\\ncaf\\351\\n' >&2; exit 1", event())
    long = Event(id="e", kind="failed", run="r", round=1, at=0.0, details={"error": "x" * 1_000_000})
    call("true", long)  # reads nothing
    call(f"sleep 30 & echo $! > {tmp_path}/left", event())  # leaves something running
    os.kill(int((tmp_path / "left").read_text()), signal.SIGKILL)
    monkeypatch.setattr(events, "COMMAND_TIMEOUT", 0.5)
    with pytest.raises(DeliveryError, match="longer than"):
        call(f"trap '' TERM; sleep 3600 & echo $! > {tmp_path}/pid; wait; sleep 3600", event())
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_command_that_cannot_be_started_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for place, name in ((events.tempfile, "TemporaryFile"), (events.subprocess, "Popen")):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, full)
            with pytest.raises(DeliveryError, match="No space left"):
                call("true", event())


def until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_event_is_sent_again_until_it_arrives_with_the_same_id(
    receiver: tuple[str, type[Receiver]], tmp_path: Path
) -> None:
    url, handler = receiver
    handler.answers += [500, 503]
    said: list[str] = []
    outbox = Outbox(tmp_path / "watch.json", [url], secret=SECRET, say=said.append, first_delay=0.01)
    outbox.start()
    outbox.change(event(), told=3)
    until(lambda: not outbox.memory.pending)
    outbox.stop(1)
    assert [json.loads(body)["id"] for _, body in handler.requests] == ["e1"] * 3
    assert len(said) == 1
    assert "it is tried again" in said[0]
    assert json.loads((tmp_path / "watch.json").read_text()) == {
        "told": 3, "waiting_after": None, "failure": None, "pending": [],
    }  # fmt: skip


def test_what_was_not_delivered_waits_in_the_file_for_the_next_watcher(
    receiver: tuple[str, type[Receiver]], tmp_path: Path
) -> None:
    url, handler = receiver
    before = Outbox(tmp_path / "watch.json", [url, COMMAND], secret=SECRET, command=f"cat >> {tmp_path / 'told'}")
    before.change(event("e1", "started"), event("e2"))  # the process ends here, before anything was sent
    after = Outbox(tmp_path / "watch.json", [url, COMMAND], secret=SECRET, command=f"cat >> {tmp_path / 'told'}")
    after.start()
    after.stop(10)
    assert sorted(json.loads(body)["id"] for _, body in handler.requests) == ["e1", "e2"]
    assert (tmp_path / "told").read_text().count('"kind"') == 2
    assert after.memory.pending == []


def test_a_receiver_that_the_recipe_names_no_longer_gets_nothing_more(
    receiver: tuple[str, type[Receiver]], tmp_path: Path
) -> None:
    url, handler = receiver
    Outbox(tmp_path / "watch.json", [url, COMMAND], secret=SECRET, command="true").change(event())
    after = Outbox(tmp_path / "watch.json", [COMMAND], command=f"cat >> {tmp_path / 'told'}")
    after.start()
    after.stop(10)
    assert handler.requests == []
    assert (tmp_path / "told").exists()
    assert after.memory.pending == []


def test_events_arrive_although_the_disk_is_full_and_the_clock_was_set_back(
    receiver: tuple[str, type[Receiver]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = receiver
    now, said = [1e9], []
    handler.answers += [500]
    outbox = Outbox(tmp_path / "w.json", [url], secret=SECRET, say=said.append, clock=lambda: now[0])
    outbox.change(event("e1"), event("e2"))

    def full(file: Path, value: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr("rlhf_loop.watch.outbox.write_json", full)
    outbox.deliver_due()
    assert [one.event.id for one in outbox.memory.pending] == ["e1"]
    assert any("the disk is full" in line for line in said)
    now[0] -= 1e6
    outbox.start()
    until(lambda: not outbox.memory.pending)
    outbox.stop(1)
    assert [json.loads(body)["id"] for _, body in handler.requests] == ["e1", "e2", "e1"]


def test_a_dead_receiver_keeps_neither_the_others_nor_the_watcher(
    receiver: tuple[str, type[Receiver]], tmp_path: Path
) -> None:
    url, handler = receiver
    now = [0.0]
    dead = "http://127.0.0.1:1/hook"
    said: list[str] = []
    outbox = Outbox(tmp_path / "w.json", [dead, url], secret=SECRET, say=said.append, clock=lambda: now[0])
    outbox.change(event())
    waits = []
    while outbox.memory.pending:
        outbox.deliver_due()
        if outbox.memory.pending:
            (one,) = outbox.memory.pending
            waits.append(one.due - now[0])
            now[0] = one.due
    assert len(handler.requests) == 1
    assert waits[:5] == [1, 2, 4, 8, 16]
    assert max(waits) == 3600
    assert len(waits) == ATTEMPTS - 1
    assert "never took `promoted` of round 3, given up" in said[-1]


def test_telling_takes_no_time_from_the_watcher(tmp_path: Path) -> None:
    gate, told = tmp_path / "gate", tmp_path / "told"
    outbox = Outbox(tmp_path / "w.json", [COMMAND], command=f"until [ -e {gate} ]; do sleep 0.05; done; touch {told}")
    outbox.start()
    outbox.change(event())
    assert not told.exists()
    gate.touch()
    outbox.stop(60)
    assert told.exists()


def test_the_python_of_the_pages_runs() -> None:
    for name in ("watch.md", "privacy.md"):
        page = (Path(__file__).parents[2] / "docs" / name).read_text()
        for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(code, {})
