"""What a `trainer` block says of batches, and what its TRL config says where the block does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TRL_LENGTH = 1024
"""`max_length` of DPOConfig, KTOConfig and SFTConfig."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainer:
    """The settings that memory and time follow from. Counts are of one device."""

    batch: int
    accumulation: int
    checkpointing: bool
    optimizer: str
    epochs: float
    max_steps: int | None
    max_length: int | None
    rollout: int  # completions that are sampled together, of the online updates
    passes: int  # through a rollout
    reference: bool  # of the online updates, whether there is one
    samples: int  # of a prompt in a rollout
    completion: int | None  # most tokens of an answer


def trainer_of(algorithm: str, settings: Mapping[str, Any]) -> Trainer:
    """Of an update (or `bradley_terry`, `critic`) by its settings, with the defaults of its config."""
    batch = int(settings.get("per_device_train_batch_size", 8))
    accumulation = int(settings.get("gradient_accumulation_steps", 1))
    max_steps = int(settings.get("max_steps", -1))
    parts, passes = accumulation, int(settings.get("num_iterations", 1))
    reference, samples = settings.get("beta", 0.05 if algorithm == "rloo" else 0.0) != 0, 8
    if algorithm == "ppo":
        parts, passes = accumulation * int(settings.get("num_mini_batches", 1)), int(settings.get("num_ppo_epochs", 4))
        reference = bool(settings.get("kl_coef", 0.05) or settings.get("kl_budget"))
        if (episodes := settings.get("total_episodes")) is not None:
            rollouts = -(-int(episodes) // (batch * parts))
            max_steps = rollouts * passes * (parts // accumulation)
    elif "generation_batch_size" in settings:
        parts = max(1, int(settings["generation_batch_size"]) // batch)
    else:
        parts = int(settings.get("steps_per_generation") or accumulation)
    samples = {"ppo": 1, "rloo": 2}.get(algorithm, samples)
    limited = algorithm in ("dpo", "kto", "sft", "rejection_sampling")
    length = settings.get("max_length", TRL_LENGTH if limited else None)
    return Trainer(
        batch=batch,
        accumulation=accumulation,
        checkpointing=bool(settings.get("gradient_checkpointing", False)),
        optimizer=str(settings.get("optim", "adamw_torch_fused")),
        epochs=float(settings.get("num_train_epochs", 3.0)),
        max_steps=max_steps if max_steps > 0 else None,
        max_length=None if length is None else int(length),
        rollout=batch * parts,
        passes=passes,
        reference=reference,
        samples=int(settings.get("num_generations") or samples),
        completion=settings.get("max_completion_length"),
    )
