"""Sampling with a transformers causal LM, at the speed that its matrix products allow.

Each prompt is read once for all of its samples, and its keys and values are kept once for them where the attention can
use them so (`grouped`); those of new tokens are written in place rather than appended by copying; rows that have ended
leave the batch. On the CPU most of what `generate` spends outside the model goes into
`torch.multinomial`; here it is one pass over the logits (`sampling.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import DynamicCache
from transformers.cache_utils import DummyLayer, DynamicIndexedLayer, DynamicLayer, DynamicSlidingWindowLayer

from rlhf_loop.batches import batches
from rlhf_loop.errors import UserError
from rlhf_loop.generation.sampling import sample_tokens, uniforms
from rlhf_loop.machine import GROUPED
from rlhf_loop.models.attention import GivenKeys, SharedPrompt
from rlhf_loop.models.turns import Turns, encode_prompts
from rlhf_loop.progress import Count
from rlhf_loop.recipe import Generation
from rlhf_loop.records import Message


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One sampled text."""

    text: str
    finish_reason: Literal["stop", "length"]
    ids: tuple[int, ...] | None  # its tokens, with the one that ends the turn; None: not known
    written: int | None = None  # how many there were, where they are not known

    @property
    def tokens(self) -> int:
        """How many tokens it has; 0 where nobody says."""
        return (self.written or 0) if self.ids is None else len(self.ids)


def sample(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    keys: Sequence[tuple[int, int, str]],
    settings: Generation,
    progress: Count | None = None,
) -> list[list[Answer]]:
    """`settings.samples_per_prompt` answers to each conversation, whose random numbers are those of its key
    (seed, round, prompt id). Raises `UserError` when a prompt leaves no room in the model's context."""
    turns = Turns(tokenizer, model)
    prompts = encode_prompts(tokenizer, conversations)
    rows = sample_ids(model, tokenizer, prompts, keys, [settings.samples_per_prompt] * len(prompts), settings, progress)
    return [[answer(turns, ids) for ids in samples] for samples in rows]


def sample_ids(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[tuple[int, int, str]],
    samples: Sequence[int],
    settings: Generation,
    progress: Count | None = None,
) -> list[list[list[int]]]:
    """The same in token ids: `samples[p]` completions of `prompts[p]`, each with the token that ended it, if one did.

    The model is left in the mode that it was in."""
    limit = getattr(model.config, "max_position_embeddings", None)
    check_lengths(prompts, keys, settings, limit, f"the model's {limit}")
    total = sum(samples)
    completions: dict[tuple[int, int], list[int]] = {}
    ends = Turns(tokenizer, model).ends
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for rows in _batches(prompts, samples, settings):
                batch = _sample_batch(model, tokenizer.pad_token_id, ends, prompts, keys, rows, settings)
                completions.update(zip(rows, batch, strict=True))
                if progress:
                    progress(len(completions), total)
    finally:
        model.train(was_training)
    return [[completions[p, s] for s in range(count)] for p, count in enumerate(samples)]


def check_lengths(
    prompts: Sequence[Sequence[int]],
    keys: Sequence[tuple[int, int, str]],
    settings: Generation,
    limit: int | None,
    told: str,
) -> None:
    """Raises `UserError` for a prompt that with its answer is longer than `limit`, which `told` names in words."""
    for ids, (_, _, prompt_id) in zip(prompts, keys, strict=True):
        if limit is not None and len(ids) + settings.max_new_tokens > limit:
            raise UserError(
                f"prompt {prompt_id} has {len(ids)} tokens; with {settings.max_new_tokens} new ones it does not fit "
                f"into {told}. Shorten it, leave it out, or lower generation.max_new_tokens"
            )


def _batches(
    prompts: Sequence[Sequence[int]], samples: Sequence[int], settings: Generation
) -> list[list[tuple[int, int]]]:
    """Rows (prompt, sample), longest prompts first, cut so that rows x padded length stays under `batch_tokens`."""
    rows = [(prompt, number) for prompt, count in enumerate(samples) for number in range(count)]
    lengths = [len(prompts[prompt]) + settings.max_new_tokens for prompt, _ in rows]
    return [[rows[i] for i in numbers] for numbers in batches(lengths, settings.batch_tokens)]


