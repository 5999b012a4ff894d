"""`/v1/feedback`: what an application's users say of answers, under the response's id.

A request is one transaction: all of it is stored or nothing. With an `Idempotency-Key` a retry gets the first answer
again, and stores nothing twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlhf_loop.errors import StoreUnavailable, UserError
from rlhf_loop.feedback.asking.answers import ItemRecords, keep
from rlhf_loop.feedback.privacy import deletion
from rlhf_loop.feedback.store.adding import Transaction
from rlhf_loop.feedback.store.answered_requests import AnsweredRequest, find_answered, note_answered
from rlhf_loop.report import write_report
from rlhf_loop.server.access import Caller, require
from rlhf_loop.server.feedback.items import Item, ItemRefused, records_of
from rlhf_loop.server.service import Service

router = APIRouter(prefix="/v1", tags=["feedback"])

MOST_ITEMS = 1000

IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$", description="names the request, for retries of it"),
]
DryRun = Annotated[bool, Query(description="only check: store nothing")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A request with feedback: whose it is, its idempotency key, and whether it only asks for a check."""

    request: Request
    caller: Caller
    key: str | None
    dry_run: bool

    @property
    def service(self) -> Service:
        """What the request was sent to."""
        service: Service = self.request.app.state.service
        return service


async def _submission(
    request: Request,
    caller: Annotated[Caller, Depends(require("app"))],
    idempotency_key: IdempotencyKey = None,
    dry_run: DryRun = False,
) -> Submission:
    return Submission(request=request, caller=caller, key=idempotency_key, dry_run=dry_run)


FromApp = Annotated[Submission, Depends(_submission)]


class Record(BaseModel):
    """A piece of feedback that was stored; without an id in a dry run."""

    id: str | None
    kind: str


class Answer(BaseModel):
    """What one item became."""

    response_id: str
    records: list[Record]
    dry_run: bool


class Result(BaseModel):
    """What became of one item of several."""

    index: int
    status: int
    records: list[Record] = []
    error: dict[str, Any] | None = None


class Bulk(BaseModel):
    """Several items; each is checked on its own."""

    model_config = ConfigDict(extra="forbid")
    items: list[dict[str, Any]] = Field(
        min_length=1, max_length=MOST_ITEMS, description="as the body of /v1/feedback, each"
    )


class BulkAnswer(BaseModel):
    """What became of the items."""

    accepted: int
    refused: int
    results: list[Result]
    dry_run: bool


@router.post("/feedback", response_model=Answer)
async def feedback(item: Item, submission: FromApp) -> Response:
    """Stores what a user says of an answer. 404: an answer it names is not there; 422: what is wrong, and where."""
    service, dry_run = submission.service, submission.dry_run
    user = service.user_key(item.user) if item.user is not None else None
    last_round = await run_in_threadpool(lambda: service.round)

    def store(transaction: Transaction) -> dict[str, Any]:
        said = records_of(service, transaction, item, user, last_round)
        if not dry_run:
            keep(transaction, [said])
        return {"response_id": item.response_id, "records": said.summary(dry_run), "dry_run": dry_run}

    return await _once(submission, item.model_dump(mode="json"), store)


@router.post("/feedback/bulk", response_model=BulkAnswer)
async def bulk(body: Bulk, submission: FromApp) -> Response:
    """Stores up to 1000 items, those that are right; the answer says of each what became of it."""
    service, dry_run = submission.service, submission.dry_run
    checked = await run_in_threadpool(lambda: [_checked(service, values) for values in body.items])
    last_round = await run_in_threadpool(lambda: service.round)

    def store(transaction: Transaction) -> dict[str, Any]:
        results: list[dict[str, Any]] = []
        waiting: list[ItemRecords] = []
        named: set[str] = set()  # by the items that wait
        for index, (item, user, wrong) in enumerate(checked):
            if item is None:
                results.append({"index": index, "status": 422, "error": wrong})
                continue
            try:
                about = {item.response_id, item.preference.other_id if item.preference else item.response_id}
                if named & about:  # what the one before said must be there, to be superseded
                    keep(transaction, waiting)
                    waiting, named = [], set()
                said = records_of(service, transaction, item, user, last_round)
                results.append({"index": index, "status": 200, "records": said.summary(dry_run)})
                if not dry_run:
                    waiting.append(said)
                    named |= about
            except ItemRefused as error:
                results.append({"index": index, "status": error.status, "error": service.redact_all(error.body())})
        if waiting:
            keep(transaction, waiting)
        accepted = sum(result["status"] == 200 for result in results)
        counts = {"accepted": accepted, "refused": len(results) - accepted}
        return {**counts, "results": results, "dry_run": dry_run}

    return await _once(submission, {"items": body.items}, store)


