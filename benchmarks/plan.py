"""The memory that updates and reward models take in training, beside what `rlhf-loop plan` says of them.

    python benchmarks/plan.py --out benchmarks/results/plan.json
    python benchmarks/plan.py --rows dpo_full ppo_separate

Each row is a training in a process of its own, by the functions that a run calls, of a random Llama of 75M parameters
in float32 on a CPU: two steps of batches whose lengths are known. Measured is the peak of resident memory, loading with
it, less what the process had after it trained a model of 200,000 weights in the same way, which is reported apart: the
plan counts it as `process`. `in_use` leaves out what lies free in glibc's heap between pieces that are in use. `ratio`
is the plan's figure over the measured one. On Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from machine import describe, memory

from rlhf_loop.models.files import resolve_model
from rlhf_loop.plan.case import Case, Memory
from rlhf_loop.plan.hardware import this_cpu
from rlhf_loop.plan.implied import Implied
from rlhf_loop.plan.rewards import trained
from rlhf_loop.plan.shape import shape_of
from rlhf_loop.plan.sharing import CPU
from rlhf_loop.plan.update import update_memory
from rlhf_loop.recipe import Recipe, parse
from rlhf_loop.reward_spec import load_spec, parse_spec, write_spec

PROMPT, ANSWER = 48, 48
"""Tokens."""

FULL: dict[str, Any] = {"lora": None}
UPPER = {"lora": {"r": 16, "alpha": 32, "target_modules": r".*layers\.(8|9|1[0-5])\..*_proj"}}
OFFLINE = {"per_device_train_batch_size": 4, "max_steps": 2}
ONLINE = {"per_device_train_batch_size": 4, "num_mini_batches": 2, "num_ppo_epochs": 1, "max_steps": 2}
GROUPS = {"per_device_train_batch_size": 4, "steps_per_generation": 2, "num_generations": 4, "max_steps": 2}

ROWS: dict[str, dict[str, Any]] = {
    "sft_full": {"algorithm": "sft", **FULL, "trainer": OFFLINE},
    "sft_lora": {"algorithm": "sft", "trainer": OFFLINE},
    "dpo_full": {"algorithm": "dpo", **FULL, "trainer": OFFLINE},
    "dpo_full_checkpointing": {
        "algorithm": "dpo", **FULL, "trainer": {**OFFLINE, "gradient_checkpointing": True},
    },
    "dpo_full_accumulation": {
        "algorithm": "dpo", **FULL,
        "trainer": {**OFFLINE, "gradient_accumulation_steps": 2},
    },
    "dpo_lora": {"algorithm": "dpo", "trainer": OFFLINE},
    "dpo_lora_upper": {"algorithm": "dpo", **UPPER, "trainer": OFFLINE},
    "kto_full": {"algorithm": "kto", **FULL, "trainer": OFFLINE},
    "kto_lora": {"algorithm": "kto", "trainer": OFFLINE},
    "ppo_separate": {"algorithm": "ppo", **FULL, "trainer": {**ONLINE, "critic": "separate"}},
    "ppo_head": {"algorithm": "ppo", **FULL, "trainer": {**ONLINE, "critic": "head"}},
    "ppo_adapter": {"algorithm": "ppo", "trainer": {**ONLINE, "critic": "adapter"}},
    "grpo_full": {"algorithm": "grpo", **FULL, "trainer": {**GROUPS, "beta": 0.05}},
    "rloo_lora": {"algorithm": "rloo", "trainer": GROUPS},
    "reward_full": {"reward": {"kind": "bradley_terry", "lora": None, "trainer": OFFLINE}},
    "reward_lora": {"reward": {"kind": "bradley_terry", "lora": {"r": 16, "alpha": 32}, "trainer": OFFLINE}},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, help="rows that it holds and that are not measured now are kept")
    parser.add_argument("--train", choices=ROWS, help="(the training of a row, in this process)")
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    if arguments.train:
        print(json.dumps(train(arguments.train, arguments.work, arguments.dtype)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_model(work / "model")
        for name in arguments.rows:
            rows.append(compared(name, work, arguments.dtype))
            print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        before = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
        kept = {row["row"]: row for row in [*before, *rows]}
        in_order = [kept[name] for name in ROWS if name in kept]
        text = json.dumps({"machine": describe(), "dtype": arguments.dtype, "rows": in_order}, indent=1)
        arguments.out.write_text(text + "\n")


def compared(name: str, work: Path, dtype: str) -> dict[str, Any]:
    """One row: the plan's parts and the measured peak, in MiB."""
    plan = planned(name, work, dtype)
    started = time.perf_counter()
    command = [sys.executable, __file__, "--train", name, "--work", str(work), "--dtype", dtype]
    output = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if output.returncode:
        raise SystemExit(output.stderr)
    measured = json.loads(output.stdout.splitlines()[-1])
    parts = {part: round(size / 2**20) for part, size in plan.parts.items()}
    above = plan.total - plan.parts["process"]
    copy = sum(file.stat().st_size for file in (work / "model").glob("*.safetensors"))
    in_use = measured["heap"] + copy * (2 if "reference" in plan.parts else 1)  # which are mapped, not in the heap
    alive = above - plan.parts.get("read again", 0)  # mapped after the training
    return {
        "row": name,
        "ratio": round(above / measured["above"], 3),
        "ratio_with_process": round(plan.total / (measured["above"] + measured["before"]), 3),
        "planned_mib": round(above / 2**20),
        "measured_mib": round(measured["above"] / 2**20),
        "in_use": {"ratio": round(alive / in_use, 3), "mib": round(in_use / 2**20)},
        "process_mib": {"planned": parts["process"], "measured": round(measured["before"] / 2**20)},
        "moment": plan.moment,
        "parts_mib": parts,
        "seconds": round(time.perf_counter() - started),
    }


