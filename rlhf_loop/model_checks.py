"""What a model's files say that it cannot be right with: refused when the recipe is loaded, without torch.

What only the model itself tells is checked by `rlhf_loop.models.checks.check_model`, before round 0 computes anything.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.near import did_you_mean

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


def check_folder(model: str, where: str) -> None:
    """Raises `UserError` where `model` is a path and no model lies there; `where`: the setting that names it."""
    folder = Path(model)
    if folder.is_absolute() and not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UserError(
            f"{where}: {model} holds no model: neither config.json nor adapter_config.json is there. Give the folder "
            "that `save_pretrained` wrote"
        )


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


def classifier_outputs(config: dict[str, Any], model: str, wanted: Mapping[str, float] | None) -> dict[int, float]:
    """Which outputs of a classifier make the reward, by their numbers, and how much of each.

    `config`: the model's own; `wanted`: weights by label or number, None for a model with one output. Raises
    `UserError` for a model that is no classifier, for several outputs of which none is named, and for unknown ones.
    """
    kinds = [str(kind) for kind in config.get("architectures") or []]
    if any(kind.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for kind in kinds):
        raise UserError(
            f"{model} is a language model ({', '.join(kinds)}) and no reward model: its score head would be random. "
            "Give a sequence classifier that was trained as a reward model, or train one on your own pairs "
            "(reward_models/bradley_terry)"
        )
    named = {int(number): str(label) for number, label in (config.get("id2label") or {}).items()}
    count = len(named) or int(config.get("num_labels", 2))  # transformers' own default
    labels = {number: named.get(number, f"LABEL_{number}") for number in range(count)}
    if wanted is None:
        if count == 1:
            return {0: 1.0}
        raise UserError(
            f"{model} has {count} outputs ({', '.join(labels.values())}): say in reward_model.yaml which make the "
            f"reward, such as `outputs: {{{labels[0]}: 1.0}}`"
        )
    numbers = {**{str(number): number for number in labels}, **{label: number for number, label in labels.items()}}
    for name in wanted:
        if name not in numbers:
            known = list(labels.values())
            nearest = did_you_mean(name, known)
            raise UserError(f"outputs: {model} has no output `{name}`{nearest}; it has {count}: {', '.join(known)}")
    if len({numbers[name] for name in wanted}) < len(wanted):
        raise UserError(f"outputs: two names of one output of {model}: {', '.join(wanted)}")
    return {numbers[name]: weight for name, weight in wanted.items()}


def positions(config: Mapping[str, Any]) -> int | None:
    """How many tokens a classifier reads at most, by its config; None where that sets no limit, as of DeBERTa."""
    most = config.get("max_position_embeddings")
    if not isinstance(most, int) or most <= 0 or config.get("position_biased_input") is False:
        return None
    if config.get("model_type") in _COUNT_FROM_PADDING:
        return most - 1 - int(config.get("pad_token_id") or 0)
    return most


_COUNT_FROM_PADDING = ("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer")
"""Types of models whose positions begin behind that of the padding."""


def check_classifier(model: str, wanted: Mapping[str, float] | None, max_length: int) -> None:
    """`classifier_outputs` of a model that is on this machine; one that is not is checked when it is loaded. Warns of
    one that reads fewer than `max_length` tokens. Raises `UserError` for a path where nothing is."""
    folder = Path(model).expanduser()
    if folder.is_absolute() and not folder.exists():
        raise UserError(
            f"no model folder at {folder}; `model` in reward_model.yaml is a folder, relative to that file, or a name "
            "on the hub"
        )
    config = _config(folder, model)
    if config is not None:
        classifier_outputs(config, model, wanted)
        if (most := positions(config)) is not None and most < max_length:
            warnings.warn(
                f"{model} reads {most} tokens at most, fewer than its `max_length` of {max_length}: longer texts are "
                "cut off there",
                stacklevel=2,
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
