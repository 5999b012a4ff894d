"""What a comparison says of made-up answers, and what it takes for unequal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rlhf_loop.comparison.budget import Spent, expected, priced, unequal
from rlhf_loop.comparison.results import ALL, Measured, of_answers
from rlhf_loop.comparison.shown import cell_results, curve, other_yardsticks, sentence
from rlhf_loop.comparison.sweep import PRICES, CellRun
from rlhf_loop.errors import UserError
from rlhf_loop.evaluation import Comparer, evaluate
from rlhf_loop.recipe import Evaluation, Recipe
from rlhf_loop.records import Completion, Prompt

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "recipes" / "smoke.yaml"


def prompt(id: str) -> Prompt:
    return Prompt(id=id, messages=({"role": "user", "content": id},), group=id)


def measured(cell: str, seed: int, wins: list[float], rounds: int = 1, labels: float = 10.0) -> Measured:
    """A complete run of so many rounds; `wins` are the last one's outcomes, prompt by prompt."""
    recipe: Any = SimpleNamespace(rounds=rounds)
    answers = [{"win_rate": {f"p{n}": 0.5 for n in range(len(wins))}} for _ in range(rounds)]
    answers.append({"win_rate": {f"p{n}": value for n, value in enumerate(wins)}})
    rows = [{"labels": labels * number, "round_of_policy_in_force": number} for number in range(rounds + 1)]
    run = CellRun(cell=cell, seed=seed, recipe=recipe, folder=Path(cell))
    return Measured(run=run, rows=rows, answers=answers, spent=[Spent()] * (rounds + 1))


def test_a_difference_is_paired_by_prompt_and_seed_and_corrected_over_cells() -> None:
    generator = np.random.default_rng(0)
    hard = generator.uniform(0, 0.6, size=50)  # shared by all cells: it must not widen a difference
    noise = generator.normal(0, 0.05, size=(2, 50))
    runs = {
        "base": [measured("base", 0, hard.tolist())],
        "up": [measured("up", 0, (hard + 0.1 + noise[0]).tolist())],
        "same": [measured("same", 0, (hard + noise[1]).tolist())],
    }
    found = cell_results(runs, "base", 0.95)
    for cell, extra in (("up", 0.1 + noise[0]), ("same", noise[1])):
        test = stats.ttest_1samp(extra, 0)
        difference = found[cell].differences["win_rate"]
        assert difference.mean == pytest.approx(extra.mean())
        assert difference.p == pytest.approx(test.pvalue)
        assert (difference.low, difference.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found["up"].p_holm == pytest.approx(2 * stats.ttest_1samp(0.1 + noise[0], 0).pvalue)
    assert found["base"].differences == {}
    said = sentence(found, "base", 0.95)
    assert said.startswith("In win-rate over the base policy better than base: up (+0.1")
    assert "; no difference shown from base: same (" in said
    assert said.endswith("One seed: this says nothing of other seeds.")


def test_cells_without_a_promoted_policy_are_told() -> None:
    runs = {cell: [measured(cell, seed, [0.5, 0.5]) for seed in (0, 1, 2)] for cell in ("base", "kept", "other")}
    for cell in ("base", "kept"):
        for one in runs[cell]:
            one.rows[-1]["round_of_policy_in_force"] = 0
    said = sentence(cell_results(runs, "base", 0.95), "base", 0.95)
    assert said.endswith("No gate promoted a policy in base, kept, judged by the one begun with.")


def test_seeds_and_prompts_that_the_other_cell_has_not_are_left_out_and_told() -> None:
    runs = {
        "base": [measured("base", 0, [0.0, 0.5, 1.0]), measured("base", 1, [0.0, 0.0])],
        "other": [measured("other", 1, [1.0, 0.0, 1.0]), measured("other", 2, [1.0, 1.0, 1.0])],
    }
    found = cell_results(runs, "base", 0.95)["other"]
    assert found.seeds == [1, 2]
    assert (found.differences["win_rate"].seeds, found.differences["win_rate"].prompts) == (1, 2)
    assert found.differences["win_rate"].mean == pytest.approx(0.5)
    one_short = {"base": [measured("base", s, [0.0, 0.5, 1.0]) for s in (0, 1)], "other": runs["base"][1:]}
    one_short["other"] = [measured("other", 0, [0.0, 0.5, 1.0]), measured("other", 1, [0.0, 0.5])]
    assert cell_results(one_short, "base", 0.95)["other"].left_out == 1


def test_what_is_measured_of_all_answers_together_is_compared_over_seeds() -> None:
    def with_variety(cell: str, seed: int, value: float) -> Measured:
        made = measured(cell, seed, [0.5, 1.0])
        answers = [*made.answers[:-1], {**made.answers[-1], "distinct_2": {ALL: value}}]
        return Measured(run=made.run, rows=made.rows, answers=answers, spent=made.spent)

    values = {"base": [0.5, 0.6, 0.7], "other": [0.7, 0.7, 0.9]}
    runs = {cell: [with_variety(cell, seed, value) for seed, value in enumerate(of)] for cell, of in values.items()}
    found = cell_results(runs, "base", 0.95)["other"].differences["distinct_2"]
    test = stats.ttest_rel(values["other"], values["base"])
    assert (found.p, found.seeds) == (pytest.approx(test.pvalue), 3)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))


