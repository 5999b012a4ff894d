"""How long the check and the snapshot of much feedback take, and whether consensus trains a better reward model.

    python benchmarks/feedback_quality.py --parts check snapshot [--records N] [--shape votes|pairs]
    python benchmarks/feedback_quality.py --parts ukp --data DIR

`check` and `snapshot` make a store of N preferences (1M) and time `rlhf-loop feedback check` and the first step of a
round on it, each in a process of its own. Shapes: `votes`, 3 to 4 people judge each of 6 pairs of a prompt's 4
answers; `pairs`, every preference has a prompt and two answers of its own, as an imported data set has.

`ukp` trains the same reward model on real votes (`ukp_votes_reasons.jsonl.gz`, 5 crowd workers a pair) taken raw, by
majority, and as consensus weighted by reliability, and measures all on the debates of `ukp_pairs_valid.jsonl.gz`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine

ROOT = Path(__file__).parent.parent
RECORDS = 1_000_000
ANNOTATORS = 200


def main() -> None:
    arguments = parse_arguments()
    result: dict[str, Any] = {"machine": machine.describe()}
    folder = arguments.work or Path(tempfile.mkdtemp(prefix="feedback_quality_"))
    folder.mkdir(parents=True, exist_ok=True)
    if {"check", "snapshot"} & set(arguments.parts):
        result |= speed(arguments, folder)
    if "ukp" in arguments.parts:
        from feedback_ukp import compare

        result["ukp"] = compare(arguments.data, folder)
    if arguments.out:
        before = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        for name, value in result.items():  # what was measured of other parts, or of the same store before, stays
            before[name] = {**before.get(name, {}), **value}
        arguments.out.write_text(json.dumps(before, indent=2) + "\n")
        print(f"written to {arguments.out}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["check", "snapshot", "ukp"], default=["check", "snapshot"])
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--shape", choices=["votes", "pairs"], default="votes")
    parser.add_argument("--data", type=Path, help="folder of the UKP files")
    parser.add_argument("--work", type=Path, help="keep the store and the features here")
    parser.add_argument("--out", type=Path, help="JSON file for the result; what it holds of other parts stays")
    return parser.parse_args()


def speed(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds and GiB of the check and of the snapshot of a store that is made first."""
    store = folder / f"{arguments.shape}_{arguments.records}.db"
    if not store.exists():
        started = time.perf_counter()
        fill(store, arguments.records, arguments.shape)
        print(f"made {store} in {time.perf_counter() - started:.0f} s", flush=True)
    commands = {
        "check": [sys.executable, "-m", "rlhf_loop", "feedback", "check", str(store), "--no-near-duplicates"],
        "near_duplicates": [sys.executable, "-m", "rlhf_loop", "feedback", "check", str(store)],
        "snapshot": [sys.executable, "-c", SNAPSHOT, str(store), str(folder / "snapshot"), str(ROOT)],
    }
    wanted = [name for name in commands if ("snapshot" if name == "snapshot" else "check") in arguments.parts]
    measured = {}
    for name in wanted:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds, gib = machine.run_measured(commands[name])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        measured[name] = {
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu, 1),  # what it would take on a core of its own, if others are busy
            "peak_memory_gib": round(gib, 2),
            "load_average": os.getloadavg()[0],
        }
        print(
            f"{arguments.shape}, {arguments.records} records: {name} {seconds:.1f} s ({cpu:.1f} s of processor), "
            f"{gib:.2f} GiB",
            flush=True,
        )
    return {f"{arguments.shape}_{arguments.records}": measured}


SNAPSHOT = """
import sys
from pathlib import Path
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.recipe import Recipe
from rlhf_loop.steps.snapshot import snapshot
store, folder, root = map(Path, sys.argv[1:])
folder.mkdir(exist_ok=True)
recipe = Recipe.load(root / "recipes" / "own_pairs.yaml", [f"feedback.imports.0.path={root / 'README.md'}"])
with Store.open(store, create=False) as store:
    snapshot(store, recipe, 1, folder, "base")
"""


