"""Each strategy of generation in a run: what it reads of the rounds before, and what becomes of what it writes."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rlhf_loop import Loop, Recipe
from rlhf_loop.errors import UserError
from rlhf_loop.feedback.privacy.deletion_files import redact_run
from rlhf_loop.feedback.privacy.deletion_rows import Deletion
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import read_json
from rlhf_loop.generation.strategies.given import Shown
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Completion, PreferencePair, Prompt, Recalled, Score
from rlhf_loop.report import write_report
from rlhf_loop.retrieval.index import Index
from rlhf_loop.run_dir import RunDir

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"


def run(folder: Path, *settings: str, rounds: int = 2) -> RunDir:
    recipe = Recipe.load(SMOKE, ["generation.max_new_tokens=8", "update.trainer.max_steps=1", *settings])
    Loop(recipe, run_dir=folder).run(rounds=rounds)
    return RunDir(folder)


def candidates(made: RunDir, n: int) -> list[Completion]:
    answers: list[Completion] = read_records(made.step(n, "generate") / "completions.parquet", Completion)
    return answers


def test_fresh_leaves_candidates_alone_and_variety_is_measured(tmp_path: Path, model_cache: Path) -> None:
    made = run(tmp_path / "run", rounds=1)
    for n in (0, 1):
        files = {path.name for path in made.step(n, "generate").iterdir()}
        assert files == {"completions.parquet", "manifest.json"}
        assert not made.step(n, "embed").exists()
        assert not made.step(n, "recall").exists()
    variety = [read_json(made.round(n) / "manifest.json")["figures"]["variety"] for n in (0, 1)]
    assert variety[0]["overlap"] is None
    for measures in variety:
        assert (
            0 < measures["distinct_2"]["low"] <= measures["distinct_2"]["mean"] <= measures["distinct_2"]["high"] <= 1
        )
    assert 0 <= variety[1]["overlap"]["mean"] <= 1


def test_best_of_n_keeps_the_best_by_the_rounds_reward_model(tmp_path: Path, model_cache: Path) -> None:
    made = run(tmp_path / "run", "generation.strategy=best_of_n", "generation.best_of_n.n=6", rounds=1)
    assert read_json(made.step(0, "generate") / "written.json")["counts"] == {"prompts before a reward model": 8}
    kept = candidates(made, 1)
    aside: list[Completion] = read_records(made.step(1, "generate") / "set_aside.parquet", Completion)
    assert Counter(c.prompt_id for c in [*kept, *aside]) == dict.fromkeys({c.prompt_id for c in kept}, 6)
    assert Counter(c.prompt_id for c in kept) == dict.fromkeys({c.prompt_id for c in kept}, 3)
    scores: list[Score] = read_records(made.step(1, "rescore") / "scores.parquet", Score)
    assert {score.completion_id for score in scores} == {c.id for c in kept}
    with Store.open(made.store_url) as store:
        assert not store.completions(ids=[c.id for c in aside])


@pytest.mark.parametrize("strategy", ["refine", "exemplars"])
def test_each_alone_reads_its_own_part_of_the_past(tmp_path: Path, model_cache: Path, strategy: str) -> None:
    made = run(tmp_path / "run", f"generation.strategy={strategy}", "generation.exemplars.min_standing=0", rounds=1)
    shown: list[Shown] = read_records(made.step(1, "generate") / "shown.parquet", Shown)
    assert {one.use for one in shown} == {"to revise" if strategy == "refine" else "exemplar"}
    revised = [c for c in candidates(made, 1) if c.parent is not None]
    assert bool(revised) == (strategy == "refine")
    assert made.step(1, "embed").exists() == (strategy == "exemplars")
    written = {path.name for path in made.step(1, "recall").iterdir()}
    assert written == {"manifest.json", "recall.json", "to_revise.parquet" if revised else "exemplars.parquet"}


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> RunDir:
    folder = tmp_path_factory.mktemp("refined") / "run"
    return run(folder, "generation.strategy=refine+exemplars", "generation.exemplars.min_standing=0", rounds=3)


def test_a_revision_is_an_answer_to_its_prompt_and_names_what_it_revises(refined: RunDir) -> None:
    prompts = {p.id: p for p in read_records(refined.step(1, "snapshot") / "prompts.parquet", Prompt)}
    with Store.open(refined.store_url) as store:
        by_id = {c.id: c for c in store.completions()}
    revisions = [c for n in (1, 2, 3) for c in candidates(refined, n) if c.parent is not None]
    assert revisions
    assert any(c.critique for c in revisions)
    for one in revisions:
        parent = by_id[one.parent or ""]
        assert parent.round < one.round
        assert parent.prompt_id == one.prompt_id
        assert one.text.strip() != parent.text.strip()
    depths = []
    for one in revisions:
        seen, place = set(), one
        while place.parent is not None:
            assert place.id not in seen
            seen.add(place.id)
            place = by_id[place.parent]
        depths.append(len(seen))
    assert max(depths) <= 3
    pairs: list[PreferencePair] = [
        pair
        for n in (2, 3)
        for pair in read_records(refined.step(n, "assemble") / "training_data.parquet", PreferencePair)
    ]
    ids = {c.id for c in revisions}
    trained = [pair for pair in pairs if {pair.chosen_id, pair.rejected_id} & ids]
    assert trained
    for pair in trained:
        assert pair.prompt == prompts[pair.prompt_id].messages


def test_exemplars_are_answers_to_other_training_prompts_of_earlier_rounds(refined: RunDir) -> None:
    held_out = {p.id for p in read_records(refined.step(1, "snapshot") / "held_out.parquet", Prompt)}
    with Store.open(refined.store_url) as store:
        by_id = {c.id: c for c in store.completions()}
    for n in (1, 2, 3):
        shown: list[Shown] = read_records(refined.step(n, "generate") / "shown.parquet", Shown)
        used = [one for one in shown if one.use == "exemplar"]
        assert used
        for one in used:
            answer = by_id[one.completion_id]
            assert answer.prompt_id != one.prompt_id
            assert answer.prompt_id not in held_out
            assert answer.round < n
        assert max(Counter(one.prompt_id for one in used).values()) <= 3


def test_each_text_is_embedded_once_and_the_novelty_of_answers_measured(refined: RunDir) -> None:
    folders = [refined.step(n, "embed") for n in range(4)]
    index = Index.open(folders, "prompts")
    assert len(index) == 8
    assert [read_json(folder / "embed.json")["new"]["prompts"] for folder in folders] == [8, 0, 0, 0]
    answers = Index.open(folders, "answers")
    known = [answers.key(row) for row in range(len(answers))]
    assert {key.completion_id for key in known if key} == {c.id for n in range(4) for c in candidates(refined, n)}
    norms = answers.vectors(range(len(answers))).norm(dim=1)
    np.testing.assert_allclose(norms[norms > 0], 1, atol=1e-3)
    variety = read_json(refined.round(2) / "manifest.json")["figures"]["variety"]
    assert variety["novelty"]["low"] <= variety["novelty"]["mean"] <= variety["novelty"]["high"]
    assert read_json(refined.round(0) / "manifest.json")["figures"]["variety"]["novelty"] is None
    page = write_report(refined).read_text()
    assert "Variety of the candidates" in page
    assert "earlier answer" in page


def test_what_was_deleted_is_recalled_no_more(refined: RunDir, tmp_path: Path) -> None:
    made = RunDir(shutil.copytree(refined.path, tmp_path / "copy"))
    gone = read_records(made.step(2, "recall") / "exemplars.parquet", Recalled)[0]
    answers = {c.id for n in range(4) for c in candidates(made, n) if c.prompt_id == gone.prompt_id}
    deletion = Deletion(
        prompts={gone.prompt_id}, completions=answers, feedback=set(), texts=set(), comments=set(), annotators=set()
    )
    with made.locked():
        redact_run(made, deletion, "user-x")
    for n in (1, 2, 3):
        rows = read_records(made.step(n, "recall") / "exemplars.parquet", Recalled)
        assert gone.prompt_id not in {row.prompt_id for row in rows}
        shown: list[Shown] = read_records(made.step(n, "generate") / "shown.parquet", Shown)
        assert not answers & {one.completion_id for one in shown}
    index = Index.open([made.step(n, "embed") for n in range(4)], "prompts")
    known = [index.key(row) for row in range(len(index))]
    row = known.index(None)
    assert gone.prompt_id not in {key.prompt_id for key in known if key}
    assert not index.vectors([row]).any()
    names = pq.read_table(made.step(0, "embed") / "answers.parquet").column("prompt_id").to_pylist()
    assert gone.prompt_id not in names


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["generation.strategy=best_of_n", "generation.best_of_n.n=2"], "best_of_n.n: of 2 samples 3"),
        (["generation.strategy=refined"], "generation.strategy"),
        (
            ["generation.strategy=exemplars", "reward=null", "pairing.sources=[feedback]"],
            "exemplars goes by a reward model's scores",
        ),
    ],
)
def test_a_strategy_that_lacks_what_it_reads_is_refused(settings: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told.replace("[", r"\[")):
        Recipe.load(SMOKE, settings)


def test_the_recipe_as_it_is_kept_holds_the_strategy(refined: RunDir) -> None:
    assert "strategy: refine+exemplars" in (refined.path / "recipe.yaml").read_text()
    counts = json.loads((refined.step(1, "recall") / "recall.json").read_text())
    assert counts["exemplars"] > 0
