"""A comparison from end to end, on a tiny model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from samples.cli import rlhf_loop

from rlhf_loop import compare
from rlhf_loop.errors import UserError
from rlhf_loop.files.locks import locked
from rlhf_loop.progress import RunProgress

ROOT = Path(__file__).parents[2]
SWEEP = ROOT / "recipes" / "compare" / "smoke.yaml"


class Said(RunProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def changed(folder: Path, **values: Any) -> Path:
    """The smoke sweep with some of it replaced."""
    sweep = yaml.safe_load(SWEEP.read_text()) | {"recipe": str(ROOT / "recipes" / "smoke.yaml")} | values
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    """Of a complete comparison, made by the command: two cells, two seeds, one round."""
    made = tmp_path_factory.mktemp("compared") / "smoke"
    finished = rlhf_loop("compare", SWEEP, "--folder", made)
    assert "In win-rate over the base policy " in finished.stdout
    assert "rejection_sampling seed 1: complete in " in finished.stdout
    shutil.copy(made / "results.parquet", made / "whole.parquet")  # tests make other comparisons of the folder
    return made


def test_results_hold_a_row_for_each_cell_seed_and_round(folder: Path) -> None:
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    assert [(row["cell"], row["seed"], row["round"]) for row in rows] == [
        (cell, seed, number) for cell in ("dpo", "rejection_sampling") for seed in (0, 1) for number in (0, 1)
    ]
    for row in rows:
        run = folder / row["cell"] / f"seed_{row['seed']}"
        evaluation = json.loads((run / f"round_{row['round']:03d}" / "evaluate" / "evaluation.json").read_text())
        assert row["win_rate"] == evaluation["win_rate_vs_base"]["mean"]
        assert row["kl"] == evaluation["kl"]["per_completion"]
        if row["round"]:
            promoted = row["outcome"] == "promoted"
            assert row["round_of_policy_in_force"] == (1 if promoted else 0)
            assert row["win_rate_in_force"] == pytest.approx(row["win_rate"] if promoted else 0.5)
            # eight questions of round 0; its candidates, 3 for each of 8 prompts
            assert (row["labels"], row["labels_preference"], row["samples"]) == (8, 8, 24)
            assert row["updates"] == json.loads((run / "round_001" / "update" / "metrics.json").read_text())["steps"]
        else:
            assert (row["labels"], row["samples"], row["updates"], row["win_rate_in_force"]) == (0, 0, 0, 0.5)


def test_the_report_is_one_offline_page_with_links_to_the_runs_and_tables_for_a_paper(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?:https?:|//)|<script|url\((?!#)', page)
    for run in ("dpo/seed_0", "rejection_sampling/seed_1"):
        assert f'href="{run}/report.html"' in page
        assert (folder / run / "report.html").exists()
    assert "| dpo | 2 | 8 | 24 | " in page
    assert r"rejection\_sampling &amp; 2 &amp; 8 &amp; 24" in page
    assert "no difference shown" in page
    assert "simulated annotator" in page
    assert page.count("<svg") == 7


def test_a_second_call_makes_nothing_again_and_new_cells_are_added(folder: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/seed_*/round_*/manifest.json")}
    broken = {"feedback.validation.min_pairs": 1000}
    cells = {"dpo": {}, "too_few": broken}
    said = Said()
    found = compare(changed(tmp_path, cells=cells), folder, progress=said)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert said.lines[0] == (
        "not in the sweep, left as they are and out of the report: rejection_sampling/seed_0, rejection_sampling/seed_1"
    )
    assert list(found.errors) == ["too_few seed 0", "too_few seed 1"]
    assert "8 usable pairs are too few" in found.errors["too_few seed 0"]
    assert list(found.cells) == ["dpo"]
    assert found.yardsticks == []
    page = found.report.read_text()
    assert "2 of 4 runs are not complete" in page
    assert "too_few" in found.results.read_bytes().decode("latin-1")  # its round 0
    finished = rlhf_loop("compare", tmp_path / "changed.yaml", "--folder", folder, code=2)
    assert "error: too_few seed 0: round 1: 8 usable pairs" in finished.stderr


def test_a_cell_that_changed_under_its_name_is_refused_with_what_changed(folder: Path, tmp_path: Path) -> None:
    path = changed(tmp_path, cells={"dpo": {"update.trainer.learning_rate": 0.5}, "rejection_sampling": {}})
    with pytest.raises(UserError) as refused:
        compare(path, folder)
    assert "update.trainer.learning_rate: 0.001 -> 0.5" in str(refused.value)
    assert "update.algorithm: 'rejection_sampling' -> 'dpo'" in str(refused.value)
    assert "give the changed cell another name" in str(refused.value)


def test_a_folder_that_is_something_else_is_refused_and_stays(tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "file"
    run.mkdir()
    (run / "recipe.yaml").touch()
    file.touch()
    with pytest.raises(UserError, match=r"run is a run, whose report .* choose another --folder"):
        compare(SWEEP, run)
    for place in (file, file / "below"):
        with pytest.raises(UserError, match="is a file and no folder"):
            compare(SWEEP, place)
    assert [path.name for path in run.iterdir()] == ["recipe.yaml"]


def test_cells_that_will_spend_unequally_are_refused_before_anything_runs(tmp_path: Path) -> None:
    cells = {"dpo": {}, "more": {"feedback.questions_per_round": 20}}
    with pytest.raises(UserError, match=r"more: 20 labels; dpo: 8, 2\.50 times as many"):
        compare(changed(tmp_path, cells=cells), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*/seed_*"))


@pytest.mark.slow
def test_a_comparison_that_was_killed_goes_on_and_ends_as_one_that_was_not(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "rlhf_loop", "compare", str(SWEEP), "--folder", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith("dpo seed 0: round 1 of 1"))
    process.kill()
    process.wait()
    process.stdout.close()
    found = compare(SWEEP, tmp_path / "killed")
    assert found.errors == {}
    files = (tmp_path / "killed" / "results.parquet", folder / "whole.parquet")
    ended, whole = (pq.read_table(file).to_pylist() for file in files)
    for rows in (ended, whole):
        for row in rows:
            del row["seconds"], row["peak_memory_bytes"]
    assert ended == whole


def test_two_comparisons_do_not_work_on_one_folder_at_once(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out" / "lock", "it"), pytest.raises(UserError, match="is in use by process"):
        compare(SWEEP, tmp_path / "out")
