"""Kubernetes' own command, `kubectl`, and what it says. It has the context and the rights of who runs it; in a pod,
those of its service account."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_loop.cluster import commands
from rlhf_loop.cluster.commands import answer, last_line
from rlhf_loop.cluster.jobs import Away
from rlhf_loop.errors import UserError

SECONDS = 60.0  # that kubectl is waited for

_AWAY = re.compile(
    r"[Uu]nable to connect to the server|connection to the server .* refused|i/o timeout|TLS handshake timeout|"
    r"context deadline exceeded|etcdserver|\((ServiceUnavailable|ServerTimeout|Timeout|InternalError|TooManyRequests)\)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """An object of a cluster, as `kubectl get KIND/NAME` names it."""

    kind: str  # job, trainjob
    name: str
    namespace: str | None  # None: kubectl's

    @property
    def id(self) -> str:
        """One word for all of it: `team/job/rlhf-loop-smoke`."""
        return "/".join(part for part in (self.namespace, self.kind, self.name) if part)

    @property
    def words(self) -> list[str]:
        """What follows a verb of kubectl."""
        return [f"{self.kind}/{self.name}", *in_namespace(self.namespace)]


def place(id: str) -> Place:
    """The inverse of `Place.id`."""
    *namespace, kind, name = id.split("/")
    return Place(kind=kind, name=name, namespace=namespace[0] if namespace else None)


def in_namespace(namespace: str | None) -> list[str]:
    """An option of kubectl."""
    return [f"--namespace={namespace}"] if namespace else []


def require() -> None:
    """Raises `UserError` where there is no kubectl."""
    commands.require("kubectl", "to Kubernetes", "Install it, and choose a context (`kubectl config use-context`)")


def submit(command: Sequence[str]) -> None:
    """Types a command. Raises `UserError` for what Kubernetes refuses, `Away`."""
    _asked(command)


def create(document: Mapping[str, Any]) -> bool:
    """Makes an object; False: there is one of its name. Raises `UserError` for what Kubernetes refuses, `Away`."""
    command = ["kubectl", "create", "-f", "-"]
    code, said, errors = _call(command, json.dumps(document))
    if code != 0 and "(AlreadyExists)" in errors:
        return False
    _judge(command, code, said, errors)
    return True


def look(at: Place) -> dict[str, Any] | None:
    """An object as it is now; None: there is none. Raises `Away`."""
    said = _asked(["kubectl", "get", *at.words, "--ignore-not-found", "--output=json"])
    found: dict[str, Any] | None = json.loads(said) if said.strip() else None
    return found


def labelled(kind: str, labels: Mapping[str, str], namespace: str | None) -> list[dict[str, Any]]:
    """All objects with these labels, the oldest first. Raises `Away`."""
    selector = ",".join(f"{name}={value}" for name, value in labels.items())
    said = _asked(
        ["kubectl", "get", kind, f"--selector={selector}", *in_namespace(namespace), "--output=json"]
    )  # fmt: skip
    found: list[dict[str, Any]] = json.loads(said)["items"] if said.strip() else []
    return sorted(found, key=lambda one: str(one["metadata"].get("creationTimestamp", "")))


def delete(at: Place) -> None:
    """Deletes an object and what it owns; one that is not there is left. Raises `Away`."""
    _asked(["kubectl", "delete", *at.words, "--ignore-not-found"])


def condition(found: Mapping[str, Any], *types: str) -> str | None:
    """The first of these conditions that an object is in."""
    holds = {one["type"] for one in found.get("status", {}).get("conditions", []) if one["status"] == "True"}
    return next((one for one in types if one in holds), None)


def _asked(command: Sequence[str]) -> str:
    code, said, errors = _call(command)
    _judge(command, code, said, errors)
    return said


def _judge(command: Sequence[str], code: int, said: str, errors: str) -> None:
    if code == 0:
        return
    reason = _reason(errors) or said.strip()
    if "the server doesn't have a resource type" in errors or "no matches for kind" in errors:
        reason += ". Is Kubeflow Trainer installed there? docs/cluster.md says which version"
    raise UserError(f"Kubernetes refused: {reason}. Command: {' '.join(command)}")


def _call(command: Sequence[str], given: str = "") -> tuple[int, str, str]:
    code, said, errors = answer(command, SECONDS, given=given)
    if code != 0 and _AWAY.search(errors):
        raise Away(_reason(errors))
    return code, said, errors


def _reason(errors: str) -> str:
    """The last line without its head."""
    return re.sub(r"^([Ee]rror( from server)?( \(\w+\))?: )+", "", last_line(errors))
