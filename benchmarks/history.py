"""What a long history costs: rounds of the real loop after 10, 100 and 1,000 rounds, and the commands that look back.

    python benchmarks/history.py

The loop, its store and its files are the real ones; only the models are left out: stages write what they would (1,000
candidates a round, their scores, evaluations on 60 prompts) from random words, and 32 preferences a round are given.
Most rounds are written into the store and the run's folder by this script, in full size (the snapshots of fifty rounds
in a row share their files); the last three before each mark are made by the loop and measured without the time of the
stages. Commands are measured in processes of their own, imports and all. CPU seconds, so that a busy machine does not
matter; the results go to `benchmarks/results/history.json`.

`--past`: instead, what a round reads of the past for strategies and methods that look back: what `refine+exemplars`
recalls, the answers that next messages are about (those of 10 prompts, beside all that there are), and the names of all
embedded answers with a search for 1,000 new ones among them. To `benchmarks/results/history_past.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch
import yaml

import rlhf_loop.loop as loop_module
from rlhf_loop import launch
from rlhf_loop.evaluation import evaluate
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import read_json, write_json
from rlhf_loop.files.step_folders import step_folder
from rlhf_loop.loop import Loop
from rlhf_loop.progress import Progress
from rlhf_loop.recipe import Recipe
from rlhf_loop.record_files import read_records, write_records
from rlhf_loop.records import Annotator, Artifact, Completion, Preference, Prompt, Question, Score, stable_id
from rlhf_loop.retrieval.index import Index, Key, write
from rlhf_loop.rows.pairs import pairs_from_feedback
from rlhf_loop.run_dir import RunDir
from rlhf_loop.stages.arguments import StageArguments
from rlhf_loop.steps import learn
from rlhf_loop.steps.recall import recall
from rlhf_loop.watch.triggers import arrivals, news

RESULTS = Path(__file__).parent / "results" / "history.json"
ROOT = Path(__file__).parent.parent
WORDS = ("answer", "because", "light", "reason", "people", "water", "every", "sky", "blue", "question", "time", "other")
VOCABULARY = range(49_152)
HELD_OUT = 60
MEASURED = 3  # rounds of the loop before each mark, of which the middle one counts
chance = random.Random(0)


def words(n: int) -> str:
    return " ".join(chance.choices(WORDS, k=n))


def write_recipe(folder: Path, prompts: int, samples: int, questions: int) -> Path:
    for name, n in (("train", prompts), ("test", HELD_OUT)):
        rows = (json.dumps({"id": f"{name}-{i:05d}", "prompt": f"{words(15)} {name} {i}?"}) for i in range(n))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    values = {
        "name": "history",
        "policy": {"model": "tiny-random:0"},
        "prompts": {"train": ["train.jsonl"], "test": ["test.jsonl"]},
        "feedback": {
            "annotator": {"kind": "simulated", "rule": "brief_and_complete"},
            "questions_per_round": questions,
            "validation": {"min_pairs": 2},
        },
        "reward": {"model": str(ROOT / "reward_models" / "frozen_head")},
        "generation": {"samples_per_prompt": samples},
        "update": {"algorithm": "dpo", "start_from": "promoted"},
        "evaluation": {"judge": {"kind": "rule", "rule": "brief_and_complete"}, "bootstrap": 100},
        "gate": {"margin": 0.4, "max_perplexity_ratio": None},
        "watch": {"min_new": 1_000_000},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


class Stub:
    """Stages without models: what they write, and how long that took (`seconds` of CPU)."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def run(self, arguments_file: Path, progress: Progress) -> None:
        begun = time.process_time()
        arguments = StageArguments.read(arguments_file)
        with step_folder(Path(arguments.output), arguments.key, arguments.values) as folder:
            STAGES[arguments.stage](arguments, folder)
        self.seconds += time.process_time() - begun

    def close(self) -> None:
        pass


def reward(arguments: StageArguments, folder: Path) -> None:
    id = f"reward_model-{arguments.round:03d}-{stable_id('reward model', arguments.round)[:8]}"
    write_json(folder / "components.json", {"id": id, "components": []})
    rate = {"mean": 0.7, "low": 0.6, "high": 0.8, "n": 60, "groups": 20}
    bins = [{"confidence": c, "accuracy": c - 0.04, "n": 20} for c in (0.55, 0.7, 0.9)]
    values = {"accuracy": rate, "length_balanced_accuracy": rate, "ece": 0.1, "calibration": bins, "longer_wins": 0.5}
    write_json(folder / "metrics.json", {"frozen_head": values})


def score(arguments: StageArguments, folder: Path) -> None:
    completions = read_records(Path(arguments.inputs["completions"]), Completion)
    model = read_json(Path(arguments.inputs["reward"]) / "components.json")["id"]
    write_records(folder / "scores.parquet", scores(completions, model, arguments.round))


