"""A run that learns from the feedback of other projects (`feedback.from`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from samples.feedback import completion, needs_postgres, postgres_database, preference, prompt

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.borrowed import borrowed_in, sources_of
from rlhf_loop.feedback.privacy import deletion_files
from rlhf_loop.feedback.privacy.deletion import delete_user, remember, user_key
from rlhf_loop.feedback.privacy.forgetting import Forgetting
from rlhf_loop.feedback.provenance.lineage import lineage
from rlhf_loop.feedback.quality.stats import lines
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.tables import SCHEMA
from rlhf_loop.files import read_json
from rlhf_loop.files.step_folders import step_folder
from rlhf_loop.files.store_address import in_project
from rlhf_loop.kept_recipe import RecipeChanged, keep_recipe
from rlhf_loop.loop import Loop
from rlhf_loop.recipe import Recipe, parse
from rlhf_loop.record_files import read_records, write_records
from rlhf_loop.records import Annotator, Artifact, Completion, Critique, Edit, Feedback, PreferencePair, Prompt
from rlhf_loop.run_dir import RunDir
from rlhf_loop.steps.snapshot import snapshot

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
SECRET = "My neighbour Olga keeps eleven goats in the cellar."


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=needs_postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "postgres":
        yield from postgres_database()
    else:
        yield f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture
def home(url: str) -> Iterator[Store]:
    """The run's own project: training prompts p and m, and held-out ones."""
    with Store.open(url) as store:
        test = {"split": "test"}
        store.add_prompts([prompt("p"), prompt("m", "Own words?"), prompt("h", "Why is it dark?", group="g", **test)])
        store.add_prompts([prompt("h2", "What is the sea?", **test)])
        store.add_completions([completion("a"), completion("b")])
        store.add_feedback([preference("f1")])
        yield store


@pytest.fixture
def team(url: str) -> Iterator[Store]:
    with Store.open(in_project(url, "team-a")) as store:
        yield store


def says(store: Store, asked: Prompt, id: str, *more: Feedback, user: str = "olga", texts: tuple[str, str]) -> None:
    """A user asked, got two answers and preferred the first."""
    store.add_prompts([asked])
    ids = [f"{id}-1", f"{id}-2"]
    answers = [
        completion(one, text, asked.id, policy="policy-001-0000aaaa") for one, text in zip(ids, texts, strict=True)
    ]
    store.add_completions(answers)
    said = [preference(id, *ids, winner="a", who="ann", prompt_id=asked.id, round=4), *more]
    store.add_feedback(said)
    key = user_key(store, user)
    with store.transaction() as transaction:
        remember(transaction, key, "prompt", [asked.id])
        remember(transaction, key, "completion", ids)
        remember(transaction, key, "feedback", [record.id for record in said])


def recipe(**feedback: Any) -> Recipe:
    return parse(
        {
            "name": "x",
            "store": "sqlite:////nowhere/store.db",
            "policy": {"model": "tiny-random:0"},
            "prompts": {"train": ["train.jsonl"], "test": ["test.jsonl"]},
            "feedback": {"annotator": {"kind": "simulated"}, "validation": {"min_pairs": 0}, **feedback},
            "reward": {"model": "reward_models/frozen_head"},
            "evaluation": {"judge": {"kind": "rule"}},
            "critiques": {},
        }
    )


def taken(home: Store, run: Path, *named: str, n: int = 1) -> Path:
    """The snapshot of a round that borrows."""
    sources = sources_of(home.database.location.address, named)
    with step_folder(RunDir(run).step(n, "snapshot"), "key", {}) as folder:
        snapshot(home, recipe(**{"from": list(named)}), n, folder, "base", sources)
    return RunDir(run).step(n, "snapshot")


def test_borrowed_feedback_trains_and_says_where_it_came_from(home: Store, team: Store, tmp_path: Path) -> None:
    says(team, prompt("t", "What do goats eat?"), "f2", texts=("They eat hay.", "They eat tins."))
    before = home.counts(), team.counts()
    folder = taken(home, tmp_path / "run", "team-a")
    pairs = {pair.feedback_ids: pair for pair in read_records(folder / "pairs.parquet", PreferencePair)}
    assert set(pairs) == {("f1",), ("f2@team-a",)}
    pair = pairs[("f2@team-a",)]
    assert (pair.chosen[0]["content"], pair.round, pair.chosen_by_policy) == ("They eat hay.", 0, False)
    kept = {record.id: record for record in read_records(folder / "borrowed_feedback.parquet", Feedback)}
    assert kept["f2@team-a"].annotator == Annotator(id="ann@team-a")
    assert [p.id for p in read_records(folder / "prompts.parquet", Prompt)] == [
        "m",
        "p",
    ]  # nothing is written for others'
    validation = read_json(folder / "validation.json")
    assert validation["borrowed"] == borrowed_in(RunDir(tmp_path / "run")) == {"team-a": {"taken": 1}}
    assert validation["per_annotator"]["ann@team-a"]["usable"] == 1
    assert read_json(folder / "state.json")["newest_feedback"] == "f1"
    assert (home.counts(), team.counts()) == before


