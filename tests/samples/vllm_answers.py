"""What vLLM itself answers, for test_vllm_real.py: one process, one engine, several adapters.

    python tests/samples/vllm_answers.py ARGUMENTS.json ANSWERS.json

The arguments are `start` (of `Engine`) and a list of requests: those of `Engine.write`, which the loop makes, or
`log_probs`, which samples once after each prompt and says how likely vLLM finds each token. With the answers goes what
vLLM's interface is.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from rlhf_loop.generation.vllm_process import Engine


def main() -> None:
    arguments = json.loads(Path(sys.argv[1]).read_text())
    engine = Engine(**arguments["start"])
    said: dict[str, Any] = {"answers": [answer(engine, request) for request in arguments["requests"]]}
    from vllm.engine.arg_utils import EngineArgs

    said["llm"] = [field.name for field in dataclasses.fields(EngineArgs)]
    said["sampling"] = list(engine.vllm.SamplingParams.__struct_fields__)
    Path(sys.argv[2]).write_text(json.dumps(said))


def answer(engine: Engine, request: dict[str, Any]) -> Any:
    if "log_probs" not in request:
        return engine.write(**request)
    prompts = request["log_probs"]
    sampling = engine.vllm.SamplingParams(temperature=1.0, max_tokens=request["max_tokens"], logprobs=0, seed=1)
    adapter = request.get("adapter")
    outputs = engine.llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        sampling,
        use_tqdm=False,
        lora_request=None if adapter is None else engine.lora(adapter),
    )
    return [
        [(token, of[token].logprob) for token, of in zip(one.token_ids, one.logprobs, strict=True)]
        for output in outputs
        for one in output.outputs
    ]


if __name__ == "__main__":
    main()
