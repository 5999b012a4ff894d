"""One word of a recipe changes the policy update: each consumes its own rows, and says so when there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_loop import Loop, Recipe, policies
from rlhf_loop.algorithms import ALGORITHMS, ROWS, Algorithm
from rlhf_loop.errors import UserError
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import read_json, write_json
from rlhf_loop.files.step_folders import read_manifest
from rlhf_loop.recipe import parse
from rlhf_loop.record_files import read_records
from rlhf_loop.records import Demonstration, LabelledCompletion, Prompt, stable_id
from rlhf_loop.report.status import status
from rlhf_loop.run_dir import RunDir
from rlhf_loop.steps.snapshot import snapshot

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "recipes" / "smoke.yaml"
NO_THUMBS = "feedback.annotator.thumbs_above=null"
NO_EDITS = "feedback.annotator.edits=false"


def run(folder: Path, *overrides: str, rounds: int = 1) -> Path:
    Loop(Recipe.load(SMOKE, overrides), run_dir=folder).run(rounds=rounds)
    return folder


def rows(run: Path, number: int = 1) -> list[Any]:
    recipe = Recipe.load(run / "recipe.yaml")
    algorithm = recipe.update.algorithm if number else "sft"
    return read_records(
        RunDir(run).step(number, "assemble") / "training_data.parquet", ROWS[ALGORITHMS[algorithm].consumes]
    )


def without_references(tmp_path: Path) -> str:
    """An override: the smoke recipe's prompts with no reference answers."""
    prompts = [json.loads(line) for line in (ROOT / "recipes/data/smoke_train.jsonl").read_text().splitlines()]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(p | {"reference": None}) for p in prompts))
    return f"prompts.train.0={file}"


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("recipe", ["smoke", "quickstart"])
def test_one_word_changes_the_algorithm_of_a_shipped_recipe(recipe: str, name: str) -> None:
    update = Recipe.load(ROOT / "recipes" / f"{recipe}.yaml", [f"update.algorithm={name}"]).update
    assert update.algorithm == name


def test_the_settings_of_dpo_in_the_quickstart_are_its_own() -> None:
    path = ROOT / "recipes" / "quickstart.yaml"
    assert Recipe.load(path).update.trainer_settings()["loss_type"] == ["sigmoid", "sft"]
    other = Recipe.load(path, ["update.algorithm=kto", "update.trainer.max_steps=3"]).update.trainer_settings()
    assert "loss_type" not in other
    assert other["max_steps"] == 3


