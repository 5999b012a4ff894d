"""The quickstart in several seeds: win-rate, coherence, time and memory, and answers to read.

    python benchmarks/quickstart.py --seeds 0 1 2 --out benchmarks/results/quickstart.json

Every seed is a run of its own in a process of its own, by the command that a user types. `--finished RUN ...` takes the
figures of runs that are complete already, perhaps after interruptions; their seconds are those of all steps together.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import yaml
from machine import describe, run_measured

from rlhf_loop.record_files import read_records
from rlhf_loop.records import Completion, Prompt

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "quickstart.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--finished", type=Path, nargs="+", help="complete runs, in place of new ones")
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    arguments = parser.parse_args()
    rows = [{**measured(run), **result(run)} for run in arguments.finished or []]
    for seed in [] if arguments.finished else arguments.seeds:
        run = arguments.runs / f"{arguments.recipe.stem}-{seed}-{int(time.time())}"
        command = [sys.executable, "-m", "rlhf_loop", "run", str(arguments.recipe), "--run-dir", str(run)]
        seconds, memory = run_measured([*command, f"seed={seed}", *arguments.overrides])
        rows.append({"seed": seed, "seconds": round(seconds, 1), "peak_memory_gib": round(memory, 2), **result(run)})
        print(json.dumps({key: value for key, value in rows[-1].items() if key != "answers"}), flush=True)
    for row in rows:
        rate = row["win_rate_vs_base"]
        print(
            f"seed {row['seed']}: {row['seconds'] / 60:.1f} min, {row['peak_memory_gib']:.1f} GiB, win-rate "
            f"{rate['mean']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}] (n={rate['n']}), perplexity ratio "
            f"{row['perplexity_ratio']:.2f}, KL {row['kl']:.1f}, decisions {row['decisions']}"
        )
    for answer in rows[0]["answers"]:
        print(f"\n{answer['prompt']}\n  base:    {answer['base']}\n  trained: {answer['trained']}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        if arguments.out.exists():  # seeds that were measured before stay
            before = json.loads(arguments.out.read_text())["rows"]
            new = {row["seed"] for row in rows}
            rows = sorted([*(r for r in before if r["seed"] not in new), *rows], key=lambda r: r["seed"])
        arguments.out.write_text(json.dumps({"machine": describe(), "rows": rows}, indent=1, ensure_ascii=False) + "\n")


def measured(run: Path) -> dict[str, object]:
    """Seed, time and memory of a complete run, as its rounds wrote them down."""
    rounds = [json.loads(path.read_text()) for path in sorted(run.glob("round_*/manifest.json"))]
    return {
        "seed": yaml.safe_load((run / "recipe.yaml").read_text())["seed"],
        "seconds": round(sum(seconds for one in rounds for seconds in one["steps"].values()), 1),
        "peak_memory_gib": round(max(one["peak_memory_bytes"] for one in rounds) / 2**30, 2),
    }


def result(run: Path) -> dict[str, object]:
    """The numbers of the policy that ended promoted, against the base; where none was, those of the last candidate."""
    decisions, best = [], 0
    for folder in sorted(run.glob("round_*"))[1:]:
        promoted = json.loads((folder / "gate" / "decision.json").read_text())["promoted"]
        decisions.append("promoted" if promoted else "kept")
        best = int(folder.name[6:]) if promoted else best
    best = best or len(decisions)
    evaluation = json.loads((run / f"round_{best:03d}" / "evaluate" / "evaluation.json").read_text())
    return {
        "round": best,
        "decisions": decisions,
        "win_rate_vs_base": evaluation["win_rate_vs_base"],
        "length_matched": evaluation["length_matched_win_rate_vs_base"],
        "judge": evaluation["judge"],
        "perplexity_ratio": evaluation["perplexity"]["ratio"],
        "plain_text_ratio": (evaluation["plain_text_perplexity"] or {}).get("ratio"),
        "kl": evaluation["kl"]["per_completion"],
        "diversity": evaluation["diversity"],
        "words": {"trained": evaluation["length"]["words"], "base": evaluation["length"]["base"]["words"]},
        "finished": {"trained": evaluation["length"]["finished"], "base": evaluation["length"]["base"]["finished"]},
        "held_out_pairs": held_out_pairs(run, best),
        "answers": answers(run, best),
    }


def held_out_pairs(run: Path, best: int) -> dict[str, dict[str, object]]:
    """How often the round's reward model, and a judge that was trained, prefer what people did on pairs that they have
    not seen; without what has no weights, or no such pairs."""
    measured = {}
    for role, round in (("reward", best), ("judge", 0)):
        path = run / f"round_{round:03d}" / role / "metrics.json"
        for name, of_model in (json.loads(path.read_text()) if path.exists() else {}).items():
            if "accuracy" in of_model:
                measured[f"{role} {name}"] = {
                    key: of_model[key] for key in ("accuracy", "length_balanced_accuracy", "longer_wins")
                }
    return measured


def answers(run: Path, best: int, number: int = 8) -> list[dict[str, str]]:
    """The first held-out prompts with the base's and the trained policy's answers, as they are."""
    prompts = read_records(run / "round_000" / "evaluate" / "prompts.parquet", Prompt)[:number]
    texts = {}
    for name, folder in (("base", "round_000"), ("trained", f"round_{best:03d}")):
        for completion in read_records(run / folder / "evaluate" / "answers.parquet", Completion):
            if completion.sample == 0:
                texts[name, completion.prompt_id] = completion.text
    return [
        {"prompt": p.messages[-1]["content"], "base": texts["base", p.id], "trained": texts["trained", p.id]}
        for p in prompts
    ]


if __name__ == "__main__":
    main()
