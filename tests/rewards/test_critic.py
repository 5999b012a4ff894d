"""A reward model that writes a critique of an answer before it scores it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from samples.rewards import critic_spec, critiques_of, make_pairs
from torch.nn.functional import log_softmax, logsigmoid
from transformers import TrainerCallback, TrainingArguments

from rlhf_loop.errors import UserError
from rlhf_loop.generation import write_greedily
from rlhf_loop.recipe import Lora, Policy
from rlhf_loop.records import Completion, Prompt
from rlhf_loop.rewards import combine, critic, load_reward, train_reward_model
from rlhf_loop.rewards.critic_controls import Given, controls, evaluate
from rlhf_loop.rewards.critic_model import new_critic, put_adapter, read
from rlhf_loop.rewards.critic_trainer import CriticTrainer, read_all
from rlhf_loop.rewards.texts import make_text, texts_of_pairs
from rlhf_loop.stages.reward import critiques_beside

POLICY = Policy(model="tiny-random:0", dtype="float32")
QUESTION = [{"role": "user", "content": "Question?"}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("critic") / "rm"
    pairs = make_pairs(4)
    metrics = train_reward_model(
        critic_spec(), pairs, folder, policy=POLICY, eval_pairs=make_pairs(2, seed=1), seed=0,
        critiques=critiques_of(pairs), writer=write_greedily,
    )  # fmt: skip
    return folder, metrics


@pytest.fixture(scope="module")
def loaded(trained: tuple[Path, dict[str, Any]]) -> critic.CriticReward:
    reward = load_reward(trained[0], id="rm", policy=POLICY, writer=write_greedily)
    assert isinstance(reward, critic.CriticReward)
    return reward


# The loss


ROWS = [
    {"texts": [[5, 6, 7, 8, 9], [5, 6, 10], [11, 12, 13, 14]], "critiques": [2, 0, 3], "chosen": [0, 2],
     "rejected": [1, 0], "margin": [0.0, 0.5]},
    {"texts": [[20, 21, 22], [23, 24, 25, 26, 27, 28]], "critiques": [0, 1], "chosen": [1], "rejected": [0],
     "margin": [0.0]},
]  # fmt: skip


def trainer_of(tmp_path: Path, weight: float) -> CriticTrainer:
    torch.manual_seed(0)
    model, tokenizer = new_critic("tiny-random:0", POLICY, Lora(r=4, alpha=8))
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", remove_unused_columns=False)
    return CriticTrainer(model, arguments, ROWS, tokenizer.pad_token_id, lm_weight=weight)


def alone(model: Any, ids: list[int], critique: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The reward at the last token of one text without any padding, and minus the log-likelihoods of its critique."""
    plain = model.get_base_model()
    output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    reward = plain.reward_head(output.hidden_states[-1][:, -1])[0]
    log_probs = log_softmax(output.logits[0].float(), -1)
    places = range(len(ids) - critique, len(ids))
    return reward, torch.stack(
        [-log_probs[place - 1, ids[place]] for place in places]
    ).sum() if critique else 0 * reward


@pytest.mark.parametrize("forward_tokens", [10**9, 8])
def test_the_loss_is_bradley_terry_on_all_pairs_and_cross_entropy_where_there_is_a_critique(
    tmp_path, monkeypatch, forward_tokens
):
    monkeypatch.setattr("rlhf_loop.rewards.critic_trainer.FORWARD_TOKENS", {"cpu": forward_tokens})
    trainer = trainer_of(tmp_path, 1.25)
    first, second = (
        [alone(trainer.model, *text) for text in zip(r["texts"], r["critiques"], strict=True)] for r in ROWS
    )
    margins = [first[0][0] - first[1][0], first[2][0] - first[0][0] - 0.5, second[1][0] - second[0][0]]
    preference = -torch.stack([logsigmoid(margin) for margin in margins]).mean()
    language = sum(loss for _, loss in [*first, *second]) / 6  # tokens of critiques
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(ROWS))
    torch.testing.assert_close(loss, preference + 1.25 * language, atol=1e-5, rtol=1e-5)


def test_the_gradient_reaches_the_head_and_the_language_model(tmp_path):
    trainer = trainer_of(tmp_path, 0.0)
    trainer.compute_loss(trainer.model, trainer.data_collator(ROWS)).backward()
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in gradients.values())
    assert any(gradient.abs().sum() > 0 for name, gradient in gradients.items() if "lora_" in name)
    head = [gradient for name, gradient in gradients.items() if "reward_head" in name and "outer_bias" not in name]
    assert len(head) == 3
    assert all(gradient.abs().sum() > 0 for gradient in head)  # the last bias falls out of differences


