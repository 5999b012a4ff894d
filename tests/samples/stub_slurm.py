"""Slurm's commands without Slurm: jobs are files, and a test says what becomes of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROGRAM = r"""#!/bin/bash
cd "$(dirname "$0")/.."
if [ -e away ]; then echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1; fi
case "$(basename "$0") $1" in
sbatch*)
  if [ -e refused ]; then echo "sbatch: error: Batch job submission failed: $(cat refused)" >&2; exit 1; fi
  id=$(($(cat jobs/*.id 2>/dev/null | wc -l) + 1))
  echo "$id" >"jobs/$id.id"
  cp "${@: -1}" "jobs/$id.sh"
  env >"jobs/$id.env"
  echo "JobState=PENDING Reason=Priority Restarts=0 ExitCode=0:0 NodeList=(null)" >"jobs/$id.state"
  if [ -e lost ]; then rm lost; echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1; fi
  echo "$id"
  ;;
scontrol*)
  state="jobs/${4%%_*}.state"
  if [ ! -e "$state" ]; then echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; fi
  name=$(sed -n 's/^#SBATCH --job-name=//p' "jobs/${4%%_*}.sh")
  echo "JobId=${4%%_*} JobName=$name $(cat "$state")"
  ;;
squeue*)
  for option in "$@"; do case "$option" in --name=*) name=${option#--name=} ;; esac; done
  for script in jobs/*.sh; do
    id=$(basename "$script" .sh)
    if grep -qx "#SBATCH --job-name=$name" "$script" && grep -qE "PENDING|RUNNING" "jobs/$id.state"; then echo "$id"; fi
  done
  ;;
scancel*)
  echo "$@" >>cancelled
  for script in jobs/*.sh; do
    name=$(sed -n 's/^#SBATCH --job-name=//p' "$script")
    id=$(basename "$script" .sh)
    case " $* " in *" $id "* | *" --name=$name "*) sed -i 's/PENDING\|RUNNING/CANCELLED/' "jobs/$id.state" ;; esac
  done
  ;;
esac
"""


class StubSlurm:
    """Its commands are first on the PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        (folder / "jobs").mkdir()
        for name in ("sbatch", "scontrol", "squeue", "scancel"):
            (folder / "bin" / name).write_text(PROGRAM)
            (folder / "bin" / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")

    @property
    def ids(self) -> list[str]:
        """Of all jobs that were submitted."""
        return sorted((path.stem for path in self.folder.glob("jobs/*.sh")), key=int)

    def script(self, id: str) -> str:
        return (self.folder / "jobs" / f"{id}.sh").read_text()

    def environment(self, id: str) -> dict[str, str]:
        lines = (self.folder / "jobs" / f"{id}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def state(self, id: str) -> str:
        return (self.folder / "jobs" / f"{id}.state").read_text().split()[0].removeprefix("JobState=")

    def becomes(
        self, id: str, state: str, reason: str = "None", restarts: int = 0, code: int = 0, nodes: str = "n1"
    ) -> None:
        told = f"JobState={state} Reason={reason} Restarts={restarts} ExitCode={code}:0 NodeList={nodes}"
        (self.folder / "jobs" / f"{id}.state").write_text(told)

    def is_of_another(self, id: str) -> None:
        """Slurm counts anew, and gives a job's number to one of another name."""
        (self.folder / "jobs" / f"{id}.sh").write_text("#SBATCH --job-name=another")
        self.becomes(id, "RUNNING")

    def forget(self, id: str) -> None:
        (self.folder / "jobs" / f"{id}.state").unlink()

    def away(self, away: bool = True) -> None:
        """The controller does not answer."""
        (self.folder / "away").touch() if away else (self.folder / "away").unlink()
