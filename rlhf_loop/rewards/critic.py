"""Reward models that write a critique of an answer and score it having read that (CLoud, Ankner et al. 2024, arXiv
2408.11791).

Three stages: the model learns to write what people wrote; it writes a critique of every answer, the likeliest word by
word; and it learns the reward on these critiques of its *own*, since it will have no others when it scores:

    loss = -log sigmoid(r(chosen) - r(rejected) - margin)  +  lm_weight * cross-entropy of the critiques

each term a mean, over all pairs and over the tokens of critiques of those answers that people criticised. The reward r
is read at the last token of the critique by `tanh` between two linear layers. People mostly criticise the worse answer,
so the second term has fewer answers than the first.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from transformers import TrainerCallback, TrainingArguments

from rlhf_loop.errors import UserError
from rlhf_loop.files import read_json, write_json
from rlhf_loop.files.damage import reading
from rlhf_loop.models.distributed import barrier, is_main, said_by_main, sharded_map
from rlhf_loop.models.memory import tune_cpu_memory
from rlhf_loop.models.quiet import quiet
from rlhf_loop.models.training import mean_loss, trained_parameters, training_arguments
from rlhf_loop.models.turns import Turns, with_system_prompt
from rlhf_loop.models.weights import save_weights
from rlhf_loop.progress import Progress
from rlhf_loop.recipe import Policy
from rlhf_loop.records import CritiquedCompletion, Message, PreferencePair
from rlhf_loop.reward_spec import CriticSpec
from rlhf_loop.rewards.base import Reward, Said
from rlhf_loop.rewards.critic_model import load_critic, new_critic, put_adapter
from rlhf_loop.rewards.critic_trainer import CriticTrainer, read_all, train_stage
from rlhf_loop.rewards.elements import elements
from rlhf_loop.rewards.scoring import ends
from rlhf_loop.rewards.texts import Text, make_text, texts_of_pairs

logger = logging.getLogger(__name__)

Writer = Callable[[Any, Any, Sequence[Sequence[int]], int], list[list[int]]]
"""(model, tokenizer, prompts as token ids, most tokens) -> what the model writes after each, the likeliest word by
word, with the token that ended it: `rlhf_loop.generation.write_greedily`."""

CUT_OFF = "The answer was cut off at its end."
"""What the critic is told before the question, of an answer that did not end by itself."""


def train(
    spec: CriticSpec,
    pairs: Sequence[PreferencePair],
    output: Path,
    *,
    policy: Policy,
    seed: int,
    critiques: Sequence[CritiquedCompletion],
    writer: Writer | None,
    progress: Progress | None = None,
    extra_callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Trains on `pairs` and what people said of answers, writes adapter, head and tokenizer to `output`, and gives
    counts.

    Each stage is kept in `output/making` until the end, with whole checkpoints every `save_steps`, so an interrupted
    training goes on where it was. Raises `UserError` when there is no critique, no pair is left, or the weights stop
    being finite.
    """
    tune_cpu_memory()
    writer = _given(writer)
    making = output / "making"
    torch.manual_seed(seed)  # the new head and the adapter begin from random numbers
    base = policy.model if spec.base == "policy" else spec.base
    model, tokenizer = new_critic(base, policy, spec.lora)
    asked = Asked(spec, tokenizer, model, policy.system_prompt)
    texts, indices = texts_of_pairs(pairs)
    rows, counts = elements(
        pairs, indices, [asked.about(text) for text in texts], max_length=spec.max_length, max_texts=spec.max_texts
    )
    demonstrations, counts_of_critiques = _demonstrations(spec, critiques, asked)

    def trained(
        model: Any, stage: str, settings: Mapping[str, Any], data: list[dict[str, Any]], weight: float
    ) -> dict[str, Any]:
        # DDP would look for unused parameters in what the model gives, where the rewards are not
        values = {"ddp_find_unused_parameters": False, **settings, "remove_unused_columns": False}
        with quiet():
            arguments = training_arguments(TrainingArguments, making / stage, seed, values, policy.precision)
            trainer = CriticTrainer(model, arguments, data, tokenizer.pad_token_id, lm_weight=weight)
        return train_stage(trainer, output / f"{stage}_log.jsonl", progress, extra_callbacks)

    def save(model: Any, folder: Path) -> None:
        remedy = "lower `learning_rate` in its reward_model.yaml, or set `max_grad_norm: 1.0`"
        with quiet(reports=False):
            save_weights(model, folder, base, remedy=remedy)

    done = making / "sft" / "done.json"
    if said_by_main(done.exists):
        learned = read_json(done)
    else:
        learned = trained(model, "sft", spec.sft, demonstrations, 1.0)
        save(model, making / "sft")
        if is_main():
            write_json(done, learned)  # the last file: it says that the others are whole
        barrier()
    del model  # each stage loads what it needs: what a trainer shared out is of no use to another one
    clear_device_cache(garbage_collection=True)

    def write_own() -> list[list[int]]:
        reader, _ = load_critic(making / "sft", base, policy)
        return sharded_map(lambda share: _write(reader, tokenizer, share, spec, writer), questions)

    used = sorted({number for row in rows for number in row["numbers"]})
    questions = [asked.about(texts[n]) for n in used]
    own = _kept(making / "own.json", write_own)
    written = dict(zip(used, own, strict=True))
    criticised = {_key(row.prompt, row.completion) for row in critiques if row.critique}
    for row in rows:
        numbers = row.pop("numbers")
        row["texts"] = [ids + written[n] for ids, n in zip(row["texts"], numbers, strict=True)]
        row["critiques"] = [
            len(written[n]) if (texts[n].prompt, texts[n].completion) in criticised else 0 for n in numbers
        ]
    model, _ = new_critic(base, policy, spec.lora)
    put_adapter(model, making / "sft")
    torch.manual_seed(seed)  # whatever was made before is no part of it
    joint = trained(model, "joint", spec.trainer, rows, spec.lm_weight)
    save(model, output)
    if is_main():
        tokenizer.save_pretrained(str(output))
        shutil.rmtree(making)
    return {
        **counts,
        **counts_of_critiques,
        "texts_criticised": sum((texts[n].prompt, texts[n].completion) in criticised for n in used),
        "critiques_written": len(used),
        "critiques_distinct": len(set(map(tuple, own))),
        "critique_tokens": round(sum(map(len, own)) / len(own), 1),
        "sft_steps": learned["steps"],
        "sft_loss": mean_loss(output / "sft_log.jsonl"),
        "steps": joint["steps"],
        "train_loss": mean_loss(output / "joint_log.jsonl"),
        "trained_parameters": trained_parameters(model),
    }