def test_without_a_complete_reference_nothing_is_said() -> None:
    unfinished = measured("base", 0, [1.0, 1.0], rounds=2)
    unfinished = Measured(run=unfinished.run, rows=unfinished.rows[:2], answers=unfinished.answers[:2], spent=[])
    found = cell_results({"base": [unfinished], "other": [measured("other", 0, [0.0, 1.0])]}, "base", 0.95)
    assert list(found) == ["other"]
    assert sentence(found, "base", 0.95) == "Nothing can be said: no run of the reference base is complete."


def test_a_cell_with_another_base_or_judge_is_named() -> None:
    def with_base(cell: str, seed: int, scores: list[float]) -> Measured:
        made = measured(cell, seed, [1.0, 0.0])
        of_base = {f"p{n}": score for n, score in enumerate(scores)}
        return Measured(run=made.run, rows=made.rows, answers=made.answers, spent=made.spent, of_base=of_base)

    runs = {
        "base": [with_base("base", 0, [0.1, 0.2]), with_base("base", 1, [0.3, 0.4])],
        "same": [with_base("same", 1, [0.3, 0.4]), with_base("same", 2, [0.9, 0.9])],
        "other": [with_base("other", 0, [0.1, 0.25]), with_base("other", 1, [0.3])],
    }
    (said,) = other_yardsticks(runs, "base")
    assert said.startswith("other: the base's answers have other scores than in base for 2 of 4 held-out prompts")


def test_a_curve_is_over_the_labels_spent() -> None:
    runs = [measured("a", seed, [1.0, 0.5], rounds=2, labels=10.0 + 2 * seed) for seed in (0, 1)]
    points = curve(runs, 0.95)
    assert [(p.round, p.labels, p.values["win_rate"].mean) for p in points] == [
        (0, 0, 0.5),
        (1, 11, 0.5),
        (2, 22, 0.75),
    ]


def test_outcomes_are_those_of_a_win_rate_averaged_over_the_samples_of_a_prompt() -> None:
    rows = [
        {"prompt_id": prompt, "candidate_score": ours, "base_score": base, "candidate_words": 4, "kl": kl}
        for prompt, ours, base, kl in (("x", 1.0, 0.0, 0.2), ("x", 1.0, 1.0, 0.4), ("y", 0.0, 0.5, None))
    ]
    found = of_answers({"rows": rows}, tie_below=1e-9)
    assert found["win_rate"] == {"x": 0.75, "y": 0.0}
    assert found["kl"] == {"x": pytest.approx(0.3)}
    whole = {"rows": rows, "diversity": {"distinct_2": 0.7}, "perplexity": {"ratio": None}}
    assert of_answers(whole, tie_below=1e-9)["distinct_2"] == {ALL: 0.7}
    assert "perplexity" not in of_answers(whole, tie_below=1e-9)
    assert of_answers({"rows": rows}, tie_below=0.6)["win_rate"] == {"x": 0.75, "y": 0.5}
    assert of_answers({}, tie_below=1e-9) == {}


