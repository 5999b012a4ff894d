"""DPO and KTO of the quickstart, as the trainers of TRL come, and as the updates use them.

    python benchmarks/updates_pairs.py --folder FOLDER --out pairs.json      # or updates.py --parts pairs
    python benchmarks/updates_pairs.py --folder FOLDER --profile dpo stock

One process loads libraries once and trains both sides in turn on the same rows: the quickstart's settings, answers that
its base policy gave to its prompts, the clearest pairs by its annotator's rule. `stock` is TRL's trainer of the same
token ids, reference and weights, with `attn_implementation: eager`, which the quickstart had before.
Measured is `trainer.train()`; beside it stands how long its matrix products alone would take.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from machine import describe
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from rlhf_loop.annotators.rules import brief_and_complete
from rlhf_loop.feedback.intake.prompts import read_prompts
from rlhf_loop.generation import generate
from rlhf_loop.models.memory import release_memory, tune_cpu_memory
from rlhf_loop.recipe import Recipe
from rlhf_loop.record_files import read_records, write_records
from rlhf_loop.records import Completion, LabelledCompletion, PreferencePair, Prompt
from rlhf_loop.updates import dpo, kto
from rlhf_loop.updates.train_and_save import Training

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
SIDES = ("stock", "ours")
PROMPTS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="keeps the answers between calls")
    parser.add_argument("--algorithms", nargs="+", choices=("dpo", "kto"), default=["dpo", "kto"])
    parser.add_argument("--dtypes", nargs="+", default=["auto"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=-1, help="fewer than an epoch")
    parser.add_argument("--profile", nargs=2, metavar=("ALGORITHM", "SIDE"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not (arguments.folder / "pairs.parquet").exists():
        make_rows(arguments.folder)
    if arguments.profile:
        profile(arguments.folder, *arguments.profile, dtype=arguments.dtypes[0], steps=arguments.steps)
        return
    results: dict[str, Any] = {}
    for dtype in arguments.dtypes:
        for algorithm in arguments.algorithms:
            seconds: dict[str, list[float]] = {side: [] for side in SIDES}
            of_cpu: dict[str, list[float]] = {side: [] for side in SIDES}
            losses: dict[str, float] = {}
            for _ in range(arguments.repeats):
                for side in SIDES:
                    taken, cpu, losses[side] = train(arguments.folder, algorithm, side, dtype, arguments.steps)
                    seconds[side].append(round(taken, 2))
                    of_cpu[side].append(round(cpu, 2))
                    print(f"{algorithm}, {dtype}, {side}: {taken:.1f} s, of CPU {cpu:.1f}", flush=True)
            ratio, ratio_of_cpu = (
                statistics.median(a / b for a, b in zip(times["stock"], times["ours"], strict=True))
                for times in (seconds, of_cpu)
            )
            results[f"{algorithm}, {dtype}"] = {
                "steps": arguments.steps if arguments.steps > 0 else "an epoch",
                "seconds": seconds,
                "cpu_seconds": of_cpu,
                "loss": losses,
                "ratio": round(ratio, 2),
                "ratio_of_cpu": round(ratio_of_cpu, 2),
            }
            print(f"{algorithm}, {dtype}: {ratio:.2f}x, of CPU time {ratio_of_cpu:.2f}x", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"machine": describe(), **results}, indent=1) + "\n")


def make_rows(folder: Path) -> None:
    """The base policy's answers to the quickstart's prompts, as pairs and as labels."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = Recipe.load(RECIPE)
    prompts = read_prompts(RECIPE.parent / "data" / "quickstart_train.jsonl")[:PROMPTS]
    answers = generate(
        recipe.policy.model,
        prompts,
        recipe.generation,
        policy_settings=recipe.policy,
        policy_id="base",
        round=0,
        seed=0,
    )
    by_prompt = {prompt.id: prompt for prompt in prompts}
    scored = []
    for answer in answers:
        asked = by_prompt[answer.prompt_id].messages[-1]["content"]
        scored.append((brief_and_complete(asked, answer.text, answer.finish_reason == "stop").value, answer))
    pairs, labels = [], []
    for (one, first), (other, second) in combinations(scored, 2):
        if first.prompt_id == second.prompt_id and one != other:
            (_, chosen), (_, rejected) = sorted([(one, first), (other, second)], key=lambda row: -row[0])
            pairs.append(pair(by_prompt[chosen.prompt_id], chosen, rejected, abs(one - other)))
    middle = statistics.median(score for score, _ in scored)
    labels = [label(by_prompt[answer.prompt_id], answer, score > middle) for score, answer in scored]
    clearest = sorted(pairs, key=lambda row: -row.margin)[: recipe.pairing.max_pairs]
    write_records(folder / "labels.parquet", labels[: 2 * len(clearest)])
    write_records(folder / "pairs.parquet", clearest)


