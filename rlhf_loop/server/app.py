"""The service as an ASGI application: its routes, and what stands around all of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from rlhf_loop import __version__
from rlhf_loop.errors import StoreUnavailable, UserError
from rlhf_loop.feedback.store.answered_requests import forget_old_answers
from rlhf_loop.server import access
from rlhf_loop.server.chat import api as chat_api
from rlhf_loop.server.chat import responses_api
from rlhf_loop.server.feedback import api as feedback_api
from rlhf_loop.server.limits import BodyLimit
from rlhf_loop.server.logs import Observed
from rlhf_loop.server.pages import annotation, dashboard, pages
from rlhf_loop.server.service import Service

logger = logging.getLogger("rlhf_loop.server")

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""On every answer. Pages have their scripts and styles in files of their own: nothing inline runs."""


class Error(BaseModel):
    """What went wrong, as OpenAI's clients read it."""

    message: str
    type: str
    code: int
    param: str | None = None  # the field of the request


class ErrorAnswer(BaseModel):
    """The body of every answer that is no success."""

    error: Error


_STATUS = {
    400: "The request cannot be read",
    401: "A token is needed",
    403: "Another role is needed",
    404: "What is named is not there",
    408: "The body stopped on its way",
    409: "The idempotency key was used for another request; or the run is in use",
    413: "The body is too long",
    422: "A field is wrong; `error.param` names it",
    429: "Too many requests; `Retry-After` says when to come again",
    503: "There is no policy to answer now; `Retry-After` says when to come again",
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text} for status, text in _STATUS.items()
}


def create_app(service: Service) -> FastAPI:
    """The application that serves `service`; `uvicorn.run(create_app(service))` runs it.

    When it ends, answers that are being written are written and stored first, within `Service.stop_seconds`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.user_key, "")  # makes the keys now, not within a request
        await asyncio.to_thread(lambda: service.sessions)
        if service.policies is not None:
            service.policies.begin()
        tidying = asyncio.create_task(_tidy(service))
        yield
        tidying.cancel()
        await _end_answers(service)
        await asyncio.to_thread(service.writer.close)

    app = FastAPI(
        title="rlhf-loop",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        openapi_url=None,  # below, for callers that are known
    )
    app.state.service = service
    app.state.dashboard = dashboard.Dashboard(service)
    app.include_router(chat_api.router, responses=_ERRORS)
    app.include_router(responses_api.router, responses=_ERRORS)
    app.include_router(feedback_api.router, responses=_ERRORS)
    app.include_router(access.router)
    app.include_router(annotation.router)
    app.include_router(dashboard.router)
    _add_own_routes(app, service)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StoreUnavailable, _no_store)
    app.add_exception_handler(UserError, _wrong)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(BodyLimit, limits=service.limits)
    app.add_middleware(Observed, metrics=service.metrics, headers=SECURITY_HEADERS)
    return app


async def _end_answers(service: Service) -> None:
    """Lets answers be written to their end and stored, and ends the policies; what takes too long is given up."""
    if service.answers:
        await asyncio.wait(service.answers, timeout=service.stop_seconds)
    lost = list(service.answers)
    if service.policies is not None:
        await service.policies.close(0.1 if lost else 5.0)
    for answer in lost:
        answer.cancel()
    if lost:
        await asyncio.wait(lost)
        logger.error("answers were given up", extra={"fields": {"answers": len(lost), "after": service.stop_seconds}})


async def _tidy(service: Service) -> None:
    """Every hour: what is kept for retries is forgotten when it is old."""
    while True:
        with suppress(StoreUnavailable):  # then an hour later
            await asyncio.to_thread(forget_old_answers, service.store, time.time())
        await asyncio.sleep(3600)


def _add_own_routes(app: FastAPI, service: Service) -> None:
    known = [Depends(access.require("app", "annotator"))]

    @app.get("/openapi.json", include_in_schema=False, dependencies=known)
    def openapi() -> dict[str, Any]:
        return app.openapi()

    @app.get("/metrics", include_in_schema=False, dependencies=[Depends(access.require("app"))])
    def metrics() -> Response:
        text = service.metrics.text(
            open_questions=service.store.open_questions(),
            writing=len(service.answers),
            ready=service.policies is not None and service.policies.ready,
            restarts=service.policies.restarts if service.policies is not None else 0,
        )
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/healthz", include_in_schema=False)
    def live() -> dict[str, Any]:
        """Whether the process answers at all."""
        return {"live": True}

    @app.get("/healthz/ready", include_in_schema=False)
    def ready() -> JSONResponse:
        """Whether it can do its work: 503 while the store or the policy cannot."""
        store = service.store.is_usable()
        api = "off" if service.policies is None else "ready" if service.policies.ready else "starting"
        good = store and api != "starting"
        return JSONResponse({"ready": good, "store": store, "chat": api}, 200 if good else 503)


async def _refused(request: Request, error: Exception) -> Response:
    """An error as OpenAI's clients read it; whoever opens a page without being known is sent to the login."""
    assert isinstance(error, HTTPException)
    wants_page = request.method == "GET" and "text/html" in request.headers.get("Accept", "")
    if error.status_code == 401 and wants_page:
        return RedirectResponse(f"/login?next={quote(request.scope['path'])}", 303)
    detail: Any = error.detail
    if error.status_code == 404 and detail == "Not Found":
        path = request.scope["path"]
        detail = f"there is nothing at {path}; chat is at /v1/chat/completions, feedback at /v1/feedback"
    if wants_page and isinstance(detail, str):
        answer = pages.page(request, "error.html", status=error.status_code, message=detail)
        answer.headers.update(error.headers or {})
        return answer
    said = detail if isinstance(detail, dict) else {"message": detail, "type": "error"}
    return _answer(error.status_code, said, dict(error.headers or {}))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    status = 400 if request.scope["path"] in chat_api.OPENAI_S else 422
    return _answer(status, feedback_api.field_error({**first, "loc": first["loc"][1:]}))  # without body, query, header


async def _wrong(request: Request, error: Exception) -> Response:
    return _answer(400, {"message": str(error), "type": "error"})


async def _no_store(request: Request, error: Exception) -> Response:
    """Nothing was stored; the log says why, the caller need not know where the store is."""
    logger.error("the store cannot be used: %s", error)
    said = "the store cannot be used now, and nothing was stored; try again, or see the service's log"
    return _answer(503, {"message": said, "type": "error"}, {"Retry-After": "5"})


async def _failed(request: Request, error: Exception) -> Response:
    """A mistake of ours; the traceback goes to the log."""
    return _answer(500, {"message": "something went wrong here; the service's log says what", "type": "error"})


def _answer(status: int, said: dict[str, Any], headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"param": None, **said, "code": status}}, status, headers)
