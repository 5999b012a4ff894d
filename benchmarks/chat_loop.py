"""A chat application whose users' thumbs make its policy better, by the commands that a user types.

    python benchmarks/chat_loop.py --work DIR --out benchmarks/results/chat_loop.json

Begins `recipes/chat_thumbs.yaml` with round 0, serves it, and lets simulated users ask the training questions through
the `openai` client. They give each answer a thumb by the rule `brief_and_complete`: up where it gives more than 0.5,
with the noise of the quickstart's annotator. Then `rlhf-loop watch --once` starts a round. Printed is the win-rate of
the new policy over the base on held-out questions, judged by the rule without noise, and whether the service, which
never stopped, answers with the promoted policy.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import describe, free_port

from rlhf_loop.annotators.rules import RULES
from rlhf_loop.policies import listed
from rlhf_loop.run_dir import RunDir

ROOT = Path(__file__).parent.parent
TEMPERATURE, NOISE = 0.05, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the run")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "chat_thumbs.yaml")
    parser.add_argument("--answers", type=int, default=4, help="to each question")
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", help="key.sub=value, of the recipe")
    arguments = parser.parse_args()
    run = arguments.work / "run"
    recipe = [str(arguments.recipe), *arguments.overrides, "--run-dir", str(run)]
    command("run", *recipe, "--rounds", "0")
    port = free_port()
    service = subprocess.Popen([sys.executable, "-m", "rlhf_loop", "serve", str(run), "--port", str(port)])
    try:
        wait_until_ready(port, service)
        started = time.perf_counter()
        thumbs = chat(port, questions(), arguments.answers)
        talked = time.perf_counter() - started
        print(f"{thumbs['up']} thumbs up, {thumbs['down']} down in {talked:.0f} s", flush=True)
        started = time.perf_counter()
        command("watch", *recipe, "--once")
        trained = time.perf_counter() - started
        result = outcome(run)
        after = answered_by(port, result["promoted"])
    finally:
        service.terminate()
        service.wait(timeout=60)
    result |= {"thumbs": thumbs, "chat_seconds": round(talked, 1), "round_seconds": round(trained, 1), "served": after}
    rate = result["win_rate_vs_base"]
    print(
        f"win-rate over the base {rate['mean']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}] (n={rate['n']}), "
        f"{result['decision']}; the service now answers with {after}"
    )
    if arguments.out:
        arguments.out.write_text(json.dumps({"machine": describe(), **result}, indent=1) + "\n")


def questions() -> list[str]:
    """What the users ask: the quickstart's training questions."""
    lines = (ROOT / "recipes" / "data" / "quickstart_train.jsonl").read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def chat(port: int, asked: list[str], n: int) -> dict[str, int]:
    """Every question is asked once, and each of its answers gets a thumb."""
    import httpx
    from openai import OpenAI

    chance = random.Random(0)
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    feedback = httpx.Client(base_url=f"http://127.0.0.1:{port}")
    given = {"up": 0, "down": 0}
    for number, question in enumerate(asked):
        user = f"user-{number % 12}"
        answer = client.chat.completions.create(
            model="promoted", messages=[{"role": "user", "content": question}], n=n, user=user
        )
        items = []
        for choice in answer.choices:
            thumb = "up" if likes(question, choice.message.content or "", choice.finish_reason, chance) else "down"
            given[thumb] += 1
            items.append({"response_id": answer.id, "choice": choice.index, "thumb": thumb, "user": user})
        feedback.post("/v1/feedback/bulk", json={"items": items}).raise_for_status()
    return given


def likes(question: str, text: str, finish: str, chance: random.Random) -> bool:
    """A simulated user: P(up) = sigmoid((rule - 0.5) / temperature), a coin in a share `NOISE` of the cases."""
    if chance.random() < NOISE:
        return chance.random() < 0.5
    value = RULES["brief_and_complete"](question, text, finish == "stop").value
    return chance.random() < 1 / (1 + math.exp(-(value - 0.5) / TEMPERATURE))


def outcome(run: Path) -> dict[str, Any]:
    """What the last round came to."""
    files = RunDir(run)
    number = files.complete_rounds()[-1]
    evaluation = json.loads((files.step(number, "evaluate") / "evaluation.json").read_text())
    decision = json.loads((files.step(number, "gate") / "decision.json").read_text())
    update = json.loads((files.step(number, "update") / "metrics.json").read_text())
    return {
        "round": number,
        "promoted": next(policy["id"] for policy in listed(run) if policy["promoted"]),
        "decision": decision["reason"],
        "win_rate_vs_base": evaluation["win_rate_vs_base"],
        "perplexity_ratio": evaluation["perplexity"]["ratio"],
        "plain_text_ratio": (evaluation["plain_text_perplexity"] or {}).get("ratio"),
        "kl": evaluation["kl"]["per_completion"],
        "update": {name: update[name] for name in ("algorithm", "steps")},
    }


def answered_by(port: int, expected: str, seconds: float = 120) -> str:
    """The policy that answers a chat, once it is the expected one, or after `seconds`."""
    from openai import OpenAI

    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    deadline = time.monotonic() + seconds
    while True:
        answer = client.chat.completions.create(model="promoted", messages=[{"role": "user", "content": "Hello."}])
        if answer.model == expected or time.monotonic() > deadline:
            return answer.model
        time.sleep(1)


def command(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "rlhf_loop", *arguments], check=True)


def wait_until_ready(port: int, service: subprocess.Popen[bytes], seconds: float = 120) -> None:
    import httpx

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and service.poll() is None:
        try:
            listed = httpx.get(f"http://127.0.0.1:{port}/v1/models").json()
            if listed["data"]:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise SystemExit("the service did not come up")


if __name__ == "__main__":
    main()
