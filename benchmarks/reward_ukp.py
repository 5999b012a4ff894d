"""Reward models on real human preferences: which of two arguments is more convincing (UKPConvArg1).

    python benchmarks/reward_ukp.py --data DIR [--pairs N] [--out FILE]

DIR holds `ukp_pairs_train.jsonl.gz` and `ukp_pairs_valid.jsonl.gz` (rows `{id, group, prompt, chosen, rejected,
votes}`). Trains on the first, measures on the debates of the second, none of which are in the first; `--dev` measures
on two debates of the training file instead, which is where the head's settings were chosen (those of the Bradley-Terry
model are not confirmed yet). A bag-of-words model has .73 plain and .62 length-balanced accuracy; always preferring the
longer argument .77 and .50.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from machine import describe

from rlhf_loop.models.loading import load_tokenizer
from rlhf_loop.models.turns import Turns
from rlhf_loop.models.wheel_model import WHEEL_MODEL
from rlhf_loop.recipe import Policy
from rlhf_loop.records import PreferencePair, stable_id
from rlhf_loop.reward_spec import parse_spec
from rlhf_loop.rewards import train_reward_model
from rlhf_loop.rewards.texts import encode, texts_of_pairs

UPPER_HALF = r".*layers\.(1[5-9]|2[0-9])\..*_proj"  # below it nothing is trained, so no gradient has to go there
SPECS: dict[str, dict[str, Any]] = {
    "frozen_head": {"kind": "head", "layers": [0.5, 0.75], "l2": [0.1, 0.3, 1.0, 3.0, 10.0]},
    "bradley_terry": {
        "kind": "bradley_terry",
        "lora": {"r": 16, "alpha": 32, "target_modules": UPPER_HALF},
        "max_texts": 48,
        "trainer": {
            "learning_rate": 5e-4,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "num_train_epochs": 4,
            "per_device_train_batch_size": 1,
            "save_steps": 20,
        },
    },
}


def main() -> None:
    arguments = parse_arguments()
    train, held_out = load_pairs(arguments)
    policy = Policy(model=arguments.model)
    folder = arguments.work or Path(tempfile.mkdtemp(prefix="reward_ukp_"))
    result: dict[str, Any] = {"versions": versions(), "seed": arguments.seed}
    result["data"] = {"train_pairs": len(train), "held_out_pairs": len(held_out), "dev": arguments.dev}
    for name in [part for part in arguments.parts if part in SPECS]:
        started = time.perf_counter()
        spec = parse_spec(SPECS[name])
        metrics = train_reward_model(
            spec,
            train,
            folder / name,
            policy=policy,
            eval_pairs=held_out,
            seed=arguments.seed,
            progress=lambda done, total, text, name=name: print(f"{name} step {done}/{total} {text}", flush=True),
        )
        seconds = round(time.perf_counter() - started, 1)
        result[name] = {
            "machine": describe() | {"load_average": os.getloadavg()[0]},
            "settings": SPECS[name],
            **metrics,
            "wall_seconds": seconds,
        }
        tokens = count_tokens(held_out, policy)
        result[name]["scoring_tokens_per_second"] = round(tokens / metrics["eval"]["scoring_seconds"])
        result[name]["peak_memory_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        show(name, result[name])
    if "speed" in arguments.parts:
        result["against_stock_trainer"] = against_stock(train, policy, arguments.seed, folder)
    if arguments.out:
        write(arguments.out, result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the two files")
    parser.add_argument("--pairs", type=int, help="train on this many pairs, drawn at random; default all")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    parser.add_argument("--model", default=WHEEL_MODEL, help="the base, any model reference")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dev", action="store_true", help="measure on two debates of the training file")
    parts = [*SPECS, "speed"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="speed: against TRL's own trainer")
    parser.add_argument("--work", type=Path, help="keep the models here, and go on from its checkpoints")
    return parser.parse_args()


def load_pairs(arguments: argparse.Namespace) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Training and held-out pairs, no debate in both."""
    train = read_pairs(arguments.data / "ukp_pairs_train.jsonl.gz")
    if arguments.dev:
        topics = sorted({topic(pair) for pair in train}, key=lambda name: stable_id("dev", name))
        held_out = [pair for pair in train if topic(pair) in topics[:2]]
        train = [pair for pair in train if topic(pair) not in topics[:2]]
    else:
        held_out = read_pairs(arguments.data / "ukp_pairs_valid.jsonl.gz")
    assert not {topic(pair) for pair in train} & {topic(pair) for pair in held_out}
    if arguments.pairs is not None:
        train = random.Random(arguments.seed).sample(train, min(arguments.pairs, len(train)))
    return train, held_out


