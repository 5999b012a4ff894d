"""Who asks an endpoint: many questions at a time, each once, within a budget; what is answered stays answered.

Retries with back-off and jitter after 408, 409, 429, 5xx, lost connections and time-outs are the `openai` package's:
0.5 s doubled up to 8 s, or as long as `Retry-After` says, up to two minutes.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rlhf_loop.endpoints.answers import FILE, Answers, Reply
from rlhf_loop.endpoints.asks import Ask, Unanswered, Unreadable, key_of, messages_of, parsed, reason_of
from rlhf_loop.endpoints.budget import NoRoom, held, most_tokens
from rlhf_loop.endpoints.settings import EndpointSettings
from rlhf_loop.errors import UserError, shortened
from rlhf_loop.near import did_you_mean
from rlhf_loop.progress import Count

if TYPE_CHECKING:
    import openai

T = TypeVar("T")

TRIES = 2
"""How often a question is asked whose answer is not of the wanted form."""

IN_A_ROW = 8
"""Questions in a row that the server fails on, after all retries, before nothing more is asked."""


class Client:
    """One endpoint of a recipe, with the answers that a run keeps."""

    def __init__(self, name: str, settings: EndpointSettings, answers: Answers, progress: Count | None = None):
        """`progress`: told of how many questions are answered, wherever `ask` is given none of its own.

        Raises `UserError` where the variable with the key is not set, or the `openai` package is missing."""
        self.name = name
        self.settings = settings
        self.answers = answers
        self.progress = progress
        self._key = api_key_of(name, settings)
        self._plain = False  # the server refused optional fields
        self._failed_in_a_row = 0
        self._has_answered = False
        self._stopped: UserError | None = None
        _openai(name)

    def ask(
        self, asks: Sequence[Ask], read: Callable[[Reply], T], progress: Count | None = None
    ) -> list[T | Unanswered]:
        """What `read` makes of the answer to each, in order.

        `read` raises `Unreadable` for an answer that is not of the wanted form: the question is asked once more, and is
        then unanswered. Raises `UserError` where the budget is spent or the server answers nobody, after the requests
        that were on their way came back; what was answered is kept, and is not asked again.
        """
        keys = [key_of(ask, self.settings.identity) for ask in asks]
        different = dict(zip(reversed(keys), reversed(asks), strict=True))
        found = _run(self._ask_all(dict(reversed(different.items())), read, progress or self.progress))
        return [found[key] for key in keys]

    async def _ask_all(
        self, asks: Mapping[str, Ask], read: Callable[[Reply], T], progress: Count | None
    ) -> dict[str, T | Unanswered]:
        found: dict[str, T | Unanswered] = {}
        tally = _Tally()
        waiting: Iterator[tuple[str, Ask]] = iter(asks.items())
        self._stopped, self._failed_in_a_row = None, 0

        async def work(server: openai.AsyncOpenAI) -> None:
            for key, ask in waiting:  # shared: each takes the next
                if self._stopped is not None:
                    return
                try:
                    found[key] = await self._answer(server, key, ask, read, tally)
                except UserError as error:
                    self._stopped = self._stopped or error
                    return
                if progress:
                    progress(len(found), len(asks))

        try:
            async with self._server() as server:
                await asyncio.gather(*(work(server) for _ in range(min(self.settings.concurrency, len(asks)))))
        finally:
            self.answers.count(self.name, cached=tally.cached, failures=tally.failures, unreadable=tally.unreadable)
        if self._stopped is not None:
            raise self._stopped
        return found

    async def _answer(
        self, server: openai.AsyncOpenAI, key: str, ask: Ask, read: Callable[[Reply], T], tally: _Tally
    ) -> T | Unanswered:
        reason = ""
        for attempt in range(TRIES):
            place = key if attempt == 0 else f"{key}/{attempt}"
            reply = self.answers.find(place)
            tally.cached += reply is not None
            try:
                if reply is None:
                    most = most_tokens({**self._body(ask), **self._optional(ask)}, self.settings.max_answer_tokens)
                    async with held(self.answers, self.name, self.settings, most, self._give_up):
                        asked = await self._send(server, ask)
                        if isinstance(asked, Unanswered):
                            tally.failures += 1
                            return asked
                        reply = self.answers.keep(place, self.name, asked, ask.about)
                    self._check_usage(reply)
                return read(reply)
            except NoRoom as too_large:
                raise self._no_room(too_large.tokens) from None
            except Unreadable as error:
                tally.unreadable += 1
                reason = str(error)
        tally.failures += 1
        return Unanswered(reason=reason)

    async def _send(self, server: openai.AsyncOpenAI, ask: Ask) -> Reply | Unanswered:
        """One answer of the server, or why there is none. Raises `UserError` where it would answer nobody."""
        import openai

        optional = {} if self._plain else self._optional(ask)
        try:
            try:
                reply = await self._post(server, {**self._body(ask), **optional})
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                if not optional:
                    raise
                reply = await self._post(server, self._body(ask))
                self._plain = True  # it does not know the fields
        except openai.APIError as error:
            return self._failed(error)
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise Unreadable(self._failed(error).reason) from None
        self._failed_in_a_row, self._has_answered = 0, True
        return reply

    async def _post(self, server: openai.AsyncOpenAI, body: Mapping[str, Any]) -> Reply:
        raw = await server.chat.completions.with_raw_response.create(
            model=self.settings.model, messages=[], extra_body=dict(body)
        )
        return parsed(json.loads(raw.text))

    def _failed(self, error: Exception) -> Unanswered:
        """Why a question has no answer; raises `UserError` where others would have none either."""
        import openai

        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        told = self._scrubbed(str(error))
        where = f"endpoints.{self.name}: {self.settings.base_url}"
        if isinstance(error, openai.APIStatusError) and error.response.has_redirect_location:
            place = self._scrubbed(error.response.headers["location"])
            raise UserError(
                f"{where} sends requests on to {place} (HTTP {status}), and neither key nor texts go where the recipe "
                "does not say; set `base_url` to the address that answers"
            )
        if status in (401, 403):
            named = self.settings.api_key_env
            raise UserError(
                f"{where} refuses the key ({told}); "
                + (f"check what is in {named}" if named else "name the variable that holds one in `api_key_env`")
            )
        if status == 404:
            raise UserError(f"{where} knows no such address or model ({told}); check `base_url` and `model`")
        if status == 429:
            raise UserError(
                f"{where} takes no more after {self.settings.max_retries} retries ({told}). {_KEPT}; lower "
                "`concurrency`, or wait until the server's own limit allows more"
            )
        reason = reason_of(error, status)
        if status is not None and status < 500 and self._has_answered:
            return Unanswered(reason=reason)  # it is the question, such as one that is too long
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= IN_A_ROW:
            raise UserError(
                f"{where} answers nobody: {self._failed_in_a_row} questions in a row failed, the last because {reason} "
                f"({told}). {_KEPT}: see to the server"
            )
        return Unanswered(reason=reason)

    def _body(self, ask: Ask) -> dict[str, Any]:
        """The request; the package writes it over its own fields."""
        settings = self.settings
        body = {
            "model": settings.model,
            "messages": messages_of(ask),
            "temperature": settings.temperature,
            "max_tokens": settings.max_answer_tokens,
            **ask.fields,
            **settings.body,
        }
        return {name: value for name, value in body.items() if value is not None}

    def _optional(self, ask: Ask) -> dict[str, Any]:
        optional = {name: value for name, value in ask.optional.items() if name not in self.settings.body}
        if ask.schema is not None and self.settings.structured:
            named = {"name": "answer", "strict": True, "schema": dict(ask.schema)}
            optional["response_format"] = {"type": "json_schema", "json_schema": named}
        return optional

    def _server(self) -> openai.AsyncOpenAI:
        """The package's client; each request, retries too, is counted before it is sent."""
        import openai

        authorization = f"Bearer {self._key or 'none'}"

        async def count(request: Any) -> None:
            limit = self.settings.max_requests
            if not self.answers.may_ask(self.name, limit):
                raise UserError(f"endpoints.{self.name}: {limit} requests are spent. {_KEPT}: raise `max_requests`")
            # The package adds what is in OPENAI_* variables, keys among them, which are meant for another server.
            for name in [name for name in request.headers if name.lower() not in _HEADERS]:
                del request.headers[name]
            request.headers["authorization"] = authorization

        return openai.AsyncOpenAI(
            base_url=self.settings.base_url,
            api_key=self._key or "none",
            timeout=self.settings.timeout,
            max_retries=self.settings.max_retries,
            # Followed, a redirect would take the key and the texts to a server that the recipe does not name.
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [count]}, follow_redirects=False),
        )

    def _give_up(self) -> None:
        """Raises what another question was stopped by."""
        if self._stopped is not None:
            raise self._stopped

    def _no_room(self, tokens: int) -> UserError:
        spent, limit = self.answers.spent(self.name).tokens, self.settings.max_total_tokens
        return UserError(
            f"endpoints.{self.name}: {spent} of {limit} tokens are spent, and the next question may take {tokens}. "
            f"{_KEPT}: raise `max_total_tokens`"
        )

    def _check_usage(self, reply: Reply) -> None:
        if self.settings.max_total_tokens is not None and None in (reply.prompt_tokens, reply.completion_tokens):
            raise UserError(
                f"endpoints.{self.name}: {self.settings.base_url} does not say how many tokens an answer took, so "
                "`max_total_tokens` cannot be kept to; set `max_requests` instead"
            )

    def _scrubbed(self, text: str) -> str:
        """What a server said, without the key, which some repeat."""
        return shortened(text.replace(self._key, "***") if self._key else text, 300)


