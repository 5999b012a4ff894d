"""One thread that writes for many requests: what waits goes into one transaction, each piece whole or not at all.

Threads that queued for the database one by one would spend more time handing over to each other than writing.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from rlhf_loop.feedback.store.adding import Transaction
from rlhf_loop.feedback.store.store import Store

MOST_AT_ONCE = 64
"""Pieces of work in one transaction."""

Work = Callable[[Transaction], Any]

_Piece = tuple[Work, Future[Any]]


class Writer:
    """Writes to a store from a thread of its own, which begins with the first piece of work."""

    def __init__(self, store: Store):
        self._store = store
        self._waiting: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def submit(self, work: Work) -> Future[Any]:
        """Runs `work` in a writing transaction; the future has its result once that is committed, or its error.

        An error of one piece undoes that piece alone. `work` may be called more than once: where the database fails
        in another piece of the same transaction, all of it is undone and begun again.
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

    def _write(self, pieces: list[_Piece]) -> None:
        """All pieces in one transaction. One in which the database fails is left out, and the others begin anew:
        SQLite may have undone all of the transaction by then (a full disk), and would commit what comes after piece by
        piece, so what went before must not count as done."""
        pieces = [piece for piece in pieces if piece[1].set_running_or_notify_cancel()]
        while pieces:
            done: list[tuple[Future[Any], Any, Exception | None]] = []
            current: _Piece | None = None
            try:
                with self._store.transaction() as transaction:
                    for current in pieces:
                        done.append((current[1], *transaction.attempt(current[0])))
                    current = None
            except Exception as error:  # nothing was committed
                failed = pieces if current is None else [current]
                done = [(future, None, error) for _, future in failed]
            for future, result, failure in done:
                if failure is None:
                    future.set_result(result)
                else:
                    future.set_exception(failure)
            pieces = pieces[:0] if current is None else [piece for piece in pieces if piece is not current]
