"""A run that was pushed and fetched is the run it was; a copy that was cut short, damaged or made up is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import fsspec
import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from samples.runs import outputs, store_content
from typer.testing import CliRunner

from rlhf_loop import Loop, Recipe, copies
from rlhf_loop.cli import app
from rlhf_loop.cli.shared import shortest
from rlhf_loop.copies import fetch, places, push, pushed_to, turns
from rlhf_loop.copies.index import INDEX
from rlhf_loop.copies.places import FileSystem, shown
from rlhf_loop.errors import UserError
from rlhf_loop.feedback.privacy.deletion_files import redact_run
from rlhf_loop.feedback.privacy.deletion_rows import Deletion
from rlhf_loop.files import private
from rlhf_loop.kept_recipe import check_recipe, read_kept
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Completion
from rlhf_loop.report import write_report
from rlhf_loop.run_dir import RunDir
from rlhf_loop.settings import write_yaml

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
SHORT = ["generation.max_new_tokens=8", "update.trainer.max_steps=1"]


def go_on(run: Path, rounds: int) -> None:
    Loop(Recipe.load(SMOKE, SHORT), run_dir=run).run(rounds=rounds)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    run = tmp_path_factory.mktemp("made") / "smoke"
    go_on(run, 1)
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "here" / "smoke"))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were put and got, in order."""
    names: list[str] = []
    put, get = FileSystem.put, FileSystem.get

    def putting(self: FileSystem, files: Mapping[str, Path], index: bytes) -> None:
        put(self, files, index)
        names.extend(files)

    def getting(self: FileSystem, name: str, path: Path, size: int) -> None:
        get(self, name, path, size)
        names.append(name)

    monkeypatch.setattr(FileSystem, "put", putting)
    monkeypatch.setattr(FileSystem, "get", getting)
    return names


def index_of(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / INDEX).read_text())
    return found


def test_a_fetched_run_is_the_run_and_goes_on_as_it_would(run: Path, tmp_path: Path) -> None:
    place, there = tmp_path / "bucket" / "smoke", tmp_path / "there"
    assert push(run, str(place)).rounds == [0, 1]
    assert fetch(str(place), there).rounds == [0, 1]
    assert outputs(there) == outputs(run)
    assert store_content(there) == store_content(run)
    files = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    assert {path.relative_to(there) for path in there.rglob("*") if path.is_file()} == files - {Path("pushed.json")}
    assert all(path.stat().st_mode & 0o077 == 0 for path in there.rglob("*.db"))

    go_on(there, 2)
    go_on(run, 2)
    assert outputs(there) == outputs(run)
    assert store_content(there) == store_content(run)


