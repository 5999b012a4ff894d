"""DPO, a reward model and PPO on models of real shapes: the part `gpu` of `scale.py`, which says how it is called.

    python benchmarks/scale_gpu.py --shape tiny --part dpo --side ours --folder FOLDER --out FILE    (one training)

Models have the shapes of Qwen2.5 and random weights, made here. `stock` is the trainer of TRL that ours builds on,
given the same token ids, weights and reference; TRL has no PPO any more since 1.13 (`updates.py --parts upstream`
compares with the last there was), so `ppo` is ours alone. Each training is a process of its own, the sides in turn.

`share_of_peak` (MFU): the operations of the training, by `rlhf_loop/plan/operations.py` (2 a weight and token forward,
4 backward, 2 beside frozen weights, and attention's), over the seconds times the device's peak, by
`rlhf_loop/plan/hardware.py`: of GPUs the maker's data sheet, dense, of a CPU measured. Operations are those of each
answer read with its prompt, whoever computes a prompt once for both. The first `WARM` steps are not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine import peak_memory

WARM = 2
PARTS: dict[str, tuple[str, ...]] = {"dpo": ("stock", "ours"), "reward": ("stock", "ours"), "ppo": ("ours",)}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A shape, and how it is trained."""

    config: dict[str, Any]
    prompt: int  # tokens
    answer: int
    pairs: int  # of a step
    steps: int  # that count
    dtype: str = "bfloat16"
    lora: dict[str, Any] | None = None  # None: every weight
    ppo: dict[str, int] = field(default_factory=lambda: {"per_device_train_batch_size": 16, "num_mini_batches": 2})


def qwen(width: int, inner: int, layers: int, heads: int, groups: int, vocabulary: int, tied: bool) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "max_position_embeddings": 4096,
        "tie_word_embeddings": tied,
    }  # fmt: skip


TASKS = {
    "tiny": Task(
        config=qwen(64, 128, 2, 4, 2, 512, True), prompt=40, answer=16, pairs=4, steps=4, dtype="float32",
        ppo={"per_device_train_batch_size": 4, "num_mini_batches": 2},
    ),
    "0.5B": Task(config=qwen(896, 4864, 24, 14, 2, 151936, True), prompt=256, answer=256, pairs=16, steps=10),
    "1.5B": Task(config=qwen(1536, 8960, 28, 12, 2, 151936, True), prompt=256, answer=256, pairs=8, steps=10),
    "7B": Task(
        config=qwen(3584, 18944, 28, 28, 4, 152064, False), prompt=256, answer=256, pairs=8, steps=10,
        lora={"r": 16, "alpha": 32},
    ),
}  # fmt: skip
"""7B with an adapter: every weight of it with Adam takes more than one GPU has."""


def gpu(shapes: Sequence[str], parts: Sequence[str], repeats: int, folder: Path, vllm: bool) -> dict[str, Any]:
    """Each shape, part and side, in turn, and ratios by pairs; then vLLM against the loop's own engine."""
    rows = []
    for shape in shapes:
        make_model(TASKS[shape], folder / shape)
        for part in parts:
            measured: dict[str, list[dict[str, Any]]] = {side: [] for side in PARTS[part]}
            failed: dict[str, str] = {}
            for _ in range(repeats):
                for side in [side for side in measured if side not in failed]:
                    found = one(shape, part, side, folder)
                    print(f"{shape}, {part}, {side}: {found}", flush=True)
                    if isinstance(found, str):
                        failed[side] = found
                    else:
                        measured[side].append(found)
            rows.append({"shape": shape, "part": part, **compared(measured), "failed": failed, "each": measured})
    return {"shapes": rows, "engines": engines(shapes, folder) if vllm else None}


