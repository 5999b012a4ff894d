"""A function of the catalogue as judge: a run end to end, on feedback of people, without a split of its own."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from rlhf_loop.files import read_json
from rlhf_loop.loop import Loop
from rlhf_loop.recipe import Recipe
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Completion

ROOT = Path(__file__).parents[2]


def test_a_function_judges_answers_that_nothing_was_trained_to_judge(tmp_path: Path) -> None:
    judge = tmp_path / "count_e"
    judge.mkdir()
    (judge / "reward_model.yaml").write_text("kind: function\nfunction: reward.py:count_e\n")
    (judge / "reward.py").write_text(
        "def count_e(completions, **columns):\n    return [float(c[-1]['content'].count('e')) for c in completions]\n"
    )
    pairs = [
        {"prompt": f"Say {n // 2}.", "chosen": f"It is {n // 2}, {n % 2}.", "rejected": f"No {n % 2}."}
        for n in range(12)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    values = yaml.safe_load((ROOT / "recipes" / "smoke.yaml").read_text())
    values["prompts"] = {"from_feedback": True, "test": [str(ROOT / "recipes" / "data" / "smoke_test.jsonl")]}
    values["feedback"] = {
        "imports": [{"path": "pairs.jsonl", "split": "train"}],
        "questions_per_round": 0,
        "validation": {"min_pairs": 2},
    }
    values["reward"]["model"] = str(ROOT / "reward_models" / "frozen_head")
    values["evaluation"]["judge"] = {"kind": "reward_model", "model": "count_e"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    run = tmp_path / "run"
    Loop(Recipe.load(tmp_path / "recipe.yaml"), run_dir=run).run(rounds=1)
    for number in (0, 1):
        folder = run / f"round_{number:03d}" / "evaluate"
        result = read_json(folder / "evaluation.json")
        answers = read_records(folder / "answers.parquet", Completion)
        assert result["judge"]["name"] == "function count_e"
        assert result["judge"]["simulated"] is False
        assert result["judge"]["candidate"] == sum(answer.text.count("e") for answer in answers) / len(answers)
    rows = result["rows"]
    trained_on = read_json(run / "round_000" / "judge" / "metrics.json")["count_e"]
    assert trained_on["pairs"] == 0
    won = [(row["candidate_score"] > row["base_score"]) - (row["candidate_score"] < row["base_score"]) for row in rows]
    assert (won.count(1), won.count(-1)) == tuple(result["win_rate_vs_base"][name] for name in ("wins", "losses"))