def test_a_store_that_is_not_in_the_run_stays_where_it_is_and_is_named(tmp_path: Path, model_cache: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    Loop(Recipe.load(SMOKE, [*SHORT, f"store={tmp_path}/team.db", "project=a"]), run_dir=elsewhere).run(rounds=0)
    assert push(elsewhere, str(tmp_path / "bucket")).store == f"{tmp_path}/team.db?project=a"
    assert not list((tmp_path / "bucket").glob("*.db"))


def test_people_answer_in_a_copy_and_the_next_one_goes_on(tmp_path: Path, model_cache: Path) -> None:
    recipe, place = Recipe.load(SMOKE, [*SHORT, "feedback.annotator=null"]), str(tmp_path / "bucket")
    waits = Loop(recipe, run_dir=tmp_path / "first").run(rounds=1)
    assert (waits.waiting_for_labels, waits.complete_rounds) == (8, 0)
    push(tmp_path / "first", place)
    fetch(place, tmp_path / "answers")
    questions, runner = tmp_path / "questions.jsonl", CliRunner()
    words = ["--store", str(tmp_path / "answers")]
    runner.invoke(app, ["feedback", "export", str(questions), "--format", "questions", *words])
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    questions.write_text("".join(json.dumps({**row, "winner": "ab"[n % 2]}) + "\n" for n, row in enumerate(rows)))
    assert runner.invoke(app, ["feedback", "import", str(questions), *words]).exit_code == 0
    assert push(tmp_path / "answers", place).files == 1, "the store"
    fetch(place, tmp_path / "second")
    goes_on = Loop(recipe, run_dir=tmp_path / "second").run(rounds=1)
    assert (goes_on.waiting_for_labels, goes_on.complete_rounds) == (0, 1)


def test_only_what_is_new_is_pushed(run: Path, tmp_path: Path, counted: list[str]) -> None:
    place = f"memory://{tmp_path.name}"
    first = push(run, place)
    assert first.files == len(counted) == len(set(counted))
    again = push(run, place)
    assert (again.files, again.bytes, again.rounds) == (0, 0, [0, 1])
    go_on(run, 2)
    counted.clear()
    assert push(run, place).rounds == [0, 1, 2]
    top = {"feedback.db", "report.html", "places.json", "promotions.json"}
    assert {name.split("/")[0] for name in counted} == {"round_002", *top}
    fetch(place, tmp_path / "there")
    assert outputs(tmp_path / "there") == outputs(run)
    assert pushed_to(run) == [place]


def test_a_push_that_was_cut_short_goes_on_and_holds_no_half_round(
    run: Path, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "_BATCH_FILES", 3)
    place, put = tmp_path / "bucket", FileSystem.put

    def dying(self: FileSystem, files: Mapping[str, Path], index: bytes) -> None:
        if any(name == "round_001/manifest.json" for name in files):
            raise UserError("the network is gone")
        put(self, files, index)

    monkeypatch.setattr(FileSystem, "put", dying)
    with pytest.raises(UserError, match="network is gone"):
        push(run, str(place))
    assert set(index_of(place)["rounds"]) == {"0"}
    assert fetch(str(place), tmp_path / "half").rounds == [0]
    assert RunDir(tmp_path / "half").rounds() == [0]
    monkeypatch.setattr(FileSystem, "put", put)
    sent = [name for name in counted if (place / name).exists() and name in index_of(place)["files"]]
    counted.clear()
    assert push(run, str(place)).rounds == [0, 1]
    assert not set(counted) & set(sent)
    fetch(str(place), tmp_path / "there")
    assert outputs(tmp_path / "there") == outputs(run)


def test_a_fetch_that_was_cut_short_is_no_run_and_goes_on(
    run: Path, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, there, get = tmp_path / "bucket", tmp_path / "there", FileSystem.get
    push(run, str(place))

    def dying(self: FileSystem, name: str, path: Path, size: int) -> None:
        if len(counted) == 10:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        get(self, name, path, size)

    counted.clear()
    monkeypatch.setattr(FileSystem, "get", dying)
    with pytest.raises(KeyboardInterrupt):
        fetch(str(place), there)
    assert not there.exists()
    monkeypatch.setattr(FileSystem, "get", get)
    made = fetch(str(place), there)
    assert len(counted) == len(set(counted)) == made.files + 10 == len(index_of(place)["files"])
    assert outputs(there) == outputs(run)
    assert not list(tmp_path.glob("there.*"))
    with pytest.raises(UserError, match="there already"):
        fetch(str(place), there)


def test_damage_is_told_on_both_sides(run: Path, tmp_path: Path) -> None:
    place = tmp_path / "bucket"
    weights = run / "round_001/update/policy/adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"?")
    with pytest.raises(UserError, match=r"adapter_model.safetensors is damaged.*delete"):
        push(run, str(place))
    weights.write_bytes(whole)
    push(run, str(place))
    (place / "round_001/update/policy/adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(
        UserError, match=r"bucket/round_001/update/policy/adapter_model.safetensors is not what was pushed; delete"
    ):
        fetch(str(place), tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_what_a_deletion_took_from_a_run_leaves_its_copies(run: Path, tmp_path: Path) -> None:
    place = tmp_path / "bucket"
    push(run, str(place))
    answers: list[Completion] = read_records(run / "round_000/generate/completions.parquet", Completion)
    gone = answers[0]
    held = [path for path in place.rglob("*.parquet") if gone.id.encode() in path.read_bytes()]
    assert held
    nothing: set[str] = set()
    redact_run(
        RunDir(run),
        Deletion(
            prompts=nothing,
            completions={gone.id},
            feedback=nothing,
            texts={gone.text},
            comments=nothing,
            annotators=nothing,
        ),
        "user-1",
    )
    told = CliRunner().invoke(app, ["user", "delete", "nobody", "--store", str(run)])
    assert f"`rlhf-loop push {shortest(run)} {place}` takes it out of there too" in told.stdout
    assert push(run, str(place)).rounds == [0, 1]
    assert not [path for path in place.rglob("*.parquet") if gone.id.encode() in path.read_bytes()]
    fetch(str(place), tmp_path / "there")
    assert outputs(tmp_path / "there") == outputs(run)


def test_files_that_a_run_no_longer_has_leave_its_copies(run: Path, tmp_path: Path) -> None:
    place = tmp_path / "bucket"
    push(run, str(place))
    (run / "report.html").unlink()
    push(run, str(place))
    assert not (place / "report.html").exists()
    assert "report.html" not in index_of(place)["files"]


def test_a_place_with_another_run_is_left_alone(run: Path, tmp_path: Path) -> None:
    place = tmp_path / "bucket"
    push(run, str(place))
    before = (place / INDEX).read_bytes()
    other = tmp_path / "other"
    Loop(Recipe.load(SMOKE, [*SHORT, "seed=1"]), run_dir=other).run(rounds=0)
    with pytest.raises(UserError, match=r"holds round 0 of a run called smoke, made from something else"):
        push(other, str(place))
    shutil.rmtree(run / "round_001")
    with pytest.raises(UserError, match=r"holds round 1 of a run called smoke, which is not complete here"):
        push(run, str(place))
    assert (place / INDEX).read_bytes() == before


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_pushed_over_what_is_no_copy(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))  # a run as it is, which has no index
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "recipe.yaml").write_text("mine")
    for folder, there in ((other, r"[\w.]+"), (mine, "recipe.yaml")):
        before = files_in(folder)
        with pytest.raises(UserError, match=f"{folder.name} is no copy of a run, and has {there}: nothing was changed"):
            push(run, str(folder))
        assert files_in(folder) == before
    before = files_in(run)
    for place in (str(run), str(run / "copy"), f"file://{run}/round_000"):
        with pytest.raises(UserError, match=r"lies in the run .* itself"):
            push(run, place)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="names no place"):
        push(run, "")
    assert files_in(run) == before
    assert not pushed_to(run)
    (mine / "recipe.yaml").rename(mine / "notes.txt")  # what no copy is called stays as it is
    push(run, "mine")
    assert (mine / "notes.txt").read_text() == "mine"
    assert pushed_to(run) == [str(mine)]  # wherever one asks from