def test_a_judge_that_compares_answers_and_scores_none_counts_by_what_was_won() -> None:
    prompts = [prompt("x"), prompt("y"), prompt("z")]
    sides = {
        who: [
            Completion(id=f"{who} {p.id}", prompt_id=p.id, text=f"{who} {p.id}", policy=who, round=1) for p in prompts
        ]
        for who in ("ours", "base")
    }
    said = {"x": 1.0, "y": 0.0, "z": None}
    judge = Comparer(compare=lambda asked: [said[question.id] for question, _, _ in asked])
    settings = Evaluation.model_validate({"judge": {"kind": "rule"}, "bootstrap": 100})
    evaluation = evaluate(
        prompts, sides["ours"], sides["base"], None, judge=judge, judge_name="both", simulated=True, settings=settings
    )
    found = of_answers(evaluation, tie_below=0.6)
    assert found["win_rate"] == {"x": 1.0, "y": 0.0}
    assert evaluation["win_rate_vs_base"]["mean"] == 0.5


def test_labels_have_prices_and_what_a_recipe_will_spend_is_known_before() -> None:
    assert priced(Counter(preference=4, critique=2, thumb=3, skip=7), PRICES) == 4 + 6 + 1.5
    recipe = Recipe.load(SMOKE, ["generation.prompts_per_round=5", "feedback.annotator.critiques=false"])
    # 8 questions a round, 2 thumbs and an edit each at most; 5 prompts of 3 answers
    assert expected(recipe, PRICES) == {"labels": 2 * (8 + 15 * 0.5 + 8 * 5), "samples": 30, "updates": None}
    best = ["generation.strategy=best_of_n", "generation.best_of_n.n=9", "generation.prompts_per_round=5"]
    assert expected(Recipe.load(SMOKE, best), PRICES)["samples"] == 5 * 3 + 5 * 9
    recipe = Recipe.load(SMOKE, ["update.algorithm=grpo", "update.trainer.max_steps=3", "feedback.annotator=null"])
    assert expected(recipe, PRICES) == {"labels": 16, "samples": None, "updates": 6}


def test_prompts_of_any_format_are_counted_and_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    table = tmp_path / "prompts.csv"
    table.write_text('id,prompt\n1,"two\nlines"\n2,one\n')
    settings = ["generation.samples_per_prompt=3", f"prompts.train=[{table}]"]
    assert expected(Recipe.load(SMOKE, settings), PRICES)["samples"] == 2 * 2 * 3
    missing = Recipe.load(SMOKE, [f"prompts.train=[{tmp_path / 'none.jsonl'}]"])
    with pytest.raises(UserError, match=r"there is no file .*none\.jsonl"):
        expected(missing, PRICES)


def test_budgets_that_differ_by_more_than_the_tolerance_are_named() -> None:
    budgets = {
        "base": {"labels": 100.0, "samples": None, "updates": 10.0},
        "near": {"labels": 104.0, "samples": 5.0, "updates": 10.0},
        "far": {"labels": 150.0, "samples": 5.0, "updates": 10.0},
    }
    assert unequal(budgets, "base", 0.05) == ["far: 150 labels; base: 100, 1.50 times as many"]
    assert len(unequal(budgets, "base", 0.0)) == 2
    assert unequal({"base": {"labels": 0.0}, "some": {"labels": 3.0}}, "base", 0.05) == ["some: 3 labels; base: 0"]
