"""What the pods of a stage say: why they wait, and why they ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_loop.cluster.kubectl import condition

Pod = Mapping[str, Any]

STUCK = {
    "CreateContainerConfigError", "CreateContainerError", "ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff",
    "InvalidImageName",
}  # fmt: skip
"""Reasons for which a container waits that somebody has to mend."""


def waiting(pods: Sequence[Pod]) -> tuple[str, str]:
    """The reason for which pods wait, and what Kubernetes says of it; "" for none."""
    for pod in pods:
        for container in _containers(pod):
            waits = container.get("state", {}).get("waiting", {})
            if waits.get("reason") in STUCK:
                return waits["reason"], str(waits.get("message", ""))
        for one in pod.get("status", {}).get("conditions", []):
            if one["type"] == "PodScheduled" and one["status"] == "False":
                return str(one.get("reason", "Unschedulable")), str(one.get("message", ""))
    return "", ""


def running(pods: Sequence[Pod]) -> list[str]:
    """The nodes of pods that have not ended; those of a node that is gone never do."""
    return [
        str(pod.get("spec", {}).get("nodeName", ""))
        for pod in pods
        if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
    ]


def disruption(pods: Sequence[Pod]) -> str | None:
    """What ended pods early that is no fault of the stage: a drain, a preemption, the end of a node; None: nothing.

    Of a failed job whose pods have had the time to end."""
    for pod in pods:
        if condition(pod, "DisruptionTarget") is not None:
            told = {one["type"]: one for one in pod["status"]["conditions"]}["DisruptionTarget"]
            return str(told.get("reason", "DisruptionTarget"))
    if nodes := running(pods):
        return f"node {nodes[0]} does not answer"
    if not any(ended.get("exitCode") for ended in _ends(pods)):
        return "its pods are gone"
    return None


def out_of_memory(pods: Sequence[Pod]) -> bool:
    """Whether a container took more than its limit."""
    return any(ended.get("reason") == "OOMKilled" for ended in _ends(pods))


def _ends(pods: Sequence[Pod]) -> Iterator[Mapping[str, Any]]:
    for pod in pods:
        for container in _containers(pod):
            if (ended := container.get("state", {}).get("terminated")) is not None:
                yield ended


def _containers(pod: Pod) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = pod.get("status", {}).get("containerStatuses", [])
    return found
