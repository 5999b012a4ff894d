"""Who may call what: tokens, sessions of pages, other sites, limits, logs, health."""

from __future__ import annotations

import json
import logging
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import uvicorn
from fastapi import APIRouter, Depends, Request
from fastapi.testclient import TestClient
from itsdangerous import TimestampSigner
from samples.annotation import fill_queue
from samples.server import HERE, client, file_store, service, token, with_chat

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.store import tables, tokens
from rlhf_loop.feedback.store.adding import Transaction
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Completion
from rlhf_loop.server import access
from rlhf_loop.server.access import COOKIE, Caller, require
from rlhf_loop.server.app import create_app
from rlhf_loop.server.limits import Limits
from rlhf_loop.server.logs import JsonLines
from rlhf_loop.server.run import config, greeting
from rlhf_loop.server.service import Service


@pytest.fixture
def served(tmp_path: Path) -> Service:
    return service(file_store(tmp_path), open_access=False)


OWN = {"Origin": HERE}
"""What a browser says of whatever a page of the service sends."""


def with_page(service: Service) -> TestClient:
    """The service, with a page that takes something."""
    app = create_app(service)
    page = APIRouter()

    @page.get("/page")
    def show(caller: Caller = Depends(require("annotator"))) -> dict[str, str]:
        return {"who": caller.name}

    @page.post("/page")
    def take(caller: Caller = Depends(require("annotator"))) -> dict[str, str]:
        return {"who": caller.name}

    app.include_router(page)
    return TestClient(app, base_url=HERE, follow_redirects=False)


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_a_token_is_kept_as_a_hash_and_works_until_it_is_revoked(
    served: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "TOKEN_SECONDS", 0.1)
    made, secret = tokens.create(served.store, "app", "shop")
    file = served.store.database.path
    assert file is not None
    served.store.close()
    assert secret.encode() not in b"".join(path.read_bytes() for path in file.parent.iterdir())
    with client(served, secret) as http:
        assert http.get("/v1/models").status_code == 200
        tokens.revoke(served.store, made.id)
        time.sleep(0.2)
        answer = http.get("/v1/models")
    assert answer.status_code == 401
    assert "revoked" in answer.json()["error"]["message"]
    assert tokens.listed(served.store)[0].revoked_at is not None


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer rlhf-wrong", "Basic cm9vdA==", "Bearer \xfc"])
def test_without_a_right_token_nothing_is_told(served: Service, header: str) -> None:
    token(served.store, "admin")
    with client(served) as http:
        headers = {"Authorization": header.encode("latin-1")} if header else {}
        for method, path in [
            ("GET", "/v1/models"),
            ("POST", "/v1/chat/completions"),
            ("POST", "/v1/feedback"),
            ("DELETE", "/v1/users/ann"),
            ("GET", "/metrics"),
            ("GET", "/openapi.json"),
        ]:
            answer = http.request(method, path, headers=headers, json={"response_id": "x", "thumb": "up", "messages": [
                {"role": "user", "content": "x"}]} if method == "POST" else None)  # fmt: skip
            assert answer.status_code in (401, 422), (path, answer.text)
        assert http.get("/healthz").json() == {"live": True}


def test_roles_open_what_is_theirs_and_an_admin_everything(served: Service) -> None:
    allowed = {}
    for role in ("app", "annotator", "admin"):
        secret = token(served.store, role)
        with with_page(served) as http:
            allowed[role] = [http.get(path, headers=bearer(secret)).status_code for path in ("/v1/models", "/page")]
    assert allowed == {"app": [200, 403], "annotator": [403, 200], "admin": [200, 200]}


def test_bad_names_and_roles_and_second_tokens_of_one_name_are_refused(served: Service) -> None:
    token(served.store, "annotator", "ann")
    for role, name in (("king", "a"), ("app", ""), ("app", "a\nb"), ("app", "x" * 65), ("annotator", "ann")):
        with pytest.raises(UserError):
            tokens.create(served.store, role, name)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no token"):
        tokens.revoke(served.store, "token-nowhere")


# -- pages -------------------------------------------------------------------------------------------------------------


