"""Memory of two processes that read a model, each with the whole of it, and each with a share.

    python benchmarks/shares.py --out benchmarks/results/shares.json

Each measures likelihoods of eight texts of 96 tokens under a random Llama of 171M parameters in 24 layers, in float32
on a CPU. In MiB of each process, beyond what it had before it loaded the model: weights that it holds, and the
peaks of resident memory while it loads and while it reads. With shares the first process has the whole model in main
memory while it sends the others theirs. glibc is told to give back what is freed at once
(`MALLOC_MMAP_THRESHOLD_`): it would keep several times what is put together at a time. On Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from machine import describe, memory
from plan import make_model

WAYS = {"whole": {}, "shares": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}}
"""By what Accelerate says of its config."""
SIZES = {
    "vocab_size": 2048, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 24,
    "num_attention_heads": 12, "num_key_value_heads": 12,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--read", type=Path, help="(a model, by this rank)")
    arguments = parser.parse_args()
    if arguments.read:
        read(arguments.read)
        return
    found: dict[str, Any] = {"machine": describe()}
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder) / "model", **SIZES)
        for way, said in WAYS.items():
            found[way] = on_ranks(Path(folder) / "model", said)
            print(way, json.dumps(found[way]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def on_ranks(model: Path, said: dict[str, str]) -> list[dict[str, float]]:
    """What each of two processes took."""
    ranks = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    finished = subprocess.run(
        [*ranks, __file__, "--read", str(model)],
        capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", **said},
    )  # fmt: skip
    if finished.returncode:
        raise SystemExit(finished.stderr)
    taken: list[dict[str, float]] = json.loads(finished.stdout.splitlines()[-1])
    return taken


def read(model: Path) -> None:
    import torch

    from rlhf_loop.evaluation.language_model import log_probs
    from rlhf_loop.models.distributed import gather, is_main, start
    from rlhf_loop.models.loading import load_policy
    from rlhf_loop.models.turns import Tokens
    from rlhf_loop.recipe import Policy

    start()
    texts = [Tokens(prompt=tuple(range(5, 53)), answer=tuple(range(60 + n, 108 + n))) for n in range(8)]
    load_policy("tiny-random:0", Policy(model="tiny-random:0", dtype="float32"), only_read=True)  # what libraries take
    before = memory("VmRSS")
    policy, _ = load_policy(model, Policy(model=str(model), dtype="float32"), only_read=True)
    loading = memory("VmHWM") - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    log_probs(policy, texts, batch_tokens=96)
    tensors = [t.to_local() if isinstance(t, torch.distributed.tensor.DTensor) else t for t in policy.parameters()]
    held = sum(tensor.nbytes for tensor in tensors)
    taken = {"weights": held, "loading": loading, "reading": memory("VmHWM") - before}
    of_all = gather([{name: round(size / 2**20, 1) for name, size in taken.items()}])
    if is_main():
        print(json.dumps(of_all))


if __name__ == "__main__":
    main()
