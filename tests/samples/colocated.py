"""A stand-in for the `LLM` of vLLM that TRL's trainers keep in their own process: takes weights, and answers with drawn
tokens."""

from __future__ import annotations

import os
from collections.abc import Iterable
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch


class LLM:
    def __init__(self, **given: Any):
        self.given = given
        self.weights: dict[str, torch.Tensor] = {}  # as they came last
        self.draw = Random(0)
        runner = SimpleNamespace(model=self)
        executor = SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        self.llm_engine = SimpleNamespace(model_executor=executor)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.weights |= {name: tensor.detach().clone() for name, tensor in weights}

    def reset_prefix_cache(self) -> None: ...

    def generate(self, prompts: list[dict[str, list[int]]], *, sampling_params: Any, use_tqdm: bool) -> list[Any]:
        return [self._answered(prompt["prompt_token_ids"], sampling_params.max_tokens) for prompt in prompts]

    def _answered(self, prompt: list[int], length: int) -> Any:
        ids = [self.draw.randrange(10, 200) for _ in range(self.draw.randint(1, length))]
        chances = [{token: SimpleNamespace(rank=1, logprob=-5.0)} for token in ids]
        return SimpleNamespace(prompt_token_ids=prompt, outputs=[SimpleNamespace(token_ids=ids, logprobs=chances)])


def stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """For vLLM in `trl.generation.vllm_generation`, which sets variables of ranks too: they go with the test."""
    from trl.generation import vllm_generation

    for name in {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} - set(os.environ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", LLM, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SimpleNamespace, raising=False)