def test_a_page_logs_in_with_a_token_and_changes_something(served: Service) -> None:
    secret = token(served.store, "annotator", "ann")
    with with_page(served) as http:
        assert http.get("/page", headers={"Accept": "text/html"}).headers["Location"] == "/login?next=/page"
        came = http.post("/login", data={"token": secret, "next": "/page"}, headers=OWN)
        assert (came.status_code, came.headers["Location"]) == (303, "/page")
        cookie = came.headers["Set-Cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert secret not in cookie
        assert http.get("/page").json() == {"who": "ann"}
        assert http.post("/page", headers=OWN).json() == {"who": "ann"}
        assert http.post("/page", headers={"Sec-Fetch-Site": "same-origin"}).json() == {"who": "ann"}
        http.post("/logout", headers=OWN)
        assert http.get("/page").status_code == 401


WAYS_IN = {
    "a form of another site": {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"},
    "a form of another site over plain http, where browsers do not say Sec-Fetch-Site": {
        "Origin": "http://evil.example"
    },
    "a form in a sandbox, or of a page that hides where it is": {"Origin": "null"},
    "fetch with no-cors, which takes the cookie but cannot set headers": {
        "Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors",
        "Content-Type": "text/plain",
    },
    "a page of a subdomain, or of another port, which SameSite takes for the same site": {
        "Origin": "http://forum.localhost", "Sec-Fetch-Site": "same-site",
    },
    "the same, of a browser that says no Origin": {"Sec-Fetch-Site": "same-site"},
    "another port of this machine": {"Origin": "http://localhost:9999"},
    "an address whose beginning is ours": {"Origin": "http://localhost.evil.example"},
    "an old browser that says nothing at all": {},
    "an old browser that says only the page it comes from": {"Referer": "http://localhost/page"},
    "a page that claims a token that is none": {"Origin": "http://evil.example", "X-CSRF-Token": "0" * 64},
}  # fmt: skip
"""What browsers say of requests that no page of ours sends, and that carry the cookie all the same."""


@pytest.mark.parametrize("headers", WAYS_IN.values(), ids=WAYS_IN.keys())
def test_a_page_of_another_site_changes_nothing(served: Service, headers: dict[str, str]) -> None:
    secret = token(served.store, "annotator", "ann")
    with with_page(served) as http:
        assert http.post("/login", data={"token": secret}, headers=OWN).status_code == 303
        assert http.get("/page").status_code == 200
        refused = http.post("/page", headers=headers)
        assert (refused.status_code, "Set-Cookie" in refused.headers) == (403, False)
        assert http.post("/logout", headers=headers).status_code == 403
        assert http.get("/page").status_code == 200, "still logged in"


@pytest.mark.parametrize("headers", WAYS_IN.values(), ids=WAYS_IN.keys())
def test_a_page_of_another_site_logs_nobody_in_as_somebody_else(served: Service, headers: dict[str, str]) -> None:
    theirs = token(served.store, "annotator", "mallory")
    with with_page(served) as http:
        answer = http.post("/login", data={"token": theirs}, headers=headers)
        assert (answer.status_code, "Set-Cookie" in answer.headers) == (403, False)


def test_what_is_refused_without_a_page_is_taken_with_a_token_in_the_header(served: Service) -> None:
    """No browser sends an Authorization header that another site's page has not got the token for."""
    secret = token(served.store, "annotator", "ann")
    with with_page(served) as http:
        for headers in ({}, {"Origin": "http://evil.example"}):
            assert http.post("/page", headers={**bearer(secret), **headers}).json() == {"who": "ann"}


def test_a_proxy_that_changes_the_host_is_told_of(served: Service) -> None:
    secret = token(served.store, "annotator", "ann")
    sent = {"Origin": "https://loop.example", "Sec-Fetch-Site": "same-origin"}
    with client(served) as http:
        for host, status in (("127.0.0.1:8000", 403), ("loop.example", 303)):
            answer = http.post("/login", data={"token": secret}, headers={**sent, "Host": host}, follow_redirects=False)
            assert answer.status_code == status
            assert status == 303 or "must pass on loop.example" in answer.json()["error"]["message"]


def test_nothing_that_a_link_can_lead_to_changes_anything(served: Service) -> None:
    """The cookie goes with links from other sites."""
    fill_queue(served.store)
    secret = token(served.store, "admin")

    def cells() -> list[Any]:
        with served.store.database.read() as connection:
            return [connection.execute(sa.select(table)).all() for table in tables.metadata.sorted_tables]

    linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Accept": "text/html"}
    with client(served) as http:
        http.post("/login", data={"token": secret}, headers=OWN)
        before = cells()
        for path in ("/", "/annotate", "/trace?id=ann", "/login", "/metrics", "/openapi.json", "/v1/models"):
            assert http.get(path, headers=linked).status_code == 200, path
        assert cells() == before
        for path in ("/logout", *(f"/annotate/api/{what}" for what in ("next", "submit", "undo", "release", "more"))):
            assert http.get(path, headers=linked).status_code in (404, 405), path
        assert http.get("/annotate").status_code == 200
    assert cells() == before


def test_a_session_ends_with_its_token_and_cannot_be_made_up_or_used_by_another(served: Service) -> None:
    made, secret = tokens.create(served.store, "annotator", "ann")
    other, _ = tokens.create(served.store, "admin", "boss")
    with with_page(served) as http:
        http.post("/login", data={"token": secret}, headers=OWN)
        cookie = http.cookies[COOKIE]
        id, since, signature = cookie.split(".")
        for forged in (
            f"{other.id}.{since}.{signature}",
            f"{id}.{since}9.{signature}",
            f"{id}.{since}.",
            f"{id}.{since}.\xfc",
            f"{id}.{since}",
            "..",
            id,
            f"{id}.٣.{signature}",
            TimestampSigner("", salt="session").sign(other.id).decode(),
        ):
            http.cookies.clear()
            assert http.get("/page", headers={"Cookie": f"{COOKIE}={forged}".encode()}).status_code == 401
        tokens.revoke(served.store, made.id)
        http.cookies.clear()
        stolen = {"Cookie": f"{COOKIE}={cookie}", **OWN}
        assert http.post("/page", headers=stolen).status_code == 401


def test_an_old_session_ends(served: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = token(served.store, "annotator", "ann")
    with with_page(served) as http:
        http.post("/login", data={"token": secret}, headers=OWN)
        assert http.get("/page").status_code == 200
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 13 * 3600)
        assert http.get("/page").status_code == 401


@pytest.mark.parametrize(
    "place", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:x", "/a\nb", ""]
)
def test_a_login_leads_to_no_other_site(served: Service, place: str) -> None:
    secret = token(served.store, "annotator", "ann")
    with with_page(served) as http:
        assert http.post("/login", data={"token": secret, "next": place}, headers=OWN).headers["Location"] == "/"


def test_a_wrong_login_says_so_and_too_many_are_stopped(served: Service) -> None:
    token(served.store, "annotator", "ann")
    with with_page(served) as http:
        codes = [http.post("/login", data={"token": f"rlhf-{n}"}, headers=OWN).status_code for n in range(40)]
    assert codes[0] == 303
    assert codes[-1] == 429


def test_guesses_are_stopped_before_they_are_looked_up(served: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, later = token(served.store, "admin"), token(served.store, "app")
    looked_up: list[str] = []
    find = tokens.find
    monkeypatch.setattr(tokens, "find", lambda store, secret: looked_up.append(secret) or find(store, secret))
    monkeypatch.setattr(access, "TOKEN_SECONDS", 0.0)
    with with_page(served) as http:
        http.post("/login", data={"token": secret}, headers=OWN)
        assert http.get("/v1/models", headers=bearer(secret)).status_code == 200
        codes = [http.get("/v1/models", headers=bearer(f"rlhf-{n}")).status_code for n in range(40)]
        assert {401, 429} == set(codes)
        looked_up.clear()
        assert http.get("/v1/models", headers=bearer("rlhf-guess")).status_code == 429
        assert http.post("/login", data={"token": "rlhf-guess"}, headers=OWN).status_code == 429
        assert http.get("/v1/models", headers=bearer(later)).status_code == 429  # it may be a guess
        assert looked_up == []
        assert http.get("/v1/models", headers=bearer(secret)).status_code == 200  # it was right before
        assert http.get("/page").status_code == 200  # and a cookie with its signature is no guess


def test_the_limit_of_failed_logins_believes_no_header(tmp_path: Path) -> None:
    """Over a socket, with the settings of `serve`: uvicorn alone would believe what comes from this machine."""
    served = service(file_store(tmp_path), open_access=False)
    token(served.store, "admin")
    with listening(served) as url, httpx.Client(base_url=url) as http:
        codes = [
            http.get("/v1/models", headers={**bearer("rlhf-x"), "X-Forwarded-For": f"203.0.113.{n}"}).status_code
            for n in range(40)
        ]
    assert codes[-1] == 429
    with listening(served, trusted=("127.0.0.0/8",)) as url, httpx.Client(base_url=url) as http:
        for n in range(40):
            said = {"X-Forwarded-For": f"198.51.100.{n}, 203.0.113.1"}  # the first is the caller's own invention
            last = http.get("/v1/models", headers={**bearer("rlhf-x"), **said}).status_code
        assert last == 429
        other = {"X-Forwarded-For": "203.0.113.2"}
        assert http.get("/v1/models", headers={**bearer("rlhf-x"), **other}).status_code == 401


@contextmanager
def listening(served: Service, trusted: tuple[str, ...] = ()) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config(served, trusted))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:203.0.113.1", "203.0.113.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("203.0.113.1", "203.0.113.2", False),
        ("testclient", "other", False),
    ],
)
def test_whoever_owns_a_network_of_ipv6_is_one_guesser(first: str, second: str, same: bool) -> None:
    def named(host: str) -> str:
        return access._guesser(Request({"type": "http", "client": (host, 1), "headers": []}))

    assert (named(first) == named(second)) is same


