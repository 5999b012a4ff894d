"""The command line, as typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def rlhf_loop(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlhf_loop", *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == code, finished.stdout + finished.stderr
    return finished
