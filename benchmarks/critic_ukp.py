"""Does writing a critique make a better reward model? On people's real preferences and reasons (UKPConvArg1).

    python benchmarks/critic_ukp.py --data DIR [--seeds 0 1 2] [--out FILE] [--work DIR]

DIR holds `ukp_pairs_train.jsonl.gz`, `ukp_pairs_valid.jsonl.gz` and `ukp_votes_reasons.jsonl.gz`: pairs of arguments
for one side of a debate, and the reasons that five workers a pair gave. Three reward models on one base, with the same
adapter, pairs, batches, learning rate and number of steps on the pairs:

    bradley_terry   one linear output, begun at the linear probe, as reward_models/bradley_terry is
    critic          reward_models/critic: learns to write reasons first, then the reward on critiques of its own
    no_critique     the critic's own head and question, but its critique is always empty, in training too

A reason is a critique of the argument that it names, where it names one of the two; those of the training pairs alone
are learned from. Each seed holds out a third of the debates, whole, so the three seeds hold each out once. Reported are
the accuracy on held-out pairs, plain and length-balanced (the longer argument wins 3 of 4 pairs), of the critic also
with empty and with shuffled critiques, and differences on the same pairs, with intervals from resampling sides of
debates. No setting was chosen on these figures: those of Bradley-Terry are `reward_ukp.py`'s, with fewer epochs; those
of the critic are the same and the paper's.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
from machine import describe, peak_memory
from reward_ukp import MODEL, UPPER_HALF, read_pairs, topic

from rlhf_loop.generation import write_greedily
from rlhf_loop.recipe import Policy
from rlhf_loop.records import CritiquedCompletion, PreferencePair, stable_id
from rlhf_loop.reward_spec import parse_spec
from rlhf_loop.rewards import load_reward, train_reward_model
from rlhf_loop.rewards.critic_controls import Given, controls
from rlhf_loop.rewards.metrics import cluster_bootstrap
from rlhf_loop.rewards.texts import texts_of_pairs

ARGUMENTS, PAIRS, REASONS = 12, 20, 2  # of each side of a debate; and reasons of each argument
HELD_OUT = 20  # arguments of each side of a held-out debate, with all their pairs
LORA = {"r": 16, "alpha": 32, "target_modules": UPPER_HALF}
TRAINER = {
    "learning_rate": 5e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 1,
    "max_grad_norm": 1.0,
    "save_steps": 8,
}
SFT = {**TRAINER, "num_train_epochs": 1, "per_device_train_batch_size": 8}
CRITIC = {
    "kind": "critic",
    "lora": LORA,
    "max_critique": 32,
    "max_texts": 48,
    "question": "Is this argument convincing? Say why in a sentence.",
    "trainer": TRAINER,
}
SPECS: dict[str, dict[str, Any]] = {
    "bradley_terry": {"kind": "bradley_terry", "lora": LORA, "max_texts": 48, "trainer": TRAINER},
    "critic": {**CRITIC, "sft": SFT},
    "no_critique": {**CRITIC, "sft": {**SFT, "max_steps": 1, "learning_rate": 0.0}, "lm_weight": 0.0},
}
ARMS = ("critic", "critic_empty", "critic_shuffled", "no_critique", "bradley_terry")


def main() -> None:
    arguments = parse_arguments()
    folder = arguments.work or Path(tempfile.mkdtemp(prefix="critic_ukp_"))
    seeds = {}
    for seed in arguments.seeds:
        kept = folder / f"seed_{seed}.json"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(run_seed(arguments.data, seed, Policy(model=arguments.model), folder)))
        seeds[seed] = json.loads(kept.read_text())
        result = {"machine": describe(), "settings": SPECS, "seeds": {}, **summary(list(seeds.values()))}
        for number, of_seed in seeds.items():
            result["seeds"][number] = {k: v for k, v in of_seed.items() if k != "rows"} | summary([of_seed])
        print(json.dumps({name: result[name] for name in ("accuracy", "length_balanced_accuracy", "differences")}))
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the three files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    parser.add_argument("--work", type=Path, help="keep models and finished seeds here, and go on from them")
    parser.add_argument("--model", default=MODEL, help="the base, any model reference")
    return parser.parse_args()


def run_seed(data: Path, seed: int, policy: Policy, folder: Path) -> dict[str, Any]:
    """Trains the three on two thirds of the debates; gives counts, times, and a row for each held-out pair with who won
    it."""
    pairs = [pair for name in ("train", "valid") for pair in read_pairs(data / f"ukp_pairs_{name}.jsonl.gz")]
    debates = sorted({topic(pair) for pair in pairs}, key=lambda name: stable_id("critic", name))
    out = set(debates[seed % 3 :: 3])
    train = draw([pair for pair in pairs if topic(pair) not in out], seed, ARGUMENTS, PAIRS)
    held_out = draw([pair for pair in pairs if topic(pair) in out], seed, HELD_OUT, None)
    critiques = reasons(data, train, seed)
    texts, indices = texts_of_pairs(held_out)
    values: dict[str, list[float]] = {}
    result: dict[str, Any] = {"held_out_debates": sorted(out), "pairs": len(train), "critiques": len(critiques)}
    result["held_out_pairs"] = len(held_out)
    for name, settings in SPECS.items():
        kept = folder / f"{name}_{seed}.json"
        if kept.exists():
            of_arm = json.loads(kept.read_text())
            values |= of_arm.pop("values")
            result |= of_arm
            continue
        started = time.perf_counter()
        before = set(values), set(result)
        writer = write_nothing if name == "no_critique" else write_greedily
        options = {"policy": policy, "writer": writer}
        metrics = train_reward_model(
            parse_spec(settings), train, folder / f"{name}_{seed}", eval_pairs=[], seed=seed, critiques=critiques,
            progress=lambda done, total, text, name=name: print(f"{name} {done}/{total} {text}", flush=True), **options,
        )  # fmt: skip
        trained = time.perf_counter()
        reward = load_reward(folder / f"{name}_{seed}", id=name, **options)
        if name == "critic":
            for kind, given in controls(reward, held_out, seed).items():
                values[name if kind == "own" else f"{name}_{kind}"] = Given(reward, given).values(texts, {})
                if kind == "own":
                    result["written"] = shown(reward.asked.turns, given)
        else:
            values[name] = reward.values(texts, {})
        result[name] = {key: metrics[key] for key in metrics if key not in ("eval", "kind", "seconds")}
        result[name]["seconds"] = [round(trained - started), round(time.perf_counter() - trained)]
        of_arm = {key: result[key] for key in result.keys() - before[1]}
        of_arm["values"] = {key: values[key] for key in values.keys() - before[0]}
        kept.write_text(json.dumps(of_arm))
        print(name, json.dumps(result[name]), flush=True)
    result["peak_memory_gib"] = round(peak_memory(), 1)
    words = [len(text.completion.split()) for text in texts]
    result["rows"] = [
        {
            "group": pair.group,
            "longer": words[chosen] - words[rejected],
            **{name: won(value[chosen] - value[rejected]) for name, value in values.items()},
        }
        for pair, (chosen, rejected) in zip(held_out, indices, strict=True)
    ]
    return result


def draw(pairs: Sequence[PreferencePair], seed: int, arguments: int, most: int | None) -> list[PreferencePair]:
    """So many arguments of each side of a debate, drawn at random, and at most so many of the pairs between them."""
    random_numbers = random.Random(seed)
    of_side: dict[str, list[PreferencePair]] = defaultdict(list)
    for pair in pairs:
        of_side[pair.group].append(pair)
    drawn = []
    for side in of_side.values():
        compared = sorted({id for pair in side for id in (pair.chosen_id, pair.rejected_id)})
        chosen = set(random_numbers.sample(compared, min(arguments, len(compared))))
        between = [pair for pair in side if {pair.chosen_id, pair.rejected_id} <= chosen]
        drawn += between if most is None else random_numbers.sample(between, min(most, len(between)))
    return drawn


def reasons(data: Path, pairs: Sequence[PreferencePair], seed: int) -> list[CritiquedCompletion]:
    """What workers said of the arguments of `pairs`, where a reason names one of the two alone; at most `REASONS` of an
    argument."""
    of_pair = {pair.id: pair for pair in pairs}
    said: dict[str, dict[str, CritiquedCompletion]] = defaultdict(dict)
    with gzip.open(data / "ukp_votes_reasons.jsonl.gz", "rt", encoding="utf-8") as file:
        votes = [json.loads(line) for line in file]
    for row in votes:
        if (pair := of_pair.get(row["id"])) is None or row["gold"] not in ("a1", "a2"):
            continue
        for worker, _, _, text in row["annotations"]:
            named = {name.lower() for name in re.findall(r"\b[Aa][12]\b", text)}
            if len(named) != 1:
                continue
            better = named == {row["gold"]}  # the pair's chosen side is the better one
            side, id = (pair.chosen, pair.chosen_id) if better else (pair.rejected, pair.rejected_id)
            critique = re.sub(r"\b[Aa][12]\b", "this argument", text.strip())
            critique = critique[:1].upper() + critique[1:]
            said[id][critique] = CritiquedCompletion(
                id=stable_id(row["id"], worker, text), prompt_id=pair.prompt_id, group=pair.group, prompt=pair.prompt,
                completion=side, completion_id=id, critique=critique, origin="human", annotator=str(worker),
            )  # fmt: skip
    return [
        row
        for of_argument in said.values()
        for row in sorted(of_argument.values(), key=lambda row: stable_id(seed, row.id))[:REASONS]
    ]


def write_nothing(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """In place of critiques: a turn that ends at once."""
    from rlhf_loop.models.turns import Turns

    return [[Turns(tokenizer, model).end]] * len(prompts)


def summary(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracies of each, and differences of the critic to the others on the same pairs, over the seeds' pairs."""
    rows = [row for seed in seeds for row in seed["rows"]]
    sides = {group: number for number, group in enumerate(dict.fromkeys(row["group"] for row in rows))}
    clusters = np.array([sides[row["group"]] for row in rows])
    longer = np.array([row["longer"] for row in rows])
    won_by = {name: np.array([row[name] for row in rows], dtype=float) for name in ARMS}
    won_by["longer_wins"] = (longer > 0) + 0.5 * (longer == 0)
    differences = {name: won_by["critic"] - won_by[name] for name in ARMS[1:]}
    differences["no_critique - bradley_terry"] = won_by["no_critique"] - won_by["bradley_terry"]

    def both(values: Any) -> dict[str, Any]:
        by_length = [np.where(of, values, np.nan) for of in (longer > 0, longer < 0)]
        return {
            "accuracy": cluster_bootstrap([values], clusters),
            "length_balanced_accuracy": cluster_bootstrap(by_length, clusters),
        }

    measured = {name: both(values) for name, values in won_by.items()}
    return {
        **{
            measure: {name: of_arm[measure] for name, of_arm in measured.items()}
            for measure in ("accuracy", "length_balanced_accuracy")
        },
        "differences": {name: both(values) for name, values in differences.items()},
    }


def won(margin: float) -> float:
    """1 where the preferred side has the higher reward, a half at a tie."""
    return float(margin > 0) + 0.5 * float(margin == 0)


def shown(turns: Any, critiques: dict[Any, list[int]]) -> dict[str, Any]:
    """What a critic wrote: how varied, and some to read."""
    written = {text.completion: turns.text(ids).strip() for text, ids in critiques.items()}
    return {
        "of_texts": len(written),
        "distinct": len(set(written.values())),
        "mean_words": round(float(np.mean([len(text.split()) for text in written.values()])), 1),
        "examples": [{"argument": text, "critique": critique} for text, critique in list(written.items())[::20]],
    }


if __name__ == "__main__":
    main()