def test_a_cookie_of_a_page_with_tls_is_for_tls_alone(served: Service) -> None:
    secret = token(served.store, "annotator", "ann")
    with with_page(served) as http:
        plain = http.post("/login", data={"token": secret}, headers={"Origin": "http://localhost"})
        behind = http.post("/login", data={"token": secret}, headers={"Origin": "https://localhost"})
    assert "secure" not in plain.headers["Set-Cookie"].lower()
    assert "secure" in behind.headers["Set-Cookie"].lower()


# -- open access -------------------------------------------------------------------------------------------------------


def test_without_tokens_programs_on_this_machine_are_let_in(tmp_path: Path) -> None:
    served = service(file_store(tmp_path))
    with with_page(served) as http:
        assert http.get("/v1/models").status_code == 200
        assert http.post("/page").json() == {"who": "you"}
        assert http.get("/v1/models", headers={"Host": "127.0.0.1:8000"}).status_code == 200


def test_the_service_says_who_cannot_come_in_yet(served: Service) -> None:
    said = []
    for role in ("app", "annotator", "admin"):
        token(served.store, role)
        said.append(greeting(served, "127.0.0.1", 8000)[-1])
    assert "nobody can open the pages before `rlhf-loop token create YOUR_NAME --role admin`" in said[0]
    assert "nobody can see the dashboard before" in said[1]
    assert said[2].endswith("by token (rlhf-loop token list)")


