"""What Prometheus reads at `/metrics`: counts and times, never texts, ids of users or names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rlhf_loop.records import Completion

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")  # a caller may make up any number of others
_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "rlhf_loop_requests", "Requests", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "rlhf_loop_request_seconds",
            "Seconds to the first byte of the answer",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._feedback = Counter("rlhf_loop_feedback", "Feedback stored", ["kind"], registry=self.registry)
        self._answers = Counter("rlhf_loop_answers", "Answers stored", ["policy"], registry=self.registry)
        self._tokens = Counter("rlhf_loop_answer_tokens", "Tokens in answers", ["policy"], registry=self.registry)
        self._open = Gauge("rlhf_loop_open_questions", "Questions that wait for people", registry=self.registry)
        self._writing = Gauge("rlhf_loop_answers_being_written", "Answers being written", registry=self.registry)
        self._ready = Gauge("rlhf_loop_policy_ready", "Whether a policy can answer (0 or 1)", registry=self.registry)
        self._restarts = Gauge("rlhf_loop_policy_failures", "Policy processes that failed", registry=self.registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request that was answered; `route` is its path with names for what varies."""
        self._requests.labels(method if method in _METHODS else "other", route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def saved(self, completions: Sequence[Completion]) -> None:
        """Counts answers that were stored."""
        for completion in completions:
            self._answers.labels(completion.policy).inc()
            self._tokens.labels(completion.policy).inc(completion.tokens)

    def said(self, kinds: Iterable[str]) -> None:
        """Counts feedback that was stored."""
        for kind in kinds:
            self._feedback.labels(kind).inc()

    def text(self, *, open_questions: int, writing: int, ready: bool, restarts: int) -> bytes:
        """All of it in Prometheus's text format, with how things stand now."""
        self._open.set(open_questions)
        self._writing.set(writing)
        self._ready.set(ready)
        self._restarts.set(restarts)
        return generate_latest(self.registry)
