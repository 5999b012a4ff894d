"""A reward function is given the same columns wherever it is called, and what it asks for is checked first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_loop import Loop, Recipe
from rlhf_loop.errors import UserError
from rlhf_loop.feedback.intake.prompts import read_prompts
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.recipe import Policy, parse
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Completion, PreferencePair, Score
from rlhf_loop.rewards import combine, evaluate_reward, load_reward

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
CATALOGUE = SMOKE.parent.parent / "reward_models"

SPY = """
import json

NAMES = "prompts completions reference tags group prompt_id solution finished level".split()

def spy(prompts, completions, reference, tags, group, prompt_id, solution, finished, level=None, **more):
    given = locals()
    rows = [dict(zip(NAMES, row)) for row in zip(*(given[name] for name in NAMES))]
    with open(PLACE, "a") as file:
        file.write(json.dumps({"rows": rows, "more": sorted(more)}) + "\\n")
    return [float(len(row["completions"][-1]["content"]) + int(row["solution"])) for row in rows]
"""


def prompts(first: int, count: int) -> list[dict[str, Any]]:
    """Each says in every column which one it is; one in two has a level, of types that no table would hold together."""
    return [
        {"id": f"p{n}", "prompt": f"Say {n}.", "group": f"g{n}", "reference": f"It is {n}.", "tags": [f"t{n}"],
         "solution": str(n), **({} if n % 2 else {"level": {"as": [n]} if n % 4 else "easy"})}
        for n in range(first, first + count)
    ]  # fmt: skip


def recipe_with(folder: Path, function: str, *, train: Any = None, test: Any = None, **blocks: Any) -> Path:
    """The smoke recipe with these prompts and this function as its reward."""
    for name, rows in (("train", train or prompts(0, 8)), ("test", test or prompts(8, 4))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward").mkdir()
    place, _, code = function.partition("\n")
    (folder / "reward" / "reward_model.yaml").write_text(f"kind: function\nfunction: {place}\n")
    (folder / "reward" / "reward.py").write_text(code.replace("PLACE", repr(str(folder / "calls.jsonl"))))
    values = yaml.safe_load(SMOKE.read_text())
    values["prompts"] = {"train": ["train.jsonl"], "test": ["test.jsonl"]}
    values["reward"]["model"] = "reward"
    values |= blocks
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


def test_a_function_is_given_the_same_columns_in_every_step(tmp_path: Path, model_cache: Path) -> None:
    trainer = {"max_steps": 2, "num_generations": 2, "per_device_train_batch_size": 4}
    update = {"algorithm": "grpo", "lora": {"r": 2, "alpha": 4}, "trainer": trainer}
    recipe = recipe_with(tmp_path, "reward.py:spy\n" + SPY, update=update)
    loop = Loop(Recipe.load(recipe), run_dir=tmp_path / "run")
    loop.run(rounds=1)
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    given = {row["id"]: row for row in prompts(0, 12)}
    seen: dict[str, int] = {}
    for call in calls:
        assert call["more"] == []
        for row in call["rows"]:
            its = given[row["prompt_id"]]
            for name in ("reference", "tags", "group", "solution", "level"):
                assert row[name] == its.get(name), name
            assert row["prompts"][-1] == {"role": "user", "content": its["prompt"]}
            assert isinstance(row["completions"][-1]["content"], str)
            assert isinstance(row["finished"], bool)
            seen[row["prompt_id"]] = seen.get(row["prompt_id"], 0) + 1
    assert set(seen) == set(given)  # training prompts and held-out ones
    steps = {path.parent.name for path in (loop.run_dir.round(1)).glob("*/manifest.json")}
    assert {"reward", "score", "update", "evaluate", "rescore"} <= steps
    assert len(calls) >= 5  # at least one in each of them


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("def f(completions, solutoin): return []", "which is not known here; did you mean `solution`?"),
        ("def f(completions, completion_ids, **rest): return []", "asks for completion_ids, which is known only while"),
        ("def f(completions, *, refrence): return []", "did you mean `reference`?"),
        ("f = lambda completions, answer: []", "asks for answer, which is not known here"),
        ("def f(prompts, completions, /): return []", "takes prompts by its place alone, and is called with keywords"),
        ("f = (lambda prompts, /, completions: [])", "takes prompts by its place alone, and is called with keywords"),
        ("f = dict", "does not say what it takes; call it from a function of your own"),
        ("def f(completions", "reward.py cannot be loaded: SyntaxError"),
        ("def g(completions): return []", "has no function f; it has: g"),
    ],
)  # fmt: skip
def test_what_a_function_asks_for_is_checked_before_anything_is_computed(
    function: str, said: str, tmp_path: Path
) -> None:
    loop = Loop(Recipe.load(recipe_with(tmp_path, f"reward.py:f\n{function}\n")), run_dir=tmp_path / "run")
    with pytest.raises(UserError) as refused:
        loop.run()
    assert said in str(refused.value)
    assert not list((tmp_path / "run").glob("round_*"))


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ({"reward": {"trainer": {"max_steps": 1}}}, "reward.trainer: a reward model of kind function is not trained"),
        (
            {"reward": {"model": str(CATALOGUE / "bradley_terry"), "trainer": {"learning_rat": 1}}},
            "reward: trainer.learning_rat: TRL's RewardConfig has no such field; did you mean `learning_rate`?",
        ),
        (
            {"evaluation": {"trainer": {"max_steps": 1}}},
            "evaluation.judge.trainer: a reward model of kind head is not trained with TRL; remove the block",
        ),
    ],
)
def test_settings_that_a_reward_model_cannot_take_are_refused_before_anything_is_computed(
    blocks: dict[str, Any], said: str, tmp_path: Path
) -> None:
    values = Recipe.load(recipe_with(tmp_path, "reward.py:f\ndef f(completions): return []\n"))
    values = values.model_dump(mode="json")
    values["reward"] |= blocks.get("reward", {})
    if "evaluation" in blocks:
        judge = {"kind": "reward_model", "model": str(CATALOGUE / "frozen_head"), **blocks["evaluation"]}
        values["evaluation"]["judge"] = judge
        values["prompts"]["judge_fraction"] = 0.3
    loop = Loop(parse(values), run_dir=tmp_path / "run")
    with pytest.raises(UserError) as refused:
        loop.run()
    assert said in str(refused.value)
    assert not list((tmp_path / "run").glob("round_*"))


def test_a_column_that_only_the_training_prompts_have_is_refused(tmp_path: Path) -> None:
    held_out = [{"id": "h", "prompt": "Say something."}]
    recipe = recipe_with(tmp_path, "reward.py:f\ndef f(completions, solution): return []\n", test=held_out)
    with pytest.raises(UserError, match=r"asks for solution.* which is what the test prompts have"):
        Loop(Recipe.load(recipe), run_dir=tmp_path / "run").run()


def test_checking_a_plain_function_does_not_run_its_file(tmp_path: Path) -> None:
    code = "raise SystemExit('this file was run')\ndef f(completions, wrong): return []\n"
    recipe = recipe_with(tmp_path, f"reward.py:f\n{code}")
    with pytest.raises(UserError, match="asks for wrong"):
        Loop(Recipe.load(recipe), run_dir=tmp_path / "run").run()


def test_a_function_of_an_installed_module_is_a_reward(tmp_path: Path) -> None:
    recipe_with(tmp_path, "trl.rewards:think_format_reward\n")
    reward = load_reward(tmp_path / "reward", id="r", policy=Policy(model="tiny-random:0"))
    answers = [[{"role": "assistant", "content": text}] for text in ("<think>why</think>so", "so")]
    assert reward(prompts=[[{"role": "user", "content": "?"}]] * 2, completions=answers) == [1.0, 0.0]


def test_a_function_that_has_nothing_to_say_of_some_prompts_runs_through(tmp_path: Path, model_cache: Path) -> None:
    """None, as TRL's own functions give where a solution cannot be read: such answers have no score and no part."""
    code = (
        "def f(completions, solution, **_):\n"
        "    return [None if int(a) % 2 else float(len(c[-1]['content'])) for a, c in zip(solution, completions)]\n"
    )
    recipe = recipe_with(tmp_path, "reward.py:f\n" + code)
    loop = Loop(Recipe.load(recipe), run_dir=tmp_path / "run")
    loop.run(rounds=1)
    step = loop.run_dir.step
    for name, completions in (("score", step(0, "generate")), ("rescore", step(1, "generate"))):
        asked = {c.id: int(c.prompt_id[1:]) for c in read_records(completions / "completions.parquet", Completion)}
        scored = {score.completion_id for score in read_records(step(1, name) / "scores.parquet", Score)}
        assert scored == {id for id, number in asked.items() if number % 2 == 0}
    proxy = json.loads((step(1, "evaluate") / "evaluation.json").read_text())["proxy"]
    assert proxy["win_rate_vs_base"]["n"] == 2  # of the four held-out prompts


