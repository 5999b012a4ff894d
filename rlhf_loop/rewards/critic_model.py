"""A language model with a reward head: what a critic writes with, and what its reward is read from.

Rows are padded on the left, so that critiques end together: the last hidden state is that of each critique's last
token, and the vocabulary layer is computed at critiques alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch.nn.functional import cross_entropy, linear

from rlhf_loop.files.damage import loading
from rlhf_loop.lora import Lora
from rlhf_loop.models.distributed import whole_models
from rlhf_loop.models.loading import load_causal_lm, load_tokenizer
from rlhf_loop.models.memory import device
from rlhf_loop.models.quiet import quiet
from rlhf_loop.models.shares import placed, shared_out, without_numbers
from rlhf_loop.recipe import Policy

HEAD = "reward_head"


class RewardHead(nn.Module):  # type: ignore[misc]
    """tanh between two linear layers, in float32 whatever comes in: in bfloat16 close answers would tie.

    Its parameters stand alone and not in `nn.Linear`s, which an adapter of `all-linear` would take for the model's."""

    def __init__(self, width: int):
        super().__init__()
        inner, outer = nn.Linear(width, width), nn.Linear(width, 1)
        self.inner_weight, self.inner_bias = inner.weight, inner.bias
        self.outer_weight, self.outer_bias = outer.weight, outer.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Rewards (B,) of hidden states (B, width)."""
        with torch.autocast(states.device.type, enabled=False):
            inner = torch.tanh(linear(states.float(), self.inner_weight.float(), self.inner_bias.float()))
            return linear(inner, self.outer_weight.float(), self.outer_bias.float())[:, 0]


def new_critic(base: str, policy: Policy, lora: Lora) -> tuple[Any, Any]:
    """A trainable critic on `base`, a model reference, with a fresh adapter and head; and its tokenizer.

    One that is to be shared out in training is left in main memory."""
    from peft import LoraConfig, get_peft_model

    tokenizer = load_tokenizer(base, policy)
    with whole_models():
        model = _with_head(load_causal_lm(base, tokenizer, _whole(policy), getattr(torch, policy.precision)))
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=[HEAD],
    )
    with quiet():
        critic = get_peft_model(model, config)
    return critic if shared_out() else critic.to(device()), tokenizer


def load_critic(folder: Path, base: str, policy: Policy) -> tuple[Any, Any]:
    """The critic whose adapter lies in `folder`, added to its base in float32 and rounded once (`load_policy`); shared
    out where Accelerate's config says so."""
    from peft import PeftModel

    tokenizer = load_tokenizer(base, policy)
    with quiet(reports=False), loading(folder, "a reward model"), whole_models():
        model = _with_head(load_causal_lm(base, tokenizer, _whole(policy), torch.float32, only_read=True))
        if not without_numbers():
            model = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False).merge_and_unload()
    head = getattr(model, HEAD)
    model = model.to(getattr(torch, policy.precision))
    head.float()
    return placed(model), tokenizer


def put_adapter(model: Any, folder: Path) -> None:
    """The adapter and head in `folder` into those of a new critic, which has the same shapes."""
    from peft import load_peft_weights, set_peft_model_state_dict

    with loading(folder, "a reward model"):
        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))


def read(
    model: Any, rows: Sequence[Sequence[int]], critiques: Sequence[int], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards (B,) at the last token of each row, and the summed cross-entropy (B,) of its last `critiques[b]` tokens.

    With no critique to be learned (0) nothing of the vocabulary is computed but one position a row.
    """
    place = next(model.parameters()).device
    longest = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (longest - len(row)) + list(row) for row in rows], device=place)  # (B, T)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=place)
    keep = max(critiques) + 1
    plain = extract_model_from_parallel(model)
    plain = plain.get_base_model() if hasattr(plain, "get_base_model") else plain
    seen: list[torch.Tensor] = []

    def with_reward(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        # within the model's own forward, where its weights are there on every rank
        seen.append(getattr(plain, HEAD)(inputs[0][:, -1]))

    hook = plain.get_output_embeddings().register_forward_pre_hook(with_reward)
    try:
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=mask.cumsum(-1).sub(1).clamp(min=0),
            use_cache=False,
            logits_to_keep=keep,
        )
    finally:
        hook.remove()
    losses = seen[0].new_zeros(len(rows))
    if keep > 1:
        logits, targets = output.logits[:, :-1], ids[:, -(keep - 1) :]  # (B, keep - 1, V), (B, keep - 1)
        last = torch.arange(keep - 1, 0, -1, device=place)  # how many tokens from the end each target is
        inside = last[None] <= torch.tensor(critiques, device=place)[:, None]
        of_row = inside.nonzero()[:, 0]
        losses = losses.index_add(0, of_row, cross_entropy(logits[inside].float(), targets[inside], reduction="none"))
    return seen[0], losses


def _whole(policy: Policy) -> Policy:
    """A reward model's base is never quantised."""
    return policy.model_copy(update={"quantization": None})


def _with_head(model: Any) -> Any:
    setattr(model, HEAD, RewardHead(model.get_output_embeddings().weight.shape[1]).to(model.device))
    return model
