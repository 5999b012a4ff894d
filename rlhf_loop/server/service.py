"""What all parts of the service share: the store, the run, and who may do what."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itsdangerous import TimestampSigner

from rlhf_loop.feedback.privacy.deletion import user_key
from rlhf_loop.feedback.privacy.redaction import Redactor, make_redactor
from rlhf_loop.feedback.quality.activity import ActivityReader
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.tokens import Token
from rlhf_loop.recipe import Annotation, Generation, Recipe
from rlhf_loop.run_dir import RunDir
from rlhf_loop.server.limits import Limits
from rlhf_loop.server.metrics import Metrics
from rlhf_loop.server.session_key import session_key
from rlhf_loop.server.writer import Writer

if TYPE_CHECKING:
    from rlhf_loop.server.chat.policies import Policies


@dataclass(kw_only=True)
class Service:
    """One running service; it is `request.app.state.service`."""

    store: Store
    recipe: Recipe | None = None  # of the run that is served; None: a bare store
    run_dir: Path | None = None
    open_access: bool = False  # only on loopback and only where no token was ever made: everybody is an admin
    policies: Policies | None = None  # what answers chats; None: chat is off
    chat_off: str = "this service was started without chat"  # why, and what to do about it
    log_texts: bool = False
    stop_seconds: float = 30.0  # how long answers that are being written may take once the service was told to stop
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    seen_tokens: dict[str, tuple[Token, float]] = field(default_factory=dict, init=False, repr=False)
    _user_keys: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    answers: set[asyncio.Task[None]] = field(default_factory=set)  # that are being written

    @property
    def annotation(self) -> Annotation:
        """How people are asked."""
        return self.recipe.annotation if self.recipe is not None else Annotation()

    @property
    def round(self) -> int:
        """The last round whose snapshot is taken: what is said now is learned from in the next one.

        A round that was begun but found too little feedback has no snapshot yet, and takes what is said now. Looked up
        in the run's folder, which takes a while: ask once a request, and not while others wait to write.
        """
        if self.run_dir is None:
            return 0
        run = RunDir(self.run_dir)
        latest = reversed(run.rounds())
        return next((n for n in latest if (run.step(n, "snapshot") / "manifest.json").exists()), 0)

    @property
    def sampling(self) -> Generation:
        """How answers are sampled where a request does not say: as the rounds sample candidates."""
        return self.recipe.generation if self.recipe is not None else Generation(max_new_tokens=512)

    @cached_property
    def writer(self) -> Writer:
        """What writes feedback for all requests."""
        return Writer(self.store)

    @cached_property
    def activity(self) -> ActivityReader:
        """What goes on in the store; the first look at it reads all."""
        return ActivityReader(self.store)

    @cached_property
    def redactor(self) -> Redactor | None:
        """What takes personal data out of texts before they are stored, as the recipe says."""
        return make_redactor(self.annotation.redact)

    @cached_property
    def sessions(self) -> TimestampSigner:
        """What signs the cookies of pages, with their time; the same after a restart (see `session_key.py`)."""
        key = session_key(self.store)
        return TimestampSigner(key, salt="session", key_derivation="hmac", digest_method=hashlib.sha256)

    def user_key(self, user: str) -> str:
        """The pseudonym of an application's user. Not to be called within a transaction: it may need one of its own."""
        if user not in self._user_keys:
            if len(self._user_keys) >= 10_000:
                self._user_keys.clear()
            self._user_keys[user] = user_key(self.store, user)
        return self._user_keys[user]

    def redact(self, text: str) -> str:
        """The text as it is stored: without what the recipe's redactor finds."""
        return self.redactor.redact(text)[0] if self.redactor is not None else text

    def redact_all(self, value: Any) -> Any:
        """A JSON value with all its texts as they are stored, the names of its fields too."""
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, dict):
            return {self.redact(str(name)): self.redact_all(item) for name, item in value.items()}
        return [self.redact_all(item) for item in value] if isinstance(value, list) else value
