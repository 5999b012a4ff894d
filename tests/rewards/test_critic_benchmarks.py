"""What `benchmarks/critic_arms.py` makes of held-out pairs, and the pairs of `critic_defacto.py`."""

from __future__ import annotations

import gzip
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from samples.rewards import make_pairs

from rlhf_loop.rewards.metrics import preference_metrics
from rlhf_loop.rewards.texts import texts_of_pairs

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def arms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("critic_arms")


@pytest.fixture
def defacto(arms: ModuleType) -> ModuleType:
    return importlib.import_module("critic_defacto")


def test_what_is_kept_of_pairs_gives_the_accuracies_of_their_rewards(arms: ModuleType) -> None:
    pairs = [pair for group in range(3) for pair in make_pairs(2 + group, seed=group)]
    texts, indices = texts_of_pairs(pairs)
    values = {name: [float((n * (k + 3)) % 5) for n in range(len(texts))] for k, name in enumerate(arms.ARMS)}
    rewards = {name: dict(zip(texts, given, strict=True)) for name, given in values.items()}
    summary = arms.summary([json.loads(json.dumps(arms.outcomes(pairs, rewards)))])
    words = [len(text.completion.split()) for text in texts]
    for name in arms.ARMS:
        columns = [
            [of[place] for place in sides] for of in (values[name], words) for sides in zip(*indices, strict=True)
        ]
        expected = preference_metrics(columns[0], columns[1], [p.group for p in pairs], columns[2], columns[3])
        for measure in ("accuracy", "length_balanced_accuracy"):
            assert summary[measure][name] == expected[measure]
    difference = summary["differences"]["bradley_terry"]["accuracy"]["mean"]
    critic, other = (summary["accuracy"][name]["mean"] for name in ("critic", "bradley_terry"))
    assert difference == pytest.approx(critic - other)
    assert summary["accuracy"]["longer_wins"]["mean"] == pytest.approx(expected["longer_wins"])


def test_a_result_goes_on_with_further_seeds_and_refuses_other_settings(
    arms: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = make_pairs(3)
    texts, _ = texts_of_pairs(pairs)
    ran: list[int] = []

    def run_seed(drawn: Any, settings: Any, seed: int, *rest: Any) -> dict[str, Any]:
        ran.append(seed)
        rewards = {name: {text: float(n % (seed + 2)) for n, text in enumerate(texts)} for name in arms.ARMS}
        return {"won": {"held_out": arms.outcomes(pairs, rewards)}}

    def command(settings: Any, *seeds: int) -> Any:
        values = ["critic", "--data", ".", "--out", str(tmp_path / "out.json"), "--seeds", *map(str, seeds)]
        monkeypatch.setattr(sys, "argv", values)
        arms.compare(None, settings, lambda data, seed: None)
        return json.loads((tmp_path / "out.json").read_text())

    monkeypatch.setattr(arms, "run_seed", run_seed)
    assert list(command({"a": {}}, 2)["seeds"]) == ["2"]
    result = command({"a": {}}, 0, 2)
    assert ran == [2, 0]
    assert list(result["seeds"]) == ["0", "2"]
    assert result["measured"]["held_out"]["accuracy"]["critic"]["n"] == 2 * len(pairs)
    with pytest.raises(SystemExit, match="other settings"):
        command({"a": {"max_critique": 1}}, 1)


def test_corrections_are_preferred_and_summaries_without_an_error_are_over_those_with_one(
    defacto: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(id: str, critique: str, revised: str) -> dict[str, Any]:
        return {"id": id, "response": f"Summary {id}.", "has_error": bool(revised), "critique": critique,
                "instruction": "", "revised": revised}  # fmt: skip

    rows = [
        row("a", "says  too much", "Summary a, mended."),
        row("b", "all of it is in the article", ""),
        row("c", "the day is wrong", "Summary c."),  # no correction: the words are the same
        row("d", "no such place", "Summary d, mended."),
    ]
    for name in ("train", "val"):
        with gzip.open(tmp_path / f"defacto_critiques_{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps({**one, "id": f"{name}-{one['id']}"}) + "\n" for one in rows)
    drawn = defacto.draw(tmp_path, 0)

    def sides(pair: Any) -> tuple[str, str]:
        return pair.chosen[-1]["content"], pair.rejected[-1]["content"]

    corrected = {("Summary a, mended.", "Summary a."), ("Summary d, mended.", "Summary d.")}
    assert {sides(pair) for pair in drawn.train} == corrected
    assert {sides(pair) for pair in drawn.held_out["corrected"]} == corrected
    assert [sides(pair) for pair in drawn.held_out["error_free"]] == [("Summary b.", "Summary a.")]
    said = {one.text: (one.critique, one.label) for one in drawn.critiques}
    assert said["Summary a."] == ("Says too much", False)
    assert said["Summary b."][1] is True
    assert len(said) == 3
    assert len({pair.prompt_id for pair in drawn.train}) == 2  # an article each
    monkeypatch.setattr(defacto, "PAIRS", 1)
    assert len(defacto.draw(tmp_path, 0).train) == 1