def test_a_browser_gets_a_page_of_what_is_wrong_and_a_program_json(tmp_path: Path) -> None:
    with with_page(service(file_store(tmp_path))) as http:
        missing = http.get("/no<b>where", headers={"Accept": "text/html"})
        assert (missing.status_code, missing.headers["Content-Type"]) == (404, "text/html; charset=utf-8")
        assert "there is nothing at /no&lt;b&gt;where" in missing.text
        assert 'href="/annotate"' in missing.text
        said = http.get("/v1/chat").json()["error"]["message"]
        assert said == "there is nothing at /v1/chat; chat is at /v1/chat/completions, feedback at /v1/feedback"
        assert http.get("/login").headers["Location"] == "/"  # nobody has a token to log in with


def test_without_tokens_pages_of_other_sites_and_rebound_names_are_refused(tmp_path: Path) -> None:
    served = service(file_store(tmp_path))
    with with_page(served) as http:
        for headers in (
            {"Host": "evil.example"},
            {"Host": "localhost.evil.example"},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://localhost:9999"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Cookie": "theme=dark"},  # a browser that does not say which page it is
        ):
            assert http.post("/page", headers=headers).status_code == 403, headers
        assert http.get("/page", headers={"Host": "evil.example"}).status_code == 403
        own = {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}
        assert http.post("/page", headers=own).status_code == 200