def test_a_push_that_died_in_its_first_file_goes_on(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, system = tmp_path / "bucket", fsspec.implementations.local.LocalFileSystem

    def dying(self: Any, path: str, *_: Any, **__: Any) -> None:
        (place / "round_000").mkdir(parents=True, exist_ok=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(system, "put_file", dying)
        with pytest.raises(KeyboardInterrupt):
            push(run, str(place))
    with pytest.raises(UserError, match="holds no whole round of a run"):
        fetch(str(place), tmp_path / "there")
    assert push(run, str(place)).rounds == [0, 1]


def test_a_run_is_pushed_once_at_a_time(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, put = [], FileSystem.put

    def meanwhile(self: FileSystem, files: Mapping[str, Path], index: bytes) -> None:
        if files and not told:
            with pytest.raises(UserError, match=r"the pushing of .* is in use by process") as refused:
                push(run, str(tmp_path / "bucket"))
            told.append(refused)
        put(self, files, index)

    monkeypatch.setattr(FileSystem, "put", meanwhile)
    assert push(run, str(tmp_path / "bucket")).rounds == [0, 1]
    assert told
    assert not (run / "push.lock").exists()


@pytest.fixture
def other(run: Path, tmp_path: Path) -> Path:
    """A copy of the run that went on by itself."""
    return Path(shutil.copytree(run, tmp_path / "other"))


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_two_copies_of_a_run_are_pushed_to_one_place_one_after_the_other(
    run: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr(turns, "HEARTBEAT", 0.02)
    place, put, refused = f"{scheme}{tmp_path}/bucket", FileSystem.put, []

    def meanwhile(self: FileSystem, files: Mapping[str, Path], index: bytes) -> None:
        if files and not refused:
            with pytest.raises(UserError, match=r"(is in use|is being pushed to) by process \d+ on ") as told:
                push(other, place)
            refused.append(told)
        put(self, files, index)

    monkeypatch.setattr(FileSystem, "put", meanwhile)
    assert push(run, place).rounds == [0, 1]
    assert refused
    assert push(other, place).files == 0
    assert not fsspec.core.url_to_fs(place)[0].exists(f"{tmp_path}/bucket/{turns.NAME}")


def test_the_mark_of_a_push_that_is_gone_is_taken_over_and_that_one_stops(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(turns, "LEASE", 0.1)
    place, system, put = f"memory://{tmp_path}/bucket", fsspec.filesystem("memory"), FileSystem.put
    mark = f"{tmp_path}/bucket/{turns.NAME}"
    system.pipe_file(mark, b'{"by": "process 7 on n1", "token": "x", "beat": 3}')

    def taken_over(self: FileSystem, files: Mapping[str, Path], index: bytes) -> None:
        if any(name == "round_001/manifest.json" for name in files):
            system.pipe_file(mark, b'{"by": "process 8 on n2", "token": "y", "beat": 0}')
        put(self, files, index)

    monkeypatch.setattr(FileSystem, "put", taken_over)
    monkeypatch.setattr(copies, "_BATCH_FILES", 3)
    with pytest.raises(UserError, match="was taken over by a push of process 8 on n2"):
        push(run, place)
    assert "is held by a push of process 7 on n1; waiting" in capsys.readouterr().err
    assert fetch(place, tmp_path / "half").rounds == [0]
    monkeypatch.setattr(FileSystem, "put", put)
    assert push(run, place).rounds == [0, 1]


def test_an_index_that_announces_too_much_is_refused_before_and_a_file_that_is_too_large_is_not_taken_whole(
    run: Path, tmp_path: Path
) -> None:
    place, name = tmp_path / "bucket", "round_001/update/policy/adapter_model.safetensors"
    push(run, str(place))
    index = index_of(place)
    announced = index["files"][name]["bytes"]
    index["files"][name]["bytes"] = 2**60
    (place / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"holds 1,073,741,824\.0 GiB that are not here yet, .* GiB free: free some"):
        fetch(str(place), tmp_path / "there")
    index["files"][name]["bytes"] = announced
    (place / INDEX).write_text(json.dumps(index))
    with (place / name).open("ab") as file:
        file.truncate(2**30)
    with pytest.raises(
        UserError, match=r"adapter_model.safetensors is larger than what was pushed, and was not fetched"
    ):
        fetch(str(place), tmp_path / "there")
    held = tmp_path / "there.partial" / f"{name}.partial"
    assert held.stat().st_size <= announced
    with (place / INDEX).open("ab") as file:
        file.truncate(places.MOST + 1)
    with pytest.raises(UserError, match=f"{INDEX} is larger"):
        fetch(str(place), tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "name",
    [
        "../out",
        "/etc/out",
        "round_000/../../out",
        "round_000/a\\b",
        "round_000/a\nb",
        "round_000/a\x9bb",
        "out",
        "round_000/./x",
        "C:/x",
    ],
)
def test_an_index_leads_nowhere_out_of_the_run(run: Path, tmp_path: Path, name: str) -> None:
    place = tmp_path / "bucket"
    push(run, str(place))
    index = index_of(place)
    index["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    (place / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"rlhf_loop_run.json is not readable here .*is no file of a run"):
        fetch(str(place), tmp_path / "there")


def test_two_that_wait_for_a_push_that_is_gone_may_take_its_mark_away_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LEASE", 0.1)
    system, mark = fsspec.filesystem("memory"), f"{tmp_path}/bucket/{turns.NAME}"
    system.pipe_file(mark, b'{"by": "process 7 on n1"}')
    remove = system.rm_file

    def late(path: str) -> None:
        remove(path)  # by the other one
        remove(path)

    monkeypatch.setattr(system, "rm_file", late)
    with turns.Turn(system, mark, "the place") as turn:
        turn.check()
        monkeypatch.setattr(system, "rm_file", remove)


def test_what_a_place_says_moves_no_terminal(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "bucket"
    push(run, str(place))
    index = index_of(place)
    (place / INDEX).write_text(json.dumps({**index, "name": "a\x1b[2Jb\n", "store": "s\x9b1mé", "rounds": {"0": "x"}}))
    app(["fetch", str(place), str(tmp_path / "there")], standalone_mode=False)
    assert r"its feedback is not among them: it is in s\x9b1mé" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"holds round 0 of a run called a\\x1b\[2Jb\\n, made from"):
        push(run, str(place))
    monkeypatch.setattr(turns, "LEASE", 0.1)
    system, mark = fsspec.filesystem("memory"), f"{tmp_path}/bucket/{turns.NAME}"
    system.pipe_file(mark, json.dumps({"by": "n\x1b[1m"}).encode())
    with turns.Turn(system, mark, "the place"):
        assert r"is held by a push of n\x1b[1m; waiting" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "files|Invalid JSON"),
        ('{"format": 2, "name": "x"}', "format"),
        ('{"name": "x"}', "holds no whole"),
        *(
            (json.dumps({"name": "x", "files": {"recipe.yaml": {"sha256": "0" * 64, "bytes": size}}}), "bytes: Input")
            for size in (-1, 2**63, 10**400)
        ),
    ],
)
def test_an_index_that_is_none_is_told(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / INDEX).write_text(content)
    with pytest.raises(UserError, match=said):
        fetch(str(tmp_path / "bucket"), tmp_path / "there")


def test_what_cannot_be_reached_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Protocol not known: nosuch\. Give a folder, hf://"):
        push(run, "nosuch://bucket/run")
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="is a file, or lies below one"):
            push(run, str(place))
        with pytest.raises(UserError, match="is a file, or lies below one"):
            fetch(str(place), tmp_path / "there")
    with pytest.raises(UserError, match="names no repository"):
        push(run, "hf://only-a-name")
    with pytest.raises(UserError, match="holds no whole round of a run"):
        fetch(str(tmp_path / "nothing"), tmp_path / "there")
    assert not list(tmp_path.glob("there*"))
    (run / "round_000/manifest.json").unlink()
    (run / "round_001/manifest.json").unlink()
    with pytest.raises(UserError, match=r"no round of .* is complete yet"):
        push(run, str(tmp_path / "bucket"))


FORBIDDEN = httpx.Response(403, request=httpx.Request("POST", "https://hub"))


@pytest.mark.parametrize("refusal", [PermissionError("Access Denied"), HfHubHTTPError("403", response=FORBIDDEN)])
def test_who_may_not_push_is_told_so_and_not_to_type_it_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    def refuse(self: FileSystem, name: str) -> None:
        raise refusal

    monkeypatch.setattr(FileSystem, "_make_folder", refuse)
    with pytest.raises(UserError) as told:
        push(run, f"memory://{tmp_path.name}")
    assert str(told.value) == (
        f"memory://{tmp_path.name}: {type(refusal).__name__}: {refusal}. You may not do this there: log in, or have "
        "its owner allow it, then type the same command again"
    )


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("ftp://ann:secret@host/runs/mine?token=secret", "ftp://host/runs/mine"),
        ("ftp://ann:#secret?x@host/runs", "ftp://host/runs"),
        ("simplecache::ftp://ann:secret@host/runs", "simplecache::ftp://host/runs"),
        ("s3://bucket/runs@home", "s3://bucket/runs@home"),
        ("runs?/mine", "runs?/mine"),
    ],
)
def test_a_place_is_told_without_its_secrets(url: str, told: str) -> None:
    assert shown(url) == told


