"""Makes the runs of a sweep, each in a process of its own: several at a time, what is complete not again."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_loop import processes
from rlhf_loop.comparison.sweep import CellRun
from rlhf_loop.errors import UserError
from rlhf_loop.files import private, read_json, write_text
from rlhf_loop.machine import cpu_quota, visible_accelerators
from rlhf_loop.plan.floor import UNCHECKED
from rlhf_loop.processes import LastLines
from rlhf_loop.progress import is_head
from rlhf_loop.run_dir import RunDir

_IN_USE_SECONDS = 2.0  # until a run that another process works on is looked at again


@dataclass(kw_only=True)
class _Job:
    """A run that is being made."""

    run: CellRun
    slot: int
    process: subprocess.Popen[str]
    last: LastLines = field(default_factory=LastLines)


def make_runs(
    runs: Sequence[CellRun], jobs: int, say: Callable[[str], None], check_memory: bool = True
) -> dict[str, str]:
    """Makes what is not complete, `jobs` at a time, and gives what went wrong by the run's name: one that fails does
    not keep the others from running. What a run says goes to `seed_N.log` beside its folder.

    A run that another process works on (one that a comparison which was killed had begun) is waited for. Whatever ends
    the waiting ends all that was started.
    """
    errors: dict[str, str] = {}
    waiting = [run for run in runs if not is_complete(run)]
    say(_head(runs, waiting, jobs))
    heard: queue.Queue[tuple[_Job, str | None]] = queue.Queue()
    working: list[_Job] = []
    told: set[str] = set()
    with _all_ended(working):
        while waiting or working:
            free = [slot for slot in range(jobs) if slot not in {job.slot for job in working}]
            while free and (run := _first_free(waiting, told, say)) is not None:
                waiting.remove(run)
                job = _start(run, free.pop(0), jobs, check_memory)
                working.append(job)
                threading.Thread(target=_hear, args=(job, heard), daemon=True).start()
                say(f"{run.name}: begun, log in {run.folder}.log")
            try:
                job, line = heard.get(timeout=_IN_USE_SECONDS if waiting and free else None)
            except queue.Empty:
                continue
            if line is not None:
                job.last.add(line)
                number = line.removeprefix("round ").partition(" ")[0].rstrip(":")
                if number.isdigit() and is_head(line, int(number)):
                    say(f"{job.run.name}: {line.partition(' · ')[0]}")
                continue
            working.remove(job)
            done = f"complete in {spoken(seconds_of(job.run))}"
            if (wrong := _wrong(job)) is not None:
                errors[job.run.name] = wrong
                done = f"stopped: {wrong.splitlines()[0]}"
            say(f"{job.run.name}: {done}. {_left(runs, [*waiting, *(one.run for one in working)], jobs)}")
    return errors


def is_complete(run: CellRun) -> bool:
    """Whether all rounds of its recipe are."""
    return set(range(run.recipe.rounds + 1)) <= set(RunDir(run.folder).complete_rounds())


def seconds_of(run: CellRun) -> float:
    """What its complete rounds took, in whatever calls they were made."""
    folder = RunDir(run.folder)
    return sum(float(read_json(folder.round(n) / "manifest.json")["seconds"]) for n in folder.complete_rounds())


def at_a_time(runs: Sequence[CellRun], jobs: int | None) -> int:
    """How many runs: `jobs`, or one for each accelerator, one on a CPU; one where the recipe shares them out itself."""
    if any(run.recipe.launch in ("child", "ranks") or run.recipe.accelerate_config for run in runs):
        if (jobs or 1) > 1:
            raise UserError(
                "--jobs: a recipe with `launch: child` or an accelerate_config takes all accelerators for one run; "
                "leave --jobs out"
            )
        return 1
    return jobs or max(1, visible_accelerators())


def environment(slot: int, jobs: int) -> dict[str, str]:
    """Of the process in a slot: its own accelerator, or its share of the cores."""
    changed = dict(os.environ)
    count = visible_accelerators()
    if count:
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = [one.strip() for one in named.split(",")] if named else [str(number) for number in range(count)]
        changed["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)] if jobs > 1 else ",".join(devices)
    elif jobs > 1:
        changed.setdefault("OMP_NUM_THREADS", str(max(1, (cpu_quota() or os.cpu_count() or 1) // jobs)))
    return changed


def _first_free(waiting: Sequence[CellRun], told: set[str], say: Callable[[str], None]) -> CellRun | None:
    for run in waiting:
        lock = run.folder / "lock"
        owner = RunDir(run.folder).used_by() if lock.exists() else None
        if owner is None:
            return run
        if run.name not in told:
            told.add(run.name)
            say(f"{run.name}: {owner} works on it; waiting for that")
    return None


def command(run: CellRun, check_memory: bool = True) -> list[str]:
    """What makes a run, or goes on with it; a person can type it too."""
    recipe = str(run.folder.parent / "recipe.yaml")
    words = [sys.executable, "-m", "rlhf_loop", "run", recipe, f"seed={run.seed}", "--run-dir", str(run.folder)]
    return words if check_memory else [*words, UNCHECKED]


def _start(run: CellRun, slot: int, jobs: int, check_memory: bool) -> _Job:
    private.make_folder(run.folder.parent)
    write_text(run.folder.parent / "recipe.yaml", run.recipe.to_yaml())
    process = subprocess.Popen(
        command(run, check_memory),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment(slot, jobs),
        start_new_session=True,
    )
    return _Job(run=run, slot=slot, process=process)


def _hear(job: _Job, heard: queue.Queue[tuple[_Job, str | None]]) -> None:
    """Passes on what a run says, and that it has ended; a log that cannot be written (the disk is full) stops
    neither."""
    assert job.process.stdout is not None
    log = Path(f"{job.run.folder}.log")
    kept = True
    for line in job.process.stdout:
        if kept:
            try:
                with log.open("a", encoding="utf-8") as file:
                    file.write(line)
            except OSError as error:
                kept = False
                heard.put((job, f"error: {log} cannot be written: {error}"))
        heard.put((job, line.rstrip("\n")))
    job.process.wait()
    heard.put((job, None))


def _wrong(job: _Job) -> str | None:
    """Why a run is not complete after its process has ended; None where it is."""
    if is_complete(job.run):
        return None
    code = job.process.returncode
    if code == 0:
        return "it waits for people's answers; the end of its log says how they give them. Then type the same command"
    return job.last.error or f"its process ended with exit code {code}: {job.last.last or 'it said nothing'}"


@contextmanager
def _all_ended(working: Sequence[_Job]) -> Iterator[None]:
    """Whatever leaves the block ends the processes of `working`, all at once."""
    try:
        yield
    finally:
        ending = [threading.Thread(target=processes.stop, args=(job.process,)) for job in working]
        for thread in ending:
            thread.start()
        for thread in ending:
            thread.join()


def _head(runs: Sequence[CellRun], waiting: Sequence[CellRun], jobs: int) -> str:
    if not waiting:
        return f"all {len(runs)} runs are complete"
    kept = f" ({len(runs) - len(waiting)} are complete)" if len(waiting) < len(runs) else ""
    return f"{len(runs)} runs{kept}, {jobs} at a time. {_left(runs, waiting, jobs)}"


def _left(runs: Sequence[CellRun], left: Sequence[CellRun], jobs: int) -> str:
    """How many runs and how much time are left, by what the runs took that are complete."""
    if not left:
        return "None is left"
    took: dict[str, list[float]] = {}
    for run in runs:
        if is_complete(run):
            took.setdefault(run.cell, []).append(seconds_of(run))
    if not took:
        return f"{len(left)} left; how long they take is known when the first is complete"
    seconds = expected_seconds(took, left) / min(jobs, len(left))
    return f"{len(left)} left, about {spoken(seconds)}"


def expected_seconds(took: Mapping[str, Sequence[float]], left: Sequence[CellRun]) -> float:
    """Of what is left, one run after the other: as others of the cell took, else as all did, less what is there."""
    everything = [seconds for several in took.values() for seconds in several]
    total = 0.0
    for run in left:
        known = took.get(run.cell) or everything
        total += max(0.0, sum(known) / len(known) - seconds_of(run))
    return total


def spoken(seconds: float) -> str:
    """Seconds in words: 50 s, 3 min, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
