"""The dashboard: what the rounds came to, how the queue moves, how people judge, and where their feedback went.

Drawn on the server from what is there; kept for some seconds, so that looking at it costs the service nothing.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.provenance.conversation_records import trace
from rlhf_loop.feedback.quality.activity import Activity
from rlhf_loop.report.data import Round, read_rounds
from rlhf_loop.run_dir import RunDir
from rlhf_loop.server.access import Caller, require
from rlhf_loop.server.pages import pages
from rlhf_loop.server.pages.drawing import Point, counts_over_time, shares_over_rounds
from rlhf_loop.server.service import Service

router = APIRouter(include_in_schema=False)
router.include_router(pages.router)
viewer = require("annotator")
admin = require("admin")

KEPT_SECONDS = 5.0
"""How old the figures may be."""


@router.get("/login")
def login(request: Request, failed: int = 0, next: Annotated[str, Query(max_length=500)] = "/") -> Response:
    """Asks for a token, where any was made; `rlhf_loop.server.access` takes it."""
    if request.app.state.service.open_access:
        return RedirectResponse("/", 303)
    return pages.page(request, "login.html", failed=bool(failed), next=next)


@router.get("/")
def dashboard(request: Request, caller: Annotated[Caller, Depends(viewer)]) -> Response:
    """The dashboard of an admin; annotators go on to their cards."""
    if caller.role != "admin":
        return RedirectResponse("/annotate", 303)
    return pages.page(request, "dashboard.html", caller, **request.app.state.dashboard.figures())


@router.get("/trace")
def where_did_it_go(
    request: Request, caller: Annotated[Caller, Depends(admin)], id: Annotated[str, Query(max_length=300)] = ""
) -> Response:
    """What a piece of feedback, a person, a model or an answer led to."""
    service: Service = request.app.state.service
    wanted = id.strip()
    user = service.user_key(wanted) if wanted else None
    found = trace(service.store, wanted, service.round, user) if wanted else None
    return pages.page(request, "trace.html", caller, wanted=wanted, trace=found, when=_when)


class Dashboard:
    """What the dashboard of a service shows, at most `KEPT_SECONDS` old."""

    def __init__(self, service: Service):
        self.service = service
        self._lock = threading.Lock()
        self._read_at = -math.inf
        self._figures: dict[str, Any] = {}

    def figures(self) -> dict[str, Any]:
        """The values of the page's template."""
        with self._lock:
            if time.monotonic() - self._read_at > KEPT_SECONDS:
                self._figures = _figures(self.service)
                self._read_at = time.monotonic()
            return self._figures


def _figures(service: Service) -> dict[str, Any]:
    activity = service.activity.read()
    rounds, problem = _rounds(service)
    promoted = service.store.promotions()
    return {
        "rounds": [_round_row(round) for round in rounds],
        "problem": problem,
        "win_rates": _win_rates(rounds),
        "next_round": service.round + 1 if rounds else None,
        "simulated": service.recipe is not None and service.recipe.feedback.annotator is not None,
        "promoted": promoted[-1] if promoted else None,
        "promotions": list(reversed(promoted))[:8],
        "activity": activity,
        "hours": counts_over_time("Pieces of feedback an hour", [(_hour(at), n) for at, n in activity.hours], 6),
        "days": counts_over_time("Pieces of feedback a day", [(_day(at), n) for at, n in activity.days], 3),
        "total": sum(activity.kinds.values()),
        "biased": _is_biased(activity),
        "when": _when,
        "now": time.time(),
    }


def _rounds(service: Service) -> tuple[list[Round], str]:
    """The rounds of the run, newest last, and what keeps them from being read, if anything does."""
    if service.run_dir is None:
        return [], ""
    try:
        rounds = read_rounds(RunDir(service.run_dir))
        for round in rounds:
            _round_row(round)  # reads its files
    except UserError as error:
        return [], str(error)
    return rounds, ""


def _round_row(round: Round) -> dict[str, Any]:
    evaluation = round.evaluation if round.number else {}  # the base against itself says nothing
    promoted = round.decision.get("promoted")
    asked = round.json("ask", "summary.json")
    checked = round.json("snapshot", "validation.json")
    pairs = checked.get("pairs")
    return {
        "number": round.number,
        "complete": round.complete,
        "running": None if round.complete else next(reversed(round.steps), None),
        "base": evaluation.get("win_rate_vs_base"),
        "previous": evaluation.get("win_rate_vs_previous"),
        "kl": (evaluation.get("kl") or {}).get("per_completion"),
        "decision": None if promoted is None else "promoted" if promoted else "kept",
        "reason": round.decision.get("reason", ""),
        "pairs": pairs.get("train") if isinstance(pairs, dict) else None,
        "asked": asked.get("questions"),
        "seconds": round.manifest.get("seconds"),
    }


def _win_rates(rounds: list[Round]) -> Any:
    def points(name: str) -> list[Point]:
        found = []
        for round in rounds:
            rate = round.evaluation.get(name) if round.number else None
            if rate and rate.get("mean") is not None:
                hollow = bool(round.decision) and not round.decision.get("promoted")
                found.append(
                    Point(
                        round=round.number,
                        value=rate["mean"],
                        low=rate.get("low"),
                        high=rate.get("high"),
                        hollow=hollow,
                    )
                )
        return found

    return shares_over_rounds(
        "Win-rate on held-out prompts",
        [
            ("against the base policy", "blue", points("win_rate_vs_base")),
            ("against the last promoted policy", "orange", points("win_rate_vs_previous")),
        ],
    )


def _is_biased(activity: Activity) -> bool:
    """Whether the answer shown first wins more or less often than by chance, at 95%."""
    first = activity.first_shown_wins
    return first is not None and not first.low <= 0.5 <= first.high


def _when(at: float) -> str:
    """A time as people read it, in UTC; a dash where none was noted."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at)) if at > 0 else "–"


def _hour(at: float) -> str:
    return time.strftime("%H:00", time.gmtime(at))


def _day(at: float) -> str:
    return time.strftime("%d %b", time.gmtime(at))
