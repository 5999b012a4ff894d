"""What a sweep's file may say, and what is said of one that cannot be run."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_loop.comparison.sweep import load_sweep, runs_of
from rlhf_loop.errors import UserError

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "recipes" / "smoke.yaml"


def written(folder: Path, **values: Any) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"recipe": str(SMOKE), "reference": "a", **values}, sort_keys=False))
    return path


def refused(folder: Path, **values: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_sweep(written(folder, **values))
    return str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "compare").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_loads_and_says_how_to_run_it(path: Path) -> None:
    sweep, cells = load_sweep(path)
    assert cells[0].name == sweep.reference
    first_comment = path.read_text().split("\nrecipe:")[0]
    assert f"rlhf-loop compare recipes/compare/{path.name}" in first_comment
    assert "Hardware:" in first_comment
    assert "Expect:" in first_comment


def test_cells_and_grid_are_settings_over_the_recipe_the_reference_first(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        common={"rounds": 1},
        cells={"b": {"feedback.questions_per_round": 4}, "a": None},
        grid={"update.algorithm": ["dpo", "kto"], "update.lora.r": [2]},
        reference="a-kto-r-2",
        seeds=[3, 5],
    )
    sweep, cells = load_sweep(path)
    assert [cell.name for cell in cells] == ["a-kto-r-2", "b-dpo-r-2", "b-kto-r-2", "a-dpo-r-2"]
    assert {cell.recipe.rounds for cell in cells} == {1}
    assert [(c.recipe.update.algorithm, c.recipe.feedback.questions_per_round) for c in cells[:2]] == [
        ("kto", 8),
        ("dpo", 4),
    ]
    runs = runs_of(sweep, cells, tmp_path)
    assert [(run.cell, run.seed, run.recipe.seed) for run in runs[3:5]] == [("a-dpo-r-2", 3, 3), ("a-kto-r-2", 5, 5)]
    assert runs[0].folder == tmp_path / "a-kto-r-2" / "seed_3"


def test_paths_of_a_cell_start_at_the_sweeps_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "text.jsonl").write_text('{"text": "Plain."}\n')
    _, cells = load_sweep(written(tmp_path, cells={"a": None, "b": {"evaluation.plain_text": "text.jsonl"}}))
    assert cells[1].recipe.evaluation.plain_text == tmp_path / "text.jsonl"


def test_what_cannot_be_run_is_told_with_its_cell(tmp_path: Path) -> None:
    two: dict[str, Any] = {"a": None, "b": {"rounds": 2}}
    assert "cell b: " in (said := refused(tmp_path, cells={"a": None, "b": {"update.algoritm": "kto"}}))
    assert "unknown key `update.algoritm`; did you mean `algorithm`?" in said
    assert "there is no cell `aa`; did you mean `a`?" in refused(tmp_path, cells=two, reference="aa")
    assert "nothing to compare it with" in refused(tmp_path, cells={"a": None})
    assert "`seed` is no setting of a cell: it is `seeds` of the sweep" in refused(
        tmp_path, cells={"a": None, "b": {"seed": 1}}
    )
    assert "`store` is no setting of a cell" in refused(tmp_path, cells=two, common={"store": "x.db"})
    assert "holds a seed twice" in refused(tmp_path, cells=two, seeds=[1, 1])
    assert "did you mean `edit`?" in refused(tmp_path, cells=two, budget={"prices": {"edits": 1}})
    assert "it names a folder" in refused(tmp_path, cells={"a": None, "../b": None})
    assert "`dpo` and `DPO` differ in capital letters alone" in refused(tmp_path, cells={"dpo": None, "DPO": None})
    assert "`Report.HTML` is a file of the comparison" in refused(tmp_path, cells={"a": None, "Report.HTML": None})
    assert "make it a cell" in refused(tmp_path, grid={"update.lora": [{"r": 1}, {"r": 2}]})
    assert "give `cells:" in refused(tmp_path)


def test_what_yaml_reads_as_no_setting_is_told(tmp_path: Path) -> None:
    day = datetime.date(2024, 1, 1)
    assert "cell b: settings are texts" in refused(tmp_path, cells={"a": {}, "b": {"update.algorithm": day}})
    for seed in (-1, 2**63, True):
        assert "a seed is a whole number from 0" in refused(tmp_path, cells={"a": {}, "b": {}}, seeds=[0, seed])
    message = refused(tmp_path, cells={"a": {}, "report.html": {}})
    assert "`report.html` is a file of the comparison" in message
