"""Pairs that a reward model can learn from, critiques, and small ones to learn from them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_loop.records import CritiquedCompletion, PreferencePair
from rlhf_loop.reward_spec import BradleyTerrySpec, CriticSpec, parse_spec

GOOD = ["clear", "short", "answer", "with", "a", "reason"]
BAD = ["noise", "blah", "mumble", "spam", "zzz", "qqq"]


def make_pairs(prompts: int = 6, answers: int = 4, seed: int = 0) -> list[PreferencePair]:
    """All comparisons of a few answers a prompt, won by the answer with more good words; lengths are random."""
    draw = random.Random(seed)
    pairs = []
    for p in range(prompts):
        texts = []
        for good in range(answers):
            words = draw.choices(BAD, k=draw.randint(3, 9)) + draw.choices(GOOD, k=2 * good)
            draw.shuffle(words)
            texts.append(" ".join(words))
        for chosen in range(answers):
            for rejected in range(chosen):
                pairs.append(
                    PreferencePair(
                        id=f"{p}-{chosen}-{rejected}",
                        prompt_id=f"p{p}",
                        group=f"g{p}",
                        prompt=({"role": "user", "content": f"Question {p}?"},),
                        chosen=({"role": "assistant", "content": texts[chosen]},),
                        rejected=({"role": "assistant", "content": texts[rejected]},),
                        chosen_id=f"c{p}-{chosen}",
                        rejected_id=f"c{p}-{rejected}",
                        origin="simulated",
                    )
                )
    return pairs


def bradley_terry(**changes: object) -> BradleyTerrySpec:
    trainer = {"learning_rate": 3e-3, "num_train_epochs": 1, "per_device_train_batch_size": 2}
    values = {"kind": "bradley_terry", "lora": {"r": 4, "alpha": 8}, "trainer": trainer, **changes}
    spec = parse_spec(values)
    assert isinstance(spec, BradleyTerrySpec)
    return spec


def critic_spec(**changes: object) -> CriticSpec:
    trainer = {"learning_rate": 3e-3, "num_train_epochs": 1, "per_device_train_batch_size": 2, "save_steps": 2}
    values = {"kind": "critic", "lora": {"r": 4, "alpha": 8}, "max_critique": 8, "sft": trainer, "trainer": trainer}
    spec = parse_spec({**values, **changes})
    assert isinstance(spec, CriticSpec)
    return spec


def critiques_of(pairs: Sequence[PreferencePair]) -> list[CritiquedCompletion]:
    """A critique of the worse side of each pair."""
    return [
        CritiquedCompletion(
            id=f"critique-{pair.id}", prompt_id=pair.prompt_id, group=pair.group, prompt=pair.prompt,
            completion=pair.rejected, completion_id=pair.rejected_id, critique="too much noise", origin="human",
            annotator="ann",
        )
        for pair in pairs
    ]  # fmt: skip


def encoder(folder: Path, tokenizer: Any) -> Any:
    """A tiny BERT with one output and random weights, which `folder` then holds."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **sizes)
    model = BertForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.bert.embeddings.token_type_embeddings.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
