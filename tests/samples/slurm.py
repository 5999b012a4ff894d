"""A real Slurm of two nodes on one machine, each with a host name and process table of its own, in a network that has
only a loopback device.

Killing a node kills all that runs on it. No systemd and no cgroups are needed; root is.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=5,batch_sched_delay=1,requeue_delay=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=20
KillWait=20
JobRequeue=1
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=n1 NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=8000 Weight=1 State=UNKNOWN
NodeName=n2 NodeHostname=n2 NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 RealMemory=8000 Weight=2 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=5 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=9
"""
SPACES = ["unshare", "--uts", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
PROGRAMS = {name: f"/usr/sbin/{name}" for name in ("slurmctld", "slurmd", "munged")}


def why_not() -> str | None:
    """Why there can be no such cluster here, or None."""
    missing = [name for name, path in PROGRAMS.items() if not os.path.exists(path)]
    if missing:
        return f"needs Slurm and munge (apt-get install slurm-wlm munge): no {', '.join(missing)}"
    if os.geteuid() or subprocess.run([*SPACES, "--net", "true"], capture_output=True, check=False).returncode:
        return "needs root and namespaces (unshare) for Slurm's nodes"
    return None


class Cluster:
    """Starts on entering, and ends all that it started on leaving."""

    def __init__(self, folder: Path):
        self.folder, self.daemons = folder, dict[str, subprocess.Popen[bytes]]()

    def __enter__(self) -> Cluster:
        for name in ("state", "spool.n1", "spool.n2"):
            (self.folder / name).mkdir()
        host = socket.gethostname()
        self._hosts = self.folder / "hosts"
        self._hosts.write_text(f"127.0.0.1 localhost {host} n1 n2\n")
        self.conf = self.folder / "slurm.conf"
        self.conf.write_text(CONF.format(host=host, folder=self.folder, ports=(16817, 17001, 17002)))
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(64))
        key.chmod(0o600)
        try:
            files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
            munge = [f"--{option}={self.folder}/munge.{end}" for option, end in files.items()]
            # glibc finds no names where all addresses are 127.x
            network = "ip link set lo up && ip address add 10.99.0.1/32 dev lo && echo up; exec sleep infinity"
            self._start("network", ["unshare", "--net", "bash", "-c", network])
            self.until(lambda: "up" in (self.folder / "network.stderr").read_text(), "there is a network", 20)
            self._start("munge", [PROGRAMS["munged"], "--foreground", "--force", *munge])
            self.until(lambda: (self.folder / "munge.socket").exists(), "munged listens", 20)
            self._start("control", self._with_hosts(PROGRAMS["slurmctld"], "-D", "-f", str(self.conf)))
            for name in ("n1", "n2"):
                self.start_node(name)
            self.until(lambda: self("sinfo", "-h", "-o", "%T %D").strip() == "idle 2", "both nodes are idle", 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self.daemons)):
            self.kill(name)

    def start_node(self, name: str) -> None:
        """A node, or one that was killed, again."""
        script = f'hostname {name}; mount --bind {self._hosts} /etc/hosts; exec "$@"'
        daemon = [PROGRAMS["slurmd"], "-D", "-f", str(self.conf), "-N", name]
        self._start(name, [*self._network(), *SPACES, "bash", "-c", script, "bash", *daemon])

    def kill(self, name: str) -> None:
        """A node's power goes."""
        process = self.daemons.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def __call__(self, *command: str) -> str:
        """What a command on the login node says."""
        done = subprocess.run(self._with_hosts(*command), capture_output=True, text=True, env=self._environment(),
                              timeout=120, cwd=self.folder)  # fmt: skip
        return done.stdout if done.returncode == 0 else f"exit code {done.returncode}: {done.stdout}{done.stderr}"

    def submit(self, *arguments: str, **variables: str) -> str:
        """The id of a job."""
        said = self("env", *(f"{key}={value}" for key, value in variables.items()), "sbatch", "--parsable", *arguments)
        assert said.strip().isdigit(), said
        return said.strip()

    def job(self, id: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        words = self("scontrol", "-o", "show", "job", id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, id: str) -> str:
        """PENDING, RUNNING, ..."""
        return self.job(id).get("JobState", "")

    def ends(self, id: str, seconds: float = 600) -> dict[str, str]:
        """What `scontrol show job` says of a job that has ended."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        self.until(lambda: self.state(id) in ended, f"{id} ends", seconds)
        return self.job(id)

    def until(self, true: Callable[[], bool], what: str, seconds: float) -> None:
        """Waits for something."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if true():
                return
            time.sleep(0.5)
        logs = "".join(f"\n== {file.name}\n{file.read_text(errors='replace')[-1500:]}"
                       for file in sorted(self.folder.rglob("*")) if file.suffix in (".log", ".out"))  # fmt: skip
        raise AssertionError(f"it did not come that {what} in {seconds:.0f} seconds{logs}")

    def _start(self, name: str, command: list[str]) -> None:
        log = (self.folder / f"{name}.stderr").open("ab")
        self.daemons[name] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=self._environment()
        )
        log.close()

    def _with_hosts(self, *command: str) -> list[str]:
        return [
            *self._network(),
            "unshare",
            "--mount",
            "bash",
            "-c",
            f'mount --bind {self._hosts} /etc/hosts; exec "$@"',
            "bash",
            *command,
        ]

    def _network(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.daemons['network'].pid}/ns/net"]

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        return {**kept, "SLURM_CONF": str(self.folder / "slurm.conf")}
