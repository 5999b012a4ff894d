"""Where PPO's rewards come from: what a function is shown, classifiers, and a critic that starts from one."""

from __future__ import annotations

import copy
import random
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from samples import token_task as task
from samples.ppo import log_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from rlhf_loop.errors import UserError
from rlhf_loop.updates.reward_functions import classifier_reward

CHAT = (
    "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


@cache
def other_classifier() -> str:
    """A tiny classifier of texts with a tokenizer of its own: other words in another order."""
    folder = mkdtemp(prefix="classifier_")
    words = ["[UNK]", "[END]", *reversed(task.VOCABULARY[3:]), "[PAD]", "user", "assistant"]
    torch.manual_seed(1)
    settings = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=words.index("[PAD]"), num_labels=1,
        initializer_range=0.3,
    )  # fmt: skip
    LlamaForSequenceClassification(settings).save_pretrained(folder)
    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", eos_token="[END]", unk_token="[UNK]", chat_template=CHAT
    ).save_pretrained(folder)
    return folder


@cache
def classifier_of_this_vocabulary() -> str:
    """A tiny classifier that reads the policy's own tokens."""
    folder = mkdtemp(prefix="classifier_")
    torch.manual_seed(2)
    settings = LlamaConfig.from_pretrained(task.model_folder(), num_labels=1, initializer_range=0.3)
    LlamaForSequenceClassification(settings).save_pretrained(folder)
    task.tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def score_alone(folder: str, text: str, finished: bool) -> float:
    """The score of one text, without any batch or padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = tokenizer(text)["input_ids"] + ([tokenizer.eos_token_id] if finished else [])
    return model(input_ids=torch.tensor([ids])).logits.item()


# Functions


def test_a_function_sees_the_end_in_the_tokens_and_the_columns_of_the_prompt(tmp_path: Path) -> None:
    shown: list[dict[str, Any]] = []

    def reward(**given: Any) -> list[float]:
        shown.append(given)
        return task.share_of_a(given["prompts"], given["completion_ids"])

    rows = task.prompts()
    made = task.trainer(tmp_path, reward_funcs=reward, train_dataset=rows.add_column("level", list(range(len(rows)))))
    batch = task.rollout(made)
    (given,) = shown
    assert given["level"] == list(range(16))
    for ids, mask, row, text in zip(
        given["completion_ids"], batch["completion_mask"], batch["completion_ids"], given["completions"], strict=True
    ):
        assert list(ids) == row[: mask.sum()].tolist()  # no padding
        assert len(ids) == task.LENGTH or ids[-1] == 1
        assert "<eos>" not in text
    assert {ids[-1] == 1 for ids in given["completion_ids"]} == {True, False}


def test_several_functions_are_added_by_their_weights(tmp_path: Path) -> None:
    def short(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [-float(len(ids)) for ids in completion_ids]

    async def later(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(ids[0]) for ids in completion_ids]

    made = task.trainer(
        tmp_path, reward_funcs=[short, later], reward_weights=[0.5, 2.0], kl_coef=0.0, lam=1.0, whiten_advantages=False
    )
    batch = task.rollout(made)
    expected = 2.0 * batch["completion_ids"][:, 0] - 0.5 * batch["completion_mask"].sum(1)
    torch.testing.assert_close(batch["returns"][:, 0], expected)
    assert {"rewards/short/mean", "rewards/later/mean"} <= set(made._metrics["train"])


def test_functions_run_without_gradients_and_may_keep_state(tmp_path: Path) -> None:
    class Counting:
        calls = 0

        def __call__(self, completion_ids: list[list[int]], **_: Any) -> torch.Tensor:
            self.calls += 1
            return (torch.nn.Parameter(torch.ones(1)) * len(completion_ids)).expand(16) + torch.arange(16)

    reward = Counting()
    made = task.trainer(tmp_path, reward_funcs=reward, num_ppo_epochs=1)
    made.train()
    assert reward.calls == 2
    assert log_of(made)[0]["rewards/Counting/mean"] == 16 + 7.5


# Classifiers


@pytest.mark.parametrize("given", ["folder", "module"])
def test_a_classifier_scores_texts_as_it_would_alone_with_an_end_where_they_ended(tmp_path: Path, given: str) -> None:
    folder = other_classifier()
    reward: Any = folder if given == "folder" else AutoModelForSequenceClassification.from_pretrained(folder)
    made = task.trainer(tmp_path, reward_funcs=reward, kl_coef=0.0, lam=1.0, whiten_advantages=False)
    batch = task.rollout(made)
    ended = 0
    for row, mask, prompt, got in zip(
        batch["completion_ids"], batch["completion_mask"], made.train_dataset["prompt"][:16], batch["returns"][:, 0],
        strict=True,
    ):  # fmt: skip
        ids = row[: mask.sum()]
        finished = bool(ids[-1] == 1)
        ended += finished
        text = task.tokenizer().decode(ids, skip_special_tokens=True)
        assert got.item() == pytest.approx(score_alone(folder, prompt + text, finished), abs=1e-5)
    assert 0 < ended < 16
    assert f"rewards/{Path(folder).name}/mean" in made._metrics["train"]


def test_a_chat_is_scored_in_the_words_of_the_classifiers_own_template() -> None:
    folder = other_classifier()
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    reward = classifier_reward(model, PreTrainedTokenizerFast.from_pretrained(folder), lambda ids: ids[-1] == 1)
    prompt = [{"role": "user", "content": "a b"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("c d e", "f", "f")]
    got = reward(prompts=[prompt] * 3, completions=answers, completion_ids=[[5, 1], [5, 1], [5]])
    expected = [
        score_alone(folder, "user : a b assistant : c d e", True),
        score_alone(folder, "user : a b assistant : f", True),
        score_alone(folder, "user : a b assistant : f", False),
    ]
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert abs(expected[1] - expected[2]) > 1e-3


def test_a_classifier_scores_in_batches_of_bounded_size() -> None:
    folder = other_classifier()
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    sizes: list[torch.Size] = []
    model.register_forward_pre_hook(lambda _, __, given: sizes.append(given["input_ids"].shape), with_kwargs=True)
    draw = random.Random(0)
    texts = [" ".join(draw.choices(task.LETTERS, k=draw.randint(1, 20))) for _ in range(30)]

    def scores(batch_tokens: int) -> list[float]:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        reward = classifier_reward(model, tokenizer, lambda ids: False, batch_tokens)
        return reward(prompts=[""] * 30, completions=texts, completion_ids=[[5]] * 30)

    whole = scores(10_000)
    assert len(sizes) == 1
    sizes.clear()
    assert scores(40) == pytest.approx(whole, abs=1e-5)
    assert len(sizes) > 5
    assert max(rows * width for rows, width in sizes) <= 40
    assert scores(1) == pytest.approx(whole, abs=1e-5)  # one by one, however long
    assert [score_alone(folder, text, False) for text in texts[:5]] == pytest.approx(whole[:5], abs=1e-5)


def test_a_classifier_without_a_padding_token_scores_too() -> None:
    model = AutoModelForSequenceClassification.from_pretrained(other_classifier()).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(other_classifier())
    tokenizer.pad_token, model.config.pad_token_id = None, None
    reward = classifier_reward(model, tokenizer, lambda ids: False)
    got = reward(prompts=["a ", "b "], completions=["c d e", "f"], completion_ids=[[5], [5]])
    expected = [score_alone(other_classifier(), text, False) for text in ("a c d e", "b f")]
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-5)


# A critic that starts from a classifier


@torch.no_grad()
def prefix_scores(model: Any, batch: dict[str, Any], row: int) -> list[float]:
    """The classifier's score before each token of a completion, of the unpadded text until there."""
    prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
    answer = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
    prefixes = [torch.cat([prompt, answer[:t]])[None] for t in range(len(answer))]
    # Not `logits`, which pass over padding tokens, and a random policy samples those too.
    return [model.score(model.base_model(input_ids=ids).last_hidden_state[:, -1]).item() for ids in prefixes]