def test_what_a_file_system_says_is_told_without_secrets(run: Path) -> None:
    with pytest.raises(UserError, match="nowhere://host/runs") as told:
        push(run, "nowhere://ann:secret@host/runs")
    assert "secret" not in str(told.value)


def test_a_run_may_write_its_files_while_it_is_pushed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = FileSystem.put

    def meanwhile(self: FileSystem, files: Mapping[str, Path], index: bytes) -> None:
        for name in ("report.html", "promotions.json", "places.json"):
            (run / name).write_text("of the next round")
        put(self, files, index)

    monkeypatch.setattr(copies, "_BATCH_FILES", 3)
    monkeypatch.setattr(FileSystem, "put", meanwhile)
    report = (run / "report.html").read_bytes()
    assert push(run, str(tmp_path / "bucket")).rounds == [0, 1]
    assert (tmp_path / "bucket/report.html").read_bytes() == report


def test_a_copy_promotes_no_policy_of_a_round_that_it_does_not_hold(run: Path, tmp_path: Path) -> None:
    kept = RunDir(run).promotions()
    assert kept
    RunDir(run).keep_promotions([*kept, ("policy-002-0123abcd", 1.0)])  # its round is still being made
    push(run, str(tmp_path / "bucket"))
    fetch(str(tmp_path / "bucket"), tmp_path / "there")
    assert RunDir(tmp_path / "there").promotions() == kept