def test_the_first_token_ends_open_access_while_the_service_runs(tmp_path: Path) -> None:
    served = service(file_store(tmp_path))
    with client(served) as http:
        assert http.get("/v1/models").status_code == 200
        token(served.store, "app")
        assert http.get("/v1/models").status_code == 401


PROXIES = """
    Via Forwarded X-Forwarded-For X-Forwarded-Host X-Forwarded-Proto X-Forwarded-Port X-Forwarded-Server X-Forwarded
    X-Forwarded-Prefix X-Forwarded-User X-Forwarded-Client-Cert X-Original-Forwarded-For Forwarded-For X-Real-IP
    CF-Connecting-IP CF-Connecting-IPv6 CF-Ray CF-IPCountry CDN-Loop True-Client-IP Client-IP X-Client-IP
    X-Cluster-Client-IP Fly-Client-IP Fly-Forwarded-Port Fastly-Client-IP Fastly-SSL X-Envoy-External-Address
    X-Envoy-Expected-Rq-Timeout-Ms X-Amzn-Trace-Id X-Amz-Cf-Id X-Azure-ClientIP X-Azure-FDID X-FD-HealthProbe
    X-Vercel-Id X-NF-Client-Connection-IP DO-Connecting-IP X-Appengine-User-IP X-ARR-Log-Id
    X-Arr-SSL X-Cloud-Trace-Context
    X-ProxyUser-IP Proxy-Client-IP WL-Proxy-Client-IP X-Original-URL X-Original-Host X-Original-URI X-Rewrite-URL
    X-Originating-IP X-Remote-IP X-Remote-Addr X-Scheme X-Host X-Varnish X-Sucuri-ClientIP Incap-Client-IP
    Akamai-Origin-Hop X-Akamai-Edgescape Tailscale-User-Login X-Traefik-Router Client-Cert Early-Data Front-End-Https
    Remote-User Remote-Email X-WebAuth-User X-Authentik-Username X-Auth-Request-Email X-Goog-Authenticated-User-Email
    X-Goog-IAP-JWT-Assertion Ngrok-Trace-Id X-Real-Host X-Gateway-Host X-Accel-Internal X-IMForwards
    Surrogate-Capability X-HAProxy-Current-Date X-BlueCoat-Via Max-Forwards
    """
CLIENTS = """
    User-Agent Accept Accept-Encoding Accept-Language Authorization Cache-Control Content-Type Connection Cookie DNT
    Idempotency-Key If-None-Match Origin-Agent-Cluster Pragma Priority Range Referer Sec-CH-UA Sec-Fetch-Dest TE
    Traceparent Tracestate Upgrade-Insecure-Requests X-Request-Id X-Requested-With X-Stainless-Arch X-Stainless-Os
    OpenAI-Organization OpenAI-Beta X-Goog-Api-Client Api-Key X-Api-Key Ngrok-Skip-Browser-Warning Sentry-Trace Baggage
    """


def test_without_tokens_what_a_proxy_passes_on_is_refused(tmp_path: Path) -> None:
    store = file_store(tmp_path)
    with client(service(store)) as http:
        for header in PROXIES.split():
            for name in (header, header.lower(), header.upper()):
                assert http.get("/v1/models", headers={name: "203.0.113.9"}).status_code == 403, name
        refused = http.get("/v1/models", headers={"Via": "1.1 proxy"})
        assert "token create" in refused.text
        for header in CLIENTS.split():
            assert http.get("/v1/models", headers={header: "1"}).status_code == 200, header
        secret = token(store, "app")
        for header in PROXIES.split():
            assert http.get("/v1/models", headers={header: "203.0.113.9", **bearer(secret)}).status_code == 200


def test_without_tokens_http_1_0_is_a_proxy(tmp_path: Path) -> None:
    """As nginx speaks to what is behind it, with no header that says so, and with our own address for a name."""
    app = create_app(service(file_store(tmp_path)))

    async def older(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "http_version": "1.0"} if scope["type"] == "http" else scope, receive, send)

    with TestClient(older, base_url=HERE) as http:
        assert http.get("/v1/models").status_code == 403
        assert http.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "["}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": b"\xe9"}, 403),
        ({"Authorization": b"Bearer \xff"}, 200),
    ],
)
def test_headers_that_make_no_sense_are_refused_and_no_mistake_of_ours(
    tmp_path: Path, headers: dict, code: int
) -> None:
    with client(service(file_store(tmp_path)), raise_server_exceptions=False) as http:
        assert http.post("/annotate/api/next", json={}, headers=headers).status_code == code


