"""The service under load: feedback posts a second, and annotators whose processes and server are killed.

    python benchmarks/feedback_service.py [--parts posts training leases] [--postgres URL] [--out FILE.json]

posts: 200 posts a second for `--seconds`, on a fixed schedule (a late answer delays nothing that follows, and its
lateness is in its time), from a process of its own against a server of its own; once alone and once (`training`)
beside a real training of a small model at the same priority.

leases: `--annotators` people judge cards over HTTP for `--seconds`, each in one of several processes that are killed
and started again, while the server is killed (SIGKILL) and started again too. Afterwards every answer that was
confirmed must be in the store, once, and no question may have more judges than it asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from machine import describe, free_port

from rlhf_loop.feedback.store import tokens
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Completion, Prompt, Question

HERE = Path(__file__)
TEXT = "The tide follows the moon because its pull is stronger on the side that faces it. " * 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["posts", "training", "leases"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument(
        "--postgres", default=os.environ.get("RLHF_LOOP_TEST_POSTGRES"), help="URL of an empty database"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--as", dest="role", choices=["poster", "annotators", "trainer"], help=argparse.SUPPRESS)
    parser.add_argument("--given", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        {"poster": poster, "annotators": annotators, "trainer": trainer}[arguments.role](arguments.given)
        return
    results: dict[str, Any] = {"machine": describe(), "seconds": arguments.seconds}
    stores = {"sqlite": None} | ({"postgres": arguments.postgres} if arguments.postgres else {})
    for name, url in stores.items():
        for part in arguments.parts:
            with tempfile.TemporaryDirectory() as folder:
                fresh = fresh_store(Path(folder), url)
                if part == "leases":
                    found = leases(fresh, Path(folder), arguments)
                else:
                    found = posts(fresh, Path(folder), arguments, beside=part == "training")
            print(f"{name} {part}: {json.dumps(found)}", flush=True)
            results[f"{name}/{part}"] = found
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


# -- posts -------------------------------------------------------------------------------------------------------------


def posts(url: str, folder: Path, arguments: argparse.Namespace, beside: bool) -> dict[str, Any]:
    """Times of posts at a fixed rate, in milliseconds."""
    with Store.open(url) as store:
        fill(store, answers=2000)
        _, secret = tokens.create(store, "app", "bench")
    port = free_port()
    given = {"port": port, "secret": secret, "seconds": arguments.seconds, "rate": arguments.rate}
    training = None
    with Server(url, port, folder):
        if beside:
            training = start("trainer", {"seconds": arguments.seconds + 60})
            training.stdout.readline()  # it has begun its first step
        found = json.loads(finish(start("poster", given)))
        if training is not None:
            training.send_signal(signal.SIGTERM)
            steps = training.communicate()[0].split()
            found["training_steps_a_second"] = round(len(steps) / arguments.seconds, 2)
    with Store.open(url) as store:
        found["stored"] = len(store.feedback(effective=False))
    assert found["stored"] == found["confirmed"], found
    return found


def poster(given: dict[str, Any]) -> None:
    """Posts on a schedule; what is printed is the times from when a post was due to its answer.

    Plain HTTP over 16 connections that are kept: a client that computed more would be measured too.
    """
    late: list[float] = []
    failed: Counter[str] = Counter()

    async def post(connection: asyncio.Queue[Any], number: int, due: float) -> None:
        reader, writer = await connection.get()
        thumb = {"response_id": f"c{number % 2000}", "thumb": "up", "user": f"user-{number}", "comment": TEXT[:80]}
        body = json.dumps(thumb).encode()
        writer.write(
            (
                f"POST /v1/feedback HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {given['secret']}\r\n"
                f"Content-Type: application/json\r\nIdempotency-Key: k{number}\r\nContent-Length: {len(body)}\r\n\r\n"
            ).encode()
            + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
        connection.put_nowait((reader, writer))
        status = head.split()[1]
        if status == "200":
            late.append(time.perf_counter() - due)
        else:
            failed[status] += 1

    async def run() -> float:
        connections: asyncio.Queue[Any] = asyncio.Queue()
        for _ in range(16):
            connections.put_nowait(await asyncio.open_connection("127.0.0.1", given["port"]))
        for number in range(100):  # caches
            await post(connections, -1 - number, time.perf_counter())
        late.clear()
        started, tasks = time.perf_counter(), []
        for number in range(int(given["seconds"] * given["rate"])):
            due = started + number / given["rate"]
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(post(connections, number, due)))
        await asyncio.gather(*tasks)
        return time.perf_counter() - started

    seconds = asyncio.run(run())
    times = sorted(1000 * value for value in late)
    print(
        json.dumps(
            {
                "posts_a_second": round(len(times) / seconds, 1),
                "p50_ms": round(statistics.median(times), 1),
                "p95_ms": round(times[int(0.95 * len(times))], 1),
                "p99_ms": round(times[int(0.99 * len(times))], 1),
                "max_ms": round(times[-1], 1),
                "confirmed": len(times) + 100,
                "failed": dict(failed),
            }
        )
    )


def trainer(given: dict[str, Any]) -> None:
    """A causal model of 10M parameters in training, a line a step."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16384, **size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    until = time.time() + given["seconds"]
    while time.time() < until:
        ids = torch.randint(0, 16384, (4, 128))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print("step", flush=True)


