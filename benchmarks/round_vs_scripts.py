"""One round of the loop against the same work wired by hand from TRL's stock classes, as its documentation shows.

    python benchmarks/round_vs_scripts.py --out benchmarks/results/round_vs_scripts.json

The scripts: a process a step, each loading its model again; `generate` as documented; RewardTrainer and DPOTrainer as
they come. Same model, pairs, LoRA, batch sizes, learning rates, numbers of tokens, precision. Both sides do: reward
model on the same pairs, scores of the candidates, DPO, answers to the held-out prompts with KL and perplexity, fresh
candidates, their scores. The two are run in turn; reported is wall-clock with start-up and without it (without: from
the moment that each process has imported its libraries).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from machine import describe, run_measured

from rlhf_loop.settings import read_yaml, write_yaml

ROOT = Path(__file__).parent.parent
PARTS = ("reward", "score", "dpo", "evaluate", "generate", "rescore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", choices=PARTS, help="(one step of the scripts, in its own process)")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.part:
        stock(arguments.part, arguments.folder)
        return
    ours, scripts = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe = write_recipe(folder, arguments.prompts)
        base_run = folder / "base"
        subprocess.run(command(recipe, base_run, rounds=1), check=True)
        prepare(base_run, folder)
        for repeat in range(arguments.repeats):
            ours.append(one_round(recipe, base_run, folder / f"ours-{repeat}"))
            scripts.append(all_scripts(folder))
            print(f"repeat {repeat}: loop {ours[-1]}, scripts {scripts[-1]}", flush=True)
    ratios = {
        name: round(min(row[name] for row in scripts) / min(row[name] for row in ours), 2)
        for name in ("seconds", "seconds_without_start")
    }
    print(f"scripts / loop: {ratios['seconds']}x with start-up, {ratios['seconds_without_start']}x without")
    if arguments.out:
        result = {
            "machine": describe(),
            "prompts": arguments.prompts,
            "loop": ours,
            "scripts": scripts,
            "ratio": ratios,
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def write_recipe(folder: Path, prompts: int) -> Path:
    """The quickstart with a Bradley-Terry reward model and fewer prompts."""
    source = ROOT / "recipes" / "quickstart.yaml"
    values = read_yaml(source.read_text(), str(source))
    here = ROOT / "recipes"
    lines = (here / "data" / "quickstart_train.jsonl").read_text().splitlines()[:prompts]
    held_out = (here / "data" / "quickstart_dev.jsonl").read_text().splitlines()[:prompts]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "test.jsonl").write_text("\n".join(held_out) + "\n")
    (folder / "reward").mkdir()
    (folder / "reward" / "reward_model.yaml").write_text(
        write_yaml(
            {
                "kind": "bradley_terry",
                "lora": values["update"]["lora"],
                "trainer": {"learning_rate": 3e-4, "num_train_epochs": 1, "per_device_train_batch_size": 4},
            }
        )
    )
    values |= {
        "name": "round",
        "prompts": {"train": [str(folder / "train.jsonl")], "test": [str(folder / "test.jsonl")]},
    }
    values["reward"] = {"model": str(folder / "reward")}
    values["feedback"]["questions_per_round"] = 2 * prompts
    values["pairing"]["max_pairs"] = None
    values["pairing"]["sources"] = ["feedback"]
    values["update"]["trainers"]["dpo"].pop("save_steps", None)
    values["evaluation"]["plain_text"] = None
    values["gate"]["max_plain_text_ratio"] = None
    recipe = folder / "round.yaml"
    recipe.write_text(write_yaml(values))
    return recipe


def command(recipe: Path, run: Path, rounds: int) -> list[str]:
    return [sys.executable, "-m", "rlhf_loop", "run", str(recipe), "--run-dir", str(run), "--rounds", str(rounds)]


def one_round(recipe: Path, base_run: Path, run: Path) -> dict[str, float]:
    """Round 1 of the loop in a copy of the run whose round 0 is done."""
    shutil.copytree(base_run, run)
    shutil.rmtree(run / "round_001")
    seconds, memory = run_measured(command(recipe, run, rounds=1))
    manifest = json.loads((run / "round_001" / "manifest.json").read_text())
    without = sum(manifest["steps"].values())
    return {"seconds": round(seconds, 1), "seconds_without_start": round(without, 1), "memory_gib": round(memory, 2)}


def prepare(run: Path, folder: Path) -> None:
    """What round 1 read, as plain JSON for the scripts."""
    from rlhf_loop.record_files import read_records
    from rlhf_loop.records import Completion, PreferencePair, Prompt

    first = run / "round_001"
    pairs = read_records(first / "assemble" / "training_data.parquet", PreferencePair)
    prompts = read_records(first / "snapshot" / "prompts.parquet", Prompt)
    held_out = read_records(first / "snapshot" / "held_out.parquet", Prompt)
    by_id = {prompt.id: list(prompt.messages) for prompt in prompts}
    candidates = read_records(run / "round_000" / "generate" / "completions.parquet", Completion)
    data = {
        "pairs": [{"prompt": list(p.prompt), "chosen": list(p.chosen), "rejected": list(p.rejected)} for p in pairs],
        "prompts": list(by_id.values()),
        "held_out": [list(prompt.messages) for prompt in held_out],
        "candidates": [{"prompt": by_id[c.prompt_id], "text": c.text} for c in candidates],
        "recipe": read_yaml((folder / "round.yaml").read_text(), "round.yaml"),
        "reward": read_yaml((folder / "reward" / "reward_model.yaml").read_text(), "reward_model.yaml"),
    }
    (folder / "data.json").write_text(json.dumps(data))


def all_scripts(folder: Path) -> dict[str, float]:
    started = time.perf_counter()
    memory = without = 0.0
    for part in PARTS:
        _, peak = run_measured([sys.executable, __file__, "--part", part, "--folder", str(folder)])
        memory = max(memory, peak)
        without += float((folder / f"{part}.seconds").read_text())
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 1), "seconds_without_start": round(without, 1), "memory_gib": round(memory, 2)}


def stock(part: str, folder: Path) -> None:
    """One step as TRL's and transformers' documentation shows it."""
    import torch
    from datasets import Dataset
    from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    from rlhf_loop.models.files import resolve_model

    data = json.loads((folder / "data.json").read_text())
    started = time.perf_counter()
    model_path = resolve_model(data["recipe"]["policy"]["model"])
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    torch.manual_seed(0)

    def lora(task: str) -> LoraConfig:
        block = data["recipe"]["update"]["lora"]
        modules = block["target_modules"]
        return LoraConfig(r=block["r"], lora_alpha=block["alpha"], target_modules=modules, task_type=task)

    def generate(model, prompts: list, samples: int) -> list[dict]:
        settings = data["recipe"]["generation"]
        left = AutoTokenizer.from_pretrained(model_path, padding_side="left")
        written = []
        for start in range(0, len(prompts), 32):
            batch = prompts[start : start + 32]
            inputs = left.apply_chat_template(
                batch, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
            )
            with torch.no_grad():
                ids = model.generate(
                    **inputs, do_sample=True, temperature=settings["temperature"], top_k=0,
                    max_new_tokens=settings["max_new_tokens"], num_return_sequences=samples,
                )  # fmt: skip
            texts = left.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            written += [{"prompt": batch[i // samples], "text": text} for i, text in enumerate(texts)]
        return written

    def forward(model, completions: list[dict], size: int) -> Iterator[torch.Tensor]:
        for start in range(0, len(completions), size):
            chats = [
                [*c["prompt"], {"role": "assistant", "content": c["text"]}] for c in completions[start : start + size]
            ]
            inputs = tokenizer.apply_chat_template(chats, padding=True, return_dict=True, return_tensors="pt")
            with torch.no_grad():
                logits = model(**inputs).logits
            yield logits

    def score(completions: list[dict]) -> list[float]:
        model = AutoPeftModelForSequenceClassification.from_pretrained(
            folder / "stock-reward", num_labels=1, dtype=torch.bfloat16
        )
        model.config.pad_token_id = tokenizer.pad_token_id
        return [value for logits in forward(model, completions, 16) for value in logits[:, 0].tolist()]

    def log_probs(model, completions: list[dict]) -> list[torch.Tensor]:
        return [logits.float().log_softmax(-1) for logits in forward(model, completions, 8)]

    def policy():
        return AutoPeftModelForCausalLM.from_pretrained(folder / "stock-policy", dtype=torch.bfloat16)

    common = {"report_to": "none", "gradient_checkpointing": False, "disable_tqdm": True, "use_cpu": True}
    if part == "reward":
        settings = data["reward"]["trainer"]
        model = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=1, dtype=torch.bfloat16)
        # Its batches count pairs; ours count prompts, each with all its pairs (two).
        batch = 2 * settings["per_device_train_batch_size"]
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(
                output_dir=str(folder / "stock-reward"), learning_rate=settings["learning_rate"],
                num_train_epochs=settings["num_train_epochs"], per_device_train_batch_size=batch, **common,
            ),
            train_dataset=Dataset.from_list(data["pairs"]), processing_class=tokenizer, peft_config=lora("SEQ_CLS"),
        )  # fmt: skip
        trainer.train()
        trainer.save_model()
    elif part == "score":
        score(data["candidates"])
    elif part == "dpo":
        settings = data["recipe"]["update"]["trainers"]["dpo"]
        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16)
        trainer = DPOTrainer(
            model=model, args=DPOConfig(output_dir=str(folder / "stock-policy"), **settings, **common),
            train_dataset=Dataset.from_list(data["pairs"]), processing_class=tokenizer, peft_config=lora("CAUSAL_LM"),
        )  # fmt: skip
        trainer.train()
        trainer.save_model()
    elif part == "evaluate":
        model = policy()
        answers = generate(model, data["held_out"], 1)
        ours = log_probs(model, answers)
        with model.disable_adapter():
            base = log_probs(model, answers)
        print("kl", sum(float((p.exp() * (p - q)).sum()) for p, q in zip(ours, base, strict=True)) / len(answers))
    elif part == "generate":
        samples = data["recipe"]["generation"]["samples_per_prompt"]
        (folder / "fresh.json").write_text(json.dumps(generate(policy(), data["prompts"], samples)))
    elif part == "rescore":
        score(json.loads((folder / "fresh.json").read_text()))
    (folder / f"{part}.seconds").write_text(str(time.perf_counter() - started))


if __name__ == "__main__":
    main()
