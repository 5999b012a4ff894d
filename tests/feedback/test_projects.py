"""A store's projects: each is a store of its own, and nothing of one is seen or changed from another."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from samples.cli import rlhf_loop
from samples.feedback import at_revision, contents, fill, needs_postgres, postgres_database, prompt, write_lines

from rlhf_loop.errors import StoreUnavailable, UserError
from rlhf_loop.feedback.store import projects, tables, tokens
from rlhf_loop.feedback.store.database import Database
from rlhf_loop.feedback.store.location import locate, parse_url
from rlhf_loop.feedback.store.queries import insert_rows
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.feedback.store.table_rows import prompt_row
from rlhf_loop.files.paths import absolute_store
from rlhf_loop.files.store_address import in_project, project_name, sqlite_file


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=needs_postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of an empty store that may have projects."""
    if request.param == "postgres":
        yield from postgres_database()
    else:
        yield f"sqlite:///{tmp_path / 'store.db'}"


def names(url: str) -> list[str]:
    return [project.name for project in projects.listed(url)]


def test_a_project_holds_what_was_put_into_it_and_nothing_of_another(url: str) -> None:
    with Store.open(url) as first, Store.open(in_project(url, "team-a")) as second:
        fill(first)
        before = contents(first)
        assert (second.counts()["prompts"], second.promoted_id(), second.is_new) == (0, None, True)
        second.add_prompts([prompt("p", "another question under the same id")])
        _, secret = tokens.create(second, "admin", "ann")
        assert tokens.find(first, secret) is None
        assert first.pseudonym_key != second.pseudonym_key
        assert contents(first) == before
    with Store.open(in_project(url, "team-a"), create=False) as second:
        assert second.prompts()[0].messages[0]["content"] == "another question under the same id"
        assert not second.is_new
        assert tokens.find(second, secret) is not None
    listed = {project.name: (project.prompts, project.feedback, project.policies) for project in projects.listed(url)}
    assert listed == {"default": (2, 9, 2), "team-a": (1, 0, 0)}


def test_a_write_to_one_project_does_not_wait_for_one_to_another(url: str) -> None:
    with Store.open(url, busy_seconds=0.1) as first, Store.open(in_project(url, "team-a"), busy_seconds=0.1) as second:
        done = threading.Event()

        def write() -> None:
            second.add_prompts([prompt()])
            done.set()

        with first.transaction() as transaction:
            transaction.add_prompts([prompt()])
            writer = threading.Thread(target=write)
            writer.start()
            assert done.wait(10)
        writer.join()


@pytest.mark.parametrize("revision", ["0001", "0003", "0005"])
def test_a_store_of_an_older_schema_goes_on_as_its_default_project(url: str, revision: str) -> None:
    with at_revision(url, revision) as connection:
        insert_rows(connection, tables.prompts, [prompt_row(prompt())])
    assert names(url) == ["default"]
    with Store.open(in_project(url, "team-a")) as project:
        assert project.prompts() == []
    assert [(found.name, found.prompts) for found in projects.listed(url)] == [("default", 1), ("team-a", 0)]
    with Store.open(url) as store:  # brought up to date beside a project that is
        assert [found.id for found in store.prompts()] == ["p"]
    with Store.open(in_project(url, "default")) as store:
        assert [found.id for found in store.prompts()] == ["p"]


def test_a_project_of_an_older_schema_is_brought_up_to_date_alone(url: str) -> None:
    named = in_project(url, "team-a")
    with Store.open(named) as store:
        store.add_prompts([prompt()])
    database = Database(named)
    with database.write() as connection:  # as revision 0005 left it
        connection.exec_driver_sql("CREATE TABLE rounds (number INTEGER PRIMARY KEY)")
        connection.exec_driver_sql("UPDATE rlhf_loop_version SET version_num = '0005'")
    database.close()
    with Store.open(url) as store:
        assert store.prompts() == []
    with Store.open(named) as store, store.database.read() as connection:
        assert [found.id for found in store.prompts()] == ["p"]
        assert not sa.inspect(connection).has_table("rounds")


def test_what_only_reads_names_the_projects_there_are(url: str) -> None:
    for name in ("team-a", "team-b"):
        Store.open(in_project(url, name)).close()
    with pytest.raises(UserError, match=r"has no project taem-a; did you mean `team-a`\?; there are: default, team-a"):
        Store.open(in_project(url, "taem-a"), create=False)
    assert "taem-a" not in names(url)