def test_a_login_that_should_lead_to_no_address_leads_to_the_front_page(served: Service) -> None:
    secret = token(served.store, "admin")
    with client(served, raise_server_exceptions=False) as http:
        answer = http.post("/login", data={"token": secret, "next": "//["}, headers=OWN, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        lost = http.get("/", headers={"Host": "[", "Accept": "text/html", "Cookie": ""}, follow_redirects=False)
        assert lost.headers["location"] == "/login?next=/"


# -- limits, logs, health ----------------------------------------------------------------------------------------------


def test_a_caller_who_sends_too_much_is_told_when_to_come_again(tmp_path: Path) -> None:
    served = service(file_store(tmp_path), limits=Limits(rates={**Limits().rates, "admin": (0.5, 3)}))
    with client(served) as http:
        answers = [http.get("/v1/models") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert int(answers[-1].headers["Retry-After"]) >= 1


def test_buckets_fill_again_and_are_one_a_caller() -> None:
    limits = Limits(rates={"app": (50.0, 1)})
    assert limits.take("a", "app") == 0
    assert 0 < limits.take("a", "app") <= 0.02
    assert limits.take("b", "app") == 0
    time.sleep(0.03)
    assert limits.take("a", "app") == 0


@pytest.mark.parametrize("path", ["/v1/feedback", "/v1/feedback/bulk", "/v1/chat/completions", "/login"])
def test_bodies_of_10_mb_are_refused(tmp_path: Path, path: str) -> None:
    served = service(file_store(tmp_path))
    with_chat(served)
    body = b'{"comment": "' + b"x" * 10_000_000 + b'"}'

    def pieces() -> object:
        yield from (body[start : start + 65536] for start in range(0, len(body), 65536))

    with client(served) as http:
        for content in (body, pieces()):
            kind = "application/x-www-form-urlencoded" if path == "/login" else "application/json"
            answer = http.post(path, content=content, headers={"Content-Type": kind})  # type: ignore[arg-type]
            assert answer.status_code == 413, answer.text


def test_a_body_that_stops_on_its_way_is_not_waited_for(tmp_path: Path) -> None:
    store = file_store(tmp_path)
    served = service(store, open_access=False, limits=Limits(body_seconds=0.3))
    head = f"POST /v1/feedback HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token(store, 'app')}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 500\r\n\r\n"
    with listening(served) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as slow:
            slow.sendall(head.encode() + b'{"response_id": ')
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_an_answer_may_take_longer_than_a_body_may_stop(tmp_path: Path) -> None:
    served = service(file_store(tmp_path), limits=Limits(body_seconds=0.2))
    with_chat(served, seconds=0.2)
    with listening(served) as url:
        said = {"stream": True, "messages": [{"role": "user", "content": "one two three"}]}
        answer = httpx.post(f"{url}/v1/chat/completions", json=said, timeout=20)
    assert answer.text.endswith("data: [DONE]\n\n")


def test_a_length_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with client(service(file_store(tmp_path))) as http:
        answer = http.post("/v1/feedback", content=b"{}", headers={"Content-Length": "-1"})
    assert answer.status_code == 413


def test_answers_carry_a_request_id_and_security_headers(tmp_path: Path) -> None:
    with client(service(file_store(tmp_path))) as http:
        given = http.get("/v1/models", headers={"X-Request-Id": "abc-1"})
        made = http.get("/nowhere", headers={"X-Request-Id": "<script>"})
    assert given.headers["X-Request-Id"] == "abc-1"
    assert made.status_code == 404
    assert made.headers["X-Request-Id"] != "<script>"
    assert "default-src 'self'" in made.headers["Content-Security-Policy"]
    assert made.headers["X-Content-Type-Options"] == "nosniff"
    assert made.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("texts", [False, True])
def test_logs_are_lines_of_json_without_texts_unless_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, texts: bool
) -> None:
    served = service(file_store(tmp_path), log_texts=texts)
    with_chat(served)
    log = logging.getLogger("rlhf_loop.server")
    log.propagate = True
    with caplog.at_level(logging.INFO, "rlhf_loop.server"), client(served) as http:
        http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "my secret"}], "user": "ann"})
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records if record.name == "rlhf_loop.server"]
    requests = [line for line in lines if line["message"] == "request"]
    assert requests[0]["route"] == "/v1/chat/completions"
    assert requests[0]["status"] == 200
    assert ("my secret" in json.dumps(lines)) is texts
    assert "ann" not in json.dumps(requests)


