"""The annotation page, and the requests that its script makes.

Whoever judges sees no policy and no id of an answer, and answers in an order of their own. What they submit is stored
as feedback by `rlhf_loop.feedback.asking.judging`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from rlhf_loop.feedback.asking import judging
from rlhf_loop.feedback.asking.calibration import add_calibration
from rlhf_loop.feedback.asking.judgements import Judgement, Remarks, shown_order
from rlhf_loop.feedback.asking.top_up import queue_more
from rlhf_loop.feedback.privacy.redaction import Redactor
from rlhf_loop.records import Question, Span
from rlhf_loop.server.access import Caller, require
from rlhf_loop.server.pages.markdown import render, sentences
from rlhf_loop.server.pages.pages import page
from rlhf_loop.server.service import Service

router = APIRouter(prefix="/annotate", include_in_schema=False)
annotator = require("annotator")
admin = require("admin")

Person = Annotated[Caller, Depends(annotator)]
Admin = Annotated[Caller, Depends(admin)]

CARDS_AT_START = 5
"""How many cards a run's service queues where nobody has anything to judge."""

_Id = Annotated[str, Field(min_length=1, max_length=200)]
_Text = Annotated[str, Field(max_length=20_000)]


def prepare(service: Service) -> list[str]:
    """What is done once, before people come: cards with known answers, some to judge where the queue is empty, figures.

    Returns what was done, in words. Raises `UserError` when the recipe's `annotation.calibration` cannot be read.
    """
    lines = []
    recipe = service.recipe
    if recipe is not None and recipe.annotation.calibration is not None:
        lines += add_calibration(service.store, recipe.annotation.calibration, recipe.evaluation.split).lines()
    automatic = recipe is not None and recipe.feedback.annotator is not None  # otherwise a run would wait for them
    if automatic and not judging.progress(service.store, "", 0).open:
        added = queue_more(service.store, recipe, CARDS_AT_START)
        if added:
            lines.append(f"the queue was empty: {added} cards from the newest answers were added, for the next round")
    service.activity.read()  # whole once, so that the dashboard answers at once
    return lines


@router.get("")
def annotate(request: Request, caller: Person) -> Response:
    """The page; its script asks for cards."""
    service = _service(request)
    settings = service.annotation
    return page(
        request,
        "annotate.html",
        caller,
        guideline=render(settings.guideline) if settings.guideline.strip() else "",
        tags=settings.tags,
        lease_seconds=settings.lease_minutes * 60,
        more=CARDS_AT_START if caller.role == "admin" else 0,
        next_round=service.round + 1,
        command=_next_command(service) if caller.role == "admin" else "",
    )


class Asking(BaseModel):
    """What comes with a request for a card: when the person's day began, in seconds since the epoch."""

    model_config = ConfigDict(extra="forbid")
    day_start: float = Field(0.0, allow_inf_nan=False)


class Holding(BaseModel):
    """A card that is held."""

    model_config = ConfigDict(extra="forbid")
    question: _Id


class Passage(BaseModel):
    """A marked passage of an answer; offsets in characters of its text, end exclusive."""

    model_config = ConfigDict(extra="forbid")
    start: int = Field(ge=0, le=10_000_000)
    end: int = Field(ge=1, le=10_000_000)
    label: Annotated[str, Field(max_length=200)] = ""
    comment: _Text = ""


class AboutAnswer(BaseModel):
    """What is said of one answer."""

    model_config = ConfigDict(extra="forbid")
    comment: _Text = ""
    tags: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(default_factory=list, max_length=50)
    spans: list[Passage] = Field(default_factory=list, max_length=200)
    edit: Annotated[str, Field(max_length=200_000)] | None = None


class Submission(BaseModel):
    """A judged card; `answers` in the order in which they were shown."""

    model_config = ConfigDict(extra="forbid")
    submission: str = Field(pattern=r"^[A-Za-z0-9-]{8,64}$")
    question: _Id
    verdict: Literal["first", "second", "tie", "both_bad", "skip"]
    strength: Literal["slightly", "clearly"] | None = None
    answers: list[AboutAnswer] = Field(min_length=2, max_length=2)
    visible_seconds: float | None = Field(None, ge=0, le=10_000_000, allow_inf_nan=False)


@router.post("/api/next")
def next_card(request: Request, asking: Asking, caller: Person) -> dict[str, Any]:
    """The card that the caller holds, or a new one; `card` is null when there is none."""
    service = _service(request)
    settings = service.annotation
    share = settings.calibration_share if settings.calibration is not None else 0.0
    found = judging.next_card(service.store, caller.name, settings.lease_minutes * 60, share)
    return {
        "card": None if found is None else _card(service, caller.name, found[0]),
        "progress": _progress(service, caller, asking.day_start),
    }


