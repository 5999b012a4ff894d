"""Candidates that vLLM writes: the policy in a process of its own, its adapter beside the base.

The process starts with the first prompts, holds the memory that `generation.vllm` gives it, and gives it back when the
stage has its answers; nothing listens on a port. Each sample is a request with a seed of its own, and the samples of a
prompt share what was read of it. Prompts are written, answers read and ends told as for `transformers_engine`; the
random numbers are vLLM's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from rlhf_loop.engines import CPU_CACHE_GIB, LORA_RANKS, Vllm
from rlhf_loop.errors import UserError
from rlhf_loop.files.damage import check_step
from rlhf_loop.generation.transformers_engine import Answer, answer, check_lengths
from rlhf_loop.models.distributed import environment_of_one, own_accelerators
from rlhf_loop.models.policy_files import PolicyFiles
from rlhf_loop.models.turns import Turns, encode_prompts
from rlhf_loop.processes import STOP_SECONDS, LastLines, stop
from rlhf_loop.progress import Count
from rlhf_loop.recipe import Generation, Policy
from rlhf_loop.records import Message, stable_id


def sample(
    model: Writer,
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    keys: Sequence[tuple[int, int, str]],
    settings: Generation,
    progress: Count | None = None,
) -> list[list[Answer]]:
    """`settings.samples_per_prompt` answers to each conversation. The key (seed, round, prompt id) and the sample make
    the seed of a request. Raises `UserError` when a prompt leaves no room in the model's context, and when vLLM
    fails."""
    turns = Turns(tokenizer, model.files)
    prompts = encode_prompts(tokenizer, conversations)
    check_lengths(prompts, keys, settings, model.limit, model.limit_told)
    seeds = [[seed_of(*key, number) for number in range(settings.samples_per_prompt)] for key in keys]
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
    bounds = {"max_tokens": settings.max_new_tokens, "stop_token_ids": sorted(turns.ends)}
    written = model.write(prompts, seeds, {**sampling, **bounds}, progress)
    return [[answer(turns, ids) for ids in samples] for samples in written]


def seed_of(seed: int, round: int, prompt_id: str, sample: int) -> int:
    """The seed of a request, below 2^60, which depends on the arguments alone."""
    return int(stable_id("vllm", seed, round, prompt_id, sample)[:15], 16)


class Writer:
    """A policy and the vLLM process that writes for it, which is there from the first `write` to `close`; the next
    `write` starts another."""

    def __init__(self, policy: str | Path, policy_id: str, settings: Policy, engine: Vllm):
        """`policy`: a model reference, a folder, or an adapter's folder. Raises `UserError` for files that are missing
        or do not belong together, and for more GPUs than there are."""
        self.files = PolicyFiles.of(policy, settings)
        self._devices = own_accelerators(engine.tensor_parallel_size, "generation.vllm.tensor_parallel_size")
        own = getattr(self.files.config, "max_position_embeddings", None)
        lengths = [length for length in (own, engine.max_model_len) if length is not None]
        self.limit: int | None = min(lengths, default=None)  # tokens of a prompt with its answer
        is_own = own is not None and own == self.limit
        self.limit_told = f"the model's {own}" if is_own else f"the {self.limit} of generation.vllm.max_model_len"
        self._started_with = {
            "model": self.files.base,
            "dtype": settings.precision,
            "trust_remote_code": settings.trust_remote_code,
            "lora_rank": self._lora_rank(),
            "on_cpu": not self._devices,
            **engine.model_dump(),
        }
        # A name and a number of its own: vLLM keeps what it computed with an adapter under these.
        number = 1 + int(stable_id("adapter", policy_id)[:7], 16)
        self._adapter = {"name": policy_id, "number": number, "path": str(self.files.adapter)}
        self._process: subprocess.Popen[str] | None = None
        self._last_lines = LastLines()

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Mapping[str, Any],
        progress: Count | None = None,
    ) -> list[list[list[int]]]:
        """The token ids of an answer for each seed of each prompt, with the token that ended it. `sampling`: fields of
        vLLM's `SamplingParams`. Raises `UserError` when vLLM cannot be started or fails."""
        if not prompts:
            return []
        request = {"prompts": prompts, "seeds": seeds, "sampling": sampling}
        if self.files.adapter is not None:
            request["adapter"] = self._adapter
        written: list[list[list[int]]] = []
        try:
            if self._process is None:
                self._begin()
            self._say(request)
            while len(written) < len(prompts):
                said = self._hear()
                if "done" in said and progress:
                    progress(said["done"], said["total"])
                if "answers" in said:
                    written.append(said["answers"])
        except BaseException:
            self.close()
            raise
        return written

    def close(self) -> None:
        """Ends the process, if there is one, and all that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()  # it ends with its input
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=STOP_SECONDS)
        finally:
            stop(process)

    def _begin(self) -> None:
        self._last_lines = LastLines()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rlhf_loop.generation.vllm_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=self._environment(),
            start_new_session=True,
        )
        threading.Thread(target=_keep, args=(self._process.stderr, self._last_lines), daemon=True).start()
        self._say(self._started_with)
        self._hear()

    def _say(self, message: Mapping[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(OSError):  # of one that has ended, whose words tell why
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise self._failed(f"its process ended with exit code {code}. Its last lines:\n{self._last_lines}\n")
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise self._failed(said["error"])
        return said

    def _failed(self, told: str) -> UserError:
        check_step(self.files.adapter or Path(self.files.base))
        return UserError(
            f"generation.engine: vLLM failed with {self.files.base}: {told.rstrip('.')}. Its memory, lengths and GPUs "
            "are set in `generation.vllm`; `generation.engine: transformers` writes without it"
        )

    def _lora_rank(self) -> int | None:
        rank = self.files.rank
        if rank is None:
            return None
        if rank > LORA_RANKS[-1]:
            raise UserError(
                f"{self.files.adapter} has rank {rank}, and vLLM takes adapters up to {LORA_RANKS[-1]}; merge it into "
                "its base first, or set `generation.engine: transformers`"
            )
        return next(room for room in LORA_RANKS if room >= rank)

    def _environment(self) -> dict[str, str]:
        """What vLLM is told by variables; those that are set already stay, but for where it runs."""
        told = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
        if not self._devices:
            # Its sampler would be compiled at the first token, for minutes, and cores be taken from other processes.
            told |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
            told["VLLM_CPU_KVCACHE_SPACE"] = str(CPU_CACHE_GIB)
            told["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        environment = {**told, **environment_of_one(), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        if self._devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._devices)
        return environment


def _keep(lines: IO[str], last: LastLines) -> None:
    for line in lines:
        last.add(line)
