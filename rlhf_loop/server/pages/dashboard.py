"""The dashboard: what the rounds came to, how the queue moves, how people judge, and where their feedback went.

Drawn on the server from what is there; kept for some seconds, so that looking at it costs the service nothing.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.provenance.conversation_records import trace
from rlhf_loop.feedback.quality.activity import Activity
from rlhf_loop.feedback.store import quotas
from rlhf_loop.report.complaints import outcomes_of
from rlhf_loop.report.data import Round, read_rounds
from rlhf_loop.run_dir import RunDir
from rlhf_loop.server.access import Caller, require
from rlhf_loop.server.pages import pages
from rlhf_loop.server.service import Service

if TYPE_CHECKING:
    from rlhf_loop.report.charts import Chart

router = APIRouter(include_in_schema=False)
router.include_router(pages.router)
viewer = require("annotator")
admin = require("admin")

KEPT_SECONDS = 5.0
"""How old the figures may be."""


@router.get("/login")
def login(
    request: Request, failed: int = 0, then: Annotated[str, Query(max_length=500, alias="next")] = "/"
) -> Response:
    """Asks for a token, where any was made; `rlhf_loop.server.access` takes it."""
    if request.app.state.service.open_access:
        return RedirectResponse("/", 303)
    return pages.page(request, "login.html", failed=bool(failed), next=then)


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
    rounds = _rounds(service)[0] if found else []
    complaints = outcomes_of(rounds, [piece.id for piece in found.pieces]) if found else {}
    return pages.page(request, "trace.html", caller, wanted=wanted, trace=found, complaints=complaints, when=_when)


class Dashboard:
    """What the dashboard of a service shows, at most `KEPT_SECONDS` old."""

    def __init__(self, service: Service):
        self.service = service
        self._lock = threading.Lock()
        self._read_at = -math.inf
        self._figures: dict[str, Any] = {}
        self._charts: dict[str, tuple[Any, Chart | None]] = {}

    def figures(self) -> dict[str, Any]:
        """The values of the page's template."""
        with self._lock:
            if time.monotonic() - self._read_at > KEPT_SECONDS:
                self._figures = self._read()
                self._read_at = time.monotonic()
            return self._figures

    def _read(self) -> dict[str, Any]:
        service = self.service
        activity = service.activity.read()
        rounds, problem = _rounds(service)
        of_run = RunDir(service.run_dir).promotions() if service.run_dir is not None else None
        promoted = service.store.promotions() if of_run is None else of_run
        return {
            "rounds": rounds,
            "asked_again": any(round.complaints for round in rounds),
            "problem": problem,
            "next_round": service.round + 1 if rounds else None,
            "annotator": _annotator(service),
            "promoted": promoted[-1] if promoted else None,
            "promotions": list(reversed(promoted))[:8],
            "usage": quotas.usage(service.store),
            "activity": activity,
            "recent": any(count for _, count in [*activity.hours, *activity.days]),
            "total": sum(activity.kinds.values()),
            "biased": _is_biased(activity),
            "when": _when,
            "now": time.time(),
            **self._drawn(rounds, activity),
        }

    def _drawn(self, rounds: list[Round], activity: Activity) -> dict[str, Chart | None]:
        """The charts; each is drawn when what it shows has changed."""
        # matplotlib takes most of a second to import; `serve` begins it in a thread
        from rlhf_loop.report import charts
        from rlhf_loop.report.round_charts import win_rate_chart, win_rates

        hours, days = [(_hour(at), n) for at, n in activity.hours], [(_day(at), n) for at, n in activity.days]

        def chart(name: str, draw: Callable[[Any], Chart | None], content: Any) -> Chart | None:
            if self._charts.get(name, (None, None))[0] != content:
                self._charts[name] = (content, draw(content))
            return self._charts[name][1]

        return {
            "win_rates": chart("win_rates", win_rate_chart, win_rates(rounds)),
            "hours": chart("hours", partial(charts.over_time, "Pieces of feedback an hour", every=6), hours),
            "days": chart("days", partial(charts.over_time, "Pieces of feedback a day", every=3), days),
        }


def _rounds(service: Service) -> tuple[list[Round], str]:
    """The rounds of the run, newest last, and what keeps them from being read, if anything does."""
    if service.run_dir is None:
        return [], ""
    try:
        rounds = read_rounds(RunDir(service.run_dir))
        for round in rounds:  # a damaged file is told here, not within the template
            _ = round.evaluation, round.decision, round.pairs, round.last_step, round.complaints, round.check_results
    except UserError as error:
        return [], str(error)
    return rounds, ""


def _annotator(service: Service) -> str | None:
    """Who answers in the place of people; None where people are asked."""
    annotator = service.recipe.feedback.annotator if service.recipe is not None else None
    return None if annotator is None else annotator.called


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
