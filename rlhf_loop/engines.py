"""The engines that write candidates: one line each says where its `sample` is.

`sample(model, tokenizer, conversations, keys, settings, progress)` gives a list of `Answer`s for each conversation,
which is a list of `{"role", "content"}` (see `rlhf_loop/generation/transformers_engine.py`). For `vllm`, `model` is the
process that writes; for `endpoint` it is who asks the server, and there is no tokenizer. To add one: a file in
`rlhf_loop/generation/` and a line here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rlhf_loop.settings import Settings

ENGINES = {
    "transformers": "rlhf_loop.generation.transformers_engine:sample",
    "vllm": "rlhf_loop.generation.vllm_engine:sample",
    "endpoint": "rlhf_loop.generation.endpoint_engine:sample",
}
"""The name in a recipe -> MODULE:FUNCTION."""

if TYPE_CHECKING:
    EngineName = str
else:
    EngineName = Literal[tuple(ENGINES)]


class Vllm(Settings):
    """How vLLM is started, for `engine: vllm`. None of it changes what is written but for roundings, so it may change
    while a run goes on."""

    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)  # share of each GPU's memory that may be in use
    tensor_parallel_size: int = Field(1, ge=1)  # GPUs that hold one copy of the model together
    max_model_len: int | None = Field(None, ge=2)  # tokens of a prompt with its answer; None: what the model takes
    enforce_eager: bool = False  # compiles nothing: starts sooner and samples slower; on a CPU always


WHOLE = 0.8
"""Share of a device's memory up to which `engine: transformers` has a policy's weights whole on each device, where
Accelerate's config shares weights out."""

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM makes room for; an adapter gets the first that is no less than its own."""

CPU_CACHE_GIB = 4
"""What vLLM keeps keys and values in on a CPU, in main memory, where VLLM_CPU_KVCACHE_SPACE does not say otherwise."""
