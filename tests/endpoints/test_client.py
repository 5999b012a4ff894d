"""An endpoint that is slow, wrong, cut off, broke or away: what is asked, what is kept, what is told."""

from __future__ import annotations

import asyncio
import builtins
import datetime
import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samples.endpoint import Fault, running

from rlhf_loop.endpoints.answers import FILE, Answers, Reply, Spent, spent_in
from rlhf_loop.endpoints.asks import Ask, Unanswered, Unreadable
from rlhf_loop.endpoints.client import IN_A_ROW, Client
from rlhf_loop.endpoints.settings import EndpointSettings
from rlhf_loop.errors import UserError

KEY = "sk-very-secret-0123456789abcdef"


def asks(n: int, **more: Any) -> list[Ask]:
    return [Ask(messages=({"role": "user", "content": f"question {i}"},), **more) for i in range(n)]


def text(reply: Reply) -> str:
    return reply.text


def echo(request: dict[str, Any]) -> str:
    return f"answer to {request['messages'][-1]['content']}"


def first(fault: Any, times: int = 1) -> Callable[[dict[str, Any]], Any]:
    """Fails so many times, then answers."""
    left = [fault] * times
    return lambda request: left.pop() if left else echo(request)


def client(url: str, answers: Answers | None = None, **settings: Any) -> Client:
    values = {"base_url": url, "model": "fake", "max_retries": 1, "timeout": 5, **settings}
    return Client("judge", EndpointSettings(**values), answers or Answers(None))


def test_answers_come_in_order_with_no_more_than_so_many_at_a_time() -> None:
    with running(echo, latency=0.02) as (server, url):
        found = client(url, concurrency=5).ask(asks(30), text)
    assert found == [f"answer to question {i}" for i in range(30)]
    assert len(server.asked) == 30
    assert server.most_at_once == 5


def test_a_request_holds_the_model_the_limits_and_the_fields_of_the_settings() -> None:
    with running(echo) as (server, url):
        body = {"max_tokens": None, "max_completion_tokens": 9, "chat_template_kwargs": {"enable_thinking": False}}
        client(url, temperature=0.25, body=body).ask(asks(1, fields={"seed": 3}), text)
    assert server.asked == [
        {
            "model": "fake",
            "messages": [{"role": "user", "content": "question 0"}],
            "temperature": 0.25,
            "seed": 3,
            "max_completion_tokens": 9,
            "chat_template_kwargs": {"enable_thinking": False},
        }
    ]


def test_equal_questions_are_asked_once_and_further_samples_again() -> None:
    with running(echo) as (server, url):
        one = client(url)
        assert len(one.ask([*asks(1), *asks(1), *asks(1, sample=1)], text)) == 3
        assert len(server.asked) == 2
        one.ask(asks(1), text)
    assert len(server.asked) == 2
    assert one.answers.spent("judge") == Spent(requests=2, answers=2, prompt_tokens=22, completion_tokens=14, cached=1)


@pytest.mark.parametrize("fault", [429, 500, 503, "half", "never", "malformed", "empty"])
def test_a_request_that_fails_is_sent_again_and_counted(fault: int | str) -> None:
    with running(first(Fault(fault))) as (server, url):
        one = client(url, timeout=0.5)
        assert one.ask(asks(1), text) == ["answer to question 0"]
    assert len(server.asked) == one.answers.spent("judge").requests == 2


def test_what_the_server_says_about_waiting_is_kept_to(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "openai")
    with running(first(Fault(429, {"retry-after": "1.25"}))) as (_, url):
        assert client(url).ask(asks(1), text) == ["answer to question 0"]
    assert "Retrying request in 1.25" in caplog.text


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (500, "the server failed (HTTP 500)"),
        (400, "the server refused it (HTTP 400)"),
        ("half", "the connection broke"),
        ("never", "no answer came in time"),
        ("malformed", "what the server sent is no chat completion"),
        ("empty", "what the server sent is no chat completion"),
    ],
)
def test_a_question_that_fails_for_good_is_unanswered_and_the_others_are_not(fault: int | str, reason: str) -> None:
    def say(request: dict[str, Any]) -> Any:
        return Fault(fault) if "question 1" in str(request) else echo(request)

    with running(say) as (_, url):
        one = client(url, timeout=0.3, max_retries=0)
        assert one.ask(asks(3), text) == [
            "answer to question 0",
            Unanswered(reason=reason),
            "answer to question 2",
        ]
    assert one.answers.spent("judge").failures == 1


