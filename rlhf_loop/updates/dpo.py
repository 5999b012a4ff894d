"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) and its variants, through TRL's DPOTrainer.

Consumes `PreferencePair`s. All of TRL's losses by their names in `trainer: {loss_type: ...}`.

Two things TRL would do otherwise:
- The reference is what the recipe says. TRL takes the policy it is handed as the reference, which from round 2 on is
  the previous policy. See `adapters.build_trainer`.
- An answer that was cut off at the length limit is trained without an end token. TRL's chat template would add one
  and so teach the policy to stop in the middle of a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from rlhf_loop.recipe import Policy
from rlhf_loop.records import PreferencePair
from rlhf_loop.updates.adapters import build_trainer
from rlhf_loop.updates.train_and_save import Training, as_asked, before_last, train_and_save


def update(
    rows: Sequence[PreferencePair],
    training: Training,
) -> dict[str, Any]:
    """See `rlhf_loop.updates.update_policy`."""
    with training.begun():
        arguments = training.arguments(DPOConfig)
        trainer, tokenizer, counts = _trainer(rows, training, arguments)
        trained = train_and_save(trainer, tokenizer, training)
    return {"algorithm": "dpo", **trained, **counts}


def _trainer(
    rows: Sequence[PreferencePair],
    training: Training,
    arguments: DPOConfig,
) -> tuple[DPOTrainer, Any, dict[str, int]]:
    dataset = Dataset.from_list([_row(pair, training.policy) for pair in rows])
    make = partial(_UnfinishedAware, args=arguments, train_dataset=dataset)
    trainer, tokenizer = build_trainer(make, training.start, training.reference, training.policy, training.settings)
    dropped = len(rows) - len(trainer.train_dataset)
    limit = arguments.max_length
    over_long = 0
    if limit is not None:
        over_long = sum(
            len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) > limit
            for row in trainer.train_dataset
        )
    return trainer, tokenizer, {"pairs": len(rows), "dropped_prompt_too_long": dropped, "truncated": over_long}


class _UnfinishedAware(DPOTrainer):  # type: ignore[misc]
    """Takes the end token off answers that never ended."""

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        end = processing_class.eos_token_id

        def cut(row: dict[str, Any]) -> dict[str, Any]:
            return {
                f"{side}_ids": row[f"{side}_ids"] if row[f"{side}_finished"] else before_last(end, row[f"{side}_ids"])
                for side in ("chosen", "rejected")
            }

        return dataset.map(cut)


def _row(pair: PreferencePair, policy: Policy) -> dict[str, Any]:
    return {
        "prompt": as_asked(pair.prompt, policy),
        "chosen": list(pair.chosen),
        "rejected": list(pair.rejected),
        "chosen_finished": pair.chosen_finished,
        "rejected_finished": pair.rejected_finished,
    }
