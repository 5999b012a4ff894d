"""A round starts when the recipe's `watch:` block says so, once at a time, and whatever happens is told."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samples.feedback import completion, preference, prompt
from typer.testing import CliRunner

from rlhf_loop.cli import app
from rlhf_loop.errors import StoreUnavailable, UserError
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import write_json, write_text
from rlhf_loop.files.step_folders import step_folder
from rlhf_loop.recipe import Recipe, Watch
from rlhf_loop.record_files import write_records
from rlhf_loop.records import Annotator, Critique, Edit, Implicit, Thumb
from rlhf_loop.run_dir import RunDir
from rlhf_loop.watch import triggers
from rlhf_loop.watch.events import SECRET_VARIABLE
from rlhf_loop.watch.triggers import News, arrivals, is_quiet, last_end, news, obstacles
from rlhf_loop.watch.watcher import Watcher

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "recipes" / "smoke.yaml"
HOUR = 3600.0
NOON = time.mktime((2026, 3, 3, 12, 0, 0, 0, 0, -1))


def found(**values: Any) -> News:
    given = {"next_round": 1, "count": 0, "oldest": None, "per_tag": {}, "preferences": [], "missing_pairs": 0}
    return News(**{**given, **values})


def why(news: News, *, now: float = NOON, ended: float | None = None, **settings: Any) -> list[str]:
    return obstacles(news, Watch(**settings), now=now, last_end=ended)


def test_a_round_starts_with_enough_feedback_and_not_before() -> None:
    assert why(found(count=9, oldest=NOON), min_new=10) == ["9 of 10 new pieces of feedback"]
    assert why(found(count=10, oldest=NOON), min_new=10) == []
    refused = found(count=9, refused={"preference": 2, "thumb": 1})
    assert why(refused, min_new=10) == ["9 of 10 new pieces of feedback (3 more are not valid)"]


def test_old_feedback_does_not_wait_for_more() -> None:
    old = found(count=1, oldest=NOON - 25 * HOUR)
    assert why(old, min_new=10, max_age_hours=24) == []
    assert why(old, min_new=10, max_age_hours=26) != []
    assert why(found(), min_new=10, max_age_hours=24) != []


def test_each_topic_has_its_own_minimum() -> None:
    some = found(count=20, per_tag={"maths": 4})
    assert why(some, min_new=10, min_per_tag={"maths": 5, "law": 1}) == [
        "4 of 5 new pieces on `maths`",
        "0 of 1 new pieces on `law`",
    ]
    assert why(found(count=20, per_tag={"maths": 5, "law": 1}), min_new=10, min_per_tag={"maths": 5, "law": 1}) == []


def test_verdicts_on_two_answers_of_one_text_are_no_agreement(tmp_path: Path) -> None:
    """As `feedback check` has it."""
    made, run = Recipe.load(recipe(tmp_path)), RunDir(tmp_path / "run")
    with Store.open(":memory:") as store:
        fill(store, run, last=1)
        store.add_completions([completion("x", "The  same."), completion("y", "The same.\n")])
        given = [preference(f"{a}{who}", a, b, who=who, round=1) for a, b in ("ac", "xy") for who in ("ann", "bob")]
        store.add_feedback(given)
        assert [p.id for p in news(store, made, run).preferences] == ["aann", "abob"]


def test_a_round_that_would_lack_pairs_is_not_started() -> None:
    assert why(found(count=20, missing_pairs=3), min_new=10) == [
        "3 more pairs are needed (feedback.validation.min_pairs)"
    ]


def test_a_round_waits_until_the_machine_has_cooled_down() -> None:
    assert why(found(count=99), ended=NOON - 60, cool_down_minutes=3) == ["cooling down for 2.0 more minutes"]
    assert why(found(count=99), ended=NOON - 180, cool_down_minutes=3) == []
    assert why(found(count=99), ended=None, cool_down_minutes=3) == []


def test_people_must_agree_where_it_is_asked_for() -> None:
    def judged(*winners: tuple[str, str]) -> News:
        given = [
            preference(f"{n}{who}", f"a{n}", f"b{n}", winner, who)
            for n, both in enumerate(winners)
            for who, winner in zip("xy", both, strict=True)
        ]
        return found(count=99, preferences=given)

    agreed = judged(*[("a", "a"), ("b", "b")] * 5)
    split = judged(*[("a", "b"), ("a", "a"), ("b", "a"), ("b", "b")] * 3)
    assert why(agreed, min_agreement=0.8) == []
    (reason,) = why(split, min_agreement=0.8)
    assert re.match(r"agreement of the new preferences is 0?.0\d over 12 pairs, below 0.8", reason), reason
    alone = found(count=99, preferences=[preference("f")])
    assert "annotation.overlap: 2" in why(alone, min_agreement=0.8)[0]
    assert why(alone) == []


@pytest.mark.parametrize(
    ("hours", "hour", "quiet"),
    [("09:00-17:00", 12, True), ("12:00-13:00", 12, True), ("09:00-12:00", 12, False), ("22:00-07:00", 12, False),
     ("22:00-07:00", 23, True), ("22:00-07:00", 6, True), ("22:00-07:00", 7, False), ("12:00-12:00", 12, False)],
)  # fmt: skip
def test_quiet_hours_are_local_and_may_go_over_midnight(hours: str, hour: int, quiet: bool) -> None:
    now = NOON + (hour - 12) * HOUR
    assert is_quiet(hours, now) == quiet
    assert bool(why(found(count=99), now=now, quiet_hours=hours)) == quiet


def test_hours_that_no_clock_shows_are_refused() -> None:
    with pytest.raises(UserError, match="no such time as 24:00"):
        is_quiet("22:00-24:00", NOON)
    assert not is_quiet(None, NOON)


def recipe(tmp_path: Path, **watch: Any) -> Path:
    """A recipe without an annotator: people answer."""
    text = SMOKE.read_text().replace("thumbs_above: 0.1\n", "").replace("    edits: true\n", "")
    text = re.sub(r"  annotator:\n(    .*\n)+", "", text).replace("name: smoke", "name: watched")
    for folder in ("data", "reward_models"):
        text = text.replace(f"../{folder}", str(ROOT / folder)).replace(f"[{folder}/", f"[{ROOT}/recipes/{folder}/")
    file = tmp_path / "watched.yaml"
    file.write_text(text + f"watch: {json.dumps({'min_new': 2, **watch})}\n")
    return file


def fill(store: Store, run: RunDir, last: int) -> None:
    """Two prompts with answers, and complete rounds up to `last` whose snapshot took the preference `old`."""
    store.add_prompts([prompt("p", tags=("sky",)), prompt("q", "And the sea?", tags=("sea", "sky"))])
    store.add_completions([completion(id) for id in "abc"] + [completion(id, prompt_id="q") for id in "de"])
    store.add_feedback([preference("old", created_at=5.0)])
    for number in range(last + 1):
        complete(run, number, [preference("old", created_at=5.0)])


def complete(run: RunDir, number: int, taken: list[Any], promoted: bool = True) -> None:
    with step_folder(run.step(number, "snapshot"), f"key-{number}", {}) as folder:
        write_records(folder / "feedback.parquet", taken)
        write_json(folder / "validation.json", {"quarantined": []})
    if number:
        with step_folder(run.step(number, "gate"), f"gate-{number}", {}) as folder:
            write_json(folder / "decision.json", {"promoted": promoted, "reason": "all limits hold"})
    write_json(run.round(number) / "manifest.json", {"round": number})


def test_new_is_what_the_last_snapshot_did_not_hold_and_validation_lets_pass(tmp_path: Path) -> None:
    made, run = Recipe.load(recipe(tmp_path)), RunDir(tmp_path / "run")
    ann = Annotator(id="ann")
    with Store.open(":memory:") as store:
        fill(store, run, last=1)
        assert news(store, made, run).count == 0
        store.add_feedback(
            [
                Thumb(id="new", prompt_id="q", completion_id="d", label=True, annotator=ann, round=1, created_at=7.0),
                Thumb(id="repeated", prompt_id="q", completion_id="d", label=True, annotator=ann, round=1),
                Implicit(id="copied", prompt_id="q", completion_id="d", action="copy", annotator=ann, round=1),
                preference("late", "a", "c", created_at=6.0),  # of round 0, imported after the snapshot
                preference("next", "b", "c", round=2),  # for the round after the next
            ]
        )
        now = news(store, made, run)
        assert (now.next_round, now.count, now.oldest, now.useless) == (2, 1, 6.0, 1)
        assert now.per_tag == {"sky": 1}
        assert now.refused == {"thumb": 1}
        assert [p.id for p in now.preferences] == ["late"]
        now = news(store, Recipe.load(recipe(tmp_path), KTO), run)
        assert (now.count, now.oldest, now.per_tag, now.useless) == (1, 7.0, {"sky": 1, "sea": 1}, 1)
        store.add_feedback(
            [Implicit(id="copied e", prompt_id="q", completion_id="e", action="copy", annotator=ann, round=1)]
        )
        told = Recipe.load(recipe(tmp_path), [*KTO, "feedback.implicit.copy=true"])
        assert news(store, told, run).count == 2


KTO = ["update.algorithm=kto", "reward=null"]
DPO = ["reward=null", "pairing.sources=[feedback]"]
FRESH = ["critiques.fresh={}"]
FUNCTION = f"reward.model={ROOT}/reward_models/brief_and_complete"


def some_feedback(kind: str) -> list[Any]:
    """Three pieces of a kind, on the answers a to e of `fill` and on one of a held-out prompt."""
    about: dict[str, Any] = {"prompt_id": "p", "annotator": Annotator(id="ann"), "round": 0}
    return {
        "pairs": [preference("x", "a", "c"), preference("y", "b", "c"), preference("z", "d", "e", prompt_id="q")],
        "thumbs": [Thumb(id=f"t{c}", completion_id=c, label=c == "a", **about) for c in "abc"],
        "edits": [Edit(id=f"e{c}", completion_id=c, edited_completion=f"better {c}", **about) for c in "abc"],
        "both bad": [preference("x", "a", "c", "both_bad"), preference("y", "b", "c", "both_bad")],
        "critiques": [
            Critique(id=f"c{c}", completion_id=c, comment="The colour comes from scattered light.", **about)
            for c in "abc"
        ],
        "held out": [
            Thumb(id="h", **{**about, "prompt_id": "h"}, completion_id="h", label=True),
            preference("i", "h", "i", prompt_id="h"),
        ],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "settings", "count", "says"),
    [
        ("pairs", KTO, 0, "3 new pieces, 0 of which kto can use: it consumes thumbs"),
        ("thumbs", KTO, 3, None),
        ("both bad", KTO, 2, None),
        ("edits", KTO, 0, "3 new pieces, 0 of which kto can use: it consumes thumbs"),
        ("held out", KTO, 0, "2 new pieces, 0 of which kto can use: it consumes thumbs"),
        ("thumbs", DPO, 0, "3 new pieces, 0 of which dpo can use: it consumes pairs"),
        ("pairs", DPO, 3, None),
        ("held out", DPO, 0, "2 new pieces, 0 of which dpo can use: it consumes pairs"),
        ("both bad", [], 0, "2 new pieces, 0 of which dpo and the reward model can use: they consume pairs"),
        ("thumbs", ["update.algorithm=ppo"], 0, "3 new pieces, 0 of which the reward model can use: it consumes pairs"),
        ("critiques", ["update.algorithm=kto"], 0,
         "3 new pieces, 0 of which kto or the reward model can use: kto consumes thumbs, the reward model consumes "
         "pairs"),
        ("pairs", ["update.algorithm=sft", "reward=null"], 0,
         "3 new pieces, 0 of which sft can use: it consumes edits"),
        ("edits", ["update.algorithm=sft", "reward=null"], 3, None),
        ("edits", [*DPO, "critiques.edits={}"], 3, None),
        ("critiques", FRESH, 3, None),
        ("edits", FRESH, 0,
         "3 new pieces, 0 of which dpo or the reward model or learning from critiques can use: dpo consumes pairs, the "
         "reward model consumes pairs, learning from critiques consumes critiques, comments, thumbs and edits"),
        ("critiques", ["update.algorithm=ppo", FUNCTION], 3, None),  # nothing learns from feedback
    ],
)  # fmt: skip
def test_what_the_round_cannot_train_on_does_not_count(
    tmp_path: Path, kind: str, settings: list[str], count: int, says: str | None
) -> None:
    made, run = Recipe.load(recipe(tmp_path), [*settings, "feedback.validation.min_pairs=0"]), RunDir(tmp_path / "run")
    with Store.open(":memory:") as store:
        fill(store, run, last=1)
        store.add_prompts([prompt("h", "And at night?", split="test")])
        store.add_completions([completion(id, prompt_id="h") for id in "hi"])
        store.add_feedback(some_feedback(kind))
        now, early = news(store, made, run), arrivals(store, run)
        assert (now.count, now.useless) == (count, 0 if count else len(some_feedback(kind)))
        reasons = obstacles(now, Watch(min_new=2), now=NOON, last_end=None)
        sooner = triggers.early_obstacles(early, made, now=NOON, last_end=None)
    if says is None:
        assert (reasons, sooner) == ([], [])
    else:
        assert reasons == [f"{says} (watch.min_new: 2)"]
        assert not sooner or sooner[0].replace("at most 1", "0") == reasons[0]  # told without validation


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        ("pairs", ["update.algorithm=kto"], "kto has nothing to train on: it consumes thumbs"),
        ("thumbs", ["update.algorithm=kto"], "the reward model has nothing to train on: it consumes pairs"),
    ],
)
def test_a_round_waits_for_what_each_part_of_it_needs(
    tmp_path: Path, kind: str, settings: list[str], says: str
) -> None:
    made, run = Recipe.load(recipe(tmp_path), [*settings, "feedback.validation.min_pairs=0"]), RunDir(tmp_path / "run")
    with Store.open(":memory:") as store:
        fill(store, run, last=-1)
        store.add_feedback([preference("not old", "a", "b", supersedes="old", winner="tie")])
        complete(run, 0, [])
        store.add_feedback(some_feedback(kind))
        assert obstacles(news(store, made, run), Watch(min_new=2), now=NOON, last_end=None) == [says]
        store.add_feedback([*some_feedback("pairs"), *some_feedback("thumbs")])
        assert obstacles(news(store, made, run), Watch(min_new=2), now=NOON, last_end=None) == []


def test_a_watcher_says_that_a_round_has_begun_when_it_has(tmp_path: Path) -> None:
    file, said = recipe(tmp_path, min_new=1), []
    missing = Watcher(file, [f"prompts.train=[{tmp_path}/nowhere.jsonl]"], tmp_path / "one", said.append)
    step = missing.watch(once=True)
    assert step.outcome == "failed"
    assert not any("starts" in line for line in said)
    assert not any("started" in line for line in (tmp_path / "one" / "watch.json").read_text().splitlines())

    with Store.open(tmp_path / "two" / "feedback.db") as store:
        fill(store, RunDir(tmp_path / "two"), last=0)
    write_text(tmp_path / "two" / "recipe.yaml", Recipe.load(file, ["seed=1"]).to_yaml())
    with pytest.raises(UserError, match="seed: 1 -> 0"):
        Watcher(file, (), tmp_path / "two", said.append)
    assert not any("starts" in line for line in said)


def test_a_round_has_begun_once_its_process_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    watcher = Watcher(recipe(tmp_path), (), tmp_path / "run", said.append)
    for number, policy in ((0, "base"), (1, "policy-000-12345678")):
        code = (
            "from rich.console import Console; from rlhf_loop.progress import RunProgress\n"
            "import sys; print('imported 3 pieces', flush=True); show = RunProgress(Console(file=sys.stdout))\n"
            f"show.round({number}, {number}, {policy!r}); show.note('', 'learning'); show.round(7, 7, 'other')"
        )
        watcher._command = [sys.executable, "-c", code]
        said.clear()
        watcher._run(number, lambda: said.append("begun"))
        assert [line for line in said if line][:2] == ["imported 3 pieces", "begun"]
        assert said.count("begun") == 1
    watcher._run(2, lambda: said.append("another"))
    assert "another" not in said


def test_round_1_learns_from_all_there_is(tmp_path: Path) -> None:
    made, run = Recipe.load(recipe(tmp_path)), RunDir(tmp_path / "run")
    with Store.open(":memory:") as store:
        fill(store, run, last=0)
        now = news(store, made, run)
        assert (now.next_round, now.count, now.missing_pairs) == (1, 1, 1)
        store.add_feedback([preference("more", "a", "c")])
        assert news(store, made, run).missing_pairs == 0


def test_the_end_of_a_round_is_that_of_its_last_step(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert last_end(run) is None
    complete(run, 0, [])
    manifest = run.step(0, "snapshot") / "manifest.json"
    write_json(manifest, {**json.loads(manifest.read_text()), "started": 100.0, "seconds": 5.0})
    assert last_end(run) == 105.0


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


def watching(
    tmp_path: Path, make: Callable[[int], str | None], **watch: Any
) -> tuple[Watcher, Clock, list[str], list[dict[str, Any]]]:
    """A watcher whose rounds are `make`, its clock, what it says, and a function's list of what it tells."""
    told = tmp_path / "told.jsonl"
    clock, said = Clock(), []
    watcher = Watcher(
        recipe(tmp_path, command=f"cat >> {told}; echo >> {told}", **watch), (), tmp_path / "run", said.append, clock
    )
    watcher._run = lambda number, begun: (begun(), make(number))[1]  # type: ignore[method-assign,func-returns-value]
    return watcher, clock, said, told  # type: ignore[return-value]


