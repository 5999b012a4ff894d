"""Who may do what: tokens by role, in a header for programs and in a cookie for pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fastapi import Request

Role = Literal["app", "annotator", "admin"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Whoever sent a request."""

    token_id: str  # "open" where access is open
    name: str  # of the token; the annotator's pseudonym
    role: Role


def require(*roles: Role) -> Callable[[Request], Caller]:
    """A dependency that gives the caller, or answers 401 (unknown) or 403 (another role). An admin may do everything."""

    def caller(request: Request) -> Caller:
        raise NotImplementedError

    return caller
