"""Judging pairs with a model behind a server: what asking costs beside the server's own time, and after a kill.

    python benchmarks/endpoint.py --out benchmarks/results/endpoint.json

A server of the tests (`tests/samples/endpoint.py`) in a process of its own answers each request after `--latency`
seconds. `ideal_seconds` is requests x latency / concurrency. The same is then begun in a process that is killed,
finished in this one, and asked for once more.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from machine import describe

from rlhf_loop.annotators import make_annotator
from rlhf_loop.annotators.endpoint import EndpointAnnotatorSettings
from rlhf_loop.endpoints.answers import spent_in
from rlhf_loop.endpoints.client import Endpoints
from rlhf_loop.endpoints.settings import EndpointSettings
from rlhf_loop.records import Completion, Message, Prompt, Question

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--latency", type=float, default=0.1)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    pairs, requests = arguments.pairs, 2 * arguments.pairs
    result: dict[str, Any] = {
        "pairs": pairs,
        "requests": requests,
        "latency": arguments.latency,
        "concurrency": arguments.concurrency,
        "ideal_seconds": requests * arguments.latency / arguments.concurrency,
    }
    with tempfile.TemporaryDirectory() as folder, server(arguments.latency) as url:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        result["seconds"], result["processor_seconds"] = judge(url, whole, pairs, arguments.concurrency)
        assert counts(url)["asked"] == spent_in(whole)["judge"]["requests"] == requests
        result["most_at_once"] = counts(url)["most_at_once"]

        work = (url, killed, pairs, arguments.concurrency)
        process = multiprocessing.get_context("spawn").Process(target=judge, args=work)
        process.start()
        while counts(url)["asked"] < requests * 1.4:
            time.sleep(0.05)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        before, kept = counts(url)["asked"] - requests, spent_in(killed)["judge"]["answers"]
        seconds, _ = judge(*work)
        after = counts(url)["asked"] - requests - before
        again, _ = judge(*work)
        result["killed"] = {
            "asked_before": before,
            "kept": kept,
            "asked_after": after,
            "asked_again_though_kept": after - (requests - kept),
            "seconds_to_finish": seconds,
            "seconds_once_more": again,
            "asked_once_more": counts(url)["asked"] - requests - before - after,
        }
    result = {name: rounded(value) for name, value in result.items()} | {"machine": describe()}
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def judge(url: str, run: Path, pairs: int, concurrency: int) -> tuple[float, float]:
    """Seconds, and those of the processor, until a preference on each pair is there."""
    questions, completions, prompts = texts(pairs)
    settings = EndpointSettings(base_url=url, model="fake", concurrency=concurrency)
    import openai  # noqa: F401  # its second is not the server's

    started, busy = time.perf_counter(), time.process_time()
    with Endpoints({"judge": settings}, run) as endpoints:
        annotator = make_annotator(EndpointAnnotatorSettings(endpoint="judge"), 0, endpoints)
        said = annotator.answer(questions, completions, prompts, 0)
    assert len(said) == pairs
    assert all(one.kind == "preference" and one.winner in ("a", "b", "tie") for one in said)
    return time.perf_counter() - started, time.process_time() - busy


def texts(pairs: int) -> tuple[list[Question], dict[str, Completion], dict[str, Prompt]]:
    rng = random.Random(0)
    lines = (ROOT / "recipes" / "data" / "plain_text.jsonl").read_text(encoding="utf-8").splitlines()
    words = " ".join(json.loads(line)["text"] for line in lines).split()

    def some(least: int, most: int) -> str:
        start = rng.randrange(len(words) - most)
        return " ".join(words[start : start + rng.randint(least, most)])

    prompts, completions, questions = {}, {}, []
    for i in range(pairs):
        prompts[f"p{i}"] = Prompt(id=f"p{i}", group=f"p{i}", messages=(Message(role="user", content=some(5, 30)),))
        for name in ("a", "b"):
            completions[f"{name}{i}"] = Completion(
                id=f"{name}{i}", prompt_id=f"p{i}", text=some(10, 120), policy="base", round=0
            )
        questions.append(Question(id=f"q{i}", prompt_id=f"p{i}", a_id=f"a{i}", b_id=f"b{i}", round=0))
    return questions, completions, prompts


@contextmanager
def server(latency: float) -> Iterator[str]:
    command = [sys.executable, str(ROOT / "tests" / "samples" / "endpoint.py"), "--latency", str(latency)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def counts(url: str) -> dict[str, int]:
    with urllib.request.urlopen(url) as answer:
        found: dict[str, int] = json.loads(answer.read())
    return found


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return round(value, 2) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
