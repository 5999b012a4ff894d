"""Who may call what: tokens, sessions of pages, other sites, limits, logs, health."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fastapi import APIRouter, Depends, Request
from fastapi.testclient import TestClient
from server_samples import HERE, client, file_store, service, token, with_chat

from rlhf_loop.errors import UserError
from rlhf_loop.feedback import tokens
from rlhf_loop.feedback.store import Store
from rlhf_loop.server import access
from rlhf_loop.server.access import COOKIE, Caller, csrf_token, require
from rlhf_loop.server.app import create_app
from rlhf_loop.server.limits import Limits
from rlhf_loop.server.logs import JsonLines
from rlhf_loop.server.service import Service


@pytest.fixture
def served(tmp_path: Path) -> Service:
    return service(file_store(tmp_path), open_access=False)


def with_page(service: Service) -> TestClient:
    """The service, with a page that shows its CSRF token and takes something."""
    app = create_app(service)
    page = APIRouter()

    @page.get("/page")
    def show(request: Request, caller: Caller = Depends(require("annotator"))) -> dict[str, str]:
        return {"who": caller.name, "csrf": csrf_token(request)}

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


def test_a_page_logs_in_with_a_token_and_sends_its_csrf_token_with_every_change(served: Service) -> None:
    secret = token(served.store, "annotator", "ann")
    with with_page(served) as http:
        assert http.get("/page", headers={"Accept": "text/html"}).headers["Location"] == "/login?next=/page"
        came = http.post("/login", data={"token": secret, "next": "/page"})
        assert (came.status_code, came.headers["Location"]) == (303, "/page")
        cookie = came.headers["Set-Cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert secret not in cookie
        page = http.get("/page").json()
        assert page["who"] == "ann"
        assert http.post("/page").status_code == 403
        assert http.post("/page", headers={"X-CSRF-Token": "0" * 64}).status_code == 403
        assert http.post("/page", headers={"X-CSRF-Token": page["csrf"]}).json() == {"who": "ann"}
        foreign = {"X-CSRF-Token": page["csrf"], "Origin": "http://evil.example"}
        assert http.post("/page", headers=foreign).status_code == 403
        http.post("/logout")
        assert http.get("/page").status_code == 401


def test_a_session_ends_with_its_token_and_cannot_be_made_up_or_used_by_another(served: Service) -> None:
    made, secret = tokens.create(served.store, "annotator", "ann")
    other, _ = tokens.create(served.store, "admin", "boss")
    with with_page(served) as http:
        http.post("/login", data={"token": secret})
        cookie = http.cookies[COOKIE]
        csrf = http.get("/page").json()["csrf"]
        id, since, signature = cookie.split(".")
        for forged in (
            f"{other.id}.{since}.{signature}",
            f"{id}.{int(since) + 9}.{signature}",
            f"{id}.{since}.",
            f"{id}.{since}.\xfc",
            "..",
            id,
            f"{id}.٣.{signature}",
        ):
            http.cookies.clear()
            assert http.get("/page", headers={"Cookie": f"{COOKIE}={forged}".encode()}).status_code == 401
        tokens.revoke(served.store, made.id)
        http.cookies.clear()
        stolen = {"Cookie": f"{COOKIE}={cookie}", "X-CSRF-Token": csrf}
        assert http.post("/page", headers=stolen).status_code == 401


def test_an_old_session_ends(served: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = token(served.store, "annotator", "ann")
    with with_page(served) as http:
        http.post("/login", data={"token": secret})
        assert http.get("/page").status_code == 200
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 13 * 3600)
        assert http.get("/page").status_code == 401


@pytest.mark.parametrize(
    "next", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:x", "/a\nb", ""]
)
def test_a_login_leads_to_no_other_site(served: Service, next: str) -> None:
    secret = token(served.store, "annotator", "ann")
    with with_page(served) as http:
        assert http.post("/login", data={"token": secret, "next": next}).headers["Location"] == "/"


def test_a_wrong_login_says_so_and_too_many_are_stopped(served: Service) -> None:
    token(served.store, "annotator", "ann")
    with with_page(served) as http:
        codes = [http.post("/login", data={"token": f"rlhf-{n}"}).status_code for n in range(40)]
    assert codes[0] == 303
    assert codes[-1] == 429


# -- open access -------------------------------------------------------------------------------------------------------


def test_without_tokens_programs_on_this_machine_are_let_in(tmp_path: Path) -> None:
    served = service(file_store(tmp_path))
    with with_page(served) as http:
        assert http.get("/v1/models").status_code == 200
        assert http.post("/page").json() == {"who": "you"}
        assert http.get("/v1/models", headers={"Host": "127.0.0.1:8000"}).status_code == 200


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
            {"Sec-Fetch-Site": "same-origin"},  # of our own page, but without its CSRF token
        ):
            assert http.post("/page", headers=headers).status_code == 403, headers
        assert http.get("/page", headers={"Host": "evil.example"}).status_code == 403
        csrf = http.get("/page").json()["csrf"]
        own = {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost", "X-CSRF-Token": csrf}
        assert http.post("/page", headers=own).status_code == 200


def test_the_first_token_ends_open_access_while_the_service_runs(tmp_path: Path) -> None:
    served = service(file_store(tmp_path))
    with client(served) as http:
        assert http.get("/v1/models").status_code == 200
        token(served.store, "app")
        assert http.get("/v1/models").status_code == 401


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
def test_without_tokens_what_a_proxy_passes_on_is_refused(tmp_path: Path, header: str) -> None:
    store = file_store(tmp_path)
    with client(service(store)) as http:
        assert http.get("/v1/models").status_code == 200
        refused = http.get("/v1/models", headers={header: "203.0.113.9"})
        assert refused.status_code == 403
        assert "token create" in refused.text
        secret = token(store, "app")
        assert http.get("/v1/models", headers={header: "203.0.113.9", **bearer(secret)}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "["}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": HERE, "X-CSRF-Token": b"\xe9"}, 403),
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
        answer = http.post("/login", data={"token": secret, "next": "//["}, follow_redirects=False)
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


def test_errors_of_the_store_are_logged_without_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    served = service(file_store(tmp_path))
    with_chat(served)
    with served.store.database.write() as connection:
        fails = "CREATE TRIGGER fails BEFORE INSERT ON completions BEGIN SELECT raise(ABORT, 'disk I/O error'); END"
        connection.exec_driver_sql(fails)
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


def test_the_server_does_not_import_torch() -> None:
    code = "import rlhf_loop.server.run, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