def test_a_part_of_a_sum_that_has_nothing_to_say_adds_nothing(tmp_path: Path) -> None:
    parts = []
    for name, given in (("one", "[1.0, None, None]"), ("two", "[10.0, 20.0, None]")):
        (tmp_path / name).mkdir()
        recipe_with(tmp_path / name, f"reward.py:f\ndef f(completions): return {given}\n")
        (tmp_path / name / "reward").rename(tmp_path / name / name)
        parts.append((load_reward(tmp_path / name / name, id=name, policy=Policy(model="tiny-random:0")), 0.5))
    assert combine(parts)(prompts=["?"] * 3, completions=["a", "b", "c"]) == [5.5, 10.0, None]


@pytest.mark.slow
def test_trls_accuracy_reward_works_unwrapped(tmp_path: Path, model_cache: Path) -> None:
    pytest.importorskip("math_verify", reason="math_verify is not installed: pip install math_verify")
    update = {"algorithm": "ppo", "lora": {"r": 2, "alpha": 4}, "trainer": {"max_steps": 4}}
    recipe = recipe_with(tmp_path, "trl.rewards:accuracy_reward\n", update=update)
    Loop(Recipe.load(recipe), run_dir=tmp_path / "run").run(rounds=1)
    reward = load_reward(tmp_path / "reward", id="r", policy=Policy(model="tiny-random:0"))
    answers = [[{"role": "assistant", "content": text}] for text in (r"It is \boxed{3}.", r"It is \boxed{4}.")]
    assert reward(prompts=[[{"role": "user", "content": "?"}]] * 2, completions=answers, solution=["3", "3"]) == [1, 0]


