"""Reward models: specs, training, loading, scoring."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml
from samples.rewards import bradley_terry, make_pairs
from transformers import TrainerCallback

from rlhf_loop.batches import batches
from rlhf_loop.errors import UserError
from rlhf_loop.models.turns import Turns
from rlhf_loop.recipe import Lora, Policy
from rlhf_loop.record_files import write_records
from rlhf_loop.records import Completion, Prompt
from rlhf_loop.reward_spec import FunctionSpec, HeadSpec, parse_spec, write_spec
from rlhf_loop.rewards import combine, evaluate_reward, load_reward, load_spec, train_reward_model
from rlhf_loop.rewards.texts import encode, make_text, texts_of_pairs

CATALOGUE = Path(__file__).parents[2] / "reward_models"
POLICY = Policy(model="tiny-random:0", dtype="float32")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


# Specs


@pytest.mark.parametrize("name", sorted(path.name for path in CATALOGUE.iterdir()))
def test_each_folder_of_the_catalogue_has_a_valid_spec_and_a_card(name):
    assert load_spec(CATALOGUE / name).folder == CATALOGUE / name
    assert "Known biases" in (CATALOGUE / name / "README.md").read_text()


def test_the_lexicon_scores_as_its_authors_say():
    pytest.importorskip("vaderSentiment", reason="the VADER lexicon is not installed")
    reward = load_reward(CATALOGUE / "vader", id="vader", policy=POLICY)
    texts = ["VADER is smart, handsome, and funny.", "Today SUX!", ""]  # of the data's own README
    assert reward(prompts=["What?"] * 3, completions=texts) == [0.8316, -0.5461, 0.0]


def test_reading_a_spec_does_not_import_torch():
    code = "import sys; from rlhf_loop.rewards import load_spec; load_spec(__import__('pathlib').Path(sys.argv[1])); "
    code += "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(CATALOGUE / "bradley_terry")], check=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: bradley_tery", "valid: bradley_terry, head, critic, pretrained"),
        ("base: policy", "`kind` is missing"),
        ("kind: head\nlayer: [0.5]", "did you mean `layers`"),
        ("kind: bradley_terry\ntrainer: {learning_rat: 1}", "did you mean `learning_rate`"),
        ("kind: bradley_terry\ntrainer: {seed: 1}", "derived from the recipe's `seed`"),
        ("kind: bradley_terry\ntrainer: {max_length: 99}", "set `max_length` of the reward model"),
        ("kind: head\nlayers: [12]", "shares of the depth"),
        ("kind: function\nfunction: ../secret.py:f", "FILE.py:NAME"),
        ("kind: [", "not valid YAML"),
        ("- 1", "must hold a mapping"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_remedy(tmp_path, text, said):
    (tmp_path / "reward_model.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_spec(tmp_path)
    assert said in str(error.value)
    assert str(tmp_path / "reward_model.yaml") in str(error.value)
    assert str(error.value).count("valid:") <= 1


def test_a_base_that_is_a_folder_is_relative_to_the_reward_model(tmp_path):
    for written, meant in (("../m", str(tmp_path / "m")), ("org/name", "org/name"), ("policy", "policy")):
        (tmp_path / "reward").mkdir(exist_ok=True)
        (tmp_path / "reward" / "reward_model.yaml").write_text(f"kind: head\nbase: {written}\n")
        assert load_spec(tmp_path / "reward").base == meant


def test_a_misspelt_folder_is_named_with_the_nearest_one():
    with pytest.raises(UserError, match="did you mean `frozen_head`"):
        load_spec(CATALOGUE / "frozen_heads")


# Texts


def test_only_a_finished_completion_ends_with_eos():
    from rlhf_loop.models.loading import load_tokenizer

    tokenizer = load_tokenizer("tiny-random:0", POLICY)
    messages = [{"role": "user", "content": "Hello"}]
    whole, prompt = encode(Turns(tokenizer), make_text(messages, "Good day"))
    cut, _ = encode(Turns(tokenizer), make_text(messages, "Good day", finished=False))
    assert whole == [*cut, tokenizer.eos_token_id]
    assert tokenizer.decode(cut[prompt:]) == "Good day"
    assert cut[:prompt] == list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def test_equal_answers_are_one_text_unless_one_was_cut_off():
    pairs = make_pairs(prompts=1, answers=3)
    texts, indices = texts_of_pairs(pairs)
    assert len(texts) == 3
    assert len(indices) == 3
    from dataclasses import replace

    texts, _ = texts_of_pairs([*pairs, replace(pairs[0], chosen_finished=False)])
    assert len(texts) == 4


# The trainer


@pytest.fixture(scope="module")
def batch():
    """Two prompts with all their pairs: once as ours, once as TRL's own trainer takes them."""
    from dataclasses import replace

    from rlhf_loop.rewards.bradley_terry import batch_elements
    from rlhf_loop.rewards.trunk import load_classifier

    pairs = [replace(pair, margin=0.1 * i) for i, pair in enumerate(make_pairs(prompts=2, answers=4))]
    spec = bradley_terry(lora=None)
    torch.manual_seed(0)
    model, tokenizer = load_classifier("policy", POLICY, full=True)
    rows, counts = batch_elements(spec, pairs, Turns(tokenizer))
    flat = [
        {"chosen_ids": row["texts"][c], "rejected_ids": row["texts"][r], "margin": m}
        for row in rows
        for c, r, m in zip(row["chosen"], row["rejected"], row["margin"], strict=True)
    ]
    return model, tokenizer, rows, flat, counts


