"""Supervised fine-tuning on answers to imitate (Ouyang et al. 2022, arXiv 2203.02155), through TRL's SFTTrainer.

Consumes `Demonstration`s: people's edits and the reference answers of prompts; as `rejection_sampling`, the best of
each prompt's candidates. Only the tokens of the answer are trained. There is no reference policy: nothing but a small
learning rate and few epochs holds the new one near the old. What a policy wrote is trained in the tokens that it
sampled, what a person wrote in the chat template's own form (`rlhf_loop/models/turns.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from rlhf_loop.errors import UserError
from rlhf_loop.models.loading import adapter_folder, load_policy
from rlhf_loop.models.quantised import adapters_in_float32
from rlhf_loop.models.turns import Turns
from rlhf_loop.recipe import Policy
from rlhf_loop.records import Demonstration
from rlhf_loop.updates.adapters import load_base, lora_config, put_adapter, refuse_adapter
from rlhf_loop.updates.cpu_head import add_cpu_head
from rlhf_loop.updates.terms.trainer import WithTerms
from rlhf_loop.updates.train_and_save import Training, none_fit, tokens_of, train_and_save


def update(
    rows: Sequence[Demonstration],
    training: Training,
) -> dict[str, Any]:
    """See `rlhf_loop.updates.update_policy`; the reference is not used."""
    with training.begun():
        arguments = training.arguments(SFTConfig, {"completion_only_loss": True})
        trainer, tokenizer, counts = _trainer(rows, training, arguments)
        trained = train_and_save(trainer, tokenizer, training)
    return {"algorithm": training.settings.algorithm, **trained, **counts}


def _trainer(
    rows: Sequence[Demonstration], training: Training, arguments: SFTConfig
) -> tuple[SFTTrainer, Any, dict[str, int]]:
    start, policy, lora = training.start, training.policy, training.settings.lora
    for name in ("assistant_only_loss", "chat_template_path"):
        if getattr(arguments, name):
            raise UserError(
                f"update.trainer.{name}: answers are trained in the tokens that the policy reads and writes, of which "
                "the answer's alone count; leave it out"
            )
    adapter = adapter_folder(start)
    if lora is None:
        refuse_adapter(adapter)
        model, tokenizer = load_policy(start, policy, trainable=True, in_training=True)
        config = None
    else:
        model, tokenizer = load_base(policy)
        config = lora_config(lora)
    turns = Turns(tokenizer, model)
    dataset = Dataset.from_list([_row(row, policy, turns) for row in rows])
    turns.say_unfit(len(rows))
    trainer = _Counting(model, arguments, train_dataset=dataset, processing_class=tokenizer, peft_config=config)
    if trainer.accelerator.device.type == "cpu":
        add_cpu_head(trainer.model, outputs=("log_probs", "entropy", "is_top1"))
    if policy.quantization is not None:
        adapters_in_float32(trainer.model)
    if adapter is not None:
        put_adapter(trainer.model, adapter)
    counts = {
        "demonstrations": len(rows),
        "dropped_prompt_too_long": len(rows) - trainer.prepared,
        "truncated": trainer.truncated,
    }
    return trainer, tokenizer, counts


class _Counting(WithTerms, SFTTrainer):  # type: ignore[misc]
    """Counts what the length limit cuts and takes away."""

    def _prepare_dataset(
        self, dataset: Dataset, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Dataset:
        options = (processing_class, args)
        lengths = [len(ids) for ids in dataset["input_ids"]]
        prompts = [mask.count(0) for mask in dataset["completion_mask"]]
        dataset = super()._prepare_dataset(dataset, *options, False, formatting_func, dataset_name)
        self.prepared = len(dataset)
        self.truncated = sum(args.max_length is not None and length > args.max_length for length in lengths)
        if not self.prepared:
            raise none_fit(f"{len(lengths)} demonstrations", min(prompts), args.max_length)
        if packing:
            return super()._prepare_dataset(dataset, *options, True, formatting_func, dataset_name)
        return dataset


def _row(row: Demonstration, policy: Policy, turns: Turns) -> dict[str, Any]:
    tokens = tokens_of(row, policy, turns)
    return {
        "input_ids": tokens.prompt + tokens.answer,
        "completion_mask": [0] * len(tokens.prompt) + [1] * len(tokens.answer),
    }
