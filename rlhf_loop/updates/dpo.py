"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) and its variants, through TRL's DPOTrainer.

Consumes `PreferencePair`s. All of TRL's losses by their names in `trainer: {loss_type: ...}`.

Two things TRL would do otherwise:
- The reference is what the recipe says. TRL takes the policy it is handed as the reference, which from round 2 on is
  the previous policy. See `adapters.build_trainer`.
- The tokens that are trained are those that the policy read and wrote (`rlhf_loop/models/turns.py`). TRL would apply
  the chat template to the whole conversation, which ends answers that were cut off at the length limit, and so teaches
  the policy to stop in the middle of a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from rlhf_loop.models.turns import Turns
from rlhf_loop.recipe import Policy
from rlhf_loop.records import PreferencePair
from rlhf_loop.updates.adapters import build_trainer
from rlhf_loop.updates.log_probs import PairLogProbs
from rlhf_loop.updates.terms.trainer import WithTerms
from rlhf_loop.updates.train_and_save import Training, as_asked, that_fit, train_and_save


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
    limit = arguments.max_length

    cut_at_the_end = arguments.truncation_mode == "keep_start"  # else the answers' ends are kept

    def make(model: Any, reference: Any, *, processing_class: Any, **more: Any) -> DPOTrainer:
        turns = Turns(processing_class, model)
        tokenised = [_row(pair, training.policy, turns) for pair in rows]
        turns.say_unfit(2 * len(rows))
        dataset = Dataset.from_list(that_fit(tokenised, limit if cut_at_the_end else None, "pairs"))
        return _Tokenised(
            model, reference, args=arguments, train_dataset=dataset, processing_class=processing_class, **more
        )

    trainer, tokenizer = build_trainer(make, training.start, training.reference, training.policy, training.settings)
    dropped = len(rows) - len(trainer.train_dataset)
    over_long = 0
    if limit is not None:
        over_long = sum(
            len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) > limit
            for row in trainer.train_dataset
        )
    return trainer, tokenizer, {"pairs": len(rows), "dropped_prompt_too_long": dropped, "truncated": over_long}


class _Tokenised(WithTerms, PairLogProbs, DPOTrainer):  # type: ignore[misc]
    """Takes token ids, where TRL would apply the chat template to texts."""

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        return dataset


def _row(pair: PreferencePair, policy: Policy, turns: Turns) -> dict[str, Any]:
    """Token ids of a pair. Where the two answers are read after different prompts (in a template's own form), the
    prompt is what both begin with."""
    prompt = as_asked(pair.prompt, policy)
    chosen = turns.tokens(
        prompt, pair.chosen, finished=pair.chosen_finished, token_ids=pair.chosen_token_ids,
        by_policy=pair.chosen_by_policy,
    )  # fmt: skip
    rejected = turns.tokens(
        prompt, pair.rejected, finished=pair.rejected_finished, token_ids=pair.rejected_token_ids,
        by_policy=pair.rejected_by_policy,
    )  # fmt: skip
    shared = min(len(chosen.prompt), len(rejected.prompt))
    return {
        "prompt_ids": chosen.prompt[:shared],
        "chosen_ids": chosen.prompt[shared:] + chosen.answer,
        "rejected_ids": rejected.prompt[shared:] + rejected.answer,
    }