# -- leases ------------------------------------------------------------------------------------------------------------


def leases(url: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What is left of the queue after annotators, their processes and the server were killed again and again."""
    rng = random.Random(0)
    with Store.open(url) as store:
        fill(store, answers=4000)
        questions = [
            Question(id=f"q{n}", prompt_id=f"p{n}", a_id=f"c{2 * n}", b_id=f"c{2 * n + 1}", round=0, overlap=1 + n % 3)
            for n in range(2000)
        ]
        store.add_questions(questions)
        secrets = [tokens.create(store, "annotator", f"ann{n}")[1] for n in range(arguments.annotators)]
    port = free_port()
    parts = [secrets[n::5] for n in range(5)]
    logs = [folder / f"confirmed{n}.jsonl" for n in range(5)]
    for log in logs:
        log.touch()
    given = [
        {"port": port, "secrets": part, "first": n, "log": str(log), "every": 5}
        for n, (part, log) in enumerate(zip(parts, logs, strict=True))
    ]
    killed = {"annotators": 0, "server": 0}
    server = Server(url, port, folder)
    server.begin()
    people = [start("annotators", values) for values in given]
    until = time.monotonic() + arguments.seconds
    while time.monotonic() < until:
        time.sleep(6)
        if rng.random() < 0.3:
            server.kill()
            server.begin()
            killed["server"] += 1
        else:
            victim = rng.randrange(5)
            people[victim].kill()
            people[victim].wait()
            people[victim] = start("annotators", given[victim])
            killed["annotators"] += 1
    for person in people:
        person.kill()
        person.wait()
    server.stop()
    return {**account(url, logs, {q.id: q for q in questions}), "killed": killed}


def account(url: str, logs: list[Path], questions: dict[str, Question]) -> dict[str, Any]:
    """Confirmed answers against the store."""
    confirmed = [json.loads(line) for log in logs for line in log.read_text().splitlines() if line.endswith("}")]
    with Store.open(url) as store:
        said = store.feedback(kinds=["preference"])
        everything = store.feedback(kinds=["preference"], effective=False)
        answered = {question.id for question in store.questions(status="answered")}
    of_pair = {f"{q.a_id}|{q.b_id}": q for q in questions.values()}
    judges = Counter((f"{r.a_id}|{r.b_id}", r.annotator.id) for r in said)
    count = Counter(pair for pair, _ in judges)
    stored = {(of_pair[pair].id, who) for pair, who in judges}
    sent = Counter((row["question"], row["who"]) for row in confirmed)
    return {
        "confirmed": len(confirmed),
        "stored": len(said),
        "lost": sum(key not in stored for key in sent),
        "doubled": sum(n > 1 for n in judges.values()) + len(everything) - len(said),
        "too_many_judges": sum(n > of_pair[pair].overlap for pair, n in count.items()),
        "answered_wrongly": sum(
            (count[pair] >= question.overlap) != (question.id in answered) for pair, question in of_pair.items()
        ),
        "answers_a_person_confirmed_twice": sum(n > 1 for n in sent.values()),
    }


def annotators(given: dict[str, Any]) -> None:
    """People who open a card, look at it, and judge it; what was confirmed is noted in a file."""

    async def person(number: int, secret: str) -> None:
        who = f"ann{given['first'] + given['every'] * number}"
        headers = {"Authorization": f"Bearer {secret}"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{given['port']}", headers=headers, timeout=10) as http:
            while True:
                try:
                    await judge(http, who)
                except httpx.HTTPError:
                    await asyncio.sleep(0.2)  # the server is away; what was not confirmed is sent again below

    async def judge(http: httpx.AsyncClient, who: str) -> None:
        card = await next_card(http)
        if card is None:
            await asyncio.sleep(0.5)
            return
        await asyncio.sleep(random.uniform(0.05, 0.4))
        judgement = judgement_of(card)
        for _ in range(20):
            try:
                if await send(http, judgement):
                    with open(given["log"], "a", encoding="utf-8") as log:
                        log.write(json.dumps({"who": who, "question": card["question"]}) + "\n")
                return
            except httpx.HTTPError:
                await asyncio.sleep(0.3)

    async def run() -> None:
        await asyncio.gather(*(person(number, secret) for number, secret in enumerate(given["secrets"])))

    asyncio.run(run())


async def next_card(http: httpx.AsyncClient) -> dict[str, Any] | None:
    answer = await http.post("/annotate/api/next", json={})
    answer.raise_for_status()
    card: dict[str, Any] | None = answer.json()["card"]
    return card


def judgement_of(card: dict[str, Any]) -> dict[str, Any]:
    nothing = {"comment": "", "tags": [], "spans": []}
    return {
        "submission": f"{random.getrandbits(64):016x}",
        "question": card["question"],
        "verdict": random.choice(["first", "second", "tie"]),
        "answers": [nothing, nothing],
    }


async def send(http: httpx.AsyncClient, judgement: dict[str, Any]) -> bool:
    answer = await http.post("/annotate/api/submit", json=judgement)
    answer.raise_for_status()
    return True


# -- what they share ---------------------------------------------------------------------------------------------------


class Server:
    """`rlhf-loop serve` in a process of its own."""

    def __init__(self, url: str, port: int, folder: Path):
        self.command = [sys.executable, "-m", "rlhf_loop", "serve", "--store", url, "--no-chat", "--port", str(port)]
        self.port = port
        self.log = folder / "server.log"

    def begin(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        for _ in range(600):
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/healthz", timeout=1).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
        raise SystemExit(f"the server does not start:\n{self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def __enter__(self) -> Server:
        self.begin()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def fill(store: Store, answers: int) -> None:
    """Prompts with two answers each."""
    prompts = [
        Prompt(id=f"p{n}", group=f"p{n}", messages=({"role": "user", "content": f"{n}: {TEXT}"},))
        for n in range(answers // 2)
    ]
    store.add_prompts(prompts)
    store.add_completions(
        Completion(id=f"c{n}", prompt_id=f"p{n // 2}", text=f"{n}: {TEXT}", policy="base", round=0)
        for n in range(answers)
    )


def fresh_store(folder: Path, url: str | None) -> str:
    """An empty store: a file, or a schema of its own in a PostgreSQL database."""
    if url is None:
        return f"sqlite:///{folder / 'feedback.db'}"
    import sqlalchemy as sa

    from rlhf_loop.feedback.store.location import parse_url

    name = f"bench_{os.getpid()}_{time.time_ns()}"
    server = sa.create_engine(parse_url(url), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    server.dispose()
    own = parse_url(url).set(drivername="postgresql").update_query_dict({"options": f"-csearch_path={name}"})
    return own.render_as_string(hide_password=False)


def start(role: str, given: dict[str, Any]) -> subprocess.Popen[str]:
    """This file in another process."""
    command = [sys.executable, str(HERE), "--as", role, "--given", json.dumps(given)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"ended with status {process.returncode}: {process.args}")
    return output


if __name__ == "__main__":
    main()
