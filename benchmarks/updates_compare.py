"""All updates from one start, on the same prompts and as many samples: the gold reward that each gives for its KL.

    python benchmarks/updates_compare.py --folder FOLDER --prepare
    python benchmarks/updates_compare.py --folder FOLDER --algorithm dpo --out dpo.json

After Gao et al. 2022 (arXiv 2210.10760). The round is the quickstart's first: the base policy, its candidates, a
simulated annotator's answers about them, and the reward model trained on those. Each update gets what the loop would
give it: dpo the annotator's pairs, kto its thumbs, sft its edits, rejection_sampling the candidates that the reward
model puts first, and the online ones the prompts and the reward model; these sample as many answers themselves as the
round has candidates. Settings are the recipe's. Every checkpoint of a training is a point: the gold reward (the
annotator's rule without its noise) and the KL to the base, in nats a completion, of answers to the dev prompts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_loop.algorithms import ALGORITHMS, ROWS, AlgorithmName
from rlhf_loop.loop import Loop
from rlhf_loop.models.checkpoints import MARK
from rlhf_loop.progress import RunProgress
from rlhf_loop.recipe import Recipe
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Completion, Prompt
from rlhf_loop.steps.assemble import assemble

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
NAMES: list[AlgorithmName] = ["dpo", "kto", "ppo", "grpo", "rloo", "rejection_sampling", "sft"]
SAMPLES_PER_PROMPT = 2
"""Of each dev prompt, from each checkpoint."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--prepare", action="store_true", help="make the round that all updates learn from")
    parser.add_argument("--algorithm", choices=NAMES)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.prepare:
        Loop(recipe_of("none"), arguments.folder / "run", RunProgress()).run(rounds=1)
    if arguments.algorithm:
        arguments.out.write_text(json.dumps(measure(arguments.algorithm, arguments.folder)))