def test_no_secret_is_in_a_copy_nor_in_a_report_and_the_copy_goes_on(run: Path, tmp_path: Path) -> None:
    kept = read_kept(run)[0]
    told = {"webhooks": ["https://hooks.example.org/secret"], "command": "notify --key secret"}
    borrowed = ["postgresql://ann@home:secret@host/other?sslpassword=secret"]
    recipe = {
        **kept,
        "store": "postgresql://ann:secret@host/db?password=secret",
        "watch": {**kept["watch"], **told},
        "feedback": {**kept["feedback"], "from": borrowed},
    }
    (run / "recipe.yaml").write_text(write_yaml(recipe))
    told = run / "round_001/update.arguments.json"  # as an earlier version wrote it
    told.write_text(json.dumps({**json.loads(told.read_text()), "recipe": recipe}))
    write_report(RunDir(run))
    assert push(run, str(tmp_path / "bucket")).store == "postgresql+psycopg://ann:***@host/db"
    copied = [path for path in (tmp_path / "bucket").rglob("*") if path.is_file()]
    assert [path for path in copied if b"secret" in path.read_bytes()] == []
    for name in ("recipe.yaml", "round_001/update.arguments.json"):
        assert "postgresql://ann@host/db" in (tmp_path / "bucket" / name).read_text()
        assert "postgresql://ann@home@host/other" in (tmp_path / "bucket" / name).read_text()
    fetch(str(tmp_path / "bucket"), tmp_path / "there")
    check_recipe(Recipe.model_validate(recipe), RunDir(tmp_path / "there"))  # as the one who has the secrets types it


