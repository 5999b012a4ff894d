"""The process that holds vLLM's `LLM`: requests come in as lines of JSON on its input, answers go out on its output.

    python -m rlhf_loop.generation.vllm_process

The first line says how the engine is made; back comes `{"ready": true}`. Each further line is a request,

    {"prompts": [[1, 2]], "seeds": [[7, 8]], "sampling": {...}, "adapter": {"name": ..., "number": ..., "path": ...}}

and back come `{"done", "total"}` with each answer, and at the end `{"answers": [[...], [...]]}` for each prompt, a list
of token ids for each of its seeds; or `{"error": ...}`, and it ends. It ends when its input does, also in the middle of
a request, so it never outlives who started it.
"""

from __future__ import annotations

import io
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Say = Callable[[dict[str, Any]], None]


class Engine:
    """vLLM with one model, and adapters on it by name."""

    def __init__(
        self,
        *,
        model: str,
        dtype: str,
        trust_remote_code: bool,
        lora_rank: int | None,
        on_cpu: bool,
        gpu_memory_utilization: float,
        tensor_parallel_size: int,
        max_model_len: int | None,
        enforce_eager: bool,
    ):
        """`model`: a folder of plain weights, or a hub id. `lora_rank`: room for an adapter's rank; None: no adapter.
        The rest as in `rlhf_loop.engines.Vllm`. Raises what vLLM does, and `ImportError` where it is not installed."""
        import vllm

        self.vllm = vllm
        options: dict[str, Any] = {} if lora_rank is None else {"enable_lora": True, "max_lora_rank": lora_rank}
        if on_cpu:
            # A prompt that is read in parts takes back random numbers, which torch's generator on a CPU cannot.
            options["enable_chunked_prefill"] = False
        else:
            options["gpu_memory_utilization"] = gpu_memory_utilization
        self.llm = vllm.LLM(
            model=model,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            skip_tokenizer_init=True,  # prompts and answers are token ids
            generation_config="vllm",  # nothing of the model's own sampling settings
            enable_prefix_caching=True,
            tensor_parallel_size=tensor_parallel_size,
            max_model_len=max_model_len,
            enforce_eager=enforce_eager or on_cpu,
            **options,
        )

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Mapping[str, Any],
        adapter: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[list[list[int]]]:
        """The token ids of an answer for each seed of each prompt, with the stop token that ended it, if one did.

        `sampling`: fields of `SamplingParams`; ends of turns are in its `stop_token_ids`. `adapter`: its name, a number
        that no other has, and its folder; None: the model as it is."""
        requests = [(prompt, seed) for prompt, own in zip(prompts, seeds, strict=True) for seed in own]
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt, _ in requests],
            [
                self.vllm.SamplingParams(seed=seed, ignore_eos=True, detokenize=False, **sampling)
                for _, seed in requests
            ],
            use_tqdm=_reporting(progress, len(requests)),
            lora_request=None if adapter is None else self.lora(adapter),
        )
        answers = iter([list(output.outputs[0].token_ids) for output in outputs])
        return [[next(answers) for _ in own] for own in seeds]

    def lora(self, adapter: Mapping[str, Any]) -> Any:
        """vLLM's request for an adapter."""
        from vllm.lora.request import LoRARequest

        return LoRARequest(adapter["name"], adapter["number"], adapter["path"])


def _reporting(progress: Callable[[int, int], None], total: int) -> Callable[..., Any]:
    """What vLLM makes its bars with: one that shows nothing and says how many requests are done."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def update(self, n: float | None = 1) -> None:
            super().update(n)
            if self.desc and self.desc.startswith("Processed"):  # not those that are still being read in
                progress(int(self.n), total)

    return lambda *given, **options: Bar(*given, **{**options, "file": io.StringIO()})


def main() -> None:
    """Makes the engine that the first line describes, and answers until the input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print goes to the log, not between the answers

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    inbox: queue.SimpleQueue[str] = queue.SimpleQueue()
    busy = threading.Event()
    busy.set()
    threading.Thread(target=_read, args=(inbox, busy), daemon=True).start()
    try:
        start = inbox.get()
        if not start:
            return
        engine = Engine(**json.loads(start))
        say({"ready": True})
        while True:
            busy.clear()
            line = inbox.get()
            if not line:
                return
            busy.set()
            answers = engine.write(**json.loads(line), progress=lambda done, total: say({"done": done, "total": total}))
            for samples in answers:
                say({"answers": samples})
    except ImportError as error:
        say({"error": f"it cannot be imported ({error}); `pip install 'rlhf-loop[vllm]'` installs it for GPUs"})
        raise
    except Exception as error:
        say({"error": " ".join(f"{type(error).__name__}: {error}".split())[:1000]})
        raise


def _read(inbox: queue.SimpleQueue[str], busy: threading.Event) -> None:
    """Hands lines on; at the end of the input nobody waits for an answer that is being written."""
    for line in sys.stdin:
        inbox.put(line)
    if busy.is_set():
        os._exit(1)
    inbox.put("")


if __name__ == "__main__":
    main()
