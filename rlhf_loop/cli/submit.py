"""`rlhf-loop submit`: a run, or one for each value of a setting, as jobs of a cluster."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_loop.cli.shared import CheckMemory, command, shortest
from rlhf_loop.errors import UserError

if TYPE_CHECKING:
    from rlhf_loop.cluster import Plan, Submission


def submit(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/quickstart.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings over the recipe's: key.sub=value.", metavar="[KEY=VALUE]...")
    ] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="To Slurm, on this login node.")] = False,
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="To Kubernetes, by kubectl; each stage is a TrainJob of Kubeflow.")
    ] = False,
    skypilot: Annotated[
        bool, typer.Option("--skypilot", help="By SkyPilot's sky: one allocation for all, on any cloud it knows.")
    ] = False,
    stages: Annotated[
        bool,
        typer.Option("--stages", help="Each stage a job of its own, steered from one CPU that waits for people too."),
    ] = False,
    profile: Annotated[
        Path | None, typer.Option(help="What jobs ask for, such as recipes/cluster/profile.yaml.", metavar="FILE")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="A setting over the profile's, such as nodes=4.", metavar="KEY=V")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=0, help="Rounds in all (default: the recipe's).")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/NAME).")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="Several jobs, a run for each value, such as seed=0,1,2.", metavar="KEY=V,V"),
    ] = None,
    check_memory: CheckMemory = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be written and submitted, and do nothing.")
    ] = False,
) -> None:
    """Submit a run to a cluster; it goes on after time limits, preemption and the death of nodes."""
    from rlhf_loop.cluster import platform
    from rlhf_loop.files import private

    flags = {"slurm": slurm, "kubernetes": kubernetes, "skypilot": skypilot}
    chosen = [name for name, wanted in flags.items() if wanted]
    if len(chosen) > 1:
        raise UserError(f"a run goes to one cluster, and you named {' and '.join(f'--{name}' for name in chosen)}")
    if not chosen:
        raise UserError(
            "name the cluster to submit to: --slurm, --kubernetes or --skypilot. Without one, `rlhf-loop run RECIPE` "
            "runs here"
        )
    on = platform(chosen[0])
    submission, own_profile = _submission(recipe, overrides or [], sweep or [], rounds, run_dir, stages, check_memory)
    plan: Plan = on.plan(submission, profile or own_profile, setting or [])
    if dry_run:
        _show(plan)
        return
    for run in submission.runs:
        _refuse_in_use(run.folder)
        private.make_folder(run.folder)
    id = on.submit(plan)
    print("\n".join(on.told(plan, id)))
    for run in submission.runs:
        print(f"  status: {command()} status {shortest(run.folder)}")


def _submission(
    recipe: Path,
    overrides: Sequence[str],
    sweep: Sequence[str],
    rounds: int | None,
    run_dir: Path | None,
    stages: bool,
    check_memory: bool,
) -> tuple[Submission, Path | None]:
    """What is to run, and the profile that the recipe names. Raises `UserError` for what is wrong with the recipe, and
    for runs that were begun with another one."""
    from rlhf_loop.cli.sweeps import swept
    from rlhf_loop.cluster import PLATFORMS, Submission, SubmittedRun
    from rlhf_loop.kept_recipe import check_recipe
    from rlhf_loop.plan.floor import UNCHECKED
    from rlhf_loop.run_dir import RunDir

    runs, steered = [], []
    for loaded, typed, place in swept(recipe, overrides, sweep, run_dir):
        folder = place.resolve()
        check_recipe(loaded, RunDir(folder))
        steered.append(stages or loaded.launch in PLATFORMS)
        launch = [] if loaded.launch in ("auto", *PLATFORMS) else ["launch=auto"]  # ranks that were started together
        words = [str(recipe.resolve()), *typed, *launch, "--run-dir", str(folder)]
        if rounds is not None:
            words += ["--rounds", str(rounds)]
        if not check_memory:
            words.append(UNCHECKED)
        runs.append(SubmittedRun(folder=folder, words=words, accelerate_config=loaded.accelerate_config))
        base = (run_dir or loaded.run_dir or Path("runs") / loaded.name).resolve()
    logs = base.with_name(f"{base.name}-logs") if sweep else base / "logs"
    return Submission(name=base.name, runs=runs, stages=any(steered), logs=logs), loaded.cluster_profile


def _refuse_in_use(run: Path) -> None:
    from rlhf_loop.cluster import platform
    from rlhf_loop.cluster.jobs import read_record, run_record
    from rlhf_loop.run_dir import RunDir

    record = read_record(run_record(run))
    if record is not None and platform(record.platform).alive(record):
        raise UserError(
            f"{shortest(run)} was submitted already, as job {record.id}, which has not ended: `{command()} status "
            f"{shortest(run)}` shows it. Cancel it first, or choose another folder with --run-dir"
        )
    if (run / "lock").exists() and (owner := RunDir(run).used_by()):
        raise UserError(f"{shortest(run)} is in use by {owner}. Wait for it, or stop it")


def _show(plan: Plan) -> None:
    is_yaml = all(path.suffix == ".yaml" for path in plan.files)  # what is printed is valid as it stands
    parts = [f"# {shortest(path)}\n{text}" for path, text in plan.files.items()]
    print(("---\n" if is_yaml else "\n").join(parts))
    print(f"# the command{'s' * (len(plan.commands) > 1)}")
    for line in plan.commands:
        print(f"{'# ' * is_yaml}{shlex.join(line)}")
