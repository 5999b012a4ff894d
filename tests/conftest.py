"""Fixtures: a tiny random model and tokenizer, and a store of each kind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from samples import families
from samples.feedback import needs_postgres, postgres_schema

from rlhf_loop.feedback.store.store import Store

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs behind, children too
os.environ["OMP_NUM_THREADS"] = "1"  # some tests fork, which hangs once OpenMP has threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


@pytest.fixture(scope="session", autouse=True)
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of its own for models that tests make; one that the environment names is kept."""
    if "RLHF_LOOP_CACHE" in os.environ:
        yield Path(os.environ["RLHF_LOOP_CACHE"])
        return
    folder = tmp_path_factory.mktemp("model_cache")
    os.environ["RLHF_LOOP_CACHE"] = str(folder)
    yield folder
    del os.environ["RLHF_LOOP_CACHE"]


@pytest.fixture(scope="session")
def tiny_policy() -> Path:
    """Folder of a tiny random Llama and its tokenizer, with a chat template; eos and pad differ."""
    from rlhf_loop.models.files import resolve_model

    return Path(resolve_model("tiny-random:0"))


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of the tiny model of a family, by its name in `samples.families`."""
    folder = tmp_path_factory.mktemp("families")
    return lambda name: families.make(name, folder / name)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=needs_postgres)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of an empty store that several processes can open: on SQLite, and on PostgreSQL where there is one."""
    if request.param == "postgres":
        yield from postgres_schema()
    else:
        yield f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """The same, open."""
    with Store.open(store_url) as opened:
        yield opened
