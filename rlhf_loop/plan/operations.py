"""Multiplications (with their additions two operations each) and bytes that are read, and so the time of a stage.

Forward 2 a weight and token, backward twice that (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), and of attention
4 L a d a token for each token that it sees. While a policy writes one token after the other, each step reads all
weights and the cache once, which takes longer than the products unless many rows go together (Pope et al. 2022, arXiv
2211.05102, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_loop.plan.case import Case
from rlhf_loop.plan.formulas import Texts, kv_cache
from rlhf_loop.plan.shape import Adapter, Shape

SHARES = {"gpu": {"products": 0.4, "bandwidth": 0.6}, "cpu": {"products": 0.6, "bandwidth": 0.8}}
"""Assumed: how much of the peak is reached. Llama 3 was trained at .38 to .43 of its GPUs' (arXiv 2407.21783)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Time:
    """An estimate of a stage's work, all devices together, and of its seconds where the speed is known."""

    stage: str
    texts: int
    operations: float
    seconds: float | None


def forward_operations(shape: Shape, texts: Texts, layers: int | None = None) -> float:
    """Of a pass, of which `texts.scored` tokens go through the output layer; `layers`: how many are computed."""
    head = shape.vocabulary * shape.hidden
    part = 1.0 if layers is None else min(layers, shape.layers) / shape.layers
    of_layers = 2 * (shape.multiplied - head) * texts.tokens
    of_attention = 4 * shape.layers * shape.heads * shape.head_size * texts.length * texts.tokens
    return part * (of_layers + of_attention) + 2 * head * texts.scored


def training_operations(shape: Shape, texts: Texts, adapter: Adapter | None, checkpointing: bool) -> float:
    """Forward and backward. Beside frozen weights the backward pass goes through the layers from the lowest adapter on,
    for their inputs alone; gradient checkpointing is one more pass forward."""
    once = forward_operations(shape, texts)
    if adapter is None:
        return once * (4 if checkpointing else 3)
    back = forward_operations(shape, texts, shape.layers - (0 if checkpointing else adapter.lowest))
    return once * (2 if checkpointing else 1) + back


def seconds_of(case: Case, operations: float) -> float | None:
    """Of products, shared by all devices."""
    peak = case.hardware.peak
    if peak is None:
        return None
    return operations / (peak * SHARES[case.hardware.kind]["products"] * case.hardware.total)


def writing(case: Case, texts: int, samples: int, prompt: int, new: int, most_rows: int) -> tuple[float, float | None]:
    """Operations and seconds of writing `texts` answers of `new` tokens, `samples` of each prompt, in batches of
    `most_rows` at most: of each step the longer of its products and its reading."""
    shape, devices = case.policy, case.hardware.total
    rows = max(1, min(most_rows, -(-texts // devices)))
    reading = Texts(rows=-(-texts // samples), length=prompt, scored=-(-texts // samples))
    of_prompts = forward_operations(shape, reading)
    step = Texts(rows=rows, length=1, scored=rows)
    seen = prompt + new // 2
    of_step = forward_operations(shape, step) + 4 * shape.layers * shape.heads * shape.head_size * seen * rows
    steps = -(-texts // (rows * devices)) * new
    operations = of_prompts + of_step * steps * devices
    peak, bandwidth = case.hardware.peak, case.hardware.bandwidth
    if peak is None or bandwidth is None:
        return operations, None
    shares = SHARES[case.hardware.kind]
    read = case.element * shape.parameters + kv_cache(shape, rows * seen, case.element)
    slowest = max(of_step / (peak * shares["products"]), read / (bandwidth * shares["bandwidth"]))
    first = seconds_of(case, of_prompts)
    return operations, None if first is None else first + steps * slowest