def test_what_is_held_out_here_never_trains_whatever_it_is_there(home: Store, team: Store, tmp_path: Path) -> None:
    ways = {
        "by id": prompt("h", "Something else under this id"),
        "by text": prompt("other", "What is  the sea?"),
        "by group": prompt("same-group", "Why is it dark at night?", group="g"),
        "held out there": prompt("t", "Only for tests there?", split="test"),
        "held out there, trained here": prompt("m", "Own words?", split="test"),
    }
    for number, (way, asked) in enumerate(ways.items()):
        says(team, asked, f"f{number}", texts=(f"good {way} of some words", f"bad {way} of some words"))
    folder = taken(home, tmp_path / "run", "team-a")
    pairs = read_records(folder / "pairs.parquet", PreferencePair)
    assert [pair.feedback_ids for pair in pairs] == [("f1",), ("f4@team-a",)]
    assert read_json(folder / "validation.json")["borrowed"] == {
        "team-a": {"held_out_here": 3, "not_for_training_there": 1, "taken": 1}
    }
    assert [p.id for p in read_records(folder / "held_out.parquet", Prompt)] == ["h", "h2"]
    for held_out in ("by id", "by text", "by group"):
        assert held_out not in (folder / "pairs.parquet").read_bytes().decode("latin-1")


def test_what_is_in_both_is_taken_once_and_ids_that_clash_are_told_apart(
    home: Store, team: Store, tmp_path: Path
) -> None:
    team.add_prompts([prompt("p"), prompt("m", "Other words under the same id?")])
    team.add_completions([completion("a"), completion("b", "another text"), completion("m1", prompt_id="m")])
    team.add_completions([completion("m2", "another answer", "m")])
    ann = Annotator(id="ann")
    same = preference("f1")  # as it is here, but about another b
    edit = Edit(id="f3", prompt_id="p", completion_id="a", edited_completion="Better.", annotator=ann)
    team.add_feedback([same, preference("f2", "m1", "m2", prompt_id="m"), edit])
    folder = taken(home, tmp_path / "run", "team-a")
    assert read_json(folder / "validation.json")["borrowed"]["team-a"] == {"already_here": 1, "taken": 2}
    pair = next(p for p in read_records(folder / "pairs.parquet", PreferencePair) if p.feedback_ids == ("f2@team-a",))
    assert (pair.prompt_id, pair.prompt[0]["content"]) == ("m@team-a", "Other words under the same id?")
    assert [c.id for c in read_records(folder / "borrowed_completions.parquet", Completion)] == ["m1", "m2"]
    home.add_feedback([preference("f9", winner="b", supersedes="f1")])  # a correction here is not undone from there
    folder = taken(home, tmp_path / "run", "team-a", n=2)
    pairs = read_records(folder / "pairs.parquet", PreferencePair)
    assert sorted(pair.feedback_ids for pair in pairs) == [("f2@team-a",), ("f9",)]


def test_what_was_deleted_here_does_not_come_back_from_there(home: Store, team: Store, tmp_path: Path) -> None:
    for store in (home, team):
        says(store, prompt("t", "What do goats eat?"), "f2", texts=("They eat hay.", "They eat tins."))
    delete_user(home, "olga", [], rewrite_report=lambda run: None)
    folder = taken(home, tmp_path / "run", "team-a")
    assert read_json(folder / "validation.json")["borrowed"] == {"team-a": {"deleted_here": 1, "taken": 0}}


def goats(team: Store) -> None:
    """What Olga said, whose texts are all over the snapshot, and what somebody else did."""
    critique = {"prompt_id": "t", "annotator": Annotator(id="ann"), "comment": f"It never says: {SECRET}"}
    asked, texts = prompt("t", f"Is it true? {SECRET}"), (f"Yes. {SECRET}", "No, and I would not say so.")
    says(team, asked, "f2", Critique(id="f3", completion_id="f2-2", **critique), texts=texts)
    says(team, prompt("u", "What do cows eat?"), "f5", user="bob", texts=("They eat grass.", "They eat stones."))


def holds(run: Path, text: str) -> list[str]:
    """The files of a run that hold a text; Parquet is read, as it is compressed."""
    import pyarrow.parquet as pq

    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    read = {f: str(pq.read_table(f).to_pylist()) if f.suffix == ".parquet" else f.read_text("latin-1") for f in files}
    return [str(file.relative_to(run)) for file, content in read.items() if text in content]


