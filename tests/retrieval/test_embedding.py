"""Mean hidden states against one text at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf_loop.recipe import Policy
from rlhf_loop.retrieval import embedding
from rlhf_loop.retrieval.embedding import embed, unit
from rlhf_loop.rewards.trunk import load_trunk

TEXTS = ["why is the sky blue", "a", "", "what should I cook for six people who all eat different things", "why"]


def test_a_vector_is_the_mean_of_the_hidden_states_of_a_texts_own_tokens(
    tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk, tokenizer, layers = load_trunk("policy", Policy(model=str(tiny_policy), dtype="float32"), [0.5])
    found = embed(trunk, tokenizer, layers[0], TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        with torch.no_grad():
            states = trunk(input_ids=torch.tensor([[first, *ids]]), output_hidden_states=True).hidden_states
        expected = states[layers[0]][0, 1:].mean(0) if ids else torch.zeros_like(vector)
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=1e-4)
    monkeypatch.setitem(embedding.BATCH_TOKENS, "cpu", 8)  # one text a batch
    torch.testing.assert_close(embed(trunk, tokenizer, layers[0], TEXTS), found, atol=1e-5, rtol=1e-4)


def test_a_unit_vector_is_a_direction_from_the_centre_and_no_text_has_none() -> None:
    vectors, centre = torch.tensor([[4.0, 2.0], [0.0, 0.0], [1.0, 1.0]]), torch.tensor([1.0, -2.0])
    found = unit(vectors, centre)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 1.0]]))
