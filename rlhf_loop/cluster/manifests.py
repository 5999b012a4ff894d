"""Objects of Kubernetes for a run: the Job that steers it, and a Kubeflow TrainJob for each stage."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_loop.cluster.kubernetes_profile import KubernetesProfile, Toleration
from rlhf_loop.files import fingerprint
from rlhf_loop.files.shipped import source
from rlhf_loop.settings import write_yaml

PROFILE = "/etc/rlhf-loop/cluster.yaml"
"""The profile in the pod that steers."""
OWNER = ("RLHF_LOOP_JOB_NAME", "RLHF_LOOP_JOB_UID")
"""Variables that tell the steering pod which Job it is of: what it makes is deleted with that."""
MANAGER = "rlhf-loop"
"""Whose patches of a runtime those in a TrainJob are."""

_LONGEST = 52  # characters of a Job's name
_VOLUME = "rlhf-loop"
_OF_JOB = ("batch.kubernetes.io/job-name", "batch.kubernetes.io/controller-uid")
_FAILED = [1, 2]  # exit codes of `rlhf-loop run` that another try does not mend


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """The Job with which a TrainJob is deleted."""

    name: str
    uid: str


def steering(profile: KubernetesProfile, name: str, words: Sequence[str]) -> list[dict[str, Any]]:
    """The Job that steers a run, and the ConfigMap with its profile. `words`: what follows `rlhf-loop run`."""
    own = profile.steering
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(profile, name, name),
        "data": {"cluster.yaml": write_yaml(profile.model_dump(exclude_none=True))},
    }
    variables = [
        {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{label}']"}}}
        for variable, label in zip(OWNER, _OF_JOB, strict=True)
    ]
    resources = {"cpu": str(own.cpus), "memory": own.memory}
    container = {
        "name": "steer",
        "image": profile.image,
        "workingDir": profile.folder,
        "command": ["rlhf-loop", "run", *words, "launch=kubernetes", f"cluster_profile={PROFILE}", "--stay"],
        "env": [*environment(profile), *variables],
        "resources": {"requests": resources, "limits": {"memory": own.memory}},
        "volumeMounts": [*_mounts(profile), {"name": "profile", "mountPath": PROFILE.rpartition("/")[0]}],
    }
    pod = {
        "restartPolicy": "Never",
        "serviceAccountName": profile.service_account,
        "terminationGracePeriodSeconds": 60,
        **_placed(profile, own.node_selector, own.tolerations),
        "containers": [container],
        "volumes": [*_volumes(profile), {"name": "profile", "configMap": {"name": name}}],
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(profile, name, name, own.queue),
        "spec": {
            **({"suspend": True} if own.queue else {}),
            "backoffLimit": 5,
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": "steer", "operator": "In", "values": _FAILED},
                    },
                ]
            },
            "template": {"metadata": {"labels": _labels(name)}, "spec": pod},
        },
    }
    return [config, job]


def stage(
    profile: KubernetesProfile,
    *,
    name: str,
    run: str,
    labels: Mapping[str, str],
    arguments: str,
    variables: Mapping[str, str],
    owner: Owner | None,
) -> dict[str, Any]:
    """The TrainJob of a stage. `profile`: as the stage has it; `run`: the name of its steering; `labels`: beside those
    of the run; `arguments`: the file of what it is told; `variables`: of its environment, beside the profile's."""
    accelerators = {profile.gpu: str(profile.gpus_per_node)} if profile.accelerated else {}
    metadata = _metadata(profile, name, run, profile.queue)
    metadata["labels"] = {**metadata["labels"], **labels}
    if owner is not None:
        reference = {"apiVersion": "batch/v1", "kind": "Job", "name": owner.name, "uid": owner.uid}
        metadata["ownerReferences"] = [reference]
    pod = {
        "serviceAccountName": profile.service_account,
        **_placed(profile, profile.node_selector, profile.tolerations),
        "containers": [{"name": "node", "volumeMounts": _mounts(profile)}],
        "volumes": _volumes(profile),
    }
    jobs = [{"name": "node", "template": {"spec": {"template": {"spec": pod}}}}]
    told = {**variables, "RLHF_LOOP_FOLDER": profile.folder, "RLHF_LOOP_GPUS": str(profile.gpus_per_node)}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": {
            **({"suspend": True} if profile.queue else {}),
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "ClusterTrainingRuntime",
                "name": profile.runtime,
            },
            "trainer": {
                "image": profile.image,
                "command": ["bash", "-c", script(), "bash", arguments],
                "env": [*environment(profile), *_plain(told)],
                "numNodes": profile.nodes,
                "numProcPerNode": max(profile.gpus_per_node, 1),
                "resourcesPerNode": {
                    "requests": {"cpu": str(profile.cpus), "memory": profile.memory, **accelerators},
                    "limits": {"memory": profile.memory, **accelerators},
                },
            },
            "runtimePatches": [
                {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}}}
            ],
        },
    }


def script() -> str:
    """What each pod of a stage runs: the shipped `stage.sh`."""
    return (source() / "recipes" / "cluster" / "kubernetes" / "stage.sh").read_text(encoding="utf-8")


def environment(profile: KubernetesProfile) -> list[dict[str, Any]]:
    """The profile's variables, those of secrets by name."""
    return [
        *_plain(profile.env),
        *(
            {"name": name, "valueFrom": {"secretKeyRef": {"name": of.secret, "key": of.key}}}
            for name, of in profile.secrets.items()
        ),
    ]


def object_name(text: str) -> str:
    """A name that Kubernetes takes: small letters, digits and -, a letter first; up to 52 characters, so that those of
    a Job's pods are short enough. Another text has another name: what is no such name itself is one with a hash."""
    if slug(text, _LONGEST) == text:
        return text
    return f"{slug(text, _LONGEST - 9)}-{fingerprint(text)[:8]}"


def slug(text: str, length: int) -> str:
    """What can be read of a text in a name that Kubernetes takes; other texts may have the same."""
    signs = re.sub("[^a-z0-9]+", "-", text.lower())
    return re.sub("^[^a-z]+", "", signs)[:length].strip("-") or "run"


def as_yaml(documents: Sequence[Mapping[str, Any]]) -> str:
    """Several documents in one file."""
    return "---\n".join(write_yaml(document) for document in documents)


def _metadata(profile: KubernetesProfile, name: str, run: str, queue: str | None = None) -> dict[str, Any]:
    namespace = {"namespace": profile.namespace} if profile.namespace else {}
    kueue = {"kueue.x-k8s.io/queue-name": queue} if queue else {}
    return {"name": name, **namespace, "labels": {**_labels(run), **kueue}}


def _labels(run: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "rlhf-loop", "app.kubernetes.io/instance": run}


def _plain(variables: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in variables.items()]


def _placed(
    profile: KubernetesProfile, selector: Mapping[str, str], tolerations: Sequence[Toleration]
) -> dict[str, Any]:
    placed: dict[str, Any] = {
        "nodeSelector": dict(selector),
        "tolerations": [one.model_dump(exclude_none=True) for one in tolerations],
        "imagePullSecrets": [{"name": name} for name in profile.image_pull_secrets],
    }
    return {name: value for name, value in placed.items() if value}


def _mounts(profile: KubernetesProfile) -> list[dict[str, Any]]:
    return [{"name": _VOLUME, "mountPath": profile.volume.mount}]


def _volumes(profile: KubernetesProfile) -> list[dict[str, Any]]:
    return [{"name": _VOLUME, "persistentVolumeClaim": {"claimName": profile.volume.claim}}]
