"""A Slurm of two nodes, for the tests of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import slurm
from samples.slurm import Cluster

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Iterator[Cluster]:
    if reason := slurm.why_not():
        pytest.skip(reason)
    before = dict(os.environ)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.environ["PYTHONPATH"] = str(ROOT)
    with Cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made
    os.environ.clear()
    os.environ.update(before)