def _sample_batch(
    model: Any,
    pad: int,
    ends: Collection[int],
    prompts: Sequence[Sequence[int]],
    keys: Sequence[tuple[int, int, str]],
    rows: Sequence[tuple[int, int]],
    settings: Generation,
) -> list[list[int]]:
    """The completions of one batch, in the order of `rows`."""
    place = model.device
    steps = settings.max_new_tokens
    end_tokens = torch.tensor(sorted(ends), dtype=torch.long, device=place)
    draws = torch.stack([torch.from_numpy(uniforms(*keys[p], s, steps)) for p, s in rows]).to(place)  # (R, steps)

    used = list(dict.fromkeys(p for p, _ in rows))
    ids, mask = _left_padded([prompts[p] for p in used], pad, place)  # (P, L)
    cache = _cache(model, room=steps - 1, shared=len(used) < len(rows))
    logits = _forward(model, ids, mask, mask.cumsum(-1).sub_(1).clamp_(min=0), cache)  # (P, V)
    of_prompt = torch.tensor([used.index(p) for p, _ in rows], device=place)  # (R,)
    cache.batch_select_indices(of_prompt)
    logits, mask = logits[of_prompt], mask[of_prompt]
    position = mask.sum(-1, keepdim=True)  # (R, 1)

    tokens = torch.full((len(rows), steps), pad, device=place)  # (R, steps)
    live = torch.arange(len(rows), device=place)  # rows still in the batch
    ended = torch.zeros(len(rows), dtype=torch.bool, device=place)  # of those in the batch
    for step in range(steps):
        new = sample_tokens(logits, draws[live, step], settings.temperature, settings.top_p, settings.top_k)
        new = new.masked_fill_(ended, pad)
        tokens[live, step] = new
        ended |= torch.isin(new, end_tokens)
        left = steps - step - 1
        if left == 0 or bool(ended.all()):
            break
        # Taking rows out copies the cache, which costs about as much as one step does.
        if float(ended.sum()) / len(live) * left >= 1:
            stay = (~ended).nonzero()[:, 0]
            cache.batch_select_indices(stay)
            live, new, position, mask, ended = live[stay], new[stay], position[stay], mask[stay], ended[stay]
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=-1)
        logits = _forward(model, new[:, None], mask, position, cache)
        position = position + 1
    return [_up_to_end(row, ends) for row in tokens.tolist()]


def _forward(model: Any, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
    """Logits of each row's last token, (R, V); what it has read is added to the cache.

    The place is given as an index because `logits_to_keep=1` takes a strided slice, which torch on the CPU multiplies
    row by row with a copy of the output embedding for each: gigabytes, and seconds.
    """
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=torch.tensor([ids.shape[1] - 1], device=ids.device),
    )
    logits: torch.Tensor = output.logits[:, -1]
    return logits


