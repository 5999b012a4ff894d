"""One answer to which tokens a policy read and wrote, over families of models that end and write turns differently."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import families

from rlhf_loop.models.loading import load_policy, load_tokenizer, to_messages
from rlhf_loop.models.turns import Turns, opens_no_turn
from rlhf_loop.recipe import Generation, Lora, Policy, Update
from rlhf_loop.record_files import read_records, write_records
from rlhf_loop.records import Annotator as Person
from rlhf_loop.records import Completion, Edit, Message, Preference, Prompt, Score, Thumb

TRAINED = list(families.ENDS)


def settings(folder: Path) -> Policy:
    return Policy(model=str(folder), dtype="float32")


PROMPTS = [
    Prompt(id="one", group="one", messages=(Message(role="user", content="What is tea?"),)),
    Prompt(
        id="several",
        group="several",
        messages=(
            Message(role="user", content="What is tea?"),
            Message(role="assistant", content="I think first</think>\n\nLeaves in hot water."),
            Message(role="user", content="Why is snow white?"),
        ),
    ),
]


def answers(turns: Turns, name: str) -> list[Completion]:
    """Of each prompt: cut off, ended by each token that ends a turn, with a thought, in an unusual split, and empty."""
    tokenizer = turns.tokenizer
    plain = tokenizer("Leaves in hot water.", add_special_tokens=False)["input_ids"]
    thought = tokenizer("Think first</think>\n\nLeaves.", add_special_tokens=False)["input_ids"]
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "Leaves"]  # which is otherwise fewer tokens
    ends = [tokenizer.convert_tokens_to_ids(token) for token in families.ENDS[name]]
    written = [plain, thought, letters, *([*ids, end] for ids in (plain, thought, letters, []) for end in ends)]
    return [
        Completion(
            id=f"{prompt.id} {number}",
            prompt_id=prompt.id,
            text=turns.text(ids),
            policy="base",
            round=0,
            sample=number,
            finish_reason="stop" if turns.ended(ids) else "length",
            token_ids=tuple(ids),
        )
        for prompt in PROMPTS
        for number, ids in enumerate(written)
    ]


@pytest.mark.parametrize("name", TRAINED)
def test_what_ends_a_turn_is_known_whoever_says_it(family: Callable[[str], Path], name: str) -> None:
    model, tokenizer = load_policy(family(name), settings(family(name)))
    turns = Turns(tokenizer, model)
    assert set(tokenizer.convert_ids_to_tokens(sorted(turns.ends))) == set(families.ENDS[name])
    made = answers(turns, name)
    assert [c.finish_reason for c in made[:3]] == ["length"] * 3
    assert {c.finish_reason for c in made[3 : len(made) // 2]} == {"stop"}


@pytest.mark.parametrize("name", TRAINED)
def test_the_ids_trained_on_scored_and_evaluated_are_the_ids_that_were_sampled(
    family: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    from trl import DPOConfig, KTOConfig, SFTConfig

    from rlhf_loop.evaluation import language_model
    from rlhf_loop.reward_spec import HeadSpec
    from rlhf_loop.rewards.head import Features
    from rlhf_loop.rewards.texts import encode, texts_of_completions, texts_of_pairs
    from rlhf_loop.rows.demonstrations import best_of_n
    from rlhf_loop.rows.labels import labels_from_feedback
    from rlhf_loop.rows.pairs import pairs_from_feedback, pairs_from_scores
    from rlhf_loop.updates import dpo, kto, sft
    from rlhf_loop.updates.train_and_save import Training

    policy = settings(family(name))
    model, tokenizer = load_policy(family(name), policy)
    turns = Turns(tokenizer, model)
    write_records(tmp_path / "completions.parquet", answers(turns, name))
    made: list[Completion] = read_records(tmp_path / "completions.parquet", Completion)
    by_id, asked = {c.id: c for c in made}, {p.id: p for p in PROMPTS}
    read = {
        p.id: list(tokenizer.apply_chat_template(list(p.messages), add_generation_prompt=True, return_dict=False))
        for p in PROMPTS
    }

    def training(algorithm: str) -> Training:
        values = {"per_device_train_batch_size": 2, "max_length": None}
        update = Update(algorithm=algorithm, lora=Lora(r=2), trainer=values)
        return Training(
            start=family(name), reference=family(name), output=tmp_path, policy=policy, settings=update, seed=0
        )

    scores = [Score(completion_id=c.id, reward_model="r", value=float(-c.sample)) for c in made]
    pairs, _ = pairs_from_scores("all_above_margin", PROMPTS, made, scores)
    person = Person(id="p")
    preference = Preference(
        id="f",
        prompt_id="several",
        annotator=person,
        a_id="several 1",
        b_id=f"several {len(made) // 2 - 1}",
        winner="a",
    )
    pairs += pairs_from_feedback([preference], by_id, asked)[0]
    trainer = dpo._trainer(pairs, training("dpo"), training("dpo").arguments(DPOConfig))[0]
    for pair, row in zip(pairs, trainer.train_dataset, strict=True):
        assert row["prompt_ids"] == read[pair.prompt_id]
        for side, id in (("chosen", pair.chosen_id), ("rejected", pair.rejected_id)):
            assert row[f"{side}_ids"] == list(by_id[id].token_ids or ())

    thumbs = [Thumb(id=c.id, prompt_id=c.prompt_id, annotator=person, completion_id=c.id, label=True) for c in made]
    labels, _ = labels_from_feedback(thumbs, by_id, asked)
    trainer = kto._trainer(labels, training("kto"), training("kto").arguments(KTOConfig))[0]
    trained = sorted((row["prompt_ids"], row["completion_ids"]) for row in trainer.train_dataset)
    assert trained == sorted((read[c.prompt_id], list(c.token_ids or ())) for c in made)

    best = [
        row
        for number in range(3)  # each in turn the best
        for row in best_of_n(
            PROMPTS, made, [replace(s, value=float(s.completion_id.endswith(f" {number}"))) for s in scores], 0, 1
        )[0]
    ]
    arguments = training("rejection_sampling").arguments(SFTConfig, {"completion_only_loss": True})
    trainer = sft._trainer(best, training("rejection_sampling"), arguments)[0]
    for demonstration, row in zip(best, trainer.train_dataset, strict=True):
        ids = list(by_id[demonstration.completion_id or ""].token_ids or ())
        assert row["input_ids"] == read[demonstration.prompt_id] + ids
        assert row["labels"] == [-100] * len(read[demonstration.prompt_id]) + ids

    features = Features(HeadSpec(kind="head", base="policy"), policy)
    for completion, text in zip(made, texts_of_completions(PROMPTS, made), strict=True):
        prompt = read[completion.prompt_id]
        assert encode(features.turns, text) == ([*prompt, *(completion.token_ids or ())], len(prompt))
    assert set(texts_of_pairs(pairs)[0]) <= set(texts_of_completions(PROMPTS, made))

    conversations = [to_messages(asked[c.prompt_id], policy) for c in made]
    for completion, tokens in zip(made, language_model.encode_answers(turns, conversations, made), strict=True):
        assert list(tokens.prompt) == read[completion.prompt_id]
        assert tokens.answer == completion.token_ids


@pytest.mark.parametrize("name", [*TRAINED, "nogen"])
def test_a_generation_keeps_the_tokens_that_it_sampled(family: Callable[[str], Path], name: str) -> None:
    from rlhf_loop.generation import generate

    model, tokenizer = load_policy(family(name), settings(family(name)))
    made = generate(
        (model, tokenizer),
        PROMPTS,
        Generation(samples_per_prompt=60, max_new_tokens=24, temperature=9.0),
        policy_settings=settings(family(name)),
        policy_id="base",
        round=0,
        seed=1,
    )
    turns = Turns(tokenizer, model)
    assert {c.finish_reason for c in made} == {"stop", "length"}
    for completion in made:
        ids = completion.token_ids or ()
        assert completion.tokens == len(ids)
        assert completion.text == tokenizer.decode(ids, skip_special_tokens=True)
        assert (completion.finish_reason == "stop") == (ids[-1] in turns.ends)
        assert turns.ends.isdisjoint(ids[:-1])


WRITTEN = {  # family -> what is read, and what a person's "Leaves." becomes after it
    "gemma": ("<start_of_turn>model\n", "Leaves.<end_of_turn>"),
    "phi3": ("<|assistant|>\n", "Leaves.<|end|>"),
    "llama2": (" [/INST]", " Leaves. </s>"),
    "llama3": ("<|end_header_id|>\n\n", "Leaves.<|eot_id|>"),
    "r1": ("<|Assistant|>", "Leaves.<eos>"),
    "qwen3": ("<|im_start|>assistant\n", "<think>\n\n</think>\n\nLeaves.<|im_end|>"),
    "mistral": ("[/INST]", "Leaves.</s>"),
    "gpt2": ("<|im_start|>assistant\n", "Leaves.<|im_end|>"),
    "nogen": ("<|im_end|>\n", "<|im_start|>assistant\nLeaves.<|im_end|>"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_wrote_follows_the_templates_own_form(family: Callable[[str], Path], name: str) -> None:
    turns = Turns(load_tokenizer(family(name)))
    said = [Message(role="assistant", content="Leaves.")]
    for prompt in PROMPTS:
        tokens = turns.tokens(prompt.messages, said, finished=True, by_policy=False)
        read, answer = turns.tokenizer.decode(tokens.prompt), turns.tokenizer.decode(tokens.answer)
        assert read.endswith(WRITTEN[name][0])
        assert answer == WRITTEN[name][1]
        whole = turns.tokenizer.apply_chat_template([*prompt.messages, *said], tokenize=False)
        assert whole.startswith(read + answer)
        assert whole[len(read + answer) :] in ("", "\n", "\n<|endoftext|>")  # of the next turn


def test_a_person_s_thought_is_not_cut_out(family: Callable[[str], Path]) -> None:
    turns = Turns(load_tokenizer(family("r1")))
    text = "Think first</think>\n\nLeaves."
    tokens = turns.tokens(
        PROMPTS[0].messages, [Message(role="assistant", content=text)], finished=True, by_policy=False
    )
    assert list(tokens.prompt) == turns.prompt(PROMPTS[0].messages)
    assert turns.tokenizer.decode(tokens.answer) == text + "<eos>"


def test_rows_know_who_wrote_them() -> None:
    from rlhf_loop.rows.demonstrations import demonstrations
    from rlhf_loop.rows.pairs import pairs_from_scores

    ours = Completion(id="ours", prompt_id="one", text="a b", policy="base", round=0, token_ids=(1, 2))
    theirs = Completion(id="theirs", prompt_id="one", text="c d", policy="import", round=0)
    scores = [Score(completion_id=c.id, reward_model="r", value=v) for c, v in ((ours, 1.0), (theirs, 0.0))]
    (pair,) = pairs_from_scores("best_worst", PROMPTS, [ours, theirs], scores)[0]
    assert (pair.chosen_token_ids, pair.chosen_by_policy) == ((1, 2), True)
    assert (pair.rejected_token_ids, pair.rejected_by_policy) == (None, False)
    edit = Edit(id="e", prompt_id="one", annotator=Person(id="p"), completion_id="ours", edited_completion="e f")
    asked = {"one": replace(PROMPTS[0], reference="g h")}
    assert [(d.origin, d.token_ids, d.by_policy) for d in demonstrations([edit], {"ours": ours}, asked)] == [
        ("edit", None, False),
        ("reference", None, False),
    ]


def test_tokens_of_another_tokenizer_or_of_another_text_are_not_used(
    family: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    theirs, ours = Turns(load_tokenizer(family("gemma"))), Turns(load_tokenizer(family("llama2")))
    said = [Message(role="assistant", content="Leaves.")]
    sampled = theirs.tokens(PROMPTS[0].messages, said, finished=True).answer
    again = ours.tokens(PROMPTS[0].messages, said, finished=True, token_ids=sampled)
    assert again == ours.tokens(PROMPTS[0].messages, said, finished=True)
    changed = [Message(role="assistant", content="[NAME] says leaves.")]
    again = theirs.tokens(PROMPTS[0].messages, changed, finished=True, token_ids=sampled)
    assert theirs.tokenizer.decode(again.answer) == "[NAME] says leaves.<end_of_turn>"
    assert (ours.unfit, theirs.unfit) == (1, 1)
    with caplog.at_level(logging.WARNING):
        ours.say_unfit(3)
    assert "1 of 3 answers were sampled with another tokenizer" in caplog.text


def test_a_template_without_a_generation_prompt_is_told_from_one_that_needs_none(
    family: Callable[[str], Path],
) -> None:
    assert [name for name in [*TRAINED, "nogen"] if opens_no_turn(load_tokenizer(family(name)))] == ["nogen"]


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "ppo"])
@pytest.mark.parametrize(
    "name", [name if name in ("gemma", "gpt2") else pytest.param(name, marks=pytest.mark.slow) for name in TRAINED]
)
def test_a_reward_in_training_is_told_what_ended_and_what_was_sampled(
    family: Callable[[str], Path], name: str, algorithm: str, tmp_path: Path
) -> None:
    from rlhf_loop.rewards.base import Reward
    from rlhf_loop.rewards.texts import Text, texts_of_completions
    from rlhf_loop.updates import update_policy

    seen: list[Text] = []

    class Recording(Reward):
        def values(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> list[float]:
            seen.extend(texts)
            return [float(len(text.completion)) for text in texts]

    update_policy(
        [replace(PROMPTS[number % 2], id=str(number)) for number in range(8)],
        start=family(name), reference=family(name), output=tmp_path, policy=settings(family(name)),
        settings=Update(
            algorithm=algorithm, lora=Lora(r=2),
            trainer={"max_steps": 1, "per_device_train_batch_size": 32, "num_generations": 4, "learning_rate": 1e-6},
        ),
        reward=Recording("r", "recording"),
        generation=Generation(max_new_tokens=64, temperature=9.0),
    )  # fmt: skip
    model, tokenizer = load_policy(family(name), settings(family(name)))
    turns = Turns(tokenizer, model)
    assert {text.finished for text in seen} == {True, False}
    for text in seen:
        assert text.token_ids is not None
        assert text.finished == turns.ended(text.token_ids)
        assert text.finished or len(text.token_ids) == 64
        in_step_score = Completion(
            id="c", prompt_id="p", text=text.completion, policy="base", round=0, token_ids=text.token_ids,
            finish_reason="stop" if turns.ended(text.token_ids) else "length",
        )  # fmt: skip
        prompt = Prompt(id="p", group="p", messages=tuple(text.messages()))
        assert texts_of_completions([prompt], [in_step_score]) == [text]


@pytest.mark.parametrize("name", ["gemma", "mistral", "llama3", "gpt2"])
def test_prompts_longer_than_the_sliding_window_are_sampled_as_by_transformers(
    family: Callable[[str], Path], name: str
) -> None:
    from rlhf_loop.generation.transformers_engine import sample_ids

    model, tokenizer = load_policy(family(name), settings(family(name)))
    prompts = [tokenizer("Why is snow white? " * n, add_special_tokens=False)["input_ids"] for n in (1, 3, 9)]
    assert len(prompts[0]) < 16 < len(prompts[1]) < len(prompts[2])
    model.generation_config.eos_token_id = None
    keys = [(0, 0, str(n)) for n in range(3)]
    options = Generation(max_new_tokens=40, temperature=0)
    got = sample_ids(model, tokenizer, prompts, keys, [2] * 3, options)
    for ids, samples in zip(prompts, got, strict=True):
        expected = model.generate(
            torch.tensor([ids]), max_new_tokens=40, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        until = expected[0, len(ids) :].tolist()
        for sampled in samples:
            assert sampled == until[: len(sampled)]
            assert len(sampled) == 40 or sampled[-1] in Turns(tokenizer, model).ends
