"""What a model itself tells that the loop cannot sample or train, looked at without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlhf_loop.errors import UserError
from rlhf_loop.files.damage import loading
from rlhf_loop.model_checks import check_config, check_files, on_output_layer, on_tied_embeddings
from rlhf_loop.models.distributed import whole_models
from rlhf_loop.models.files import resolve_model
from rlhf_loop.models.loading import adapter_folder, base_of
from rlhf_loop.models.quiet import quiet
from rlhf_loop.recipe import Policy


def check_model(policy: Policy, lora: Any) -> None:
    """Raises `UserError` for a model that the loop cannot sample or train, before anything is computed with it.

    `lora`: PEFT's config of the adapter that will be trained, or None. Looks at the model without its weights.
    """
    from accelerate import init_empty_weights
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    if adapter_folder(policy.model):
        check_files(policy.model, None)
    source = resolve_model(policy.model)
    with loading(source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=policy.trust_remote_code)
    check_config(config.to_dict(), policy.model)
    if lora is None or policy.trust_remote_code:
        return
    with quiet(), loading(source), init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    linear = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if _takes_lora(module)})
    try:
        with quiet():
            adapted = get_peft_model(model, lora)
    except ValueError as error:
        raise UserError(
            f"update.lora.target_modules: {error}. `all-linear` takes all of {', '.join(linear)} but the output layer"
        ) from error
    check_adapted(adapted, policy.model)


def weights_of(reference: str | Path, settings: Policy) -> int:
    """Bytes of a policy's weights as it writes, an adapter being added to its base; counted without loading them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = adapter_folder(reference)
    source = resolve_model(base_of(folder) if folder else str(reference))
    trusted = settings.trust_remote_code
    with quiet(), loading(source), whole_models(), torch.device("meta"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trusted)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    numbers: int = sum(parameter.numel() for parameter in model.parameters())
    return numbers * int(getattr(torch, settings.precision).itemsize)


def _takes_lora(module: torch.nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (torch.nn.Linear, Conv1D))


def check_adapted(model: Any, name: str) -> None:
    """Raises `UserError` for an adapter on the output layer, or on embeddings that are the output layer too."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    tied = bool(model.config.get_text_config().tie_word_embeddings)
    output, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    for place, module in (("the output layer", output), ("the embeddings", embeddings)):
        if isinstance(module, BaseTunerLayer) and (module is output or tied):
            key = next((n for n, m in model.named_modules() if m is module), place)
            raise UserError(on_output_layer(key) if module is output else on_tied_embeddings(name, key))