def test_commands_make_projects_where_they_write_and_name_them_where_they_read(tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    made = rlhf_loop("token", "create", "ann", "--store", f"{store}?project=Team-A").stderr
    assert f"there was no project team-a in {store}; it is made now" in made
    assert "it is made" not in rlhf_loop("token", "create", "bob", "--store", f"{store}?project=team-a").stderr
    votes = write_lines(tmp_path / "votes.jsonl", [{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}])
    imported = rlhf_loop("feedback", "import", votes, "--store", f"sqlite:///{store}?project=team-b").stderr
    assert "there was no project team-b" in imported
    for words in (("feedback", "stats"), ("feedback", "export", tmp_path / "out.jsonl"), ("token", "list")):
        said = rlhf_loop(*words, "--store", f"{store}?project=taem-a", code=2).stderr
        assert "did you mean `team-a`?; there are: default, team-a, team-b" in said
    listed = [line.split()[:3] for line in rlhf_loop("project", "list", store).stdout.splitlines()]
    assert listed == [["team-a", "0", "prompts,"], ["team-b", "1", "prompts,"]]
    assert names(str(store)) == ["team-a", "team-b"]


@pytest.mark.parametrize("name", ["Team-A", "TEAM-A", "team-a"])
def test_names_that_differ_by_case_are_one(url: str, name: str) -> None:
    with Store.open(in_project(url, name)) as store:
        store.add_prompts([prompt()])
        assert store.name == Store.open(in_project(url, "team-a"), create=False).name
    assert [name for name in names(url) if name != "default"] == ["team-a"]


@pytest.mark.parametrize(
    "name",
    ["", "-a", "a-", "a" * 41, "a b", 'a"; DROP SCHEMA public; --', "../a", "a/b", "ä", "a.b", "a'b", "a%b", "a\n"],
)
def test_what_is_no_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no name of a project"):
        project_name(name)
    quoted = name.replace("%", "%25").replace("&", "%26").replace("\n", "%0A")
    with pytest.raises(UserError, match="is no name of a project"):
        locate(f"sqlite:///{tmp_path}/store.db?project={quoted}")
    with pytest.raises(UserError, match="is no name of a project"):
        locate(f"postgresql://nowhere/store?project={quoted}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["public", "PUBLIC", "pg_catalog", "pg_x", "information_schema"])
def test_names_of_postgres_are_reserved(name: str) -> None:
    with pytest.raises(UserError, match="PostgreSQL has a schema"):
        project_name(name)


@pytest.mark.parametrize(
    ("store", "why"),
    [
        (":memory:?project=a", "a store in memory has no projects"),
        ("sqlite://?project=a", "a store in memory has no projects"),
        ("postgresql://h/db?project=a&project=b", "stands 2 times"),
        ("postgresql://h/db?project=a&options=-csearch_path%3Db", "both say which tables"),
    ],
)
def test_a_project_that_cannot_be_meant_is_refused(store: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        locate(store)


@pytest.mark.parametrize(
    "store",
    ["store.db?projekt=a", "sqlite:///store.db?projekt=a", "sqlite:///store.db?project=b&projekt=a",
     "postgresql://ann:secret@nowhere/db?projekt=a", ":memory:?projekt=a"],
)  # fmt: skip
def test_a_misspelt_setting_of_an_address_is_refused_and_makes_no_file(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"has no setting `projekt`; did you mean `project`\?$") as told:
        Store.open(store)
    assert "secret" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_what_the_driver_of_postgres_knows_may_stand_in_an_address() -> None:
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        Store.open("postgresql://localhost:1/db?connect_timeout=2&target_session_attrs=any&project=a")


def test_a_project_of_a_file_is_a_file_beside_it_and_paths_keep_it(tmp_path: Path) -> None:
    for store in (f"{tmp_path}/store.db?project=Team-A", f"sqlite:///{tmp_path}/store.db?project=team-a"):
        assert locate(store).name == f"{tmp_path}/store.project-team-a.db"
        assert sqlite_file(store) == tmp_path / "store.db"
    assert absolute_store("store.db?project=team-a", tmp_path) == f"{tmp_path}/store.db?project=team-a"
    assert absolute_store("sqlite:///store.db?project=a", tmp_path) == f"sqlite:///{tmp_path}/store.db?project=a"
    assert locate(f"{tmp_path}/what?.db").name == f"{tmp_path}/what?.db"
    (tmp_path / "store.project-no.name.db").touch()
    (tmp_path / "store.db").touch()
    with Store.open(f"{tmp_path}/store.db?project=team-a"):
        assert names(f"{tmp_path}/store.db") == ["team-a"]  # the store itself is empty yet


def test_the_password_is_not_shown() -> None:
    assert locate("postgresql://u:secret@h/db?project=team-a").name == "postgresql+psycopg://u:***@h/db?project=team-a"


MADE_AT_ONCE = """
import sys
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.records import Prompt
name, url = sys.argv[1:]
sys.stdin.readline()
with Store.open(url) as store:
    store.add_prompts([Prompt(id=name, messages=({"role": "user", "content": name},), group=name)])
"""


def test_processes_make_the_same_project_and_others_at_the_same_moment(url: str) -> None:
    wanted = [("1", "one"), ("2", "one"), ("3", "one"), ("4", "two"), ("5", "two"), ("6", None)]
    words = [[sys.executable, "-c", MADE_AT_ONCE, id, in_project(url, project)] for id, project in wanted]
    running = [subprocess.Popen(word, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for word in words]
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 6, said
    for project, ids in (("one", ["1", "2", "3"]), ("two", ["4", "5"]), ("default", ["6"])):
        with Store.open(in_project(url, project), create=False) as store:
            assert sorted(found.id for found in store.prompts()) == ids


@needs_postgres
def test_a_schema_of_something_else_is_left_alone() -> None:
    for url in postgres_database():
        server = sa.create_engine(parse_url(url), isolation_level="AUTOCOMMIT")
        with server.connect() as connection:
            connection.exec_driver_sql("CREATE SCHEMA project_a")
            connection.exec_driver_sql("CREATE TABLE project_a.prompts (mine INTEGER)")
        with pytest.raises(UserError, match="holds tables of something else"):
            Store.open(in_project(url, "a"))
        assert names(url) == []
        with server.connect() as connection:
            there = connection.scalars(sa.text("SELECT tablename FROM pg_tables WHERE schemaname = 'project_a'")).all()
        assert there == ["prompts"]
        server.dispose()


@needs_postgres
def test_opening_asks_as_much_of_a_database_with_many_projects() -> None:
    asked: list[int] = []

    def note(*given: object) -> None:
        asked[-1] += 1

    for url in postgres_database():
        for number in range(12):
            Store.open(in_project(url, f"p{number}")).close()
            asked.append(0)
            sa.event.listen(sa.Engine, "before_cursor_execute", note)
            Store.open(in_project(url, "p0"), create=False).close()
            sa.event.remove(sa.Engine, "before_cursor_execute", note)
    assert asked[0] > 0
    assert len(set(asked)) == 1