@pytest.mark.parametrize("forward_tokens", [10**9, 64])
@pytest.mark.parametrize("center", [None, 0.01])
def test_loss_and_gradients_equal_those_of_trls_trainer_on_the_same_pairs(
    batch, tmp_path, monkeypatch, forward_tokens, center
):
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    from rlhf_loop.rewards import bradley_terry as module

    monkeypatch.setattr(module, "FORWARD_TOKENS", {"cpu": forward_tokens})
    model, tokenizer, rows, flat, _ = batch
    arguments = RewardConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        remove_unused_columns=False,
        center_rewards_coefficient=center,
    )
    stock = RewardTrainer(model, arguments, train_dataset=Dataset.from_list(flat), processing_class=tokenizer)
    ours = module.UniqueTextsRewardTrainer(
        model,
        arguments,
        data_collator=module.Collator(tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    results = []
    for trainer, examples in ((stock, flat), (ours, rows)):
        model.zero_grad()
        loss = trainer.compute_loss(model.train(), trainer.data_collator(examples))
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        results.append((loss.detach(), gradients, logged))
    (stock_loss, stock_gradients, stock_log), (our_loss, our_gradients, our_log) = results
    torch.testing.assert_close(our_loss, stock_loss, atol=1e-6, rtol=1e-6)
    assert our_gradients.keys() == stock_gradients.keys()
    for name, gradient in stock_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, atol=1e-6, rtol=1e-5, msg=name)
    for name in ("accuracy", "margin"):
        assert our_log[name] == pytest.approx(stock_log[name], abs=1e-6)
    assert set(our_log) <= set(stock_log)


def test_each_distinct_text_is_forwarded_once(batch):
    _, _, rows, flat, counts = batch
    assert (
        counts["distinct_texts"] == counts["texts_forwarded_per_epoch"] == sum(len(row["texts"]) for row in rows) == 8
    )
    assert len(flat) == counts["pairs_used"] == 12


def test_a_prompt_with_many_texts_is_split_and_keeps_every_pair_once(batch):
    from rlhf_loop.rewards.bradley_terry import batch_elements

    tokenizer = batch[1]
    pairs = make_pairs(prompts=1, answers=11)
    rows, counts = batch_elements(bradley_terry(max_texts=4), pairs, Turns(tokenizer))
    assert max(len(row["texts"]) for row in rows) <= 4
    seen = [
        (tuple(row["texts"][c]), tuple(row["texts"][r]))
        for row in rows
        for c, r in zip(row["chosen"], row["rejected"], strict=True)
    ]
    assert len(seen) == len(set(seen)) == len(pairs) == counts["pairs_used"]


def test_pairs_that_are_too_long_are_counted_and_none_left_is_an_error(batch, caplog):
    from rlhf_loop.rewards.bradley_terry import batch_elements

    tokenizer = batch[1]
    pairs = make_pairs(prompts=2, answers=4)
    lengths = [
        max(
            len(encode(Turns(tokenizer), make_text(p.prompt, side[0]["content"]))[0]) for side in (p.chosen, p.rejected)
        )
        for p in pairs
    ]
    limit = sorted(lengths)[5]
    _, counts = batch_elements(bradley_terry(max_length=limit), pairs, Turns(tokenizer))
    over = sum(length > limit for length in lengths)
    assert counts["dropped_too_long"] == over > 0
    assert f"{over} of 12 pairs are longer" in caplog.text
    with pytest.raises(UserError, match=f"longest text has {max(lengths)} tokens and max_length is 8"):
        batch_elements(bradley_terry(max_length=8), pairs, Turns(tokenizer))


# Training and loading


@pytest.mark.parametrize("lora", [None, {"r": 4, "alpha": 8}])
def test_bradley_terry_learns_what_was_preferred_and_loads_as_it_was_trained(tmp_path, lora):
    trainer = {"learning_rate": 3e-3, "num_train_epochs": 4, "per_device_train_batch_size": 2}
    spec = bradley_terry(lora=lora, trainer=trainer)
    metrics = train_reward_model(
        spec, make_pairs(16), tmp_path / "rm", policy=POLICY, eval_pairs=make_pairs(8, seed=1), seed=0
    )
    assert metrics["eval"]["accuracy"]["mean"] > 0.8
    assert metrics["pairs_used"] == 96
    assert not (tmp_path / "rm" / "checkpoints").exists()
    # standing alone: moved elsewhere, and asked of a recipe whose policy is another model
    shutil.move(tmp_path / "rm", tmp_path / "moved")
    reward = load_reward(tmp_path / "moved", id="rm-1", policy=POLICY)
    assert evaluate_reward(reward, make_pairs(8, seed=1))["accuracy"] == metrics["eval"]["accuracy"]
    assert load_spec(tmp_path / "moved").base == POLICY.model


def test_head_learns_from_a_hundred_pairs_and_chooses_its_penalty(tmp_path):
    spec = HeadSpec()
    metrics = train_reward_model(
        spec, make_pairs(16), tmp_path / "rm", policy=POLICY, eval_pairs=make_pairs(6, seed=1), seed=0
    )
    assert metrics["eval"]["accuracy"]["mean"] > 0.85
    losses = metrics["cross_validated_loss"]
    assert float(min(losses, key=losses.get)) == metrics["l2"]
    assert losses[str(metrics["l2"])] < math.log(2)


def test_head_finds_the_minimum_of_its_loss():
    from rlhf_loop.rewards.head import fit

    torch.manual_seed(0)
    inputs = torch.randn(20, 5, dtype=torch.float64)
    chosen, rejected = torch.randint(20, (2, 60))
    margin = torch.rand(60, dtype=torch.float64)
    weight = fit(inputs, chosen, rejected, margin, l2=0.1)
    difference = inputs[chosen] - inputs[rejected]
    gradient = -((1 - torch.sigmoid(difference @ weight - margin))[:, None] * difference).mean(0) + 0.1 * weight
    torch.testing.assert_close(gradient, torch.zeros(5, dtype=torch.float64), atol=2e-6, rtol=0)


def test_head_pools_over_the_completion_alone():
    from rlhf_loop.rewards.head import Features

    features = Features(HeadSpec(layers=[0.5, 1.0]), POLICY)
    text = make_text([{"role": "user", "content": "Question?"}], "an answer")
    ids, prompt = encode(features.turns, text)
    with torch.no_grad():
        states = features.trunk(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    expected = torch.cat([part for n in features.layers for part in (states[n][0, prompt:].mean(0), states[n][0, -1])])
    longer = make_text([{"role": "user", "content": "Question?"}], "an answer that is much longer than the other one")
    torch.testing.assert_close(features([longer, text])[1], expected, atol=1e-5, rtol=1e-5)


def test_leaving_out_the_upper_layers_changes_no_feature():
    from transformers import AutoModel

    from rlhf_loop.models.files import resolve_model
    from rlhf_loop.rewards.trunk import load_trunk

    trunk, _, numbers = load_trunk("policy", POLICY, [0.5])
    whole = AutoModel.from_pretrained(resolve_model(POLICY.model), dtype=torch.float32).eval()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        part = trunk(input_ids=ids, output_hidden_states=True).hidden_states[numbers[0]]
        full = whole(input_ids=ids, output_hidden_states=True).hidden_states[numbers[0]]
    torch.testing.assert_close(part, full)


def test_the_probe_is_where_training_begins(tmp_path):
    """With a learning rate of zero the model stays what the probe made it, which already prefers what people did."""
    still = {"learning_rate": 0.0, "max_steps": 1, "per_device_train_batch_size": 4}
    common = {"policy": POLICY, "eval_pairs": make_pairs(6, seed=1), "seed": 0}
    accuracy = {}
    for name, probe in (("probe", True), ("random", False)):
        spec = bradley_terry(trainer=still, probe=probe)
        metrics = train_reward_model(spec, make_pairs(16), tmp_path / name, **common)
        accuracy[name] = metrics["eval"]["accuracy"]["mean"]
    assert accuracy["probe"] > 0.75 > accuracy["random"]


def test_features_of_other_layers_are_computed_anew(tmp_path, monkeypatch):
    """A training with another spec, in the folder of one that was interrupted."""
    from rlhf_loop.rewards import head

    with monkeypatch.context() as stopped:
        stopped.setattr(head, "cross_validate", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            head.train(HeadSpec(layers=[0.5]), make_pairs(6), tmp_path / "other", policy=POLICY, seed=0)
    assert list((tmp_path / "other" / "cache").iterdir())
    for folder in ("fresh", "other"):
        (tmp_path / folder).mkdir(exist_ok=True)
        head.train(HeadSpec(layers=[1.0]), make_pairs(6), tmp_path / folder, policy=POLICY, seed=0)
    fresh, other = tensors(tmp_path / "fresh"), tensors(tmp_path / "other")
    assert torch.equal(fresh["mean"], other["mean"])


class StopAfterSave(TrainerCallback):
    """Stands for a kill after the first checkpoint, or for one while the second is being written."""

    def __init__(self, torn: bool):
        self.torn = torn

    def on_save(self, args, state, control, **kwargs):
        if self.torn:
            (Path(args.output_dir) / f"checkpoint-{state.global_step + 1}").mkdir()
        raise KeyboardInterrupt


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("lora", [None, {"r": 4, "alpha": 8, "dropout": 0.1}])
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, lora, torn):
    from rlhf_loop.rewards.bradley_terry import train

    trainer = {"learning_rate": 1e-2, "num_train_epochs": 2, "per_device_train_batch_size": 1, "save_steps": 5}
    spec = bradley_terry(lora=lora, trainer=trainer)
    common = {"policy": POLICY, "seed": 1, "report_to": (), "progress": None}
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    measured = train(spec, make_pairs(), tmp_path / "whole", **common)
    with pytest.raises(KeyboardInterrupt):
        train(spec, make_pairs(), tmp_path / "broken", **common, extra_callbacks=[StopAfterSave(torn)])
    assert (tmp_path / "broken" / "checkpoints" / "checkpoint-5" / "COMPLETE").exists()
    again = train(spec, make_pairs(), tmp_path / "broken", **common)
    assert {**again, "train_seconds": 0} == {**measured, "train_seconds": 0}
    whole, resumed = tensors(tmp_path / "whole"), tensors(tmp_path / "broken")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    logs = [(tmp_path / name / "train_log.jsonl").read_text().splitlines() for name in ("whole", "broken")]
    assert len(logs[0]) == len(logs[1])


def test_another_seed_gives_other_weights_and_the_same_seed_the_same(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_reward_model(bradley_terry(), make_pairs(), tmp_path / name, policy=POLICY, eval_pairs=[], seed=seed)
    a, b, c = (tensors(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_two_processes_end_where_one_with_twice_the_batch_ends(tmp_path):
    pairs = make_pairs(prompts=12)  # the same number of pairs for each prompt, so that means of ranks are means of all
    write_records(tmp_path / "pairs.parquet", pairs)
    trainer = {"learning_rate": 3e-3, "num_train_epochs": 4, "per_device_train_batch_size": 1}
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import sys
from pathlib import Path
from rlhf_loop.recipe import Policy
from rlhf_loop.record_files import read_records
from rlhf_loop.records import PreferencePair
from rlhf_loop.rewards import train_reward_model
from rlhf_loop.reward_spec import parse_spec
here = Path(sys.argv[1])
pairs = read_records(here / "pairs.parquet", PreferencePair)
policy = Policy(model="tiny-random:0", dtype="float32")
for name, spec in {{"bt": {{"kind": "bradley_terry", "trainer": {trainer}}}, "head": {{"kind": "head"}}}}.items():
    train_reward_model(parse_spec(spec), pairs[:48], here / name, policy=policy, eval_pairs=pairs[48:65], seed=0)
"""
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    specs = {"bt": parse_spec({"kind": "bradley_terry", "trainer": {**trainer, "per_device_train_batch_size": 2}})}
    for name, spec in {**specs, "head": HeadSpec()}.items():
        alone = tmp_path / "alone" / name
        metrics = train_reward_model(spec, pairs[:48], alone, policy=POLICY, eval_pairs=pairs[48:65], seed=0)
        two, one = tensors(tmp_path / name), tensors(alone)
        assert all(torch.allclose(two[key], one[key], atol=1e-4) for key in one)
        assert (
            json.loads((tmp_path / name / "metrics.json").read_text())["eval"]["accuracy"]
            == metrics["eval"]["accuracy"]
        )


def test_an_untrained_folder_is_refused():
    for name in ("bradley_terry", "frozen_head"):
        with pytest.raises(UserError, match="train it first"):
            load_reward(CATALOGUE / name, id="x", policy=POLICY)


def test_trainer_overrides_reach_trl_and_are_refused_where_nothing_is_trained(tmp_path):
    metrics = train_reward_model(
        bradley_terry(), make_pairs(), tmp_path / "a", policy=POLICY, eval_pairs=[], seed=0, trainer={"max_steps": 2}
    )
    assert metrics["steps"] == 2
    assert load_spec(tmp_path / "a").trainer["max_steps"] == 2
    with pytest.raises(UserError, match="not trained with TRL"):
        train_reward_model(
            HeadSpec(), make_pairs(), tmp_path / "b", policy=POLICY, eval_pairs=[], seed=0, trainer={"max_steps": 2}
        )


# Scoring


def test_batches_hold_every_text_once_and_keep_to_the_budget():
    lengths = [random.Random(0).randint(1, 90) for _ in range(200)] + [500]
    made = batches(lengths, 256)
    assert sorted(n for batch in made for n in batch) == list(range(201))
    assert all(len(b) * max(lengths[n] for n in b) <= 256 for b in made if len(b) > 1)
    assert made[0] == [200]
    assert batches([], 256) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "rm"
    train_reward_model(bradley_terry(), make_pairs(), folder, policy=POLICY, eval_pairs=[], seed=0)
    return folder


def records(texts: list[tuple[str, bool]]) -> tuple[list[Prompt], list[Completion]]:
    prompt = Prompt(id="p", messages=({"role": "user", "content": "Question?"},), group="g", reference="clear")
    reasons = {True: "stop", False: "length"}
    completions = [
        Completion(id=f"c{i}", prompt_id="p", text=text, policy="x", round=0, finish_reason=reasons[finished])
        for i, (text, finished) in enumerate(texts)
    ]
    return [prompt], completions


def test_scores_keep_their_order_and_do_not_depend_on_the_batch(trained):
    reward = load_reward(trained, id="rm-7", policy=POLICY)
    prompts, completions = records([("clear " * n, True) for n in (9, 1, 40, 3)] + [("clear", True), ("clear", False)])
    scores = reward.score(prompts, completions)
    assert [s.completion_id for s in scores] == [c.id for c in completions]
    assert {s.reward_model for s in scores} == {"rm-7"}
    alone = [reward.score(prompts, [completion])[0].value for completion in completions]
    assert [s.value for s in scores] == pytest.approx(alone, abs=1e-5)
    assert scores[4].value != scores[5].value  # finished or cut off
    assert reward.score(prompts, []) == []


def test_trls_interface_gives_the_same_rewards(trained):
    reward = load_reward(trained, id="rm", policy=POLICY)
    prompts, completions = records([("clear answer", True), ("noise", False)])
    expected = [s.value for s in reward.score(prompts, completions)]
    messages = [[{"role": "user", "content": "Question?"}]] * 2
    answers = [[{"role": "assistant", "content": c.text}] for c in completions]
    assert reward(prompts=messages, completions=answers, finished=[True, False]) == pytest.approx(expected)
    eos = reward.tokenizer.eos_token_id
    assert reward(messages, answers, completion_ids=[[5, eos], [5, 6]], trainer_state=None) == pytest.approx(expected)
    assert reward(["Question?"] * 2, ["clear answer", "noise"], finished=[True, False]) == pytest.approx(expected)


def test_a_loaded_reward_drives_trls_grpo_trainer(trained, tiny_policy, tmp_path):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    reward = load_reward(trained, id="rm", policy=POLICY)
    arguments = GRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=4,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "Question?"}]}] * 4)
    trainer = GRPOTrainer(str(tiny_policy), reward_funcs=reward, args=arguments, train_dataset=data)
    trainer.train()
    logged = next(line for line in trainer.state.log_history if f"rewards/{trained.name}/mean" in line)
    assert math.isfinite(logged[f"rewards/{trained.name}/mean"])


def test_a_padding_token_that_is_also_the_end_token_does_not_hide_the_end(tmp_path, tiny_policy):
    from transformers import AutoTokenizer

    shutil.copytree(tiny_policy, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    policy = Policy(model=str(tmp_path / "base"), dtype="float32")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "base")
    train_reward_model(bradley_terry(), make_pairs(), tmp_path / "rm", policy=policy, eval_pairs=[], seed=0)
    reward = load_reward(tmp_path / "rm", id="rm", policy=policy)
    assert reward.tokenizer.pad_token_id != reward.tokenizer.eos_token_id
    prompts, completions = records([("clear", True), ("clear", False)])
    finished, cut = (s.value for s in reward.score(prompts, completions))
    assert finished != cut


# Functions and sums


def function_folder(folder: Path, body: str, **settings: object) -> Path:
    folder.mkdir()
    (folder / "reward.py").write_text(body)
    write_spec(FunctionSpec(function="reward.py:f", **settings), folder)
    return folder


def test_a_function_written_for_trl_works(tmp_path):
    body = "def f(completions, reference, **kwargs):\n"
    body += "    return [float(r in c[0]['content']) for c, r in zip(completions, reference)]\n"
    reward = load_reward(function_folder(tmp_path / "f", body), id="f", policy=POLICY)
    prompts, completions = records([("clear", True), ("noise", True)])
    assert [s.value for s in reward.score(prompts, completions)] == [1.0, 0.0]
    assert reward(["q", "q"], ["a", "b"], reference=["a", "a"]) == [1.0, 0.0]


def test_a_function_may_take_plain_strings_arguments_and_be_asynchronous(tmp_path):
    body = "async def f(prompts, completions, per_word):\n    return [per_word * len(c.split()) for c in completions]\n"
    folder = function_folder(tmp_path / "f", body, format="plain", arguments={"per_word": 0.5})
    reward = load_reward(folder, id="f", policy=POLICY)
    assert reward(["q"], ["one two three"]) == [1.5]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def f(completions, **k):\n    return [1 / len(c[0]['content']) for c in completions]", "ZeroDivisionError"),
        ("def f(completions, **k):\n    return [0.5]", "1 values for 2 completions"),
        ("def f(completions, **k):\n    return 0.5", "gave float for 2 completions"),
        ("def f(completions, **k):\n    return [0.5, float('nan')]", "gave nan"),
        ("def f(completions, **k):\n    return [0.5, True]", "gave True"),
        ("def f(completions, answer):\n    return [0.5, 1]", "asks for answer"),
    ],
)
def test_a_faulty_function_is_named_with_the_completion_it_failed_on(tmp_path, body, said):
    reward = load_reward(function_folder(tmp_path / "faulty", body), id="f", policy=POLICY)
    prompts, completions = records([("clear", True), ("", True)])
    with pytest.raises(UserError) as error:
        reward.score(prompts, completions)
    assert said in str(error.value)
    assert "faulty" in str(error.value)
    if said in ("ZeroDivisionError", "gave nan", "gave None"):
        assert "completion ''" in str(error.value)


def test_a_missing_function_is_named_with_those_there_are(tmp_path):
    folder = function_folder(tmp_path / "f", "def g(**k):\n    return []\n")
    with pytest.raises(UserError, match="has no function f; it has: g"):
        load_reward(folder, id="f", policy=POLICY)


def test_training_a_function_copies_it_and_measures_it(tmp_path):
    body = "def f(completions, **k):\n    return [c[0]['content'].count('clear') for c in completions]\n"
    spec = load_spec(function_folder(tmp_path / "f", body))
    metrics = train_reward_model(spec, [], tmp_path / "out", policy=POLICY, eval_pairs=make_pairs(), seed=0)
    assert metrics["eval"]["accuracy"]["mean"] > 0.5
    shutil.rmtree(tmp_path / "f")
    assert load_reward(tmp_path / "out", id="f", policy=POLICY)(["q"], ["clear"]) == [1.0]


def test_the_rule_of_the_catalogue_prefers_a_finished_sentence():
    reward = load_reward(CATALOGUE / "brief_and_complete", id="rule", policy=POLICY)
    answer = "Tea is made by pouring hot water over dried leaves and waiting for a few minutes before drinking it."
    prompt = "How is tea made?"
    whole, cut = reward([prompt] * 2, [answer, answer[:60]], finished=[True, False])
    assert 0 <= cut < whole <= 1


def test_a_weighted_sum_has_a_breakdown_that_adds_up(tmp_path):
    words = "def f(completions, **k):\n    return [len(c[0]['content'].split()) for c in completions]\n"
    ends = "def f(finished, **k):\n    return finished and [1.0 * x for x in finished]\n"
    parts = [
        (load_reward(function_folder(tmp_path / "words", words), id="sum", policy=POLICY), -0.1),
        (load_reward(function_folder(tmp_path / "ends", ends), id="sum", policy=POLICY), 2.0),
    ]
    prompts, completions = records([("one two three", True), ("one", False)])
    scores = combine(parts).score(prompts, completions)
    assert [s.value for s in scores] == pytest.approx([1.7, -0.1])
    assert scores[0].breakdown == pytest.approx({"words": -0.3, "ends": 2.0})
    assert scores[0].reward_model == "sum"
    with pytest.raises(UserError, match="two parts of the reward are called words"):
        combine([parts[0], parts[0]])


def test_rewards_are_plain_yaml_when_written(trained):
    values = yaml.safe_load((trained / "reward_model.yaml").read_text())
    assert values["kind"] == "bradley_terry"
    assert values["base"] == "tiny-random:0"
    assert Lora(**values["lora"]).r == 4


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import sys\ndef f(completions, **k):\n    sys.exit(3)", "raised SystemExit: 3"),
        ("def f(completions, **k):\n    return [10**400] * len(completions)", "which is no finite number"),
        (
            "import torch\ndef f(completions, **k):\n    return [torch.ones(2)] * len(completions)",
            "raised RuntimeError",
        ),
        ("def f(completions, **k):\n    raise ValueError('\\ud800')", "raised ValueError: ?"),
    ],
)
def test_a_function_that_fails_in_an_odd_way_is_named_all_the_same(tmp_path, body, said):
    with pytest.raises(UserError) as refused:
        load_reward(function_folder(tmp_path / "f", body), id="f", policy=POLICY)(["q", "q"], ["a", "b"])
    assert said in str(refused.value)


def test_a_file_of_a_function_may_hold_dataclasses_and_what_is_pickled(tmp_path):
    body = "from __future__ import annotations\nimport pickle\nfrom dataclasses import dataclass\n"
    body += "@dataclass\nclass Point:\n    value: float\n"
    body += "def f(completions, **k):\n    return [pickle.loads(pickle.dumps(Point(0.5))).value for _ in completions]\n"
    assert load_reward(function_folder(tmp_path / "f", body), id="f", policy=POLICY)(["q"], ["a"]) == [0.5]