def test_equal_texts_of_prompts_with_different_columns_are_measured_apart(tmp_path: Path) -> None:
    function = (
        "def f(completions, solution): return [float(a == c[0]['content']) for a, c in zip(solution, completions)]\n"
    )
    recipe_with(tmp_path, "reward.py:f\n" + function)
    rows = [{"id": str(n), "prompt": "Say it.", "solution": str(n)} for n in range(2)]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = read_prompts(tmp_path / "same.jsonl")
    pairs = [
        PreferencePair(
            id=prompt.id, prompt_id=prompt.id, group=prompt.id, prompt=prompt.messages, origin="human",
            chosen=({"role": "assistant", "content": prompt.id},), chosen_id="a",
            rejected=({"role": "assistant", "content": str(1 - int(prompt.id))},), rejected_id="b",
        )
        for prompt in asked
    ]  # fmt: skip
    reward = load_reward(tmp_path / "reward", id="r", policy=Policy(model="tiny-random:0"))
    measured = evaluate_reward(reward, pairs, prompts=asked)
    assert measured is not None
    assert measured["accuracy"]["mean"] == 1.0


def test_further_columns_are_kept_and_names_with_a_meaning_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "solution": "1", "none": null}\n{"prompt": "b", "n": [1, {"x": 2}]}\n')
    found = read_prompts(file)
    assert [prompt.columns for prompt in found] == [{"solution": "1"}, {"n": [1, {"x": 2}]}]
    with Store.open(":memory:") as store:
        store.add_prompts(found)
        assert store.add_prompts(read_prompts(file)) == 0
        assert store.prompts() == found
    file.write_text('{"prompt": "a", "finished": true}\n')
    with pytest.raises(UserError, match="`finished` has a meaning of its own"):
        read_prompts(file)
