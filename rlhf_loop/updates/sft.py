"""Supervised fine-tuning on answers to imitate (Ouyang et al. 2022, arXiv 2203.02155), through TRL's SFTTrainer.

Consumes `Demonstration`s: people's edits and the reference answers of prompts; as `rejection_sampling`, the best of
each prompt's candidates. Only the tokens of the answer are trained. There is no reference policy: nothing but a small
learning rate and few epochs holds the new one near the old. An answer that was cut off at the length limit is trained
without an end token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from rlhf_loop.models import load_policy, tune_cpu_memory
from rlhf_loop.recipe import Policy, Update
from rlhf_loop.records import Demonstration
from rlhf_loop.training import quiet, training_arguments
from rlhf_loop.updates.adapters import adapter_folder, lora_config, put_adapter, refuse_adapter
from rlhf_loop.updates.train_and_save import as_asked, before_last, train_and_save


def update(
    rows: Sequence[Demonstration],
    *,
    start: str | Path,
    reference: str | Path,
    output: Path,
    policy: Policy,
    settings: Update,
    seed: int,
    step_offset: int,
    report_to: Sequence[str],
    run_name: str,
    tracking: Path | None,
    progress: Callable[[int, int, str], None] | None,
) -> dict[str, Any]:
    """See `rlhf_loop.updates.update_policy`; `reference` is not used."""
    tune_cpu_memory()
    output.mkdir(parents=True, exist_ok=True)
    with quiet():
        values = {"run_name": run_name, "completion_only_loss": True, **settings.trainer_settings()}
        arguments = training_arguments(SFTConfig, output, seed, values, policy.dtype)
        torch.manual_seed(seed)
        trainer, tokenizer, counts = _trainer(rows, start, policy, settings, arguments)
        trained = train_and_save(
            trainer,
            tokenizer,
            output,
            policy=policy,
            step_offset=step_offset,
            report_to=report_to,
            tracking=tracking,
            progress=progress,
        )
    return {"algorithm": settings.algorithm, **trained, **counts}


def _trainer(
    rows: Sequence[Demonstration], start: str | Path, policy: Policy, settings: Update, arguments: SFTConfig
) -> tuple[SFTTrainer, Any, dict[str, int]]:
    dataset = Dataset.from_list([_row(row, policy) for row in rows])
    adapter = adapter_folder(start)
    if settings.lora is None:
        refuse_adapter(adapter)
        model, tokenizer = load_policy(start, policy, trainable=True)
        trainer = _UnfinishedAware(model, arguments, train_dataset=dataset, processing_class=tokenizer)
    else:
        model, tokenizer = load_policy(policy.model, policy)
        config = lora_config(settings.lora)
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
