"""Sampling against exact probabilities; answers that do not depend on how the work was cut up."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_loop.errors import UserError
from rlhf_loop.generation import generate
from rlhf_loop.generation.sampling import sample_tokens, uniforms
from rlhf_loop.models.loading import load_policy, to_messages
from rlhf_loop.models.turns import encode_prompts
from rlhf_loop.recipe import Generation, Policy
from rlhf_loop.records import Completion, Message, Prompt

LENGTHS = (1, 30, 7, 7, 55, 2, 19)


def prompts() -> list[Prompt]:
    words = ["what", "is", "the", "best", "way", "to", "walk", "home", "and", "why", "do", "people", "think", "so"]
    return [
        Prompt(
            id=f"p{i}",
            group=f"p{i}",
            messages=(Message(role="user", content=" ".join(itertools.islice(itertools.cycle(words[i:]), n))),),
        )
        for i, n in enumerate(LENGTHS)
    ]


def sampled(policy: object, chosen: list[Prompt], settings: Generation, **options: object) -> list[Completion]:
    place = {"policy_id": "tiny", "round": 1, "seed": 5} | options
    return generate(policy, chosen, settings, policy_settings=Policy(model="", dtype="float32"), **place)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def loaded(tiny_policy: Path) -> tuple[object, object]:
    return load_policy(tiny_policy, Policy(model=str(tiny_policy), dtype="float32"))


# --- random numbers


def test_uniforms_depend_on_their_place_alone() -> None:
    one = uniforms(3, 1, "prompt", 0, 8)
    assert np.array_equal(one, uniforms(3, 1, "prompt", 0, 100)[:8])
    for other in [(4, 1, "prompt", 0), (3, 2, "prompt", 0), (3, 1, "prompt2", 0), (3, 1, "prompt", 1)]:
        assert not np.isin(one, uniforms(*other, 8)).any()


def test_uniforms_are_what_they_were_when_runs_were_saved() -> None:
    expected = [0.43711574548221077, 0.687012106273958, 0.1246024171151986]
    np.testing.assert_allclose(uniforms(0, 1, "a prompt", 2, 3), expected, atol=1e-15)


# --- tokens from logits


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1, 1, 0), (0.6, 1, 0), (1, 0.8, 0), (1.5, 0.9, 6), (1, 1, 3)]
)
def test_frequencies_are_the_exact_probabilities(temperature: float, top_p: float, top_k: int) -> None:
    n = 40_000
    logits = torch.randn(11, generator=torch.Generator().manual_seed(1)) * 1.5
    expected = exact_probabilities(logits.double().numpy(), temperature, top_p, top_k)
    tokens = sample_tokens(
        logits.expand(n, -1), torch.from_numpy(uniforms(0, 0, "chi", 0, n)), temperature, top_p, top_k
    )
    counts = np.bincount(tokens.numpy(), minlength=11)
    assert counts[expected == 0].sum() == 0
    inside = expected > 0
    chi2 = float(((counts - n * expected)[inside] ** 2 / (n * expected[inside])).sum())
    freedom = int(inside.sum()) - 1
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)  # four standard deviations of a chi-square


def exact_probabilities(logits: np.ndarray, temperature: float, top_p: float, top_k: int) -> np.ndarray:
    """The definition, one token after the other."""
    weights = np.exp(logits / temperature)
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    if top_k:
        order = order[:top_k]
    total = sum(weights[token] for token in order)
    kept, mass = [], 0.0
    for token in order:
        kept.append(token)
        mass += weights[token] / total
        if mass >= top_p:
            break
    probabilities = np.zeros_like(weights)
    probabilities[kept] = weights[kept] / weights[kept].sum()
    return probabilities


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])  # from nearly flat (the set is most of the vocabulary) to peaked
def test_top_p_draws_exactly_its_set_from_a_wide_vocabulary(top_p: float, scale: float) -> None:
    logits = torch.randn(700, generator=torch.Generator().manual_seed(7)).double() * scale
    allowed = exact_probabilities(logits.numpy(), 1.0, top_p, 0) > 0
    grid = (torch.arange(12_000, dtype=torch.float64) + 0.5) / 12_000
    drawn = sample_tokens(logits.float().expand(len(grid), -1), grid, top_p=top_p).unique().numpy()
    assert allowed[drawn].all()
    likely = exact_probabilities(logits.numpy(), 1.0, top_p, 0) > 1 / 1_000
    assert np.isin(np.flatnonzero(likely), drawn).all()


def test_tokens_without_probability_are_never_drawn() -> None:
    vocabulary = 700  # more than one block, and not a whole number of them
    logits = torch.randn(2000, vocabulary, generator=torch.Generator().manual_seed(2)) * 3
    logits[:, 100:600] = -math.inf  # a whole block without any weight
    numbers = torch.from_numpy(uniforms(0, 0, "never", 0, 2000))
    numbers[:2] = torch.tensor([0.0, 1 - 2**-53])
    tokens = sample_tokens(logits, numbers)
    assert ((tokens < 100) | (tokens >= 600)).all()
    assert (tokens < vocabulary).all()


def test_blocks_get_their_share() -> None:
    """Over a vocabulary of several blocks: exact probabilities of groups of tokens that cross them."""
    n, vocabulary = 20_000, 1100
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(4)) * 2
    tokens = sample_tokens(logits.expand(n, -1), torch.from_numpy(uniforms(0, 0, "blocks", 0, n)))
    expected = torch.softmax(logits.double(), -1)
    groups = torch.arange(vocabulary) % 40
    shares = torch.zeros(40, dtype=torch.float64).index_add(0, groups, expected)
    counts = torch.bincount(groups[tokens], minlength=40)
    chi2 = float(((counts - n * shares) ** 2 / (n * shares)).sum())
    assert chi2 < 39 + 4 * math.sqrt(2 * 39)


def test_rounding_of_logits_changes_next_to_no_tokens() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(4000, 3000, generator=generator) * 2
    noise = torch.randn(logits.shape, generator=generator) * 1e-3  # a hundred times that of float32
    numbers = torch.from_numpy(uniforms(0, 0, "rounding", 0, 4000))
    changed = int((sample_tokens(logits, numbers) != sample_tokens(logits + noise, numbers)).sum())
    # Each changes with a probability of at most about twice the total variation distance, some 4e-4.
    assert changed <= 12


def test_the_same_numbers_give_the_same_tokens_as_when_runs_were_saved() -> None:
    logits = torch.linspace(-3, 3, 1000).repeat(6, 1)
    tokens = sample_tokens(logits, torch.from_numpy(uniforms(0, 1, "a prompt", 2, 6)))
    assert tokens.tolist() == [938, 990, 878, 877, 955, 325]


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]])
    assert sample_tokens(logits, torch.tensor([0.9, 0.9]), temperature=0).tolist() == [1, 0]


def test_tokens_do_not_depend_on_the_rows_around_them() -> None:
    logits = torch.randn(50, 3000, generator=torch.Generator().manual_seed(3)) * 2
    numbers = torch.rand(50, dtype=torch.float64)
    for options in ({}, {"top_p": 0.9}, {"top_k": 50}):
        alone = [int(sample_tokens(logits[i : i + 1], numbers[i : i + 1], **options)) for i in range(50)]
        assert sample_tokens(logits, numbers, **options).tolist() == alone


# --- the engine


def test_completions_come_in_order_with_their_provenance(loaded: tuple[object, object]) -> None:
    calls: list[tuple[int, int]] = []
    settings = Generation(samples_per_prompt=3, max_new_tokens=6, batch_tokens=300, temperature=0.9)
    made = sampled(loaded, prompts(), settings, progress=lambda done, total: calls.append((done, total)))
    assert [(c.prompt_id, c.sample) for c in made] == [(f"p{i}", s) for i in range(len(LENGTHS)) for s in range(3)]
    assert len({c.id for c in made}) == len(made)
    assert {(c.policy, c.round, c.seed) for c in made} == {("tiny", 1, 5)}
    assert made[0].sampling == {"temperature": 0.9, "top_p": 1.0, "top_k": 0, "max_new_tokens": 6}
    assert calls[-1] == (21, 21)
    assert len(calls) > 1


def test_each_token_has_the_models_probability_given_all_before_it(loaded: tuple[object, object]) -> None:
    """Against full forwards without cache, padding or batch: greedy answers must be the argmax at each place."""
    model, tokenizer = loaded
    settings = Generation(samples_per_prompt=1, max_new_tokens=12, temperature=0)
    for prompt, completion in zip(prompts(), sampled(loaded, prompts(), settings), strict=True):
        ids = encode_prompts(tokenizer, [to_messages(prompt, Policy(model=""))])[0]
        start = len(ids)
        for _ in range(12):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))  # type: ignore[operator]
            if ids[-1] == tokenizer.eos_token_id:  # type: ignore[attr-defined]
                break
        assert completion.text == tokenizer.decode(ids[start:], skip_special_tokens=True)  # type: ignore[attr-defined]
        assert completion.tokens == len(ids) - start


@pytest.mark.parametrize("stopping", [1, 60])
def test_in_float32_answers_do_not_depend_on_batches_or_company(
    loaded: tuple[object, object], monkeypatch: pytest.MonkeyPatch, stopping: int
) -> None:
    model, _ = loaded
    # With many tokens that end a turn, rows leave the batch all the time.
    monkeypatch.setattr(model.generation_config, "eos_token_id", list(range(2, 2 + stopping)))  # type: ignore[attr-defined]
    results = []
    for budget, chosen in [(100_000, prompts()), (250, prompts()), (1, prompts()), (500, prompts()[::-1])]:
        settings = Generation(samples_per_prompt=4, max_new_tokens=24, batch_tokens=budget)
        made = sampled(loaded, chosen, settings)
        results.append(sorted((c.prompt_id, c.sample, c.text, c.finish_reason, c.tokens) for c in made))
    assert results[0] == results[1] == results[2] == results[3]
    one = sampled(loaded, prompts()[3:4], Generation(samples_per_prompt=2, max_new_tokens=24))
    assert [(c.prompt_id, c.sample, c.text, c.finish_reason, c.tokens) for c in one] == results[0][12:14]
    if stopping > 1:
        assert {c[3] for c in results[0]} == {"stop", "length"}


def test_another_seed_or_round_gives_other_answers(loaded: tuple[object, object]) -> None:
    settings = Generation(samples_per_prompt=2, max_new_tokens=12)
    texts = [
        [c.text for c in sampled(loaded, prompts()[:2], settings, **place)]
        for place in ({}, {"seed": 6}, {"round": 2}, {})
    ]
    assert texts[0] == texts[3]
    assert texts[0] != texts[1] != texts[2] != texts[0]
    assert texts[0][0] != texts[0][1]


def test_an_answer_ends_with_the_turn(loaded: tuple[object, object], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded
    first = sampled(loaded, prompts()[:1], Generation(samples_per_prompt=1, max_new_tokens=1, temperature=0))[0]
    assert (first.finish_reason, first.tokens) == ("length", 1)
    end = tokenizer.encode(first.text)[0]  # type: ignore[attr-defined]
    monkeypatch.setattr(model.generation_config, "eos_token_id", end)  # type: ignore[attr-defined]
    stopped = sampled(loaded, prompts()[:1], Generation(samples_per_prompt=1, max_new_tokens=9, temperature=0))[0]
    assert (stopped.finish_reason, stopped.tokens) == ("stop", 1)


def test_a_lora_policy_answers_as_its_merged_weights_do(tiny_policy: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_policy(tiny_policy, Policy(model=str(tiny_policy), dtype="float32"))
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    settings = Generation(samples_per_prompt=2, max_new_tokens=12)
    with_adapter = [c.text for c in sampled((adapted, tokenizer), prompts(), settings)]
    merged = [c.text for c in sampled((adapted.merge_and_unload(), tokenizer), prompts(), settings)]
    assert with_adapter == merged
    assert with_adapter != [c.text for c in sampled(str(tiny_policy), prompts(), settings)]


def test_a_prompt_that_does_not_fit_the_context_is_named(loaded: tuple[object, object]) -> None:
    with pytest.raises(UserError, match=r"prompt p0 has .* lower generation\.max_new_tokens"):
        sampled(loaded, prompts(), Generation(max_new_tokens=2040))


def test_no_prompts_give_no_completions() -> None:
    assert sampled("never loaded", [], Generation()) == []


@pytest.mark.slow
@pytest.mark.skipif("RLHF_LOOP_TEST_MODEL" not in os.environ, reason="RLHF_LOOP_TEST_MODEL names no real model")
def test_a_real_model_in_float32_answers_the_same_in_any_batches() -> None:
    policy = load_policy(os.environ["RLHF_LOOP_TEST_MODEL"], Policy(model="", dtype="float32"))
    results = [
        sampled(policy, prompts(), Generation(samples_per_prompt=4, max_new_tokens=24, batch_tokens=budget))
        for budget in (100_000, 700)
    ]
    assert results[0] == results[1]