@router.post("/api/extend")
def extend(request: Request, holding: Holding, caller: Person) -> dict[str, bool]:
    """Keeps a card for longer; `held` is false when it has run out."""
    service = _service(request)
    seconds = service.annotation.lease_minutes * 60
    return {"held": judging.extend(service.store, caller.name, holding.question, seconds)}


@router.post("/api/release")
def release(request: Request, holding: Holding, caller: Person) -> dict[str, bool]:
    """Gives a card back that will not be judged now."""
    return {"released": judging.release(_service(request).store, caller.name, holding.question)}


@router.post("/api/submit")
def submit(request: Request, submission: Submission, caller: Person) -> dict[str, Any]:
    """Stores a judgement; sent again with the same `submission`, nothing more is stored."""
    service = _service(request)
    first, second = (_remarks(about) for about in submission.answers)
    judgement = Judgement(
        submission=submission.submission,
        question_id=submission.question,
        verdict=submission.verdict,
        strength=submission.strength,
        remarks=(first, second),
        visible_seconds=submission.visible_seconds,
    )
    judgement, redacted = _redact(judgement, service.redactor)
    kept = judging.submit(service.store, caller.name, judgement, service.round)
    return {"note": kept.note, "redacted": redacted}


@router.post("/api/undo")
def undo(request: Request, caller: Person) -> dict[str, bool]:
    """Takes the caller's last answer back; the card is then the next one."""
    service = _service(request)
    seconds = service.annotation.lease_minutes * 60
    return {"undone": judging.undo(service.store, caller.name, seconds, service.round) is not None}


@router.post("/api/more")
def more(request: Request, caller: Admin) -> dict[str, int]:
    """Queues some more cards from the newest answers."""
    service = _service(request)
    return {"added": queue_more(service.store, service.recipe, CARDS_AT_START)}


def _next_command(service: Service) -> str:
    """What starts the next round of the run; nothing where there is no run."""
    if service.run_dir is None:
        return ""
    run = service.run_dir
    return f"rlhf-loop run {run / 'recipe.yaml'} --run-dir {run} --rounds {service.round + 1}"


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _card(service: Service, who: str, question: Question) -> dict[str, Any]:
    """What the page shows of a question: nothing that tells where an answer comes from."""
    (prompt,) = service.store.prompts(ids=[question.prompt_id])
    by_id = {completion.id: completion for completion in service.store.completions(ids=[question.a_id, question.b_id])}
    ids = {"a": question.a_id, "b": question.b_id}
    shown = [by_id[ids[side]] for side in shown_order(who, question)]
    scores = service.store.scores(completion_ids=list(by_id))
    written = {score.completion_id: score.critique for score in scores if score.critique}
    return {
        "question": question.id,
        "messages": [{"role": message["role"], "html": render(message["content"])} for message in prompt.messages],
        "answers": [
            {
                "html": render(answer.text),
                "text": answer.text,
                "sentences": sentences(answer.text),
                "cut": answer.finish_reason == "length",
                "machine": written.get(answer.id, ""),
            }
            for answer in shown
        ],
    }


def _progress(service: Service, caller: Caller, day_start: float) -> dict[str, int]:
    found = judging.progress(service.store, caller.name, day_start)
    return {"today": found.today, "total": found.total, "open": found.open}


def _remarks(about: AboutAnswer) -> Remarks:
    spans = tuple(Span(start=s.start, end=s.end, label=s.label, comment=s.comment.strip()) for s in about.spans)
    return Remarks(comment=about.comment, tags=tuple(dict.fromkeys(about.tags)), spans=spans, edit=about.edit)


def _redact(judgement: Judgement, redactor: Redactor | None) -> tuple[Judgement, int]:
    """What people typed, without personal data; and how many pieces of it were taken out."""
    if redactor is None:
        return judgement, 0
    taken = 0

    def clean(text: str) -> str:
        nonlocal taken
        text, found = redactor.redact(text)
        taken += sum(found.values())
        return text

    first, second = (
        replace(
            said,
            comment=clean(said.comment),
            tags=tuple(dict.fromkeys(map(clean, said.tags))),
            spans=tuple(replace(s, label=clean(s.label), comment=clean(s.comment)) for s in said.spans),
            edit=None if said.edit is None else clean(said.edit),
        )
        for said in judgement.remarks
    )
    return replace(judgement, remarks=(first, second)), taken
