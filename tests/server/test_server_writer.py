"""The thread that writes for many requests: nothing counts as stored that is not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from samples.server import file_store

from rlhf_loop.errors import StoreUnavailable
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.adding import Transaction
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.server.writer import Writer


def keep(name: str, characters: int = 1) -> Callable[[Transaction], str]:
    def work(transaction: Transaction) -> str:
        transaction.connection.execute(tables.settings.insert().values(name=name, value="x" * characters))
        return name

    return work


def at_once(store: Store, pieces: list[Callable[[Transaction], Any]]) -> list[Any]:
    """What becomes of pieces of work that go into one transaction."""
    writer, ready = Writer(store), threading.Event()
    first = writer.submit(lambda transaction: ready.wait(10))  # the others wait meanwhile
    futures = [writer.submit(piece) for piece in pieces]
    ready.set()
    assert first.result(10)
    found = [future.exception(10) or future.result() for future in futures]
    writer.close()
    return found


def kept(store: Store) -> set[str]:
    with store.database.read() as connection:
        return set(connection.scalars(sa.select(tables.settings.c.name)))


def test_when_the_disk_is_full_only_what_was_stored_counts_as_stored(tmp_path: Path) -> None:
    store = file_store(tmp_path)
    with store.database.read() as connection:
        most = connection.exec_driver_sql("PRAGMA page_count").scalar_one() + 6

    @sa.event.listens_for(store.database.engine, "checkout")
    def limit(connection: Any, *_: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {most}")

    one, two, much, three = at_once(store, [keep("1"), keep("2"), keep("much", 400_000), keep("3")])
    assert (one, two, three) == ("1", "2", "3")
    assert isinstance(much, StoreUnavailable)
    assert "the disk is full" in str(much)
    assert kept(store) == {"1", "2", "3"}


def test_an_error_of_one_piece_undoes_that_piece_alone(tmp_path: Path) -> None:
    store = file_store(tmp_path)

    def wrong(transaction: Transaction) -> None:
        keep("half")(transaction)
        raise ValueError("wrong")

    one, error, two = at_once(store, [keep("1"), wrong, keep("2")])
    assert (one, str(error), two) == ("1", "wrong", "2")
    assert kept(store) == {"1", "2"}


def test_when_the_store_is_locked_nothing_counts_as_stored(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "feedback.db", busy_seconds=0.2)
    writer, other = Writer(store), sa.create_engine(f"sqlite:///{tmp_path / 'feedback.db'}")
    with other.connect() as holding:
        holding.exec_driver_sql("BEGIN IMMEDIATE")
        futures = [writer.submit(keep(name)) for name in "123"]
        for future in futures:
            with pytest.raises(StoreUnavailable, match="locked"):
                future.result(10)
    assert writer.submit(keep("4")).result(10) == "4"
    assert kept(store) == {"4"}
    writer.close()


def test_work_that_nobody_waits_for_any_more_is_left_out_and_the_rest_is_done(tmp_path: Path) -> None:
    store = file_store(tmp_path)
    writer, ready = Writer(store), threading.Event()
    writer.submit(lambda transaction: ready.wait(10))
    given_up, other = writer.submit(keep("given up")), writer.submit(keep("other"))
    assert given_up.cancel()
    ready.set()
    assert other.result(10) == "other"
    assert writer.submit(keep("later")).result(10) == "later"  # the thread goes on
    assert kept(store) == {"other", "later"}
    writer.close()
