"""Logs as lines of JSON, and a request id on everything: in the log, in the answer, and taken from whoever calls.

Never in them: texts of conversations or feedback (but see `--log-texts`), query strings, tokens, names of users.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
from contextvars import ContextVar
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlhf_loop.server.metrics import Metrics

HEADER = "X-Request-Id"
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_USABLE = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_QUIET = ("/healthz", "/metrics", "/static")

logger = logging.getLogger("rlhf_loop.server")


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, message, request id, and its `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        values: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if (id := _request_id.get()) is not None:
            values["request_id"] = id
        values |= getattr(record, "fields", {})
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False, default=str)


def to_stderr() -> None:
    """Sends the service's log, and uvicorn's errors, to stderr as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in (("rlhf_loop.server", logging.INFO), ("uvicorn", logging.WARNING)):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(level)


class Observed:
    """Gives each request an id, security headers to its answer, a line to the log, and counts it."""

    def __init__(self, app: ASGIApp, metrics: Metrics, headers: dict[str, str]):
        self.app = app
        self.metrics = metrics
        self.headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(HEADER.lower().encode(), b"").decode("latin-1")
        id = given if _USABLE.fullmatch(given) else secrets.token_hex(12)
        _request_id.set(id)
        started = time.perf_counter()
        status, seconds = 500, 0.0

        async def answer(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], time.perf_counter() - started
                headers = MutableHeaders(scope=message)
                headers[HEADER] = id
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
                if not scope["path"].startswith("/static"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self.app(scope, receive, answer)
        finally:
            self._note(scope, status, seconds or time.perf_counter() - started, time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float, whole: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        self.metrics.request(scope["method"], route, status, seconds)
        if not route.startswith(_QUIET):
            caller = scope.get("state", {}).get("caller")
            fields = {
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(whole * 1000, 1),
                "token": caller.token_id if caller is not None else None,
            }
            logger.info("request", extra={"fields": fields})
