"""Kubernetes: a run is a Job on one CPU that steers, and makes a Kubeflow TrainJob for each stage.

The folder from which a run is submitted stands for the `workdir` of the profile, a folder of the shared volume: paths
within it are the same there.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_loop.cluster import Plan, Submission, SubmittedRun, kubectl, manifests, words_there
from rlhf_loop.cluster.jobs import Away, JobRecord, JobState, run_record
from rlhf_loop.cluster.kubectl import Place
from rlhf_loop.cluster.kubernetes_profile import KubernetesProfile, read_profile
from rlhf_loop.errors import UserError
from rlhf_loop.files import write_text
from rlhf_loop.settings import read_yaml

GONE = "GONE"
"""The state of an object that is not there any more."""

_STATES = ("Complete", "Failed", "Suspended")


def plan(submission: Submission, profile_file: Path | None, settings: Sequence[str]) -> Plan:
    """What would be written and typed. Raises `UserError` for a profile that is wrong, and for a run or a recipe
    outside of the working folder."""
    profile = read_profile(profile_file, settings)
    documents = [
        document
        for run in submission.runs
        for document in manifests.steering(profile, job_name(run), words_there(run, profile.folder))
    ]
    path = submission.logs / "submitted.yaml"
    return Plan(
        submission=submission,
        files={path: manifests.as_yaml(documents)},
        commands=[["kubectl", "apply", "-f", str(path)]],
    )


def submit(plan: Plan) -> str:
    """Writes the manifests and applies them; gives the ids, with commas. Each run is told which Job works on it.

    Raises `UserError` where there is no kubectl, Kubernetes refuses or does not answer, and for a Job that still runs.
    """
    kubectl.require()
    places = _jobs(plan)
    try:
        for at in places:
            _make_room(at)
        for path, text in plan.files.items():
            write_text(path, text)
        for command in plan.commands:
            kubectl.submit(command)
    except Away as error:
        raise UserError(
            f"Kubernetes does not answer: {error}. Whether the Job was made is not known: look with `kubectl get "
            f"{' '.join(places[0].words)}` before you type this again"
        ) from None
    for at, run in zip(places, plan.submission.runs, strict=True):
        record = JobRecord(platform="kubernetes", id=at.id, what="steering", logs=str(run.folder / "logs"))
        record.write(run_record(run.folder))
    return ",".join(at.id for at in places)


def told(plan: Plan, id: str) -> list[str]:
    """Lines for who submitted: how to follow and to cancel."""
    lines = []
    for at in map(kubectl.place, id.split(",")):
        words = shlex.join(at.words)
        lines += [
            f"submitted job {at.id}, and a ConfigMap of its name with the profile",
            f"  follow: kubectl logs -f {words}",
            f"  cancel: kubectl delete {words}",
        ]
    return lines


def state(record: JobRecord) -> JobState:
    """A Job or TrainJob as it is now; "GONE" is one that was deleted."""
    try:
        found = kubectl.look(kubectl.place(record.id))
    except (UserError, Away):
        return JobState(state=None, logs=record.logs)
    logs = f"{record.logs}/{kubectl.place(record.id).name}"
    return JobState(
        state=GONE if found is None else state_of(found),
        where="" if found is None else _reason(found),
        attempt=0 if found is None else int(found.get("status", {}).get("failed") or 0),
        logs=logs if os.path.isdir(logs) else record.logs,
    )


def alive(record: JobRecord) -> bool | None:
    """Whether a Job or TrainJob waits or runs; None where nobody can be asked."""
    try:
        return not ended(kubectl.look(kubectl.place(record.id)))
    except (UserError, Away):
        return None


def ended(found: dict[str, Any] | None) -> bool:
    """Whether it will not run again."""
    return found is None or kubectl.condition(found, "Complete", "Failed") is not None


def state_of(found: dict[str, Any]) -> str:
    """Complete, Failed, Suspended (a queue holds it), Running or Pending."""
    if (condition := kubectl.condition(found, *_STATES)) is not None:
        return condition
    status = found.get("status", {})
    active = status.get("ready") or any(job.get("ready") for job in status.get("jobsStatus", []))
    return "Running" if active else "Pending"


def job_name(run: SubmittedRun) -> str:
    """Of the Job that steers a run."""
    return manifests.object_name(f"rlhf-loop-{run.folder.name}")


def _jobs(plan: Plan) -> list[Place]:
    """Where the Jobs of a plan will be."""
    (text,) = plan.files.values()
    found = [read_yaml(document, "the manifests") for document in text.split("\n---\n")]
    return [
        Place(kind="job", name=one["metadata"]["name"], namespace=one["metadata"].get("namespace"))
        for one in found
        if one["kind"] == "Job"
    ]


def _make_room(at: Place) -> None:
    """Deletes a Job of an earlier submission that has ended: Kubernetes changes none."""
    found = kubectl.look(at)
    if not ended(found):
        raise UserError(
            f"there is a job {at.id} already, which has not ended. Follow it with `kubectl logs -f "
            f"{shlex.join(at.words)}`, cancel it first, or choose another folder with --run-dir"
        )
    if found is not None:
        kubectl.delete(at)


def _reason(found: dict[str, Any]) -> str:
    """Why it is as it is, in the platform's words."""
    name = kubectl.condition(found, *_STATES)
    conditions = found.get("status", {}).get("conditions", [])
    return next((str(one.get("reason", "")) for one in conditions if one["type"] == name), "")


__all__ = ["KubernetesProfile", "alive", "plan", "read_profile", "state", "submit", "told"]
