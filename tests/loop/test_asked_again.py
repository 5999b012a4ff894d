"""Complaints that are asked again of every new policy: a run on the tiny model, its report, its pages and its gate."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from samples.endpoint import running, texts_of

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.privacy.deletion import delete_user
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import read_json
from rlhf_loop.loop import Loop
from rlhf_loop.recipe import Gate, Recipe
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Annotator, Check, CheckResult, Completion, Critique, Retraction, Score, Span
from rlhf_loop.report import write_report
from rlhf_loop.rows.check_rules import passes
from rlhf_loop.rows.checks import JUDGE, in_words, summary
from rlhf_loop.run_dir import RunDir
from rlhf_loop.server.app import create_app
from rlhf_loop.server.service import Service
from rlhf_loop.steps.gate import decide

REWARDS = Path(__file__).parents[2] / "reward_models"
SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
SYSTEM = "You are Ada, the assistant of a shop in Ghent, and never name the prices of others."
HOSTILE = '<script>alert("x")</script> far too long, <b>and wrong'
SETTINGS = (
    "critiques={checks: {}}", "gate.max_came_back=1.0", "gate.margin=0.49", "gate.min_distinct_ratio=null",
    "gate.max_plain_text_ratio=null", f"policy.system_prompt={json.dumps(SYSTEM)}",
)  # fmt: skip


def complaints(store: Store) -> list[Critique]:
    """What a person says of the first answers to training prompts: one a prompt."""
    train = {prompt.id for prompt in store.prompts() if prompt.split == "train"}
    answers = {c.prompt_id: c for c in store.completions() if c.prompt_id in train and len(c.text.split()) > 3}
    said = [
        ("long", "too long", ()),
        ("hostile", HOSTILE, ()),
        ("other", "Das ist ja viel zu lang und falsch.", ()),
        ("quotes", f"It should have said {SYSTEM}", ()),
        ("tags", None, (Span(start=0, end=0, label="too long"), Span(start=0, end=0, label="unsafe"))),
        ("nothing", "  ", ()),
    ]
    return [
        Critique(
            id=id,
            prompt_id=answer.prompt_id,
            completion_id=answer.id,
            comment=comment,
            spans=tuple(replace(span, end=len(answer.text)) for span in spans),
            annotator=Annotator(id="ann" if id != "other" else "gone"),
        )
        for (id, comment, spans), answer in zip(said, answers.values(), strict=False)
    ]


def complained(folder: Path, recipe: Recipe) -> Path:
    """A run of one round, after a person complained of answers of round 0."""
    Loop(recipe, run_dir=folder).run(rounds=0)
    with Store.open(folder / "feedback.db") as store:
        store.add_feedback(complaints(store))
    Loop(recipe, run_dir=folder).run(rounds=1)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    """Two rounds; one complaint is taken back before the second."""
    recipe = Recipe.load(SMOKE, SETTINGS)
    folder = complained(tmp_path_factory.mktemp("checks") / "run", recipe)
    with Store.open(folder / "feedback.db") as store:
        long = next(one for one in complaints(store) if one.id == "long")
        back = Retraction(id="back", supersedes="long", prompt_id=long.prompt_id, annotator=long.annotator, round=1)
        store.add_feedback([back])
    Loop(recipe, run_dir=folder).run(rounds=2)
    return folder


def results_of(run: Path, n: int) -> dict[str, CheckResult]:
    return {one.id: one for one in read_records(RunDir(run).step(n, "checks") / "results.parquet", CheckResult)}


def by_feedback(run: Path, n: int) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in results_of(run, n).values():
        for id in one.feedback_ids:
            found.setdefault(id, []).append(one.asks)
    return found


def test_people_and_the_simulated_annotator_make_checks_by_rule_or_for_the_judge(run: Path) -> None:
    asked = by_feedback(run, 1)
    assert {id: sorted(asked[id]) for id in ("long", "hostile", "other", "tags")} == {
        "long": ["too_long"], "hostile": ["too_long"], "other": [JUDGE], "tags": [JUDGE, "too_long"]
    }  # fmt: skip
    assert "quotes" not in asked
    assert "nothing" not in asked
    origins = Counter(one.origin for one in results_of(run, 1).values())
    assert origins["simulated"] > 0
    counts = read_json(RunDir(run).step(1, "snapshot") / "validation.json")["checks"]
    assert counts["checks"] == len(results_of(run, 1))
    assert counts["by_asks"] == dict(Counter(one.asks for one in results_of(run, 1).values()))


def test_the_new_policy_answers_each_prompt_once_and_greedily_and_only_training_prompts(run: Path) -> None:
    files = RunDir(run)
    answers = read_records(files.step(1, "checks") / "answers.parquet", Completion)
    checks = read_records(files.step(1, "snapshot") / "checks.parquet", Check)
    assert Counter(one.prompt_id for one in answers) == {check.prompt_id: 1 for check in checks}
    with Store.open(run / "feedback.db") as store:
        policy = next(a.id for a in store.artifacts(kind="policy") if a.round == 1)
        splits = {prompt.split for prompt in store.prompts(ids=[one.prompt_id for one in answers])}
    assert {one.policy for one in answers} == {policy}
    assert splits == {"train"}
    assert {one.sampling["temperature"] for one in answers} == {0.0}


def test_outcomes_follow_from_the_answers_of_this_policy_and_of_the_one_promoted_before(run: Path) -> None:
    files = RunDir(run)
    assert read_json(files.step(1, "gate") / "decision.json")["promoted"]
    assert all(one.before is None for one in results_of(run, 1).values())  # the base was not asked
    before = {one.prompt_id: one for one in read_records(files.step(1, "checks") / "answers.parquet", Completion)}
    now = {one.prompt_id: one for one in read_records(files.step(2, "checks") / "answers.parquet", Completion)}
    told = 0
    for one in results_of(run, 2).values():
        if one.asks == JUDGE:
            continue
        mine, last = (
            passes(one.asks, one.limit, answer.text, answer.finish_reason == "stop") if answer else None
            for answer in (now[one.prompt_id], before.get(one.prompt_id))
        )
        assert (one.before, one.answer) == (last, now[one.prompt_id].text)
        assert one.outcome == ("fixed" if mine else "came_back" if last else "still_there")
        told += 1
    assert told > 0
    judged = [one for one in results_of(run, 2).values() if one.asks == JUDGE]
    assert {one.outcome for one in judged} <= {"fixed", "still_there", "came_back"}
    same = [one for one in judged if one.answer.strip() == one.text.strip()]
    assert all(one.outcome != "fixed" for one in same)
    found = read_json(files.step(2, "checks") / "checks.json")
    assert found == json.loads(json.dumps(summary(list(results_of(run, 2).values()), seed=0)))


def test_what_was_taken_back_is_asked_no_longer(run: Path) -> None:
    assert "long" in by_feedback(run, 1)
    assert "long" not in by_feedback(run, 2)
    assert "hostile" in by_feedback(run, 2)


def test_the_report_shows_complaints_and_what_became_of_them_as_text(run: Path) -> None:
    html = (run / "report.html").read_text()
    assert "What became of complaints" in html
    assert "Complaints that are fixed" in html
    assert "<script>alert" not in html
    assert "<b>and wrong" not in html
    found = read_json(RunDir(run).step(2, "checks") / "checks.json")
    assert f"<td>{found['checks']}</td><td>{found['fixed']}</td>" in html


def test_the_dashboard_says_what_became_of_a_complaint(run: Path) -> None:
    with Store.open(run / "feedback.db") as store:
        service = Service(store=store, run_dir=run, open_access=True)
        client = TestClient(create_app(service), base_url="http://127.0.0.1", follow_redirects=False)
        page = client.get("/trace?id=hostile").text
        overview = client.get("/").text
        other = client.get("/trace?id=nothing").text
    (check,) = [one for one in results_of(run, 2).values() if "hostile" in one.feedback_ids]
    words = {"fixed": "fixed", "still_there": "still there", "came_back": "came back"}[check.outcome]
    assert "Complaints that later policies were asked again" in page
    assert f"{check.limit} words or fewer" in page
    assert f'round 2: <span class="{"good-text" if words == "fixed" else "muted"}">{words}</span>' in page
    assert "round 1: " in page
    assert "Complaints that later policies were asked again" not in other
    found = read_json(RunDir(run).step(2, "checks") / "checks.json")
    assert "complaints fixed" in overview
    told = f"{found['fixed']} of {found['checks'] - found['not_told']}"
    assert f'<td>{told} <span class="range">{found["came_back"]} came back</span></td>' in overview


def test_a_rerun_makes_nothing_again_and_a_deletion_takes_complaints_out_of_all_files(
    run: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.glob("round_*/*/manifest.json")}
    (run / "round_002" / "manifest.json").unlink()
    Loop(Recipe.load(SMOKE, SETTINGS), run_dir=run).run(rounds=2)
    assert {path: path.stat().st_mtime_ns for path in run.glob("round_*/*/manifest.json")} == before
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    with Store.open(copy / "feedback.db") as store:
        delete_user(store, "gone", [copy], rewrite_report=write_report)
    for n in (1, 2):
        assert "other" in by_feedback(run, n)
        assert "other" not in by_feedback(copy, n)
        texts = " ".join(text for one in results_of(copy, n).values() for text in one.critiques)
        assert "viel zu lang" not in texts
        assert "hostile" in by_feedback(copy, n)
    assert "viel zu lang" not in (copy / "report.html").read_text()


def test_a_model_behind_a_server_judges_what_no_rule_understands(tmp_path: Path, model_cache: Path) -> None:
    asked: list[dict[str, str]] = []

    def say(request: dict) -> str:  # type: ignore[type-arg]
        texts = texts_of(request)
        number = sum(texts == before for before in asked)
        asked.append(texts)
        return json.dumps({"score": 80 if "Das ist" in texts["complaint"] else [0, 60, 90][number % 3]})

    with running(say) as (_, url):
        block = {"big": {"base_url": url, "model": "judge-70b", "max_retries": 0, "concurrency": 1}}
        judge = {"checks": {"judge": {"endpoint": "big", "samples": 3}}}
        parts = [{"model": str(REWARDS / "frozen_head")}, {"model": str(REWARDS / "complaint_checks"), "weight": 0.5}]
        settings = {"endpoints": block, "critiques": judge, "reward": {"components": parts}}
        recipe = Recipe.load(SMOKE, [*SETTINGS, *(f"{name}={json.dumps(value)}" for name, value in settings.items())])
        made = complained(tmp_path / "run", recipe)
    judged = [one for one in results_of(made, 1).values() if one.asks == JUDGE]
    assert len(asked) == 3 * len(judged)
    (german,) = [one for one in judged if "other" in one.feedback_ids]
    assert german.outcome == "fixed"
    others = [one for one in judged if one is not german]
    assert others
    assert {one.outcome for one in others} == {"still_there"}  # a mean of 50 is not above 50
    shown = next(texts for texts in asked if "Das ist" in texts["complaint"])
    assert (shown["earlier"], shown["answer"]) == (german.text, german.answer)
    # and what rules understand is a part of the reward
    files = RunDir(made)
    ruled = {one.prompt_id for one in results_of(made, 1).values() if one.asks != JUDGE}
    waiting = {c.id: c for c in read_records(files.step(0, "generate") / "completions.parquet", Completion)}
    scores = read_records(files.step(1, "score") / "scores.parquet", Score)
    has = [one for one in scores if any("complaint_checks" in name for name in one.breakdown)]
    part = {waiting[one.completion_id].prompt_id for one in has}
    assert part == ruled & {one.prompt_id for one in waiting.values()}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("update.algorithm=none", "critiques.checks: it asks each new policy"),
        ("critiques={checks: {judge: {endpoint: big}}}", "critiques.checks.judge.endpoint: there is no endpoint `big`"),
        ("critiques=null", "gate.max_came_back: nothing is asked again"),
        ("critiques={checks: {max_checks: 0}}", "critiques.checks.max_checks"),
    ],
)
def test_settings_without_effect_are_refused(override: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Recipe.load(SMOKE, [*SETTINGS, override])


@pytest.mark.parametrize(
    ("fixed_before", "came_back", "limit", "passed"),
    [(10, 1, 0.1, True), (10, 2, 0.1, False), (0, 0, 0.0, True), (3, 0, 0.0, True)],
)
def test_the_gate_keeps_the_last_policy_where_complaints_come_back(
    fixed_before: int, came_back: int, limit: float, passed: bool
) -> None:
    share = came_back / fixed_before if fixed_before else None
    settings = Gate(max_came_back=limit, max_perplexity_ratio=None, max_plain_text_ratio=None, min_distinct_ratio=None)
    won = {"win_rate_vs_previous": {"mean": 0.6, "low": 0.5, "high": 0.7, "n": 9}}
    decision = decide(won, settings, {"share_came_back": share, "fixed_before": fixed_before})
    assert decision["promoted"] is passed
    check = next(one for one in decision["checks"] if one["name"] == "came_back")
    wanted = f"{came_back / fixed_before:.2f}" if fixed_before else "no complaint was fixed before"
    assert wanted in check["text"]
    assert decide(won, settings, None)["promoted"]


def test_the_line_of_a_round_counts_what_was_told() -> None:
    found = {"checks": 15, "fixed": 12, "came_back": 1, "still_there": 2, "not_told": 0}
    assert in_words(found) == "12 of 15 complaints fixed, 1 came back"
