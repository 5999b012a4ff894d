"""A reward model that is edited between rounds is trained again, whether or not new pairs came."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from rlhf_loop import Loop, Recipe
from rlhf_loop.files.step_folders import read_manifest
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Score
from rlhf_loop.stages.arguments import StageArguments
from rlhf_loop.stages.reward import _id

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"


def recipe_with(tmp_path: Path, function: str) -> Path:
    """The smoke recipe with feedback from a file alone, no update, and a reward that is this function."""
    pairs = [{"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": "No.", "group": str(n)} for n in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    reward = tmp_path / "reward"
    reward.mkdir()
    (reward / "reward_model.yaml").write_text("kind: function\nfunction: reward.py:mine\n")
    (reward / "reward.py").write_text(function)
    values = yaml.safe_load(SMOKE.read_text())
    values["prompts"] = {
        split: [str(SMOKE.parent / path) for path in paths] for split, paths in values["prompts"].items()
    }
    values["reward"]["model"] = "reward"
    values["feedback"] |= {"imports": [{"path": "pairs.jsonl", "split": "train"}], "questions_per_round": 0}
    values["update"] = {"algorithm": "none"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "recipe.yaml"


def test_an_edited_reward_model_is_used_in_the_next_round_without_new_pairs(tmp_path: Path, model_cache: Path) -> None:
    recipe = recipe_with(tmp_path, "def mine(completions, **columns):\n    return [1.0] * len(completions)\n")
    loop = Loop(Recipe.load(recipe), run_dir=tmp_path / "run")
    loop.run(rounds=2)
    files = loop.run_dir
    assert read_manifest(files.step(2, "reward")) is None  # nothing changed: that of round 1 stays
    source = tmp_path / "reward" / "reward.py"
    source.write_text(source.read_text().replace("1.0", "2.0"))
    loop.run(rounds=4)
    assert read_manifest(files.step(3, "reward")) is not None
    assert read_manifest(files.step(4, "reward")) is None  # and then that of round 3
    for number, value in ((1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)):
        scores = read_records(files.step(number, "rescore") / "scores.parquet", Score)
        assert {score.value for score in scores} == {value}


def test_a_reward_model_is_called_after_its_weights_in_a_folder_of_any_name(tmp_path: Path) -> None:
    made = []
    for place, weights in (("runs", b"1"), ("checkpoint-5", b"1"), ("checkpoint-6", b"2")):
        folder = tmp_path / place / "reward"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(weights)
        arguments = StageArguments(
            stage="reward", title="t", round=1, key="k", output=str(folder), recipe={}, values={"specs": []}
        )
        made.append(_id("reward_model", arguments, folder, [], []))
    assert made[0] == made[1] != made[2]