def scores(completions: list[Completion], model: str, n: int) -> list[Score]:
    values = {c.id: int(stable_id("score", model, c.id)[:8], 16) / 2**32 for c in completions}
    return [Score(completion_id=id, reward_model=model, value=value, round=n) for id, value in values.items()]


def update(arguments: StageArguments, folder: Path) -> None:
    (folder / "policy").mkdir()
    (folder / "policy" / "adapter_config.json").write_text("{}")
    write_json(folder / "metrics.json", {"algorithm": "dpo", "steps": 10, "train_loss": 0.6})


def generate(arguments: StageArguments, folder: Path) -> None:
    prompts = read_records(Path(arguments.inputs["prompts"]), Prompt)
    samples = arguments.recipe["generation"]["samples_per_prompt"]
    policy = arguments.values["policy_id"]
    write_records(folder / "completions.parquet", completions(prompts, samples, policy, arguments.round, "candidate"))


def completions(prompts: list[Prompt], samples: int, policy: str, n: int, what: str) -> list[Completion]:
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 64}
    return [
        Completion(
            id=stable_id(what, n, prompt.id, k), prompt_id=prompt.id, text=words(20), policy=policy, round=n, sample=k,
            sampling=sampling, tokens=25, token_ids=tuple(chance.choices(VOCABULARY, k=25)),
        )
        for prompt in prompts
        for k in range(samples)
    ]  # fmt: skip


def evaluated(arguments: StageArguments, folder: Path) -> None:
    inputs = {name: Path(path) for name, path in arguments.inputs.items()}
    prompts = read_records(inputs["prompts"], Prompt)
    answers = completions(prompts, 1, arguments.values["policy_id"], arguments.round, "held out")
    others = {
        name: read_records(inputs[name] / "answers.parquet", Completion) if name in inputs else answers
        for name in ("base", "previous")
    }

    def judge(prompts: Any, answers: Any) -> list[float]:
        return [chance.random() for _ in answers]

    settings = Recipe.model_validate(arguments.recipe).evaluation
    result = evaluate(
        prompts, answers, others["base"], others["previous"], judge=judge, judge_name="gold rule brief_and_complete",
        simulated=True, settings=settings, proxy=judge if "reward" in inputs else None,
    )  # fmt: skip
    result |= {"kl": {"per_completion": 1.5, "per_token": 0.1}, "perplexity": {"candidate": 9, "base": 9, "ratio": 1.0}}
    for row in result["rows"]:
        row["kl"] = chance.random()
    write_records(folder / "answers.parquet", answers)
    write_records(folder / "prompts.parquet", prompts)
    write_json(folder / "evaluation.json", result)


STAGES: dict[str, Callable[[StageArguments, Path], None]] = {
    "reward": reward, "score": score, "update": update, "generate": generate, "evaluate": evaluated,
}  # fmt: skip