@router.delete("/users/{user:path}", response_model=None, dependencies=[Depends(require("admin"))])
def forget(request: Request, user: Annotated[str, Path(min_length=1, max_length=200)]) -> Any:
    """Deletes all texts by and to a user of the applications, and says which models had learned from them."""
    service: Service = request.app.state.service
    try:
        runs = [] if service.run_dir is None else [service.run_dir]
        return deletion.delete_user(service.store, user, runs, rewrite_report=write_report)
    except StoreUnavailable:
        raise
    except UserError as error:  # a round runs
        raise HTTPException(409, str(error)) from None


def _checked(service: Service, values: dict[str, Any]) -> tuple[Item | None, str | None, dict[str, Any]]:
    """An item of several and the key of its user, or None and what is wrong with it."""
    try:
        item = Item.model_validate(values)
    except ValidationError as error:
        return None, None, service.redact_all(field_error(error.errors()[0]))  # it is kept for retries
    return item, service.user_key(item.user) if item.user is not None else None, {}


def field_error(error: Any) -> dict[str, Any]:
    """One of pydantic's errors in the words of OpenAI's API: `param` is the field."""
    if error["type"] == "json_invalid":
        message = f"the body is not JSON: {error['ctx']['error']}, at character {error['loc'][-1]}"
        return {"message": message, "type": "invalid_request", "param": None}
    place = [str(part) for part in error["loc"]]
    if error["type"] != "extra_forbidden":  # then the caller's own words, otherwise fields, and names of types
        place = [part for part in place if _FIELD.fullmatch(part)]
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "there is no such field"
    param = ".".join(place) or None
    return {"message": f"{param}: {message}" if param else message, "type": "invalid_request", "param": param}


_FIELD = re.compile(r"\w+|idempotency-key")


def _storable_key(service: Service, key: str) -> str:
    """An application's key as it is kept: a hash of one that holds what is not stored, such as a mail address."""
    return key if service.redact(key) == key else f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


async def _once(
    submission: Submission, body: dict[str, Any], store: Callable[[Transaction], dict[str, Any]]
) -> Response:
    """Runs `store` in a transaction; with a key, at most once, and gives a repetition the first answer."""
    service, key, dry_run = submission.service, submission.key, submission.dry_run
    try:
        text = json.dumps([submission.request.scope["path"], dry_run, body], sort_keys=True)
    except RecursionError:
        raise HTTPException(422, "the body is nested too deep; nothing that is understood is") from None
    request_hash = hashlib.sha256(text.encode()).hexdigest()
    token_id, kept_key = submission.caller.token_id, None if key is None else _storable_key(service, key)

    def work(transaction: Transaction) -> tuple[AnsweredRequest | None, str, list[str]]:
        earlier = None if kept_key is None else find_answered(transaction, token_id, kept_key)
        answer = store(transaction) if earlier is None else {}
        text = json.dumps(answer, ensure_ascii=False)
        if earlier is None and kept_key is not None and not dry_run:
            answered = AnsweredRequest(
                token_id=token_id, key=kept_key, request_hash=request_hash, status=200, body=text
            )
            note_answered(transaction, answered)
        stored = answer.get("results", [answer])
        return earlier, text, [record["kind"] for one in stored for record in one.get("records", ())]

    def look() -> tuple[AnsweredRequest | None, str, list[str]]:
        with service.store.dry_run() as transaction:
            return work(transaction)

    try:
        waiting = run_in_threadpool(look) if dry_run else asyncio.wrap_future(service.writer.submit(work))
        earlier, text, kinds = await waiting
    except ItemRefused as error:
        raise HTTPException(error.status, error.body()) from None
    if earlier is None:
        service.metrics.said(() if dry_run else kinds)
        return Response(text, media_type="application/json")
    if earlier.request_hash != request_hash:
        raise HTTPException(
            409,
            {
                "message": f"Idempotency-Key {key} was used for another request; use a new key for each request",
                "type": "idempotency_error",
                "param": "Idempotency-Key",
            },
        )
    return Response(
        earlier.body, earlier.status, media_type="application/json", headers={"Idempotency-Replayed": "true"}
    )
