"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306) through TRL's KTOTrainer.

Consumes `LabelledCompletion`s: answers that were called good or bad, each by itself. As in `dpo.py`, the reference is
what the recipe says, and the tokens that are trained are those that the policy read and wrote.

Where the recipe's trainer settings give neither `desirable_weight` nor `undesirable_weight`, the rarer label gets the
weight at which both count alike (the lower end of what the paper recommends, equation 8); TRL would only warn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from rlhf_loop.models.distributed import world_size
from rlhf_loop.models.turns import Turns
from rlhf_loop.recipe import Policy
from rlhf_loop.records import LabelledCompletion
from rlhf_loop.updates.adapters import build_trainer
from rlhf_loop.updates.log_probs import LogProbs
from rlhf_loop.updates.terms.trainer import WithTerms
from rlhf_loop.updates.train_and_save import Training, that_fit, tokens_of, train_and_save


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
    limit = arguments.max_length

    def make(model: Any, reference: Any, *, processing_class: Any, **more: Any) -> KTOTrainer:
        turns = Turns(processing_class, model)
        tokenised = [_row(row, training.policy, turns) for row in mixed]
        turns.say_unfit(len(rows))
        dataset = Dataset.from_list(that_fit(tokenised, limit, "labels"))
        return _Tokenised(
            model, reference, args=arguments, train_dataset=dataset, processing_class=processing_class, **more
        )

    trainer, tokenizer = build_trainer(make, training.start, training.reference, training.policy, training.settings)
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


class _Tokenised(WithTerms, LogProbs, KTOTrainer):  # type: ignore[misc]
    """Takes token ids, where TRL would apply the chat template to texts."""

    reference_columns = ("ref_logps", "ref_KL_logps")

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        def mismatch(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
            ids = rows["completion_ids"]
            return {"KL_completion_ids": [ids[-1], *ids[:-1]]}

        if self.calculate_KL:  # as TRL pairs them, within the batches, which the trainer takes in order; of all ranks
            dataset = dataset.map(mismatch, batched=True, batch_size=args.per_device_train_batch_size * world_size())
        return dataset


def _row(row: LabelledCompletion, policy: Policy, turns: Turns) -> dict[str, Any]:
    tokens = tokens_of(row, policy, turns)
    return {"prompt_ids": tokens.prompt, "completion_ids": tokens.answer, "label": row.label}