@pytest.fixture(scope="module")
def kto_run(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    return run(tmp_path_factory.mktemp("kto") / "smoke", "update.algorithm=kto")


def test_kto_learns_from_the_thumbs_of_the_round(kto_run: Path) -> None:
    labels: list[LabelledCompletion] = rows(kto_run)
    with Store.open(kto_run / "feedback.db") as store:
        thumbs = {thumb.id: thumb for thumb in store.feedback(kinds=["thumb"]) if thumb.round == 0}
        policy = store.artifacts(kind="policy")[-1]
        answers = {c.id: c for c in store.completions()}
    assert {(label.completion_id, label.label) for label in labels} == {
        (thumb.completion_id, thumb.label) for thumb in thumbs.values()
    }
    assert all(label.completion[0]["content"] == answers[label.completion_id].text for label in labels)
    assert all(label.finished == (answers[label.completion_id].finish_reason == "stop") for label in labels)
    assert set(policy.trained_on) == set(thumbs)
    assert policy.metrics["algorithm"] == "kto"
    assert f"{sum(x.label for x in labels)} simulated thumbs up" in (kto_run / "report.html").read_text()


@pytest.mark.parametrize("scored", [True, False])
def test_thumbs_alone_carry_a_run_whose_reward_is_a_function_or_none(tmp_path: Path, scored: bool) -> None:
    given = [{"prompt": f"Say {i}", "completion": f"{i} it is", "label": i % 3 != 0} for i in range(12)]
    (tmp_path / "thumbs.jsonl").write_text("\n".join(map(json.dumps, given)))
    reward = str(ROOT / "reward_models" / "brief_and_complete")
    values = {
        "name": "thumbs",
        "policy": {"model": "tiny-random:0", "dtype": "float32"},
        "prompts": {"from_feedback": True, "test_fraction": 0.3, "judge_fraction": 0.2},
        "feedback": {
            "imports": [{"path": str(tmp_path / "thumbs.jsonl")}],
            "questions_per_round": 0,
            "validation": {"min_pairs": 0 if scored else 16},
        },
        "reward": {"model": reward} if scored else None,
        "generation": {"samples_per_prompt": 2, "max_new_tokens": 8},
        "update": {"algorithm": "kto", "lora": {"r": 4}, "trainer": {"max_steps": 1, "per_device_train_batch_size": 2}},
        "evaluation": {"judge": {"kind": "reward_model", "model": reward}, "bootstrap": 100},
    }
    Loop(parse(values), run_dir=tmp_path / "run").run(rounds=1)
    labels: list[LabelledCompletion] = rows(tmp_path / "run")
    assert {(label.completion[0]["content"], label.label) for label in labels} < {
        (row["completion"], row["label"]) for row in given
    }
    assert {label.origin for label in labels} == {"human"}
    assert RunDir(tmp_path / "run").step(1, "score").exists() == scored
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(("name", "remedy"), [("ppo", "needs a reward model"), ("dpo", "pairing.sources: .feedback.")])
def test_without_a_reward_model_only_what_people_say_is_learned_from(name: str, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        Recipe.load(SMOKE, [f"update.algorithm={name}", "reward=null"])
    Recipe.load(SMOKE, ["update.algorithm=dpo", "reward=null", "pairing.sources=[feedback]"])


def test_sft_learns_from_references_of_training_prompts_alone(tmp_path: Path) -> None:
    made = run(tmp_path / "sft", "update.algorithm=sft")
    demonstrations: list[Demonstration] = rows(made)
    with Store.open(made / "feedback.db") as store:
        train = {prompt.id: prompt for prompt in store.prompts(split="train")}
    assert {row.completion[0]["content"] for row in demonstrations} == {p.reference for p in train.values()}
    assert policies.listed(made)[1]["win_rate_vs_base"]["n"] == 8


def test_rejection_sampling_learns_from_the_best_candidates_and_traces_to_the_reward_models_feedback(
    tmp_path: Path,
) -> None:
    made = run(tmp_path / "best", "update.algorithm=rejection_sampling")
    scores = read_json(RunDir(made).step(1, "assemble") / "summary.json")["reward"]
    demonstrations: list[Demonstration] = rows(made)
    assert 0 < len(demonstrations) <= 8
    assert scores["candidates"] > len(demonstrations)
    with Store.open(made / "feedback.db") as store:
        [reward_model] = store.artifacts(kind="reward_model")
        policy = store.artifacts(kind="policy")[-1]
        values = {score.completion_id: score.value for score in store.scores()}
    assert {row.reward_model for row in demonstrations} == {reward_model.id}
    assert all(row.score == values[row.completion_id] for row in demonstrations)
    assert policy.trained_on == reward_model.trained_on
    assert policy.trained_on


def test_without_an_update_the_policy_stays_and_candidates_scores_and_feedback_go_on(tmp_path: Path) -> None:
    made = run(tmp_path / "none", "update.algorithm=none", rounds=2)
    files = RunDir(made)
    assert files.complete_rounds() == [0, 1, 2]
    for step in ("assemble", "update", "evaluate", "gate"):
        assert not files.step(2, step).exists()
    with Store.open(made / "feedback.db") as store:
        assert [policy.id for policy in store.artifacts(kind="policy")] == ["base"]
        assert store.promoted_id() == "base"
        assert {score.round for score in store.scores()} == {1, 2}
        assert {feedback.round for feedback in store.feedback()} == {0, 1, 2}
    assert [row["decision"] for row in status(files)["rounds"]] == [None, None, None]
    assert "feedback without training" in (made / "report.html").read_text()


def test_a_warm_start_is_the_base_of_the_rounds_and_the_win_rates_stay_against_the_model(tmp_path: Path) -> None:
    block = "warm_start={trainer: {learning_rate: 1.0e-3, num_train_epochs: 2}}"
    made = run(tmp_path / "warm", block)
    files = RunDir(made)
    listed = policies.listed(made)
    _, warm, first = listed
    assert [row["parent"] for row in listed] == [None, "base", warm["id"]]
    assert warm["win_rate_vs_base"]["n"] == 8
    assert warm["path"] == str(files.step(0, "update") / "policy")
    candidates = (files.step(0, "generate") / "manifest.json").read_text()
    assert warm["id"] in candidates
    arguments = read_json(files.round(1) / "update.arguments.json")
    assert arguments["values"]["start"] == arguments["values"]["reference"] == warm["path"]
    assert arguments["values"]["step_offset"] > 0
    compared = read_json(files.round(1) / "evaluate.arguments.json")["inputs"]
    assert compared["base"] == str(files.step(0, "evaluate"))
    assert compared["previous"] == str(files.step(0, "evaluate_warm_start"))
    assert {row.origin for row in rows(made, 0)} == {"reference"}
    before = files.step(1, "update").stat().st_mtime_ns
    (files.round(0) / "manifest.json").unlink()
    run(made, block)  # every step is there: nothing is made again, and the promoted policy stays
    assert files.step(1, "update").stat().st_mtime_ns == before
    promoted = [row["id"] for row in policies.listed(made) if row["promoted"]]
    assert promoted in ([warm["id"]], [first["id"]])


def test_thumbs_and_edits_do_not_change_the_pairs_of_a_round(kto_run: Path, tmp_path: Path) -> None:
    kept = RunDir(kto_run).step(1, "snapshot")
    with Store.open(kto_run / "feedback.db") as store, Store.open(tmp_path / "other.db") as other:
        given = store.feedback()
        other.add_prompts(store.prompts())
        other.add_completions(store.completions())
        other.add_feedback([record for record in given if record.kind == "preference"])
        snapshot(other, Recipe.load(kto_run / "recipe.yaml"), 1, tmp_path, "base")
    assert {record.kind for record in given} > {"preference"}
    assert (tmp_path / "pairs.parquet").read_bytes() == (kept / "pairs.parquet").read_bytes()


def online(prompts: list[Prompt], training: Any, *, reward: Any, generation: Any) -> dict:
    """Stands for an update that samples: asks the reward, and saves the start."""
    from rlhf_loop.models.loading import load_policy, save_policy

    values = reward([list(p.messages) for p in prompts], [[{"role": "assistant", "content": "Yes."}] for _ in prompts])
    model, tokenizer = load_policy(training.start, training.policy)
    save_policy(model, tokenizer, training.output / "policy", training.policy.model)
    assert generation.max_new_tokens == 16
    return {"algorithm": "grpo", "steps": 1, "train_loss": None, "prompts": len(prompts), "rewards": len(values)}


def test_an_online_update_gets_the_prompts_of_the_candidates_and_the_rounds_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALGORITHMS, "grpo", Algorithm(consumes="prompts", function=f"{__name__}:online"))
    made = run(tmp_path / "online", "update.algorithm=grpo", "generation.prompts_per_round=5")
    assert {prompt.split for prompt in rows(made)} == {"train"}
    with Store.open(made / "feedback.db") as store:
        [reward_model] = store.artifacts(kind="reward_model")
        policy = store.artifacts(kind="policy")[-1]
    assert (policy.metrics["prompts"], policy.metrics["rewards"]) == (5, 5)
    assert policy.trained_on == reward_model.trained_on


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (["update.algorithm=kto", NO_THUMBS], "thumbs_above: 0.5"),
        (["update.algorithm=kto", "feedback.questions_per_round=0"], "ask questions"),
        (["pairing.sources=[feedback]", "feedback.questions_per_round=0"], "no source of pairs"),
        (["update.algorithm=rejection_sampling", "generation.samples_per_prompt=1"], "at least 2"),
        (["update.algorithm=kto", "update.trainer.per_device_train_batch_size=1"], "2 or more"),
        (["update.algorithm=dop"], "'dpo'"),
        (["update.trainers.dop={}"], "no algorithm `dop`; did you mean `dpo`?"),
        (["update.trainers.kto.bata=1"], "KTOConfig has no such field; did you mean `beta`?"),
        (["update.trainers.none.beta=1"], "takes no trainer settings"),
        (["update.algorithm=sft", "update.trainer.beta=1"], "put it under `update.trainers.dpo`"),
        (["warm_start.trainer.beta=1"], "SFTConfig has no such field"),
        (["update.trainers.dpo.beta=1", "update.trainer.beta=2"], "type `update.trainers.dpo.beta=...`"),
    ],
)
def test_an_update_that_cannot_work_is_refused_at_load_with_the_remedy(overrides: list[str], remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        Recipe.load(SMOKE, overrides)
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (["update.algorithm=sft", NO_EDITS], "feedback.annotator.edits: true"),
        (["warm_start={}"], "give training prompts a `reference` answer"),
    ],
)
def test_no_demonstrations_are_refused_before_anything_is_computed(
    tmp_path: Path, overrides: list[str], remedy: str
) -> None:
    recipe = Recipe.load(SMOKE, [without_references(tmp_path), *overrides])
    with pytest.raises(UserError) as caught:
        Loop(recipe, run_dir=tmp_path / "run").run()
    assert remedy in str(caught.value)
    assert RunDir(tmp_path / "run").rounds() == []