def test_two_fetches_into_one_folder_leave_the_first_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(run, str(tmp_path / "bucket"))
    there, make = tmp_path / "there", private.make_folder

    def first_ends(folder: Path) -> None:
        make(folder)
        monkeypatch.setattr(private, "make_folder", make)
        fetch(str(tmp_path / "bucket"), there)
        (there / "mine").touch()

    monkeypatch.setattr(private, "make_folder", first_ends)
    with pytest.raises(UserError, match="is there already, and a fetch changes no run"):
        fetch(str(tmp_path / "bucket"), there)
    assert (there / "mine").exists()


class Hub:
    """Stands for `huggingface_hub.HfApi`: repositories in memory, every commit kept."""

    repositories: ClassVar[dict[str, dict[str, bytes]]]
    private: ClassVar[dict[str, bool]]
    commits: ClassVar[list[list[str]]]

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.repositories.setdefault(f"{repo_type}:{repo_id}", {})
        self.private.setdefault(f"{repo_type}:{repo_id}", private)

    def repo_info(self, repo_id: str, *, repo_type: str) -> Any:
        if f"{repo_type}:{repo_id}" not in self.repositories:
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)
        return SimpleNamespace(private=self.private[f"{repo_type}:{repo_id}"], sha=str(len(self.commits)))

    def create_commit(
        self, repo_id: str, operations: Any, *, commit_message: str, repo_type: str, parent_commit: str
    ) -> Any:
        if parent_commit != str(len(self.commits)):
            asked = httpx.Request("POST", "https://hub")
            raise HfHubHTTPError("A commit has happened since", response=httpx.Response(412, request=asked))
        files = self.repositories[f"{repo_type}:{repo_id}"]
        self.commits.append([operation.path_in_repo for operation in operations])
        for operation in operations:
            if isinstance(operation, huggingface_hub.CommitOperationDelete):
                del files[operation.path_in_repo]
            else:
                given = operation.path_or_fileobj
                files[operation.path_in_repo] = given if isinstance(given, bytes) else Path(given).read_bytes()
        return SimpleNamespace(oid=str(len(self.commits)))

    def list_repo_tree(self, repo_id: str, *, recursive: bool, repo_type: str) -> Iterator[Any]:
        if f"{repo_type}:{repo_id}" not in self.repositories:
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)
        for name in self.repositories[f"{repo_type}:{repo_id}"]:
            yield type("File", (), {"path": name})

    def hf_hub_download(
        self, repo_id: str, filename: str, *, repo_type: str, local_dir: str, dry_run: bool = False
    ) -> Any:
        if f"{repo_type}:{repo_id}" not in self.repositories:
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)
        files = self.repositories[f"{repo_type}:{repo_id}"]
        if filename not in files:
            raise EntryNotFoundError.__new__(EntryNotFoundError)
        if dry_run:
            return SimpleNamespace(file_size=len(files[filename]))
        path = Path(local_dir) / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[filename])
        return str(path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    fresh = type("Fresh", (Hub,), {"repositories": {}, "private": {}, "commits": []})
    monkeypatch.setattr(huggingface_hub, "HfApi", fresh)
    return fresh


def test_the_hub_takes_a_run_in_few_commits_and_keeps_it_private(run: Path, tmp_path: Path, hub: type[Hub]) -> None:
    made = push(run, "hf://ann/smoke/runs/first")
    assert hub.private == {"model:ann/smoke": True}
    assert len(hub.commits) == -(-made.files // 50)
    assert "runs/first/round_001/update/policy/adapter_config.json" in hub.repositories["model:ann/smoke"]
    (run / "report.html").unlink()
    push(run, "hf://ann/smoke/runs/first")
    assert "runs/first/report.html" not in hub.repositories["model:ann/smoke"]
    fetch("hf://models/ann/smoke/runs/first", tmp_path / "there")
    assert outputs(tmp_path / "there") == outputs(run)
    files = {path.relative_to(run) for path in run.rglob("*") if path.name != "pushed.json"}
    assert {path.relative_to(tmp_path / "there") for path in (tmp_path / "there").rglob("*")} == files  # nothing beside
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "there").rglob("*") if path.is_file())


