"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306) through TRL's KTOTrainer.

Consumes `LabelledCompletion`s: answers that were called good or bad, each by itself. As in `dpo.py`, the reference is
what the recipe says, and an answer that was cut off at the length limit is trained without an end token.

Where the recipe's trainer settings give neither `desirable_weight` nor `undesirable_weight`, the rarer label gets the
weight at which both count alike (the lower end of what the paper recommends, equation 8); TRL would only warn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from rlhf_loop.recipe import Policy
from rlhf_loop.records import LabelledCompletion
from rlhf_loop.updates.adapters import build_trainer
from rlhf_loop.updates.train_and_save import Training, as_asked, before_last, train_and_save


def update(
    rows: Sequence[LabelledCompletion],
    training: Training,
) -> dict[str, Any]:
    """See `rlhf_loop.updates.update_policy`."""
    with training.begun():
        given = {"desirable_weight", "undesirable_weight"} & set(training.settings.trainer_settings())
        arguments = training.arguments(KTOConfig, {} if given else balanced_weights(rows))
        trainer, tokenizer, counts = _trainer(rows, training, arguments)
        trained = train_and_save(trainer, tokenizer, training)
    return {"algorithm": "kto", **trained, **counts}


def balanced_weights(rows: Sequence[LabelledCompletion]) -> dict[str, float]:
    """`{desirable_weight, undesirable_weight}` with weight times number equal for both labels, the smaller weight 1."""
    up = sum(row.label for row in rows)
    down = len(rows) - up
    if not up or not down:
        return {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    return {"desirable_weight": max(1.0, down / up), "undesirable_weight": max(1.0, up / down)}


def _trainer(
    rows: Sequence[LabelledCompletion],
    training: Training,
    arguments: KTOConfig,
) -> tuple[KTOTrainer, Any, dict[str, Any]]:
    mixed = list(rows)
    random.Random(arguments.seed).shuffle(mixed)  # the trainer takes them in order, and a batch is to hold both labels
    dataset = Dataset.from_list([_row(row, training.policy) for row in mixed])
    make = partial(_UnfinishedAware, args=arguments, train_dataset=dataset)
    trainer, tokenizer = build_trainer(make, training.start, training.reference, training.policy, training.settings)
    limit = arguments.max_length
    lengths = [len(row["prompt_ids"]) + len(row["completion_ids"]) for row in trainer.train_dataset]
    up = sum(row.label for row in rows)
    counts = {
        "desirable": up,
        "undesirable": len(rows) - up,
        "desirable_weight": arguments.desirable_weight,
        "undesirable_weight": arguments.undesirable_weight,
        "dropped_prompt_too_long": len(rows) - len(trainer.train_dataset),
        "truncated": sum(length > limit for length in lengths) if limit is not None else 0,
    }
    return trainer, tokenizer, counts


class _UnfinishedAware(KTOTrainer):  # type: ignore[misc]
    """Takes the end token off answers that never ended, before they also stand as answers to one another's prompts."""

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        end = processing_class.eos_token_id

        def cut(row: dict[str, Any]) -> dict[str, Any]:
            ids = row["completion_ids"]
            return {"completion_ids": ids if row["finished"] else before_last(end, ids)}

        def mismatch(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
            ids = rows["completion_ids"]
            return {"KL_completion_ids": [ids[-1], *ids[:-1]]}

        dataset = dataset.map(cut)
        if self.calculate_KL:  # as TRL pairs them: within the batches, which the trainer takes in order
            dataset = dataset.map(mismatch, batched=True, batch_size=args.per_device_train_batch_size)
        return dataset


def _row(row: LabelledCompletion, policy: Policy) -> dict[str, Any]:
    return {
        "prompt": as_asked(row.prompt, policy),
        "completion": list(row.completion),
        "label": row.label,
        "finished": row.finished,
    }
