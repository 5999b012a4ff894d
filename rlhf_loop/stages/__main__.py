"""`accelerate launch ... -m rlhf_loop.stages ARGUMENTS.json`: one stage in processes of its own.

Progress goes to standard output as lines that the parent understands; errors for the user end with exit code 2.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rlhf_loop.errors import UserError
from rlhf_loop.files.locks import covers, locked
from rlhf_loop.files.step_folders import is_complete
from rlhf_loop.models import distributed
from rlhf_loop.run_dir import PROGRESS
from rlhf_loop.stages import run_stage
from rlhf_loop.stages.arguments import StageArguments


def main(file: Path) -> None:
    """Makes a stage. A job of a cluster may be started again when its stage is made, or while a former self on a node
    that only seems dead still makes it: it waits for that one, and makes what is missing."""
    arguments = StageArguments.read(file)
    output = Path(arguments.output)
    with _alone(output):
        if distributed.said_by_main(lambda: is_complete(output, arguments.key)):
            return
        run_stage(file, _report)


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Where nobody who holds the run's lock started this process, it has one of its own on what it makes."""
    with ExitStack() as stack:
        if distributed.is_main() and not covers(output):
            stack.enter_context(locked(output.with_name(f"{output.name}.lock"), str(output), wait=True))
        yield


def _report(done: int, total: int, text: str) -> None:
    if distributed.is_main():
        print(PROGRESS + json.dumps([done, total, text]), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m rlhf_loop.stages ARGUMENTS.json")
    try:
        main(Path(sys.argv[1]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
