"""A stand-in for vLLM, for tests where it is not installed: the parts of its interface that the engine uses, by name.

It takes the arguments that vLLM 0.30 takes and refuses what that refuses (tests of the real one compare the names).
An answer is drawn from the seed, the prompt and the adapter's name, and ends with a stop token at a drawn place. What
it was given goes as a line of JSON to the file that FAKE_VLLM_LOG names; FAKE_VLLM_FAILS makes it fail: at `start`, by
`refusing` a request or by `dying` in one, or `slow` makes each request take a minute.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from vllm.lora.request import LoRARequest

FAILS = os.environ.get("FAKE_VLLM_FAILS", "")


def _note(**what: Any) -> None:
    if log := os.environ.get("FAKE_VLLM_LOG"):
        with open(log, "a") as file:
            file.write(json.dumps(what) + "\n")


@dataclass(kw_only=True)
class SamplingParams:
    seed: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 16
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    detokenize: bool = True


@dataclass
class _Output:
    token_ids: tuple[int, ...]


@dataclass
class _Request:
    outputs: list[_Output]


class LLM:
    def __init__(
        self,
        model: str,
        *,
        dtype: str,
        trust_remote_code: bool,
        skip_tokenizer_init: bool,
        generation_config: str,
        enable_prefix_caching: bool,
        tensor_parallel_size: int,
        max_model_len: int | None,
        enforce_eager: bool,
        enable_lora: bool = False,
        max_lora_rank: int = 16,
        enable_chunked_prefill: bool = True,
        gpu_memory_utilization: float = 0.92,
    ):
        if FAILS == "start":
            raise ValueError("Free memory on device is less than desired GPU memory utilization.")
        config = json.loads((Path(model) / "config.json").read_text())
        assert max_lora_rank in (1, 8, 16, 32, 64, 128, 256, 320, 512)
        self.vocabulary = config["vocab_size"]
        self.longest = max_model_len or config["max_position_embeddings"]
        self.room = max_lora_rank if enable_lora else 0
        self.names: dict[int, str] = {}
        given = {name: value for name, value in locals().items() if name not in ("self", "config")}
        told = ("VLLM_", "TORCHDYNAMO", "CUDA_VISIBLE", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "ACCELERATE_")
        environment = {name: value for name, value in os.environ.items() if name.startswith(told)}
        _note(start=given, environment=environment, pid=os.getpid())

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: list[SamplingParams],
        *,
        use_tqdm: Any,
        lora_request: LoRARequest | None = None,
    ) -> list[_Request]:
        name = self._adapter(lora_request)
        _note(prompts=prompts, sampling=[asdict(one) for one in sampling_params], adapter=name)
        if FAILS == "dying":
            os._exit(9)
        bar = use_tqdm(total=len(prompts), desc="Processed prompts", dynamic_ncols=True)
        requests = []
        for prompt, sampling in zip(prompts, sampling_params, strict=True):
            if FAILS == "slow":
                time.sleep(60)
            ids = prompt["prompt_token_ids"]
            if FAILS == "refusing" or len(ids) + 1 > self.longest:
                raise ValueError(f"The decoder prompt (length {len(ids)}) is longer than {self.longest}.")
            draw = Random(f"{name} {ids} {sampling.seed if sampling.temperature else 'greedy'}")
            answer = [draw.randrange(self.vocabulary) for _ in range(sampling.max_tokens)]
            answer = [token if token not in sampling.stop_token_ids else 40 for token in answer]
            if (end := draw.randrange(2 * sampling.max_tokens)) < sampling.max_tokens:
                answer[end:] = [sampling.stop_token_ids[0]]
            requests.append(_Request([_Output(tuple(answer))]))
            bar.update(1)
        bar.close()
        return requests

    def _adapter(self, request: LoRARequest | None) -> str | None:
        if request is None:
            return None
        config = json.loads((Path(request.lora_path) / "adapter_config.json").read_text())
        if config["r"] > self.room:
            raise ValueError(f"LoRA rank {config['r']} is greater than max_lora_rank {self.room}.")
        if self.names.setdefault(request.lora_int_id, request.lora_name) != request.lora_name:
            raise ValueError(f"two adapters have the number {request.lora_int_id}")
        return request.lora_name
