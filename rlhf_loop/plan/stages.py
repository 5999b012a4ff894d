"""Memory of the stages that train nothing, whose models are shared out as those in training are, but for a policy that
writes and has room whole."""

from __future__ import annotations

import os

from rlhf_loop.engines import CPU_CACHE_GIB, WHOLE
from rlhf_loop.plan.case import PROCESS, Case, Memory, peak
from rlhf_loop.plan.formulas import FLOAT32, Texts, forward, kv_cache
from rlhf_loop.plan.hardware import GIB
from rlhf_loop.plan.rewards import all_scoring, all_weights, scoring, weights
from rlhf_loop.plan.shape import Adapter, adapter_of
from rlhf_loop.recipe import RewardModelJudge
from rlhf_loop.strategies import STRATEGIES

MEASURED_TOKENS = 8192
MEASURED_LOGITS = 64 * 2**20
CHUNK_LOGITS = 8 * 2**20
"""Limits of a batch whose likelihood is measured (`evaluation/language_model.py`)."""


def generate_memory(case: Case) -> Memory | None:
    """Of writing candidates; None where an endpoint writes them."""
    if case.recipe.generation.engine == "endpoint" or case.recipe.policy.endpoint is not None:
        return None
    prompts = case.recipe.generation.prompts_per_round or case.implied.train
    moments = sampling(case, samples_of(case), prompts)
    if STRATEGIES[case.recipe.generation.strategy].scores:  # after all was written; vLLM has ended by then
        moments["the answers are scored"] = {
            "process": PROCESS[case.hardware.kind],
            "weights": 0 if case.recipe.generation.engine == "vllm" else case.element * case.policy.parameters,
            "reward model": all_weights(case),
            "working": all_scoring(case, samples_of(case) * prompts),
        }
    return peak("generate", moments, host=_host(case))