class History:
    """A run that gets as long as one likes."""

    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe = recipe
        self.loop = Loop(recipe, run_dir=folder)
        self.run: RunDir = self.loop.run_dir
        self.stub = Stub()
        self.rounds: dict[int, float] = {}  # CPU seconds of the loop's own work
        self.snapshots: list[float] = []  # of these, what it takes to freeze and validate all feedback
        launch.choose = lambda *_: self.stub
        made = loop_module.make_round

        def measured(at: Any, n: int) -> None:
            begun, stages = time.process_time(), self.stub.seconds
            made(at, n)
            self.rounds[n] = time.process_time() - begun - (self.stub.seconds - stages)

        loop_module.make_round = measured
        freeze = learn.snapshot

        def frozen(*arguments: Any, **named: Any) -> Any:
            begun = time.process_time()
            report = freeze(*arguments, **named)
            self.snapshots.append(time.process_time() - begun)
            return report

        learn.snapshot = frozen

    def make(self, n: int) -> None:
        """Rounds up to `n` by the loop."""
        self.loop.run(rounds=n)

    def fill(self, last: int) -> None:
        """Rounds up to `last` as the loop would have left them, in the store and in the run's folder."""
        first = self.run.complete_rounds()[-1] + 1
        if first > last:
            return
        prompts = read_records(self.run.step(0, "snapshot") / "prompts.parquet", Prompt)
        held_out = read_records(self.run.step(0, "snapshot") / "held_out.parquet", Prompt)
        template = self.run.round(first - 1)
        waiting = read_records(template / "generate" / "completions.parquet", Completion)
        with Store.open(self.loop.store_url) as store:
            learned = [f.id for f in store.feedback()]
            for n in range(first, last + 1):
                waiting = self._fill_round(store, n, template, prompts, held_out, waiting, learned)
                if (n - first) % 50 == 49:
                    self._freeze(store, n)
        print(f"filled to round {last}", flush=True)

    def _fill_round(
        self, store: Store, n: int, template: Path, prompts: list[Prompt], held_out: list[Prompt],
        waiting: list[Completion], learned: list[str],
    ) -> list[Completion]:  # fmt: skip
        policy, model = f"policy-{n:03d}-stand-in", f"reward_model-{n:03d}-stand-in"
        made = {"path": str(self.run.step(n, "update") / "policy"), "round": n, "trained_on": tuple(learned)}
        store.add_artifact(Artifact(id=model, kind="reward_model", **made))
        store.add_artifact(Artifact(id=policy, kind="policy", parent="base", **made))
        if promoted := n % 10 == 0:
            self.loop.promote(store, policy)
        fresh = completions(prompts, self.recipe.generation.samples_per_prompt, policy, n, "candidate")
        answers = completions(held_out, 1, policy, n, "held out")
        store.add_completions([*fresh, *answers])
        parts = {"score": scores(waiting, model, n), "rescore": scores(fresh, model, n)}
        for values in parts.values():
            store.add_scores(values)
        said, questions = self._ask(n, prompts, fresh)
        store.add_questions(questions)
        store.add_feedback(said)
        learned += [f.id for f in said]
        for source in sorted(template.iterdir()):
            if not source.is_dir():
                if source.name != "manifest.json":
                    shutil.copy(source, self._place(n) / source.name)
                continue
            settings = {"specs": [], "step_offset": n}
            with step_folder(self.run.step(n, source.name), stable_id(n, source.name), settings) as folder:
                for file in sorted(source.rglob("*")):
                    if file.is_file() and file.name != "manifest.json":
                        target = folder / file.relative_to(source)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        os.link(self._frozen(file), target)
                if source.name in parts:
                    _rewrite(folder / "scores.parquet", parts[source.name])
                elif source.name == "generate":
                    _rewrite(folder / "completions.parquet", fresh)
                elif source.name == "evaluate":
                    _rewrite(folder / "answers.parquet", answers)
                elif source.name == "gate":
                    decision = read_json(folder / "decision.json")
                    (folder / "decision.json").unlink()
                    write_json(folder / "decision.json", {**decision, "promoted": promoted})
        manifest = read_json(template / "manifest.json")
        write_json(self._place(n) / "manifest.json", {**manifest, "round": n})
        return fresh

    def _ask(self, n: int, prompts: list[Prompt], fresh: list[Completion]) -> tuple[list[Preference], list[Question]]:
        """Answered questions about the fresh candidates."""
        of: dict[str, list[str]] = {}
        for one in fresh:
            of.setdefault(one.prompt_id, []).append(one.id)
        who = Annotator(id="simulated:brief", kind="CODE")
        said, questions = [], []
        for prompt in chance.sample(prompts, self.recipe.feedback.questions_per_round):
            a, b = of[prompt.id][:2]
            id, pair = stable_id("said", n, prompt.id), {"prompt_id": prompt.id, "a_id": a, "b_id": b, "round": n}
            questions.append(Question(id=f"q{id}", **pair))
            winner = chance.choice(("a", "b"))
            said.append(
                Preference(id=id, winner=winner, annotator=who, source="simulated", created_at=float(n), **pair)
            )
        return said, questions

    def _place(self, n: int) -> Path:
        self.run.round(n).mkdir(exist_ok=True)
        return self.run.round(n)

    def _frozen(self, file: Path) -> Path:
        """The newest version of a template's file that grows with the feedback."""
        newest = self.run.path / "full_size" / file.parent.name / file.name
        return newest if newest.exists() else file

    def _freeze(self, store: Store, n: int) -> None:
        """The files that hold all feedback, as large as they would be by now."""
        feedback = [f for f in store.feedback() if isinstance(f, Preference)]
        about = {id for f in feedback for id in (f.a_id, f.b_id)}
        answers = {c.id: c for c in store.completions(ids=about)}
        pairs, _ = pairs_from_feedback(feedback, answers, {p.id: p for p in store.prompts()}, n)
        for name, records in (
            ("snapshot/feedback", feedback),
            ("snapshot/pairs", pairs),
            ("assemble/training_data", pairs),
        ):
            file = self.run.path / "full_size" / f"{name}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            _rewrite(file, records)


def _rewrite(file: Path, records: list[Any]) -> None:
    file.unlink(missing_ok=True)
    write_records(file, records)


def command(*arguments: str) -> float:
    """CPU seconds of an `rlhf-loop` command."""
    process = os.posix_spawn(
        sys.executable, [sys.executable, "-m", "rlhf_loop", *arguments], os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )  # fmt: skip
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"ended with status {status}: {' '.join(arguments)}")
    return round(usage.ru_utime + usage.ru_stime, 2)