def load(folder: Path, spec: CriticSpec, *, id: str, policy: Policy, writer: Writer | None) -> CriticReward:
    """The critic that `train` wrote to `folder`; raises `UserError` when it holds no weights."""
    if not (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} holds no weights: it says how to train a reward model; train it first")
    model, tokenizer = load_critic(folder, policy.model if spec.base == "policy" else spec.base, policy)
    return CriticReward(model, tokenizer, spec, id=id, name=folder.name, policy=policy, writer=_given(writer))


class CriticReward(Reward):
    """A trained critic; equal texts are criticised and scored once."""

    def __init__(
        self, model: Any, tokenizer: Any, spec: CriticSpec, *, id: str, name: str, policy: Policy, writer: Writer
    ):
        super().__init__(id, name)
        self.model = model
        self.tokenizer = tokenizer
        self.spec = spec
        self.writer = writer
        self.asked = Asked(spec, tokenizer, model, policy.system_prompt)

    def values(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> list[float | None]:
        """The reward at the end of what the critic writes of each text."""
        return [said.value for said in self.says(texts, columns)]

    def says(self, texts: Sequence[Text], columns: Mapping[str, Sequence[Any]]) -> list[Said]:
        """The same, with the critiques."""
        distinct = list(dict.fromkeys(texts))
        written = self.write(distinct)
        values = self.having_read(distinct, written)
        said = {
            text: Said(value=value, critique=self.asked.turns.text(ids).strip())
            for text, value, ids in zip(distinct, values, written, strict=True)
        }
        return [said[text] for text in texts]

    def write(self, texts: Sequence[Text]) -> list[list[int]]:
        """Token ids of a critique of each text."""
        return _write(self.model, self.tokenizer, self._read(texts), self.spec, self.writer)

    def having_read(self, texts: Sequence[Text], critiques: Sequence[Sequence[int]]) -> list[float]:
        """The reward of each text, at the end of the critique that stands beside it."""
        rows = [[*ids, *critique] for ids, critique in zip(self._read(texts), critiques, strict=True)]
        values: list[float] = read_all(self.model, rows, self.tokenizer.pad_token_id)
        return values

    def is_end(self, token: int) -> bool:
        """Whether it ends a turn in its tokenizer, which is taken to be the policy's."""
        return self.asked.turns.ended([token])

    def _read(self, texts: Sequence[Text]) -> list[list[int]]:
        return ends([self.asked.about(text) for text in texts], self.spec.max_length)


class Asked:
    """How a critic is asked, and what it answers, as token ids."""

    def __init__(self, spec: CriticSpec, tokenizer: Any, model: Any, system_prompt: str | None):
        self.spec = spec
        self.turns = Turns(tokenizer, model)
        self.system_prompt = system_prompt

    def about(self, text: Text) -> list[int]:
        """The conversation with the answer and the question, up to where the critique begins."""
        return self.turns.prompt(self._conversation(text))

    def critique(self, text: Text, critique: str) -> list[int]:
        """A critique by a person where the critic would write its own; cut off after `max_critique` tokens."""
        said = [Message(role="assistant", content=critique)]
        tokens = self.turns.tokens(self._conversation(text), said, finished=True)
        return list(tokens.answer[: self.spec.max_critique])

    def empty(self) -> list[int]:
        """The critique that says nothing."""
        return [] if self.turns.end is None else [self.turns.end]

    def _conversation(self, text: Text) -> list[Message]:
        question = self.spec.question if text.finished else f"{CUT_OFF} {self.spec.question}"
        return [
            *with_system_prompt(text.messages(), self.system_prompt),
            Message(role="assistant", content=text.completion),
            Message(role="user", content=question),
        ]


def _demonstrations(
    spec: CriticSpec, critiques: Sequence[CritiquedCompletion], asked: Asked
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """A row for each critique of a person, as `elements` makes them of pairs, and counts of what is left out."""
    rows, too_long, cut = [], 0, 0
    said = [row for row in critiques if row.critique]
    for row in said:
        text = make_text([*row.prompt, *row.completion[:-1]], row.completion[-1]["content"], row.finished)
        ids, critique = asked.about(text), asked.critique(text, row.critique)
        if len(ids) > spec.max_length:
            too_long += 1
            continue
        cut += not asked.turns.ended(critique)
        rows.append(
            {"texts": [ids + critique], "critiques": [len(critique)], "chosen": [], "rejected": [], "margin": []}
        )
    if not rows:
        why = (
            f"all {len(said)} are of answers longer than max_length, {spec.max_length} tokens"
            if said
            else "there are none"
        )
        raise UserError(
            f"a critic learns to write critiques from people's, and {why}. Collect some (on the annotation page, by "
            "`POST /v1/feedback`, or import feedback with comments), let a simulated annotator give them "
            "(`feedback.annotator.critiques`), or use reward_models/bradley_terry, which needs none"
        )
    if too_long:
        logger.warning(
            "%d of %d critiques are of answers over %d tokens and left out", too_long, len(said), spec.max_length
        )
    return rows, {"critiques": len(said), "critiques_dropped_too_long": too_long, "critiques_cut_off": cut}


def _write(
    model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], spec: CriticSpec, writer: Writer
) -> list[list[int]]:
    """What the critic writes after each row."""
    return writer(model, tokenizer, rows, spec.max_critique) if rows else []


def _kept(path: Path, make: Callable[[], list[list[int]]]) -> list[list[int]]:
    """What `path` holds, or what `make` gives, which is then kept there."""
    if said_by_main(path.exists):
        with reading(path):
            kept: list[list[int]] = read_json(path)["critiques"]
        return kept
    made = make()
    if is_main():
        write_json(path, {"critiques": made})
    barrier()
    return made


def _key(prompt: Sequence[Message], completion: Sequence[Message]) -> tuple[tuple[tuple[str, str], ...], str]:
    text = make_text([*prompt, *completion[:-1]], completion[-1]["content"])
    return text.prompt, text.completion


def _given(writer: Writer | None) -> Writer:
    if writer is None:
        raise UserError(
            "a critic writes before it scores: give `writer=write_greedily` of `rlhf_loop.generation` when one is "
            "trained or loaded in Python"
        )
    return writer
