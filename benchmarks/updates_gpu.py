"""PPO and DPO at 0.5B and 1.5B on a GPU, against TRL 1.12: seconds, tokens, memory, share of the peak speed.

    python benchmarks/updates.py --parts gpu --work FOLDER

This has never run on a GPU. Random weights in bfloat16, shapes as of models of these sizes, in turn with TRL 1.12 in an
environment of its own. Ours in DPO is the trainer of TRL that `rlhf_loop.updates.dpo` builds on. The operations behind
the share of the peak are those that are of use: 2 a parameter and token forward, 6 forward and backward. In PPO
sampling, policy, critic and reference go forward once, and policy and critic are trained once an epoch; in DPO the
reference goes forward and the policy is trained.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from updates_upstream import PAD, TASKS, Task, common, prompts

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
"""Operations a second in bfloat16, dense, by NVIDIA's data sheets."""

PAIRS, STEPS = 8, 12
"""Of a DPO step, and of its training."""


def gpu(work: Path, python: str) -> dict[str, Any]:
    """Every size, algorithm and side; refuses where there is no CUDA device."""
    if not torch.cuda.is_available():
        raise SystemExit("part gpu needs a CUDA device, and torch sees none here; leave it out of --parts")
    from updates import child, measured, versions_of

    device = torch.cuda.get_device_name()
    peak = next((speed for name, speed in PEAKS.items() if name in device), None)
    rows = []
    for size in ("0.5B", "1.5B"):
        task, folder = TASKS[size], work / size
        if not (folder / "tokenizer.json").exists():
            child(sys.executable, "updates_upstream.py", "--task", size, "--folder", folder, "--make")
        parameters = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2
        for side, interpreter in (("upstream", python), ("ours", sys.executable)):
            what = ("--task", size, "--folder", folder)
            ppo = measured(work, interpreter, "updates_upstream.py", *what, "--side", side)
            asked = task.rollouts * task.rollout * (sum(task.prompt_words) / 2 + 1)
            operations = (asked + ppo["tokens"]) * parameters * (2 + 6 + 12 * task.epochs)
            dpo = measured(work, interpreter, "updates_gpu.py", *what)
            rows += [
                {
                    "size": size,
                    "side": side,
                    "algorithm": algorithm,
                    "seconds_a_step": result["seconds"] / steps,
                    "tokens_per_second": result["tokens_per_second"],
                    "gib": result["accelerator_gib"],
                    "share_of_peak": made / result["seconds"] / peak if peak else None,
                }
                for algorithm, result, steps, made in (
                    ("ppo", ppo, task.rollouts * task.epochs * task.minibatches, operations),
                    ("dpo", dpo, STEPS, dpo["tokens"] * parameters * 8),
                )
            ]
            print(json.dumps(rows[-2:]), flush=True)
    return {"device": device, "upstream_versions": versions_of(python), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description="(one training with DPO, in either environment)")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    trainer = dpo_trainer(TASKS[arguments.task], arguments.folder)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    tokens = sum(len(ids) for row in trainer.train_dataset for name, ids in row.items() if name.endswith("_ids"))
    tokens += sum(len(row["prompt_ids"]) for row in trainer.train_dataset)  # it is read with either answer
    arguments.out.write_text(
        json.dumps(
            {
                "seconds": seconds,
                "tokens": tokens,
                "tokens_per_second": tokens / seconds,
                "accelerator_gib": torch.cuda.max_memory_allocated() / 2**30,
            }
        )
    )


def dpo_trainer(task: Task, folder: Path) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    chance = random.Random(0)
    words = [f"w{number}" for number in range(1000)]

    def answer() -> str:
        return " " + " ".join(chance.choices(words, k=task.completion_tokens))

    rows = [{**row, "chosen": answer(), "rejected": answer()} for row in prompts(task, 0)[: PAIRS * STEPS]]
    known = ("seed", "learning_rate", "lr_scheduler_type", "bf16", "use_cpu", "gradient_checkpointing")
    settings = {name: value for name, value in common(task, 0).items() if name in known}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.config.pad_token_id = PAD
    return DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(folder / "dpo"),
            max_steps=STEPS,
            per_device_train_batch_size=PAIRS,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )


if __name__ == "__main__":
    main()
