"""What a model's files say that it cannot be right with: refused when the recipe is loaded, without torch.

What only the model itself tells is checked by `rlhf_loop.models.loading.check_model`, before round 0 computes anything.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError

CACHED_LAYERS = (
    "attention",
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "indexed_attention",
    "moe",
    "mlp",
)
"""Kinds of layers whose state is keys and values alone, which the sampler can share out among a prompt's answers."""

_RECURRENT = ("mamba", "rwkv", "jamba", "zamba", "bamba", "recurrent_gemma", "nemotron_h", "hybrid", "lfm2", "xlstm")
"""What the names of models with other states hold, where their config does not list its layers."""


def check_files(model: str, targets: str | list[str] | None) -> None:
    """Raises `UserError` for a model that the loop cannot sample or train, as far as its config says; one that is not
    on this machine yet is checked when it is. `targets`: the modules that get an adapter, None for full fine-tuning."""
    folder = Path(model).expanduser()
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise UserError(
            f"policy.model: {model} is a LoRA adapter, not a model. Merge it first, and give the merged folder: "
            f"`AutoPeftModelForCausalLM.from_pretrained({model!r}).merge_and_unload().save_pretrained(NEW)`, "
            "and its tokenizer beside it"
        )
    config = _config(folder, model)
    if config is None:
        return
    check_config(config, model)
    if targets is not None and config.get("tie_word_embeddings") and (found := _matched(targets, _EMBEDDINGS)):
        raise UserError(on_tied_embeddings(model, found))


def check_config(config: dict[str, Any], model: str) -> None:
    """Raises `UserError` for a config of an architecture that the loop has no right way with."""
    kind = str(config.get("model_type", "unknown"))
    if config.get("is_encoder_decoder"):
        raise UserError(
            f"policy.model: {model} is an encoder-decoder ({kind}); the loop trains models that write on from their "
            "prompt. Give a causal language model"
        )
    inner = config.get("text_config") or config
    layers = inner.get("layer_types") or inner.get("layers_block_type") or []
    others = sorted({str(layer) for layer in layers} - set(CACHED_LAYERS))
    if others or any(name in kind for name in _RECURRENT):
        raise UserError(
            f"policy.model: {model} ({kind}) has layers that keep another state than keys and values "
            f"({', '.join(others) or kind}), which the sampler cannot share out among a prompt's answers. Give a model "
            "whose layers are all attention"
        )
    quantised = inner.get("quantization_config") or config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
        raise UserError(
            f"policy.model: {model} is quantised ({method}): weights cannot be trained, and adapters not merged, in "
            "that form. Give the model that it was made from"
        )


def check_targets(targets: str | list[str]) -> None:
    """Raises `ValueError` for an adapter on the output layer, by the names that it has."""
    if found := _matched(targets, _OUTPUTS):
        raise ValueError(on_output_layer(found))


def on_output_layer(target: str) -> str:
    """What is wrong with an adapter there."""
    return (
        f"lora.target_modules: {target} is the output layer, which the updates compute without an adapter, a part of "
        "the vocabulary at a time. Leave it out; `all-linear` does"
    )


def on_tied_embeddings(model: str, target: str) -> str:
    """What is wrong with an adapter there."""
    return (
        f"lora.target_modules: {target} holds the embeddings of {model}, which are its output layer too: an adapter on "
        "one of the two would be lost or doubled when it is merged. Leave it out; `all-linear` does"
    )


_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings")
_OUTPUTS = ("lm_head", "embed_out", "output_layer")
_PLACES = ("", "model.", "transformer.", "gpt_neox.", "model.decoder.", "model.language_model.")


def _matched(targets: str | list[str], names: tuple[str, ...]) -> str | None:
    """The first of the modules of these names that PEFT would take for a target: by the end of its name, or by an
    expression for all of it."""
    if isinstance(targets, list):
        return next((target for target in targets if target.rpartition(".")[2] in names), None)
    if targets == "all-linear":
        return None
    try:
        return next((p + name for p in _PLACES for name in names if re.fullmatch(targets, p + name)), None)
    except re.error as error:
        raise ValueError(f"lora.target_modules: {targets!r} is no regular expression: {error}") from None


def _config(folder: Path, model: str) -> dict[str, Any] | None:
    path: Any = folder / "config.json"
    if not path.is_file():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or folder.exists():
            return None
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(model, "config.json")
        if not isinstance(path, str):
            return None
    try:
        config: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # who loads it says what is wrong with it
        return None
    return config
