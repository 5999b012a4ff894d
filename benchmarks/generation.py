"""Tokens a second of `rlhf_loop.generation` under each attention, and of transformers' own `generate`, in one run.

    python benchmarks/generation.py [--dtype float32 --prompts 64 --samples 4 --tokens 48] [--out FILE.json]
    python benchmarks/generation.py --compare grouped --profile  # where the time of one sampling goes

All sample the same prompts at temperature 1 with the same model in memory, taking turns; `generate` has transformers'
choice of attention (sdpa) and gets batches of `--batch` rows, length-sorted and left-padded. `products` is the limit:
the products with the model's weights alone, of as many rows, and nothing else. `compiled` is `grouped` with norms and
feed-forward layers under `torch.compile`; compiling is not in its time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe

from rlhf_loop.generation import generate
from rlhf_loop.machine import GROUPED
from rlhf_loop.models.attention import with_attention
from rlhf_loop.models.loading import load_policy, to_messages
from rlhf_loop.models.memory import tune_cpu_memory
from rlhf_loop.models.turns import encode_prompts
from rlhf_loop.models.wheel_model import WHEEL_MODEL
from rlhf_loop.recipe import Generation, Policy
from rlhf_loop.records import Message, Prompt

TOPICS = ["walking to work", "learning to cook", "a garden in winter", "sleeping well", "reading a map"]
TOPICS += ["the history of bread", "a good question", "keeping bees", "rain", "mending a bicycle", "old letters", "tea"]
TASKS = ["Write three sentences about {}.", "What should a beginner know about {}?", "Give me one reason to like {}."]
TASKS += ["Explain {} to a child of eight, and say why it matters.", "What do people get wrong about {}, and why?"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=WHEEL_MODEL)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compare", default="generate,eager,sdpa,grouped", help="of these, the ones to compare")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--batch", type=int, default=128, help="rows of one `generate` call")
    parser.add_argument("--batch-tokens", type=int, default=32768, help="our batches: rows x padded length")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lora", type=int, default=0, help="rank of a random adapter on every linear layer; 0: none")
    parser.add_argument("--profile", action="store_true", help="print the operators of one sampling each, and no rates")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    tune_cpu_memory()
    settings = Policy(model=arguments.model, dtype=arguments.dtype, attn_implementation=None)
    model, tokenizer = load_policy(arguments.model, settings)
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
    names = arguments.compare.split(",")

    def tokens_of(name: str, seed: int, tokens: int = arguments.tokens) -> int:
        chosen = sampling.model_copy(update={"max_new_tokens": tokens})
        if name == "generate":
            return stock(model, tokenizer, prompts, settings, chosen, arguments.batch)
        if name == "products":
            return products(model, tokenizer, prompts, settings, chosen)
        attend(model, name)
        made = generate(
            (model, tokenizer), prompts, chosen, policy_settings=settings, policy_id="p", round=0, seed=seed
        )
        return sum(completion.tokens for completion in made)

    if arguments.profile:
        for name in names:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                tokens_of(name, 0)
            print(name, profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=30), sep="\n")
        return
    torch._dynamo.config.recompile_limit = 1000  # one code object serves all layers
    rates: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        tokens_of(name, 0, tokens=2)  # to warm up
    for repeat in range(1, arguments.repeats + 1):
        for name in names:
            started = time.perf_counter()
            tokens = tokens_of(name, repeat)
            seconds = time.perf_counter() - started
            rates[name].append(tokens / seconds)
            print(f"{name:10} {tokens:6} tokens {seconds:7.2f} s {tokens / seconds:7.0f} tokens/s", flush=True)
    result = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    ratios = {name: round(result[name] / result[names[0]], 2) for name in names}
    print("median tokens/s:", ", ".join(f"{name} {result[name]} ({ratios[name]}x)" for name in names))
    if arguments.out:
        machine = describe() | {"threads": torch.get_num_threads(), "dtype": settings.precision}
        report = {"arguments": vars(arguments) | {"out": None}, "machine": machine, "rates": rates, "median": result}
        report["ratio"] = ratios
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def attend(model: Any, name: str) -> None:
    """Computes the model's attention as `name` says."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    for module in plain.modules():
        if type(module).__name__.endswith(("RMSNorm", "MLP")):
            module.__dict__.pop("forward", None)
            if name == "compiled":
                module.forward = torch.compile(module.forward, dynamic=True)
    if name in (GROUPED, "compiled"):
        with_attention(plain, Policy(model="", attn_implementation=GROUPED))
    else:
        plain.set_attn_implementation(name)


def products(model: Any, tokenizer: Any, prompts: list[Prompt], settings: Policy, sampling: Generation) -> int:
    """Multiplies what a sampling multiplies with weights, if no answer ends early; the number of tokens that it is."""
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    *inner, head = layers
    assert head.out_features == model.config.vocab_size
    read = len(prompts) * max(
        len(ids) for ids in encode_prompts(tokenizer, [to_messages(p, settings) for p in prompts])
    )
    rows = len(prompts) * sampling.samples_per_prompt
    inputs = {
        (n, layer.in_features): torch.randn(n, layer.in_features, dtype=layer.weight.dtype)
        for n in (read, rows, len(prompts))
        for layer in layers
    }
    with torch.inference_mode():
        for step in range(sampling.max_new_tokens):
            for layer in inner:
                torch.nn.functional.linear(inputs[rows if step else read, layer.in_features], layer.weight)
            torch.nn.functional.linear(inputs[rows if step else len(prompts), head.in_features], head.weight)
    return rows * sampling.max_new_tokens


def stock(model: Any, tokenizer: Any, prompts: list[Prompt], settings: Policy, sampling: Generation, batch: int) -> int:
    """Samples with `model.generate`; the number of tokens made."""
    encoded = sorted(encode_prompts(tokenizer, [to_messages(p, settings) for p in prompts]), key=len)
    rows = [ids for ids in encoded for _ in range(sampling.samples_per_prompt)]
    made = 0
    attend(model, "sdpa")
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
