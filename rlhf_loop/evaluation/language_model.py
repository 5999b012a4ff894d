"""What a language model says of answers: how far the policy moved, and how well the answers read.

Models are Hugging Face causal language models. The reference is a second model with the same vocabulary, or the base
weights of a `PeftModel` policy (its adapters switched off).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from rlhf_loop.batches import batches
from rlhf_loop.errors import UserError
from rlhf_loop.models.distributed import sharded_map
from rlhf_loop.models.turns import Tokens, Turns
from rlhf_loop.records import Completion, Message

T = TypeVar("T")

BATCH_LOGITS = 64 * 2**20
"""Most logits (rows x answer positions x vocabulary) of one batch, in the model's own precision: 128 MiB in bf16."""

CHUNK_LOGITS = 8 * 2**20
"""Most logits that are in fp32 at a time: 32 MiB for each of the few tensors made of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Likelihood:
    """One answer under a policy and a reference; natural logarithms, summed over the answer's tokens."""

    tokens: int
    log_prob: float
    reference_log_prob: float
    kl: float  # KL(policy || reference) over the vocabulary, summed over positions


def encode_answers(
    turns: Turns, conversations: Sequence[Sequence[Message]], completions: Sequence[Completion]
) -> list[Tokens]:
    """The tokens of each answer and of the conversation before it, as the policy read and wrote them."""
    encoded = [
        turns.tokens(
            prompt,
            [Message(role="assistant", content=completion.text)],
            finished=completion.finish_reason == "stop",
            token_ids=completion.token_ids,
            by_policy=completion.by_policy,
        )
        for prompt, completion in zip(conversations, completions, strict=True)
    ]
    turns.say_unfit(len(encoded))
    return encoded


def likelihoods(
    policy: Any, sequences: Sequence[Tokens], reference: Any = None, batch_tokens: int = 8192
) -> list[Likelihood]:
    """The likelihood of each answer under the policy and the reference, and the exact KL between them, in order.

    `kl` sums, over the answer's positions, KL(pi || ref) of the whole next-token distribution: for answers sampled
    from the policy at temperature 1 it estimates the KL of whole answers without bias and with less variance than
    `log_prob - reference_log_prob` (Amini et al. 2025, arXiv 2504.10637, Rao-Blackwellised estimator).
    `reference`: a model; None: the policy is a `PeftModel` and its base is the reference.
    A batch has at most `batch_tokens` tokens with padding. All ranks must call this, each does a share.
    Raises `UserError` when the two models' vocabularies differ or there is no reference.
    """

    def measure(batch: Sequence[Tokens]) -> list[tuple[float, float, float]]:
        ours = _answer_logits(policy, batch)  # (rows, positions, vocabulary)
        with as_reference(policy, reference) as model:
            theirs = ours if reference is policy else _answer_logits(model, batch)
        if ours.shape != theirs.shape:
            raise UserError(
                f"the policy has {ours.shape[-1]} tokens in its vocabulary and the reference {theirs.shape[-1]}; KL "
                "needs models with the same tokenizer"
            )
        return _sums(ours, theirs, batch)

    with _no_training(policy), _no_training(reference):
        sums = _in_batches(measure, sequences, batch_tokens, _vocabulary(policy))
    return [
        Likelihood(tokens=len(item.answer), log_prob=ours, reference_log_prob=theirs, kl=kl)
        for item, (ours, theirs, kl) in zip(sequences, sums, strict=True)
    ]


def log_probs(model: Any, sequences: Sequence[Tokens], batch_tokens: int = 8192) -> list[float]:
    """The log-probability of each answer given its prompt, in nats, in order. All ranks must call this."""

    def measure(batch: Sequence[Tokens]) -> list[float]:
        return [log_prob for log_prob, _, _ in _sums(_answer_logits(model, batch), None, batch)]

    with _no_training(model):
        return _in_batches(measure, sequences, batch_tokens, _vocabulary(model))


def perplexity(log_probabilities: Sequence[float], tokens: Sequence[int]) -> float | None:
    """exp of the mean negative log-likelihood a token, each token weighing the same; None without any token."""
    number = sum(tokens)
    return math.exp(min(-sum(log_probabilities) / number, 700.0)) if number else None  # beyond it exp overflows


def plain_text_perplexity(
    model: Any, tokenizer: Any, lines: Sequence[str], window: int = 512, batch_tokens: int = 8192
) -> float | None:
    """Perplexity of ordinary text, one paragraph a line: what the model still knows beside its task.

    The first token of a line (or of each further `window` tokens of a long one) is given, the rest is predicted.
    Raises `UserError` when no line has two tokens.
    """
    sequences = []
    for line in lines:
        ids = tokenizer(line.strip())["input_ids"]
        for start in range(0, len(ids), window):
            part = ids[start : start + window]
            if len(part) > 1:
                sequences.append(Tokens(prompt=(part[0],), answer=tuple(part[1:])))
    if not sequences:
        raise UserError("evaluation.plain_text: the file holds no line of two words or more; give some paragraphs")
    return perplexity(log_probs(model, sequences, batch_tokens), [len(item.answer) for item in sequences])


