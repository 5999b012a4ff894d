"""Rows for each kind of update, and the update of them on a tiny policy."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_loop.recipe import Critiques, Generation, Lora, Policy, Update
from rlhf_loop.records import CritiquedCompletion, Demonstration, LabelledCompletion, Message, PreferencePair, Prompt
from rlhf_loop.updates import update_policy

WORDS = ["red", "green", "blue", "seven", "eight", "nine", "apple", "pear", "plum", "cat", "dog", "cow"]


def _prompt(number: int) -> tuple[Message, ...]:
    return (Message(role="user", content=f"Say {WORDS[number % 12]} {number}"),)


def pair(number: int, chosen_finished: bool = True) -> PreferencePair:
    return PreferencePair(
        id=str(number),
        prompt_id=str(number),
        group=str(number),
        prompt=_prompt(number),
        chosen=(Message(role="assistant", content=f"{WORDS[number % 12]} it is"),),
        rejected=(Message(role="assistant", content=f"no {WORDS[(number + 5) % 12]}"),),
        chosen_id=f"a{number}",
        rejected_id=f"b{number}",
        origin="simulated",
        chosen_finished=chosen_finished,
    )


def labelled(number: int, finished: bool = True) -> LabelledCompletion:
    label = number % 4 != 0
    return LabelledCompletion(
        id=str(number),
        prompt_id=str(number),
        group=str(number),
        prompt=_prompt(number),
        completion=(Message(role="assistant", content=f"{WORDS[number % 12]} it is" if label else "no"),),
        label=label,
        finished=finished,
        completion_id=f"c{number}",
        origin="simulated",
    )


def demonstration(number: int, finished: bool = True) -> Demonstration:
    return Demonstration(
        id=str(number),
        prompt_id=str(number),
        group=str(number),
        prompt=_prompt(number),
        completion=(Message(role="assistant", content=f"{WORDS[number % 12]} it is"),),
        finished=finished,
        completion_id=f"a{number}",
        origin="edit",
    )


def critiqued(number: int, **more: Any) -> CritiquedCompletion:
    """An answer that was complained of in words; every third one was called good."""
    fields: dict[str, Any] = {
        "critique": f"It should say {WORDS[number % 12]}, and say it as a whole sentence.",
        "label": number % 3 == 2,
        **more,
    }
    return CritiquedCompletion(
        id=str(number),
        prompt_id=str(number),
        group=str(number),
        prompt=_prompt(number),
        completion=(Message(role="assistant", content=f"no {WORDS[(number + 5) % 12]} here, none"),),
        completion_id=f"c{number}",
        origin="simulated",
        annotator="a",
        **fields,
    )


CRITIQUED = [critiqued(number) for number in range(12)]
PAIRS = [pair(number) for number in range(8)]
LABELLED = [labelled(number) for number in range(8)]  # six good, two bad
DEMONSTRATIONS = [demonstration(number) for number in range(8)]
PROMPTS = [
    Prompt(id=str(n), group=str(n), messages=(Message(role="user", content=f"Say {n}"),), reference=None, tags=())
    for n in range(8)
]
ROWS: dict[str, Sequence[Any]] = {
    "dpo": PAIRS,
    "kto": LABELLED,
    "sft": DEMONSTRATIONS,
    "rejection_sampling": DEMONSTRATIONS,
    "ppo": PROMPTS,
    "grpo": PROMPTS,
    "rloo": PROMPTS,
}
SAMPLING = Generation(max_new_tokens=8, samples_per_prompt=2)


def length(prompts: Any, completions: Any, **_: Any) -> list[float]:
    """A reward that any policy can raise: the number of characters."""
    return [len(turns[-1]["content"]) / 10 for turns in completions]


def policy(base: Path, **settings: Any) -> Policy:
    return Policy(model=str(base), **{"dtype": "float32", **settings})


def settings(algorithm: str, lora: bool = True, **trainer: Any) -> Update:
    values: dict[str, Any] = {"learning_rate": 1e-2, "per_device_train_batch_size": 4}
    if ROWS[algorithm] is PROMPTS:
        values |= {"max_steps": 4}
    else:
        values |= {"num_train_epochs": 2}
    if algorithm in ("grpo", "rloo"):
        values |= {"num_generations": 2, "beta": 0.05}
    return Update(algorithm=algorithm, lora=Lora(r=4, alpha=8) if lora else None, trainer={**values, **trainer})


def train(
    base: Path,
    output: Path,
    update: Update,
    *,
    start: Path | None = None,
    reference: Path | None = None,
    rows: Sequence[Any] | None = None,
    dtype: str = "float32",
    quantization: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """`update_policy` with what the algorithm needs; start and reference are the base unless they are named."""
    online = ROWS[update.algorithm] is PROMPTS
    given = {"reward": length, "generation": SAMPLING} if online else {}
    return update_policy(
        ROWS[update.algorithm] if rows is None else rows,
        start=start or base,
        reference=reference or base,
        output=output,
        policy=policy(base, dtype=dtype, quantization=quantization),
        settings=update,
        seed=1,
        **{**given, **more},
    )


def with_critiques(methods: dict[str, Any], rows: Sequence[CritiquedCompletion] = CRITIQUED) -> dict[str, Any]:
    """Arguments of `train` that switch on losses of critiques."""
    return {"critiques": rows, "critique_settings": Critiques.model_validate(methods)}


LOSSES = {
    "exo_pair": {"label_smoothing": 1e-3},
    "robust": {"label_smoothing": 0.1},
    "sft": {},
}
"""Losses of DPO that need a setting of their own."""


def losses() -> list[str]:
    """Names of the losses in the installed TRL, as the documentation of its config lists them."""
    from trl import DPOConfig

    listed = re.search(r"Possible values are: (`'sigmoid'`.*?)\. If multiple", inspect.getdoc(DPOConfig), re.DOTALL)
    return re.findall(r"`'(\w+)'`", listed.group(1))


def answer_log_probs(model: Any, tokenizer: Any, rows: Iterable[tuple[Sequence[Message], Sequence[Message]]]) -> Tensor:
    """Sum of log-probabilities of each (prompt, answer)'s answer, computed one by one: (rows,)."""
    sums = []
    for prompt, answer in rows:
        asked = tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=False)
        both = tokenizer.apply_chat_template([*prompt, *answer], return_dict=False)
        both = both[: -len(tokenizer.encode("\n"))]  # which the template puts after the end of a turn
        ids = torch.tensor([both])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)  # (T - 1, V)
        sums.append(logits.gather(1, ids[0, 1:, None])[len(asked) - 1 :].sum())
    return torch.stack(sums)
