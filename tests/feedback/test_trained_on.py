"""Which feedback trained which model: kept in as many rows as something changes, and right both ways."""

from __future__ import annotations

import random

import pytest
import sqlalchemy as sa
from samples.feedback import at_revision, completion, preference, prompt

from rlhf_loop.feedback.provenance.conversation_records import trace
from rlhf_loop.feedback.provenance.lineage import lineage
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Artifact

Models = dict[str, set[str]]


def rows(store: Store) -> int:
    with store.database.read() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(tables.trained_on)) or 0


def say(store: Store, n: int) -> list[str]:
    """Feedback f000, f001, ..., each on a pair of its own."""
    store.add_prompts([prompt()])
    store.add_completions([completion(f"{side}{i:03d}") for i in range(n) for side in "ab"])
    store.add_feedback([preference(f"f{i:03d}", f"a{i:03d}", f"b{i:03d}") for i in range(n)])
    return [f"f{i:03d}" for i in range(n)]


def histories(ids: list[str]) -> dict[str, list[tuple[str, str, set[str]]]]:
    """Models as `(id, kind, trained on)` in the order they are made."""
    chance = random.Random(0)
    growing = [(f"rm-{n}", "reward_model", set(ids[: 4 * n])) for n in range(1, 13)]
    window = [(f"policy-{n}", "policy", set(ids[4 * (n - 1) : 4 * n])) for n in range(1, 13)]
    wild = [(f"rm-{n}", "reward_model", set(chance.sample(ids, chance.randrange(48)))) for n in range(12)]
    return {
        "growing": growing,
        "only what is new": window,
        "of two kinds": [model for pair in zip(growing, window, strict=True) for model in pair],
        "of two runs": [
            (f"{id}-{run}", kind, learned if run else set(ids) - learned)
            for id, kind, learned in growing
            for run in (0, 1)
        ],
        "with corrections": [(id, kind, learned - {ids[2 * n]}) for n, (id, kind, learned) in enumerate(growing)],
        "anything": wild,
    }  # fmt: skip


NAMES = list(histories([f"f{i:03d}" for i in range(48)]))


def check(store: Store, made: Models, ids: list[str]) -> None:
    """What each model learned, and what each piece taught, by every way to ask."""
    assert {model.id: set(model.trained_on) for model in store.artifacts()} == made
    assert all(len(model.trained_on) == len(set(model.trained_on)) for model in store.artifacts())
    for id in (ids[0], ids[9], ids[-1]):
        taught = [model for model, learned in made.items() if id in learned]
        assert lineage(store, id)["went_into"]["artifacts"] == taught
        assert lineage(store, f"a{id[1:]}")["went_into"]["artifacts"] == taught
        found = trace(store, id, 99)
        assert found is not None
        assert [use.id for use in found.uses] == taught
        assert found.pieces[0].used == bool(taught)
    of_all = trace(store, "ann", 99)
    assert of_all is not None
    assert {use.id: use.pieces for use in of_all.uses} == {model: len(ids) for model, ids in made.items() if ids}
    for model, learned in made.items():
        assert set(lineage(store, model)["made_by"]["feedback"]) == learned
        found = trace(store, model, 99)
        assert found is not None
        assert (found.total, found.uses[0].pieces) == (len(learned), len(learned))


@pytest.mark.parametrize("name", NAMES)
def test_what_trained_what_is_right_both_ways(name: str, store: Store) -> None:
    ids = say(store, 48)
    made: Models = {}
    for id, kind, learned in histories(ids)[name]:
        artifact = Artifact(id=id, kind=kind, path="x", round=len(made), trained_on=tuple(sorted(learned)))
        assert store.add_artifact(artifact) == 1
        assert store.add_artifact(artifact) == 0
        made[id] = learned
    check(store, made, ids)


def test_rows_grow_with_the_feedback_and_not_with_the_models(store: Store) -> None:
    ids = say(store, 60)
    for n in range(1, 31):
        for kind in ("reward_model", "policy"):
            store.add_artifact(Artifact(id=f"{kind}-{n}", kind=kind, path="x", round=n, trained_on=tuple(ids[: 2 * n])))
    assert rows(store) == 2 * len(ids)
    assert store.artifacts(ids=["policy-7"])[0].trained_on == tuple(ids[:14])


def test_two_runs_of_one_store_share_a_series_and_one_that_learns_from_something_else_does_not(store: Store) -> None:
    ids = say(store, 60)
    for n in range(1, 11):
        for run in (0, 1):
            learned = tuple(ids[: 4 * n])
            store.add_artifact(Artifact(id=f"rm-{run}-{n}", kind="reward_model", path="x", round=n, trained_on=learned))
        other = tuple(ids[40 : 40 + 2 * n])
        store.add_artifact(Artifact(id=f"of-other-{n}", kind="reward_model", path="x", round=n, trained_on=other))
    assert rows(store) == 60


@pytest.mark.parametrize("name", NAMES)
def test_a_store_that_listed_all_feedback_of_each_model_is_brought_up_to_date(name: str, store_url: str) -> None:
    before = sa.Table(
        "artifact_feedback",
        sa.MetaData(),
        sa.Column("artifact_id", sa.String),
        sa.Column("position", sa.Integer),
        sa.Column("feedback_id", sa.String),
    )
    ids = [f"f{i:03d}" for i in range(48)]
    made: Models = {}
    with at_revision(store_url, "0003") as connection:
        for id, kind, learned in histories(ids)[name]:
            body = f'{{"id": "{id}", "kind": "{kind}", "path": "x", "round": 1, "parent": null, "metrics": {{}}}}'
            columns = {"id": id, "kind": kind, "round": 1, "body": body}
            connection.execute(
                sa.text("INSERT INTO artifacts (id, kind, round, body) VALUES (:id, :kind, :round, :body)"), columns
            )
            listed = [{"artifact_id": id, "position": n, "feedback_id": f} for n, f in enumerate(sorted(learned))]
            if listed:
                connection.execute(before.insert(), listed)
            made[id] = learned
    with Store.open(store_url) as store:
        say(store, 48)
        check(store, made, ids)
        learned = set(ids[:40])
        last = Artifact(id="last", kind="reward_model", path="x", round=2, trained_on=tuple(ids[:40]))
        assert store.add_artifact(last) == 1
        check(store, {**made, "last": learned}, ids)
