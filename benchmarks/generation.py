"""Tokens a second of `rlhf_loop.generation` against transformers' own `generate`, alternating in one run.

    python benchmarks/generation.py --model MODEL [--prompts 60 --samples 4 --tokens 48] [--out FILE.json]

Both sample the same prompts at temperature 1 with the same model in memory; `generate` gets batches of `--batch`
rows, length-sorted and left-padded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from rlhf_loop.generation import generate
from rlhf_loop.models.files import WHEEL_MODEL
from rlhf_loop.models.loading import device, encode_prompts, load_tokenizer, resolve_model, to_messages, tune_cpu_memory
from rlhf_loop.recipe import Generation, Policy
from rlhf_loop.records import Message, Prompt

TOPICS = ["walking to work", "learning to cook", "a garden in winter", "sleeping well", "reading a map"]
TOPICS += ["the history of bread", "a good question", "keeping bees", "rain", "mending a bicycle", "old letters", "tea"]
TASKS = ["Write three sentences about {}.", "What should a beginner know about {}?", "Give me one reason to like {}."]
TASKS += ["Explain {} to a child of eight, and say why it matters.", "What do people get wrong about {}, and why?"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=WHEEL_MODEL)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--batch", type=int, default=128, help="rows of one `generate` call")
    parser.add_argument("--batch-tokens", type=int, default=16384, help="our batches: rows x padded length")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lora", type=int, default=0, help="rank of a random adapter on every linear layer; 0: none")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    tune_cpu_memory()
    settings = Policy(model=arguments.model, dtype=arguments.dtype)
    model = AutoModelForCausalLM.from_pretrained(resolve_model(arguments.model), dtype=getattr(torch, settings.dtype))
    tokenizer = load_tokenizer(arguments.model, settings)
    model.eval().to(device())
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if arguments.lora:
        model = with_adapter(model, arguments.lora)
    texts = [task.format(topic) for topic in TOPICS for task in TASKS]
    prompts = [
        Prompt(id=str(i), group=str(i), messages=(Message(role="user", content=texts[i % len(texts)]),))
        for i in range(arguments.prompts)
    ]
    sampling = Generation(
        samples_per_prompt=arguments.samples, max_new_tokens=arguments.tokens, batch_tokens=arguments.batch_tokens
    )
    rates: dict[str, list[float]] = {"generate": [], "rlhf_loop": []}
    for repeat in range(arguments.repeats + 1):  # the first one warms up
        for name in rates:
            started = time.perf_counter()
            if name == "generate":
                tokens = stock(model, tokenizer, prompts, settings, sampling, arguments.batch)
            else:
                made = generate(
                    (model, tokenizer),
                    prompts,
                    sampling,
                    policy_settings=settings,
                    policy_id="p",
                    round=0,
                    seed=repeat,
                )
                tokens = sum(completion.tokens for completion in made)
            seconds = time.perf_counter() - started
            if repeat:
                rates[name].append(tokens / seconds)
            print(f"{name:10} {tokens:6} tokens {seconds:7.2f} s {tokens / seconds:7.0f} tokens/s", flush=True)
    result = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    result["ratio"] = round(result["rlhf_loop"] / result["generate"], 2)
    print(f"median: generate {result['generate']} tokens/s, rlhf_loop {result['rlhf_loop']}: {result['ratio']}x")
    if arguments.out:
        machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        machine |= {"cores": os.cpu_count(), "torch": torch.__version__}
        report = {"arguments": vars(arguments) | {"out": None}, "machine": machine, "rates": rates, "median": result}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def stock(model: Any, tokenizer: Any, prompts: list[Prompt], settings: Policy, sampling: Generation, batch: int) -> int:
    """Samples with `model.generate`; the number of tokens made."""
    encoded = sorted(encode_prompts(tokenizer, [to_messages(p, settings) for p in prompts]), key=len)
    rows = [ids for ids in encoded for _ in range(sampling.samples_per_prompt)]
    made = 0
    for start in range(0, len(rows), batch):
        inputs = tokenizer.pad({"input_ids": rows[start : start + batch]}, padding_side="left", return_tensors="pt")
        output = model.generate(
            **inputs.to(model.device), max_new_tokens=sampling.max_new_tokens, do_sample=True, top_k=0
        )
        made += int((output[:, inputs["input_ids"].shape[1] :] != tokenizer.pad_token_id).sum())
    return made


def with_adapter(model: Any, rank: int) -> Any:
    """The model under a LoRA adapter that is not zero."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data *= 0.01  # as small as training leaves it
    return adapted.eval()


if __name__ == "__main__":
    main()
