"""Slurm: a run is one job for all of it, or a job that steers and one for each stage."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from rlhf_loop.cluster import Plan, Submission, slurm_commands
from rlhf_loop.cluster.jobs import Away, JobRecord, JobState, run_record
from rlhf_loop.cluster.scripts import Call, render
from rlhf_loop.cluster.slurm_profile import read_profile
from rlhf_loop.errors import UserError
from rlhf_loop.files import write_text
from rlhf_loop.settings import write_yaml

SNAPSHOT = "cluster.yaml"
"""The profile as it was when a run was submitted, in the run's folder: what its stages ask for."""


def plan(submission: Submission, profile_file: Path | None, settings: Sequence[str]) -> Plan:
    """What would be written and typed. Raises `UserError` for a profile that is wrong."""
    profile = read_profile(profile_file, settings)
    files: dict[Path, str] = {}
    if submission.stages:
        text = write_yaml(profile.model_dump(exclude_none=True))
        files |= {run.folder / SNAPSHOT: text for run in submission.runs}
        calls = [
            Call(
                words=[*run.words, f"cluster_profile={run.folder / SNAPSHOT}"],
                variables={"RLHF_LOOP_LOGS": str(run.folder / "logs")},
            )
            for run in submission.runs
        ]
        script, options = "steer.slurm.sh", profile.steering_options()
    else:
        calls = [
            Call(words=run.words, variables=variables(run.folder, run.accelerate_config)) for run in submission.runs
        ]
        script, options = "slurm.sh", profile.options()
    several = len(submission.runs) > 1
    text = render(
        script,
        options,
        profile,
        name=job_name(submission.name),
        output=f"{pattern(submission.logs)}/slurm-{'%A_%a' if several else '%j'}.out",
        calls=calls,
    )
    path = submission.logs / "submitted.sh"
    return Plan(submission=submission, files={**files, path: text}, commands=[slurm_commands.command(path)])


def submit(plan: Plan) -> str:
    """Writes the files and submits; gives the id. Each run is told which job works on it.

    Raises `UserError` where there is no Slurm, or it refuses, or does not answer.
    """
    slurm_commands.require()
    for path, text in plan.files.items():
        write_text(path, text)
    try:
        id = slurm_commands.submit(*plan.commands)
    except Away as error:
        raise UserError(
            f"Slurm does not answer: {error}. Whether the job was submitted is not known: look with "
            f"`squeue --me --name={job_name(plan.submission.name)}` before you type this again"
        ) from None
    what = "steering" if plan.submission.stages else "whole run"
    for number, run in enumerate(plan.submission.runs):
        own = f"{id}_{number}" if len(plan.submission.runs) > 1 else id
        record = JobRecord(
            platform="slurm",
            id=own,
            what=what,
            logs=str(run.folder / "logs"),
            name=job_name(plan.submission.name),
        )
        record.write(run_record(run.folder))
    return id


def told(plan: Plan, id: str) -> list[str]:
    """Lines for who submitted: how to follow and to cancel."""
    several = len(plan.submission.runs) > 1
    out = f"{plan.submission.logs}/slurm-{id}{'_*' if several else ''}.out"
    return [
        f"submitted job {id}",
        f"  follow: tail -F {shlex.quote(out) if not several else out}",
        f"  cancel: scancel {id}",
    ]


def state(record: JobRecord) -> JobState:
    """A job as Slurm knows it now; "GONE" is one that it has forgotten."""
    try:
        job = slurm_commands.look(record.id, record.name)
    except (UserError, Away):
        return JobState(state=None, logs=record.logs)
    attempt = f"{record.logs}/slurm-{job.id}/attempt-{job.restarts}"
    return JobState(
        state=job.state,
        where=job.nodes or job.reason,
        attempt=job.restarts,
        logs=attempt if os.path.isdir(attempt) else record.logs,
    )


def alive(record: JobRecord) -> bool | None:
    """Whether a job waits or runs; None where nobody can be asked."""
    try:
        return not slurm_commands.look(record.id, record.name).ended
    except (UserError, Away):
        return None


def variables(run: Path, accelerate_config: Path | None) -> dict[str, str]:
    """The environment of `slurm.sh`."""
    config = {} if accelerate_config is None else {"RLHF_LOOP_ACCELERATE_CONFIG": str(accelerate_config)}
    return {"RLHF_LOOP_LOGS": str(run / "logs"), **config}


def job_name(run: str) -> str:
    """A name that stays one word."""
    return "rlhf-loop-" + re.sub(r"[^\w.-]+", "-", run)


def pattern(path: Path) -> str:
    """A path in which Slurm finds no patterns."""
    return str(path).replace("%", "%%")
