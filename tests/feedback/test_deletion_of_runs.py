"""A deletion takes a user's texts out of the files of runs; what is complete stays complete."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from samples.deletion import CRITIQUE, EDITED, REPLY, SECRET, TEXTS, delete_user, everything, talk
from samples.endpoint import running
from samples.feedback import completion, preference

import rlhf_loop.report
from rlhf_loop import Loop, Recipe
from rlhf_loop.endpoints.client import Endpoints
from rlhf_loop.endpoints.complaints import Complaint, taken_up
from rlhf_loop.endpoints.settings import EndpointSettings
from rlhf_loop.errors import UserError
from rlhf_loop.feedback.privacy import deletion
from rlhf_loop.feedback.privacy.deletion import remember, user_key
from rlhf_loop.feedback.privacy.deletion_files import is_redacted, trained_in
from rlhf_loop.feedback.store import tables
from rlhf_loop.feedback.store.database import Database
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import write_json
from rlhf_loop.files.damage import hash_file
from rlhf_loop.files.step_folders import read_manifest, step_folder
from rlhf_loop.record_files import read_records, write_records
from rlhf_loop.records import (
    Annotator,
    Artifact,
    Check,
    Completion,
    Critique,
    CritiquedCompletion,
    Edit,
    Feedback,
    Preference,
    PreferencePair,
    Prompt,
    Span,
)
from rlhf_loop.reward_spec import JudgeSpec
from rlhf_loop.rewards import evaluate_reward
from rlhf_loop.rewards.judge import JudgeReward
from rlhf_loop.rows.checks import checks_of
from rlhf_loop.rows.critiqued import ALL_KINDS, Limits, critiqued_completions
from rlhf_loop.rows.pairs import pairs_from_feedback
from rlhf_loop.run_dir import RunDir

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"


def made_run(store: Store, path: Path) -> RunDir:
    """A round with a snapshot and training data, complete, and a step that was interrupted."""
    run = RunDir(path)
    write_json(path / "recipe.yaml", {"name": "x", "policy": {}, "update": {}, "feedback": {}})
    pair: dict[str, Any] = {
        "id": "pair-1", "prompt_id": "other-prompt", "prompt": '[{"role": "user", "content": "Why?"}]',
        "chosen_id": "other-answer-1", "rejected_id": "other-answer-2", "origin": "human", "margin": 0.5,
        "feedback_ids": ("feedback-elsewhere", "feedback-others"), 
        "critiques": (CRITIQUE, f'{CRITIQUE}\n"Why?": odd', f'"Why?": {CRITIQUE}', "too long by half"),
    }  # fmt: skip
    message = ({"role": "assistant", "content": "x"},)
    pairs = [
        PreferencePair(**{**pair, "prompt": message, "chosen": message, "rejected": message, "group": "g"}),
        PreferencePair(
            **{**pair, "id": "pair-2", "prompt": ({"role": "user", "content": SECRET},), "chosen": message,
               "rejected": message, "group": "g", "prompt_id": "private-prompt", "chosen_id": "private-answer-1",
               "rejected_id": "private-answer-2"}
        ),
    ]  # fmt: skip
    with step_folder(run.step(1, "snapshot"), "key-1", {}) as folder:
        write_records(folder / "feedback.parquet", store.feedback())
        write_records(folder / "pairs.parquet", pairs)
        write_records(folder / "prompts.parquet", store.prompts())
        write_json(
            folder / "validation.json",
            {
                "total": 6,
                "quarantined": [
                    {"id": "feedback-thumb", "kind": "thumb", "reason": f"both answers are '{REPLY[:20]}'"}
                ],
                "examples": {"vague_critique": [f"feedback-thumb: {CRITIQUE[:80]!r}", "feedback-others: 'bad'"]},
                "per_annotator": {user_key(store, "ann@example.org"): {"given": 3}, "bob": {"given": 2}},
            },
        )
    with step_folder(run.step(1, "assemble"), "key-2", {}) as folder:
        write_records(folder / "training_data.parquet", pairs)
    with step_folder(run.step(1, "generate"), "key-3", {}) as folder:
        write_records(folder / "completions.parquet", store.completions())
    with step_folder(run.step(1, "update"), "key-4", {}) as folder:
        write_json(folder / "metrics.json", {"steps": 3})
    write_records(run.round(1) / "trainer.parquet", [completion("x")])
    partial = run.round(1) / "ask.partial"
    partial.mkdir()
    write_records(partial / "answers.parquet", store.feedback())
    write_json(run.round(1) / "manifest.json", {"round": 1})
    return run


def files(run: Path) -> bytes:
    import pyarrow.parquet as pq

    tables = [repr(pq.read_table(path).to_pylist()).encode() for path in run.rglob("*.parquet")]
    return b"".join([path.read_bytes() for path in run.rglob("*") if path.is_file()] + tables)


def test_the_files_of_a_run_lose_the_texts_and_say_so(store: Store, tmp_path: Path) -> None:
    talk(store)
    run = made_run(store, tmp_path / "run")
    made = {step: read_manifest(run.step(1, step)) for step in ("snapshot", "assemble", "generate", "update")}
    report = delete_user(store, "ann@example.org", [run.path])
    content = files(run.path)
    assert not [text for text in [*TEXTS, SECRET[:20], REPLY[:20]] if text.encode() in content]
    (pair,) = read_records(run.step(1, "snapshot") / "pairs.parquet", PreferencePair)
    assert pair.feedback_ids == ("feedback-others",)
    assert pair.critiques == ("too long by half",)
    assert [f.id for f in read_records(run.step(1, "snapshot") / "feedback.parquet", Feedback)] == ["feedback-others"]
    assert [p.id for p in read_records(run.step(1, "snapshot") / "prompts.parquet", Prompt)] == ["other-prompt"]
    assert "revision-1" in [c.id for c in read_records(run.step(1, "generate") / "completions.parquet", Completion)]
    validation = json.loads((run.step(1, "snapshot") / "validation.json").read_text())
    assert validation == {
        "total": 6,
        "quarantined": [{"id": "feedback-thumb", "kind": "thumb", "reason": "deleted"}],
        "examples": {"vague_critique": ["feedback-others: 'bad'"]},
        "per_annotator": {"bob": {"given": 2}},
    }
    for step, before in made.items():
        now = read_manifest(run.step(1, step))
        assert before is not None and now is not None  # noqa: PT018
        assert now["files"] == before["files"]  # what later steps stand on
        assert now["key"] == before["key"]
        assert is_redacted(run.step(1, step))
        for name, recorded in now.get("redacted", {}).get("files", {}).items():
            assert recorded == hash_file(run.step(1, step) / name)
            assert recorded != before["files"][name]
    assert "redacted" not in (read_manifest(run.step(1, "update")) or {})
    assert json.loads((run.round(1) / "manifest.json").read_text())["state"] == "inputs redacted"
    assert run.complete_rounds() == [1]
    assert not list(run.path.rglob("*.partial"))
    taken = report.runs[str(run.path)]
    assert taken["round_001/snapshot/pairs.parquet"] == 2
    assert taken["round_001/snapshot/feedback.parquet"] == 4


def test_logs_of_jobs_lose_the_lines_that_quote_a_text_or_its_beginning(store: Store, tmp_path: Path) -> None:
    talk(store)
    run = made_run(store, tmp_path / "run")
    log = run.path / "logs" / "slurm-7" / "attempt-0" / "n1.log"
    log.parent.mkdir(parents=True)
    long = max(TEXTS, key=len)
    quoted = [f"error: prompt {long[:57] + '...'!r}, completion 'x'\n", f"  {json.dumps(long)}\n"]
    log.write_text("".join(["step 1 of 2\n", *quoted, "step 2 of 2\n"]))
    report = delete_user(store, "ann@example.org", [run.path])
    assert log.read_text() == "step 1 of 2\nstep 2 of 2\n"
    assert report.runs[str(run.path)]["logs/slurm-7/attempt-0/n1.log"] == 2


def test_critiques_to_learn_from_go_with_who_said_them_and_what_they_are_about(store: Store, tmp_path: Path) -> None:
    key = talk(store)
    run = RunDir(tmp_path / "run")
    write_json(run.path / "recipe.yaml", {"name": "x", "policy": {}, "update": {}, "feedback": {}})

    def row(id: str, of: str, feedback_id: str, critique: str, said_of: str | None = None) -> CritiquedCompletion:
        prompt_id = "private-prompt" if of.startswith("private") else "other-prompt"
        message = ({"role": "assistant", "content": f"{REPLY} 1" if of.startswith("private") else "x"},)
        return CritiquedCompletion(
            id=id, prompt_id=prompt_id, group=prompt_id, prompt=message, completion=message, completion_id=of,
            critique=critique, origin="human", annotator="x", feedback_ids=(feedback_id,), said_of=said_of,
        )  # fmt: skip

    rows = [
        row("by the user", "other-answer-1", "feedback-elsewhere", CRITIQUE),
        row("of the user", "private-answer-1", "feedback-about", "the garden, again"),
        row("moved", "other-answer-1", "feedback-about", "the garden, again", "private-answer-1"),
        row("stays", "other-answer-1", "feedback-others", "too long by half", "other-answer-2"),
    ]
    for step in ("snapshot", "assemble"):
        with step_folder(run.step(1, step), step, {}) as folder:
            write_records(folder / "critiques.parquet", rows)
    report = delete_user(store, "ann@example.org", [run.path])
    for step in ("snapshot", "assemble"):
        left = read_records(run.step(1, step) / "critiques.parquet", CritiquedCompletion)
        assert [one.id for one in left] == ["stays"]
    content = files(run.path)
    assert not [text for text in TEXTS if text.encode() in content]
    assert report.runs[str(run.path)]["round_001/assemble/critiques.parquet"] == 3
    assert [number for number, _ in trained_in([run.path], key)] == [1]  # though no other rows are there


def test_what_endpoints_said_of_a_users_texts_goes_though_it_quotes_none(store: Store, tmp_path: Path) -> None:
    talk(store)
    run = made_run(store, tmp_path / "run")
    prompts = {one.id: one for one in store.prompts()}
    answers = {one.id: one for one in store.completions()}
    mine, others = prompts["private-prompt"], prompts["other-prompt"]
    turn = [{"role": "user", "content": others.messages[0]["content"]}]
    edit = PreferencePair(
        id="edit", prompt_id=others.id, group="g", prompt=others.messages,
        chosen=({"role": "assistant", "content": EDITED},), rejected=({"role": "assistant", "content": "x"},),
        chosen_id="of the edit", rejected_id="other-answer-1", origin="edit", feedback_ids=("feedback-edit",),
    )  # fmt: skip

    def ask(url: str) -> None:
        settings = EndpointSettings(base_url=url, model="m", max_retries=0)
        with Endpoints({"judge": settings}, run.path) as endpoints:
            client = endpoints["judge"]
            reward = JudgeReward(JudgeSpec(kind="judge", endpoint="judge"), id="r", name="judge", client=client)
            scores = reward.score([mine, others], [answers["private-answer-1"], answers["other-answer-1"]])
            assert [score.value for score in scores] == [5.0, 5.0]
            asked = [[{"role": "user", "content": SECRET}], turn]
            assert reward(asked, ["of training", "of training"], prompt_id=[mine.id, others.id]) == [5.0, 5.0]
            evaluate_reward(reward, [edit])
            for said_in in ("feedback-elsewhere", "feedback-others"):
                revision = answers["revision-1"]
                complaint = Complaint(
                    prompt=others, criticised=revision, said=(said_in,), said_in=(said_in,), answer=revision
                )
                assert taken_up(client, [complaint], 1, None) == [5.0]

    with running(lambda request: '{"score": 5}') as (server, url):
        ask(url)
        # a score of each prompt's answer, one of each in training, two sides of a pair, two complaints
        assert len(server.asked) == 8
        report = delete_user(store, "ann@example.org", [run.path])
        assert report.runs[str(run.path)]["endpoints.db"] == 4
        ask(url)  # which asks again what is not there any more
        gone = [str(request["messages"]) for request in server.asked[8:]]
    assert [text in gone[n] for n, text in enumerate((REPLY, "of training", EDITED, "feedback-elsewhere"))] == [
        True
    ] * 4
    assert len(gone) == 4


TAG, SHARED = "an unusual tag", "too long"


def complained(of: str, who: str, tags: tuple[str, ...], words: str = "") -> Critique:
    spans = tuple(Span(start=0, end=4, label=tag) for tag in tags)
    about: dict[str, Any] = {"prompt_id": "other-prompt", "completion_id": of}
    return Critique(id=f"said-by-{who}-of-{of}", spans=spans, comment=words, annotator=Annotator(id=who), **about)


def test_of_complaints_that_several_made_those_of_the_user_go_and_others_stay(store: Store, tmp_path: Path) -> None:
    key = talk(store)
    words = f"{SHARED}, in all of its many sentences"
    pair: dict[str, Any] = {"prompt_id": "other-prompt", "a": "other-answer-1", "b": "other-answer-2"}
    said = [
        complained("other-answer-1", key, (TAG, SHARED)),
        complained("other-answer-1", "bob", (SHARED, "unfriendly")),
        complained("other-answer-2", key, (), words),
        complained("other-answer-2", "bob", (), words),
        preference("pair-ann", **pair, who=key, comment=words),
        preference("pair-bob", **pair, who="bob", comment=words),
        preference("pair-cy", **pair, who="cy", comment=CRITIQUE),
        preference("pair-ann-2", **pair, who=key, comment=CRITIQUE + "!"),
    ]
    store.add_feedback(said)
    prompts = {one.id: one for one in store.prompts()}
    answers = {c.id: replace(c, text=" ".join([c.text] * 9)) for c in store.completions()}
    limits = Limits(is_vague=lambda text: False, max_words=100, kinds=ALL_KINDS)
    rows, _ = critiqued_completions([one for one in said if one.kind == "critique"], answers, prompts, limits)
    checks, _ = checks_of(rows, most=10, judged=True)
    pairs, _ = pairs_from_feedback([one for one in said if one.kind == "preference"], answers, prompts)
    assert [TAG in text for check in checks for text in check.critiques].count(True) == 1
    runs = [RunDir(tmp_path / "run"), RunDir(tmp_path / "forgotten")]
    for run in runs:
        write_json(run.path / "recipe.yaml", {"name": "x", "policy": {}, "update": {}, "feedback": {}})
        with step_folder(run.step(1, "snapshot"), "key-1", {}) as folder:
            write_records(folder / "checks.parquet", checks)
            write_records(folder / "pairs.parquet", pairs)
    for run in runs:  # of the second nothing but tombstones tells what is to go
        delete_user(store, "ann@example.org", [run.path])
        kept = read_records(run.step(1, "snapshot") / "checks.parquet", Check)
        assert {(one.completion_id, one.asks): one.critiques for one in kept} == {
            ("other-answer-1", "too_long"): (SHARED,),
            ("other-answer-1", "judge"): ("unfriendly",),
            ("other-answer-2", "too_long"): (words,),
        }
        assert {id for one in kept for ids in one.critique_ids for id in ids} == {
            "said-by-bob-of-other-answer-1", "said-by-bob-of-other-answer-2"
        }  # fmt: skip
        (left,) = read_records(run.step(1, "snapshot") / "pairs.parquet", PreferencePair)
        assert (left.critiques, left.critique_ids) == ((words, CRITIQUE), (("pair-bob",), ("pair-cy",)))
        assert TAG.encode() not in files(run.path)


def test_tags_go_from_checks_of_earlier_versions_which_do_not_say_whose_they_are(store: Store, tmp_path: Path) -> None:
    key = talk(store)
    store.add_feedback([complained("other-answer-1", key, (TAG,))])
    run = RunDir(tmp_path / "run")
    write_json(run.path / "recipe.yaml", {"name": "x", "policy": {}, "update": {}, "feedback": {}})
    ids = (f"said-by-{key}-of-other-answer-1", "said-by-bob")
    check = Check(
        id="c", prompt_id="other-prompt", group="g", completion_id="other-answer-1", text="x", asks="judge",
        critiques=(TAG, "unfriendly"), origin="human", feedback_ids=ids,
    )  # fmt: skip
    with step_folder(run.step(1, "snapshot"), "key-1", {}) as folder:
        write_records(folder / "checks.parquet", [check])
    delete_user(store, "ann@example.org", [run.path])
    (kept,) = read_records(run.step(1, "snapshot") / "checks.parquet", Check)
    assert (kept.critiques, kept.feedback_ids) == (("unfriendly",), ("said-by-bob",))


def test_an_interrupted_deletion_is_finished_by_the_next(store: Store, tmp_path: Path) -> None:
    talk(store)
    run, other = made_run(store, tmp_path / "run"), made_run(store, tmp_path / "other")
    from rlhf_loop.feedback.privacy import deletion_files

    kept = deletion_files._mark
    deletion_files._mark = lambda folder: (_ for _ in ()).throw(KeyboardInterrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            delete_user(store, "ann@example.org", [run.path])
    finally:
        deletion_files._mark = kept
    assert SECRET in everything(store)
    delete_user(store, "ann@example.org", [run.path])
    assert (read_manifest(run.step(1, "snapshot")) or {})["redacted"]["files"]
    delete_user(store, "ann@example.org", [other.path])  # a run that was not named before: by the tombstones
    assert SECRET.encode() not in files(other.path)
    assert delete_user(store, "ann@example.org", [other.path]).runs == {str(other.path): {}}


def test_files_that_something_killed_left_do_not_stop_it(store: Store, tmp_path: Path) -> None:
    talk(store)
    run = made_run(store, tmp_path / "run")
    for place in (run.round(1), run.step(1, "snapshot"), run.round(1) / "ask.partial"):
        (place / "pairs.parquet.partial").write_text(SECRET)
        (place / "manifest.json.123.partial").write_text(SECRET)
    (run.round(1) / "ask.partial" / "half.parquet").write_bytes(b"PAR1 and no more")
    (run.round(1) / "x.old").write_text(SECRET)
    (run.path / "report.html.123.partial").write_text(SECRET)
    delete_user(store, "ann@example.org", [run.path])
    assert SECRET.encode() not in b"".join(p.read_bytes() for p in run.path.rglob("*") if p.is_file())
    assert not [*run.path.rglob("*.partial"), *run.path.rglob("*.old")]


def test_a_damaged_table_of_a_complete_step_is_named(store: Store, tmp_path: Path) -> None:
    talk(store)
    run = made_run(store, tmp_path / "run")
    (run.step(1, "snapshot") / "pairs.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"pairs\.parquet is damaged"):
        delete_user(store, "ann@example.org", [run.path])
    (run.step(1, "snapshot") / "pairs.parquet").unlink()


class Killed(BaseException):
    """As a signal that ends the process."""


def state(store: Store, run: RunDir) -> str:
    """The store and the files of a run, without times; of tombstones which there are, whoever's deletion came first."""
    with store.database.read() as connection:
        named = sa.select(tables.tombstones.c.kind, tables.tombstones.c.record_id)
        stones = sorted(map(tuple, connection.execute(named)))
        others = [table for table in tables.metadata.sorted_tables if table is not tables.tombstones]
        rows = repr([stones, [tuple(row) for table in others for row in connection.execute(sa.select(table))]])
    rows = re.sub(r"\d{10}\.\d+", "TIME", rows)
    read = {str(p.relative_to(run.path)): p for p in run.path.rglob("*") if p.is_file()}
    held = {name: json.loads(p.read_text()) if p.suffix == ".json" else hash_file(p) for name, p in read.items()}
    text = json.dumps(held, indent=1, sort_keys=True)
    return re.sub(r'"(at|started|seconds)": [\d.e-]+', r'"\1": 0', text) + rows


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_two_deletions_that_are_killed_anywhere_end_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:

    left = 10**9  # how many steps may still be done

    def step() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **values: Any) -> Any:
            if isinstance(arguments[0], Path) and arguments[0].name.startswith("lock"):
                return function(*arguments, **values)  # a dead process holds none, and this one goes on
            step()
            result = function(*arguments, **values)
            step()
            return result

        return call

    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))
    monkeypatch.setattr(deletion, "_delete", counted(deletion._delete))
    monkeypatch.setattr(Database, "overwrite_deleted", counted(Database.overwrite_deleted))

    def both(name: str, allowed: int) -> tuple[str, list[Any], bool]:
        nonlocal left
        left = 10**9
        models: list[Any] = []
        with Store.open(tmp_path / f"{name}.db") as store:
            with store.database.write() as connection:
                connection.execute(tables.settings.insert().values(name="user_key", value="ab" * 32))
            talk(store)
            run = made_run(store, tmp_path / name / "run")
            path = str(run.step(1, "update") / "policy")
            store.add_artifact(Artifact(id="policy-r", kind="policy", parent="base", round=1, path=path))
            order = ["ann@example.org", "bob", "ann@example.org", "bob"]
            left = allowed
            killed = False
            for user in order[:2]:
                try:
                    models.append(delete_user(store, user, [run.path]).models)
                except Killed:
                    killed = True
                    left = 10**9
            left = 10**9
            models = [delete_user(store, user, [run.path]).models for user in order]
            for found in models:
                for model in found:
                    model["path"] = model["path"].replace(str(tmp_path / name), "")
            return state(store, run).replace(str(tmp_path / name), ""), models, killed

    expected, models, _ = both("whole", 10**9)
    assert [m["id"] for m in models[0]] == ["rm", "policy-1", "policy-r"]
    assert [m["learned"] for m in models[0] if m["id"] == "policy-r"] == ["directly"]
    number, killed = 0, True
    while killed:
        found, listed, killed = both(f"killed-{number}", number)
        assert found == expected, number
        assert listed == models, number
        number += every
    assert number > 50