def test_what_is_deleted_there_vanishes_from_the_run_at_its_next_step(home: Store, team: Store, tmp_path: Path) -> None:
    goats(team)
    run = tmp_path / "run"
    for n in (1, 2):
        taken(home, run, "team-a", n=n)
    (run / "report.html").write_text(SECRET)
    forgetting = Forgetting(RunDir(run), sources_of(home.database.location.address, ["team-a"]), home)
    assert forgetting.forget() == []
    assert len(holds(run, SECRET)) > 4
    delete_user(team, "olga", [], rewrite_report=lambda run: None)
    said = forgetting.forget()
    assert len(said) == 1
    assert said[0].startswith("deleted in team-a: ")
    assert holds(run, SECRET) == holds(run, "f2@team-a") == []
    for n in (1, 2):
        folder = RunDir(run).step(n, "snapshot")
        assert {p.feedback_ids for p in read_records(folder / "pairs.parquet", PreferencePair)} == {
            ("f1",),
            ("f5@team-a",),
        }
        assert read_json(folder / "manifest.json")["state"] == deletion_files.REDACTED
    assert forgetting.forget() == []
    folder = taken(home, run, "team-a", n=3)
    assert read_json(folder / "validation.json")["borrowed"] == {"team-a": {"taken": 1}}


