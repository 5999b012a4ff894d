"""Runs whose updates learn from critiques beside their own rows: the smoke recipe, with every such method on."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_loop import Loop, Recipe
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import read_json
from rlhf_loop.models.training import read_log
from rlhf_loop.progress import RunProgress
from rlhf_loop.record_files import read_records
from rlhf_loop.records import CritiquedCompletion
from rlhf_loop.run_dir import RunDir

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
METHODS = ("predict", "unlikelihood", "hindsight")
ON = ("critiques.predict={}", "critiques.unlikelihood={}", "critiques.hindsight.entry_test=false")


@pytest.mark.parametrize("algorithm", ["dpo", "sft"])
def test_a_run_learns_from_what_its_annotator_says(
    algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe.load(SMOKE, [*ON, f"update.algorithm={algorithm}"])
    Loop(recipe, run_dir=tmp_path, progress=RunProgress()).run(rounds=1)
    files = RunDir(tmp_path)
    rows = read_records(files.step(1, "assemble") / "critiques.parquet", CritiquedCompletion)
    said = [row for row in rows if row.critique]
    assert said
    assert all(row.token_ids for row in said)
    summary = read_json(files.step(1, "assemble") / "summary.json")
    assert summary["by_origin"]["simulated critiques"] == len(said)
    update = files.step(1, "update")
    counts = read_json(update / "metrics.json")["critiques"]
    assert list(counts) == list(METHODS)
    assert counts["predict"]["examples"] == len(said)
    logged = {name for line in read_log(update / "train_log.jsonl") for name in line}
    assert {f"critiques/{name}_loss" for name in METHODS} <= logged
    assert f"critiques.predict: {len(said)} answers" in " ".join(capsys.readouterr().out.split())
    with Store.open(tmp_path / "feedback.db") as store:
        policy = next(a for a in store.artifacts(kind="policy") if a.round == 1)
    assert {id for row in said for id in row.feedback_ids} <= set(policy.trained_on)


def test_a_run_without_critiques_says_that_nothing_is_learned_from_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = ["feedback.annotator.critiques=false", "feedback.annotator.thumbs_above=null", "critiques.predict={}"]
    Loop(Recipe.load(SMOKE, silent), run_dir=tmp_path, progress=RunProgress()).run(rounds=1)
    assert "critiques.predict: off, there are no critiques yet" in " ".join(capsys.readouterr().out.split())
    assert (RunDir(tmp_path).step(1, "update") / "policy").exists()