def test_a_round_without_rows_is_refused_with_the_remedy_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"round 1: nothing to train rejection_sampling on .*min_margin"):
        run(tmp_path / "best", "update.algorithm=rejection_sampling", "pairing.min_margin=1e9")


def test_policies_that_an_earlier_version_named_after_the_folder_keep_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(loop: Loop, n: int) -> str:
        return f"policy-{n:03d}-{stable_id('policy', 'before', loop.recipe.seed, n)[:8]}"

    block = "warm_start={trainer: {max_steps: 1}}"
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "policy_id", named)
        run(tmp_path / "before", block, rounds=0)
    file = RunDir(tmp_path / "before").round(0) / "update.arguments.json"
    values = read_json(file)
    values["run"] = values.pop("title")
    write_json(file, values)
    moved = (tmp_path / "before").rename(tmp_path / "moved")
    run(moved, block)
    base, warm, first = policies.listed(moved)
    assert warm["id"] == named(Loop(Recipe.load(SMOKE), moved), 0)
    assert [first["parent"], base["parent"]] == [warm["id"], None]
    assert read_json(RunDir(moved).step(1, "snapshot") / "state.json")["promoted"] == warm["id"]


def test_two_runs_share_a_store_and_each_has_a_promoted_policy_of_its_own(tmp_path: Path) -> None:
    shared = (f"store=sqlite:///{tmp_path / 'shared.db'}", "gate.margin=0.49")
    run(tmp_path / "one", *shared)
    run(tmp_path / "again", *shared)
    run(tmp_path / "other", *shared, "seed=1")
    files = [RunDir(tmp_path / name) for name in ("one", "again", "other")]
    made = [read_manifest(run.step(1, "generate"))["files"] for run in files]
    assert made[0] == made[1] != made[2]
    assert {read_json(run.step(1, "snapshot") / "state.json")["promoted"] for run in files} == {"base"}
    promoted = [next(row for row in policies.listed(run.path) if row["promoted"]) for run in files]
    assert promoted[0]["id"] == promoted[1]["id"] != promoted[2]["id"]
    assert [row["path"] for row in promoted] == [str(run.step(1, "update") / "policy") for run in files]
    run(tmp_path / "one", *shared, rounds=2)
    assert read_json(files[0].step(2, "snapshot") / "state.json")["promoted"] == promoted[0]["id"]