def test_a_server_that_fails_on_everything_is_left_alone_after_some() -> None:
    with running(lambda request: Fault(500)) as (server, url):
        with pytest.raises(
            UserError, match=r"answers nobody: 8 questions in a row failed.*HTTP 500.*see to the server"
        ):
            client(url, max_retries=0, concurrency=1).ask(asks(50), text)
    assert len(server.asked) == IN_A_ROW


def test_questions_that_the_server_refuses_do_not_stop_the_others() -> None:
    with running(lambda request: echo(request) if "question 0" in str(request) else Fault(400)) as (server, url):
        found = client(url, max_retries=0, concurrency=1).ask(asks(20), text)
    assert found == ["answer to question 0"] + [Unanswered(reason="the server refused it (HTTP 400)")] * 19
    with running(lambda request: Fault(400)) as (server, url):
        with pytest.raises(UserError, match="answers nobody"):
            client(url, max_retries=0, concurrency=1).ask(asks(20), text)
    assert len(server.asked) == IN_A_ROW


def test_a_server_that_is_away_is_said_to_be() -> None:
    with pytest.raises(UserError, match=r"endpoints\.judge: http://127.0.0.1:9/v1 answers nobody.*connection broke"):
        client("http://127.0.0.1:9/v1", max_retries=0).ask(asks(20), text)


@pytest.mark.parametrize(
    ("status", "words"), [(401, "refuses the key"), (404, "check `base_url` and `model`"), (429, "lower `concurrency`")]
)
def test_what_holds_for_all_questions_stops_at_once(status: int, words: str) -> None:
    with running(lambda request: Fault(status)) as (server, url):
        with pytest.raises(UserError, match=words):
            client(url, max_retries=0, concurrency=1).ask(asks(5), text)
    assert len(server.asked) == 1


def test_the_key_is_sent_and_stands_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    answers = Answers(tmp_path / FILE)
    with running(first(Fault(401, text=f"Incorrect API key provided: {KEY}"))) as (server, url):
        one = client(url, answers, api_key_env="JUDGE_KEY")
        with pytest.raises(UserError, match=r"provided: \*\*\*.*check what is in JUDGE_KEY") as caught:
            one.ask(asks(1), text)
        assert one.ask(asks(1), text) == ["answer to question 0"]
    assert [headers["authorization"] for headers in server.headers] == [f"Bearer {KEY}"] * 2
    assert KEY not in str(caught.value) + repr(caught.value.__cause__) + repr(one.settings) + caplog.text
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.iterdir())


def test_a_long_error_is_not_cut_within_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    for length in range(160, 300, 20):
        with running(first(Fault(401, text=f"{'x' * length} {KEY}"))) as (_, url):
            with pytest.raises(UserError) as caught:
                client(url, api_key_env="JUDGE_KEY").ask(asks(1), text)
        assert KEY[:6] not in str(caught.value)


