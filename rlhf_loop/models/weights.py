"""Weights out of a training: put together from the ranks that hold shares of them, written, and looked at again.

Under FSDP2 a parameter is a `DTensor`, under ZeRO-3 an empty tensor until it is gathered; anywhere else it is whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from rlhf_loop.errors import UserError
from rlhf_loop.models.distributed import is_main, whole_models


def save_weights(
    model: Any, folder: Path, base_reference: str, *, remedy: str, wanted: Callable[[str], bool] = lambda name: True
) -> None:
    """Writes `model` to `folder` as safetensors: a `PeftModel` as its active adapter, which names `base_reference` as
    its base, any other with all its weights; of them those whose names are `wanted`.

    To be called on every rank, inside or outside a training; the main one writes, then reads again what it wrote.
    Raises `UserError` when a weight is not finite (nothing is written then; the text ends in `remedy`), or when what
    was written is not what is in memory or does not load.
    """
    from peft import PeftModel

    adapter = _names_of_adapter(model) if isinstance(model, PeftModel) else None
    state = whole_state(model, lambda name: wanted(name) and (adapter is None or name in adapter))
    if not is_main():
        return
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"the training ended in weights that are not finite ({name}); {remedy}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT would add to one that an interrupted attempt left
    if isinstance(model, PeftModel):
        config = model.peft_config[model.active_adapter]
        config.base_model_name_or_path = base_reference
        if isinstance(config.target_modules, set):  # its order differs from process to process, and files are hashed
            config.target_modules = sorted(config.target_modules)
        # The embeddings are never resized here (a reward model's padding row is never attended to); left to itself
        # PEFT would ask the hub about the base.
        names = {"selected_adapters": [model.active_adapter], "save_embedding_layers": False}
        model.save_pretrained(str(folder), state_dict=state, **names)
        expected = _of_adapter(model, state)
        if lost := set(expected) - check_saved(folder, expected):
            raise UserError(f"{folder} was written without {min(lost)}. {_AGAIN}")
    else:
        model.save_pretrained(str(folder), state_dict=state)
        check_saved(folder, state)
        _check_loads(folder, model)


def whole_state(model: Any, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, torch.Tensor]:
    """The tensors of `model` whose names are `wanted`, whole, on the CPU of the main rank; {} on the others.

    To be called on every rank: one tensor after the other is put together, so no rank ever holds more than one beyond
    its share. Names of one and the same tensor (tied weights) get one and the same tensor.
    """
    named = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if wanted(name)}
    whole: dict[int, torch.Tensor] = {}
    for tensor in {id(tensor): tensor for tensor in named.values()}.values():
        put_together = _whole(tensor)
        if is_main():
            whole[id(tensor)] = put_together.detach().cpu()
    return {name: whole[id(tensor)] for name, tensor in named.items()} if is_main() else {}


def leave_frozen_ties_out(model: Any) -> None:
    """Takes frozen weights that are another name of frozen ones (a tied output layer) out of `model.state_dict()`.

    DeepSpeed leaves frozen parameters out of checkpoints by the names in `named_parameters()`, which has one name each:
    the other would bring a matrix of the base, as large as its vocabulary, into each checkpoint of an adapter.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    others = set(named) - {name for name, _ in model.named_parameters()}
    frozen = [name for name in others if not named[name].requires_grad]

    def leave_out(module: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
        for name in frozen:
            state.pop(prefix + name, None)

    model.register_state_dict_post_hook(leave_out)


def whole_copy(module: Any) -> Any:
    """A deep copy of `module`, whole; on the CPU where ZeRO-3 shares `module` out, since it may fit nowhere else.

    To be called on every rank.
    """
    made = copy.deepcopy(module)
    for mine, theirs in zip(made.parameters(), module.parameters(), strict=True):
        if hasattr(theirs, "ds_id"):
            mine.data = _whole(theirs).detach().cpu().clone()
    return made


def check_saved(folder: Path, expected: Mapping[str, torch.Tensor]) -> set[str]:
    """Reads the safetensors in `folder` again and gives the names in them.

    Raises `UserError` for a file that cannot be read, and for a tensor that is empty, not finite, or not the one of
    its name in `expected`.
    """
    found: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    found.add(name)
                    _compare(path, name, file.get_tensor(name), expected.get(name))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read again after it was written: {error}. {_AGAIN}") from None
    if not found:
        raise UserError(f"{folder} was written without any weights. {_AGAIN}")
    return found


_AGAIN = "So this step is not done; check the disk, and type the same command again"


def _compare(path: Path, name: str, tensor: torch.Tensor, expected: torch.Tensor | None) -> None:
    wrong = ""
    if not tensor.numel():
        wrong = "is empty"
    elif not torch.isfinite(tensor).all():
        wrong = "is not finite"
    elif expected is not None and tensor.shape != expected.shape:
        wrong = f"has the shape {tuple(tensor.shape)} in place of {tuple(expected.shape)}"
    elif expected is not None and not torch.equal(tensor, expected):
        wrong = "has other numbers than were to be written"
    if wrong:
        raise UserError(f"{path}: {name} {wrong}. {_AGAIN}")


def _check_loads(folder: Path, model: Any) -> None:
    """Loads a model's files the way they will be loaded, names and shapes without numbers."""
    kind: Any = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    try:
        with whole_models():
            _, report = kind.from_pretrained(str(folder), device_map="meta", output_loading_info=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{folder} does not load after it was written: {error}. {_AGAIN}") from error
    if report["missing_keys"]:
        raise UserError(f"{folder} was written without {min(report['missing_keys'])}. {_AGAIN}")


def _of_adapter(model: Any, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the active adapter, by their names in its file."""
    from peft import get_peft_model_state_dict

    adapter: dict[str, torch.Tensor] = get_peft_model_state_dict(
        model, dict(state), adapter_name=model.active_adapter, save_embedding_layers=False
    )
    return adapter


def _names_of_adapter(model: Any) -> set[str]:
    """The names that the active adapter's tensors have in `model`."""
    named = model.state_dict(keep_vars=True)
    adapter = {id(tensor) for tensor in _of_adapter(model, named).values()}
    return {name for name, tensor in named.items() if id(tensor) in adapter}


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A collective where the tensor is shared out. DeepSpeed's float32 copy of a trained weight goes before the weight
    itself, which may have fewer bits."""
    if isinstance(tensor, DTensor):
        return tensor.detach().to(tensor.device_mesh.device_type).full_tensor()
    if tensor.requires_grad and (hasattr(tensor, "_z3_optimizer") or hasattr(tensor, "_hp_mapping")):
        from deepspeed.utils import safe_get_full_fp32_param

        precise = safe_get_full_fp32_param(tensor)
        if precise is not None:
            return precise.view(getattr(tensor, "ds_shape", tensor.shape))
    if hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().cpu().clone()
    return tensor
