"""The fused head for a CPU, against a plain log-softmax."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from samples import token_task as task
from transformers import AutoModelForCausalLM
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import add_fused_lm_head

from rlhf_loop.updates import cpu_head
from rlhf_loop.updates.cpu_head import Head, add_cpu_head

ROWS, WIDTH, VOCABULARY = 13, 8, 50


def inputs(dtype: torch.dtype = torch.float32, bias: bool = True) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_()
    shift = torch.randn(VOCABULARY, generator=generator).to(dtype).requires_grad_() if bias else None
    return [hidden, weight, shift, torch.randint(VOCABULARY, (ROWS,), generator=generator)]


def plain(hidden: Any, weight: Any, bias: Any, targets: Any, temperature: float, scale: float) -> Any:
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    logp = (logits * scale / temperature).log_softmax(-1)
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kept", [1 << 27, 0], ids=["kept", "again"])
@pytest.mark.parametrize("chunk", [1 << 24, 4 * VOCABULARY], ids=["whole", "chunks"])
@pytest.mark.parametrize("of_entropy", [0.0, 0.3])
@pytest.mark.parametrize("still", [0, 6], ids=["all", "some"])
def test_values_and_gradients_are_those_of_a_log_softmax(
    monkeypatch: pytest.MonkeyPatch, bias: bool, kept: int, chunk: int, of_entropy: float, still: int
) -> None:
    monkeypatch.setattr(cpu_head, "_KEPT", kept)
    monkeypatch.setattr(cpu_head, "_CHUNK", chunk)
    ours, theirs = inputs(bias=bias), inputs(bias=bias)
    log_probs, entropy, *rest = Head.apply(*ours, 0.7, 16, None, 1.3, ("log_probs", "entropy"))
    expected, expected_entropy = plain(*theirs, 0.7, 1.3)
    assert rest == [None, None, None]
    torch.testing.assert_close(log_probs, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    weights = torch.linspace(-1, 2, ROWS)
    weights[3 : 3 + still] = 0  # no gradient: a whole chunk, and part of another
    loss = (log_probs * weights).sum() + (of_entropy * (entropy * weights).sum() if of_entropy else 0)
    loss.backward()
    ((expected * weights).sum() + of_entropy * (expected_entropy * weights).sum()).backward()
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        if mine is not None:
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4)


def test_bfloat16_is_as_near_to_float32_as_trls_own_kernel() -> None:
    exact, ours, theirs = inputs(torch.float32, bias=False), inputs(torch.bfloat16, bias=False), None
    theirs = inputs(torch.bfloat16, bias=False)
    results = {}
    for name, kernel, values in (("ours", Head, ours), ("theirs", ChunkedLogProbFunction, theirs)):
        log_probs, *_ = kernel.apply(*values, 1.0, 16, None, 1.0, ("log_probs", "entropy"))
        log_probs.sum().backward()
        results[name] = log_probs
    expected, _ = plain(*exact, 1.0, 1.0)
    expected.sum().backward()
    for row, limit in ((0, 0.2), (1, 0.2)):
        mine = (ours[row].grad.float() - exact[row].grad).abs().max()
        assert mine <= max(limit, 1.5 * (theirs[row].grad.float() - exact[row].grad).abs().max())
    assert (results["ours"] - expected).abs().max() <= 1.5 * (results["theirs"] - expected).abs().max() + 1e-3


def test_logits_that_are_capped_are_left_to_trl() -> None:
    mine, theirs = inputs(bias=False), inputs(bias=False)
    ours = Head.apply(*mine, 1.0, 16, 5.0, 1.0, ("log_probs",))
    other = ChunkedLogProbFunction.apply(*theirs, 1.0, 16, 5.0, 1.0, ("log_probs",))
    assert torch.equal(ours[0], other[0])


def with_heads() -> Any:
    model = AutoModelForCausalLM.from_pretrained(task.model_folder())
    add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
    add_cpu_head(model, temperature=0.7)
    return model


IDS = torch.tensor([[3, 5, 7, 9, 11], [4, 6, 8, 10, 12]])
LABELS = torch.tensor([[-100, -100, 7, 9, 11], [-100, -100, 8, 10, -100]])


def test_a_model_scores_what_has_a_label_and_gives_logits_as_before() -> None:
    model = with_heads()
    logits = model(input_ids=IDS).logits
    log_probs = (logits / 0.7).log_softmax(-1)[:, :-1]
    expected = log_probs.gather(-1, IDS[:, 1:, None])[..., 0]
    scored = LABELS[:, 1:] != -100
    output = model(input_ids=IDS, labels=LABELS, fused_lm_head=True)
    torch.testing.assert_close(output.log_probs, expected * scored)
    torch.testing.assert_close(output.entropy, -(log_probs.exp() * log_probs).sum(-1) * scored)
    torch.testing.assert_close(output.loss, -expected[scored].mean())


def test_labels_may_be_shifted_already_and_metrics_are_trls() -> None:
    names = ("log_probs", "entropy", "mean_logits", "is_top1")
    model = AutoModelForCausalLM.from_pretrained(task.model_folder())
    add_fused_lm_head(model, temperature=0.7, outputs=names)
    shifted = torch.tensor([[-100, 7, 9, 11, 3], [-100, 8, 10, -100, -100]])
    shifted[0, 1] = model(input_ids=IDS).logits[0, 1].argmax()
    expected = model(input_ids=IDS, shift_labels=shifted, fused_lm_head=True)
    add_cpu_head(model, temperature=0.7, outputs=names)
    output = model(input_ids=IDS, shift_labels=shifted, fused_lm_head=True)
    for name in names:
        torch.testing.assert_close(output[name], expected[name], msg=name)
    assert output.is_top1[0, 1]


def test_a_batch_without_a_label_has_a_gradient_of_zero() -> None:
    model = with_heads()
    model(input_ids=IDS, labels=torch.full_like(IDS, -100), fused_lm_head=True).log_probs.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("setting", cpu_head._MORE_THAN_A_PRODUCT)
def test_a_model_whose_logits_are_scaled_keeps_trls_head(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(task.model_folder())
    setattr(model.config, setting, 2.0)
    add_fused_lm_head(model)
    expected = model(input_ids=IDS, labels=LABELS, fused_lm_head=True).log_probs
    add_cpu_head(model)
    monkeypatch.setattr(Head, "apply", None)
    assert torch.equal(model(input_ids=IDS, labels=LABELS, fused_lm_head=True).log_probs, expected)
