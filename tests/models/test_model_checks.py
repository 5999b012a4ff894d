"""Models that the loop cannot be right with are refused by name, and those that it can are saved and merged right."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import families

from rlhf_loop.errors import UserError
from rlhf_loop.models import loading
from rlhf_loop.models.checks import check_model
from rlhf_loop.models.loading import load_policy, merge_policy, merged_for_sampling, save_policy
from rlhf_loop.recipe import Lora, Policy, Recipe, Update, parse
from rlhf_loop.records import Demonstration, LabelledCompletion, PreferencePair
from rlhf_loop.updates import update_policy
from rlhf_loop.updates.adapters import lora_config

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "recipes" / "smoke.yaml"


def settings(folder: Path) -> Policy:
    return Policy(model=str(folder), dtype="float32")


# refused when the recipe is loaded


def test_a_model_of_mixed_layers_is_refused_when_the_recipe_is_loaded(family: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match=r"lfm2 \(lfm2\) has layers that keep another state.*\(conv\)"):
        Recipe.load(SMOKE, [f"policy.model={family('lfm2')}"])
    with pytest.raises(UserError, match="keep another state"):
        check_model(settings(family("lfm2")), None)


def test_the_sampler_refuses_a_mixed_cache_by_itself(family: Callable[[str], Path]) -> None:
    from rlhf_loop.generation.transformers_engine import sample_ids
    from rlhf_loop.recipe import Generation

    model, tokenizer = load_policy(family("lfm2"), settings(family("lfm2")))
    with pytest.raises(UserError, match="Lfm2ForCausalLM keeps another state than keys and values"):
        sample_ids(model, tokenizer, [[1, 2]], [(0, 0, "p")], [1], Generation())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder-decoder"),
        ({"model_type": "mamba"}, "keep another state"),
        ({"model_type": "jamba", "layers_block_type": ["mamba", "attention"]}, "keep another state"),
        ({"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]}, "keep another state"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes"}}, "is quantised"),
    ],
)
def test_what_a_config_says_is_enough(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"policy.model: .*{message}"):
        Recipe.load(SMOKE, [f"policy.model={tmp_path}"])


@pytest.mark.parametrize("name", families.ENDS)
def test_the_other_families_are_taken(family: Callable[[str], Path], name: str) -> None:
    Recipe.load(SMOKE, [f"policy.model={family(name)}"])
    check_model(settings(family(name)), lora_config(Lora()))


@pytest.fixture(scope="session")
def adapter(family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of rank 4 and alpha 8 on llama3."""
    from peft import get_peft_model

    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    model, tokenizer = load_policy(family("llama3"), settings(family("llama3")))
    adapted = get_peft_model(model, lora_config(Lora(r=4, alpha=8)))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_policy(adapted, tokenizer, folder, str(family("llama3")))
    return folder


def test_an_adapter_given_as_the_model_is_refused_with_the_remedy(adapter: Path) -> None:
    with pytest.raises(UserError, match=r"is a LoRA adapter, not a model\. Merge it first"):
        Recipe.load(SMOKE, [f"policy.model={adapter}"])
    with pytest.raises(UserError, match="Merge it first"):
        check_model(settings(adapter), None)
    with pytest.raises(UserError, match="Merge it first"):
        train(adapter, adapter, "sft", adapter.parent / "out")


def test_targets_that_match_nothing_are_named_with_what_there_is(family: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match=r"lora\.target_modules: Target modules .*quary.*all of .*o_proj.*q_proj"):
        check_model(settings(family("mistral")), lora_config(Lora(target_modules=["quary_proj"])))


