"""Pairs that a reward model can learn from, and a small one to learn from them."""

from __future__ import annotations

import random

from rlhf_loop.records import PreferencePair
from rlhf_loop.reward_spec import BradleyTerrySpec, parse_spec

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
