from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from samples.trl_fields import FILE, fields_of

from rlhf_loop.algorithms import TRAINER_CONFIGS
from rlhf_loop.errors import UserError
from rlhf_loop.progress import RunProgress
from rlhf_loop.recipe import Recipe, parse
from rlhf_loop.run_dir import RunDir
from rlhf_loop.settings import read_yaml, write_yaml
from rlhf_loop.steps.made_once import StepMaker
from rlhf_loop.trainer_fields import LOSSES, RESERVED, trl_fields

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "recipes" / "smoke.yaml"


def changed(tmp_path: Path, **blocks: object) -> Path:
    """A copy of the smoke recipe with some blocks replaced."""
    values = yaml.safe_load(SMOKE.read_text())
    values.update(blocks)
    path = tmp_path / "recipe.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        Recipe.load(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_says_how_to_run_it(path: Path) -> None:
    recipe = Recipe.load(path)
    assert recipe.name == path.stem
    first_comment = path.read_text().split("\nname:")[0]
    assert f"rlhf-loop run recipes/{path.name}" in first_comment
    assert "Hardware:" in first_comment
    assert "Expect:" in first_comment


def test_an_unknown_key_is_named_with_file_place_and_nearest_name(tmp_path: Path) -> None:
    path = changed(tmp_path, update={"algoritm": "dpo"}, generation={"samples": 2})
    message = refused(path)
    assert f"{path}: unknown key `update.algoritm`; did you mean `algorithm`?" in message
    assert f"{path}: unknown key `generation.samples`; did you mean `samples_per_prompt`?" in message


def test_an_unknown_key_of_a_judge_is_compared_with_that_judge(tmp_path: Path) -> None:
    message = refused(changed(tmp_path, evaluation={"judge": {"kind": "rule", "rul": "x"}}))
    assert "`evaluation.judge.rul`; did you mean `rule`?" in message


def test_a_wrong_trainer_key_is_refused_with_the_nearest_field_of_trl(tmp_path: Path) -> None:
    message = refused(changed(tmp_path, update={"trainer": {"lerning_rate": 1.0}}))
    assert "update.trainer.lerning_rate: TRL's DPOConfig has no such field; did you mean `learning_rate`?" in message


def test_what_the_loop_owns_cannot_be_set_and_the_message_says_why(tmp_path: Path) -> None:
    message = refused(changed(tmp_path, update={"trainer": {"output_dir": "x"}}))
    assert "update.trainer.output_dir is the loop's own" in message
    assert "--run-dir" in message


