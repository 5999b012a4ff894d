"""A run whose reward model is a critic: from people's critiques in the store to its own in the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import read_json
from rlhf_loop.loop import Loop
from rlhf_loop.recipe import Recipe
from rlhf_loop.record_files import read_records
from rlhf_loop.records import CritiquedCompletion, PreferencePair, Score
from rlhf_loop.run_dir import RunDir
from rlhf_loop.stages.reward import split_by_group

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
CRITIC = SMOKE.parent.parent / "reward_models" / "critic"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("critic") / "run"
    Loop(recipe(), run_dir=folder).run(rounds=1)
    return folder


def recipe(*overrides: str) -> Recipe:
    return Recipe.load(SMOKE, [f"reward.model={CRITIC}", "critiques={}", *overrides])


def test_it_learns_from_what_was_said_of_answers_outside_the_held_out_groups(run: Path) -> None:
    frozen = RunDir(run).step(1, "snapshot")
    rows = read_records(frozen / "critiques.parquet", CritiquedCompletion)
    said = [row for row in rows if row.critique]
    pairs = read_records(frozen / "pairs.parquet", PreferencePair)
    _, held_out = split_by_group(pairs, 0.2, 0)
    apart = {pair.group for pair in held_out}
    metrics = read_json(RunDir(run).step(1, "reward") / "metrics.json")["critic"]
    assert 0 < metrics["critiques"] == sum(row.group not in apart for row in said) < len(said)
    assert metrics["empty_critique"]["accuracy"]["n"] == metrics["accuracy"]["n"] == len(held_out)
    with Store.open(run / "feedback.db") as store:
        (model,) = store.artifacts(kind="reward_model")
    assert set(model.trained_on) == {id for row in [*rows, *pairs] for id in row.feedback_ids}


def test_what_it_wrote_is_kept_with_the_scores_and_shown_as_a_machine_s(run: Path) -> None:
    scores: list[Score] = read_records(RunDir(run).step(1, "rescore") / "scores.parquet", Score)
    assert scores
    assert all(score.critique is not None for score in scores)
    with Store.open(run / "feedback.db") as store:
        kept = {score.completion_id: score.critique for score in store.scores()}
    assert {score.completion_id: score.critique for score in scores}.items() <= kept.items()
    report = (run / "report.html").read_text()
    assert "critic writes a critique of an answer before it scores it" in report
    assert "a machine's words, nobody's" in report


def test_a_critic_without_the_block_that_keeps_critiques_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    without = Recipe.load(SMOKE, [f"reward.model={CRITIC}"])
    with pytest.raises(UserError, match=r"a critic learns from what people said .* add `critiques: \{\}`"):
        Loop(without, run_dir=tmp_path / "run").run(rounds=0)
    assert not list((tmp_path / "run").glob("round_*"))


def test_a_critic_is_no_judge(tmp_path: Path) -> None:
    judge = f"evaluation.judge={{kind: reward_model, model: {CRITIC}}}"
    with pytest.raises(UserError, match="critiques of the feedback kept apart are not collected"):
        Loop(recipe(judge, "prompts.judge_fraction=0.3"), run_dir=tmp_path / "run").run(rounds=0)
