"""Reading a file in a process of its own, while this one writes what was read before.

Half of the time of an import goes into reading, and Python runs on one core. The process is given what to read on its
standard input and answers on its standard output: the file's format, then batch after batch, then the end. It makes
no more than a few batches ahead. A small file is read here: a process takes half a second to begin.
"""

from __future__ import annotations

import gc
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.bulk_batches import Batch, batches_of
from rlhf_loop.feedback.data_sets import is_data_set
from rlhf_loop.feedback.importers.reading import Parsed, Reading, open_rows
from rlhf_loop.feedback.redaction import RedactorName, make_redactor
from rlhf_loop.feedback.rows import Refused
from rlhf_loop.records import Prompt, Split

SMALL = 4 * 2**20  # bytes of a file that is read in this process
AHEAD = 4  # batches that wait to be written
SOON = 0.5  # seconds that a transaction waits for the next batch


class Source(NamedTuple):
    """What is read, and how; see `importers.reading.open_rows`."""

    path: str
    format: str
    annotator: str | None
    columns: dict[str, str]
    redact: RedactorName
    splits: Mapping[str, Split] | Split | None = None  # of prompts, by group or all; None: as the file says, or train


class ReadHere:
    """The batches of a small file, each read when it is asked for."""

    def __init__(self, source: Source):
        reading = _open(source, as_rows=source.splits is None)
        self.format = reading.format
        rows = reading.rows if source.splits is None else _with_splits(reading.rows, source.splits)
        self._batches = batches_of(rows)
        self._next: Batch | None = None

    def __enter__(self) -> ReadHere:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def more(self) -> bool:
        """Reads the next batch; False at the end of the file."""
        if self._next is None:
            self._next = next(self._batches, None)
        return self._next is not None

    def soon(self) -> bool:
        """Whether a batch is there that need not be waited for long, while nobody else can write to the store."""
        return self._next is not None

    def take(self) -> Batch:
        """The batch that `more` or `soon` found."""
        batch, self._next = self._next, None
        assert batch is not None, "there is no batch"
        return batch


class ReadAhead:
    """The batches of a file that a process of its own reads; the same methods as those of `ReadHere`.

    Raises what reading the file raised, and a `UserError` when the process was killed. Ends the process when left.
    """

    def __init__(self, source: Source):
        self._path = source.path
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rlhf_loop.feedback.bulk_reader"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        self._arrived: queue.Queue[Any] = queue.Queue(AHEAD)  # what the process says, or what it raised
        self._next: Batch | None = None
        self._error: BaseException | None = None
        self._ended = False
        self._left = False
        self._thread = threading.Thread(target=self._receive, name="read-feedback", daemon=True)
        self._thread.start()
        try:
            assert self._process.stdin is not None
            with suppress(BrokenPipeError), self._process.stdin as given:
                pickle.dump(source, given)
            first = self._arrived.get()
            if isinstance(first, BaseException):
                raise first
            self.format: str = first
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *exception: object) -> None:
        self._left = True
        self._process.kill()
        self._process.wait()
        while self._thread.is_alive():  # it may wait for room
            with suppress(queue.Empty):
                self._arrived.get(timeout=0.01)

    def more(self) -> bool:
        """Waits for the next batch; False at the end of the file."""
        self._fetch(None)
        if self._error is not None:
            raise self._error
        return self._next is not None

    def soon(self) -> bool:
        """Whether a batch is there, or comes soon: nobody else can write to the store meanwhile. Raises nothing, so
        that what was written is committed first."""
        with suppress(queue.Empty):
            self._fetch(SOON)
        return self._next is not None

    def take(self) -> Batch:
        """The batch that `more` or `soon` found."""
        batch, self._next = self._next, None
        assert batch is not None, "there is no batch"
        return batch

    def _fetch(self, seconds: float | None) -> None:
        if self._next is not None or self._ended:
            return
        said = self._arrived.get(timeout=seconds)
        if isinstance(said, BaseException):
            self._error = said
        else:
            self._next = said
        self._ended = self._next is None

    def _receive(self) -> None:
        """Takes messages out of the pipe, which holds little, and unpacks them while the store is being written."""
        assert self._process.stdout is not None
        with self._process.stdout as pipe, Connection(os.dup(pipe.fileno()), writable=False) as messages:
            while not self._left:
                try:
                    said = pickle.loads(messages.recv_bytes())
                except (EOFError, OSError):
                    said = UserError(
                        f"the process that reads {self._path} ended with status {self._process.wait()}, perhaps for "
                        "want of memory. What was imported before stays; type the same command again to go on"
                    )
                self._arrived.put(said)
                if not isinstance(said, (Batch, str)):  # the end
                    return


def read_batches(source: Source) -> ReadHere | ReadAhead:
    """Begins to read; a context manager with the file's `format` that gives its batches.

    Raises `UserError` as `open_rows` does.
    """
    path = Path(source.path)
    large = is_data_set(path) if not path.is_file() else path.stat().st_size > SMALL
    return ReadAhead(source) if large else ReadHere(source)


def groups_of(source: Source) -> set[str]:
    """The groups of the prompts of a file. Raises `UserError` as `open_rows` does."""
    return {
        record.group
        for item in _open(source).rows
        if not isinstance(item, Refused)
        for record in item.records
        if type(record) is Prompt
    }


def _open(source: Source, as_rows: bool = False) -> Reading:
    redactor = make_redactor(source.redact)
    return open_rows(source.path, source.format, source.annotator, source.columns, redactor, as_rows)


def _with_splits(items: Iterable[Parsed | Refused], splits: Mapping[str, Split] | Split) -> Iterator[Parsed | Refused]:
    for item in items:
        if not isinstance(item, Refused):
            for place, record in enumerate(item.records):
                if type(record) is Prompt:
                    split = splits.get(record.group, "train") if isinstance(splits, Mapping) else splits
                    item.records[place] = replace(record, split=split)
        yield item


def main() -> None:
    """The process: answers with what `ReadHere` gives, or with what it raises."""
    gc.disable()  # there is no cyclic garbage in records, which the collector would walk over and over
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that writes; it ends this one
    with Connection(os.dup(1), readable=False) as answers, suppress(BrokenPipeError):
        os.dup2(2, 1)  # what a library prints is none of the answers
        try:
            reading = ReadHere(pickle.load(sys.stdin.buffer))
            answers.send_bytes(pickle.dumps(reading.format))
            while reading.more():
                answers.send_bytes(pickle.dumps(reading.take(), protocol=5))
            answers.send_bytes(pickle.dumps(None))
        except BrokenPipeError:  # nobody wants the rest
            raise
        except Exception as error:
            answers.send_bytes(pickle.dumps(error))


if __name__ == "__main__":
    main()