def fill(path: Path, records: int, shape: str) -> None:
    """Makes a store of `records` preferences by simulated annotators, with direct inserts."""
    from rlhf_loop.feedback.store.store import Store
    from rlhf_loop.feedback.store.table_rows import COLUMNS

    with Store.open(path) as store:
        batches: dict[str, list[tuple[Any, ...]]] = {name: [] for name in ("prompts", "completions", "feedback")}
        connection = store.database.engine.raw_connection()
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("BEGIN")

        def flush() -> None:
            for name, rows in batches.items():
                names = COLUMNS[name]
                marks = ", ".join("?" * len(names))
                connection.executemany(f"INSERT INTO {name} ({', '.join(names)}) VALUES ({marks})", rows)
                rows.clear()

        for table, row in simulated(records, shape):
            batches[table].append(row)
            if len(batches["feedback"]) >= 50_000:
                flush()
        flush()
        connection.execute("COMMIT")
        connection.close()


def simulated(records: int, shape: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Rows of tables: prompts, their answers, and preferences of annotators of unlike reliability."""
    draw = random.Random(0)
    vocabulary = [f"{a}{b}" for a in ("ka", "lo", "mi", "ne", "ru", "sta", "ton", "va") for b in range(500)]
    skill = [draw.choice([0.55, 0.75, 0.9, 0.97]) for _ in range(ANNOTATORS)]
    start, made = 1.7e9, 0

    def words(n: int) -> str:
        return " ".join(draw.choices(vocabulary, k=n))

    for number in range(records):
        if made >= records:
            return
        prompt = f"{number:07d}{draw.getrandbits(68):017x}"
        text = words(12)
        split = "train" if number % 100 else "test"  # a round has something to be measured on
        body = {"id": prompt, "messages": [{"role": "user", "content": text}], "group": prompt, "split": split}
        body |= {"reference": None, "tags": [], "source": f"data.jsonl:{number}"}
        yield "prompts", (prompt, split, prompt, text, json.dumps(body))
        answers = []
        for sample in range(4 if shape == "votes" else 2):
            id = f"{draw.getrandbits(96):024x}"
            quality = draw.gauss(0, 1)
            answer = words(20 + draw.randrange(60))
            body = {"id": id, "prompt_id": prompt, "policy": "base", "round": 0, "sample": sample, "seed": 0}
            body |= {"sampling": {}, "finish_reason": "stop", "tokens": 60, "parent": None, "critique": None}
            yield "completions", (id, prompt, "base", 0, None, answer, json.dumps(body))
            answers.append((id, quality))
        pairs = [(x, y) for place, x in enumerate(answers) for y in answers[place + 1 :]]
        for x, y in pairs:
            for judge in draw.sample(range(ANNOTATORS), draw.choice((3, 4)) if shape == "votes" else 1):
                a, b = (x, y) if draw.random() < 0.5 else (y, x)
                better = "a" if a[1] > b[1] else "b"
                worse = "b" if better == "a" else "a"
                winner = better if draw.random() < skill[judge] else worse
                if abs(a[1] - b[1]) < 0.2 and draw.random() < 0.5:
                    winner = "tie"
                id = f"{made:08d}-0000-7000-8000-{draw.getrandbits(48):012x}"
                when = start + made * 0.5
                body = {"id": id, "prompt_id": prompt, "annotator": {"id": f"person-{judge}", "kind": "HUMAN"}}
                body |= {"created_at": when, "round": 0, "comment": words(8) if draw.random() < 0.3 else None}
                body |= {"rubric_version": None, "lead_time": 5 + 20 * draw.random(), "source": f"data.jsonl:{made}"}
                body |= {"external_id": None, "supersedes": None, "kind": "preference", "a_id": a[0], "b_id": b[0]}
                body |= {"winner": winner, "strength": None, "shown_order": draw.choice(("ab", "ba")), "blind": True}
                pair = "|".join(sorted((a[0], b[0])))
                columns = (id, "preference", prompt, None, a[0], b[0], pair, f"person-{judge}", 0, when, None)
                yield "feedback", (*columns, json.dumps(body))
                made += 1
                if made >= records:
                    return


if __name__ == "__main__":
    main()
