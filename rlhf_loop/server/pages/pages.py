"""What the pages have in common: their templates, and the styles and scripts they load."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlhf_loop.report.data import SHARED
from rlhf_loop.server.access import Caller
from rlhf_loop.server.service import Service

router = APIRouter(include_in_schema=False)

_HERE = Path(__file__).parent
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = {
    path.name: (path.read_bytes(), _TYPES[path.suffix])
    for path in sorted((_HERE / "static").iterdir())
    if path.suffix in _TYPES
}
_VERSIONS = {name: hashlib.sha256(content).hexdigest()[:12] for name, (content, _) in _FILES.items()}


def page(
    request: Request, template: str, caller: Caller | None = None, status: int = 200, **values: Any
) -> HTMLResponse:
    """A page, never kept by a cache. Every text in it is escaped."""
    service: Service = request.app.state.service
    text = _environment.get_template(template).render(
        caller=caller,
        run=service.recipe.name if service.recipe is not None else "",
        open_access=service.open_access,
        status=status,
        **values,
    )
    return HTMLResponse(text, status, headers={"Cache-Control": "no-store"})


@router.get("/static/{name}")
def static(name: str) -> Response:
    """A style or a script; addresses change with the content, so a browser may keep it."""
    if name not in _FILES:
        raise HTTPException(404, "there is no such file")
    content, kind = _FILES[name]
    return Response(content, media_type=kind, headers={"Cache-Control": "public, max-age=86400"})


def _address(name: str) -> str:
    return f"/static/{name}?v={_VERSIONS[name]}"


_environment = Environment(
    loader=FileSystemLoader([_HERE / "templates", SHARED]),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.globals["static"] = _address
