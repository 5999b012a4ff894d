"""Language models as reward models: with one output in place of the vocabulary, or as a trunk of frozen features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from rlhf_loop.files.damage import loading
from rlhf_loop.lora import Lora
from rlhf_loop.models.attention import attention_option, with_attention
from rlhf_loop.models.distributed import whole_models
from rlhf_loop.models.files import resolve_model
from rlhf_loop.models.loading import load_tokenizer
from rlhf_loop.models.memory import device
from rlhf_loop.models.quiet import quiet
from rlhf_loop.models.shares import loading_options, placed, shared_out, without_numbers
from rlhf_loop.recipe import Policy


def load_classifier(
    base: str, policy: Policy, *, full: bool = False, adapter: Path | None = None, only_read: bool = False
) -> tuple[Any, Any]:
    """A sequence classifier with one output, and its tokenizer; `base` is `policy` or a model reference.

    Weights have the policy's dtype, or float32 when all are to be trained (`full`). The output layer always computes
    in float32: in bfloat16 rewards would have 8 bits, and close answers would tie. `only_read`: as in `load_policy`;
    else a model that is to be shared out in training is left in main memory.
    """
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    reference = policy.model if base == "policy" else base
    source = resolve_model(reference)
    tokenizer = load_tokenizer(reference, policy)
    options = _options(policy, torch.float32 if full else getattr(torch, policy.precision))
    options |= loading_options() if only_read else {}
    with quiet(reports=False), loading(reference, "a reward model"), whole_models():
        model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, **options)
        model = with_attention(model, policy)
    set_padding_apart(model, tokenizer)
    if isinstance(getattr(model, "score", None), nn.Linear):
        model.score = Float32Linear(model.score)
    if adapter is not None:
        with quiet(reports=False), loading(adapter, "a reward model"), whole_models():
            model = PeftModel.from_pretrained(
                model,
                str(adapter),
                autocast_adapter_dtype=False,
                low_cpu_mem_usage=only_read and without_numbers(),
            )
    if only_read:
        return placed(model), tokenizer
    return model if shared_out() else model.to(device()), tokenizer


def set_padding_apart(model: Any, tokenizer: Any) -> None:
    """A padding token that ends nothing: a classifier reads the last token that is not padding, and would look past the
    end of the answer."""
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def load_trunk(base: str, policy: Policy, layers: list[float]) -> tuple[Any, Any, list[int]]:
    """The frozen model without its vocabulary layer, its tokenizer, and the numbers of the hidden states to read.

    Layers above those that are read are left out, which is where the time would go.
    """
    from transformers import AutoModel

    reference = policy.model if base == "policy" else base
    tokenizer = load_tokenizer(reference, policy)
    source = resolve_model(reference)
    with quiet(reports=False), loading(reference, "a reward model"), whole_models():
        options = {**_options(policy, getattr(torch, policy.precision)), **loading_options()}
        model = AutoModel.from_pretrained(source, **options)
        model = with_attention(model, policy)
    depth = int(model.config.get_text_config().num_hidden_layers)
    numbers = [max(1, round(share * depth)) for share in layers]
    stack = getattr(model, "layers", None)
    if isinstance(stack, nn.ModuleList) and max(numbers) < depth:
        # One more than is read: what leaves the last one is normalised, unlike the hidden states below it.
        model.layers = stack[: max(numbers) + 1]
    return placed(model.requires_grad_(False)), tokenizer, numbers


def lora_config(lora: Lora) -> Any:
    """PEFT's config for a sequence classifier; its output layer is trained and saved whole."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="SEQ_CLS",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=["score"],
    )


class Float32Linear(nn.Linear):  # type: ignore[misc]
    """An output layer that computes in float32 whatever comes in, mixed precision or not."""

    def __init__(self, layer: nn.Linear):
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device=layer.weight.device)
        with torch.no_grad():
            self.weight.copy_(layer.weight)
            if layer.bias is not None:
                self.bias.copy_(layer.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The layer's outputs, in float32."""
        with torch.autocast(features.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return linear(features.float(), self.weight.float(), bias)


def _options(policy: Policy, dtype: torch.dtype) -> dict[str, Any]:
    return {"dtype": dtype, "trust_remote_code": policy.trust_remote_code, **attention_option(policy)}