def planned(name: str, work: Path, dtype: str) -> Memory:
    """What the plan says of a row."""
    recipe = recipe_of(name, work, dtype)
    shape = shape_of(recipe.policy.model)
    rewards: dict[Path, Any] = {}
    for one in recipe.reward.weighted() if recipe.reward else ():
        spec = load_spec(one.model)
        rewards[one.model] = (spec, shape if spec.kind == "bradley_terry" else None)
    implied = Implied(
        prompt=PROMPT, answer=ANSWER, new=ANSWER, train=64, held_out=8, pairs=64, labels=64, demonstrations=64, notes=()
    )
    case = Case(
        recipe=recipe, policy=shape, rewards=rewards, implied=implied, hardware=this_cpu(),
        dtype=recipe.policy.precision, sharing=CPU,
    )  # fmt: skip
    memory = trained(case, next(iter(rewards)), {}) if "reward" in ROWS[name] else update_memory(case)
    assert memory is not None
    return memory


def recipe_of(name: str, work: Path, dtype: str) -> Recipe:
    row = ROWS[name]
    values: dict[str, Any] = {
        "name": "plan",
        "policy": {"model": str(work / "model"), "dtype": dtype},
        "prompts": {"train": ["none.jsonl"], "test": ["none.jsonl"]},
        "feedback": {"questions_per_round": 0},
        "generation": {"max_new_tokens": ANSWER, "samples_per_prompt": 2},
        "pairing": {"sources": ["feedback"]},
        "store": "none.db",
        "evaluation": {"judge": {"kind": "rule"}},
    }
    if "reward" in row:
        folder = work / name
        folder.mkdir(exist_ok=True)
        write_spec(parse_spec(row["reward"]), folder)
        return parse({**values, "update": {"algorithm": "none"}, "reward": {"model": str(folder)}})
    function = Path(__file__).parents[1] / "reward_models" / "brief_and_complete"
    return parse({**values, "update": row, "reward": {"model": str(function)}})


def train(name: str, work: Path, dtype: str) -> dict[str, int]:
    """Bytes of a process that has trained a model of next to nothing in the same way, and at the peak above them."""
    import torch

    torch.set_num_threads(1)
    tiny = work / "tiny"
    if not (tiny / "model").exists():
        tiny.mkdir()
        (tiny / "model").symlink_to(resolve_model("tiny-random:0"))
    train_once(name, tiny, dtype)  # what is imported and touched by that counts as there before
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    with Heap() as heap:
        train_once(name, work, dtype)
    return {"before": before, "above": memory("VmHWM") - before, "heap": heap.most - heap.before}