def sampling(case: Case, samples: int, prompts: int) -> dict[str, dict[str, int]]:
    """Moments of sampling from the policy. An adapter is merged in float32, in main memory, and the sum rounded."""
    shape, generation, implied = case.policy, case.recipe.generation, case.implied
    held = {"process": PROCESS[case.hardware.kind]}
    if generation.engine == "vllm":  # it takes what it is allowed, and uses for its cache what weights leave
        weights_here = case.element * shape.parameters // generation.vllm.tensor_parallel_size
        allowed = int(generation.vllm.gpu_memory_utilization * case.hardware.memory) - weights_here
        if case.on_cpu:
            allowed = int(os.environ.get("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)) * GIB
        cache = max(allowed, kv_cache(shape, implied.prompt + implied.new, case.element))
        return {"vLLM writes": {"weights": weights_here, "KV cache": cache}}
    width = prompt_length(case) + implied.new
    rows = min(samples * prompts, max(1, generation.batch_tokens // width))
    read = Texts(rows=-(-rows // samples), length=prompt_length(case), scored=0)
    numbers = case.numbers(read.length)
    tokens = rows * width
    if case.attention() == "grouped":  # a prompt's keys are there once for its samples
        tokens = read.tokens + rows * implied.new
    whole = _writes_whole(case)
    moments = {
        "the policy samples": {
            **held,
            "weights": case.of_policy if whole else case.read(case.of_policy),
            "gathered": 0 if whole else case.gathered(shape),
            "KV cache": kv_cache(shape, tokens, case.element),
            "logits": 2 * case.element * rows * shape.vocabulary,
            "working": forward(shape, read, numbers),
        }
    }
    if case.on_cpu:
        moments["the adapter is merged"] = {**held, "weights": _merging(case)}
    return moments


def _writes_whole(case: Case) -> bool:
    """Whether each device has the whole policy while it samples (`generation.loaded`)."""
    return not case.sharing.weights or case.of_policy <= WHOLE * case.hardware.memory


def _merging(case: Case) -> int:
    """Bytes of a base in float32, its adapter, and the product of one matrix's; 0 without an adapter, and on a
    quantised base, where it stays apart."""
    adapter = policy_adapter(case)
    if adapter is None or case.recipe.policy.quantization is not None:
        return 0
    return FLOAT32 * (case.policy.parameters + adapter.parameters + adapter.adapted // adapter.matrices)


def _host(case: Case) -> int:
    """Main memory of a machine: each device's process loads and merges there, or one for all."""
    if case.on_cpu:
        return 0
    processes = case.hardware.devices if _writes_whole(case) else 1
    return processes * max(_merging(case), case.element * case.policy.parameters)


def score_memory(case: Case) -> Memory | None:
    """Of scoring candidates; None where nothing of it is computed here."""
    held = all_weights(case)
    if not held:
        return None
    texts = samples_of(case) * (case.recipe.generation.prompts_per_round or case.implied.train)
    process = PROCESS[case.hardware.kind]
    return peak("score", {"": {"process": process, "reward model": held, "working": all_scoring(case, texts)}})


def evaluate_memory(case: Case) -> Memory | None:
    """Of answering held-out prompts, and of measuring the answers: policy, reference (with an adapter the policy
    without it), reward model and judge are there together."""
    if case.recipe.policy.endpoint is not None:
        return None
    shape, evaluation = case.policy, case.recipe.evaluation
    moments = sampling(case, evaluation.samples_per_prompt, max(case.implied.held_out, 1))
    judge = beside = 0
    if isinstance(evaluation.judge, RewardModelJudge):
        spec, of_judge = case.rewards[evaluation.judge.model]
        judge = weights(case, spec, of_judge)
        beside = scoring(case, spec, of_judge, max(case.implied.held_out, 1))
    adapter = policy_adapter(case)
    of_policy = case.of_policy + (case.element * adapter.parameters if adapter else 0)
    answers = max(1, evaluation.samples_per_prompt * case.implied.held_out)
    length = case.implied.prompt + case.implied.new
    rows = max(1, min(answers, MEASURED_TOKENS // length, MEASURED_LOGITS // (case.implied.new * shape.vocabulary)))
    logits = case.element * rows * (case.implied.new + 1) * shape.vocabulary
    chunk = min(CHUNK_LOGITS, case.implied.new * shape.vocabulary)
    read = Texts(rows=rows, length=length, scored=0)
    moments["likelihoods are measured"] = {
        "process": PROCESS[case.hardware.kind],
        "weights": case.read(of_policy),
        "reference": 0 if adapter else case.read(case.of_policy),
        "reward model": all_weights(case),
        "judge": judge,
        "logits": 2 * logits + 5 * FLOAT32 * chunk,
        "working": max(
            forward(shape, read, case.numbers(length)) + case.gathered(shape), all_scoring(case, answers), beside
        ),
    }
    return peak("evaluate", moments, host=_host(case))


def prompt_length(case: Case) -> int:
    """Tokens of what candidates are asked with: also an answer to revise with what was said of it, and exemplars."""
    settings, implied = case.recipe.generation, case.implied
    strategy = STRATEGIES[settings.strategy]
    length = implied.prompt
    if strategy.exemplars:
        length += settings.exemplars.k * (implied.prompt + implied.answer)
    if strategy.revises:
        length += 2 * implied.answer
    limit = case.policy.context
    return length if limit is None else max(1, min(length, limit - implied.new))


def samples_of(case: Case) -> int:
    """Answers that are written for a prompt."""
    settings = case.recipe.generation
    return settings.best_of_n.n if STRATEGIES[settings.strategy].scores else settings.samples_per_prompt


def policy_adapter(case: Case) -> Adapter | None:
    """What a policy of a later round has on its base."""
    update = case.recipe.update
    if update.algorithm == "none" or update.lora is None:
        return None
    return adapter_of(case.policy, update.lora.r, update.lora.target_modules)
