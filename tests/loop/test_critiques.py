"""The recipe's `critiques:` block: what is refused, and what a run on the tiny model makes of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from samples.runs import outputs

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import read_json
from rlhf_loop.loop import Loop
from rlhf_loop.progress import RunProgress
from rlhf_loop.recipe import Recipe, parse
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Annotator, Completion, Critique, CritiquedCompletion, Edit, PreferencePair, Score
from rlhf_loop.rows.critiques.fresh import complained_of
from rlhf_loop.run_dir import RunDir
from rlhf_loop.steps.learn import CONTROL

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
EDITED = "The sky is blue."
BOTH = ("critiques={edits: {}, fresh: {}}", "generation.prompts_per_round=6")


def test_an_unknown_method_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown key `critiques.edit`; did you mean `edits`\?"):
        Recipe.load(SMOKE, ["critiques.edit={}"])


def test_a_method_without_a_block_is_not_silently_off() -> None:
    with pytest.raises(UserError, match=r"critiques.edits: write `edits: \{\}` to use it, or leave the key out"):
        Recipe.load(SMOKE, ["critiques.edits=null"])


def test_a_method_that_is_off_leaves_no_trace_in_the_recipe() -> None:
    recipe = Recipe.load(SMOKE, ["critiques={}"])
    assert recipe.critiques is not None
    assert recipe.model_dump(mode="json")["critiques"] == {
        "control": None, "kinds": ["human", "simulated", "llm", "code"]
    }  # fmt: skip
    assert recipe.critiques.methods() == {}
    assert Recipe.load(SMOKE).critiques is None
    again = parse(Recipe.load(SMOKE, ["critiques.edits={}"]).model_dump(mode="json"))
    assert again.critiques is not None
    assert list(again.critiques.gives("pairs")) == ["edits"]
    assert again.critiques.gives("term") == {}


def made(folder: Path, *overrides: str, progress: RunProgress | None = None) -> Path:
    """A run of one round, of which a person criticised and edited an answer of round 0."""
    recipe = Recipe.load(SMOKE, overrides)
    Loop(recipe, run_dir=folder).run(rounds=0)
    with Store.open(folder / "feedback.db") as store:
        mended = next(c for c in store.completions() if store.prompts(ids=[c.prompt_id])[0].split == "train")
        about = {"prompt_id": mended.prompt_id, "completion_id": mended.id, "annotator": Annotator(id="ann")}
        store.add_feedback(
            [
                Edit(id="edit", edited_completion=EDITED, **about),
                Critique(id="critique", comment="It is no sentence at all.", **about),
            ]
        )
    Loop(recipe, run_dir=folder, progress=progress).run(rounds=1)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    return made(tmp_path_factory.mktemp("critiques") / "run", *BOTH)


def test_edits_train_the_policy_as_pairs_of_their_own_origin(run: Path) -> None:
    files = RunDir(run)
    frozen, assembled = files.step(1, "snapshot"), files.step(1, "assemble")
    rows = read_records(frozen / "critiques.parquet", CritiquedCompletion)
    assert [(row.revision, row.origin) for row in rows if row.revision is not None] == [(EDITED, "human")]
    counts = read_json(frozen / "validation.json")["critiques"]
    assert counts["edits"] == 1
    said = Counter(row.origin for row in rows if row.critique)
    assert said["human"] == 1
    assert said["simulated"] > 1
    assert counts["by_origin"] == dict(said)
    summary = read_json(assembled / "summary.json")
    pairs = read_records(assembled / "training_data.parquet", PreferencePair)
    (pair,) = [pair for pair in pairs if pair.origin == "edit"]
    assert summary["by_origin"]["edit pairs"] == summary["critiques"]["edits"]["pairs"] == 1
    assert summary["critiques"]["edits"]["said_by"] == {"human": 1}
    assert summary["critiques"]["fresh"]["said_by"].keys() <= {"human", "simulated"}
    assert (pair.chosen[0]["content"], pair.rejected_token_ids is not None) == (EDITED, True)
    assert not (assembled / "critiques.parquet").exists()
    with Store.open(run / "feedback.db") as store:
        policy = next(a for a in store.artifacts(kind="policy") if a.round == 1)
    assert "edit" in policy.trained_on


def test_fresh_candidates_go_over_what_was_complained_of_by_this_rounds_scores(run: Path) -> None:
    files = RunDir(run)
    frozen, score, assembled = (files.step(1, step) for step in ("snapshot", "score", "assemble"))
    complaints = complained_of(read_records(frozen / "critiques.parquet", CritiquedCompletion))
    of_complaints = read_records(score / "critiqued_scores.parquet", Score)
    assert {one.completion_id for one in of_complaints} == set(complaints)
    scores = read_records(score / "scores.parquet", Score)
    values = {one.completion_id: one.value for one in [*of_complaints, *scores]}
    assert len({one.reward_model for one in [*of_complaints, *scores]}) == 1
    waiting = read_records(files.step(0, "generate") / "completions.parquet", Completion)
    assert [one.completion_id for one in scores] == [one.id for one in waiting]
    pairs = read_records(assembled / "training_data.parquet", PreferencePair)
    fresh = [pair for pair in pairs if pair.origin == "fresh"]
    counts = read_json(assembled / "summary.json")
    assert counts["by_origin"]["fresh pairs"] == counts["critiques"]["fresh"]["pairs"] == len(fresh) > 0
    texts = {one.id: one.text for one in waiting}
    for pair in fresh:
        assert pair.rejected_id in complaints
        assert pair.chosen_id not in complaints
        assert pair.chosen[0]["content"] == texts[pair.chosen_id] != pair.rejected[0]["content"]
        assert pair.margin == pytest.approx(values[pair.chosen_id] - values[pair.rejected_id])
        assert pair.margin > 0
    sides = Counter(frozenset((pair.chosen_id, pair.rejected_id)) for pair in pairs)
    assert max(sides.values()) == 1


def test_prompts_with_complaints_are_drawn_first(run: Path) -> None:
    files = RunDir(run)
    rows = complained_of(read_records(files.step(1, "snapshot") / "critiques.parquet", CritiquedCompletion))
    complained = {given[0].prompt_id for given in rows.values()}
    drawn = {one.prompt_id for one in read_records(files.step(1, "generate") / "completions.parquet", Completion)}
    assert len(drawn) == 6
    assert drawn <= complained or complained <= drawn


def test_the_report_shows_the_pairs_the_critiques_and_the_reasons(run: Path) -> None:
    html = (run / "report.html").read_text()
    assert "edit pair" in html
    assert "fresh pairs" in html
    assert "critiques of people" in html
    assert "critiques of a simulated annotator" in html
    assert "What is complained of" in html
    assert "1 complaint by people" in html
    assert "control experiment" not in html


def test_a_rerun_makes_nothing_again(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.glob("round_*/*/manifest.json")}
    (run / "round_001" / "manifest.json").unlink()
    Loop(Recipe.load(SMOKE, BOTH), run_dir=run).run(rounds=1)
    assert {path: path.stat().st_mtime_ns for path in run.glob("round_*/*/manifest.json")} == before


def test_a_block_without_methods_changes_nothing_that_is_trained_on(
    run: Path, tmp_path: Path, model_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, control = tmp_path / "plain", tmp_path / "control"
    made(plain, BOTH[1])
    made(control, "critiques.control=shuffled", BOTH[1], progress=RunProgress())
    assert CONTROL in " ".join(capsys.readouterr().out.split())
    with_block, without = outputs(control), outputs(plain)
    for name, files in without.items():
        if name.split("/")[1] not in ("snapshot", "assemble"):
            assert with_block[name] == files
    assert "critiques.parquet" not in without["1/snapshot"]
    assert without["1/assemble"]["training_data.parquet"] == with_block["1/assemble"]["training_data.parquet"]
    assert read_json(RunDir(control).step(1, "assemble") / "summary.json")["control"] == "shuffled"
    assert "control experiment" in (control / "report.html").read_text()
    frozen = RunDir(control).step(1, "snapshot")
    mixed = read_records(frozen / "critiques.parquet", CritiquedCompletion)
    moved = [row for row in mixed if row.said_of is not None]
    assert read_json(frozen / "validation.json")["critiques"]["moved_to_another_answer"] == len(moved) > 0
    straight = read_records(RunDir(run).step(1, "snapshot") / "critiques.parquet", CritiquedCompletion)
    assert sorted(row.critique for row in mixed) == sorted(row.critique for row in straight)
    assert [row.critique for row in mixed] != [row.critique for row in straight]


def test_revisions_of_the_round_before_go_over_what_they_revise(tmp_path: Path, model_cache: Path) -> None:
    settings = ["critiques.revisions={}", "generation.strategy=refine", "update.trainer.max_steps=1"]
    recipe = Recipe.load(SMOKE, [*settings, "generation.max_new_tokens=8", "generation.samples_per_prompt=4"])
    Loop(recipe, run_dir=tmp_path / "run").run(rounds=2)
    files = RunDir(tmp_path / "run")
    written = read_records(files.step(1, "generate") / "completions.parquet", Completion)
    revisions = {one.id: one for one in written if one.parent is not None}
    assert revisions
    pairs = read_records(files.step(2, "assemble") / "training_data.parquet", PreferencePair)
    made = [pair for pair in pairs if pair.origin == "revision"]
    summary = read_json(files.step(2, "assemble") / "summary.json")["critiques"]["revisions"]
    assert summary["pairs"] == len(made) > 0
    assert summary["said_by"] == {"simulated": len(made)}
    for pair in made:
        assert revisions[pair.chosen_id].parent == pair.rejected_id
        assert pair.prompt_id == revisions[pair.chosen_id].prompt_id
        assert pair.margin > 0
