"""Each stage as a Slurm job of its own, submitted and followed by a process that needs no accelerator.

The job is `recipes/cluster/slurm.sh --stage ARGUMENTS` on the nodes of a profile. What may happen to it, or to who
follows it:

- its node dies, it is preempted, or stops at its time limit: Slurm queues it again, or it is submitted again, and goes
  on from its last checkpoint; `TRIES` attempts in a row that get no further end the run;
- the process that follows it is gone: the next one finds the job by a file in the round's folder, or by its name, and
  follows it. Jobs of one name run one after the other (`--dependency=singleton`) and hold a lock on what they make, so
  a stage has one writer even if two were submitted;
- Ctrl-C and SIGTERM (scancel) cancel the job; SIGUSR1 ends this process and leaves the job alone.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from rlhf_loop.cluster import slurm_commands
from rlhf_loop.cluster.jobs import Away, JobRecord, read_record
from rlhf_loop.cluster.scripts import Call, render
from rlhf_loop.cluster.slurm import job_name, pattern, variables
from rlhf_loop.cluster.slurm_profile import Profile
from rlhf_loop.errors import UserError
from rlhf_loop.files import write_text
from rlhf_loop.files.locks import check
from rlhf_loop.launch.heard import Heard
from rlhf_loop.launch.launcher import refuse_while_a_job_makes
from rlhf_loop.launch.stage_job import POLL, Log, StageJob, asked, say
from rlhf_loop.progress import Progress
from rlhf_loop.recipe.launching import StageLaunch, StageName, launch_of

T = TypeVar("T")

_EARLY = {"TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", slurm_commands.GONE}
"""Ends that say nothing against the stage: it is submitted again."""
_COULD_NOT_REQUEUE = 75  # exit code of slurm.sh


class _Stage(StageJob):
    def __init__(self, file: Path):
        super().__init__(file)
        self.name = f"{job_name(self.arguments.title)}-{self.label}-{self.content}"


class Slurm:
    """Submits a job for each stage, and follows it."""

    def __init__(
        self,
        profile: Profile,
        accelerate_config: Path | None = None,
        stages: Mapping[StageName, StageLaunch] | None = None,
    ):
        """`stages`: those with an Accelerate config of their own; what they ask for is the profile's."""
        slurm_commands.require()
        self.profile, self.accelerate_config = profile, accelerate_config
        self.stages = stages or {}
        self.leaving = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, self._leave)

    def run(self, arguments_file: Path, progress: Progress) -> None:
        """Returns when the stage is made. Raises what it says that it failed of, and `UserError` when it was cancelled,
        ran out of memory, or does not get further."""
        refuse_while_a_job_makes(arguments_file, follows="slurm")
        stage = _Stage(arguments_file)
        try:
            record = self._attached(stage)
            if record is None and not stage.made(succeeded=False):  # nor has its job ended since it was missed
                record = self._submitted(stage)
            while record is not None:
                record = self._followed(stage, record, progress)
        except BaseException:
            self._end(stage)
            raise
        stage.record.unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing waits."""

    def _attached(self, stage: _Stage) -> JobRecord | None:
        """The job that makes this stage already, submitted by somebody who is gone."""
        known = read_record(stage.record)
        if known is not None and known.key != stage.arguments.key:  # it makes what nobody needs any more
            if not _looked(known.id, known.name).ended:
                _asked(slurm_commands.cancel, known.id)
            known = None
        for id in dict.fromkeys([*([known.id] if known else []), *_asked(slurm_commands.named, stage.name)]):
            if not _looked(id, stage.name).ended:
                say(f"{stage.step} is Slurm job {id} already; following it")
                same = known is not None and known.id == id
                return stage.write_record("slurm", id, name=stage.name, after=known if same else None)
        return None

    def _submitted(self, stage: _Stage, after: JobRecord | None = None) -> JobRecord:
        script = stage.logs / f"{stage.label}.sh"
        write_text(script, self.script(stage))
        while True:
            try:
                id = slurm_commands.submit(slurm_commands.command(script))
                break
            except Away as error:
                say(f"Slurm does not answer ({error}); looking whether it has the job of {stage.step}")
                time.sleep(POLL)
                if found := _asked(slurm_commands.named, stage.name):
                    id = found[0]
                    break
        record = stage.write_record("slurm", id, name=stage.name, after=after)
        say(f"{stage.step} is Slurm job {id}; its logs: {stage.logs}/slurm-{id}")
        return record

    def script(self, stage: _Stage) -> str:
        """What is submitted for a stage."""
        started = launch_of(stage.arguments.stage, self.stages, self.accelerate_config)
        return render(
            "slurm.sh",
            [*self.profile.options(stage.arguments.stage), "--dependency=singleton"],
            self.profile,
            name=stage.name,
            output=f"{pattern(stage.logs)}/slurm-%j.out",
            calls=[
                Call(
                    words=["--stage", str(stage.file)],
                    variables=variables(stage.arguments.run, started.accelerate_config),
                )
            ],
        )

    def _followed(self, stage: _Stage, record: JobRecord, progress: Progress) -> JobRecord | None:
        """Follows a job to its end. None: the stage is made; else the job that was submitted after it."""
        attempt, held = None, False
        while True:
            job = _looked(record.id, stage.name)
            if job.restarts != attempt:
                if attempt is not None:
                    say(f"{stage.step}: Slurm queued job {record.id} again")
                    record = self._counted(stage, record, "queued again")
                    record.write(stage.record)
                attempt = job.restarts
                heard, log = Heard(progress), Log(stage.logs / f"slurm-{record.id}" / f"attempt-{attempt}")
            for line in log.lines():
                heard(line)
            if job.ended:
                return self._judged(stage, record, job, heard)
            if job.state == "PENDING":
                progress(0, 0, f"Slurm job {record.id} waits ({job.reason})")
                if "eld" in job.reason and not held:  # JobHeldUser, JobHeldAdmin, launch failed requeued held
                    held = True
                    say(f"{stage.step}: Slurm holds job {record.id} ({job.reason}): `scontrol release {record.id}`")
            time.sleep(POLL)

    def _judged(self, stage: _Stage, record: JobRecord, job: slurm_commands.Job, heard: Heard) -> JobRecord | None:
        if stage.made(succeeded=job.state == "COMPLETED"):
            return None
        where = f"Slurm job {job.id} of {stage.step} (logs: {stage.logs}/slurm-{job.id})"
        if job.state == "CANCELLED":
            raise UserError(f"{where} was cancelled. Nothing is lost: type the same command again to go on")
        if job.state == "OUT_OF_MEMORY":
            raise UserError(f"{where} took more memory than its job has; ask for more: `mem` in the cluster's profile")
        if job.state in _EARLY or job.exit_code == _COULD_NOT_REQUEUE:
            counted = self._counted(stage, record, job.state)
            say(f"{where} ended early ({job.state}); submitting it again")
            return self._submitted(stage, counted)
        raise heard.fail(f"{where} ended with exit code {job.exit_code} ({job.state})")

    def _counted(self, stage: _Stage, record: JobRecord, how: str) -> JobRecord:
        return stage.counted(record, how, "Give it more time (`time` in the cluster's profile)")

    def _end(self, stage: _Stage) -> None:
        """What becomes of the job when its stage is no longer followed."""
        if self.leaving:
            say(f"leaving the job of {stage.step} alone")
            return
        with suppress(UserError, Away):
            check(stage.output)  # who took the run over follows the job
            slurm_commands.cancel_named(stage.name)
            stage.record.unlink(missing_ok=True)

    def _leave(self, *_: object) -> None:
        self.leaving = True
        raise KeyboardInterrupt


def _looked(id: str, name: str) -> slurm_commands.Job:
    return _asked(lambda id: slurm_commands.look(id, name), id)


def _asked(question: Callable[[str], T], of: str) -> T:
    return asked("Slurm", lambda: question(of))