def test_a_report_that_an_interrupted_deletion_left_is_written_by_the_next(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk(store)
    run = made_run(store, tmp_path / "run")
    (run.path / "report.html").write_text(SECRET)
    monkeypatch.setattr(rlhf_loop.report, "write_report", lambda run: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        delete_user(store, "ann@example.org", [run.path])
    written: list[Path] = []
    monkeypatch.setattr(rlhf_loop.report, "write_report", lambda run: written.append(run.path))
    delete_user(store, "ann@example.org", [run.path])
    assert written == [run.path]


def test_two_deletions_in_one_process_follow_each_other(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    talk(store)
    run = made_run(store, tmp_path / "run")
    redact, running, most = deletion.redact_run, 0, 0

    def slowly(*arguments: Any) -> dict[str, int]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.1)
        found = redact(*arguments)
        running -= 1
        return found

    monkeypatch.setattr(deletion, "redact_run", slowly)
    threads = [threading.Thread(target=delete_user, args=(store, user, [run.path])) for user in ("ann", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not (run.path / "lock").exists()


def test_nothing_is_deleted_while_a_run_works(store: Store, tmp_path: Path) -> None:
    talk(store)
    run = made_run(store, tmp_path / "run")
    write_json(run.path / "lock", {"pid": 1, "host": socket.gethostname(), "since": 0})
    before = everything(store)
    with pytest.raises(UserError, match="in use by process 1"):
        delete_user(store, "ann@example.org", [run.path])
    assert everything(store) == before


def test_files_without_ids_lose_the_rows_that_repeat_a_text(store: Store, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    talk(store)
    run = made_run(store, tmp_path / "run")
    log = run.step(1, "update") / "completions.parquet"
    pq.write_table(pa.table({"step": [1, 2], "completion": [f"so: {REPLY} 1", "short"]}), log)
    delete_user(store, "ann@example.org", [run.path])
    assert pq.read_table(log).to_pylist() == [{"step": 2, "completion": "short"}]


@pytest.mark.slow
def test_a_real_run_goes_on_after_a_deletion_and_remakes_nothing(tmp_path: Path, model_cache: Path) -> None:
    run = tmp_path / "smoke"
    loop = Loop(Recipe.load(SMOKE), run_dir=run)
    loop.run(rounds=1)
    with Store.open(loop.store_url) as store:
        key = user_key(store, "ann@example.org")
        asked = Prompt(id="private-prompt-1", messages=({"role": "user", "content": SECRET},), group="g", source="chat")
        store.add_prompts([asked])
        policy_id = store.promoted_id()
        answers = [
            Completion(id=f"private-answer-{n}", prompt_id=asked.id, text=f"{REPLY} {n}", policy=policy_id, round=1)
            for n in (1, 2)
        ]
        store.add_completions(answers)
        judged = {"prompt_id": asked.id, "annotator": Annotator(id=key), "round": 1, "comment": CRITIQUE}
        store.add_feedback(
            [
                Preference(
                    id="private-preference", a_id=answers[0].id, b_id=answers[1].id, winner="a", **judged
                ),
                Edit(id="private-edit", completion_id=answers[0].id, edited_completion=EDITED, **judged),
            ]
        )  # fmt: skip
        with store.transaction() as transaction:
            remember(transaction, key, "prompt", [asked.id])
            remember(transaction, key, "completion", [answer.id for answer in answers])
            remember(transaction, key, "feedback", ["private-preference", "private-edit"])
    loop.run(rounds=2)
    assert SECRET.encode() in files(run)
    with Store.open(loop.store_url) as store:
        report = delete_user(store, "ann@example.org", [run])
    assert not [text for text in TEXTS if text.encode() in files(run)]
    models = {model["kind"]: model for model in report.models if model["round"] == 2}
    assert set(models) == {"reward_model", "policy"}
    before = {
        path: hashlib.sha256(path.read_bytes()).hexdigest() for path in run.glob("round_00[012]/**/*") if path.is_file()
    }
    loop.run(rounds=3)
    after = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in before}
    assert after == before  # nothing was made again
    assert RunDir(run).complete_rounds() == [0, 1, 2, 3]
    with Store.open(loop.store_url) as store:
        learned = {id for artifact in store.artifacts() if artifact.round == 3 for id in artifact.trained_on}
    assert not {"private-preference", "private-edit"} & learned
    assert not [text for text in TEXTS if text.encode() in files(run)]