def test_a_repository_that_everybody_reads_is_refused_unless_it_is_meant(run: Path, hub: type[Hub]) -> None:
    hub.repositories["dataset:ann/open"], hub.private["dataset:ann/open"] = {}, False
    with pytest.raises(UserError, match="can be read by everybody"):
        push(run, "hf://datasets/ann/open")
    assert hub.repositories["dataset:ann/open"] == {}
    assert push(run, "hf://datasets/ann/open", public=True).rounds == [0, 1]


def test_files_of_something_else_in_a_repository_stay(run: Path, hub: type[Hub]) -> None:
    hub.repositories["model:ann/mine"], hub.private["model:ann/mine"] = {"recipe.yaml": b"mine"}, True
    with pytest.raises(UserError, match=r"is no copy of a run, and has recipe\.yaml"):
        push(run, "hf://ann/mine")
    assert hub.repositories["model:ann/mine"] == {"recipe.yaml": b"mine"}
    assert push(run, "hf://ann/mine/copies").rounds == [0, 1]  # a folder beside it


@pytest.mark.parametrize("place", ["hf://ann/smoke", "buckets://none/runs"])
def test_a_place_that_cannot_be_read_does_not_count_as_one_where_nothing_was_pushed_yet(
    tmp_path: Path, hub: type[Hub], place: str
) -> None:
    fsspec.register_implementation("buckets", Buckets, clobber=True)
    words = ["fetch", "--if-any", place, str(tmp_path / "there")]
    with pytest.raises(UserError, match=r"there is no (such repository, or you may not read it\. Log in|none\. Make)"):
        app(words, standalone_mode=False)


