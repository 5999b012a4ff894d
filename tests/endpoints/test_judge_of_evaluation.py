"""A model behind a server judges policies once it has shown that it agrees with known answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from samples.endpoint import Fault, prefers_shorter, running, texts_of

from rlhf_loop import Loop, Recipe
from rlhf_loop.endpoints.answers import spent_in
from rlhf_loop.errors import UserError
from rlhf_loop.evaluation import Comparer, evaluate
from rlhf_loop.evaluation.winrate import win_rate
from rlhf_loop.feedback.asking.calibration import read_cards
from rlhf_loop.feedback.quality.significance import share
from rlhf_loop.files import read_json
from rlhf_loop.recipe import Evaluation, Gate, RuleJudge
from rlhf_loop.records import Completion, Message, Prompt
from rlhf_loop.steps.calibrate import calibrate
from rlhf_loop.steps.gate import decide

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"


def known_pairs(folder: Path, right: int, wrong: int) -> Path:
    """A file of known answers of which a judge that prefers what is shorter gets some right and some wrong."""
    rows = [
        {"prompt": f"Spell {i}.", "chosen": f"{i}", "rejected": f"it is {i}, I think"}
        if i < right
        else {"prompt": f"Spell {i}.", "chosen": f"It is spelt {i}.", "rejected": f"{i}"}
        for i in range(right + wrong)
    ]
    path = folder / "known.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_with(url: str, calibration: Path, **judge: Any) -> Recipe:
    block = {"kind": "endpoint", "endpoint": "big", "calibration": str(calibration), **judge}
    return Recipe.load(
        SMOKE,
        [
            f"endpoints={json.dumps({'big': {'base_url': url, 'model': 'judge-70b', 'max_retries': 0}})}",
            f"evaluation.judge={json.dumps(block)}",
            "rounds=1",
        ],
    )


def calibration_of(tmp_path: Path, say: Any, path: Path, **judge: Any) -> dict[str, Any]:
    with running(say) as (_, url):
        calibrate(recipe_with(url, path, **judge), tmp_path, tmp_path)
    return read_json(tmp_path / "calibration.json")


def test_agreement_is_the_share_of_known_answers_with_its_exact_interval(tmp_path: Path) -> None:
    found = calibration_of(tmp_path, prefers_shorter, known_pairs(tmp_path, 15, 5), min_agreement=0.6)
    exact = share(15, 20)
    assert found["agreement"] == {"share": 0.75, "low": exact.low, "high": exact.high, "n": 20}
    assert (found["right"], found["pairs"], found["orders_disagreed"], found["unanswered"]) == (15, 20, 0, {})
    assert found["min_agreement"] == 0.6


def test_a_judge_that_goes_by_the_place_or_does_not_answer_is_not_right(tmp_path: Path) -> None:
    path = known_pairs(tmp_path, 4, 0)
    found = calibration_of(tmp_path, lambda request: '{"better": "A"}', path)
    assert (found["right"], found["orders_disagreed"]) == (0, 4)
    (tmp_path / "other").mkdir()
    found = calibration_of(tmp_path / "other", lambda request: Fault(500) if "Spell 1" in str(request) else "x", path)
    assert found["right"] == 0
    assert found["unanswered"] == {
        "the server failed (HTTP 500)": 1,
        "the judgement was not of the form that was asked for": 3,
    }


def test_pairs_that_rows_contradict_each_other_about_are_no_cards(tmp_path: Path) -> None:
    path = tmp_path / "known.jsonl"
    same, other = (
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {"prompt": "How?", "chosen": "a", "rejected": "b"},
    )
    turned = {"prompt": "Why?", "chosen": "No.", "rejected": "So."}
    path.write_text("".join(json.dumps(row) + "\n" for row in (same, other, turned, same)))
    found = read_cards(path)
    assert [card.a.text for card in found.cards] == ["a"]
    assert sum(found.left_out.values()) == 1
    (tmp_path / "none.jsonl").write_text(json.dumps({"prompt": "Why?", "completion": "x", "label": True}) + "\n")
    with running(prefers_shorter) as (_, url):
        with pytest.raises(UserError, match=r"evaluation.judge.calibration: .*none.jsonl holds no pairs"):
            calibrate(recipe_with(url, tmp_path / "none.jsonl"), tmp_path, tmp_path)


def numbers(share_right: float, limit: float) -> dict[str, Any]:
    rate = {"mean": 0.7, "low": 0.6, "high": 0.8, "n": 64}
    agreement = {"share": share_right, "low": 0.5, "high": 0.9, "n": 40}
    return {
        "win_rate_vs_previous": rate,
        "perplexity": {"ratio": 1.0},
        "collapse": {"distinct_2_ratio": 1.0},
        "judge": {"calibration": {"agreement": agreement, "min_agreement": limit}},
    }


def test_the_gate_promotes_nothing_on_the_word_of_a_judge_below_its_limit() -> None:
    assert decide(numbers(0.7, 0.7), Gate())["promoted"]
    refused = decide(numbers(0.65, 0.7), Gate())
    assert not refused["promoted"]
    assert refused["reason"] == (
        "kept the last policy: the judge agrees with 0.65 [0.50, 0.90] of 40 pairs with known answers; the limit is "
        "0.70"
    )
    assert refused["checks"][-1]["name"] == "judge_agreement"


PROMPTS = [Prompt(id=f"p{i}", group=f"p{i}", messages=(Message(role="user", content="?"),)) for i in range(20)]


def answers(policy: str, texts: list[str]) -> list[Completion]:
    return [
        Completion(id=f"{policy}{i}", prompt_id=f"p{i}", text=text, policy=policy, round=0)
        for i, text in enumerate(texts)
    ]


def test_comparisons_give_the_win_rate_of_their_outcomes_and_what_is_undecided_is_left_out() -> None:
    won: list[float | None] = [1.0] * 10 + [0.5] * 3 + [0.0] * 4 + [None] * 2
    asked: list[str] = []

    def compare(comparisons: Any) -> list[float | None]:
        asked.extend(b.id for _, _, b in comparisons)
        return [won[int(b.id[1:])] for _, _, b in comparisons]

    ours, base = answers("c", [f"mine {i}" for i in range(19)] + ["same"]), answers("b", ["its"] * 19 + ["same"])
    result = evaluate(
        PROMPTS, ours, base, None, judge=Comparer(compare=compare), judge_name="j", simulated=False,
        settings=Evaluation(judge=RuleJudge(), tie_below=0.7), seed=3,
    )  # fmt: skip
    told = [1.0] * 10 + [0.5] * 3 + [0.0] * 4 + [0.5]
    groups = [f"p{i}" for i in range(17)] + ["p19"]
    assert result["win_rate_vs_base"] == win_rate(told, [1 - value for value in told], groups, seed=3)
    assert result["win_rate_vs_base"]["ties"] == 4
    assert result["win_rate_vs_base"] == result["win_rate_vs_previous"]
    assert asked == [f"b{i}" for i in range(19)]  # once, and never about the same text
    mean = (10 + 2) / 18
    assert result["judge"] == {
        "name": "j", "simulated": False, "candidate": mean, "base": 1 - mean, "previous": 1 - mean,
        "compared": 20, "unanswered": 2,
    }  # fmt: skip
    assert [row["candidate_score"] for row in result["rows"]] == [*won, 0.5]


def test_the_last_policy_is_compared_too_and_a_judge_that_says_nothing_stops() -> None:
    ours, base, last = answers("c", ["x"] * 20), answers("b", ["yy"] * 20), answers("l", ["z"] * 20)
    settings = {"judge_name": "j", "simulated": False, "settings": Evaluation(judge=RuleJudge())}
    judge = Comparer(compare=lambda pairs: [float(len(a.text) < len(b.text)) for _, a, b in pairs])
    result = evaluate(PROMPTS, ours, base, last, judge=judge, **settings)  # type: ignore[arg-type]
    assert (result["win_rate_vs_base"]["mean"], result["win_rate_vs_previous"]["mean"]) == (1.0, 0.0)
    assert result["judge"]["compared"] == 40
    silent = Comparer(compare=lambda pairs: [None for _ in pairs])
    with pytest.raises(UserError, match="decided none of the comparisons"):
        evaluate(PROMPTS, ours, base, None, judge=silent, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("right", "wrong", "promoted"), [(9, 1, True), (1, 9, False)])
def test_a_run_is_judged_by_a_model_that_was_calibrated_first(
    tmp_path: Path, model_cache: Path, right: int, wrong: int, promoted: bool
) -> None:
    with running(prefers_shorter) as (server, url):
        recipe = recipe_with(url, known_pairs(tmp_path, right, wrong))
        Loop(
            recipe.model_copy(update={"gate": Gate(margin=0.49, max_perplexity_ratio=None)}), run_dir=tmp_path / "run"
        ).run()
        first = [texts_of(request)["request"] for request in server.asked[:20]]
    assert all("Spell" in text for text in first), "known answers come before anything else"
    run = tmp_path / "run"
    assert spent_in(run)["big"]["requests"] == len(server.asked)
    evaluation = read_json(run / "round_001" / "evaluate" / "evaluation.json")
    assert evaluation["judge"]["name"] == "judge-70b (endpoint big)"
    assert evaluation["judge"]["calibration"]["agreement"]["share"] == right / 10
    decision = read_json(run / "round_001" / "gate" / "decision.json")
    assert decision["promoted"] is promoted, decision
    page = (run / "report.html").read_text()
    assert f"Of 10 pairs with known answers it got {right * 10}% right" in page
    assert f"the judge agrees with {right / 10:.2f}" in page