def _left_padded(prompts: Sequence[Sequence[int]], pad: int, place: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of one length, ending together, and the mask of what is not padding: (P, L) each."""
    length = max(len(ids) for ids in prompts)
    ids = torch.tensor([[pad] * (length - len(ids)) + list(ids) for ids in prompts], device=place)
    mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts], device=place)
    return ids, mask


def _up_to_end(row: list[int], ends: Collection[int]) -> list[int]:
    end = next((i for i, token in enumerate(row) if token in ends), None)
    return row if end is None else row[: end + 1]


def answer(turns: Turns, ids: Sequence[int]) -> Answer:
    """The answer that these tokens are."""
    return Answer(text=turns.text(ids), finish_reason="stop" if turns.ended(ids) else "length", ids=tuple(ids))


def _cache(model: Any, room: int, shared: bool = False) -> DynamicCache:
    """A cache for `model` whose plain layers have room for `room` more tokens than the prompt's, and keep the prompt
    itself once for all of its samples if it is `shared`.

    Other kinds of layers (sliding windows, states) stay as transformers makes them.
    """
    cache = DynamicCache(config=model.config)
    other = next((layer for layer in cache.layers if type(layer) not in _SHARED_OUT), None)
    if other is not None:
        raise UserError(
            f"{type(model).__name__} keeps another state than keys and values ({type(other).__name__}), which the "
            "sampler cannot share out among a prompt's answers. Give a model whose layers are all attention"
        )
    shared = shared and model.config.get_text_config()._attn_implementation == GROUPED
    kind = SharedPromptLayer if shared else RoomyLayer
    cache.layers = [kind(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


_SHARED_OUT = (DynamicLayer, DynamicSlidingWindowLayer, DynamicIndexedLayer, DummyLayer)


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer, written into room that was reserved when the prompt was read."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room  # tokens after the prompt
        self.filled = 0
        self.capacity = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds (R, heads, T, size) and gives all that is filled."""
        if not self.is_initialized:
            # The prompt alone: room is made when its samples part.
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values, self.filled = key_states, value_states, key_states.shape[-2]
            self.capacity = self.filled + self.room
            return key_states, value_states
        start, self.filled = self.filled, self.filled + key_states.shape[-2]
        self.keys[:, :, start : self.filled] = key_states
        self.values[:, :, start : self.filled] = value_states
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps (or repeats) these rows, with the room that was reserved."""
        self.keys = _roomy(self.keys, indices, self.filled, self.capacity)
        self.values = _roomy(self.values, indices, self.filled, self.capacity)

    def get_seq_length(self) -> int:
        """How many tokens are filled."""
        return self.filled


class SharedPromptLayer(RoomyLayer):
    """Keys and values of a layer: a prompt's once for all of its samples, and their own in reserved room.

    What `update` gives after the prompt are the samples' own, which know their prompts for `grouped` attention. Models
    that make other keys of those that they keep (DeepSeek's latents) have each sample's whole."""

    def __init__(self, room: int) -> None:
        super().__init__(room)
        self.given = GivenKeys()
        self.length = 0  # of the prompts, padded, once they are shared out
        self.of_prompt: torch.Tensor | None = None  # (R,); none before the samples part

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds (R, heads, T, size) and gives what the samples have after their prompts."""
        is_prompt = not self.is_initialized
        keys, values = super().update(key_states, value_states)
        if is_prompt:
            keys.given = self.given
        elif self.of_prompt is not None:
            keys.shared_prompt = self.prompt
        return keys, values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Shares the prompts out among rows, the first time; then keeps these rows."""
        if not self.given.arrived:
            super().batch_select_indices(indices)
            return
        if self.of_prompt is None:
            of_prompt = indices
            self.prompt_keys, self.prompt_values = self.keys.contiguous(), self.values.contiguous()
            self.length, self.filled, self.capacity = self.filled, 0, self.room
            self.keys, self.values = (states[:1, :, :0] for states in (self.prompt_keys, self.prompt_values))
            indices = torch.zeros_like(indices)
        else:
            of_prompt = self.of_prompt[indices]
        left, self.of_prompt = torch.unique(of_prompt, return_inverse=True)
        if len(left) < len(self.prompt_keys):
            self.prompt_keys, self.prompt_values = self.prompt_keys[left], self.prompt_values[left]
        super().batch_select_indices(indices)
        self.prompt = SharedPrompt.of(self.prompt_keys, self.prompt_values, self.of_prompt)

    def get_seq_length(self) -> int:
        """How many tokens are filled, the prompt's with them."""
        return self.length + self.filled


def _roomy(states: torch.Tensor, rows: torch.Tensor, filled: int, capacity: int) -> torch.Tensor:
    """These rows of (R, heads, T, size), in room for `capacity` tokens."""
    _, heads, _, size = states.shape
    roomy = states.new_empty(len(rows), heads, capacity, size)
    roomy[:, :, :filled] = states[rows, :, :filled]
    return roomy