def test_a_forgetting_that_was_cut_off_is_finished_by_the_next(
    home: Store, team: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goats(team)
    run, sources = tmp_path / "run", sources_of(home.database.location.address, ["team-a"])
    for n in (1, 2):
        taken(home, run, "team-a", n=n)
    delete_user(team, "olga", [], rewrite_report=lambda run: None)
    redact, left = deletion_files.redact, [0]

    def cut_off(path: Path, *given: Any, write: bool) -> int:
        left[0] -= write
        if write and left[0] < 0:
            raise KeyboardInterrupt
        return redact(path, *given, write=write)

    monkeypatch.setattr(deletion_files, "redact", cut_off)
    attempts = 0
    while holds(run, SECRET):
        left[0] = 1  # one file an attempt
        with suppress(KeyboardInterrupt):
            Forgetting(RunDir(run), sources, home).forget()
        attempts += 1
        assert attempts < 60
    assert attempts > 4
    left[0] = 1000
    Forgetting(RunDir(run), sources, home).forget()
    assert holds(run, "f2@team-a") == []


def test_a_deletion_there_that_names_the_run_takes_it_out_of_the_run(home: Store, team: Store, tmp_path: Path) -> None:
    goats(team)
    run = tmp_path / "run"
    taken(home, run, "team-a")
    with step_folder(run / "round_001" / "assemble", "key", {}) as assembled:
        rows = read_records(run / "round_001" / "snapshot" / "pairs.parquet", PreferencePair)
        write_records(assembled / "training_data.parquet", rows)
    team.add_artifact(Artifact(id="of-another-run", kind="policy", path="elsewhere/round_001/update/policy", round=1))
    report = delete_user(team, "olga", [run], rewrite_report=lambda run: None)
    assert report.models == []  # the source's own models learned nothing of it
    assert "round_001/snapshot/pairs.parquet" in report.runs[str(run)]
    assert holds(run, SECRET) == holds(run, "f2@team-a") == []
    assert {p.feedback_ids for p in read_records(run / "round_001/snapshot/pairs.parquet", PreferencePair)} == {
        ("f1",), ("f5@team-a",),
    }  # fmt: skip


def test_a_source_that_is_not_there_stops_the_run_and_names_those_that_are(
    home: Store, team: Store, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="has no project taem-a; did you mean `team-a`"):
        taken(home, tmp_path / "run", "taem-a")
    with pytest.raises(UserError, match="default is the run's own project"):
        sources_of(home.database.location.address, ["default"])
    with pytest.raises(UserError, match="two of the sources are called team-a"):
        sources_of(home.database.location.address, ["team-a", "Team-A"])


def test_a_source_is_only_read_and_not_brought_up_to_date(url: str, home: Store, team: Store, tmp_path: Path) -> None:
    says(team, prompt("t", "What do goats eat?"), "f2", texts=("They eat hay.", "They eat tins."))
    with team.transaction() as transaction:
        transaction.connection.exec_driver_sql("UPDATE rlhf_loop_version SET version_num = '0005'")
    with pytest.raises(UserError, match=r"another version \(schema 0005\), and is only read here"):
        taken(home, tmp_path / "run", "team-a")
    with team.transaction() as transaction:
        transaction.connection.exec_driver_sql(f"UPDATE rlhf_loop_version SET version_num = '{SCHEMA}'")
    with Store.open_to_read(in_project(url, "team-a")) as there:
        assert [record.id for record in there.feedback()] == ["f2"]
        with pytest.raises(AssertionError):
            there.add_prompts([prompt("new")])
        with pytest.raises(UserError), there.database.read() as connection:
            connection.exec_driver_sql("DELETE FROM feedback")
    assert [record.id for record in team.feedback()] == ["f2"]


def test_another_store_is_a_source_too(home: Store, tmp_path: Path) -> None:
    other = tmp_path / "of others" / "their.db"
    with Store.open(f"{other}?project=x") as store:
        says(store, prompt("t", "What do goats eat?"), "f2", texts=("They eat hay.", "They eat tins."))
    folder = taken(home, tmp_path / "run", f"{other}?project=x")
    assert read_json(folder / "validation.json")["borrowed"] == {"their.db-x": {"taken": 1}}
    found = [pair.feedback_ids for pair in read_records(folder / "pairs.parquet", PreferencePair)]
    assert ("f2@their.db-x",) in found
    assert any("borrowed      from their.db-x: taken 1" in line for line in lines(_stats_of(home, tmp_path / "run")))


def _stats_of(store: Store, run: Path) -> dict[str, Any]:
    from rlhf_loop.feedback.quality.stats import stats

    return {**stats(store), "borrowed": borrowed_in(RunDir(run))}


def test_recipes_name_projects_files_and_urls(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    text = SMOKE.read_text().replace("../reward_models", str(SMOKE.parents[1] / "reward_models"))
    text = text.replace("data/smoke", str(SMOKE.parent / "data" / "smoke"))
    text = text.replace(
        "  questions_per_round: 8", "  from: [team-a, other.db, 'postgresql://h/db']\n  questions_per_round: 8"
    )
    file.write_text(f"store: store.db\nproject: team-b\n{text}")
    found = Recipe.load(file)
    assert found.feedback.borrows == ["team-a", str(tmp_path / "other.db"), "postgresql://h/db"]
    assert parse(found.model_dump(mode="json")).feedback.borrows == found.feedback.borrows
    assert "from" not in Recipe.load(SMOKE).model_dump(mode="json")["feedback"]
    for wrong, why in (
        (["project=team-a"], "feedback.from: team-a is the run's own project"),
        (["store=null", "project=null"], "feedback.from: a name is that of a project"),
        (["feedback.from=[pg_x]"], "PostgreSQL has a schema"),
        (["feedback.form=[a]"], "did you mean `from`"),
    ):
        with pytest.raises(UserError, match=why):
            Recipe.load(file, wrong)


def test_a_whole_run_that_borrows_notes_it_in_its_models_and_forgets_between_two_calls(tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    with Store.open(f"{store}?project=team-a") as team:
        goats(team)
    found = Recipe.load(SMOKE, [f"store={store}", "feedback.from=[team-a]", "rounds=1"])
    loop = Loop(found, tmp_path / "run")
    loop.run(1)
    with Store.open(store) as home:
        policy = loop.promoted_id(home)
        learned = home.artifacts(kind="reward_model")[0].trained_on
        assert {"f2@team-a", "f5@team-a"} <= set(learned)
        model = home.artifacts(kind="reward_model")[0].id
        assert "f2@team-a" in lineage(home, model)["made_by"]["feedback"]
        assert home.feedback(ids=["f2@team-a"]) == []
    assert "Borrowed from other projects" in (tmp_path / "run" / "report.html").read_text()
    with Store.open(f"{store}?project=team-a") as team:
        delete_user(team, "olga", [], rewrite_report=lambda run: None)
    (tmp_path / "run" / "round_001" / "manifest.json").unlink()  # as if the deletion had come within the round
    loop.run(1)
    assert holds(tmp_path / "run", SECRET) == []
    assert (tmp_path / "run" / "report.html").exists()
    with Store.open(store) as home:
        assert loop.promoted_id(home) == policy  # nothing is made again
        assert "f2@team-a" in home.artifacts(ids=[model])[0].trained_on


def test_a_source_that_was_misspelt_can_be_put_right(tmp_path: Path) -> None:
    store, run = f"store={tmp_path / 'store.db'}", RunDir(tmp_path / "run")
    with Store.open(in_project(f"sqlite:///{tmp_path / 'store.db'}", "team-b")):
        pass
    with pytest.raises(UserError, match="tema-b"):
        Loop(Recipe.load(SMOKE, [store, "feedback.from=[tema-b]"]), run_dir=run.path).run(rounds=0)
    right = Recipe.load(SMOKE, [store, "feedback.from=[team-b]"])
    assert keep_recipe(right, run).feedback.borrows == ["team-b"]
    (run.path / "round_000").mkdir()  # from here on the run has learned from it
    with pytest.raises(RecipeChanged, match=r"feedback\.from: "):
        keep_recipe(Recipe.load(SMOKE, [store, "feedback.from=[team-c]"]), run)