def pair(prompt: Prompt, chosen: Completion, rejected: Completion, margin: float) -> PreferencePair:
    return PreferencePair(
        id=f"{chosen.id}-{rejected.id}", prompt_id=prompt.id, group=prompt.group, prompt=prompt.messages, margin=margin,
        chosen=({"role": "assistant", "content": chosen.text},), chosen_id=chosen.id,
        rejected=({"role": "assistant", "content": rejected.text},), rejected_id=rejected.id,
        chosen_finished=chosen.finish_reason == "stop", rejected_finished=rejected.finish_reason == "stop",
        chosen_token_ids=chosen.token_ids, rejected_token_ids=rejected.token_ids, origin="simulated",
    )  # fmt: skip


def label(prompt: Prompt, answer: Completion, good: bool) -> LabelledCompletion:
    return LabelledCompletion(
        id=answer.id, prompt_id=prompt.id, group=prompt.group, prompt=prompt.messages, label=good,
        completion=({"role": "assistant", "content": answer.text},), completion_id=answer.id,
        finished=answer.finish_reason == "stop", token_ids=answer.token_ids, origin="simulated",
    )  # fmt: skip


class Stock:
    """What the updates did before: TRL's trainer of given token ids."""

    class DPO(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    class KTO(KTOTrainer):
        _prepare_dataset = kto._Tokenised._prepare_dataset


def train(folder: Path, algorithm: str, side: str, dtype: str, steps: int) -> tuple[float, float, float]:
    """Seconds of the training, of the CPU in it, and its mean loss."""
    trainer = make_trainer(folder, algorithm, side, dtype, steps)
    started, before = time.perf_counter(), time.process_time()
    loss = trainer.train().training_loss
    seconds, of_cpu = time.perf_counter() - started, time.process_time() - before
    del trainer
    release_memory()
    return seconds, of_cpu, loss


def make_trainer(folder: Path, algorithm: str, side: str, dtype: str, steps: int) -> Any:
    attention = "eager" if side == "stock" else Recipe.load(RECIPE).policy.attn_implementation
    recipe = Recipe.load(
        RECIPE,
        [f"policy.dtype={dtype}", f"update.algorithm={algorithm}", f"update.trainers.{algorithm}.max_steps={steps}"]
        + ([f"policy.attn_implementation={attention}"] if attention else []),
    )
    module, config, record, name = {
        "dpo": (dpo, DPOConfig, PreferencePair, "pairs"),
        "kto": (kto, KTOConfig, LabelledCompletion, "labels"),
    }[algorithm]
    rows = read_records(folder / f"{name}.parquet", record)
    training = Training(
        start=recipe.policy.model, reference=recipe.policy.model, output=folder / "output", policy=recipe.policy,
        settings=recipe.update, seed=0,
    )  # fmt: skip
    ours = module._Tokenised
    tune_cpu_memory()
    try:
        if side == "stock":
            module._Tokenised = {"dpo": Stock.DPO, "kto": Stock.KTO}[algorithm]
        arguments = training.arguments(config)
        arguments.save_strategy = "no"
        trainer, _, _ = module._trainer(rows, training, arguments)
    finally:
        module._Tokenised = ours
    trainer.remove_callback(PrinterCallback)
    return trainer


def profile(folder: Path, algorithm: str, side: str, dtype: str, steps: int) -> None:
    """Which operations a few steps spend their time in, by themselves."""
    trainer = make_trainer(folder, algorithm, side, dtype, 1)
    trainer.train()
    trainer = make_trainer(folder, algorithm, side, dtype, max(steps, 2))
    with torch.profiler.profile(with_flops=True) as profiler:
        trainer.train()
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=32, max_name_column_width=50))


if __name__ == "__main__":
    main()