def looked_back(history: History, n: int) -> dict[str, Any]:
    """What looking back from round `n` costs."""
    run, recipe = str(history.run.path), str(history.run.path / "recipe.yaml")
    store_url = history.loop.store_url
    result: dict[str, Any] = {
        "run, nothing to do": command("run", recipe, "--run-dir", run, "--rounds", str(n)),
        "report": command("report", run),
        "status": command("status", run),
        "policy list": command("policy", "list", run),
        "feedback stats": command("feedback", "stats", "--store", store_url),
        "watch --once": command("watch", recipe, "--run-dir", run, "--once"),
    }

    with Store.open(store_url) as store:
        for name, look in {
            "watch, a look": lambda: arrivals(store, history.run),
            "watch, what arrived": lambda: news(store, history.recipe, history.run),
            "the promoted policy": store.promoted_id,
        }.items():
            begun = time.process_time()
            look()
            result[name] = round(time.process_time() - begun, 3)
        counts = store.counts()
    files = [history.run.path / name for name in ("feedback.db", "feedback.db-wal")]
    result["store, MB"] = round(sum(f.stat().st_size for f in files if f.exists()) / 1e6)
    snapshot = history.run.step(n, "snapshot")
    result["snapshot folder, MB"] = round(sum(f.stat().st_size for f in snapshot.rglob("*")) / 1e6, 2)
    result["round folder, MB"] = round(
        sum(f.stat().st_size for f in history.run.round(n).rglob("*") if f.is_file()) / 1e6, 2
    )
    result["counts"] = {name: counts[name] for name in ("completions", "scores", "feedback", "artifacts")}
    return result


def past(history: History, n: int) -> dict[str, Any]:
    """What round `n` reads of the past, CPU seconds."""
    recipe = Recipe.model_validate(
        history.recipe.model_dump() | {"generation": {"strategy": "refine+exemplars", "samples_per_prompt": 4}}
    )
    frozen = history.run.step(n, "snapshot")
    with Store.open(history.loop.store_url) as store, tempfile.TemporaryDirectory() as name:
        prompts = store.prompts(split="train")
        ids = {prompt.id for prompt in prompts[:10]}
        folders = _embedded(store, n, Path(name))
        new = [Key(prompt_id=prompt.id, completion_id=f"new-{k}") for prompt in prompts for k in range(4)]
        looks: dict[str, Callable[[], Any]] = {
            "recall": lambda: recall(store, recipe, n, frozen, Path(name)),
            "answers of 10 prompts": lambda: store.completions(prompt_ids=ids),
            "all answers": store.completions,
            "names of embedded answers": lambda: Index.open(folders, "answers").holds(new),
        }
        result = {}
        for what, look in looks.items():
            begun = time.process_time()
            look()
            result[what] = round(time.process_time() - begun, 3)
        result["counts"] = {name: store.counts()[name] for name in ("completions", "scores")}
    return result


def _embedded(store: Store, n: int, folder: Path) -> list[Path]:
    """Vectors of all candidates, narrow ones, by round."""
    folders = []
    for number in range(n):
        keys = [Key(prompt_id=c.prompt_id, completion_id=c.id) for c in store.completions(round=number)]
        (made := folder / f"embed-{number}").mkdir()
        write(made, "answers", keys, torch.ones(len(keys), 4) / 2, "float16")
        folders.append(made)
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--marks", type=int, nargs="+", default=[10, 100, 1000], help="rounds to measure at")
    parser.add_argument("--candidates", type=int, default=1000, help="a round")
    parser.add_argument("--questions", type=int, default=32, help="a round, each answered once")
    parser.add_argument("--profile", action="store_true", help="show where the last round's time went")
    parser.add_argument("--past", action="store_true", help="measure what looks back alone")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    out = given.out or (RESULTS.with_name("history_past.json") if given.past else RESULTS)
    results: dict[str, Any] = {
        "machine": machine.describe(), "candidates a round": given.candidates, "feedback a round": given.questions,
        "marks": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        recipe = Recipe.load(write_recipe(Path(name), given.candidates // 4, 4, given.questions))
        history = History(recipe, Path(name) / "run")
        history.make(2)
        for mark in given.marks:
            history.fill(mark - MEASURED)
            if given.profile and mark == given.marks[-1]:
                import cProfile

                history.make(mark - 1)
                cProfile.runctx("history.make(mark)", globals(), locals(), sort="cumulative")
            history.make(mark)
            own = [history.rounds[n] for n in range(mark - MEASURED + 1, mark + 1)]
            measured = (
                past(history, mark)
                if given.past
                else {
                    "round": round(statistics.median(own), 2),
                    "of it, the snapshot of all feedback": round(statistics.median(history.snapshots[-MEASURED:]), 2),
                    **looked_back(history, mark),
                }
            )
            results["marks"][str(mark)] = measured
            print(json.dumps({mark: measured}, indent=1), flush=True)
            results["peak_gib"] = round(machine.peak_memory(), 2)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
