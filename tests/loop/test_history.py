"""A round, and looking back, cost as much after many rounds as after few."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
import yaml
from samples.faults import write_anew
from samples.feedback import completion, preference, prompt

from rlhf_loop import launch, loop
from rlhf_loop.feedback.provenance.lineage import lineage
from rlhf_loop.feedback.quality.stats import stats
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.table_rows import as_columns, completion_row
from rlhf_loop.files import read_json, write_json
from rlhf_loop.recipe import Recipe
from rlhf_loop.records import Annotator, Retraction, Score, to_dict
from rlhf_loop.report import status, write_report
from rlhf_loop.steps import learn
from rlhf_loop.watch.triggers import arrivals

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run of the real loop without models, as in the benchmark: everybody has said everything before round 1."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(launch, "choose", launch.choose)  # put back afterwards
    monkeypatch.setattr(loop, "make_round", loop.make_round)
    monkeypatch.setattr(learn, "snapshot", learn.snapshot)
    benchmark = importlib.import_module("history")
    monkeypatch.setattr(benchmark, "HELD_OUT", 4)
    file = benchmark.write_recipe(tmp_path, prompts=6, samples=2, questions=0)
    said = [{"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": "No.", "group": str(n)} for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    values = yaml.safe_load(file.read_text())
    values["feedback"]["imports"] = [{"path": "pairs.jsonl", "split": "train"}]
    file.write_text(yaml.safe_dump(values))
    return benchmark.History(Recipe.load(file), tmp_path / "run")


class Work:
    """Steps of SQLite's machine, JSON and Parquet files read, while one looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.steps = self.tables = self.files = 0
        read_table = pq.read_table

        def reading(*arguments: Any, **named: Any) -> Any:
            self.tables += 1
            return read_table(*arguments, **named)

        monkeypatch.setattr(pq, "read_table", reading)
        opened, steps = Path.read_text, self._step

        def read_text(path: Path, *arguments: Any, **named: Any) -> str:
            self.files += 1
            return opened(path, *arguments, **named)

        monkeypatch.setattr(Path, "read_text", read_text)

        @sa.event.listens_for(sa.Engine, "connect")
        def watch(connection: Any, _: object) -> None:
            connection.set_progress_handler(steps, 10)

        self._forget = lambda: sa.event.remove(sa.Engine, "connect", watch)

    def _step(self) -> int:
        self.steps += 1
        return 0

    def of(self, look: Any) -> tuple[int, int, int]:
        before = self.steps, self.tables, self.files
        look()
        return self.steps - before[0], self.tables - before[1], self.files - before[2]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    made = Work(monkeypatch)
    yield made
    made._forget()


def test_a_round_does_as_much_after_many_rounds_as_after_few(history: Any, work: Work) -> None:
    history.make(7)
    early = work.of(lambda: history.make(8))
    history.make(23)
    late = work.of(lambda: history.make(24))
    # The report, which every call of `run` ends with, reads the small files of each round; see below.
    assert late[0] <= 1.1 * early[0]
    assert late[1] == early[1]
    again = work.of(lambda: history.make(24))
    assert again[1] == 0
    assert again[2] < 20


def test_the_report_reads_no_candidates_of_rounds_that_are_complete(history: Any, work: Work) -> None:
    history.make(8)
    early, before = work.of(lambda: write_report(history.run)), status(history.run)
    history.make(20)
    late = work.of(lambda: write_report(history.run))
    assert late[1] == early[1]
    assert status(history.run)["rounds"][:9] == before["rounds"]
    text = (history.run.path / "report.html").read_text()
    assert "36 fresh candidates" in text
    for number in range(21):  # as a version wrote them that did not count
        file = history.run.round(number) / "manifest.json"
        manifest = read_json(file)
        write_json(file, {**manifest, "figures": {"variety": manifest["figures"]["variety"]}})
    write_report(history.run)
    assert (history.run.path / "report.html").read_text() == text


