"""A plan of a recipe: which stages it has, what fits, and what to change where it does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlhf_loop.cli import app
from rlhf_loop.errors import UserError
from rlhf_loop.plan.advice import advice
from rlhf_loop.plan.case import Case, Memory
from rlhf_loop.plan.hardware import GIB, Hardware, chosen
from rlhf_loop.plan.implied import implied
from rlhf_loop.plan.planning import Plan, case_of, plan_of, plans, recommended
from rlhf_loop.plan.shape import adapter_of
from rlhf_loop.plan.sharing import SHARINGS
from rlhf_loop.recipe import Recipe
from rlhf_loop.reward_spec import CriticSpec

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SMOKE = ROOT / "recipes" / "smoke.yaml"
H100 = Hardware(kind="gpu", name="H100", memory=80 * GIB, peak=989e12, bandwidth=3.35e12)


def configured(folder: Path, **settings: Any) -> str:
    """A folder with the configuration of a Llama and nothing else: by default SmolLM2-135M's."""
    values = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "tie_word_embeddings": True, **settings,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


@pytest.fixture
def large(tmp_path: Path) -> str:
    """The configuration of a model of 8 billion weights."""
    return configured(
        tmp_path / "8B", vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip


def case(model: str, *overrides: str, hardware: Hardware = H100, recipe: Path = SMOKE) -> Case:
    loaded = Recipe.load(recipe, [f"policy.model={model}", *overrides], to_run=False)
    dtype = "float32" if hardware.kind == "cpu" else "bfloat16"
    return case_of(loaded, hardware, dtype, implied(loaded))


def of_update(plan: Plan) -> Memory:
    return next(stage for stage in plan.stages if stage.stage.startswith("update"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_can_be_planned(recipe: Path, tmp_path: Path) -> None:
    """Though some data of theirs is not here."""
    found = case(configured(tmp_path / "135M"), recipe=recipe)
    plan = plan_of(found)
    names = [stage.stage for stage in plan.stages]
    assert {"evaluate", "generate"} <= set(names)
    assert any(name.startswith("update") for name in names) == (found.recipe.update.algorithm != "none")
    assert plan.fits
    assert {one.stage for one in plan.times} <= set(names)
    assert all(one.seconds is not None and one.operations >= 0 for one in plan.times)


@pytest.mark.parametrize("algorithm", ["dpo", "kto", "sft", "rejection_sampling", "ppo", "grpo", "rloo"])
def test_each_update_holds_its_networks(algorithm: str, large: str) -> None:
    """In weights of the policy, of 2 bytes each, trained alone in bfloat16."""
    found = case(large, f"update.algorithm={algorithm}", "update.lora=null", "update.trainers={}", "update.trainer={}")
    stage, copy = of_update(plan_of(found)), 2 * 8_030_261_248
    assert stage.parts["weights"] == copy
    compared = algorithm in ("dpo", "kto", "ppo", "rloo")  # GRPO's default is no KL penalty
    assert stage.parts.get("reference", 0) == (copy if compared else 0)
    critic = copy - 2 * found.policy.head + 2 * 4096 if algorithm == "ppo" else 0  # a trunk and a head
    assert stage.parts.get("critic", 0) == critic
    assert stage.parts["optimizer"] == 2 * (copy + critic)
    assert stage.sure >= 4 * copy


@pytest.mark.parametrize(("critic", "copies"), [("separate", 9), ("head", 5)])
def test_critics_of_ppo_hold_the_copies_that_were_measured(critic: str, copies: int, large: str) -> None:
    """docs/updates.md: 9 and 5 copies of the weights are there at the end of a step."""
    trainer = f"update.trainer={{critic: {critic}}}"
    found = case(large, "update.algorithm=ppo", "update.lora=null", "update.trainers={}", trainer)
    sure = of_update(plan_of(replace(found, rewards={k: (s, None) for k, (s, _) in found.rewards.items()}))).sure
    head = 4 * 2 * found.policy.head if critic == "separate" else 0  # which a critic has not
    assert (sure + head) / (2 * 8_030_261_248) == pytest.approx(copies, rel=0.001)


def test_an_adapter_takes_little_and_needs_no_reference(large: str) -> None:
    full = of_update(plan_of(case(large, "update.lora=null")))
    adapter = of_update(plan_of(case(large, "update.lora={r: 16, alpha: 32}")))
    assert "reference" not in adapter.parts
    assert adapter.sure < full.sure / 3


def test_a_quantised_base_has_half_a_byte_a_weight_but_for_embeddings_and_output_layer(large: str) -> None:
    whole, quantised = case(large), case(large, "policy.quantization=nf4")
    shape = whole.policy
    matrices = sum(linear.inputs * linear.outputs for linear in shape.linears)
    assert quantised.of_policy == pytest.approx(0.516 * matrices + 2 * (shape.parameters - matrices), rel=0.01)
    before, after = of_update(plans(whole)[0]), of_update(plans(quantised)[0])
    assert before.parts["weights"] - after.parts["weights"] == quantised.saved
    eight = replace(H100, devices=8)
    ways = [plan.case.sharing.name for plan in plans(case(large, "policy.quantization=nf4", hardware=eight))]
    assert ways == ["ddp", "zero2"]


@pytest.mark.parametrize(("sharing", "parts"), [("ddp", 1), ("zero2", 1), ("hsdp", 8), ("fsdp2", 16), ("zero3", 16)])
def test_models_that_are_only_read_are_shared_out_as_those_in_training_are(
    sharing: str, parts: int, large: str
) -> None:
    reward = f"reward.model={ROOT / 'reward_models' / 'bradley_terry'}"
    found = case(large, "update.algorithm=rloo", "update.lora=null", "update.trainers={}", "update.trainer={}", reward)
    way = next(one for one in SHARINGS if one.name == sharing)
    hardware = replace(H100, devices=8, machines=2)
    stages = {stage.stage: stage for stage in plan_of(replace(found, sharing=way, hardware=hardware)).stages}
    policy = 2 * found.policy.parameters
    of_reward = stages["score"].parts["reward model"]
    assert of_reward == pytest.approx((policy - 2 * found.policy.head) / parts, rel=0.01)  # with an adapter
    assert stages["update (rloo)"].parts["reward model"] == of_reward
    assert stages["generate"].parts["weights"] == policy  # of 80 GiB a fifth
    assert stages["generate"].host == 8 * policy
    small = replace(hardware, memory=policy)
    stages = {stage.stage: stage for stage in plan_of(replace(found, sharing=way, hardware=small)).stages}
    assert stages["generate"].parts["weights"] == policy // parts
    assert stages["generate"].host == (policy if parts > 1 else 8 * policy)
    assert stages["evaluate"].parts["weights"] == stages["evaluate"].parts["reference"] == policy // parts


@pytest.mark.parametrize(("sharing", "parts"), [("ddp", 1), ("hsdp", 8), ("fsdp2", 16)])
def test_a_critic_in_training_is_shared_out(sharing: str, parts: int, large: str) -> None:
    found = case(large, f"reward.model={ROOT / 'reward_models' / 'critic'}")
    way = next(one for one in SHARINGS if one.name == sharing)
    plan = plan_of(replace(found, sharing=way, hardware=replace(H100, devices=8, machines=2)))
    stage = next(one for one in plan.stages if one.stage == "reward (critic)")
    [(spec, shape)] = found.rewards.values()
    assert isinstance(spec, CriticSpec)
    assert shape is not None
    adapter = adapter_of(shape, spec.lora.r, spec.lora.target_modules).parameters
    trained = adapter + (shape.hidden + 1) * shape.hidden
    assert stage.parts["weights"] == (2 * shape.parameters + 4 * trained) // parts
    assert stage.parts["gradients"] == 4 * trained // parts
    assert stage.parts["optimizer"] == 8 * trained // parts


def test_the_first_way_that_fits_is_recommended(large: str) -> None:
    alone = case(large, "update.lora=null")
    assert not recommended(plans(alone)).fits
    found = plans(replace(alone, hardware=replace(H100, devices=8)))
    assert [plan.case.sharing.name for plan in found] == ["ddp", "zero2", "fsdp2", "zero3", "zero3_offload"]
    best = recommended(found)
    assert best.fits
    assert not any(plan.fits for plan in found[: found.index(best)])
    two = plans(replace(alone, hardware=replace(H100, devices=8, machines=2)))
    assert "hsdp" in [plan.case.sharing.name for plan in two]
    for plan in found:
        assert (ROOT / "recipes" / "accelerate" / plan.case.sharing.config).exists()


def test_what_is_advised_fits_and_may_stand_in_the_recipe(large: str) -> None:
    overrides = ["update.lora=null", "update.trainers={}", "update.trainer={per_device_train_batch_size: 32}"]
    for hardware in (H100, replace(H100, memory=40 * GIB)):
        found = advice(recommended(plans(case(large, *overrides, hardware=hardware))))
        assert found is not None
        assert found.fits
        settings = [setting for change in found.changes for setting in change.settings]
        devices = next((change.devices for change in found.changes if change.devices), hardware.devices)
        changed = case(large, *overrides, *settings, hardware=replace(hardware, devices=devices))
        assert recommended(plans(changed)).largest == found.plan.largest


def test_the_smallest_change_goes_first(tmp_path: Path) -> None:
    """Smaller batches with the same total are enough, and nothing else is asked for."""
    model = configured(tmp_path / "135M")
    overrides = ["update.trainers={}", "update.trainer={per_device_train_batch_size: 64}"]
    found = case(model, *overrides)
    smaller = "update.trainer={per_device_train_batch_size: 16, gradient_accumulation_steps: 4}"
    room = plan_of(case(model, "update.trainers={}", smaller)).largest
    tight = replace(found, hardware=replace(H100, memory=int(room / 0.9) + 1))
    given = advice(recommended(plans(tight)))
    assert given is not None
    (change,) = given.changes
    assert change.settings == (
        "update.trainer.per_device_train_batch_size=16",
        "update.trainer.gradient_accumulation_steps=4",
    )


def test_smaller_batches_of_update_and_reward_model_are_advised_together(tmp_path: Path) -> None:
    model = configured(tmp_path / "135M")
    base = ["reward.model=reward_models/bradley_terry", "reward.trainer={per_device_train_batch_size: 64}"]
    found = case(model, *base, "update.trainers={}", "update.trainer={per_device_train_batch_size: 64}")
    plan = plan_of(found)
    stages = {stage.stage.partition(" ")[0]: stage.total for stage in plan.stages}
    tight = min(stages["update"], stages["reward"]) / 2
    given = advice(recommended(plans(replace(found, hardware=replace(H100, memory=int(tight / 0.9))))))
    assert given is not None
    assert given.fits
    assert {change.settings[0].partition("=")[0] for change in given.changes} == {
        "update.trainer.per_device_train_batch_size",
        "reward.trainer.per_device_train_batch_size",
    }


@pytest.mark.parametrize("kind", ["bradley_terry", "critic"])
def test_a_recipe_may_train_a_reward_model_otherwise_than_its_folder_says(kind: str, tmp_path: Path) -> None:
    def planned(trainer: str) -> tuple[Memory, float]:
        found = case(configured(tmp_path / "135M"), f"reward.model=reward_models/{kind}", f"reward.trainer={trainer}")
        plan = plan_of(found)
        stage = f"reward ({kind})"
        time = next(one.operations for one in plan.times if one.stage == stage)
        return next(one for one in plan.stages if one.stage == stage), time

    small, once = planned("{per_device_train_batch_size: 16, num_train_epochs: 1}")
    large, twice = planned("{per_device_train_batch_size: 32, num_train_epochs: 2}")
    assert large.parts["activations"] == 2 * small.parts["activations"]
    assert twice == 2 * once


def test_vllm_takes_its_share_of_a_gpu_and_a_few_gibibytes_of_a_cpu(
    large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(hardware: Hardware) -> Memory:
        found = plan_of(
            case(large, "generation.engine=vllm", "generation.vllm.gpu_memory_utilization=0.5", hardware=hardware)
        )
        return next(stage for stage in found.stages if stage.stage == "generate")

    cpu = Hardware(kind="cpu", name="a CPU", memory=256 * GIB, peak=1e12, bandwidth=1e11)
    assert written(H100).total == 40 * GIB
    assert written(cpu).parts["KV cache"] == 4 * GIB
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "9")
    assert written(cpu).parts["KV cache"] == 9 * GIB


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_the_reward_model_of_best_of_n_is_there_when_all_answers_are_written(large: str, engine: str) -> None:
    def generate(*overrides: str) -> Memory:
        share = "generation.vllm.gpu_memory_utilization=0.5"
        found = plan_of(case(large, f"generation.engine={engine}", share, *overrides, hardware=H100))
        return next(stage for stage in found.stages if stage.stage == "generate")

    best = ["generation.strategy=best_of_n", "generation.best_of_n.n=4", "generation.samples_per_prompt=2"]
    written, scored = generate("generation.samples_per_prompt=4"), generate(*best)
    if engine == "vllm":
        assert scored == written, "it has ended when the reward model is loaded"
    else:
        assert scored.moment == "the answers are scored"
        assert scored.parts["weights"] == written.parts["weights"]
        assert scored.parts["reward model"] > 10 * GIB
        assert "KV cache" not in scored.parts


def test_nothing_that_fits_is_said(tmp_path: Path) -> None:
    tiny = replace(H100, memory=GIB)
    given = advice(recommended(plans(case(configured(tmp_path / "135M"), hardware=tiny))))
    assert given is not None
    assert not given.fits


def test_prompts_that_are_there_are_measured(tiny_policy: Path) -> None:
    loaded = Recipe.load(ROOT / "recipes" / "quickstart.yaml", [f"policy.model={tiny_policy}"], to_run=False)
    found = implied(loaded)
    assert (found.train, found.held_out, found.new, found.answer) == (96, 96, 64, 64)
    assert 20 < found.prompt < 400
    assert not any("assumed" in note for note in found.notes)


def test_prompts_that_are_not_there_are_assumed(tmp_path: Path) -> None:
    found = case(configured(tmp_path / "135M"), recipe=ROOT / "recipes" / "own_pairs.yaml").implied
    assert any("YOUR_PAIRS.jsonl is not here" in note for note in found.notes)
    assert any("assumed" in note for note in found.notes)


def test_hardware_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    named, dtype = chosen(4, 2, None, "A100-40GB", "auto")
    assert (named.total, named.memory, named.peak, dtype) == (8, 40 * GIB, 312e12, "bfloat16")
    given, _ = chosen(None, 1, 24, None, "float32")
    assert (given.devices, given.memory, given.peak) == (1, 24 * GIB, 67e12)
    here, _ = chosen(None, 1, None, None, "auto")
    assert here.kind == "cpu"
    with pytest.raises(UserError, match="did you mean `H100`"):
        chosen(1, 1, None, "H10", "auto")


@pytest.mark.parametrize(
    ("option", "value"), [("--gpu-memory", x) for x in ("inf", "nan", "-1", "1e300", "0")] + [("--gpus", "0")]
)
def test_no_device_is_without_size_or_endless(option: str, value: str) -> None:
    told = CliRunner().invoke(app, ["plan", str(SMOKE), option, value])
    assert (told.exit_code, "Input should be" in told.output) == (2, True)


def test_the_command_prints_tables_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(SMOKE), f"policy.model={configured(tmp_path / '135M')}", "--gpus", "2", "--gpu-memory", "24"]
    app(words, standalone_mode=False)
    printed = capsys.readouterr().out
    assert "It fits with ddp" in printed
    assert "An estimate" in printed
    app([*words, "--json"], standalone_mode=False)
    values = json.loads(capsys.readouterr().out)
    assert values["recommended"] == "ddp"
    assert values["hardware"]["memory"] == 24 * GIB
    assert values["model"]["parameters"] == 134_515_008
    for way in values["sharing"].values():
        assert all(stage["bytes"] == sum(stage["parts"].values()) for stage in way["stages"])
