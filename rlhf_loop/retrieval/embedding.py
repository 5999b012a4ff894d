"""A text as the mean of a frozen language model's hidden states over its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlhf_loop.batches import batches
from rlhf_loop.progress import Count

MAX_TOKENS = 512
"""Of a text; what lies beyond is not read."""

BATCH_TOKENS = {"cpu": 4096}
BATCH_TOKENS_ACCELERATOR = 65536


@torch.inference_mode()  # type: ignore[untyped-decorator]
def embed(trunk: Any, tokenizer: Any, layer: int, texts: Sequence[str], progress: Count | None = None) -> torch.Tensor:
    """(N, D) float32, on the CPU: the mean of hidden states `layer` of `trunk`, a model without its vocabulary layer.

    A token goes before each text and is left out of the mean: language models keep in the first position, whatever
    stands there, a state many times as large as the others (Xiao et al. 2023, arXiv 2309.17453). A text without tokens
    is a row of zeros.
    """
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
    first = next(token for token in known if token is not None)
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    rows = [[first, *ids[:MAX_TOKENS]] for ids in encoded]
    found = torch.zeros(len(rows), trunk.config.get_text_config().hidden_size)
    device = trunk.device
    done = 0
    for numbers in batches([len(row) for row in rows], BATCH_TOKENS.get(device.type, BATCH_TOKENS_ACCELERATOR)):
        longest = max(len(rows[number]) for number in numbers)
        ids = torch.full((len(numbers), longest), first)  # (B, T)
        mask = torch.zeros((len(numbers), longest), dtype=torch.long)
        for place, number in enumerate(numbers):
            ids[place, : len(rows[number])] = torch.tensor(rows[number])
            mask[place, : len(rows[number])] = 1
        ids, mask = ids.to(device), mask.to(device)
        states = trunk(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
        state = states.hidden_states[layer].float()  # (B, T, D)
        own = mask.clone()
        own[:, 0] = 0
        mean = (state * own[:, :, None]).sum(1) / own.sum(1, keepdim=True).clamp_min(1)
        found[torch.tensor(numbers)] = mean.cpu()
        done += len(numbers)
        if progress:
            progress(done, len(rows))
    return found


def unit(vectors: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """(N, D) the directions of vectors (N, D) from `centre` (D,); rows of zeros stay so.

    Mean hidden states all point one way; what tells texts apart is how they differ from their mean (Mu and Viswanath
    2018, arXiv 1702.01417).
    """
    there = vectors.abs().amax(dim=1, keepdim=True) > 0
    away = torch.where(there, vectors - centre, 0.0)
    return away / away.norm(dim=1, keepdim=True).clamp_min(1e-12)
