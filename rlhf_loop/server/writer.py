"""One thread that writes for many requests: what waits goes into one transaction, each piece whole or not at all.

Threads that queued for the database one by one would spend more time handing over to each other than writing.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import sqlalchemy as sa

from rlhf_loop.feedback.database import Database

MOST_AT_ONCE = 64
"""Pieces of work in one transaction."""

Work = Callable[[sa.Connection], Any]


class Writer:
    """Writes to a database from a thread of its own, which begins with the first piece of work."""

    def __init__(self, database: Database):
        self._database = database
        self._waiting: queue.SimpleQueue[tuple[Work, Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def submit(self, work: Work) -> Future[Any]:
        """Runs `work` in a writing transaction; the future has its result once that is committed, or its error.

        An error of one piece undoes that piece alone.
        """
        future: Future[Any] = Future()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
                self._thread.start()
            self._waiting.put((work, future))
        return future

    def close(self) -> None:
        """Writes what waits, and ends the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._waiting.put(None)
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < MOST_AT_ONCE and batch[-1] is not None and not self._waiting.empty():
                batch.append(self._waiting.get())
            self._write([piece for piece in batch if piece is not None])
            if batch[-1] is None:
                return

    def _write(self, pieces: list[tuple[Work, Future[Any]]]) -> None:
        done: list[tuple[Future[Any], Any, Exception | None]] = []
        try:
            if pieces:
                with self._database.write() as connection:
                    for work, future in pieces:
                        try:
                            with connection.begin_nested():
                                done.append((future, work(connection), None))
                        except Exception as error:
                            done.append((future, None, error))
        except Exception as error:  # nothing was committed
            done = [(future, None, error) for _, future in pieces]
        for future, result, failure in done:
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)
