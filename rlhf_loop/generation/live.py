"""Sampling one token at a time, for answers that are read while they are written.

The arithmetic and the random numbers are those of `transformers_engine`: an answer depends on its own conversation,
key and settings, not on whom it was sampled beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from rlhf_loop.generation import transformers_engine as engine
from rlhf_loop.generation.sampling import sample_tokens, uniforms
from rlhf_loop.models.turns import Turns

UNFINISHED = "\ufffd"
"""What a tokenizer writes for a character of which only some bytes are there."""


@dataclass(kw_only=True, eq=False)
class Row:
    """One answer that is being written."""

    prompt: Sequence[int]  # token ids
    key: tuple[int, int, str]  # of its random numbers: seed, round, prompt id
    sample: int
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    stop: tuple[str, ...] = ()
    ids: list[int] = field(default_factory=list)
    text: str = ""
    sent: int = 0  # characters of `text` that were given out
    finish: Literal["stop", "length"] | None = None

    def take(self, token: int, turns: Turns) -> str:
        """Adds a token; gives the text that is new and will stay, and sets `finish` at the end."""
        self.ids.append(token)
        self.text = turns.text(self.ids)
        found = [place for stop in self.stop if (place := self.text.find(stop)) >= 0]
        if found:
            self.text, self.finish = self.text[: min(found)], "stop"
        elif turns.ended(self.ids):
            self.finish = "stop"
        elif len(self.ids) == self.max_new_tokens:
            self.finish = "length"
        until = len(self.text) if self.finish else len(self.text) - self._unsure()
        new, self.sent = self.text[self.sent : until], max(self.sent, until)
        return new

    def _unsure(self) -> int:
        """How many characters at the end may still change: half a character, or the beginning of a stop text."""
        half = len(self.text) - len(self.text.rstrip(UNFINISHED))
        starts = [n for stop in self.stop for n in range(1, len(stop)) if self.text.endswith(stop[:n])]
        return max([half, *starts])


class LiveBatch:
    """Answers that are written together; those that have ended leave the batch."""

    def __init__(self, model: Any, tokenizer: Any, rows: Sequence[Row]):
        self.model, self.tokenizer = model, tokenizer
        self.rows = list(rows)
        self.turns = Turns(tokenizer, model)
        self._draws = [uniforms(*row.key, row.sample, row.max_new_tokens) for row in self.rows]
        self._cache: Any = None
        self._logits = self._mask = self._position = torch.empty(0)

    def step(self) -> list[tuple[Row, str]]:
        """Writes one token of each row; gives each row with the text that this added to it."""
        with torch.inference_mode():
            return self._step()

    def _step(self) -> list[tuple[Row, str]]:
        if self._cache is None:
            self._read_prompts()
        tokens = self._sample()
        said = [(row, row.take(token, self.turns)) for row, token in zip(self.rows, tokens, strict=True)]
        stay = [number for number, row in enumerate(self.rows) if row.finish is None]
        self._keep(stay)
        if self.rows:
            place = self.model.device
            new = torch.tensor([tokens[number] for number in stay], device=place)[:, None]  # (R, 1)
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(stay), 1)], dim=-1)
            self._logits = engine._forward(self.model, new, self._mask, self._position, self._cache)
            self._position = self._position + 1
        return said

    def drop(self, rows: Sequence[Row]) -> None:
        """Takes out rows that nobody waits for any more."""
        with torch.inference_mode():
            self._keep([number for number, row in enumerate(self.rows) if row not in rows])

    def _read_prompts(self) -> None:
        """Each prompt once, for all rows that share it."""
        place = self.model.device
        used = list({tuple(row.prompt): None for row in self.rows})
        ids, mask = engine._left_padded(used, self.tokenizer.pad_token_id, place)  # (P, L)
        self._cache = engine._cache(self.model, room=max(row.max_new_tokens for row in self.rows) - 1)
        positions = mask.cumsum(-1).sub_(1).clamp_(min=0)
        logits = engine._forward(self.model, ids, mask, positions, self._cache)  # (P, V)
        of_prompt = torch.tensor([used.index(tuple(row.prompt)) for row in self.rows], device=place)  # (R,)
        self._cache.batch_select_indices(of_prompt)
        self._logits, self._mask = logits[of_prompt], mask[of_prompt]
        self._position = self._mask.sum(-1, keepdim=True)  # (R, 1)

    def _sample(self) -> list[int]:
        """A token for each row, rows with the same settings at once."""
        tokens = [0] * len(self.rows)
        groups: dict[tuple[float, float, int], list[int]] = {}
        for number, row in enumerate(self.rows):
            groups.setdefault((row.temperature, row.top_p, row.top_k), []).append(number)
        for (temperature, top_p, top_k), numbers in groups.items():
            place = torch.tensor(numbers, device=self._logits.device)
            draws = torch.tensor(
                [self._draws[number][len(self.rows[number].ids)] for number in numbers],
                dtype=torch.float64,
                device=self._logits.device,
            )
            drawn = sample_tokens(self._logits[place], draws, temperature, top_p, top_k)
            for number, token in zip(numbers, drawn.tolist(), strict=True):
                tokens[number] = token
        return tokens

    def _keep(self, stay: list[int]) -> None:
        if len(stay) == len(self.rows):
            return
        self.rows = [self.rows[number] for number in stay]
        self._draws = [self._draws[number] for number in stay]
        if stay and self._cache is not None:
            place = torch.tensor(stay, device=self._mask.device)
            self._cache.batch_select_indices(place)
            self._logits, self._mask, self._position = self._logits[place], self._mask[place], self._position[place]