@pytest.mark.parametrize(
    ("blocks", "remedy"),
    [
        ({"prompts": {"test": ["data/smoke_test.jsonl"]}}, "no training prompts"),
        ({"prompts": {"train": ["data/smoke_train.jsonl"]}}, "no held-out prompts"),
        ({"generation": {"samples_per_prompt": 1}}, "at least 2 are needed"),
        ({"update": {"trainer": {"loss_type": "exo_pair"}}}, "label_smoothing: 0.001"),
        ({"update": {"reference": "previous", "trainer": {"sync_ref_model": True}}}, "contradict"),
        ({"launch": "inline", "accelerate_config": "x.yaml"}, "launch: child"),
        ({"reward": {}}, "give either"),
        ({"rounds": 0}, "greater than or equal to 1"),
        ({"pairing": {"strategy": "best"}}, "pairing.strategy: there is no `best`; there are: best_worst"),
        ({"feedback": {"question_strategy": "all"}}, "feedback.question_strategy: there is no `all`"),
        (
            {"feedback": {"annotator": {"kind": "simulated", "rule": "long"}}},
            "feedback.annotator.rule: there is no `lo",
        ),
        ({"evaluation": {"judge": {"kind": "rule", "rule": "long"}}}, "evaluation.judge.rule: there is no `long`"),
        ({"name": "a/b"}, "`name`"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_load_with_the_remedy(
    tmp_path: Path, blocks: dict[str, object], remedy: str
) -> None:
    assert remedy in refused(changed(tmp_path, **blocks))


def test_a_trained_judge_needs_feedback_of_its_own_and_a_function_none(tmp_path: Path) -> None:
    def judge(name: str) -> dict[str, Any]:
        return {"evaluation": {"judge": {"kind": "reward_model", "model": str(ROOT / "reward_models" / name)}}}

    message = refused(changed(tmp_path, **judge("frozen_head")))
    assert "evaluation.judge: frozen_head is trained" in message
    assert "prompts.judge_fraction: 0.3" in message
    apart = {"prompts": {"from_feedback": True, "judge_fraction": 0.3}}
    assert Recipe.load(changed(tmp_path, **judge("frozen_head"), **apart)).prompts.judge_fraction == 0.3
    votes = {"feedback": {"imports": [{"path": "votes.jsonl", "split": "judge"}]}}
    assert Recipe.load(changed(tmp_path, **judge("frozen_head"), **votes)).feedback.imports[0].split == "judge"
    recipe = Recipe.load(changed(tmp_path, **judge("brief_and_complete")))
    assert getattr(recipe.evaluation.judge, "model", None) == ROOT / "reward_models" / "brief_and_complete"


def test_overrides_reach_nested_keys_and_lists() -> None:
    recipe = Recipe.load(SMOKE, ["update.trainer.beta=0.3", "seed=7", "prompts.train.0=mine.jsonl"])
    assert recipe.update.trainer["beta"] == 0.3
    assert recipe.seed == 7
    assert recipe.prompts.train == [Path("mine.jsonl").resolve()]


def test_paths_in_a_file_start_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("recipes/org/beside", "elsewhere/gpt2"):
        (tmp_path / folder).mkdir(parents=True)

    def of(**blocks: object) -> Recipe:
        path = changed(tmp_path / "recipes", **blocks)
        return Recipe.load(path)

    here = tmp_path / "recipes"
    imports = [{"path": "votes.jsonl"}, {"path": "hf:owner/name:train"}, {"path": "~/votes.jsonl"}]
    recipe = of(feedback={"imports": imports, "annotator": {"kind": "simulated"}}, run_dir="mine")
    assert [i.path for i in recipe.feedback.imports] == [
        here / "votes.jsonl", Path("hf:owner/name:train"), tmp_path / "home" / "votes.jsonl",
    ]  # fmt: skip
    assert recipe.run_dir == here / "mine"
    models = {
        "./m": str(here / "m"),
        "../m": str(tmp_path / "m"),
        "~/m": str(tmp_path / "home" / "m"),
        "/m": "/m",
        "org/beside": str(here / "org" / "beside"),
        "org/name": "org/name",
        "gpt2": "gpt2",
        "tiny-random:0": "tiny-random:0",
        "pypi:a==1/b.gguf": "pypi:a==1/b.gguf",
    }
    assert {model: of(policy={"model": model}).policy.model for model in models} == models
    stores = {
        "sqlite:///feedback.db": f"sqlite:///{here}/feedback.db",
        "sqlite:///../feedback.db?timeout=3": f"sqlite:///{tmp_path}/feedback.db?timeout=3",
        "sqlite:////data/feedback.db": "sqlite:////data/feedback.db",
        "sqlite:///~/feedback.db": f"sqlite:///{tmp_path}/home/feedback.db",
        "feedback.db": f"{here}/feedback.db",
        ":memory:": ":memory:",
        "sqlite://": "sqlite://",
        "postgresql://u:p@host/db": "postgresql://u:p@host/db",
    }
    assert {store: of(store=store).store for store in stores} == stores


def test_typed_paths_start_from_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work" / "m").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    work = tmp_path / "work"
    recipe = Recipe.load(
        ROOT / "recipes" / "own_pairs.yaml",
        [
            "feedback.imports.0.path=votes.jsonl",
            "policy.model=m",
            "store=sqlite:///votes.db",
            "run_dir=runs/x",
            "reward.model=mine/reward",
            "launch=child",
            "accelerate_config=cpu.yaml",
            "prompts.test=[a.jsonl, ~/b.jsonl]",
        ],
    )
    assert recipe.feedback.imports[0].path == work / "votes.jsonl"
    assert recipe.policy.model == str(work / "m")
    assert recipe.store == f"sqlite:///{work}/votes.db"
    assert recipe.run_dir == work / "runs" / "x"
    assert recipe.reward is not None
    assert recipe.reward.model == work / "mine" / "reward"
    assert recipe.accelerate_config == work / "cpu.yaml"
    assert recipe.prompts.test == [work / "a.jsonl", Path("~/b.jsonl").expanduser()]
    assert getattr(recipe.evaluation.judge, "model", None) == ROOT / "reward_models" / "frozen_head"


def test_a_misspelt_name_of_few_is_answered_with_the_nearest() -> None:
    assert "got 'dop'; did you mean `dpo`?" in refused(SMOKE, "update.algorithm=dop")
    assert "did you mean" not in refused(SMOKE, "update.algorithm=magic")


def test_a_switch_is_no_number() -> None:
    assert "`rounds`: a number is needed, got true" in refused(SMOKE, "rounds=true")
    assert "`max_kl`: a number is needed, got false" in refused(SMOKE, "gate.max_kl=false")  # null: off
    assert Recipe.load(SMOKE, ["policy.trust_remote_code=true"]).policy.trust_remote_code is True


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e400"])
def test_a_number_is_finite(value: str) -> None:
    assert "finite number" in refused(SMOKE, f"critiques={{predict: {{weight: {value}}}}}")
    assert "finite number" in refused(SMOKE, f"gate.max_kl={value}")


@pytest.mark.parametrize("character", ["\\0", "\\ud800"])
def test_a_text_holds_what_can_be_written(character: str) -> None:
    said = "it holds a NUL character or half of a surrogate pair"
    assert f"`model`: {said}" in refused(SMOKE, f'reward.model="{character}"')
    assert f"`train`: {said}" in refused(SMOKE, f'prompts.train=["x{character}"]')
    assert f"`endpoint`: {said}" in refused(SMOKE, f'generation={{engine: endpoint, endpoint: "{character}"}}')
    assert f"`a?`: {said}" in refused(SMOKE, f'critiques={{"a{character}": {{}}}}')


@pytest.mark.parametrize(
    "override",
    [
        "update.algorithm={0}", "rounds={0}", "update={{{0}: 1}}", "update.trainer={{{0}: 1}}", "name='{0} '",
        "update.trainer={{beta: {0}}}", "update.trainer={{loss_type: {0}}}", "report_to=[{0}]", "generation=[{0}]",
        "feedback.annotator={{kind: {0}}}", "feedback.annotator={{kind: simulated, rule: {0}}}",
        "evaluation.judge={{kind: endpoint, endpoint: {0}, calibration: x}}",
        "endpoints={{'{0} ': {{base_url: 'http://localhost/v1', model: m}}}}", "{0}",
        "seed.{0}.a=1", "prompts.train.{0}=1",
    ],
)  # fmt: skip
def test_a_message_repeats_the_beginning_of_a_long_value(override: str) -> None:
    said = refused(SMOKE, override.format("wrong-" * 200))
    assert "wrong-wrong-" in said
    assert "wrong-" * 40 not in said


@pytest.mark.parametrize("name", ["", " ", "a:b", "a.b", "a/b", "-a", "ä"])
def test_an_endpoint_has_a_name_that_other_settings_can_hold(name: str) -> None:
    endpoint = {"base_url": "http://localhost/v1", "model": "m"}
    said = refused(SMOKE, f"endpoints={json.dumps({name: endpoint})}")
    assert f"endpoints: `{name}` must be letters, digits" in said
    assert set(Recipe.load(SMOKE, [f"endpoints={json.dumps({'a_B-1': endpoint})}"]).endpoints) == {"a_B-1"}


def test_a_model_that_embeds_is_looked_for_before_a_round_needs_it(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        said = refused(SMOKE, f"generation.embed={{model: {folder}}}")
        assert f"generation.embed.model: {folder} holds no model" in said
    (tmp_path / "config.json").write_text("{}")
    assert Recipe.load(SMOKE, [f"generation.embed={{model: {tmp_path}}}"]).generation.embed is not None
    assert Recipe.load(SMOKE, ["generation.embed={model: some/model}"]).generation.embed is not None


def test_a_malformed_override_is_explained() -> None:
    assert "write key.sub=value" in refused(SMOKE, "seed")
    assert "is not one of the 1 items" in refused(SMOKE, "prompts.train.3=x")
    for deeper in ("seed.part=1", "seed.part.of=1", "policy.model.a.b=1"):
        assert "is a single value and has no parts" in refused(SMOKE, deeper)
    assert "prompts is null" in refused(SMOKE, "prompts=null", "prompts.train=x")


def test_trainers_that_are_no_blocks_are_named() -> None:
    assert "`update.trainers`" in refused(SMOKE, "update.trainers=[1]")
    assert "`update.trainers.dpo`" in refused(SMOKE, "update.trainers={dpo: 3}", "update.trainer.beta=1")


def test_a_missing_or_damaged_file_is_explained(tmp_path: Path) -> None:
    assert "rlhf-loop init" in refused(tmp_path / "none.yaml")
    damaged = tmp_path / "damaged.yaml"
    damaged.write_text("name: [")
    assert "not valid YAML" in refused(damaged)
    damaged.write_text("- a list")
    assert "mapping" in refused(damaged)


def test_a_recipe_written_out_whole_loads_as_the_same_recipe(tmp_path: Path) -> None:
    recipe = Recipe.load(SMOKE)
    copy = tmp_path / "copy.yaml"
    copy.write_text(recipe.to_yaml())
    assert Recipe.load(copy) == recipe


def test_settings_that_are_left_out_and_came_later_change_nothing_of_what_a_step_is_made_from(tmp_path: Path) -> None:
    """Each stage follows the policy's block: a run that was begun without them would make its steps again."""

    def blocks(*changes: str) -> dict[str, Any]:
        recipe = Recipe.load(SMOKE, changes, to_run=False)
        return StepMaker(RunDir(tmp_path), recipe, lambda file, progress: None, RunProgress()).blocks(
            "policy", "feedback"
        )

    of_policy = {"model", "dtype", "system_prompt", "attn_implementation", "trust_remote_code"}
    assert blocks()["policy"].keys() == of_policy
    assert "from" not in blocks()["feedback"]
    used = blocks(
        "policy.quantization=nf4", "update.lora={r: 4, alpha: 8}", 'feedback.from=["postgresql://host/other"]'
    )
    assert used["policy"]["quantization"] == "nf4"
    assert used["feedback"]["from"] == ["postgresql://host/other"]


def test_the_kept_configs_are_those_that_trainer_blocks_go_to() -> None:
    kept = json.loads(FILE.read_text())
    assert set(kept) == {config.partition(":")[2] for config in TRAINER_CONFIGS.values()}


@pytest.mark.parametrize("config", sorted(set(TRAINER_CONFIGS.values())))
def test_trainer_fields_kept_as_data_are_those_of_the_installed_configs(config: str) -> None:
    kept = json.loads(FILE.read_text())[config.partition(":")[2]]
    assert kept == fields_of(config), "write them anew with: python tests/samples/trl_fields.py"
    assert set(RESERVED) & set(kept)


def test_losses_kept_as_data_are_those_of_the_installed_trainers() -> None:
    import trl

    for trainer in (trl.DPOTrainer, trl.KTOTrainer, trl.GRPOTrainer):
        lines = [
            line
            for line in inspect.getsource(trainer._compute_loss).splitlines()
            if re.search(r"if (self\.)?loss_type (==|in)", line)
        ]
        named = re.findall(r'"(\w+)"', "\n".join(lines))
        assert set(LOSSES[trainer.__name__.replace("Trainer", "Config")]) == set(named)
    assert '("nll", "dft")' in inspect.getsource(trl.SFTTrainer.__init__)
    assert set(LOSSES) == {name for name, fields in trl_fields().items() if "loss_type" in fields} - {"PPOConfig"}


@pytest.mark.parametrize(
    ("algorithm", "loss", "said"),
    [
        ("dpo", "sigmod", "did you mean `sigmoid`?"),
        ("dpo", ["sigmoid", "sfd"], "did you mean `sft`?"),
        ("kto", "sigmoid", "valid: apo_zero_unpaired, kto"),
        ("grpo", "dr_gpo", "did you mean `dr_grpo`?"),
        ("grpo", ["grpo", "dapo"], "must be one of grpo"),
        ("sft", 3, "valid: chunked_nll"),
    ],
)
def test_a_loss_that_the_trainer_does_not_know_is_refused_when_the_recipe_is_loaded(
    algorithm: str, loss: object, said: str
) -> None:
    with pytest.raises(UserError, match=r"update\.trainers\.\w+\.loss_type") as refused:
        Recipe.load(SMOKE, [f"update.trainers.{algorithm}.loss_type={json.dumps(loss)}"])
    assert said in str(refused.value)
    assert Recipe.load(SMOKE, ["update.trainers.dpo.loss_type=[sigmoid,sft]", "update.trainers.kto.loss_type=null"])


def test_recipes_from_values_are_checked_the_same_way() -> None:
    with pytest.raises(UserError, match="`policy` is missing"):
        parse({"name": "x", "reward": {"model": "y"}, "evaluation": {"judge": {"kind": "rule"}}}, "here")


def test_numbers_may_be_written_without_a_point() -> None:
    values = read_yaml("a: 5e-4\nb: 1E6\nc: -.5e+2\nd: 12e5x\ne: '1e5'\nf: 3", "x")
    assert values == {"a": 5e-4, "b": 1e6, "c": -50.0, "d": "12e5x", "e": "1e5", "f": 3}
    assert read_yaml(write_yaml(values), "x") == values
    lines = {"script": "a: $b\n  c\n", "other line ends": "a\n\x85\u2028b\r\n", "spaces": "a \n b"}
    assert write_yaml(lines).startswith("script: |\n  a: $b\n    c\n")
    assert read_yaml(write_yaml(lines), "x") == lines
    recipe = Recipe.load(SMOKE, ["update.trainer.learning_rate=5e-4"])
    assert recipe.update.trainer["learning_rate"] == 5e-4


def test_an_override_that_is_not_yaml_is_named() -> None:
    with pytest.raises(UserError, match=r"`seed=\{` is not valid YAML"):
        Recipe.load(SMOKE, ["seed={"])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("learning_rate=abc", "update.trainer.learning_rate must be a number, got 'abc'"),
        ("learning_rate=.nan", "update.trainer.learning_rate must be a number, got nan"),
        (
            "per_device_train_batch_size=1.5",
            "update.trainer.per_device_train_batch_size must be a whole number, got 1.5",
        ),
        ("max_steps=true", "update.trainer.max_steps must be a whole number, got True"),
        ("bf16=maybe", "update.trainer.bf16 must be true or false, got 'maybe'"),
        ("optim=adam", "update.trainer.optim must be one of "),
        ("lr_scheduler_type=foo", "update.trainer.lr_scheduler_type must be one of "),
    ],
)
def test_a_trainer_setting_of_another_kind_is_refused_when_the_recipe_is_loaded(setting: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        Recipe.load(SMOKE, [f"update.trainer.{setting}"])
    assert said in str(refused.value)
    Recipe.load(SMOKE, ["update.trainer.max_steps=null", "update.trainer.warmup_steps=1", "update.trainer.optim=sgd"])