def test_errors_of_the_store_are_logged_without_texts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = service(file_store(tmp_path))
    with_chat(served)
    cause = sqlite3.OperationalError("disk I/O error")
    cause.sqlite_errorname = "SQLITE_IOERR_WRITE"

    def fails(transaction: Transaction, completions: list[Completion]) -> int:
        values = {"text": completions[0].text}
        raise sa.exc.OperationalError("INSERT INTO completions ...", values, cause, hide_parameters=True)

    monkeypatch.setattr(Transaction, "add_completions", fails)
    logging.getLogger("rlhf_loop.server").propagate = True
    with caplog.at_level(logging.INFO, "rlhf_loop.server"), client(served) as http:
        answer = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "my secret"}]})
    assert answer.status_code == 503
    lines = [JsonLines().format(record) for record in caplog.records if record.name == "rlhf_loop.server"]
    assert any("disk I/O error" in line and "INSERT INTO completions" in line for line in lines)
    assert "my secret" not in "".join(lines)


def test_made_up_methods_do_not_fill_the_memory(tmp_path: Path) -> None:
    with client(service(file_store(tmp_path))) as http:
        for n in range(5):
            http.request(f"GET{n}", "/v1/models")
        text = http.get("/metrics").text
    assert 'method="other"' in text
    assert 'method="GET1"' not in text


def test_metrics_count_requests_answers_and_feedback(tmp_path: Path) -> None:
    served = service(file_store(tmp_path))
    with_chat(served)
    with client(served) as http:
        id = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]}).json()["id"]
        http.post("/v1/feedback", json={"response_id": id, "thumb": "up"})
        text = http.get("/metrics").text
    assert 'rlhf_loop_answers_total{policy="base"} 1.0' in text
    assert 'rlhf_loop_feedback_total{kind="thumb"} 1.0' in text
    assert 'rlhf_loop_requests_total{method="POST",route="/v1/feedback",status="200"} 1.0' in text
    assert "rlhf_loop_policy_ready 1.0" in text


def test_readiness_follows_the_policy_and_the_store(tmp_path: Path) -> None:
    served = service(file_store(tmp_path))
    with client(served) as http:
        assert http.get("/healthz/ready").json() == {"ready": True, "store": True, "chat": "off"}


# -- the command line --------------------------------------------------------------------------------------------------


def rlhf_loop(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlhf_loop", *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert finished.returncode == code, finished.stdout + finished.stderr
    return finished


def test_the_token_commands_make_list_and_revoke(tmp_path: Path) -> None:
    store = tmp_path / "feedback.db"
    secret = rlhf_loop("token", "create", "shop", "--role", "app", "--store", store).stdout.strip()
    (row,) = json.loads(rlhf_loop("token", "list", "--store", store, "--json").stdout)
    assert (row["role"], row["name"], row["revoked_at"]) == ("app", "shop", None)
    assert secret not in rlhf_loop("token", "list", "--store", store).stdout
    with Store.open(store) as opened:
        assert tokens.find(opened, secret) is not None
        rlhf_loop("token", "revoke", row["id"], "--store", store)
        assert tokens.find(opened, secret) is None


def test_beyond_this_machine_the_service_does_not_start_without_a_token(tmp_path: Path) -> None:
    with Store.open(tmp_path / "feedback.db"):
        pass
    error = rlhf_loop("serve", "--store", tmp_path / "feedback.db", "--host", "0.0.0.0", code=2).stderr
    assert "token create" in error
    assert "name a run" in rlhf_loop("serve", code=2).stderr
    wrong = rlhf_loop("serve", "--store", tmp_path / "feedback.db", "--trusted-proxy", "10.0.0.0/99", code=2).stderr
    assert "10.0.0.0/8" in wrong


def test_the_server_does_not_import_torch() -> None:
    code = "import rlhf_loop.server.run, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
