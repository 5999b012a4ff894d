"""Whatever our own OpenAPI allows or forbids is answered as it says (schemathesis makes the requests)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from samples.server import HERE, service, with_chat
from schemathesis.checks import (
    content_type_conformance,
    negative_data_rejection,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

from rlhf_loop.feedback.store.store import Store
from rlhf_loop.server.app import create_app
from rlhf_loop.server.limits import Limits

LONG = 1 << 26  # bytes: texts that are too long are refused for that, and not because the body is
LIMITS = Limits(rates={**Limits().rates, "admin": (1e9, 10**9)}, body_bytes=LONG, bulk_bytes=LONG)
SERVED = service(Store.open(":memory:"), limits=LIMITS)
with_chat(SERVED)
APP = create_app(SERVED)
schema = schemathesis.openapi.from_dict(APP.openapi())


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    with TestClient(APP, base_url=HERE) as opened:
        answer = opened.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
        assert answer.is_success
        yield opened


@schema.parametrize()
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_request_is_answered_as_the_api_says(case: schemathesis.Case, http: TestClient) -> None:
    values = case.as_transport_kwargs(base_url=HERE)
    values["headers"] = {name: str(value).encode("latin-1") for name, value in (values.get("headers") or {}).items()}
    response = http.request(**values)
    case.validate_response(
        response,
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
            negative_data_rejection,
        ],
    )


def test_the_api_names_what_there_is() -> None:
    assert set(APP.openapi()["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/responses",
        "/v1/feedback",
        "/v1/feedback/bulk",
        "/v1/users/{user}",
    }
