"""Opening one project of a store that has many, on SQLite and on PostgreSQL.

    python benchmarks/projects.py [--postgres URL] [--projects 1 50 200] [--repeats 40] [--out FILE.json]

For each number of projects a store of its own; they are opened in turn, so that whatever else the machine does falls on
all of them alike. Timed: `Store.open`, one look at the promoted policy, `close`; and `rlhf-loop project list` without
the start of Python. The user in the URL must be allowed to make databases.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from machine import describe

from rlhf_loop.feedback.store.location import parse_url
from rlhf_loop.feedback.store.projects import listed
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files.store_address import in_project


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgres")
    parser.add_argument("--projects", type=int, nargs="+", default=[1, 50, 200])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found: dict[str, object] = {"machine": describe(), "repeats": given.repeats}
    with tempfile.TemporaryDirectory() as folder:
        files = {n: f"sqlite:///{folder}/{n}/store.db" for n in given.projects}
        found["sqlite"] = measure(files, given.repeats)
    if given.postgres:
        with databases(given.postgres, given.projects) as urls:
            found["postgresql"] = measure(urls, given.repeats)
    text = json.dumps(found, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


def measure(stores: dict[int, str], repeats: int) -> dict[str, dict[str, float]]:
    """By number of projects: milliseconds, median and 90th percentile, to open one; milliseconds to list all."""
    for n, url in stores.items():
        for number in range(n):
            Store.open(in_project(url, f"project-{number}")).close()
    opened: dict[int, list[float]] = {n: [] for n in stores}
    for _ in range(repeats):
        for n, url in stores.items():
            begun = time.perf_counter()
            with Store.open(in_project(url, f"project-{n // 2}"), create=False) as store:
                store.promoted_id()
            opened[n].append(1000 * (time.perf_counter() - begun))
    found = {}
    for n, url in stores.items():
        begun = time.perf_counter()
        assert len(listed(url)) == n
        listing = 1000 * (time.perf_counter() - begun)
        found[str(n)] = {
            "open_median_ms": round(statistics.median(opened[n]), 2),
            "open_p90_ms": round(statistics.quantiles(opened[n], n=10)[-1], 2),
            "list_ms": round(listing, 1),
        }
    return found


@contextmanager
def databases(url: str, numbers: list[int]) -> Iterator[dict[int, str]]:
    """An empty database for each number, removed afterwards."""
    server = sa.create_engine(parse_url(url), isolation_level="AUTOCOMMIT")
    names = {n: f"bench_{os.getpid()}_{n}" for n in numbers}
    try:
        with server.connect() as connection:
            for name in names.values():
                connection.exec_driver_sql(f"CREATE DATABASE {name}")
        own = parse_url(url).set(drivername="postgresql")
        yield {n: own.set(database=name).render_as_string(hide_password=False) for n, name in names.items()}
    finally:
        with server.connect() as connection:
            for name in names.values():
                connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        server.dispose()


if __name__ == "__main__":
    main()
