"""What a run costs beside its computing: the part `overhead` of `scale.py`, which says how it is called.

Computing is what happens within `COMPUTES`: training, sampling, scoring, and the measures of an evaluation. All else of
the command `rlhf-loop run` is overhead: starts of processes, imports, loading of models (`LOADS`, also where it happens
within computing), data sets and trainers that are set up, checkpoints, snapshots, rows, files, the simulated
annotator, and the report. Both are measured by the clock and in CPU seconds of all processes.

    python benchmarks/scale_overhead.py steer ...    (the command line of rlhf-loop, measured)
    python benchmarks/scale_overhead.py stage FILE   (a stage in a process of its own, measured)
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILE = "SCALE_OVERHEAD_FILE"
"""The environment variable that names the file which all processes of a run append to."""

COMPUTES = {
    "training": ["transformers.trainer:Trainer.train", "rlhf_loop.rewards.head:train"],
    "sampling": ["rlhf_loop.generation.transformers_engine:sample"],
    "scoring": ["rlhf_loop.rewards.base:Reward.checked_values"],
    "evaluating": ["rlhf_loop.evaluation:evaluate", "rlhf_loop.rewards:evaluate_reward"],
}
LOADS = {
    "loading": [
        "rlhf_loop.models.loading:load_policy",
        "rlhf_loop.models.loading:load_tokenizer",
        "rlhf_loop.rewards.trunk:load_trunk",
        "rlhf_loop.rewards.trunk:load_classifier",
    ],
    "checkpoints": ["transformers.trainer:Trainer._save_checkpoint"],
}


def overhead(recipe: Path, launches: Sequence[str], rounds: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Round 0 and so many update rounds of a recipe, with each way of starting stages in turn; `child@COMMIT`: with the
    package as it was then."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for repeat in range(repeats):
        for name in launches:
            launch, _, commit = name.partition("@")
            with code_of(commit, folder / "code") as code:
                rows[name].append(run(recipe, launch, rounds, code, folder / f"{name}-{repeat}"))
            print(f"{name}: {json.dumps(rows[name][-1])}", flush=True)
    return {
        "recipe": recipe.name,
        "overhead": {name: {of: middle(found, of) for of in found[0]} for name, found in rows.items()},
        "runs": rows,
    }


@contextmanager
def code_of(commit: str, folder: Path) -> Iterator[Path]:
    """A checkout of a commit, or this one."""
    if not commit:
        yield ROOT
        return
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def middle(rows: Sequence[dict[str, Any]], of: str) -> dict[str, Any]:
    """The median shares of several runs, and all of them."""
    shares = {kind: [row[of][kind]["overhead"] for row in rows] for kind in ("cpu", "clock")}
    return {kind: {"median": statistics.median(found), "each": found} for kind, found in shares.items()}


def run(recipe: Path, launch: str, rounds: int, code: Path, folder: Path) -> dict[str, Any]:
    """`rlhf-loop run RECIPE --rounds ROUNDS launch=LAUNCH` with the package of `code`: all of it, and each round."""
    folder.mkdir(parents=True)
    told = folder / "told.jsonl"
    command = [sys.executable, __file__, "steer", "run", str(recipe), "--run-dir", str(folder / "run")]
    command += ["--rounds", str(rounds), f"launch={launch}"]
    environment = {**os.environ, FILE: str(told), "PYTHONPATH": str(code)}
    started = time.perf_counter()
    process = os.posix_spawn(sys.executable, command, environment)
    _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"ended with status {status}: {' '.join(command)}")
    lines = [json.loads(line) for line in told.read_text().splitlines()]
    stages = [line for line in lines if "step" in line]
    found = {"run": shares({"clock": seconds, "cpu": usage.ru_utime + usage.ru_stime}, stages)}
    for line in lines:
        if line.get("made"):  # round 0 is another
            n = line["made"]
            found[f"round {n}"] = shares(line, [stage for stage in stages if stage["round"] == n])
    return found


def shares(whole: dict[str, float], stages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of all seconds: in each kind of computing, in loading, and the share that is no computing."""
    result: dict[str, Any] = {}
    for number, kind in enumerate(("clock", "cpu")):
        spent: dict[str, float] = defaultdict(float)
        for stage in stages:
            for name, seconds in stage["spent"].items():
                spent[name] += seconds[number]
        computed = sum(spent[name] for name in COMPUTES)
        result[kind] = {
            "seconds": round(whole[kind], 1),
            "overhead": round(1 - computed / whole[kind], 4),
            **{name: round(spent[name], 1) for name in (*COMPUTES, *LOADS)},
        }
    result["steps"] = {stage["step"]: stage for stage in stages} if len({s["round"] for s in stages}) == 1 else {}
    return result


