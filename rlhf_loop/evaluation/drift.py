"""How far a policy went from the base, and what it lost of the language: KL and perplexities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_loop.evaluation.measured import Measured
from rlhf_loop.recipe import Policy
from rlhf_loop.records import Completion, Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """The models that KL and perplexity are measured with."""

    policy: Any  # what wrote the candidate's answers
    tokenizer: Any
    settings: Policy  # for the system prompt
    reference: Any = None  # the base model; None: `policy` is a PeftModel and its base is meant
    batch_tokens: int = 8192  # most tokens of one batch, with padding
    reference_made_of: Any = None  # what the reference is and computes in, by content; None: measured anew each time


def kl_and_perplexities(
    models: Models,
    prompts: Sequence[Prompt],
    candidate: Sequence[Completion],
    base: Sequence[Completion],
    plain_text: Sequence[str] | None,
    measured: Measured,
) -> tuple[dict[str, Any], list[float]]:
    """`kl`, `perplexity` and `plain_text_perplexity` of an evaluation, and each answer's KL, in nats.

    `candidate` and `base` answer the prompt at their place; `plain_text` and `measured` are as in `evaluate`."""
    from rlhf_loop.evaluation import language_model as lm
    from rlhf_loop.models.loading import to_messages
    from rlhf_loop.models.turns import Turns

    conversations = [to_messages(prompt, models.settings) for prompt in prompts]
    turns = Turns(models.tokenizer, models.policy)
    ours = lm.encode_answers(turns, conversations, candidate)
    theirs = lm.encode_answers(turns, conversations, base)
    likelihoods = lm.likelihoods(models.policy, ours, models.reference, models.batch_tokens)
    tokens = sum(item.tokens for item in likelihoods)
    total = sum(item.kl for item in likelihoods)
    k1 = sum(item.log_prob - item.reference_log_prob for item in likelihoods)

    def plain(model: Any) -> float | None:
        return lm.plain_text_perplexity(model, models.tokenizer, plain_text or (), batch_tokens=models.batch_tokens)

    def of_base() -> dict[str, float | None]:
        with lm.as_reference(models.policy, models.reference) as reference:
            if reference is models.policy and models.reference is not None and ours == theirs:
                log_probs = [item.log_prob for item in likelihoods]
            else:
                log_probs = lm.log_probs(reference, theirs, models.batch_tokens)
            own = lm.perplexity(log_probs, [len(item.answer) for item in theirs])
            return {"answers": own, "plain_text": plain(reference) if plain_text else None}

    if models.reference_made_of is None:
        base_perplexity = of_base()
    else:
        read = [[item.prompt, item.answer] for item in theirs], list(plain_text or ()), models.batch_tokens
        base_perplexity = measured(["perplexity", models.reference_made_of, *read], of_base)
    plain_ours = None
    if plain_text:
        is_base = models.reference is models.policy
        plain_ours = base_perplexity["plain_text"] if is_base else plain(models.policy)
    found = {
        "kl": {
            "per_completion": total / len(likelihoods),
            "per_token": total / tokens if tokens else 0.0,
            "k1": k1 / len(likelihoods),
        },
        "perplexity": _perplexities(
            lm.perplexity([item.reference_log_prob for item in likelihoods], [item.tokens for item in likelihoods]),
            base_perplexity["answers"],
        ),
        "plain_text_perplexity": _perplexities(plain_ours, base_perplexity["plain_text"]) if plain_text else None,
    }
    return found, [item.kl for item in likelihoods]


def _perplexities(candidate: float | None, base: float | None) -> dict[str, float | None]:
    return {"candidate": candidate, "base": base, "ratio": ratio(candidate, base)}


def ratio(value: float | None, base: float | None) -> float | None:
    """`value` over `base`; None where there is none."""
    return value / base if value is not None and base else None
