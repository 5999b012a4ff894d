"""Supervised fine-tuning on answers to imitate (Ouyang et al. 2022, arXiv 2203.02155), through TRL's SFTTrainer.

Consumes `Demonstration`s: people's edits and the reference answers of prompts; as `rejection_sampling`, the best of
each prompt's candidates. Only the tokens of the answer are trained. There is no reference policy: nothing but a small
learning rate and few epochs holds the new one near the old. An answer that was cut off at the length limit is trained
without an end token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from rlhf_loop.models import load_policy
from rlhf_loop.recipe import Policy
from rlhf_loop.records import Demonstration
from rlhf_loop.updates.adapters import adapter_folder, lora_config, put_adapter, refuse_adapter
from rlhf_loop.updates.train_and_save import Training, as_asked, before_last, train_and_save


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
    dataset = Dataset.from_list([_row(row, policy) for row in rows])
    adapter = adapter_folder(start)
    if lora is None:
        refuse_adapter(adapter)
        model, tokenizer = load_policy(start, policy, trainable=True, in_training=True)
        trainer = _UnfinishedAware(model, arguments, train_dataset=dataset, processing_class=tokenizer)
    else:
        model, tokenizer = load_policy(policy.model, policy, in_training=True)
        config = lora_config(lora)
        trainer = _UnfinishedAware(
            model, arguments, train_dataset=dataset, processing_class=tokenizer, peft_config=config
        )
        if adapter is not None:
            put_adapter(trainer.model, adapter)
    counts = {
        "demonstrations": len(rows),
        "dropped_prompt_too_long": len(rows) - trainer.prepared,
        "truncated": trainer.truncated,
    }
    return trainer, tokenizer, counts


class _UnfinishedAware(SFTTrainer):  # type: ignore[misc]
    """Takes the end token off answers that never ended, and counts those that the length limit cuts."""

    def _prepare_dataset(
        self, dataset: Dataset, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Dataset:
        options = (processing_class, args)
        dataset = super()._prepare_dataset(dataset, *options, False, formatting_func, dataset_name)
        self.prepared = len(dataset)
        self.truncated = sum(len(ids) == args.max_length for ids in dataset["input_ids"])
        end = processing_class.eos_token_id

        def cut(row: dict[str, Any]) -> dict[str, Any]:
            if row["finished"]:
                return {"input_ids": row["input_ids"], "labels": row["labels"]}
            prompt = row["labels"].count(-100)
            length = prompt + len(before_last(end, row["labels"][prompt:]))
            return {"input_ids": row["input_ids"][:length], "labels": row["labels"][:length]}

        dataset = dataset.map(cut)
        if packing:
            return super()._prepare_dataset(dataset, *options, True, formatting_func, dataset_name)
        return dataset


def _row(row: Demonstration, policy: Policy) -> dict[str, Any]:
    return {"prompt": as_asked(row.prompt, policy), "completion": list(row.completion), "finished": row.finished}