def test_a_key_of_another_server_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Token: {KEY}\nAuthorization: Bearer {KEY}")
    with running(echo) as (server, url):
        client(url).ask(asks(1), text)
    assert KEY not in str(server.headers)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_neither_key_nor_texts_follow_a_redirect(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with running(echo) as (elsewhere, other):
        place = {"location": f"{other}/chat/completions?was={KEY}"}
        with running(lambda request: Fault(status, place)) as (server, url):
            with pytest.raises(UserError, match=rf"sends requests on to {other}.*\(HTTP {status}\)") as caught:
                client(url, api_key_env="JUDGE_KEY", concurrency=1).ask(asks(3), text)
    assert (len(server.asked), len(elsewhere.asked)) == (1, 0)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"choices": [{"message": {"content": "A"}, "logprobs": {"content": [{"top_logprobs": [{"token": "1", '
        b'"logprob": 1' + b"0" * 400 + b"}]}]}}]}",
        b"<html><body>502</body></html>",
        b"[1]",
        b'{"choices": {"0": 1}}',
        b'{"choices": [{"message": {"content": ["A"]}}]}',
        b"\xff\xfe\x00",
    ],
    ids=["nested", "a_huge_number", "html", "list", "mapping", "parts", "binary"],
)
def test_what_is_no_chat_completion_is_unanswered(body: bytes) -> None:
    with running(lambda request: body) as (_, url):
        found = client(url, concurrency=1).ask(asks(1), text)
    assert found == [Unanswered(reason="what the server sent is no chat completion")]


@pytest.mark.parametrize("tokens", [10**18, 10**300, -1, True, "7", 7.5, None])
def test_numbers_of_tokens_that_cannot_be_are_unknown(tokens: Any) -> None:
    body = {"choices": [{"message": {"content": "A"}}], "usage": {"prompt_tokens": tokens, "completion_tokens": tokens}}
    with running(lambda request: body) as (_, url):
        one = client(url)
        assert one.ask(asks(1), text) == ["A"]
    assert one.answers.spent("judge").tokens == 0


def test_a_missing_key_and_a_missing_package_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(UserError, match=r"endpoints\.judge: the environment variable JUDGE_KEY is not set"):
        client("http://localhost/v1", api_key_env="JUDGE_KEY")
    imported = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "openai":
            raise ImportError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'rlhf-loop\[endpoints\]'"):
        client("http://localhost/v1")


def test_a_budget_of_requests_stops_and_keeps_what_was_answered(tmp_path: Path) -> None:
    answers = Answers(tmp_path / FILE)
    with running(echo, latency=0.01) as (server, url):
        with pytest.raises(UserError, match=r"7 requests are spent.*raise `max_requests`"):
            client(url, answers, max_requests=7, concurrency=3).ask(asks(20), text)
        assert len(server.asked) == answers.spent("judge").requests == answers.spent("judge").answers == 7
        assert len(client(url, answers, max_requests=20, concurrency=3).ask(asks(20), text)) == 20
    assert len(server.asked) == 20
    assert len({str(request) for request in server.asked}) == 20


def test_retries_are_within_the_budget_too() -> None:
    with running(lambda request: Fault(500)) as (server, url):
        with pytest.raises(UserError, match="2 requests are spent"):
            client(url, max_requests=2, max_retries=5).ask(asks(1), text)
    assert len(server.asked) == 2


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_budget_of_tokens_is_never_passed_whatever_is_on_its_way(concurrency: int, tmp_path: Path) -> None:
    answers = Answers(tmp_path / FILE)
    sent = {"model": "fake", "messages": [{"role": "user", "content": "question 0"}], "temperature": 0.0}
    read = len(json.dumps({**sent, "max_tokens": 50}))
    limit = 10 * (read + 50) + 5
    with running(echo, usage=(read, 50), latency=0.02) as (server, url):  # as many as may be
        one = client(url, answers, max_total_tokens=limit, max_answer_tokens=50, concurrency=concurrency)
        said = f"{limit - 5} of {limit} tokens are spent, and the next question may take {read + 51}.*raise `max_total"
        with pytest.raises(UserError, match=said):
            one.ask(asks(20), text)
        assert len(server.asked) == 10
        more = client(url, answers, max_total_tokens=3 * limit, max_answer_tokens=50, concurrency=concurrency)
        assert len(more.ask(asks(20), text)) == 20
        assert len(server.asked) == 20
    assert server.most_at_once == concurrency


def test_what_requests_hold_of_a_budget_is_given_back(tmp_path: Path) -> None:
    with running(echo, usage=(3, 2), latency=0.02) as (server, url):  # far fewer than each may take
        one = client(url, Answers(tmp_path / FILE), max_total_tokens=1000, max_answer_tokens=50, concurrency=8)
        assert len(one.ask(asks(40), text)) == 40
        assert 1 < server.most_at_once < 8  # there is no room for more than some at a time
        assert one.answers.spent("judge").tokens == 200
    with running(first(Fault(500), times=30)) as (server, url):  # a failure too
        one = client(url, max_total_tokens=400, max_answer_tokens=50, max_retries=0, concurrency=1)
        assert [isinstance(said, Unanswered) for said in one.ask(asks(7), text)] == [True] * 7


def test_what_is_held_is_known_to_all_processes_and_ends_with_them(tmp_path: Path) -> None:
    mine, other = Answers(tmp_path / FILE), Answers(tmp_path / FILE)
    number = mine.hold("judge", 60, limit=100, seconds=60)
    assert isinstance(number, int)
    assert other.hold("judge", 50, limit=100, seconds=60) == "wait"
    assert isinstance(other.hold("writer", 50, limit=100, seconds=60), int)  # another budget
    mine.let_go(number)
    assert isinstance(other.hold("judge", 50, limit=100, seconds=-1), int)  # of one that died
    assert isinstance(mine.hold("judge", 60, limit=100, seconds=60), int)
    assert mine.hold("writer", 101, limit=100, seconds=60) == "wait"
    assert mine.hold("third", 101, limit=100, seconds=60) == "spent"


def test_a_budget_of_tokens_needs_a_server_that_counts_them() -> None:
    with running(echo, usage=None) as (_, url):
        one = client(url)
        one.ask(asks(2), text)
        assert one.answers.spent("judge").without_usage == 2
        with pytest.raises(UserError, match="does not say how many tokens"):
            client(url, max_total_tokens=1000).ask(asks(1), text)


def test_an_answer_of_another_form_is_asked_for_once_more(tmp_path: Path) -> None:
    def read(reply: Reply) -> int:
        if not reply.text.isdigit():
            raise Unreadable("no number")
        return int(reply.text)

    said = iter(["no idea", "5", "no idea", "still none"])
    answers = Answers(tmp_path / FILE)
    with running(lambda request: next(said)) as (server, url):
        assert client(url, answers, concurrency=1).ask(asks(2), read) == [5, Unanswered(reason="no number")]
        assert client(url, answers, concurrency=1).ask(asks(2), read) == [5, Unanswered(reason="no number")]
    assert len(server.asked) == 4
    assert answers.spent("judge") == Spent(
        requests=4, answers=4, prompt_tokens=44, completion_tokens=28, cached=4, failures=2, unreadable=6
    )


def test_fields_that_the_server_does_not_know_are_left_out_from_then_on() -> None:
    def say(request: dict[str, Any]) -> Any:
        return Fault(400, text="unknown field") if "response_format" in request else echo(request)

    with running(say) as (server, url):
        found = client(url, concurrency=1).ask(asks(4, schema={"type": "object"}), text)
    assert found == [f"answer to question {i}" for i in range(4)]
    assert ["response_format" in request for request in server.asked] == [True, False, False, False, False]
    assert server.asked[0]["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_works_inside_a_running_event_loop() -> None:
    async def inside(url: str) -> Any:
        return client(url).ask(asks(2), text)

    with running(echo) as (_, url):
        assert asyncio.run(inside(url)) == ["answer to question 0", "answer to question 1"]


def _ask_all(url: str, path: str, n: int) -> None:
    client(url, Answers(Path(path)), concurrency=4).ask(asks(n), text)


def test_a_process_that_is_killed_asks_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / FILE
    with running(echo, latency=0.03) as (server, url):
        process = multiprocessing.get_context("spawn").Process(target=_ask_all, args=(url, str(path), 200))
        process.start()
        while len(server.asked) < 40 and process.is_alive():
            time.sleep(0.01)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        answers = Answers(path)
        kept, sent = answers.spent("judge").answers, len(server.asked)
        assert sent - 4 <= kept <= sent  # at most those on their way are lost
        found = client(url, answers, concurrency=4).ask(asks(200), text)
    assert found == [f"answer to question {i}" for i in range(200)]
    assert len(server.asked) == sent + 200 - kept
    assert answers.spent("judge").answers == 200


def test_two_processes_share_one_file_and_one_budget(tmp_path: Path) -> None:
    path, context = tmp_path / FILE, multiprocessing.get_context("spawn")
    with running(echo, latency=0.005) as (server, url):
        processes = [context.Process(target=_ask_all, args=(url, str(path), 100)) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
        answers = Answers(path)
        assert answers.spent("judge").requests == len(server.asked)
        before = len(server.asked)
        client(url, answers).ask(asks(100), text)
    assert len(server.asked) == before


def test_the_file_is_its_owners_alone_and_holds_no_question(tmp_path: Path) -> None:
    with running(lambda request: "fine") as (_, url):
        answers = Answers(tmp_path / FILE)
        client(url, answers).ask([Ask(messages=({"role": "user", "content": "my secret wish"},))], text)
    assert all(file.stat().st_mode & 0o077 == 0 for file in tmp_path.iterdir())
    answers.close()
    assert b"secret wish" not in (tmp_path / FILE).read_bytes()
    assert spent_in(tmp_path)["judge"]["requests"] == 1
    assert spent_in(tmp_path / "elsewhere") == {}


def test_answers_about_what_is_deleted_leave_the_file(tmp_path: Path) -> None:
    with running(lambda request: f"on {request['messages'][0]['content']}") as (_, url):
        answers = Answers(tmp_path / FILE)
        one = client(url, answers)
        one.ask([Ask(messages=({"role": "user", "content": n},), about=(n,)) for n in ("gone-1", "stays-1")], text)
        assert answers.forget(lambda ids, said: "gone-1" in ids) == 1
        assert answers.forget(lambda ids, said: "gone-1" in said) == 0
    answers.close()
    assert b"on gone-1" not in (tmp_path / FILE).read_bytes()
    assert b"on stays-1" in (tmp_path / FILE).read_bytes()


def test_a_damaged_file_is_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("no database " * 100)
    with pytest.raises(UserError, match="a damaged file can be deleted"):
        Answers(tmp_path / FILE)
    with pytest.raises(UserError, match="a damaged file can be deleted"):
        spent_in(tmp_path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"api_key_env": KEY}, "must be the NAME of an environment variable"),
        ({"api_key_env": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz"}, "must be the NAME"),
        ({"api_key_env": "AKIAIOSFODNN7EXAMPLE"}, "this is a key"),
        ({"api_key_env": [KEY]}, "must be the NAME"),
        ({"base_url": f"https://user:{KEY}@api.example.com/v1"}, "no user, password or query"),
        ({"base_url": f"https://api.example.com/v1?key={KEY}"}, "no user, password or query"),
        ({"base_url": "localhost:8000"}, "http or https URL"),
        ({"api_key": KEY}, "unknown key `endpoints.judge.api_key`; did you mean `api_key_env`"),
    ],
)
def test_a_recipe_with_a_key_in_it_is_refused_without_repeating_it(values: dict[str, Any], words: str) -> None:
    from rlhf_loop.recipe import parse

    block = {"base_url": "https://api.example.com/v1", "model": "m", **values}
    recipe = {"name": "x", "policy": {"model": "m"}, "endpoints": {"judge": block}}
    with pytest.raises(UserError, match="endpoints") as caught:
        parse({**recipe, "evaluation": {"judge": {"kind": "rule"}}, "prompts": {"train": ["a"], "test": ["b"]}})
    assert words in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"base_url": "http://localhost:99999/v1"}, "http or https URL"),
        ({"base_url": "http://[::1/v1"}, "http or https URL"),
        ({"temperature": float("inf")}, "finite number"),
        ({"body": {"seed": float("nan")}}, "what JSON can"),
        ({"body": {"since": datetime.date(2024, 1, 1)}}, "date into quotes"),
        ({"body": {"stream": True}}, "`body.stream` cannot be set"),
        ({"body": {"messages": [{"role": "user", "content": "say 9"}]}}, "`body.messages` cannot be set"),
    ],
    ids=["port", "brackets", "infinite", "nan", "date", "stream", "messages"],
)
def test_settings_that_no_request_can_be_made_with_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EndpointSettings(**{"base_url": "http://localhost:8000/v1", "model": "m", **values})


def test_what_answers_depend_on_is_the_server_and_the_model_not_how_fast_they_are_asked() -> None:
    one = EndpointSettings(base_url="http://localhost:8000/v1/", model="m")
    same = EndpointSettings(
        base_url="http://localhost:8000/v1", model="m", api_key_env="KEY", concurrency=2, timeout=1, max_requests=3
    )
    other = EndpointSettings(base_url="http://localhost:8001/v1", model="m")
    assert one.identity == same.identity != other.identity
    assert json.dumps(one.identity)
