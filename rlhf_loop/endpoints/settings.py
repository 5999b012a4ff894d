"""A recipe's `endpoints:` block: where a server is, which model of it answers, and what may be spent on it."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from rlhf_loop.settings import Settings


class EndpointSettings(Settings):
    """A model of a server with OpenAI's `/chat/completions`: vLLM, llama.cpp, SGLang, Ollama, a hosted one.

    No key stands here: `api_key_env` names the environment variable that holds it, and without one no key is sent.
    The limits are for all that a run asks of this endpoint, over all rounds."""

    base_url: str  # with the version, as in http://localhost:8000/v1
    model: str = Field(min_length=1)
    api_key_env: str | None = None  # the name of a variable, such as JUDGE_API_KEY; never the key
    temperature: float | None = Field(0.0, ge=0)  # of judgements and scores; null: the server's own
    max_answer_tokens: int = Field(512, ge=1)  # of a judgement or a score, thoughts included
    structured: bool = True  # ask for JSON of a schema; a server that refuses it is asked without
    body: dict[str, Any] = Field(default_factory=dict)  # further fields of each request; null takes one out
    concurrency: int = Field(8, ge=1)  # requests at a time
    timeout: float = Field(120, gt=0)  # seconds until a request counts as lost
    max_retries: int = Field(5, ge=0)  # of one request: 429, 5xx, lost connections, with back-off
    max_requests: int | None = Field(None, ge=1)  # retries count too
    max_total_tokens: int | None = Field(None, ge=1)  # read and written

    @field_validator("base_url")
    @classmethod
    def _is_a_plain_url(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # of brackets, or of a port that there is not
            whole = False
        if not whole:
            raise ValueError("endpoints: `base_url` must be an http or https URL, such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "endpoints: `base_url` must hold no user, password or query: recipes are kept in runs and reports. "
                "Put the key into an environment variable and its name into `api_key_env`"
            )
        return url.rstrip("/")

    @field_validator("api_key_env", mode="before")
    @classmethod
    def _names_a_variable(cls, name: Any) -> Any:
        # The value is not repeated: it may be the key itself.
        if name is not None and not (isinstance(name, str) and re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", name)):
            raise ValueError(
                "endpoints: `api_key_env` must be the NAME of an environment variable in capitals, such as "
                "JUDGE_API_KEY, and what is there looks like a key. Put the key into the variable, and replace it "
                "where it was written down"
            )
        if name is not None and re.match(r"(AKIA|ASIA)[A-Z0-9]{12,}$", name):
            raise ValueError("endpoints: `api_key_env` must be the NAME of an environment variable; this is a key")
        return name

    @field_validator("body")
    @classmethod
    def _can_be_sent(cls, body: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(body, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError):
            raise ValueError(
                "endpoints: `body` must hold what JSON can: texts, finite numbers, true, false, null, lists and "
                "mappings; put what YAML reads as a date into quotes"
            ) from None
        for name in ("messages", "stream"):
            if body.get(name):
                raise ValueError(
                    f"endpoints: `body.{name}` cannot be set: questions are asked one at a time, and each answer is "
                    "read whole; leave it out"
                )
        return body

    @property
    def identity(self) -> dict[str, Any]:
        """What its answers depend on, for the hashes of what is made with them: not the key, nor how fast it is asked
        or how much may be spent."""
        return self.model_dump(mode="json", exclude=set(MAY_CHANGE))


MAY_CHANGE = ("api_key_env", "structured", "concurrency", "timeout", "max_retries", "max_requests", "max_total_tokens")
"""Settings that may differ when a run goes on."""