class Meter:
    """The seconds of each kind by the clock and of the CPU; what is within another kind counts for itself alone."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._open: list[str] = []
        self._since = now()

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        self._count()
        self._open.append(kind)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def _count(self) -> None:
        before, self._since = self._since, now()
        if self._open:
            for place in range(2):
                self.spent[self._open[-1]][place] += self._since[place] - before[place]

    def taken(self) -> dict[str, list[float]]:
        """What was spent since the last call."""
        spent, self.spent = dict(self.spent), defaultdict(lambda: [0.0, 0.0])
        return spent


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def tell(line: dict[str, Any]) -> None:
    with Path(os.environ[FILE]).open("a") as file:
        file.write(json.dumps(line) + "\n")


class Meters(MetaPathFinder):
    """Puts the functions of `COMPUTES` and `LOADS` under a meter when the modules that define them are imported."""

    def __init__(self, meter: Meter):
        self.meter = meter
        self.wanted: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for kind, places in {**COMPUTES, **LOADS}.items():
            for place in places:
                module, _, path = place.partition(":")
                self.wanted[module].append((kind, path))

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in self.wanted:
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def executed(module: Any) -> None:
            execute(module)
            for kind, path in self.wanted[name]:
                owner, _, function = path.rpartition(".")
                holder = getattr(module, owner) if owner else module
                setattr(holder, function, under(self.meter, kind, getattr(holder, function)))

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


def measure_stages() -> None:
    """From here on, each stage that runs in this process tells what was spent in it."""
    meter = Meter()
    sys.meta_path.insert(0, Meters(meter))
    import rlhf_loop.stages as stages
    from rlhf_loop.stages.arguments import StageArguments

    run_stage = stages.run_stage

    def measured(arguments_file: Path, progress: Any = None) -> None:
        begun = now()
        run_stage(arguments_file, progress)
        arguments = StageArguments.read(arguments_file)
        whole = [one - other for one, other in zip(now(), begun, strict=True)]
        tell({"round": arguments.round, "step": Path(arguments.output).name, "whole": whole, "spent": meter.taken()})

    stages.run_stage = measured


def under(meter: Meter, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        with meter(kind):
            return function(*arguments, **named)

    return wrapped


def steer(arguments: list[str]) -> None:
    """The command line of rlhf-loop, with its stages and rounds measured."""
    measure_stages()  # of this process, where they run inline
    from rlhf_loop import loop
    from rlhf_loop.cli import main
    from rlhf_loop.launch.child import Child

    command, make_round = Child.command, loop.make_round

    def of_child(self: Any, arguments_file: Path) -> list[str]:
        line = command(self, arguments_file)
        place = line.index("rlhf_loop.stages")
        return [*line[: place - 1], __file__, "stage", *line[place + 1 :]]

    def of_round(at: Any, n: int) -> None:
        begun = time.perf_counter(), with_children()
        make_round(at, n)
        tell({"made": n, "clock": time.perf_counter() - begun[0], "cpu": with_children() - begun[1]})

    Child.command = of_child  # type: ignore[method-assign]
    loop.make_round = of_round
    sys.argv = ["rlhf-loop", *arguments]
    main()


def with_children() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def stage(file: str) -> None:
    measure_stages()
    import rlhf_loop.stages
    from rlhf_loop.stages import __main__ as of_stages

    of_stages.run_stage = rlhf_loop.stages.run_stage
    of_stages.main(Path(file))


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    steer(rest) if what == "steer" else stage(*rest)