@pytest.mark.parametrize(
    "place", ["hf://ann/smoke", "buckets://mine/runs/a", "buckets://mine", "buckets://partly/runs"]
)
def test_a_place_without_an_index_counts_as_one_where_nothing_was_pushed_yet(
    tmp_path: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fsspec.register_implementation("buckets", Buckets, clobber=True)
    hub.repositories["model:ann/smoke"] = {}
    app(["fetch", "--if-any", place, str(tmp_path / "there")], standalone_mode=False)
    assert "no round of a run was pushed there yet" in capsys.readouterr().out
    monkeypatch.setattr(Hub, "hf_hub_download", _offline)
    if place.startswith("hf://"):
        with pytest.raises(UserError, match="LocalEntryNotFoundError: no network"):
            fetch(place, tmp_path / "there")


def _offline(*_: object, **__: object) -> None:
    raise LocalEntryNotFoundError("no network")


class Buckets(fsspec.AbstractFileSystem):
    """An empty bucket, `mine`, and `partly`, of which one may read some folders."""

    protocol, cachable = "buckets", False

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[str]:
        if path == "partly":
            raise PermissionError("Access Denied")
        if path != "mine":
            raise FileNotFoundError(path)
        return []

    def _open(self, path: str, *_: Any, **__: Any) -> None:
        raise FileNotFoundError(path)


def test_a_push_to_the_hub_ends_where_somebody_else_commits_meanwhile(
    run: Path, other: Path, tmp_path: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    put, pushed = places.Hub.put, []

    def meanwhile(self: places.Hub, files: Mapping[str, Path], index: bytes) -> None:
        if files and not pushed:
            pushed.append(True)
            push(other, "hf://ann/smoke")
        put(self, files, index)

    monkeypatch.setattr(places.Hub, "put", meanwhile)
    with pytest.raises(UserError, match="somebody else changed the repository meanwhile"):
        push(run, "hf://ann/smoke")
    assert fetch("hf://ann/smoke", tmp_path / "there").rounds == [0, 1]
    assert push(run, "hf://ann/smoke").rounds == [0, 1]
    hub.repositories["model:ann/smoke"]["recipe.yaml"] += b"more"
    with pytest.raises(UserError, match=r"recipe\.yaml is larger than what was pushed"):
        fetch("hf://ann/smoke", tmp_path / "again")


def test_the_commands(run: Path, tmp_path: Path) -> None:
    runner, place = CliRunner(), f"memory://cli-{tmp_path.name}"
    first = runner.invoke(app, ["fetch", "--if-any", place, str(tmp_path / "there")])
    assert (first.exit_code, list(tmp_path.glob("there*"))) == (0, []), "a job begins"
    pushed = runner.invoke(app, ["push", str(run), place])
    assert pushed.exit_code == 0, pushed.output
    assert f"{place} holds rounds 0 to 1; copied now:" in pushed.stdout
    fetched = runner.invoke(app, ["fetch", "--if-any", place, str(tmp_path / "there")])
    assert fetched.exit_code == 0, fetched.output
    assert outputs(tmp_path / "there") == outputs(run)
    assert fsspec.filesystem("memory").exists(f"/cli-{tmp_path.name}/{INDEX}")