@pytest.mark.parametrize("given", ["reward as folder", "reward in memory", "value_model", "lora"])
def test_a_separate_critic_starts_as_the_classifier(tmp_path: Path, given: str) -> None:
    folder = classifier_of_this_vocabulary()
    classifier = AutoModelForSequenceClassification.from_pretrained(folder)
    arguments: dict[str, Any] = {"value_model": copy.deepcopy(classifier)}
    if given == "reward as folder":
        arguments = {"reward_funcs": folder}
    elif given == "lora":
        arguments |= {"peft_config": task.lora(), "critic": "separate"}
    elif given == "reward in memory":  # trained since it was loaded, or never on disk
        with torch.no_grad():
            classifier.score.weight.mul_(-2)
        classifier.config._name_or_path = ""
        arguments = {"reward_funcs": classifier, "reward_processing_classes": task.tokenizer()}
    made = task.trainer(tmp_path, **arguments)
    batch = task.rollout(made)
    for row in range(4):
        expected = prefix_scores(classifier.eval(), batch, row)
        assert batch["old_values"][row, : len(expected)].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert batch["old_values"].std() > 0.1
    scores = copy.deepcopy(classifier.state_dict())
    made.train()
    if given == "reward in memory":
        assert all(torch.equal(tensor, scores[name]) for name, tensor in classifier.state_dict().items())


def test_a_classifier_of_another_vocabulary_is_no_critic(tmp_path: Path) -> None:
    """Nor one whose vocabulary is only as large."""
    torch.manual_seed(0)
    folder = tmp_path / "as_large"
    AutoModelForSequenceClassification.from_pretrained(classifier_of_this_vocabulary()).save_pretrained(folder)
    words = [*task.VOCABULARY[:3], *reversed(task.VOCABULARY[3:])]
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    for reward in (str(folder), other_classifier()):
        made = task.trainer(tmp_path, reward_funcs=reward)
        policy = AutoModelForCausalLM.from_pretrained(task.model_folder())
        trunk = made.model.ppo_critic.trunk.state_dict()
        assert all(torch.equal(tensor, trunk[name]) for name, tensor in policy.base_model.state_dict().items())
        assert not task.rollout(made)["old_values"].any()


def test_a_critic_from_a_headless_model_starts_at_0(tmp_path: Path) -> None:
    trunk = AutoModelForSequenceClassification.from_pretrained(classifier_of_this_vocabulary()).base_model
    made = task.trainer(tmp_path, value_model=trunk)
    assert not task.rollout(made)["old_values"].any()
    assert made.model.ppo_critic.trunk is trunk


def test_a_language_model_given_as_a_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no reward model: it lacks score"):
        task.trainer(tmp_path, reward_funcs=task.model_folder())


def test_the_tokenizers_of_rewards_are_where_trl_keeps_them(tmp_path: Path) -> None:
    classifier = AutoModelForSequenceClassification.from_pretrained(task.model_folder(), num_labels=1)
    own = task.tokenizer()
    made = task.trainer(tmp_path, reward_funcs=[classifier, task.share_of_a], reward_processing_classes=[own, None])
    assert made.reward_processing_classes == [own, None]


def test_a_mixture_of_experts_logs_the_loss_that_balances_them(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.01,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "experts")
    made = task.trainer(tmp_path / "out", model=str(tmp_path / "experts"), max_steps=1, num_ppo_epochs=1)
    made.train()
    assert made.aux_loss_enabled
    assert made.state.log_history[0]["aux_loss"] > 0