def read_pairs(path: Path) -> list[PreferencePair]:
    """The rows of a file as preference pairs; a group is one side of a debate."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [_pair(json.loads(line)) for line in file]


def count_tokens(pairs: list[PreferencePair], policy: Policy) -> int:
    """Tokens of the distinct texts of `pairs`, prompts with them."""
    tokenizer = load_tokenizer(policy.model, policy)
    turns = Turns(tokenizer)
    return sum(len(encode(turns, text)[0]) for text in texts_of_pairs(pairs)[0])


def topic(pair: PreferencePair) -> str:
    """The debate that a pair's group is one side of."""
    return pair.group.partition("_")[0]


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes the result, beside those of other kinds that were measured on the same data with the same versions."""
    if path.exists():
        before = json.loads(path.read_text())
        if all(before.get(key) == result[key] for key in ("data", "versions", "seed")):
            result = {**before, **result}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {path}")


def against_stock(train: list[PreferencePair], policy: Policy, seed: int, folder: Path) -> dict[str, Any]:
    """Seconds to train on the same pairs once, with TRL's own trainer and with ours.

    The pairs are all comparisons of 16 arguments of one debate, fewer than in a whole debate so that the stock
    trainer is done in a minute or so; with the 33 of a whole debate the difference is larger.
    """
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    from rlhf_loop.models.training import training_arguments
    from rlhf_loop.rewards import bradley_terry
    from rlhf_loop.rewards.trunk import load_classifier, lora_config

    pairs = comparisons_of(train, texts=16)
    spec = parse_spec(SPECS["bradley_terry"])
    seconds = {}
    for name in ("warm-up", "ours", "stock"):
        model, tokenizer = load_classifier(spec.base, policy)
        rows, counts = bradley_terry.batch_elements(spec, pairs[:4] if name == "warm-up" else pairs, Turns(tokenizer))
        settings = {"num_train_epochs": 1, "learning_rate": 1e-5, "remove_unused_columns": False}
        if name == "stock":
            settings["per_device_train_batch_size"] = 8
            rows = [
                {"chosen_ids": row["texts"][c], "rejected_ids": row["texts"][r], "margin": 0.0}
                for row in rows
                for c, r in zip(row["chosen"], row["rejected"], strict=True)
            ]
        options = {"train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
        options |= {"peft_config": lora_config(spec.lora)}
        config = training_arguments(RewardConfig, folder / "stock", seed, settings, policy.precision)
        if name == "stock":
            trainer = RewardTrainer(model, config, **options)
        else:
            collator = bradley_terry.Collator(tokenizer.pad_token_id)
            trainer = bradley_terry.UniqueTextsRewardTrainer(model, config, data_collator=collator, **options)
        started = time.perf_counter()
        trainer.train()
        seconds[name] = time.perf_counter() - started
    result = {
        "pairs": counts["pairs_used"],
        "distinct_texts": counts["distinct_texts"],
        "texts_forwarded_by_stock": 2 * counts["pairs_used"],
        "pairs_per_second": round(counts["pairs_used"] / seconds["ours"], 3),
        "pairs_per_second_stock": round(counts["pairs_used"] / seconds["stock"], 3),
        "ratio": round(seconds["stock"] / seconds["ours"], 2),
    }
    print("against TRL's RewardTrainer on the same pairs:", json.dumps(result))
    return result


def comparisons_of(train: list[PreferencePair], texts: int) -> list[PreferencePair]:
    """All pairs among the first arguments of the first debate."""
    group = [pair for pair in train if pair.group == train[0].group]
    first = list(dict.fromkeys(side for pair in group for side in (pair.chosen_id, pair.rejected_id)))[:texts]
    return [pair for pair in group if pair.chosen_id in first and pair.rejected_id in first]


def show(name: str, metrics: dict[str, Any]) -> None:
    """The numbers that matter, on a terminal."""
    measured = metrics["eval"]
    for measure in ("accuracy", "length_balanced_accuracy"):
        value = measured[measure]
        interval = f"[{value['low']:.3f}, {value['high']:.3f}]" if value["low"] is not None else "no interval"
        print(f"{name}: {measure} {value['mean']:.3f} {interval} ({value['n']} pairs, {value['groups']} groups)")
    print(
        f"{name}: longer wins {measured['longer_wins']:.3f}, ECE {measured['ece']:.3f}, correlation with length "
        f"{measured['length_correlation']:.2f}, {metrics['distinct_texts']} distinct texts, "
        f"{metrics['wall_seconds']:.0f} s, peak memory {metrics['peak_memory_gib']} GiB"
    )


def versions() -> dict[str, str]:
    """Of the packages that matter."""
    return {name: version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate")}


def _pair(row: dict[str, Any]) -> PreferencePair:
    sides = {side: stable_id(row["prompt"], row[side]) for side in ("chosen", "rejected")}
    return PreferencePair(
        id=row["id"],
        prompt_id=stable_id(row["prompt"]),
        group=row["group"],
        prompt=({"role": "user", "content": row["prompt"]},),
        chosen=({"role": "assistant", "content": row["chosen"]},),
        rejected=({"role": "assistant", "content": row["rejected"]},),
        chosen_id=sides["chosen"],
        rejected_id=sides["rejected"],
        origin="human",
    )


if __name__ == "__main__":
    main()