def compared(measured: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians, and how often the stock trainer takes as long as ours, pair by pair."""
    names = ("tokens_per_second", "share_of_peak", "peak_gib")
    result: dict[str, Any] = {
        side: {
            name: None if found[0][name] is None else statistics.median(row[name] for row in found) for name in names
        }
        for side, found in measured.items()
        if found
    }
    if len(result) == 2:
        pairs = zip(measured["stock"], measured["ours"], strict=False)  # one side may have failed later
        result["ratio_each"] = [round(stock["seconds"] / ours["seconds"], 2) for stock, ours in pairs]
        result["ratio"] = statistics.median(result["ratio_each"])
    return result


def one(shape: str, part: str, side: str, folder: Path) -> dict[str, Any] | str:
    """A training in a process of its own; where it failed, such as for want of memory, its last words."""
    out = folder / "one.json"
    what = ["--shape", shape, "--part", part, "--side", side, "--folder", str(folder), "--out", str(out)]
    process = subprocess.run(
        [sys.executable, __file__, *what], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if process.returncode:
        print(process.stdout[-4000:], flush=True)
        return (process.stdout.strip().splitlines() or ["nothing"])[-1][:300]
    return dict(json.loads(out.read_text()))


def engines(shapes: Sequence[str], folder: Path) -> dict[str, Any]:
    """vllm_engine.py on each shape."""
    found = {}
    for shape in shapes:
        out = folder / f"vllm-{shape}.json"
        command = [sys.executable, str(Path(__file__).parent / "vllm_engine.py"), "--model", str(folder / shape)]
        subprocess.run([*command, "--out", str(out)], check=True)
        found[shape] = json.loads(out.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="(one training)")
    parser.add_argument("--shape", choices=TASKS, required=True)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--side", choices=["stock", "ours"], required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    task, model = TASKS[arguments.shape], arguments.folder / arguments.shape
    steps = watch_steps()
    operations, tokens = train(task, arguments.part, arguments.side, model)
    counted = steps[-1] - steps[WARM - 1]
    share = (len(steps) - WARM) / len(steps)  # of the steps, and so of the operations
    peak = peak_of(task.dtype)
    result = {
        "seconds": round(counted, 3),
        "steps": len(steps) - WARM,
        "tokens_per_second": round(tokens * share / counted, 1),
        "share_of_peak": round(operations * share / counted / peak, 4) if peak else None,
        "peak_gib": round(memory(), 2),
    }
    arguments.out.write_text(json.dumps(result))


def watch_steps() -> list[float]:
    """The moments at which the steps of a training of this process end."""
    import torch
    import transformers.trainer
    from transformers import TrainerCallback

    ends: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    transformers.trainer.DEFAULT_CALLBACKS.append(Watch)
    return ends


def train(task: Task, part: str, side: str, model: Path) -> tuple[float, int]:
    """Makes a training; gives its operations, and the tokens of prompts and answers that go through it."""
    from plan import Texts

    from rlhf_loop.models.loading import load_tokenizer
    from rlhf_loop.recipe import Policy

    policy = Policy(model=str(model), dtype=task.dtype, attn_implementation="sdpa" if side == "stock" else "auto")
    texts = Texts(load_tokenizer(str(model)), task.prompt, task.answer)
    steps = task.steps + WARM
    if part == "ppo":
        rollouts = steps // task.ppo["num_mini_batches"]
        rows = task.ppo["per_device_train_batch_size"] * task.ppo["num_mini_batches"] * rollouts
        settings = {**task.ppo, "num_ppo_epochs": 1, "max_steps": steps, "kl_coef": 0.05}
        update("ppo", [texts.prompt(number) for number in range(rows)], task, policy, settings)
    else:
        rows = 2 * task.pairs * steps
        pairs = [texts.pair(number) for number in range(rows // 2)]
        settings = {"per_device_train_batch_size": task.pairs, "num_train_epochs": 1}
        if part == "dpo":
            if side == "stock":
                dpo_of_trl()
            update("dpo", pairs, task, policy, settings)
        else:
            reward_model(pairs, task, policy, side, settings)
    return operations(task, part, model, rows), rows * (task.prompt + task.answer)


def update(algorithm: str, rows: Sequence[Any], task: Task, policy: Any, settings: dict[str, Any]) -> None:
    from rlhf_loop.recipe import Generation, Update
    from rlhf_loop.updates import update_policy

    update_policy(
        rows, start=policy.model, reference=policy.model, output=output(policy), policy=policy,
        settings=Update(algorithm=algorithm, lora=task.lora, trainer={"learning_rate": 1e-6, **settings}),
        generation=Generation(max_new_tokens=task.answer),
        reward=lambda prompts, completions, **_: [float(number % 3) for number in range(len(prompts))],
    )  # fmt: skip


def dpo_of_trl() -> None:
    """Puts TRL's trainer in the place of ours."""
    from updates_pairs import Stock

    from rlhf_loop.updates import dpo

    dpo._Tokenised = Stock.DPO  # type: ignore[misc]


def reward_model(pairs: Sequence[Any], task: Task, policy: Any, side: str, settings: dict[str, Any]) -> None:
    from datasets import Dataset
    from trl import RewardTrainer

    from rlhf_loop.reward_spec import parse_spec
    from rlhf_loop.rewards import bradley_terry

    def of_trl(model: Any, arguments: Any, *, train_dataset: Any, data_collator: Any, **named: Any) -> Any:
        """TRL's trainer, with a row for each pair."""
        rows = [
            {f"{side}_ids": row["texts"][row[side][number]] for side in ("chosen", "rejected")}
            for row in train_dataset
            for number in range(len(row["chosen"]))
        ]
        return RewardTrainer(model, arguments, train_dataset=Dataset.from_list(rows), **named)

    if side == "stock":
        bradley_terry.UniqueTextsRewardTrainer = of_trl  # type: ignore[assignment,misc]
    spec: Any = parse_spec({"kind": "bradley_terry", "lora": task.lora, "probe": False, "trainer": settings})
    bradley_terry.train(spec, pairs, output(policy), policy=policy, seed=0, report_to=(), progress=None)


def output(policy: Any) -> Path:
    return Path(tempfile.mkdtemp(dir=Path(policy.model).parent))


def operations(task: Task, part: str, model: Path, rows: int) -> float:
    """Of a training on so many texts; of ppo with sampling them, scores of policy, critic and reference, one epoch."""
    from rlhf_loop.plan.formulas import Texts
    from rlhf_loop.plan.operations import forward_operations, training_operations
    from rlhf_loop.plan.shape import adapter_of, shape_of

    shape = shape_of(str(model))
    adapter = None if task.lora is None else adapter_of(shape, task.lora["r"], "all-linear")
    scored = 0 if part == "reward" else rows * task.answer
    texts = Texts(rows=rows, length=task.prompt + task.answer, scored=scored)
    forward, training = forward_operations(shape, texts), training_operations(shape, texts, adapter, False)
    return {"reward": training, "dpo": forward + training, "ppo": 4 * forward + 2 * training}[part]


def peak_of(dtype: str) -> float | None:
    """Operations a second of this device; None for a GPU that is in no table."""
    import torch

    from rlhf_loop.plan import hardware

    if not torch.cuda.is_available():
        return hardware.measured(hardware.this_cpu(), dtype).peak  # type: ignore[arg-type]
    name = torch.cuda.get_device_name()
    known = next((gpu for key, gpu in hardware.GPUS.items() if all(part in name for part in key.split("-"))), None)
    return getattr(known, dtype) if known else None


def memory() -> float:
    """GiB at the peak: of the GPU what torch took, else resident."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else peak_memory()


def make_model(task: Task, folder: Path) -> None:
    """Random weights of a Qwen2 of this shape, with the tokenizer of `tiny-random:0`; once."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    from rlhf_loop.models.files import resolve_model
    from rlhf_loop.models.loading import load_tokenizer

    if (folder / "tokenizer.json").exists():
        return
    tokenizer = load_tokenizer(resolve_model("tiny-random:0"))
    torch.manual_seed(0)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):  # on a CPU, 7B random numbers take minutes
        config = Qwen2Config(**task.config, **ends, bos_token_id=None)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, task.dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
