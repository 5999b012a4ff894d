"""What is told of rounds, how it is signed, and how a receiver checks it.

    X-RLHF-Loop-Signature: t=1760000000,v1=HMAC-SHA256(secret, "1760000000." + body), hexadecimal

The time is signed too, so an old message cannot be sent again later. Delivery is at least once: a receiver that must
not act twice remembers the `id`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from rlhf_loop import processes
from rlhf_loop.errors import UserError, shortened

SECRET_VARIABLE = "RLHF_LOOP_WEBHOOK_SECRET"
"""The environment variable that holds the secret that webhooks are signed with."""

SIGNATURE_HEADER = "X-RLHF-Loop-Signature"
TIMEOUT = 10.0  # seconds for one POST
COMMAND_TIMEOUT = 60.0  # seconds for one call of the command

Kind = Literal["started", "promoted", "rejected", "waiting", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened in a run that is watched. No texts of prompts, answers or feedback."""

    id: str  # the same each time it is sent
    kind: Kind
    run: str
    round: int
    at: float  # seconds since the epoch
    details: dict[str, Any] = field(default_factory=dict)  # policy, reason, error, ...

    def body(self) -> bytes:
        """As it is sent: JSON, UTF-8."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True).encode()


class DeliveryError(Exception):
    """An event did not arrive; the reason in words."""


def sign(secret: str, body: bytes, timestamp: int) -> str:
    """The value of the signature's header."""
    made = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={timestamp},v1={made}"


def verify_signature(
    secret: str, header: str, body: bytes, *, tolerance: float = 300.0, now: float | None = None
) -> bool:
    """For receivers: whether `body`, the raw bytes of the request, was signed with `secret` at most `tolerance` seconds
    ago. `header`: the value of `X-RLHF-Loop-Signature`; anything may stand in it."""
    parts = dict(part.strip().partition("=")[::2] for part in header.split(","))
    stamp, given = parts.get("t", ""), parts.get("v1", "")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 12 and given.isascii()):
        return False
    if abs((time.time() if now is None else now) - int(stamp)) > tolerance:
        return False
    expected = sign(secret, body, int(stamp)).partition("v1=")[2]
    return hmac.compare_digest(expected, given)


def check_url(url: str) -> str:
    """The URL, where an event may be sent to it; a `UserError` for what is not http or https."""
    try:
        parts = urlsplit(url)
        ok = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        ok = False
    if not ok:
        raise UserError(
            f"watch.webhooks: {shortened(url)!r} is no http or https URL; give one such as https://example.org/hook"
        )
    return url


def post(url: str, event: Event, secret: str) -> None:
    """Sends an event once, with a fresh signature. Redirects are not followed: they would lead elsewhere than the
    recipe says. Raises `DeliveryError` unless the answer is 2xx within `TIMEOUT`."""
    body = event.body()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "rlhf-loop",
        "X-RLHF-Loop-Event": event.id,
        SIGNATURE_HEADER: sign(secret, body, int(time.time())),
    }
    request = urllib.request.Request(check_url(url), data=body, headers=headers, method="POST")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT):
            return
    except urllib.error.HTTPError as error:
        error.close()
        raise DeliveryError(f"it answered {error.code} {error.reason}") from None
    except (OSError, ValueError) as error:  # no connection, no such host, too slow
        raise DeliveryError(str(getattr(error, "reason", error)) or type(error).__name__) from None
    except Exception as error:  # http.client's: not HTTP at all
        raise DeliveryError(f"{type(error).__name__}: {error}") from None


def call(command: str, event: Event) -> None:
    """Runs a command in a shell with the event on its input. Raises `DeliveryError` unless it exits with 0 within
    `COMMAND_TIMEOUT`; then it and all that it started are ended. What it leaves running after a good end is its own."""
    try:
        _call(command, event)
    except OSError as error:  # a full disk, no more processes
        raise DeliveryError(str(error)) from None


def _call(command: str, event: Event) -> None:
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as said,
    ):  # files: nobody waits for who holds a pipe
        given.write(event.body())
        given.seek(0)
        process = subprocess.Popen(
            command, shell=True, stdin=given, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
        )
        try:
            code = process.wait(timeout=COMMAND_TIMEOUT)
        except subprocess.TimeoutExpired:
            processes.stop(process, 1.0)
            raise DeliveryError(f"it took longer than {COMMAND_TIMEOUT:g} seconds") from None
        if code:
            said.seek(max(0, said.seek(0, os.SEEK_END) - 4096))
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise DeliveryError(f"it ended with exit code {code}{': ' + lines[-1] if lines else ''}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **values: Any) -> None:
        """None: the redirect counts as an answer that is not 2xx."""
