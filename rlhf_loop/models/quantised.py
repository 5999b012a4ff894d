"""A base whose matrices have 4 bits a weight (QLoRA, Dettmers et al. 2023, arXiv 2305.14314), through bitsandbytes.

The policy is then that base and an adapter apart from it, wherever it is read: while it samples, in training, where it
is measured. Its output layer and its embeddings stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch

from rlhf_loop.errors import UserError
from rlhf_loop.models.shares import shared_out
from rlhf_loop.recipe import Policy
from rlhf_loop.recipe.rules_of_memory import NO_BITSANDBYTES, lacks_bitsandbytes


def quantisation_option(settings: Policy) -> dict[str, Any]:
    """What `from_pretrained` is told, where the recipe asks for such a base.

    Raises `UserError` without bitsandbytes, and where Accelerate's config shares weights out."""
    if settings.quantization is None:
        return {}
    from transformers import BitsAndBytesConfig

    if shared_out():
        raise UserError(
            "policy.quantization: FSDP and ZeRO-3 share out weights, and one of 4 bits is no number of its own; take a "
            "config that leaves weights whole (recipes/accelerate/ddp.yaml), or leave the setting out"
        )
    if lacks_bitsandbytes(settings):
        raise UserError(NO_BITSANDBYTES)
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=settings.quantization,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, settings.precision),
        )
    }


def with_one_arithmetic(model: Any) -> Any:
    """The model, on a CPU without the kernels for inference alone, which round to bfloat16 and rearrange the weights
    for good: a policy would be trained and measured as two."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def adapters_in_float32(model: Any) -> None:
    """Trained adapters as of any other policy: TRL rounds those on a quantised base to bfloat16, which loses small
    updates."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def as_plain_weights(model: Any, dtype: torch.dtype) -> Any:
    """The model with the numbers that its 4 bits stand for; an adapter is added in float32 and the sum rounded once."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    added: dict[str, torch.Tensor] = {}
    if isinstance(model, PeftModel):
        for name, module in model.get_base_model().named_modules():
            if isinstance(module, LoraLayer):
                deltas = [module.get_delta_weight(adapter).float() for adapter in module.active_adapters]
                added[name] = torch.stack(deltas).sum(0)
        model = model.unload()
    model = model.dequantize(dtype=torch.float32)
    with torch.no_grad():
        for name, delta in added.items():
            model.get_submodule(name).weight += delta
    return model.to(dtype)