def test_a_model_of_which_nothing_ends_an_answer_is_refused(family: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "endless"
    shutil.copytree(family("gpt2"), folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    for name, key in (("config.json", "eos_token_id"), ("generation_config.json", "eos_token_id"),
                      ("tokenizer_config.json", "eos_token")):  # fmt: skip
        values = json.loads((folder / name).read_text())
        values.pop(key, None)
        (folder / name).write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"nothing is known that ends an answer of .*endless"):
        load_policy(folder, settings(folder))


@pytest.mark.parametrize("targets", ["[q_proj, lm_head]", "[model.lm_head]", "'.*(q_proj|lm_head)'"])
def test_the_output_layer_is_refused_as_a_target(family: Callable[[str], Path], targets: str) -> None:
    with pytest.raises(UserError, match=r"lora\.target_modules: \S*lm_head is the output layer"):
        Recipe.load(SMOKE, [f"policy.model={family('mistral')}", f"update.lora.target_modules={targets}"])


@pytest.mark.parametrize("targets", ["[q_proj, embed_tokens]", "'.*(q_proj|embed_tokens)'"])
def test_tied_embeddings_are_refused_as_a_target(family: Callable[[str], Path], targets: str) -> None:
    with pytest.raises(
        UserError, match=r"embed_tokens holds the embeddings of .*llama3, which are its output layer too"
    ):
        Recipe.load(SMOKE, [f"policy.model={family('llama3')}", f"update.lora.target_modules={targets}"])


def test_what_names_do_not_say_is_seen_in_the_model(family: Callable[[str], Path]) -> None:
    from peft import LoraConfig

    for target, message in (("lm_head", "is the output layer"), ("embed_tokens", "its output layer too")):
        with pytest.raises(UserError, match=message):
            check_model(
                settings(family("llama3")), LoraConfig(target_modules=["q_proj", target], task_type="CAUSAL_LM")
            )
    # GPT-2's embeddings are tied, which its config.json does not say
    with pytest.raises(UserError, match="wte holds the embeddings"):
        check_model(settings(family("gpt2")), LoraConfig(target_modules=["c_attn", "wte"], task_type="CAUSAL_LM"))


def test_untied_embeddings_are_merged_as_they_were_trained(family: Callable[[str], Path], tmp_path: Path) -> None:
    folder = family("mistral")
    lora = Lora(r=2, alpha=8, target_modules=["q_proj", "embed_tokens"])
    train(folder, folder, "sft", tmp_path, lora=lora, learning_rate=0.02)
    trained, merged = (load_policy(tmp_path / "policy", settings(folder), merged=merged)[0] for merged in (False, True))
    ids = torch.arange(20)[None]
    before, _ = load_policy(folder, settings(folder))
    with torch.no_grad():
        assert (trained(ids).logits - merged(ids).logits).abs().max() < 1e-5
        assert (trained(ids).logits - before(ids).logits).abs().max() > 0.1


def test_samples_that_are_all_alike_are_refused_when_the_recipe_is_loaded() -> None:
    for algorithm in ("dpo", "rejection_sampling", "ppo", "grpo", "rloo"):
        with pytest.raises(UserError, match=f"at 0 all samples of a prompt are equal, and {algorithm} learns"):
            Recipe.load(SMOKE, ["generation.temperature=0", f"update.algorithm={algorithm}", "update.trainer={}"])
    values = Recipe.load(SMOKE, ["generation.temperature=0", "update.algorithm=none"]).model_dump(mode="json")
    assert parse(values).generation.temperature == 0


# a warning


def test_a_template_without_a_generation_prompt_is_warned_of_once(
    family: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    loading._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            loading.load_tokenizer(family("nogen"))
        loading.load_tokenizer(family("llama2"))
    assert [r.getMessage() for r in caplog.records if "does not open the assistant's turn" in r.getMessage()] == [
        r.getMessage() for r in caplog.records
    ]
    assert len(caplog.records) == 1


# a generation config that does not validate


def test_a_generation_config_with_what_its_mode_ignores_is_saved_and_exported(
    family: Callable[[str], Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    folder = family("llama2")
    train(folder, folder, "sft", tmp_path, lora=None)
    merge_policy(tmp_path / "policy", tmp_path / "exported", settings(folder))
    for made in (tmp_path / "policy", tmp_path / "exported"):
        kept = AutoModelForCausalLM.from_pretrained(made).generation_config
        kept.validate(strict=True)
        assert (kept.do_sample, kept.eos_token_id) == (False, 2)


# the length limit


def rows(algorithm: str) -> list[Any]:
    prompt = ({"role": "user", "content": "Why is snow white?"},)
    said = tuple(({"role": "assistant", "content": text},) for text in ("It scatters all light.", "No."))
    names = {"prompt_id": "p", "group": "p", "prompt": prompt}
    if algorithm == "dpo":
        chosen, rejected = said
        ids = {"chosen_id": "a", "rejected_id": "b"}
        return [PreferencePair(id="1", chosen=chosen, rejected=rejected, origin="human", **ids, **names)] * 2
    if algorithm == "kto":
        return [
            LabelledCompletion(id=str(n), completion=one, label=not n, completion_id=str(n), origin="human", **names)
            for n, one in enumerate(said)
        ]
    return [Demonstration(id=str(n), completion=one, origin="edit", **names) for n, one in enumerate(said)]


def train(
    base: Path, start: Path, algorithm: str, output: Path, lora: Lora | None = Lora(r=4, alpha=8), **more: Any
) -> None:
    trainer = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3, **more}
    update_policy(
        rows(algorithm), start=start, reference=base, output=output, policy=settings(base),
        settings=Update(algorithm=algorithm, lora=lora, trainer=trainer),
    )  # fmt: skip


@pytest.mark.parametrize("algorithm", ["dpo", "kto", "sft", "rejection_sampling"])
def test_a_limit_that_every_prompt_fills_is_named(
    family: Callable[[str], Path], algorithm: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"with \d+ tokens or more each of their prompts fills max_length, which is 8"):
        train(family("llama3"), family("llama3"), algorithm, tmp_path, max_length=8)


# adapters


@pytest.mark.parametrize("algorithm", ["dpo", "sft"])
@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (Lora(r=4, alpha=64), r"lora_alpha=8, and update\.lora\.alpha is 64"),
        (Lora(r=8, alpha=8), r"r=4, and update\.lora\.r is 8"),
    ],
)
def test_a_start_that_would_be_rescaled_is_refused(
    adapter: Path, family: Callable[[str], Path], algorithm: str, lora: Lora, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(family("llama3"), adapter, algorithm, tmp_path, lora=lora)


@pytest.mark.parametrize("field", ["use_rslora", "use_dora"])
def test_a_start_of_another_kind_is_refused(
    adapter: Path, family: Callable[[str], Path], field: str, tmp_path: Path
) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, field: True}))
    with pytest.raises(UserError, match=f"{field}=True"):
        train(family("llama3"), other, "sft", tmp_path / "out")


@pytest.mark.parametrize("name", ["llama3", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_rollouts_are_sampled_from_the_policy_that_is_trained(
    family: Callable[[str], Path], name: str, options: dict[str, Any]
) -> None:
    from peft import LoraConfig, get_peft_model

    base, _ = load_policy(family(name), settings(family(name)))
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    model = get_peft_model(base, config).eval()
    torch.manual_seed(0)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.3)
        if "lora_magnitude" in parameter_name:
            parameter.data *= 1.5
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = model(ids).logits
        with merged_for_sampling(model):
            within = model(ids).logits
        with model.disable_adapter():
            plain = model(ids).logits
        after = model(ids).logits
    assert (before - plain).abs().max() > 0.5
    assert (before - within).abs().max() < 1e-4
    assert torch.equal(before, after)
