"""Each rule of a recipe by its name: settings that break it alone, and the remedy that is told."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from rlhf_loop.errors import UserError
from rlhf_loop.recipe import parse, rules, rules_of_memory
from rlhf_loop.recipe.rules_of_memory import liger_has_a_gpu

SOUND: dict[str, Any] = {
    "name": "sound",
    "policy": {"model": "tiny-random:0"},
    "prompts": {"train": ["train.jsonl"], "test": ["test.jsonl"]},
    "feedback": {"annotator": {"kind": "simulated"}},
    "reward": {"model": "reward_models/frozen_head"},
    "evaluation": {"judge": {"kind": "rule"}},
}

PEOPLE: dict[str, Any] = {"feedback": {"annotator": None, "imports": [{"path": "votes.jsonl"}]}}

BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "names_are_known": ({"pairing": {"strategy": "best_of_all"}}, "there are: best_worst"),
    "endpoints_are_known": (
        {"evaluation": {"judge": {"kind": "endpoint", "endpoint": "big", "calibration": "known.jsonl"}}},
        "Endpoints stand in the recipe's `endpoints:`",
    ),
    "a_writer_is_named": ({"generation": {"engine": "endpoint"}}, "give both or neither"),
    "vllm_can_write": (
        {"generation": {"engine": "vllm"}, "update": {"lora": {"r": 1024}}},
        "up to rank 512, and this one has 1024; set a lower one",
    ),
    "an_endpoint_is_not_trained": (
        {
            "policy": {"model": "endpoint:big"},
            "endpoints": {"big": {"base_url": "http://localhost/v1", "model": "m"}},
            "generation": {"engine": "endpoint", "endpoint": "big"},
        },
        "update.algorithm: none",
    ),
    "a_rule_judges_only_simulations": (PEOPLE, "kind: reward_model"),
    "a_project_is_of_a_store": ({"project": "team-a"}, "name the `store`"),
    "sources_of_feedback_can_be_meant": (
        {"feedback": {"annotator": {"kind": "simulated"}, "from": ["team-a"]}},
        "give `store`",
    ),
    "there_are_training_prompts": ({"prompts": {"test": ["test.jsonl"]}}, "prompts.train: [FILE.jsonl]"),
    "there_are_held_out_prompts": ({"prompts": {"train": ["train.jsonl"]}}, "give a file of prompts"),
    "what_needs_a_reward_model_has_one": ({"reward": None}, "reward: {model: FOLDER}"),
    "samples_are_enough": ({"generation": {"samples_per_prompt": 1}}, "at least 2"),
    "samples_differ": ({"generation": {"temperature": 0}}, "set it above 0"),
    "the_strategy_has_what_it_reads": (
        {"generation": {"strategy": "best_of_n", "samples_per_prompt": 8, "best_of_n": {"n": 4}}},
        "set n to more than that",
    ),
    "exo_pair_is_smoothed": ({"update": {"trainer": {"loss_type": "exo_pair"}}}, "label_smoothing: 0.001"),
    "kto_has_batches": (
        {
            "update": {"algorithm": "kto", "trainer": {"per_device_train_batch_size": 1}},
            "feedback": {"annotator": {"kind": "simulated", "thumbs_above": 0.5}},
        },
        "2 or more",
    ),
    "padding_free_is_padding_free": (
        {"update": {"trainer": {"padding_free": True}}},
        "update.trainer.padding_free: TRL's DPO has switched it off and pads all the same; leave it out",
    ),
    "a_quantised_base_has_an_adapter": (
        {"policy": {"model": "tiny-random:0", "quantization": "nf4"}, "update": {"lora": None}},
        "cannot be trained; set `update.lora: {r: 16, alpha: 32}`",
    ),
    "the_reference_is_one": (
        {"update": {"reference": "previous", "trainer": {"sync_ref_model": True}}},
        "keep one",
    ),
    "pairs_have_a_source": (
        {
            "pairing": {"sources": ["feedback"]},
            "feedback": {"annotator": {"kind": "simulated"}, "questions_per_round": 0},
        },
        "pairing.sources: [feedback, reward]",
    ),
    "labels_have_a_source": ({"update": {"algorithm": "kto"}}, "feedback.annotator.thumbs_above: 0.5"),
    "critiques_give_what_the_update_takes": (
        {"update": {"algorithm": "grpo"}, "critiques": {"edits": {}}},
        "update.algorithm: dpo",
    ),
    "revisions_are_written": ({"critiques": {"revisions": {}}}, "set `generation.strategy: refine`"),
    "losses_of_critiques_have_an_update": (
        {"update": {"algorithm": "none"}, "critiques": {"predict": {}}},
        "trains nothing; set another algorithm",
    ),
    "checks_have_a_policy": ({"gate": {"max_came_back": 0.1}}, "set `critiques: {checks: {}}`, or null"),
    "next_messages_have_a_reader": ({"critiques": {"next_message": {}}}, "`predict: {}`, or leave it out"),
    "accelerate_is_started_once": ({"accelerate_config": "x.yaml", "launch": "inline"}, "launch: child"),
    "a_profile_is_for_jobs": ({"cluster_profile": "x.yaml"}, "set `launch: slurm`"),
}


def test_padding_free_does_not_cut() -> None:
    update = {"algorithm": "sft", "trainer": {"padding_free": True}}
    for more in ({}, {"max_length": 512}):
        with pytest.raises(UserError, match=r"set `max_length: null`, or `packing: true`"):
            parse({**SOUND, "update": {**update, "trainers": {"sft": more}}})
    for more in ({"max_length": None}, {"packing": True}):
        parse({**SOUND, "update": {**update, "trainers": {"sft": more}}})
    with pytest.raises(UserError, match=r"warm_start.trainer.padding_free"):
        parse({**SOUND, "warm_start": {"trainer": {"padding_free": True}}})


def test_vllm_does_not_take_a_base_that_is_quantised_here() -> None:
    quantised = {**SOUND, "policy": {"model": "tiny-random:0", "quantization": "nf4"}}
    with pytest.raises(UserError, match=r"set `generation.engine: transformers`"):
        parse({**quantised, "generation": {"engine": "vllm"}})
    with pytest.raises(UserError, match=r"update.trainer.use_vllm: TRL would send"):
        parse({**quantised, "update": {"algorithm": "grpo", "trainers": {"grpo": {"use_vllm": True}}}})


def test_liger_needs_a_gpu_and_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse({**SOUND, "update": {"trainer": {"use_liger_kernel": True}}})
    assert "update.trainer.use_liger_kernel: Liger's kernels run on GPUs" in (liger_has_a_gpu(recipe) or "")
    monkeypatch.setattr(rules_of_memory, "visible_accelerators", lambda: 1)
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    assert "`pip install liger-kernel`" in (liger_has_a_gpu(recipe) or "")
    assert liger_has_a_gpu(recipe.model_copy(update={"launch": "slurm"})) is None
    assert liger_has_a_gpu(parse(SOUND)) is None


def test_fresh_answers_need_a_reward_model() -> None:
    values = {**SOUND, "reward": None, "pairing": {"sources": ["feedback"]}, "critiques": {"fresh": {}}}
    with pytest.raises(UserError, match=r"critiques.fresh .* ask a reward model .* set `reward: \{model: FOLDER\}`"):
        parse(values)


def test_edits_are_a_source_of_pairs() -> None:
    nobody_asked = {"annotator": {"kind": "simulated"}, "questions_per_round": 0}
    values = {**SOUND, "pairing": {"sources": ["feedback"]}, "feedback": nobody_asked, "critiques": {"edits": {}}}
    assert parse(values).critiques is not None


def test_every_rule_is_here() -> None:
    assert [rule.__name__ for rule in rules.RULES] == list(BROKEN)


def test_no_rule_is_broken_by_a_sound_recipe() -> None:
    recipe = parse(SOUND)
    assert [rule(recipe) for rule in rules.RULES] == [None] * len(rules.RULES)


@pytest.mark.parametrize("name", BROKEN)
def test_a_recipe_that_breaks_a_rule_is_refused_with_its_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, remedy = BROKEN[name]
    with pytest.raises(UserError) as refused:
        parse({**SOUND, **changes}, where="r.yaml")
    assert remedy in str(refused.value)
    assert str(refused.value).startswith("r.yaml: ")
    others = tuple(rule for rule in rules.RULES if rule.__name__ != name)
    monkeypatch.setattr("rlhf_loop.recipe.RULES", others)
    parse({**SOUND, **changes})  # no other rule is broken