class Endpoints:
    """The endpoints of a recipe, each opened when it is first asked for, with the answers that a run keeps.

    A context manager that closes the file of answers."""

    def __init__(
        self, settings: Mapping[str, EndpointSettings], run: Path | None = None, progress: Count | None = None
    ):
        """`run`: the folder that keeps the answers; None: they are kept while this object lives. `progress`: see
        `Client`."""
        self.settings = settings
        self._run = run
        self._progress = progress
        self._clients: dict[str, Client] = {}
        self._answers: Answers | None = None

    def __getitem__(self, name: str) -> Client:
        """Who asks the endpoint of this name; raises `UserError` where there is none, or it cannot be asked."""
        if name not in self.settings:
            raise UserError(unknown(name, self.settings))
        if name not in self._clients:
            if self._answers is None:
                self._answers = Answers(None if self._run is None else self._run / FILE)
            self._clients[name] = Client(name, self.settings[name], self._answers, self._progress)
        return self._clients[name]

    def __enter__(self) -> Endpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file of answers."""
        self._clients.clear()
        if self._answers is not None:
            self._answers.close()
            self._answers = None


def unknown(name: str, known: Iterable[str]) -> str:
    """What is wrong with a name that no endpoint has, and the remedy."""
    names = list(known)
    there = f"there are: {', '.join(names)}{did_you_mean(name, names)}" if names else "the recipe has none"
    return f"there is no endpoint `{name}`; {there}. Endpoints stand in the recipe's `endpoints:` (docs/endpoints.md)"


_HEADERS = (
    *("host", "connection", "accept", "accept-encoding", "user-agent", "content-type", "content-length"),
    "x-stainless-raw-response",  # by which the package knows what it was asked for
)
_KEPT = "What was answered is kept and not asked again when the same command is typed"


@dataclass(slots=True)
class _Tally:
    cached: int = 0
    failures: int = 0
    unreadable: int = 0


def api_key_of(name: str, settings: EndpointSettings) -> str | None:
    """The key of an endpoint; None where it needs none. Raises `UserError` where its variable is not set."""
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise UserError(
            f"endpoints.{name}: the environment variable {settings.api_key_env} is not set; put the key into it"
        )
    return key


def _openai(name: str) -> None:
    try:
        import openai  # noqa: F401
    except ImportError:
        raise UserError(
            f"endpoints.{name}: the `openai` package is missing; pip install 'rlhf-loop[endpoints]'"
        ) from None


def _run(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
