"""What learning from critiques costs.

    python benchmarks/critiques.py --work DIR --parts cost --out benchmarks/results/critiques.json

- `cost`: the quickstart's DPO over 16 pairs of answers of its base policy, alone and with each loss of critiques beside
  it, all in one process in turn. Its simulated annotator's words are the critiques. Measured is `trainer.train()`,
  after a training of one step, and what the entry test of `hindsight` says of the base policy (the loss itself is
  trained without the test).

`--work` keeps the answers. A part's figures replace its own in `--out`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from machine import describe
from transformers import PrinterCallback
from trl import DPOConfig
from updates_pairs import make_rows

from rlhf_loop.annotators.rules import brief_and_complete
from rlhf_loop.errors import UserError
from rlhf_loop.models.memory import release_memory
from rlhf_loop.recipe import Critiques, Recipe
from rlhf_loop.record_files import read_records
from rlhf_loop.records import CritiquedCompletion, PreferencePair
from rlhf_loop.updates import dpo
from rlhf_loop.updates.terms.trainer import add_terms
from rlhf_loop.updates.train_and_save import Training

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
PARTS = ("cost",)
PAIRS = 16
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "predict": {"predict": {}},
    "unlikelihood": {"unlikelihood": {}},
    "hindsight": {"hindsight": {"entry_test": False}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, help="default: a temporary folder")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with nullcontext(arguments.work) if arguments.work else tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts:
            result = {"cost": cost}[part](Path(folder), arguments.repeats)
            if arguments.out:
                kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
                kept[part] = {"machine": describe(), **result}
                arguments.out.write_text(json.dumps(kept, indent=1) + "\n")


def cost(work: Path, repeats: int) -> dict[str, Any]:
    """Seconds of one update, with each loss and without."""
    if not (work / "pairs.parquet").exists():
        make_rows(work)
    pairs: list[PreferencePair] = read_records(work / "pairs.parquet", PreferencePair)[:PAIRS]
    rows = [complaint(pair) for pair in pairs]
    print(f"{len(pairs)} pairs; critiques such as {rows[0].critique!r}", flush=True)
    trained(work, pairs, rows, {}, max_steps=1)
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    of_cpu: dict[str, list[float]] = {name: [] for name in METHODS}
    logged: dict[str, dict[str, float]] = {}
    for _ in range(repeats):
        for name, methods in METHODS.items():
            taken, cpu, log = trained(work, pairs, rows, methods)
            seconds[name].append(round(taken, 2))
            of_cpu[name].append(round(cpu, 2))
            logged[name] = {key: round(value, 4) for key, value in log.items()}
            print(f"{name}: {taken:.1f} s, of CPU {cpu:.1f} {logged[name]}", flush=True)
    ratios = {
        kind: {
            name: round(statistics.median(a / b for a, b in zip(taken, times["none"], strict=True)), 2)
            for name, taken in times.items()
        }
        for kind, times in {"seconds": seconds, "of_cpu": of_cpu}.items()
    }
    print(f"times as long as dpo alone: {ratios}", flush=True)
    return {
        "pairs": len(pairs), "seconds": seconds, "cpu_seconds": of_cpu, "ratio": ratios, "last_logged": logged,
        "entry_test": entry(work),
    }  # fmt: skip


def entry(work: Path) -> str:
    """What the entry test of `hindsight` says of the base policy, of the complaints about all answers there are."""
    pairs: list[PreferencePair] = read_records(work / "pairs.parquet", PreferencePair)
    one = {pair.rejected_id: complaint(pair) for pair in pairs}
    try:
        _, _, log = trained(work, pairs[:PAIRS], list(one.values()), {"hindsight": {}}, max_steps=1)
        said = f"passed: {log}"
    except UserError as error:
        said = str(error)
    print(said, flush=True)
    return said


def trained(
    work: Path,
    pairs: list[PreferencePair],
    rows: list[CritiquedCompletion],
    methods: dict[str, Any],
    max_steps: int = -1,
) -> tuple[float, float, dict[str, float]]:
    """Seconds of `trainer.train()`, of the CPU in it, and what was logged last of critiques."""
    recipe = Recipe.load(RECIPE, [f"update.trainers.dpo.max_steps={max_steps}"])
    training = Training(
        start=recipe.policy.model, reference=recipe.policy.model, output=work / "output", policy=recipe.policy,
        settings=recipe.update, seed=0, critiques=rows, critique_settings=Critiques.model_validate(methods),
    )  # fmt: skip
    with training.begun():
        arguments = training.arguments(DPOConfig)
        arguments.save_strategy = "no"
        trainer, tokenizer, _ = dpo._trainer(pairs, training, arguments)
        trainer.remove_callback(PrinterCallback)
        add_terms(trainer, tokenizer, training)
        started, before = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, of_cpu = time.perf_counter() - started, time.process_time() - before
    log = {name: value for entry in trainer.state.log_history for name, value in entry.items() if "critiques" in name}
    del trainer
    release_memory()
    return seconds, of_cpu, log


def complaint(pair: PreferencePair) -> CritiquedCompletion:
    """What the quickstart's annotator would say of the worse answer."""
    asked, text = pair.prompt[-1]["content"], pair.rejected[-1]["content"]
    advice = brief_and_complete(asked, text, pair.rejected_finished).advice
    return CritiquedCompletion(
        id=pair.id, prompt_id=pair.prompt_id, group=pair.group, prompt=pair.prompt, completion=pair.rejected,
        finished=pair.rejected_finished, token_ids=pair.rejected_token_ids, completion_id=pair.rejected_id,
        critique=" ".join(advice[:2]) or "Say it better.", label=False, origin="simulated", annotator="rule",
    )  # fmt: skip


if __name__ == "__main__":
    main()