class Heap(threading.Thread):
    """The most bytes of glibc's heap that were in use within it, looked at a hundred times a second: resident memory
    also counts what lies free between them."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ask = ctypes.CDLL(None).mallinfo2
        self.ask.restype = MallocInformation
        self.before = self.most = self.in_use()
        self.done = threading.Event()

    def in_use(self) -> int:
        found = self.ask()
        return int(found.uordblks + found.hblkhd)

    def run(self) -> None:
        while not self.done.wait(0.01):
            self.most = max(self.most, self.in_use())

    def __enter__(self) -> Heap:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()


class MallocInformation(ctypes.Structure):
    """`struct mallinfo2` of malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def train_once(name: str, work: Path, dtype: str) -> None:
    """The training of a row on the model in `work`."""
    from rlhf_loop.models.loading import load_tokenizer
    from rlhf_loop.rewards import bradley_terry
    from rlhf_loop.updates import update_policy

    recipe = recipe_of(name, work, dtype)
    texts = Texts(load_tokenizer(recipe.policy.model))
    output = Path(tempfile.mkdtemp(dir=work))
    if "reward" in ROWS[name]:
        spec: Any = load_spec(work / name)
        pairs = [texts.pair(n) for n in range(40)]
        bradley_terry.train(spec, pairs, output, policy=recipe.policy, seed=0, report_to=(), progress=None)
        return
    make = {"dpo": texts.pair, "kto": texts.labelled, "sft": texts.demonstration}
    rows = [make.get(recipe.update.algorithm, texts.prompt)(n) for n in range(64)]
    if name.endswith("upper") and work.name == "tiny":  # it has no upper layers of these numbers
        recipe = recipe_of(name.removesuffix("_upper"), work, dtype)
    update_policy(
        rows, start=recipe.policy.model, reference=recipe.policy.model, output=output, policy=recipe.policy,
        settings=recipe.update, generation=recipe.generation,
        reward=lambda prompts, completions, **_: [float(n % 3) for n in range(len(prompts))],
    )  # fmt: skip


class Texts:
    """Rows of exactly so many tokens, by the tokenizer of `tiny-random:0`."""

    def __init__(self, tokenizer: Any, prompt: int = PROMPT, answer: int = ANSWER):
        self.tokenizer, self.answer = tokenizer, answer
        self.draw = random.Random(0)
        self.question = "x"
        while len(self._ids(self.question + " a")) <= prompt:
            self.question += " a"
        assert len(self._ids(self.question)) == prompt

    def _ids(self, text: str) -> list[int]:
        messages = [{"role": "user", "content": text}]
        return list(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    def _answer(self) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        ids = tuple(self.draw.randrange(64, 128) for _ in range(self.answer))
        return ({"role": "assistant", "content": self.tokenizer.decode(ids)},), ids

    def _common(self, number: int) -> dict[str, Any]:
        return {"id": str(number), "prompt_id": str(number), "group": str(number), "prompt": self._messages()}

    def _messages(self) -> tuple[Any, ...]:
        return ({"role": "user", "content": self.question},)

    def prompt(self, number: int) -> Any:
        from rlhf_loop.records import Prompt

        # as many tokens, and another prompt each time
        words = self.question.replace("x", "xyzwvutsrq"[number % 10], 1)
        return Prompt(id=str(number), group=str(number), messages=({"role": "user", "content": words},))

    def pair(self, number: int) -> Any:
        from rlhf_loop.records import PreferencePair

        (chosen, chosen_ids), (rejected, rejected_ids) = self._answer(), self._answer()
        return PreferencePair(
            **self._common(number), chosen=chosen, rejected=rejected, chosen_id=f"a{number}", rejected_id=f"b{number}",
            chosen_finished=False, rejected_finished=False, chosen_token_ids=chosen_ids,
            rejected_token_ids=rejected_ids, origin="human",
        )  # fmt: skip

    def labelled(self, number: int) -> Any:
        from rlhf_loop.records import LabelledCompletion

        answer, ids = self._answer()
        return LabelledCompletion(
            **self._common(number), completion=answer, label=number % 2 == 0, finished=False, token_ids=ids,
            completion_id=f"a{number}", origin="human",
        )  # fmt: skip

    def demonstration(self, number: int) -> Any:
        from rlhf_loop.records import Demonstration

        answer, ids = self._answer()
        return Demonstration(
            **self._common(number), completion=answer, finished=False, token_ids=ids, completion_id=f"a{number}",
            origin="best_of_n",
        )  # fmt: skip


def make_model(folder: Path, **sizes: int) -> None:
    """A random Llama with the tokenizer of `tiny-random:0`; `sizes`: of its config, other than those of 75M weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlhf_loop.models.loading import load_tokenizer

    tokenizer = load_tokenizer(resolve_model("tiny-random:0"))
    torch.manual_seed(0)
    values = {
        "vocab_size": 32768, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 16,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048,
        "tie_word_embeddings": True, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id, **sizes,
    }  # fmt: skip
    config = LlamaConfig(**values)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