def test_critiques_alone_move_the_language_model_and_not_the_head(tmp_path):
    trainer = trainer_of(tmp_path, 1.0)
    row = {"texts": [[5, 6, 7, 8]], "critiques": [2], "chosen": [], "rejected": [], "margin": []}
    loss = trainer.compute_loss(trainer.model, trainer.data_collator([row]))
    torch.testing.assert_close(loss, alone(trainer.model, row["texts"][0], 2)[1] / 2)
    loss.backward()
    moved = {name for name, p in trainer.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved
    assert all("lora_" in name for name in moved)


# Training, saving, loading


def test_training_says_nothing_of_names_that_libraries_have_others_for(tmp_path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        spec = critic_spec(trainer={"learning_rate": 3e-3, "max_steps": 1, "gradient_checkpointing": True})
        train_with(tmp_path, spec=spec)
    assert [one.message for one in said if issubclass(one.category, FutureWarning)] == []


def test_it_is_saved_and_loaded_with_the_same_scores(trained, loaded):
    folder, metrics = trained
    held_out = make_pairs(2, seed=1)
    assert evaluate(loaded, held_out)["accuracy"] == metrics["eval"]["accuracy"]
    texts, _ = texts_of_pairs(held_out)
    written = loaded.write(texts)
    model, tokenizer = new_critic("tiny-random:0", POLICY, critic_spec().lora)
    put_adapter(model, folder)  # the adapter beside its base, as it was in training
    rows = [loaded.asked.about(text) + ids for text, ids in zip(texts, written, strict=True)]
    beside = read_all(model.eval(), rows, tokenizer.pad_token_id)
    assert loaded.having_read(texts, written) == pytest.approx(beside, abs=1e-5)


def test_it_stands_alone_wherever_it_is_moved(trained, loaded, tmp_path):
    moved = shutil.copytree(trained[0], tmp_path / "moved")
    other = Policy(model="tiny-random:1", dtype="float32")
    again = load_reward(moved, id="rm", policy=other, writer=write_greedily)
    assert again(["q"], ["clear answer"]) == pytest.approx(loaded(["q"], ["clear answer"]), abs=1e-5)


def test_scores_do_not_depend_on_the_batch(loaded):
    texts = [make_text(QUESTION, "clear " * n) for n in (9, 1, 40, 3)]
    values = loaded.values(texts, {})
    assert values == pytest.approx([loaded.values([text], {})[0] for text in texts], abs=1e-5)
    assert len(set(values)) == 4


def test_metrics_say_what_was_used_and_how_much_the_critique_is_worth(trained):
    metrics = trained[1]
    assert metrics["critiques"] == 24
    assert metrics["texts_criticised"] == 12  # the best answer of each of 4 prompts never lost
    assert metrics["critiques_written"] == metrics["distinct_texts"] == 16
    assert 1 <= metrics["critiques_distinct"] <= 16
    for control in ("empty_critique", "shuffled_critique"):
        assert metrics["eval"][control]["accuracy"]["n"] == metrics["eval"]["accuracy"]["n"] == 12


class Stop(TrainerCallback):
    """Ends the process, as far as the trainer can tell, after so many steps of a stage."""

    def __init__(self, stage: str, step: int):
        self.stage, self.step = stage, step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if Path(args.output_dir).parent.name == self.stage and state.global_step == self.step:
            raise KeyboardInterrupt


def broken_writer(*arguments: Any) -> list[list[int]]:
    raise KeyboardInterrupt


def test_training_goes_on_where_it_was_killed_and_ends_with_the_same_weights(tmp_path):
    pairs = make_pairs(4)

    def train(folder: Path, writer: Callable[..., Any] = write_greedily, *stop: TrainerCallback) -> None:
        folder.mkdir(exist_ok=True)
        critic.train(
            critic_spec(), pairs, folder, policy=POLICY, seed=0, critiques=critiques_of(pairs[:8]), writer=writer,
            extra_callbacks=stop,
        )  # fmt: skip

    train(tmp_path / "whole")
    killed = tmp_path / "killed"
    for attempt in (
        lambda: train(killed, write_greedily, Stop("sft", 3)),
        lambda: train(killed, broken_writer),
        lambda: train(killed, broken_writer, Stop("sft", 1)),  # that stage is done: it does not begin again
        lambda: train(killed, write_greedily, Stop("joint", 1)),
    ):
        with pytest.raises(KeyboardInterrupt):
            attempt()
        assert (killed / "making").exists()
    train(killed, broken_writer)  # what was written is kept
    assert not (killed / "making").exists()
    for name in ("adapter_model.safetensors", "sft_log.jsonl", "joint_log.jsonl"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


# What it reads and writes


def test_each_score_comes_with_what_was_written(loaded):
    prompt = Prompt(id="p", messages=tuple(QUESTION), group="p")
    completions = [Completion(id=text, prompt_id="p", text=text, policy="x", round=0) for text in ("clear", "noise")]
    scores = loaded.score([prompt], completions)
    assert [score.value for score in scores] == pytest.approx(loaded([QUESTION] * 2, ["clear", "noise"]), abs=1e-6)
    texts = [make_text(QUESTION, c.text, c.finish_reason == "stop") for c in completions]
    written = [loaded.asked.turns.text(ids).strip() for ids in loaded.write(texts)]
    assert [score.critique for score in scores] == written
    assert scores[0].breakdown == {}
    (weighed,) = combine([(loaded, 2.0)], id="sum").score([prompt], completions[:1])
    assert weighed.value == pytest.approx(2 * scores[0].value, abs=1e-5)
    assert weighed.critique == scores[0].critique


def test_it_is_told_of_an_answer_that_was_cut_off(loaded):
    whole, cut = (make_text(QUESTION, "clear", finished) for finished in (True, False))
    text = loaded.tokenizer.decode(loaded.asked.about(cut))
    assert critic.CUT_OFF in text
    assert loaded.spec.question in text
    assert critic.CUT_OFF not in loaded.tokenizer.decode(loaded.asked.about(whole))
    assert loaded.values([whole], {}) != loaded.values([cut], {})


def test_the_controls_are_empty_critiques_and_those_of_other_answers(loaded):
    pairs = make_pairs(2, seed=1)
    texts, _ = texts_of_pairs(pairs)
    marked = iter(range(100, 200))
    loaded_writer, loaded.writer = loaded.writer, lambda model, tokenizer, rows, most: [[next(marked)] for _ in rows]
    try:
        given = controls(loaded, pairs, seed=3)
    finally:
        loaded.writer = loaded_writer
    assert given["empty"] == {text: [loaded.asked.turns.end] for text in texts}
    assert all(given["own"][text] != given["shuffled"][text] for text in texts)
    assert sorted(given["own"].values()) == sorted(given["shuffled"].values())
    rows = [loaded.asked.about(text) + given["shuffled"][text] for text in texts]
    expected = [read(loaded.model, [row], [0], 0)[0].item() for row in rows]
    assert Given(loaded, given["shuffled"]).values(texts, {}) == pytest.approx(expected, abs=1e-5)


def test_critiques_of_held_out_groups_are_not_learned_from(tmp_path):
    from rlhf_loop.record_files import write_records

    pairs = make_pairs(3)
    write_records(tmp_path / "critiques.parquet", critiques_of(pairs))
    kept = critiques_beside(str(tmp_path / "critiques.parquet"), [pair for pair in pairs if pair.group == "g1"])
    assert {row.group for row in kept} == {"g0", "g2"}
    assert critiques_beside(None, pairs) == []


# What is refused


def train_with(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    pairs = make_pairs(2)
    options = {"critiques": critiques_of(pairs), "writer": write_greedily, **changes}
    spec = options.pop("spec", critic_spec())
    return train_reward_model(spec, pairs, tmp_path / "rm", policy=POLICY, eval_pairs=[], seed=0, **options)


def test_without_any_critique_the_error_says_where_they_come_from(tmp_path):
    wordless = [replace(row, critique="") for row in critiques_of(make_pairs(2))]
    for rows in ([], wordless):
        with pytest.raises(UserError, match=r"there are none\. Collect some .* reward_models/bradley_terry"):
            train_with(tmp_path, critiques=rows)


def test_critiques_of_over_long_answers_are_counted_and_cut_ones_too(tmp_path, caplog):
    rows = critiques_of(make_pairs(2))
    long = replace(rows[0], id="long", completion=({"role": "assistant", "content": "noise " * 200},))
    wordy = replace(rows[1], id="wordy", critique="too much noise " * 20)
    spec = critic_spec(max_length=250, max_critique=40)
    metrics = train_with(tmp_path, critiques=[*rows[:4], long, wordy], spec=spec)
    assert metrics["critiques_dropped_too_long"] == 1
    assert metrics["critiques_cut_off"] == 1
    assert "1 of 6 critiques are of answers over 250 tokens and left out" in caplog.text


def test_without_a_writer_the_error_names_one(tmp_path, trained):
    for refused in (lambda: train_with(tmp_path, writer=None), lambda: load_reward(trained[0], id="rm", policy=POLICY)):
        with pytest.raises(UserError, match="give `writer=write_greedily`"):
            refused()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sft": {"learning_rat": 1}}, "sft.learning_rat: transformers' TrainingArguments has no such field"),
        ({"trainer": {"seed": 1}}, "trainer.seed is the loop's own"),
        ({"lora": None}, "lora"),
        ({"lm_weight": -1}, "lm_weight"),
    ],
)
def test_wrong_settings_are_refused_by_name(changes, said):
    with pytest.raises(UserError) as refused:
        critic_spec(**changes)
    assert said in str(refused.value)


def test_a_recipe_changes_the_settings_of_the_joint_training(tmp_path):
    assert train_with(tmp_path, trainer={"max_steps": 1})["steps"] == 1
