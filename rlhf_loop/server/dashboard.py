"""The dashboard page, the login page, and the files that pages load."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from rlhf_loop.server import pages

router = APIRouter(include_in_schema=False)
router.include_router(pages.router)


@router.get("/login")
def login(request: Request, failed: int = 0, next: str = "/") -> Response:
    """Asks for a token; `rlhf_loop.server.access` takes it."""
    return pages.page(request, "login.html", failed=bool(failed), next=next)
