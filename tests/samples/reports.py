"""A run as the loop leaves it, without a loop: for the report and the dashboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_loop.evaluation import evaluate
from rlhf_loop.files import write_json, write_text
from rlhf_loop.files.step_folders import step_folder
from rlhf_loop.recipe import Gate, parse
from rlhf_loop.record_files import write_records
from rlhf_loop.records import Completion, Message, Prompt, Score
from rlhf_loop.run_dir import RunDir
from rlhf_loop.steps.gate import decide

EVIL = '<script>alert("x")</script> & $\\alpha$ \x1b[31m\x00'


def recipe_of(simulated: bool = True) -> Any:
    judge = {"kind": "rule"} if simulated else {"kind": "reward_model", "model": "reward_models/bradley_terry"}
    return parse(
        {
            "name": "tomato-soup",
            "policy": {"model": "tiny-random:0"},
            "prompts": {"train": ["train.jsonl"], "test": ["test.jsonl"], "judge_fraction": 0.0 if simulated else 0.3},
            "feedback": {"annotator": {"kind": "simulated"} if simulated else None},
            "reward": {"model": "reward_models/bradley_terry"},
            "evaluation": {"judge": judge},
        }
    )


PROMPTS = [
    Prompt(
        id=f"q{i}",
        messages=(Message(role="user", content=f"How do I make soup number {i}? {EVIL if i == 0 else ''}"),),
        group=f"q{i}",
        split="test",
    )
    for i in range(12)
]


def answers_of(round: int, words: int) -> list[Completion]:
    return [
        Completion(
            id=f"r{round}-{prompt.id}",
            prompt_id=prompt.id,
            text=f"Answer of round {round} to {prompt.id}: "
            + "stir the pot " * (words + i % 3)
            + (EVIL if i == 0 else ""),
            policy="base" if round == 0 else f"policy-{round:03d}",
            round=round,
            tokens=3 * words,
            finish_reason="length" if i == 1 else "stop",
        )
        for i, prompt in enumerate(PROMPTS)
    ]


def brief(prompts: Any, completions: Any) -> list[float]:
    return [-len(c.text.split()) / 100 for c in completions]


def make_run(folder: Path, rounds: int = 3, simulated: bool = True, perplexity: float = 1.05) -> RunDir:
    """A run as the loop leaves it; rounds 1 and 2 are promoted, and round 3 fails for its perplexity."""
    run = RunDir(folder / "tomato-soup")
    recipe = recipe_of(simulated)
    write_text(run.path / "recipe.yaml", recipe.to_yaml())
    words = [12, 8, 7, 5]
    last = answers_of(0, words[0])
    for n in range(rounds + 1):
        answers = answers_of(n, words[n])
        result = evaluate(
            PROMPTS,
            answers,
            answers_of(0, words[0]),
            last if n > 1 else None,
            judge=brief,
            judge_name="rule brief_and_complete" if simulated else "bradley_terry on prompts kept apart",
            simulated=simulated,
            settings=recipe.evaluation,
            proxy=brief if n else None,
        )
        ratio = 1.43 if n == 3 else perplexity
        result |= {
            "kl": {"per_completion": 2.5 * n, "per_token": 0.1 * n, "k1": 2.4 * n},
            "perplexity": {"candidate": 10 * ratio, "base": 10.0, "ratio": ratio},
        }
        make_step(
            run, n, "evaluate", {"evaluation.json": result, "answers.parquet": answers, "prompts.parquet": PROMPTS}
        )
        make_step(run, n, "generate", {"completions.parquet": answers})
        make_step(
            run, n, "ask", {"summary.json": {"questions": 40, "answered": 40 * simulated, "annotator": "simulated"}}
        )
        if n:
            checked = {
                "total": 100 * n,
                "usable": 96 * n,
                "quarantined": [{"id": "f1", "kind": "critique", "reason": "a critique too vague to act on"}],
                "counts": {"vague_critique": 1, "tie": 2, "leakage": 0},
                "per_annotator": {EVIL: {"given": 40, "usable": 38}},
                "examples": {"vague_critique": [f"f1: {EVIL}"]},
                "pairs": {"train": 90 * n, "judge": 0},
                "set_aside": 1,
            }
            accuracy = {"mean": 0.7 + 0.03 * n, "low": 0.62, "high": 0.88, "n": 60, "groups": 20}
            reward = {
                "accuracy": accuracy,
                "length_balanced_accuracy": accuracy,
                "ece": 0.06,
                "calibration": [{"confidence": c, "accuracy": c - 0.04, "n": 20} for c in (0.55, 0.7, 0.9)],
                "length_correlation": -0.41,
                "train_seconds": 12.5,
            }
            scores = [
                Score(completion_id=a.id, reward_model="rm", value=0.1 * n + i / 100) for i, a in enumerate(answers)
            ]
            decision = decide(result, Gate())
            make_step(run, n, "snapshot", {"validation.json": checked})
            make_step(run, n, "reward", {"metrics.json": {"bradley_terry": reward}})
            make_step(run, n, "score", {"scores.parquet": scores})
            make_step(run, n, "rescore", {"scores.parquet": scores})
            origins = {"simulated pairs": 60, "reward pairs": 30}
            make_step(run, n, "assemble", {"summary.json": {"rows": 90, "by_origin": origins}})
            make_step(run, n, "update", {"metrics.json": {"train_loss": 0.61, "steps": 10}})
            make_step(run, n, "gate", {"decision.json": decision})
            if decision["promoted"]:
                last = answers
        manifest = {"round": n, "seconds": 100.0 + n, "peak_memory_bytes": 3 * 2**30, "versions": {"trl": "1.16.0"}}
        write_json(run.round(n) / "manifest.json", manifest)
    return run


def make_step(run: RunDir, n: int, step: str, files: dict[str, Any]) -> None:
    with step_folder(run.step(n, step), f"{step}{n}-key", {}) as partial:
        for name, content in files.items():
            if name.endswith(".json"):
                write_json(partial / name, content)
            else:
                write_records(partial / name, content)
    manifest = run.step(n, step) / "manifest.json"
    write_json(manifest, json.loads(manifest.read_text()) | {"seconds": 10.0 + len(step)})