def test_a_run_with_nothing_to_do_leaves_a_report_that_is_new(history: Any) -> None:
    history.make(1)
    report, manifest = history.run.path / "report.html", history.run.round(1)
    report.write_text("mine")
    os.utime(report, (manifest.stat().st_mtime + 5,) * 2)
    history.make(1)
    assert report.read_text() == "mine"
    os.utime(report, (manifest.stat().st_mtime - 5,) * 2)  # an end that was cut off before the report
    history.make(1)
    assert "<html" in report.read_text()


def test_statistics_count_in_the_store(store: Store) -> None:
    store.add_prompts([prompt()])
    answers = [completion("a", "one two three"), completion("b", "one", round=1), completion("c", "one two", round=1)]
    store.add_completions(answers)
    store.add_feedback([preference("1", "a", "b"), preference("2", "a", "c", "b"), preference("3", "b", "c", "tie")])
    found = stats(store)
    assert found["completions_by_round"] == {"0": 1, "1": 2}
    assert (found["longer_wins"]["share"], found["longer_wins"]["n"]) == (0.5, 2)


def test_a_score_as_earlier_versions_wrote_it_reads_as_one_of_now(store: Store) -> None:
    store.add_prompts([prompt()])
    store.add_completions([completion("a"), completion("b")])
    old, new = (
        Score(completion_id=id, reward_model="rm", value=1 / 3, spread=0.5, breakdown={"x": 2.0}, round=4)
        for id in "ab"
    )
    row = {"completion_id": "a", "reward_model": "rm", "value": 1 / 3, "round": 4, "body": json.dumps(to_dict(old))}
    with store.database.write() as connection:
        connection.execute(tables.scores.insert().values(row))
    assert store.add_scores([old, new]) == 1
    assert store.scores() == [old, new]
    assert [score for _, score in store.search_completions()] == [old, new]
    assert [lineage(store, f"{id}:rm")["record"] for id in "ab"] == [to_dict(old), to_dict(new)]


def test_an_answer_as_earlier_versions_wrote_it_reads_as_one_of_now(store: Store) -> None:
    store.add_prompts([prompt()])
    store.add_completions([completion("first")])
    old, new = (
        replace(
            completion(id, 'a "b"', round=2), parent="first", critique="", token_ids=(5, 7), sampling={"top_p": 0.9}
        )
        for id in ("old", "new")
    )
    row = {**as_columns("completions", completion_row(old)), "body": json.dumps(to_dict(old))}
    with store.database.write() as connection:
        connection.execute(tables.completions.insert().values(row))
    assert store.add_completions([old, new]) == 1
    assert store.completions(ids=["old", "new"]) == [old, new]
    assert [lineage(store, id)["record"] for id in ("old", "new")] == [to_dict(old), to_dict(new)]
    with store.database.read() as connection:
        bodies = connection.scalars(sa.select(tables.completions.c.body).order_by(tables.completions.c.number)).all()
    assert len(bodies[2]) < 0.6 * len(bodies[1])


def test_what_arrived_is_what_the_last_snapshot_had_not_looked_at(history: Any) -> None:
    history.make(1)
    with Store.open(history.loop.store_url) as store:
        assert arrivals(store, history.run).fresh == set()
        [one, two, three] = store.feedback()[:3]
        about = {"prompt_id": one.prompt_id, "a": one.a_id, "b": one.b_id, "who": "ann"}
        store.add_feedback([preference(name, round=at, **about) for name, at in (("now", 1), ("next", 2), ("late", 0))])
        assert arrivals(store, history.run).fresh == {"now", "late"}
        taken_back = [("back", "late"), ("gone", two.id)]
        store.add_feedback(
            [
                Retraction(id=id, supersedes=what, prompt_id=one.prompt_id, annotator=Annotator(id="ann"))
                for id, what in taken_back
            ]
        )
        assert arrivals(store, history.run).fresh == {"now"}
        state = history.run.step(1, "snapshot") / "state.json"
        for newest in (three.id, "was deleted"):
            write_anew(state, {**read_json(state), "newest_feedback": newest})
            assert "now" in arrivals(store, history.run).fresh
