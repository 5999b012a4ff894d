"""The shape of a model: how many weights it has and where, from its configuration alone.

The model is built on torch's meta device, where tensors have shapes and no numbers, so any family that transformers
knows is counted as it is, a 70B model in less than a second and without its files of weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rlhf_loop.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """A matrix that multiplies each token, and can have an adapter."""

    name: str  # as in the model, such as model.layers.0.self_attn.q_proj
    inputs: int
    outputs: int
    layer: int | None  # None: not in a layer, such as the output layer


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What memory and time follow from. Counts are of single weights; tied ones are counted once."""

    name: str  # as the recipe has it
    family: str  # transformers' name of it, such as llama
    parameters: int
    embedding: int  # weights of the input embeddings
    head: int  # of the output layer, where it is not the embeddings again
    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_size: int
    inner: int  # width of the MLP, of all experts that a token goes to
    mlp_keeps: int  # tensors of the inner width that an MLP keeps for the backward pass
    norms: int  # of the hidden width, in a layer
    head_norms: bool  # queries and keys are normalised head by head
    norm_is_rms: bool  # computed in float32 by transformers' own code; else torch's layer norm
    vocabulary: int
    context: int | None  # most positions
    experts: tuple[int, int]  # weights of all experts, and of those that a token goes to
    linears: tuple[Linear, ...]

    @property
    def of_layers(self) -> int:
        """Weights of all layers."""
        return self.parameters - self.embedding - self.head

    @property
    def a_layer(self) -> int:
        """Weights of one layer, the mean over all."""
        return self.of_layers // max(self.layers, 1)

    @property
    def multiplied(self) -> int:
        """Weights that each token is multiplied with, the output layer's with them."""
        total, active = self.experts
        return self.of_layers - total + active + self.vocabulary * self.hidden

    def trunk(self, layers: int | None = None) -> int:
        """Weights without the output layer, of the lowest `layers` (None: all)."""
        return self.embedding + (self.of_layers if layers is None else min(layers, self.layers) * self.a_layer)


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """A LoRA adapter (Hu et al. 2021, arXiv 2106.09685) on a model."""

    rank: int
    parameters: int  # rank x (inputs + outputs) of each matrix
    matrices: int
    adapted: int  # weights of the matrices that it is added to
    lowest: int  # number of the lowest layer that has one; those below are never trained through
    inputs: int  # what its matrices read of a token in all layers