def events(told: Path) -> list[tuple[str, int]]:
    lines = told.read_text().splitlines() if told.exists() else []
    return [(e["kind"], e["round"]) for e in map(json.loads, filter(None, lines))]


def test_rounds_are_started_and_their_ends_are_told(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    made: list[int] = []

    def make(number: int) -> str | None:
        made.append(number)
        with Store.open(run.path / "feedback.db") as store:
            if number == 0:
                fill(store, run, last=0)
            else:
                complete(run, number, store.feedback(), promoted=number == 1)
        return None

    watcher, _, said, told = watching(tmp_path, make)
    assert watcher.watch(once=True).outcome == "ran"  # the first candidates
    step = watcher.watch(once=True)
    assert step.outcome == "waits"
    assert step.reasons == ["1 of 2 new pieces of feedback"]
    watcher.watch(once=True)  # the same again: nothing more is told
    with Store.open(run.path / "feedback.db") as store:
        store.add_feedback([preference("more", "a", "c")])
    assert watcher.watch(once=True).outcome == "ran"
    with Store.open(run.path / "feedback.db") as store:
        more = [preference("next", "b", "c", round=1), preference("last", "d", "e", prompt_id="q", round=1)]
        store.add_feedback(more)
    again, _, _, _ = watching(tmp_path, make)  # another process, after a restart
    assert again.watch(once=True).outcome == "ran"
    assert again.watch(once=True).outcome == "waits"
    assert made == [0, 1, 2]
    assert events(told) == [
        ("started", 0), ("waiting", 0), ("started", 1), ("promoted", 1), ("started", 2), ("rejected", 2),
        ("waiting", 2),
    ]  # fmt: skip
    assert any("no round yet: 1 of 2 new pieces" in line for line in said)


def test_a_round_that_fails_is_told_and_tried_again_later_and_later(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    attempts = []

    def make(number: int) -> str | None:
        attempts.append(number)
        if len(attempts) < 4:
            return "the disk is full"
        complete(run, number, [])
        return None

    watcher, clock, said, told = watching(tmp_path, make)
    assert watcher.watch(once=True).outcome == "failed"
    waits = []
    while len(attempts) < 4:
        before = clock.now
        while watcher.watch(once=True).outcome == "waits":
            clock.now += 30
        waits.append(clock.now - before)
    assert waits == [60, 120, 240]
    assert [kind for kind, _ in events(told)] == ["started", "failed"] * 3 + ["started"]
    assert any("round 0 failed, and is tried again at 12:01: the disk is full" in line for line in said)
    watcher.watch(once=True)
    assert watcher.outbox.memory.failure is None


def test_a_clock_that_is_set_back_does_not_put_a_round_off(tmp_path: Path) -> None:
    ends: list[str | None] = ["the disk is full", None]
    watcher, clock, _, _ = watching(tmp_path, lambda number: ends.pop(0))
    assert watcher.watch(once=True).outcome == "failed"
    clock.now -= 24 * HOUR
    assert watcher.watch(once=True).outcome == "ran"


def test_a_store_that_is_away_for_a_while_does_not_end_the_watcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher, _, said, _ = watching(tmp_path, lambda number: None)
    with Store.open(watcher.run.path / "feedback.db") as store:
        fill(store, watcher.run, last=0)
    looks: list[int] = []

    def counted(*arguments: Any) -> Any:
        looks.append(1)
        if len(looks) < 3:
            raise StoreUnavailable("the store is locked")
        if len(looks) == 4:
            raise KeyboardInterrupt
        return arrivals(*arguments)

    monkeypatch.setattr("rlhf_loop.watch.watcher.arrivals", counted)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(KeyboardInterrupt):
        watcher.watch()
    assert len(looks) == 4
    assert sum("the store is locked" in line for line in said) == 1
    looks.clear()
    with pytest.raises(StoreUnavailable):
        watcher.watch(once=True)


def test_an_outcome_that_was_not_told_before_a_crash_is_told_after_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")

    def crash(number: int) -> str | None:
        with Store.open(run.path / "feedback.db") as store:
            complete(run, number, store.feedback())
        raise MemoryError

    watcher, _, _, told = watching(tmp_path, crash, min_new=1)
    with Store.open(run.path / "feedback.db") as store:
        fill(store, run, last=0)
        store.add_feedback([preference("more", "a", "c")])
    with pytest.raises(MemoryError):
        watcher.watch(once=True)
    watcher.watch(once=True)
    assert ("promoted", 1) in events(told)


def test_what_was_before_the_first_watcher_is_not_told(tmp_path: Path) -> None:
    watcher, _, _, told = watching(tmp_path, lambda number: None)
    with Store.open(tmp_path / "run" / "feedback.db") as store:
        fill(store, watcher.run, last=3)
    watcher.watch(once=True)
    assert events(told) == [("waiting", 3)]


def test_a_round_that_was_stopped_goes_on_without_new_feedback(tmp_path: Path) -> None:
    made: list[int] = []
    watcher, _, _, _ = watching(tmp_path, lambda number: made.append(number))
    with Store.open(tmp_path / "run" / "feedback.db") as store:
        fill(store, watcher.run, last=1)
    (watcher.run.round(2) / "snapshot").mkdir(parents=True)
    watcher.watch(once=True)
    assert made == [2]


def test_a_run_that_somebody_works_on_is_left_alone(tmp_path: Path) -> None:
    watcher, _, _, _ = watching(tmp_path, lambda number: pytest.fail("started"))
    with watcher.run.locked():
        step = watcher.watch(once=True)
    assert step.reasons[0].startswith(f"process {os.getpid()} on ")


def test_a_second_watcher_is_refused_and_from_cron_says_so(tmp_path: Path) -> None:
    second, _, said, _ = watching(tmp_path, lambda number: pytest.fail("started"))
    inner: list[Any] = []

    def make(number: int) -> str | None:
        inner.append(second.watch(once=True))
        with pytest.raises(UserError, match=f"watched by process {os.getpid()} on .* already"):
            second.watch()
        complete(second.run, number, [])
        return None

    first, _, _, _ = watching(tmp_path, make)
    assert first.watch(once=True).outcome == "ran"
    assert inner[0].outcome == "waits"
    assert "one is enough" in said[0]


def test_the_store_is_validated_only_when_there_may_be_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr(triggers, "validate", lambda *a, _f=triggers.validate: (counted.append(1), _f(*a))[1])
    watcher, _, _, _ = watching(tmp_path, lambda number: None, min_new=2, min_per_tag={"sea": 9})
    with Store.open(tmp_path / "run" / "feedback.db") as store:
        fill(store, watcher.run, last=0)
        watcher.watch(once=True)
        assert len(counted) == 0  # one piece has arrived: too few, valid or not
        store.add_feedback([preference("more", "a", "c")])
        for _ in range(3):
            assert watcher.watch(once=True).reasons == ["0 of 9 new pieces on `sea`"]
        assert len(counted) == 1
        store.add_feedback([preference("next", "b", "c")])
    watcher.watch(once=True)
    assert len(counted) == 2


def test_ties_and_skips_of_the_last_round_have_not_arrived_since(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with Store.open(":memory:") as store:
        fill(store, run, last=0)
        store.add_feedback([preference("tie", "a", "c", "tie"), preference("kept", "b", "c")])
        complete(run, 1, [r for r in store.feedback() if r.id != "tie"])
        assert arrivals(store, run).fresh == set()
        store.add_feedback([preference("new tie", "a", "b", "tie", round=1), preference("late", "b", "a")])
        assert arrivals(store, run).fresh == {"new tie", "late"}


def test_webhooks_need_a_secret_and_a_url_that_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET_VARIABLE, raising=False)
    with pytest.raises(UserError, match=SECRET_VARIABLE):
        Watcher(recipe(tmp_path, webhooks=["https://example.org/hook"]), (), tmp_path / "run")
    monkeypatch.setenv(SECRET_VARIABLE, "secret")
    with pytest.raises(UserError, match="no http or https URL"):
        Watcher(recipe(tmp_path, webhooks=["file:///x"]), (), tmp_path / "run")
    assert Watcher(recipe(tmp_path, webhooks=["https://example.org/hook"]), (), tmp_path / "run")


def test_the_command_says_why_no_round_starts_and_ends_well(tmp_path: Path) -> None:
    file, run = recipe(tmp_path), tmp_path / "run"
    with Store.open(run / "feedback.db") as store:
        fill(store, RunDir(run), last=1)
    result = CliRunner().invoke(app, ["watch", str(file), "watch.min_new=5", "--run-dir", str(run), "--once"])
    assert result.exit_code == 0, result.output
    assert "no round yet: 0 of 5 new pieces of feedback" in result.output


def test_a_signal_ends_a_watcher_cleanly(tmp_path: Path) -> None:
    file, run = recipe(tmp_path, poll_seconds=0.1), tmp_path / "run"
    with Store.open(run / "feedback.db") as store:
        fill(store, RunDir(run), last=1)
    command = [sys.executable, "-m", "rlhf_loop", "watch", str(file), "--run-dir", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    assert "no round yet" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 0, output
    assert "stopped watching" in output
    assert "Traceback" not in output


CLUSTER = ROOT / "recipes" / "cluster"


def commands(text: str) -> list[list[str]]:
    """The arguments of each `rlhf-loop watch` in a file."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [m.group(1).split() for line in lines for m in re.finditer(r"rlhf-loop watch ([^&>\n]*)", line)]


def test_the_service_file_is_one_that_systemd_reads() -> None:
    text = (CLUSTER / "watch.service").read_text()
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters="=")
    unit.optionxform = str  # type: ignore[method-assign, assignment]
    unit.read_string(text)
    assert unit.sections() == ["Unit", "Service", "Install"]
    known = {
        "Unit": {"Description", "After", "Wants"},
        "Service": {"Type", "WorkingDirectory", "ExecStart", "EnvironmentFile", "Environment", "Restart", "RestartSec",
                    "KillSignal", "KillMode", "TimeoutStopSec", "NoNewPrivileges", "PrivateTmp"},
        "Install": {"WantedBy"},
    }  # fmt: skip
    for section, keys in known.items():
        assert set(unit[section]) <= keys
    assert unit["Service"]["ExecStart"].startswith("%h/")  # systemd wants an absolute path
    assert unit["Service"]["KillMode"] == "mixed"  # the watcher alone is asked to end, and ends its round itself
    verify = shutil.which("systemd-analyze")
    if verify:
        done = subprocess.run([verify, "verify", "--user", CLUSTER / "watch.service"], capture_output=True, text=True)
        assert "Unknown" not in done.stderr


def test_the_cron_line_has_five_times_and_looks_once() -> None:
    lines = [line for line in (CLUSTER / "watch.cron").read_text().splitlines() if not line.startswith("#")]
    (line,) = lines
    times, command = line.split()[:5], line.split(maxsplit=5)[5]
    assert all(re.fullmatch(r"\*|\*/\d+|[\d,-]+", part) for part in times)
    assert "%" not in command  # cron would read a new line there
    assert commands(line)[0][-1] == "--once"


def test_the_slurm_job_is_valid_and_queues_itself(tmp_path: Path) -> None:
    script = CLUSTER / "watch.slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    for name in ("sbatch", "rlhf-loop"):
        tool = tmp_path / name
        tool.write_text(f'#!/bin/bash\necho {name} "$@" >> {tmp_path}/called\n')
        tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "1"}
    subprocess.run(["bash", script, "r.yaml", "watch.min_new=3"], env=environment, check=True, timeout=30)
    assert (tmp_path / "called").read_text().splitlines() == [
        "sbatch --begin=now+1hour recipes/cluster/watch.slurm.sh r.yaml watch.min_new=3",
        "rlhf-loop watch r.yaml watch.min_new=3 --once",
    ]


@pytest.mark.parametrize("name", ["watch.service", "watch.cron"])
def test_the_examples_name_a_recipe_that_can_be_watched(name: str) -> None:
    for arguments in commands((CLUSTER / name).read_text()):
        assert Recipe.load(ROOT / arguments[0]).watch.min_new > 0


@pytest.mark.slow
def test_a_real_run_is_watched_through_two_rounds_and_a_kill(tmp_path: Path, model_cache: Path) -> None:
    run, told = tmp_path / "run", tmp_path / "told.jsonl"
    settings = ["watch.min_new=4", f"watch.command=cat >> {told}; echo >> {told}", "watch.poll_seconds=0.2"]
    command = [sys.executable, "-m", "rlhf_loop", "watch", str(SMOKE), *settings, "--run-dir", str(run)]

    def once() -> str:
        done = subprocess.run([*command, "--once"], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "round 0 starts" in once()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "assemble" in line:  # in the middle of round 1
            break
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0, rest
    assert RunDir(run).used_by() is None
    assert RunDir(run).complete_rounds() == [0]
    once()
    assert RunDir(run).complete_rounds() == [0, 1]
    assert "round 2 starts" in once()  # the simulated annotator answered the questions of round 1
    kinds = events(told)
    assert kinds[0] == ("started", 0)
    assert ("started", 1) in kinds
    assert {kind for kind, number in kinds if number == 2} <= {"started", "promoted", "rejected"}
    assert len([kind for kind, _ in kinds if kind in ("promoted", "rejected")]) == 2
