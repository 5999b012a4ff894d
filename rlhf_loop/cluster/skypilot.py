"""SkyPilot: a run is one managed job, or one job of a plain cluster, on all the nodes of a profile."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from rlhf_loop.cluster import Plan, Submission, SubmittedRun, sky, skypilot_task
from rlhf_loop.cluster.jobs import Away, JobRecord, JobState, read_record, run_record
from rlhf_loop.cluster.manifests import object_name
from rlhf_loop.cluster.skypilot_profile import SkyPilotProfile, read_profile
from rlhf_loop.errors import UserError
from rlhf_loop.files import write_text
from rlhf_loop.settings import read_yaml, write_yaml

GONE = "GONE"
"""The state of a job or cluster that SkyPilot no longer knows."""


def plan(submission: Submission, profile_file: Path | None, settings: Sequence[str]) -> Plan:
    """What would be written and typed: a task and a command for each run. Raises `UserError` for a profile that is
    wrong, for stages as jobs of their own, and for what the nodes would not get."""
    if submission.stages:
        raise UserError(
            "SkyPilot gives a run one allocation, from its first round to its end or to where people must answer: "
            "leave --stages, and `launch: slurm` or `kubernetes`, out"
        )
    profile = read_profile(profile_file, settings)
    files, commands = {}, []
    for run in submission.runs:
        path = submission.logs / (f"{run.folder.name}.yaml" if len(submission.runs) > 1 else "submitted.yaml")
        files[path] = write_yaml(skypilot_task.task(profile, job_name(run), run))
        commands.append(_command(profile, job_name(run), path))
    return Plan(submission=submission, files=files, commands=commands)


def submit(plan: Plan) -> str:
    """Writes the tasks and launches one after the other; gives the ids, with commas. Each run is told which job works
    on it. An id: of a managed job its number, of a plain cluster NAME/NUMBER.

    Raises `UserError` where there is no SkyPilot, a secret has no value here, or a launch fails.
    """
    sky.require()
    _check_secrets(plan)
    for path, text in plan.files.items():
        write_text(path, text)
    ids: list[str] = []
    for run, command in zip(plan.submission.runs, plan.commands, strict=True):
        try:
            sky.launch(command)
        except UserError as error:
            if not ids:
                raise
            raise UserError(
                f"{run.folder.name}: {error}. Submitted before it, and not cancelled: job {', '.join(ids)}. For "
                "the rest give --sweep the values that are left"
            ) from None
        try:
            id = _newest(job_name(run), managed=command[1] == "jobs")
        except Away as error:
            raise UserError(
                f"{run.folder.name} was submitted, but SkyPilot does not say as which job: {error}. Look with `sky "
                "jobs queue` or `sky status` before you type this again"
            ) from None
        record = JobRecord(platform="skypilot", id=id, name=job_name(run), what="whole run", logs=_follow(id))
        record.write(run_record(run.folder))
        ids.append(id)
    return ",".join(ids)


def told(plan: Plan, id: str) -> list[str]:
    """Lines for who submitted: how to follow and to cancel, and where the run's rounds will be."""
    lines = []
    for one, text in zip(id.split(","), plan.files.values(), strict=True):
        cluster, _, number = one.rpartition("/")
        cancel = f"sky cancel {cluster} {number}" if cluster else f"sky jobs cancel {number}"
        lines += [f"submitted job {one}", f"  follow: {_follow(one)}", f"  cancel: {cancel}"]
        if copies := read_yaml(text, "the task")["envs"].get(skypilot_task.COPIES):
            lines.append(f"  its whole rounds: rlhf-loop fetch {copies} FOLDER")
    return lines


def state(record: JobRecord) -> JobState:
    """A job as SkyPilot knows it now, or its cluster where that has stopped; "GONE" is one that is not there."""
    try:
        name, where, attempt = _looked(record)
    except (UserError, Away):
        return JobState(state=None, logs=record.logs)
    return JobState(state=name, where=where, attempt=attempt, logs=record.logs)


def alive(record: JobRecord) -> bool | None:
    """Whether a job waits or runs; None where nobody can be asked."""
    try:
        name, _, _ = _looked(record)
    except (UserError, Away):
        return None
    return not name.startswith(("SUCCEEDED", "FAILED", "CANCELLED", "STOPPED", GONE))


def job_name(run: SubmittedRun) -> str:
    """Of the job of a run, and of its cluster: of a plain one that it has already, on whose disk it may lie, the name
    of that."""
    record = read_record(run_record(run.folder))
    if record is not None and record.platform == "skypilot" and "/" in record.id:
        return record.name
    return object_name(f"rlhf-loop-{run.folder.name}")


def _command(profile: SkyPilotProfile, name: str, path: Path) -> list[str]:
    launch = ["sky", "jobs", "launch"] if profile.managed else ["sky", "launch", "--cluster", name]
    secrets = [word for name in profile.secrets for word in ("--secret", name)]
    return [*launch, "--yes", "--detach-run", *secrets, str(path)]


def _check_secrets(plan: Plan) -> None:
    for flag, name in pairwise(plan.commands[0]):
        if flag == "--secret" and name not in os.environ:
            raise UserError(
                f"secrets: {name} has no value here: `export {name}=...` first, or take it out of the profile"
            )


def _newest(name: str, *, managed: bool) -> str:
    """The id of the last job of a name. Raises `Away` where there is none."""
    found = [one for one in (sky.managed_jobs() if managed else sky.cluster_jobs(name)) if one["job_name"] == name]
    if not found:
        raise Away(f"it names no job {name}")
    return str(found[-1]["job_id"]) if managed else f"{name}/{found[-1]['job_id']}"


def _looked(record: JobRecord) -> tuple[str, str, int]:
    """The state of a job, where or why it is so, and how often it has recovered. Raises `Away`."""
    cluster, _, number = record.id.rpartition("/")
    if cluster:
        known = sky.cluster(cluster)
        if known is None:
            return GONE, "", 0
        if known["status"] != "UP":
            return known["status"], str(known.get("init_status_reason") or ""), 0
        jobs = sky.cluster_jobs(cluster)
    else:
        jobs = sky.managed_jobs()
    job = next((one for one in jobs if str(one["job_id"]) == number and one["job_name"] == record.name), None)
    if job is None:
        return GONE, "", 0
    where = job.get("failure_reason") or job.get("infra") or job.get("resources") or ""
    return str(job["status"]), str(where), int(job.get("recovery_count") or 0)


def _follow(id: str) -> str:
    cluster, _, number = id.rpartition("/")
    return f"sky logs {cluster} {number}" if cluster else f"sky jobs logs {number}"


__all__ = ["SkyPilotProfile", "alive", "plan", "read_profile", "state", "submit", "told"]
