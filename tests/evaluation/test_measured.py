"""What an earlier evaluation measured is read, and is what measuring again would give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_loop import Loop, Recipe
from rlhf_loop.errors import UserError
from rlhf_loop.evaluation import Measured, language_model
from rlhf_loop.feedback.privacy.deletion_rows import Deletion, redact
from rlhf_loop.files import read_json, write_json
from rlhf_loop.recipe import Policy
from rlhf_loop.records import Completion, Prompt, Score
from rlhf_loop.rewards.kept_features import KeptFeatures
from rlhf_loop.stages import evaluate as stage

ROOT = Path(__file__).parents[2]


def test_what_is_known_is_not_measured_and_what_was_asked_for_is_handed_on():
    first = Measured()
    assert first(["perplexity", [1, 2]], lambda: {"answers": 0.1 + 0.2}) == {"answers": 0.1 + 0.2}
    known = json.loads(json.dumps(first.numbers))
    second = Measured(known | {"of something else": 1.0})
    assert second(["perplexity", [1, 2]], lambda: pytest.fail("measured again")) == {"answers": 0.1 + 0.2}
    assert second.numbers == first.numbers
    assert second(["perplexity", [1, 3]], lambda: {"answers": 5.0}) == {"answers": 5.0}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    text = tmp_path / "plain.jsonl"
    text.write_text('{"text": "Rain falls when the drops in a cloud grow too heavy for the air to hold."}\n' * 3)
    return Recipe.load(ROOT / "recipes" / "smoke.yaml", ["rounds=2", f"evaluation.plain_text={text}"])


def test_evaluations_are_the_same_as_without_what_earlier_rounds_measured(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    passes: list[int] = []
    log_probs = language_model.log_probs
    monkeypatch.setattr(language_model, "log_probs", lambda *given: passes.append(1) or log_probs(*given))

    def run(name: str) -> list[bytes]:
        passes.clear()
        Loop(recipe, tmp_path / name).run()
        rounds = [tmp_path / name / f"round_{number:03d}" for number in range(3)]
        return [(folder / "evaluate" / "evaluation.json").read_bytes() for folder in rounds]

    kept = run("kept")
    # round 0: plain text; round 1 and 2: plain text by the candidate alone
    assert len(passes) == 3
    monkeypatch.setattr(stage, "_known", lambda inputs: {})
    assert run("anew") == kept
    assert len(passes) == 7  # the base's answers and its plain text anew in round 1 and 2

    damaged = tmp_path / "anew" / "round_000" / "evaluate" / "measured.json"
    write_json(damaged, dict.fromkeys(read_json(damaged), 1.0))
    (tmp_path / "anew" / "round_002" / "manifest.json").unlink()
    (tmp_path / "anew" / "round_002" / "evaluate" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"measured\.json is damaged .*round_000"):
        Loop(recipe, tmp_path / "anew").run()


def test_answers_that_were_judged_are_not_judged_again_and_a_deletion_finds_their_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    judged: list[str] = []

    def score(held_out: Sequence[Prompt], answers: Sequence[Completion]) -> list[Score]:
        judged.extend(answer.text for answer in answers)
        return [Score(completion_id=a.id, reward_model="judge", value=float(len(a.text))) for a in answers if a.text]

    monkeypatch.setattr(stage, "load", lambda *given: SimpleNamespace(id="judge", score=score))
    recipe = SimpleNamespace(policy=Policy(model="tiny-random:0", dtype="float32"))
    monkeypatch.setattr(stage, "parse", lambda values: recipe)
    prompts = [Prompt(id=f"p{i}", group=f"p{i}", messages=({"role": "user", "content": "Why?"},)) for i in range(2)]
    answers = [answer(prompt, text) for prompt, text in zip(prompts, ["So.", ""], strict=True)]
    arguments: Any = SimpleNamespace(recipe={})

    def scorer(measured: Measured) -> Any:
        return stage._reward_scorer(
            tmp_path,
            arguments=arguments,
            held_out=prompts,
            measured=measured,
            features=KeptFeatures(),
            progress=lambda done, total, text: None,
        )

    first = Measured()
    assert scorer(first)(prompts, answers) == [3.0, None]
    again = scorer(Measured(first.numbers))
    assert again(prompts, answers) == [3.0, None]
    assert sorted(judged) == ["", "So."]
    again(prompts, [answers[0], answer(prompts[1], "Because.")])
    assert judged[2:] == ["So.", "Because."]

    write_json(tmp_path / "measured.json", first.numbers)
    gone = Deletion(
        prompts=set(), completions={answers[0].id}, feedback=set(), texts=set(), comments=set(), annotators=set()
    )
    assert redact(tmp_path / "measured.json", gone, write=True) == 1
    (left,) = read_json(tmp_path / "measured.json").values()
    assert left == [{"completion_id": answers[1].id, "score": None}]


def answer(prompt: Prompt, text: str) -> Completion:
    return Completion(id=f"answer-to-{prompt.id}", prompt_id=prompt.id, text=text, policy="base", round=0)
