"""`accelerate launch ... -m rlhf_loop.stages ARGUMENTS.json`: one stage in processes of its own.

Progress goes to standard output as lines that the parent understands; errors for the user end with exit code 2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rlhf_loop.errors import UserError
from rlhf_loop.models.distributed import is_main
from rlhf_loop.run_dir import PROGRESS
from rlhf_loop.stages import run_stage


def _report(done: int, total: int, text: str) -> None:
    if is_main():
        print(PROGRESS + json.dumps([done, total, text]), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m rlhf_loop.stages ARGUMENTS.json")
    try:
        run_stage(Path(sys.argv[1]), _report)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
