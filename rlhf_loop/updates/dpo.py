"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) and its variants, through TRL's DPOTrainer.

Consumes `PreferencePair`s. All of TRL's losses by their names in `trainer: {loss_type: ...}`.

Two things TRL would do otherwise:
- The reference is what the recipe says. TRL takes the policy it is handed as the reference, which from round 2 on is
  the previous policy. Here the trainer is built on the *reference*, and the start weights are put in afterwards.
- An answer that was cut off at the length limit is trained without an end token. TRL's chat template would add one
  and so teach the policy to stop in the middle of a sentence.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer

from rlhf_loop.checkpoints import last_complete
from rlhf_loop.distributed import is_main
from rlhf_loop.errors import UserError
from rlhf_loop.models import load_policy, save_policy, tune_cpu_memory
from rlhf_loop.recipe import Lora, Policy, Update
from rlhf_loop.records import PreferencePair
from rlhf_loop.training import callbacks, mean_loss, quiet, training_arguments


def update(
    rows: Sequence[PreferencePair],
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
    """See `rlhf_loop.updates.update_policy`."""
    tune_cpu_memory()
    output.mkdir(parents=True, exist_ok=True)
    with quiet():
        arguments = training_arguments(
            DPOConfig, output, seed, {"run_name": run_name, **settings.trainer}, policy.dtype
        )
        torch.manual_seed(seed)
        trainer, tokenizer, counts = _trainer(rows, start, reference, policy, settings, arguments)
        trainer.remove_callback(PrinterCallback)
        for callback in callbacks(output / "train_log.jsonl", report_to, step_offset, progress, tracking):
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=last_complete(output / "checkpoints"))
    if not all(torch.isfinite(p).all() for p in trainer.model.parameters() if p.requires_grad):
        raise UserError(
            "the update ended in weights that are not finite; lower `update.trainer.learning_rate` or set "
            "`update.trainer.max_grad_norm: 1.0`. The last policy is unharmed"
        )
    if is_main():
        model = trainer.accelerator.unwrap_model(trainer.model)
        save_policy(model, tokenizer, output / "policy", policy.model)
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
    return {
        "algorithm": "dpo",
        "steps": int(trainer.state.global_step),
        "train_loss": mean_loss(output / "train_log.jsonl"),
        **counts,
    }


def _trainer(
    rows: Sequence[PreferencePair],
    start: str | Path,
    reference: str | Path,
    policy: Policy,
    settings: Update,
    arguments: DPOConfig,
) -> tuple[DPOTrainer, Any, dict[str, int]]:
    dataset = Dataset.from_list([_row(pair) for pair in rows])
    start_adapter, reference_adapter = _adapter(start), _adapter(reference)
    if settings.lora is None:
        if start_adapter:
            raise UserError(f"the policy to start from, {start}, is an adapter; full fine-tuning needs full weights")
        model, tokenizer = load_policy(start, policy, trainable=True)
        reference_model, _ = load_policy(reference, policy)
        trainer = _UnfinishedAware(model, reference_model, arguments, train_dataset=dataset, processing_class=tokenizer)
    else:
        model, tokenizer = load_policy(policy.model, policy)
        config = _lora_config(settings.lora)
        if reference_adapter is None:  # "adapters disabled" is the base model
            trainer = _UnfinishedAware(
                model, None, arguments, train_dataset=dataset, processing_class=tokenizer, peft_config=config
            )
        else:  # TRL copies the adapter it is handed into a frozen one, which becomes the reference
            peft_model = get_peft_model(model, config)
            _put_adapter(peft_model, reference_adapter)
            trainer = _UnfinishedAware(peft_model, None, arguments, train_dataset=dataset, processing_class=tokenizer)
        if start_adapter is not None:
            _put_adapter(trainer.model, start_adapter)
        elif reference_adapter is not None:
            _reset_adapter(trainer.model)
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
                f"{side}_ids": row[f"{side}_ids"] if row[f"{side}_finished"] else _before_last(end, row[f"{side}_ids"])
                for side in ("chosen", "rejected")
            }

        return dataset.map(cut)


def _row(pair: PreferencePair) -> dict[str, Any]:
    return {
        "prompt": list(pair.prompt),
        "chosen": list(pair.chosen),
        "rejected": list(pair.rejected),
        "chosen_finished": pair.chosen_finished,
        "rejected_finished": pair.rejected_finished,
    }


def _before_last(token: int, ids: list[int]) -> list[int]:
    """`ids` up to the last `token`; all of them when there is none."""
    return ids[: len(ids) - 1 - ids[::-1].index(token)] if token in ids else ids


def _adapter(reference: str | Path) -> Path | None:
    folder = Path(reference)
    return folder if (folder / "adapter_config.json").exists() else None


def _lora_config(lora: Lora) -> LoraConfig:
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )


def _put_adapter(model: PeftModel, folder: Path) -> None:
    misfit = UserError(
        f"the adapter in {folder} does not fit `update.lora` of the recipe; use the rank and target modules that it "
        "was trained with"
    )
    try:
        outcome = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    except RuntimeError:  # torch's word for wrong shapes
        raise misfit from None
    if outcome.unexpected_keys or any("lora_" in n and ".default." in n for n in outcome.missing_keys):
        raise misfit


def _reset_adapter(model: PeftModel) -> None:
    """The trained adapter back to a fresh one, whose product is zero."""
    for name, parameter in model.named_parameters():
        if ".default." in name and "lora_B" in name:
            torch.nn.init.zeros_(parameter.data)
        elif ".default." in name and "lora_A" in name:
            torch.nn.init.kaiming_uniform_(parameter.data, a=5**0.5)
