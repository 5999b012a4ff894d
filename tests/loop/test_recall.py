"""What is recalled of a run, and what never is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from samples.feedback import completion, preference, prompt

from rlhf_loop import Recipe
from rlhf_loop.feedback.store.reading import ScoredAnswer
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import read_json
from rlhf_loop.record_files import read_records, write_records
from rlhf_loop.records import Annotator, Completion, Critique, Feedback, Prompt, Rating, Recalled, Score, Thumb
from rlhf_loop.steps.recall import critiques, recall, standings

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as opened:
        yield opened


def recalled(
    store: Store, tmp_path: Path, kind: str, feedback: Sequence[Feedback] = (), round: int = 2, **settings: Any
) -> tuple[dict[str, Recalled], dict[str, int]]:
    """What is recalled for `round`, by prompt, and the counts."""
    strategy = {"to_revise": "refine", "exemplars": "exemplars"}[kind]
    overrides = [f"generation.{name}={value}" for name, value in settings.items()]
    recipe = Recipe.load(SMOKE, [f"generation.strategy={strategy}", *overrides])
    frozen, folder = tmp_path / "snapshot", tmp_path / f"recall-{round}"
    frozen.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    write_records(frozen / "prompts.parquet", store.prompts(split="train"))
    write_records(frozen / "feedback.parquet", list(feedback))
    recall(store, recipe, round, frozen, folder)
    rows = read_records(folder / f"{kind}.parquet", Recalled)
    return {row.prompt_id: row for row in rows}, read_json(folder / "recall.json")


def add(store: Store, *answers: tuple[Completion, float | None], model: str = "rm") -> None:
    store.add_completions([answer for answer, _ in answers])
    scores = [(answer, value) for answer, value in answers if value is not None]
    store.add_scores([Score(completion_id=a.id, reward_model=model, value=v) for a, v in scores])


def test_a_standing_is_the_share_of_its_reward_models_answers_that_score_lower() -> None:
    given = [ScoredAnswer(f"c{n}", "p", model, value) for n, (model, value) in enumerate(
        [("a", 1.0), ("a", 3.0), ("a", 2.0), ("a", 2.0), ("a", 9.0), ("b", -5.0), ("c", 1.0), ("c", 2.0)]
    )]  # fmt: skip
    found = standings(given)
    assert found == {
        "c0": 0.0, "c1": 0.75, "c2": 0.375, "c3": 0.375, "c4": 1.0,  # equals share the middle of places 1 and 2 of 0..4
        "c5": 0.0,
        "c6": 0.0, "c7": 1.0,
    }  # fmt: skip


def test_the_latest_fault_that_was_found_is_the_critique(store: Store, tmp_path: Path) -> None:
    store.add_prompts([prompt("p"), prompt("other", split="test")])
    store.add_completions([completion(name) for name in "uvwxyz"] + [completion("o", None, "other")])
    said: dict[str, Any] = {"prompt_id": "p", "annotator": Annotator(id="ann")}
    given: list[Feedback] = [
        preference("f1", "x", "y", "a", comment="the loser says too little"),
        preference("f2", "x", "y", "tie", comment="neither of them is any good"),
        Critique(id="f3", completion_id="z", comment="the first fault of it", **said),
        Critique(id="f4", completion_id="z", comment=" a later fault of it ", **said),
        Thumb(id="f6", completion_id="w", label=True, comment="this is very good indeed", **said),
        Rating(id="f7", completion_id="v", score=2.0, comment="the rating is low here", **said),
        Critique(id="f9", completion_id="u", comment="bad", **said),
    ]
    write_records(tmp_path / "feedback.parquet", given)
    found = critiques(store, Recipe.load(SMOKE), tmp_path, store.prompts(split="train"))
    assert found == {
        "y": ("the loser says too little", ("f1",)),
        "z": ("a later fault of it", ("f4",)),
        "v": ("the rating is low here", ("f7",)),
    }


def test_the_best_answer_with_a_critique_is_revised_else_the_best(store: Store, tmp_path: Path) -> None:
    store.add_prompts([prompt("p"), prompt("q", "Why is grass green?"), prompt("none", "Who are you?")])
    add(
        store,
        (completion("p-best"), 3.0), (completion("p-criticised"), 1.0), (completion("p-worse"), 0.0),
        (completion("q-best", None, "q"), 2.0), (completion("q-other", None, "q"), -1.0),
        (completion("p-of-now", round=2), 9.0),
    )  # fmt: skip
    said: dict[str, Any] = {"prompt_id": "p", "annotator": Annotator(id="ann")}
    feedback: list[Feedback] = [
        Critique(id=f"f-{name}", completion_id=name, comment=f"{name} is too long", **said)
        for name in ("p-criticised", "p-worse")
    ]
    store.add_feedback(feedback)
    rows, counts = recalled(store, tmp_path, "to_revise", feedback)
    assert set(rows) == {"p", "q"}
    assert (rows["p"].completion_id, rows["p"].critique) == ("p-criticised", "p-criticised is too long")
    assert rows["p"].feedback_ids == ("f-p-criticised",)
    assert (rows["q"].completion_id, rows["q"].critique) == ("q-best", None)
    assert counts["prompts without an answer to revise"] == 1
    assert counts["answers to revise by a critique"] == counts["answers to revise without one"] == 1


def test_revisions_follow_one_another_no_deeper_than_is_said(store: Store, tmp_path: Path) -> None:
    store.add_prompts([prompt("p")])
    chain = [completion(f"r{n}", parent=f"r{n - 1}" if n else None) for n in range(4)]
    add(store, *((answer, float(number)) for number, answer in enumerate(chain)))
    rows, counts = recalled(store, tmp_path, "to_revise", **{"refine.max_depth": 2})
    assert rows["p"].completion_id == "r1"
    assert rows["p"].before == ("answer r0",)
    assert counts["answers revised as often as may be"] == 2
    rows, _ = recalled(store, tmp_path, "to_revise", **{"refine.max_depth": 4})
    assert rows["p"].before == ("answer r2", "answer r1", "answer r0")


def test_a_circle_of_parents_that_an_import_holds_ends(store: Store, tmp_path: Path) -> None:
    store.add_prompts([prompt("p")])
    add(store, (completion("x", parent="y"), 1.0), (completion("y", parent="x"), 0.0))
    rows, _ = recalled(store, tmp_path, "to_revise", **{"refine.max_depth": 5})
    assert rows["p"].before == ("answer y",)


def test_no_exemplar_answers_a_held_out_prompt_or_one_nearly_the_same(store: Store, tmp_path: Path) -> None:
    long = "What is the best way to walk from the station to the harbour when it rains all day long"
    held_out: list[Prompt] = [
        prompt("test", "Why is the sky blue?", split="test"),
        prompt("judge", long + " in autumn", split="judge"),
        prompt("dev", "Where do swallows go in winter?", split="dev"),
    ]
    training = [
        prompt("same", "why is the  SKY blue?"),
        prompt("near", long),
        prompt("apart", "How many legs has a spider?"),
        prompt("twin-1", long.replace("harbour", "market square")),
        prompt("twin-2", long.replace("harbour", "market square") + " please"),
    ]
    store.add_prompts([*held_out, *training])
    for one in (*held_out, *training):
        add(store, (completion(f"a-{one.id}", None, one.id), 1.0))
    rows, counts = recalled(store, tmp_path, "exemplars", **{"exemplars.min_standing": 0})
    assert set(rows) == {"apart", "twin-1", "twin-2"}
    assert counts["prompts nearly the same as one held out"] == 2
    assert (rows["twin-1"].near, rows["twin-2"].near, rows["apart"].near) == (("twin-2",), ("twin-1",), ())


def test_an_exemplar_is_the_best_answer_of_its_prompt_and_stands_high_enough(store: Store, tmp_path: Path) -> None:
    store.add_prompts([prompt("p"), prompt("q", "Why is grass green?"), prompt("r", "Who are you?")])
    add(
        store,
        (completion("p-low"), 0.0), (completion("p-high"), 4.0),
        (completion("q-low", None, "q"), 1.0),
        (completion("r-empty", " ", "r"), 5.0), (completion("r-full", None, "r"), 3.0),
    )  # fmt: skip
    rows, counts = recalled(store, tmp_path, "exemplars")
    assert {row.completion_id for row in rows.values()} == {"p-high"}
    assert counts["answers that do not stand high enough"] == 2
    assert counts["best answers that are empty"] == 1


def test_an_answer_is_known_by_its_last_score(store: Store, tmp_path: Path) -> None:
    store.add_prompts([prompt("p")])
    add(store, (completion("x"), 1.0), (completion("y"), 0.0), model="first")
    add(store, (replace(completion("x")), 0.0), (replace(completion("y")), 1.0), model="second")
    assert [(one.completion_id, one.reward_model) for one in store.scored_answers(before=2)] == [
        ("x", "second"),
        ("y", "second"),
    ]
    rows, _ = recalled(store, tmp_path, "to_revise")
    assert rows["p"].completion_id == "y"
    assert store.scored_answers(before=0) == []