def shape_of(reference: str, *, trust_remote_code: bool = False, classifier: bool = False) -> Shape:
    """The shape of a model that `policy.model` may name. `classifier`: of somebody else's reward model.

    Raises `UserError` for a model whose configuration is not on this machine and cannot be fetched, or that
    transformers does not know.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    from rlhf_loop.models.files import resolve_model
    from rlhf_loop.models.quiet import quiet

    try:
        source = resolve_model(reference)
    except UserError as error:
        raise UserError(
            f"{reference} cannot be planned with: its configuration is not on this machine ({error}). Its "
            f"config.json alone is enough: `hf download {reference} config.json` where there is a network, or a folder "
            "that holds it"
        ) from None
    kind: Any = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
            model = kind.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{reference} cannot be planned with: {str(error).splitlines()[0]}") from error
    return shape_of_model(model, reference)


def shape_of_model(model: Any, name: str) -> Shape:
    """The shape of a model of transformers, on whatever device; `name` says which it is."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    config = model.config.get_text_config()
    stack, layers = _layers(model)
    outputs, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    head = 0 if outputs is None or outputs.weight is inputs.weight else outputs.weight.numel()
    linears = []
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and module is not outputs:
            rows, columns = module.weight.shape
            wide = (rows, columns) if isinstance(module, Conv1D) else (columns, rows)
            number = path.removeprefix(f"{stack}.").partition(".")[0] if path.startswith(f"{stack}.") else ""
            linears.append(
                Linear(name=path, inputs=wide[0], outputs=wide[1], layer=int(number) if number.isdigit() else None)
            )
    hidden = int(config.hidden_size)
    heads = int(getattr(config, "num_attention_heads", 1))
    experts, active = _experts(model, config)
    head_size = int(getattr(config, "head_dim", None) or hidden // heads)
    of_width: dict[int, list[Any]] = {}
    for module in layers[0].modules():
        if "norm" in type(module).__name__.lower() and getattr(module, "weight", None) is not None:
            of_width.setdefault(int(module.weight.shape[-1]), []).append(module)
    norms = of_width.get(hidden, [])
    names = {linear.name.rpartition(".")[2] for linear in linears}
    return Shape(
        name=name,
        family=str(model.config.model_type),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        embedding=inputs.weight.numel(),
        head=head,
        layers=len(layers),
        hidden=hidden,
        heads=heads,
        key_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_size=head_size,
        inner=_inner(config, hidden),
        mlp_keeps=_mlp_keeps(layers[0], any("gate" in name for name in names) or experts > 0),
        norms=len(norms),
        head_norms=head_size != hidden and head_size in of_width,
        norm_is_rms=not any(isinstance(norm, nn.LayerNorm) for norm in norms),
        vocabulary=int(inputs.weight.shape[0]),
        context=getattr(config, "max_position_embeddings", None),
        experts=(experts, active),
        linears=tuple(linears),
    )


def adapter_of(shape: Shape, rank: int, targets: str | list[str]) -> Adapter:
    """The adapter of a recipe's `lora` block: `all-linear` is each matrix but the output layer, a list names ends of
    modules' names, an expression all of a name, as PEFT has it. Raises `UserError` where nothing is matched."""
    chosen = [linear for linear in shape.linears if _is_target(linear.name, targets)]
    if not chosen:
        raise UserError(f"lora.target_modules: {targets!r} is none of the modules of {shape.name}")
    return Adapter(
        rank=rank,
        parameters=sum(rank * (linear.inputs + linear.outputs) for linear in chosen),
        matrices=len(chosen),
        adapted=sum(linear.inputs * linear.outputs for linear in chosen),
        lowest=min(linear.layer or 0 for linear in chosen),
        inputs=sum(linear.inputs for linear in chosen),
    )


def _is_target(name: str, targets: str | list[str]) -> bool:
    if targets == "all-linear":
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _layers(model: Any) -> tuple[str, list[Any]]:
    """The name of the longest stack of modules, and its modules."""
    from torch import nn

    stacks: Iterable[tuple[str, Any]] = (
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)
    )
    name, layers = max(stacks, key=lambda found: (len(found[1]), -found[0].count(".")))
    return name, list(layers)


def _inner(config: Any, hidden: int) -> int:
    """Of the widths of MLPs that a config names the one that tokens go through; 4 times the hidden one by default."""
    chosen = int(getattr(config, "num_experts_per_tok", None) or 0)
    of_expert = getattr(config, "moe_intermediate_size", None)
    if chosen:
        shared = int(getattr(config, "shared_expert_intermediate_size", None) or 0)
        return chosen * int(of_expert or config.intermediate_size) + shared
    for name in ("intermediate_size", "n_inner", "ffn_dim", "d_ff"):
        if (width := getattr(config, name, None)) is not None:
            return int(width)
    return 4 * hidden


def _mlp_keeps(layer: Any, gated: bool) -> int:
    """With a gate its product, that one's activation, the other product and both multiplied; else the product and its
    activation. transformers' GELUs that are written out keep each of their own steps."""
    written_out = {"NewGELUActivation", "FastGELUActivation", "AccurateGELUActivation"}
    steps = 3 if written_out & {type(module).__name__ for module in layer.modules()} else 0
    return (4 if gated else 2) + steps


def _experts(model: Any, config: Any) -> tuple[int, int]:
    """Weights of all experts and of those that a token goes to; (0, 0) without."""
    count = next(
        (
            int(number)
            for name in ("num_local_experts", "num_experts", "n_routed_experts")
            if (number := getattr(config, name, None))
        ),
        0,
    )
    chosen = int(getattr(config, "num_experts_per_tok", None) or 0)
    if not count or not chosen:
        return 0, 0
    total = sum(p.numel() for name, p in model.named_parameters() if re.search(r"\bexperts\b", name))
    return total, total * chosen // count