def recipe_of(algorithm: AlgorithmName) -> Recipe:
    """The quickstart with another update, evaluated on dev prompts."""
    overrides = [f"update.algorithm={algorithm}", "evaluation.split=dev"]
    overrides.append(f"evaluation.samples_per_prompt={SAMPLES_PER_PROMPT}")
    recipe = Recipe.load(RECIPE, overrides)
    if ALGORITHMS[algorithm].online:  # as many answers as there are candidates
        trainer = recipe.update.trainers[algorithm]
        answers = trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"]  # a step
        samples = recipe.generation.samples_per_prompt * recipe.generation.prompts_per_round
        steps = samples // answers * trainer.get("num_ppo_epochs", 1)
        trainer |= {"max_steps": steps, "save_steps": steps // 4}
    return recipe


def measure(algorithm: AlgorithmName, folder: Path) -> dict[str, Any]:
    """The points of one update, and the base's, with the gold reward and KL of every answer."""
    from rlhf_loop.evaluation import Models, evaluate
    from rlhf_loop.models.loading import load_policy
    from rlhf_loop.models.memory import release_memory
    from rlhf_loop.stages.reward import load
    from rlhf_loop.updates import update_policy

    recipe, run, output = recipe_of(algorithm), folder / "run", folder / algorithm
    shutil.rmtree(output, ignore_errors=True)
    frozen, candidates = run / "round_001" / "snapshot", run / "round_000" / "generate" / "completions.parquet"
    (output / "assemble").mkdir(parents=True)
    summary = assemble(
        recipe,
        1,
        algorithm,
        frozen=frozen,
        folder=output / "assemble",
        completions=candidates,
        scores=run / "round_001" / "score" / "scores.parquet",
    )
    reward = load(run / "round_001" / "reward", recipe.model_dump(mode="json"))
    started = time.perf_counter()
    metrics = update_policy(
        read_records(output / "assemble" / "training_data.parquet", ROWS[ALGORITHMS[algorithm].consumes]),
        start=recipe.policy.model,
        reference=recipe.policy.model,
        output=output,
        policy=recipe.policy,
        settings=recipe.update,
        seed=recipe.seed,
        reward=reward,
        generation=recipe.generation,
        progress=keeper(output / "checkpoints", output / "kept"),
    )
    seconds = time.perf_counter() - started
    release_memory()
    prompts = read_records(frozen / "held_out.parquet", Prompt)
    base = read_records(run / "round_000" / "evaluate" / "answers.parquet", Completion)
    policies = {int(kept.name): kept for kept in (output / "kept").glob("*")} | {metrics["steps"]: output / "policy"}
    points = []
    for step, policy in sorted(policies.items()):
        answers = answers_of(policy, prompts, recipe)
        model, tokenizer = load_policy(policy, recipe.policy)
        result = evaluate(
            prompts,
            answers,
            base,
            None,
            judge=gold,
            judge_name="gold",
            simulated=True,
            settings=recipe.evaluation,
            proxy=lambda asked, given: [score.value for score in reward.score(asked, given)],
            models=Models(policy=model, tokenizer=tokenizer, settings=recipe.policy),
        )
        del model
        points.append(
            {
                "step": step,
                "gold": [row["candidate_score"] for row in result["rows"]],
                "kl": [row["kl"] for row in result["rows"]],
                "prompt": [row["prompt_id"] for row in result["rows"]],
                "reward": result["proxy"]["candidate"],
                "words": result["length"]["words"],
                "perplexity_ratio": result["perplexity"]["ratio"],
            }
        )
        base_gold = [row["base_score"] for row in result["rows"]]
    return {
        "rows": summary["rows"],
        "samples": metrics.get("completions_sampled", len(read_records(candidates, Completion))),
        "steps": metrics["steps"],
        "seconds": round(seconds, 1),
        "base_gold": base_gold,
        "base_reward": result["proxy"]["base"],
        "points": points,
    }


def keeper(checkpoints: Path, kept: Path) -> Callable[[int, int, str], None]:
    """Copies the adapter of each checkpoint to `kept/STEP` before the next one takes the checkpoint's place."""

    def keep(step: int, steps: int, text: str) -> None:
        for checkpoint in checkpoints.glob("checkpoint-*"):
            folder = kept / checkpoint.name.rpartition("-")[2]
            if (checkpoint / MARK).exists() and not folder.exists():
                folder.mkdir(parents=True)
                for name in ("adapter_config.json", "adapter_model.safetensors"):
                    shutil.copy(checkpoint / name, folder / name)

    return keep


def answers_of(policy: Path, prompts: Sequence[Prompt], recipe: Recipe) -> list[Completion]:
    """Answers to the dev prompts, with the random numbers that the base's were sampled with."""
    from rlhf_loop.generation import generate

    return generate(
        policy,
        prompts,
        recipe.generation.model_copy(update={"samples_per_prompt": SAMPLES_PER_PROMPT}),
        policy_settings=recipe.policy,
        policy_id="",
        round=0,
        seed=recipe.seed,
    )


def gold(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    from rlhf_loop.annotators.simulated import gold_scores

    return gold_scores("brief_and_complete", prompts, completions)


def curves(results: dict[str, dict[str, Any]], at_kl: Sequence[float]) -> dict[str, Any]:
    """Every update's points with 95% intervals, and its gold reward where its curve passes the KLs of `at_kl`.

    A curve begins at the base (KL 0) and is straight between points; None beyond its largest KL.
    """
    rows = {}
    for name, result in results.items():
        points = result["points"]
        drawn = resampled(points[0]["prompt"])
        base_gold = np.array(result["base_gold"])
        gold = np.stack([drawn @ base_gold, *(drawn @ np.array(point["gold"]) for point in points)], axis=1)
        kl = np.stack([0 * gold[:, 0], *(drawn @ np.array(point["kl"]) for point in points)], axis=1)
        crossings = {}  # gold and kl: (1 + resamples, 1 + points)
        for target in at_kl:
            values = np.array([gold_at(target, *curve) for curve in zip(kl, gold, strict=True)])
            crossings[f"{target:g}"] = None if np.isnan(values[0]) else interval(values)
        rows[name] = {
            **{key: result[key] for key in ("rows", "samples", "steps", "seconds")},
            "points": [
                {
                    "step": point["step"],
                    "kl": round(float(kl[0, i]), 3),
                    "gold": interval(gold[:, i]),
                    **{key: round(point[key], 3) for key in ("reward", "words", "perplexity_ratio")},
                }
                for i, point in enumerate(points, 1)
            ],
            "gold_at_kl": crossings,
        }
        base = {"gold": interval(gold[:, 0]), "reward": round(result["base_reward"], 3)}
    return {"base": base, "updates": rows}


def resampled(prompts: Sequence[str], times: int = 2000) -> Any:
    """Weights of answers, (1 + times, N): each row takes a mean; the first of the answers as they are, the others of
    as many prompts drawn with replacement, with all answers to them."""
    names, member = np.unique(prompts, return_inverse=True)
    count = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), times)
    weights = np.vstack([np.ones(len(names)), count])[:, member]
    return weights / weights.sum(1, keepdims=True)


def gold_at(target: float, kl: Any, gold: Any) -> float:
    """The gold reward of one curve where it passes a KL, not a number beyond the curve."""
    order = np.argsort(kl)
    return float(np.interp(target, kl[order], gold[order], right=np.nan))


def interval(values: Any) -> dict[str, float]:
    """The first of `values`, and the 95% of the others (numbers alone)."""
    rest = values[1:][~np.isnan(values[1:])]
    low, high = np.quantile(rest, [0.025, 0.975])
    return {"mean": round(float(values[0]), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


if __name__ == "__main__":
    main()
