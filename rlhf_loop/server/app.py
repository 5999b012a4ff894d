"""The service as an ASGI application: its routes, and what stands around all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from rlhf_loop import __version__
from rlhf_loop.errors import UserError
from rlhf_loop.server import access, annotation, dashboard
from rlhf_loop.server.limits import BodyLimit
from rlhf_loop.server.service import Service

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""On every answer. Pages have their scripts and styles in files of their own: nothing inline runs."""


def create_app(service: Service) -> FastAPI:
    """The application that serves `service`; `uvicorn.run(create_app(service))` runs it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield

    app = FastAPI(
        title="rlhf-loop",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        openapi_url=None,  # below, for callers that are known
    )
    app.state.service = service
    app.include_router(access.router)
    app.include_router(annotation.router)
    app.include_router(dashboard.router)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(UserError, _wrong)
    app.add_middleware(BodyLimit, limits=service.limits)

    @app.get("/openapi.json", include_in_schema=False, dependencies=[Depends(access.require("app", "annotator"))])
    def openapi() -> dict[str, Any]:
        return app.openapi()

    return app


async def _refused(request: Request, error: Exception) -> Response:
    """An error as OpenAI's clients read it; whoever opens a page without being known is sent to the login."""
    assert isinstance(error, HTTPException)
    wants_page = request.method == "GET" and "text/html" in request.headers.get("Accept", "")
    if error.status_code == 401 and wants_page:
        return RedirectResponse(f"/login?next={quote(request.url.path)}", 303)
    return JSONResponse(
        {"error": {"message": error.detail, "type": "error", "code": error.status_code}},
        error.status_code,
        error.headers,
    )


async def _wrong(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": {"message": str(error), "type": "error", "code": 400}}, 400)