@contextmanager
def as_reference(policy: Any, reference: Any) -> Iterator[Any]:
    """The reference model for a while: `reference`, or the policy with its adapters off."""
    if reference is None and not hasattr(policy, "disable_adapter"):
        raise UserError("no reference model: give one, or a PeftModel policy whose base is the reference")
    with nullcontext() if reference is not None else policy.disable_adapter():
        yield policy if reference is None else reference


@contextmanager
def _no_training(model: Any) -> Iterator[None]:
    """Without dropout and gradients; the model's mode is put back."""
    training = model is not None and model.training
    if training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if training:
            model.train()


def _vocabulary(model: Any) -> int:
    return int(model.get_output_embeddings().weight.shape[0])


def _in_batches(
    measure: Callable[[Sequence[Tokens]], list[T]], sequences: Sequence[Tokens], batch_tokens: int, vocabulary: int
) -> list[T]:
    """`measure` of batches of similar length, the ranks sharing them; results in the order of `sequences`."""
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i].prompt + sequences[i].answer))

    def share(indices: Sequence[int]) -> list[Any]:
        mine = [sequences[i] for i in indices]
        results: list[Any] = [None] * len(mine)
        for numbers in _batches(mine, batch_tokens, vocabulary):
            for number, value in zip(numbers, measure([mine[i] for i in numbers]), strict=True):
                results[number] = value
        return results

    by_length = sharded_map(share, order)
    results: list[Any] = [None] * len(sequences)
    for i, value in zip(order, by_length, strict=True):
        results[i] = value
    return results


def _batches(sequences: Sequence[Tokens], batch_tokens: int, vocabulary: int) -> list[list[int]]:
    """Their numbers in batches within both limits, of padded tokens and of logits; at least one each."""
    lengths = [len(item.prompt) + len(item.answer) for item in sequences]
    return batches(lengths, batch_tokens, [len(item.answer) for item in sequences], BATCH_LOGITS // vocabulary)


def _answer_logits(model: Any, batch: Sequence[Tokens]) -> torch.Tensor:
    """The logits that predict the answers' tokens, (rows, longest answer, vocabulary), in the model's precision.

    Rows are padded on the left, so that all answers end at the same place and only their positions get logits.
    """
    width = max(len(item.prompt) + len(item.answer) for item in batch)
    positions = max(len(item.answer) for item in batch)
    device = model.get_input_embeddings().weight.device
    ids = torch.zeros((len(batch), width), dtype=torch.long)  # padding is masked, so any id will do
    mask = torch.zeros((len(batch), width), dtype=torch.long)
    for row, item in enumerate(batch):
        tokens = item.prompt + item.answer
        ids[row, width - len(tokens) :] = torch.tensor(tokens)
        mask[row, width - len(tokens) :] = 1
    output = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=(mask.cumsum(1) - 1).clamp(min=0).to(device),
        logits_to_keep=positions + 1,
        use_cache=False,
    )
    # a logit predicts the token after it: the last one has none to predict
    logits: torch.Tensor = output.logits[:, -positions - 1 : -1]
    return logits


def _sums(ours: torch.Tensor, theirs: torch.Tensor | None, batch: Sequence[Tokens]) -> list[tuple[float, float, float]]:
    """For each row: log-probability under both and KL, summed over its answer; fp32, a few positions at a time."""
    chunk = max(1, CHUNK_LOGITS // ours.shape[-1])
    results = []
    for row, item in enumerate(batch):
        log_prob = reference_log_prob = kl = 0.0
        first = ours.shape[1] - len(item.answer)  # answers are flush right
        targets = torch.tensor(item.answer, device=ours.device).unsqueeze(1)  # (positions, 1)
        for start in range(0, len(item.answer), chunk):
            part = slice(start, start + chunk)
            place = slice(first + start, min(first + start + chunk, ours.shape[1]))
            p = ours[row, place].float().log_softmax(-1)  # (chunk, vocabulary)
            log_prob += p.gather(1, targets[part]).double().sum().item()
            if theirs is None:
                continue
            q = theirs[row, place].float().log_softmax(-1)
            reference_log_prob += q.gather(1, targets[part]).double().sum().item()
            kl += (p.exp() * (p - q)).sum(-1).double().sum().item()
        results.append((log_prob, reference_log_prob, kl))
    return results
