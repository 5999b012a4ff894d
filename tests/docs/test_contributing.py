"""What CONTRIBUTING.md says is enough to add a thing: its own examples, put into a copy of the package as it tells."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

USED = """
from pathlib import Path
from rlhf_loop import Recipe, load_reward, update_policy
from rlhf_loop.feedback.intake.read_whole import read
from rlhf_loop.recipe import Policy
from rlhf_loop.rows.pairs import pairs_from_feedback

read_in = read("asked.jsonl")
assert {record.kind for record in read_in.feedback} == {"preference"}, read_in
pairs, _ = pairs_from_feedback(
    read_in.feedback, {c.id: c for c in read_in.completions}, {p.id: p for p in read_in.prompts}
)
assert [(p.chosen[0]["content"], p.rejected[0]["content"]) for p in pairs] == [("Blue.", "I would rather not say.")]

recipe = Recipe.load("recipes/smoke.yaml", overrides=["update.algorithm=chosen", "reward.model=reward_models/short"])
metrics = update_policy(
    pairs, start=recipe.policy.model, reference=recipe.policy.model, output=Path("out"), policy=recipe.policy,
    settings=recipe.update,
)
assert (metrics["algorithm"], metrics["demonstrations"]) == ("chosen", 1), metrics
assert Path("out/policy/adapter_model.safetensors").exists()

reward = load_reward(Path("reward_models/short"), id="short", policy=recipe.policy)
by_text = {c.text: c for c in read_in.completions}
scores = reward.score([read_in.prompts[0]] * 2, [by_text["Blue."], by_text["I would rather not say."]])
assert [score.value for score in scores] == [-1.0, -5.0], scores
"""


def examples() -> dict[str, str]:
    """Python of the page by its first comment: a file, or a file and the table in it that gets the line."""
    blocks = re.findall(r"```python\n# (.+?)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    return dict(blocks)


@pytest.mark.slow
def test_one_file_and_one_line_add_an_update_a_format_and_a_reward_model(tmp_path: Path, model_cache: Path) -> None:
    for name in ("rlhf_loop", "recipes", "reward_models"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for place, code in examples().items():
        name, _, table = place.partition(": ")
        file = tmp_path / name
        if table:
            (begin,) = re.findall(rf"^{table}\b.*= \{{\n", file.read_text(), re.M)
            text = file.read_text().replace(begin, begin + code)
            if "importers" in name:
                text = text.replace("    tutorial,\n", "    triples,\n    tutorial,\n", 1)
            file.write_text(text)
        else:
            file.parent.mkdir(exist_ok=True)
            file.write_text(code)
    (tmp_path / "reward_models/short/reward_model.yaml").write_text("kind: function\nfunction: reward.py:short\n")
    row = {"asked": "Which colour is the sky?", "good": "Blue.", "bad": "I would rather not say."}
    (tmp_path / "asked.jsonl").write_text(json.dumps(row) + "\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    finished = subprocess.run(
        [sys.executable, "-c", USED], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert finished.returncode == 0, finished.stderr[-3000:]


def test_each_file_and_table_that_the_page_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text[text.index("| to add |") : text.index("An update, here")]
    for row in table.splitlines()[2:]:
        for name in re.findall(r"`((?:rlhf_loop|tests|reward_models|recipes)/[\w/.]*)`", row):
            assert (ROOT / name.replace("KIND", "head")).exists(), f"CONTRIBUTING.md names {name}"
    for name, table_name in re.findall(r"`([A-Z]+)` (?:of|in) `(rlhf_loop/[\w/]+\.py)`", table):
        assert re.search(rf"^{name}\b", (ROOT / table_name).read_text(), re.M), f"{table_name} has no {name}"
