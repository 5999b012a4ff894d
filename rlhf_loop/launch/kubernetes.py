"""Each stage as a Kubeflow TrainJob, made and followed by a process that needs no accelerator.

Its pods run `recipes/cluster/kubernetes/stage.sh` on the nodes of a profile. What may happen to it, or to who follows
it:

- a node dies or is drained, pods are preempted or evicted: another TrainJob goes on from the last checkpoint; `TRIES`
  attempts in a row that get no further end the run. A queue (Kueue) that suspends one lets it go on by itself;
- the process that follows it is gone: the next one finds the TrainJob by a file in the round's folder, or by its label,
  and follows it. Names are made of what a stage makes and the number of the attempt, so it is never made twice; each
  attempt holds a lock on what it makes;
- the pod that steers is stopped: its TrainJob is left alone, for the next pod. `kubectl delete` of the Job that steers
  deletes it, as what it owns. Ctrl-C of a process that is in no such pod deletes it too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from rlhf_loop.cluster import kubectl, manifests, pods
from rlhf_loop.cluster.jobs import Away, JobRecord, read_record
from rlhf_loop.cluster.kubectl import Place
from rlhf_loop.cluster.kubernetes import ended, state_of
from rlhf_loop.cluster.kubernetes_profile import KubernetesProfile
from rlhf_loop.errors import UserError
from rlhf_loop.files import fingerprint
from rlhf_loop.files.locks import check
from rlhf_loop.launch.heard import Heard
from rlhf_loop.launch.launcher import refuse_while_a_job_makes
from rlhf_loop.launch.stage_job import POLL, Log, StageJob, asked, say
from rlhf_loop.progress import Progress
from rlhf_loop.recipe.launching import StageLaunch, StageName, launch_of

T = TypeVar("T")

SETTLES = 90.0  # seconds that the pods of a failed job have to end; those of a node that is gone do not

_STAGE = "rlhf-loop/stage"
_POD_OF = "jobset.sigs.k8s.io/jobset-name"


class Kubernetes:
    """Makes a TrainJob for each stage, and follows it."""

    def __init__(
        self,
        profile: KubernetesProfile,
        accelerate_config: Path | None = None,
        stages: Mapping[StageName, StageLaunch] | None = None,
    ):
        """`stages`: those with an Accelerate config of their own; what they ask for is the profile's."""
        kubectl.require()
        self.profile, self.accelerate_config = profile, accelerate_config
        self.stages = stages or {}
        name, uid = (os.environ.get(variable) for variable in manifests.OWNER)
        self.owner = manifests.Owner(name=name, uid=uid) if name and uid else None

    def run(self, arguments_file: Path, progress: Progress) -> None:
        """Returns when the stage is made. Raises what it says that it failed of, and `UserError` when it was deleted,
        ran out of memory, or does not get further."""
        refuse_while_a_job_makes(arguments_file, follows="kubernetes")
        stage = _Stage(arguments_file, self.profile)
        try:
            record = self._attached(stage)
            if record is None and not stage.made(succeeded=False):  # nor has its job ended since it was missed
                record = self._made(stage)
            while record is not None:
                record = self._followed(stage, record, progress)
            for found in self._all(stage):  # former attempts too: their logs are in the run
                self._delete(found["metadata"]["name"])
        except BaseException as error:
            self._end(stage, error)
            raise
        stage.record.unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing waits."""

    def _attached(self, stage: _Stage) -> JobRecord | None:
        """The TrainJob that makes this stage already, made by somebody who is gone."""
        known = read_record(stage.record)
        if known is not None and known.key != stage.arguments.key:  # it makes what nobody needs any more
            self._delete(kubectl.place(known.id).name)
            known = None
        for found in reversed(self._all(stage)):
            if not ended(found):
                at = self._place(found["metadata"]["name"])
                say(f"{stage.step} is TrainJob {at.id} already; following it")
                same = known is not None and known.id == at.id
                return stage.write_record("kubernetes", at.id, after=known if same else None)
        return None

    def _made(self, stage: _Stage, after: JobRecord | None = None) -> JobRecord:
        before = [int(found["metadata"]["name"].rpartition("-")[2]) for found in self._all(stage)]
        at = self._place(f"{stage.name}-{max(before, default=0) + 1}")
        document = self.manifest(stage, at.name)
        _asked(lambda: kubectl.create(document))  # where an answer was lost, there is one of this name: ours
        record = stage.write_record("kubernetes", at.id, after=after)
        say(f"{stage.step} is TrainJob {at.id}; its logs: {stage.logs}/{at.name}")
        return record

    def manifest(self, stage: _Stage, name: str) -> dict[str, Any]:
        """What is made for an attempt of a stage."""
        config = launch_of(stage.arguments.stage, self.stages, self.accelerate_config).accelerate_config
        return manifests.stage(
            self.profile.of(stage.arguments.stage),
            name=name,
            run=self.owner.name if self.owner else manifests.object_name(f"rlhf-loop-{stage.arguments.run.name}"),
            labels={_STAGE: stage.content},
            arguments=str(stage.file),
            variables={
                "RLHF_LOOP_LOGS": str(stage.logs / name),
                **({} if config is None else {"RLHF_LOOP_ACCELERATE_CONFIG": str(config)}),
            },
            owner=self.owner,
        )

    def _all(self, stage: _Stage) -> list[dict[str, Any]]:
        """All attempts of a stage that Kubernetes knows."""
        return _asked(lambda: kubectl.labelled("trainjob", {_STAGE: stage.content}, self.profile.namespace))

    def _place(self, name: str) -> Place:
        return Place(kind="trainjob", name=name, namespace=self.profile.namespace)

    def _delete(self, name: str) -> None:
        _asked(lambda: kubectl.delete(self._place(name)))

    def _followed(self, stage: _Stage, record: JobRecord, progress: Progress) -> JobRecord | None:
        """Follows a TrainJob to its end. None: the stage is made; else the TrainJob that was made after it."""
        at = kubectl.place(record.id)
        heard, log, told, began = Heard(progress), Log(stage.logs / at.name), "", False
        while True:
            found = _asked(lambda: kubectl.look(at))
            state = "deleted" if found is None else state_of(found)
            for line in log.lines():
                heard(line)
            if state in ("deleted", "Complete", "Failed"):
                return self._judged(stage, record, state, heard)
            if state == "Suspended":
                if began:
                    say(f"{stage.step}: a queue has suspended TrainJob {at.id}; it goes on when there is room again")
                    heard = Heard(progress)
                progress(0, 0, f"TrainJob {at.name} waits (Suspended)")
            if state == "Pending":
                reason, message = pods.waiting(self._pods(at))
                progress(0, 0, f"TrainJob {at.name} waits ({reason or state})")
                if reason in pods.STUCK and reason != told:
                    told = reason
                    say(f"{stage.step}: TrainJob {at.id} cannot begin: {reason} {message}")
            began = state == "Running"
            time.sleep(POLL)

    def _judged(self, stage: _Stage, record: JobRecord, state: str, heard: Heard) -> JobRecord | None:
        at = kubectl.place(record.id)
        if stage.made(succeeded=state == "Complete"):
            return None
        where = f"TrainJob {at.id} of {stage.step} (logs: {stage.logs}/{at.name})"
        if state == "deleted":
            raise UserError(f"{where} was deleted. Nothing is lost: type the same command again to go on")
        if heard.last.error is not None:
            raise heard.fail(where)
        left = self._settled(at)
        if pods.out_of_memory(left):
            raise UserError(f"{where} took more memory than it has; ask for more: `memory` in the cluster's profile")
        if (how := pods.disruption(left)) is not None:
            counted = stage.counted(record, how, "Give it nodes that stay (`node_selector` in the cluster's profile)")
            say(f"{where} ended early ({how}); making another one")
            return self._made(stage, counted)
        raise heard.fail(f"{where} failed")

    def _settled(self, at: Place) -> list[dict[str, Any]]:
        """The pods of a failed job, when those that can have ended."""
        end = time.monotonic() + SETTLES
        while pods.running(found := self._pods(at)) and time.monotonic() < end:
            time.sleep(POLL)
        return found

    def _pods(self, at: Place) -> list[dict[str, Any]]:
        return _asked(lambda: kubectl.labelled("pods", {_POD_OF: at.name}, at.namespace))

    def _end(self, stage: _Stage, error: BaseException) -> None:
        """What becomes of the TrainJob when its stage is no longer followed."""
        record = read_record(stage.record)
        if record is None:
            return
        if self.owner is not None and isinstance(error, KeyboardInterrupt):
            say(f"leaving TrainJob {record.id} alone")
            return
        with suppress(UserError, Away):
            check(stage.output)  # who took the run over follows the job
            kubectl.delete(kubectl.place(record.id))
            stage.record.unlink(missing_ok=True)


class _Stage(StageJob):
    def __init__(self, file: Path, profile: KubernetesProfile):
        super().__init__(file)
        self.content = fingerprint(self.content, profile.volume.claim)[:8]  # volumes may hold paths that are the same
        run, step = manifests.slug(self.arguments.title, 14), manifests.slug(self.step, 12)
        self.name = f"{run}-r{self.arguments.round:03d}-{step}-{self.content}"  # with what pods add up to 63


def _asked(question: Callable[[], T]) -> T:
    return asked("Kubernetes", question)
