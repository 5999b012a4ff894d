"""LoRA adapters of the updates: fresh, loaded from an earlier round, put back to nothing; and trainers of TRL that are
built on the reference, so that it is what the recipe says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict

from rlhf_loop.errors import UserError
from rlhf_loop.lora import Lora
from rlhf_loop.model_checks import check_files
from rlhf_loop.models.loading import adapter_folder, load_policy
from rlhf_loop.models.quantised import adapters_in_float32
from rlhf_loop.recipe import Policy, Update


def build_trainer(
    make: Callable[..., Any],
    start: str | Path,
    reference: str | Path,
    policy: Policy,
    settings: Update,
    *,
    own_reference: bool = False,
) -> tuple[Any, Any]:
    """A TRL trainer whose reference is `reference` and whose weights are those of `start`, and the tokenizer.

    `make(model, ref_model, processing_class=..., peft_config=...)` builds it. TRL takes the policy it is handed as the
    reference, which from round 2 on is the previous policy. So the trainer is built on the *reference*, and the start
    weights are put in afterwards. With `own_reference` the trainer itself loads the reference of a full fine-tuning,
    and `ref_model` is None. Raises `UserError` when the start does not fit `settings.lora`.
    """
    start_adapter, reference_adapter = adapter_folder(start), adapter_folder(reference)
    if settings.lora is None:
        refuse_adapter(start_adapter)
        model, tokenizer = load_policy(start, policy, trainable=True, in_training=True)
        reference_model = None if own_reference else load_policy(reference, policy, in_training=True)[0]
        return make(model, reference_model, processing_class=tokenizer, peft_config=None), tokenizer
    model, tokenizer = load_base(policy)
    config = lora_config(settings.lora)
    if reference_adapter is None:  # "adapters disabled" is the base model
        trainer = make(model, None, processing_class=tokenizer, peft_config=config)
    else:  # TRL copies the adapter it is handed into a frozen one, which becomes the reference
        peft_model = get_peft_model(model, config)
        put_adapter(peft_model, reference_adapter)
        trainer = make(peft_model, None, processing_class=tokenizer, peft_config=None)
    if policy.quantization is not None:
        adapters_in_float32(trainer.model)
    if start_adapter is not None:
        put_adapter(trainer.model, start_adapter)
    elif reference_adapter is not None:
        reset_adapter(trainer.model)
    return trainer, tokenizer


def load_base(policy: Policy) -> tuple[Any, Any]:
    """The model that adapters are put on, and its tokenizer."""
    check_files(policy.model, None)  # it is no adapter itself
    return load_policy(policy.model, policy, in_training=True)


def lora_config(lora: Lora) -> LoraConfig:
    """PEFT's config of a recipe's `lora` block."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )


def put_adapter(model: PeftModel, folder: Path) -> None:
    """The weights of an adapter's folder into the trained adapter of `model`; `UserError` when they do not fit."""
    misfit = UserError(
        f"the adapter in {folder} does not fit `update.lora` of the recipe; use the rank and target modules that it "
        "was trained with"
    )
    _refuse_another_scale(model.peft_config[model.active_adapter], folder)
    try:
        outcome = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    except RuntimeError:  # torch's word for wrong shapes
        raise misfit from None
    if outcome.unexpected_keys or any("lora_" in n and ".default." in n for n in outcome.missing_keys):
        raise misfit


def _refuse_another_scale(wanted: LoraConfig, folder: Path) -> None:
    """The same weights mean something else under another alpha, or as another kind of adapter."""
    theirs = LoraConfig.from_pretrained(str(folder))
    for name in _SCALES:
        given, trained = getattr(wanted, name, None) or None, getattr(theirs, name, None) or None
        if given != trained:
            setting = f"update.lora.{_SETTING[name]}" if name in _SETTING else name
            raise UserError(
                f"the adapter in {folder} does not fit `update.lora` of the recipe: it was trained with "
                f"{name}={trained}, and {setting} is {given}, which would rescale it. Set what it was trained with, or "
                "start from another policy"
            )


_SCALES = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias",
    "alora_invocation_tokens", "modules_to_save", "trainable_token_indices",
)  # fmt: skip
"""Fields of an adapter's config without which its weights are another adapter."""

_SETTING = {"r": "r", "lora_alpha": "alpha"}


def reset_adapter(model: PeftModel) -> None:
    """The trained adapter back to a fresh one, whose product is zero."""
    for name, parameter in model.named_parameters():
        if ".default." in name and "lora_B" in name:
            torch.nn.init.zeros_(parameter.data)
        elif ".default." in name and "lora_A" in name:
            torch.nn.init.kaiming_uniform_(parameter.data, a=5**0.5)


def refuse_adapter(start: Path | None) -> None:
    """Full fine-tuning cannot go on from an adapter."""
    if start is not None:
        raise UserError(f"the policy to start from, {start}, is an adapter; full fine-tuning needs full weights")
