"""What each of several processes does in test_sharded.py: trainings, under whatever `accelerate launch` set up.

    accelerate launch --config_file CONFIG.yaml --num_processes 2 tests/samples/sharded_ranks.py BASE OUT CASE...

A case is ALGORITHM-lora or ALGORITHM-full (also `reward`, and `critic-lora`), with `-resumed` for a training that is
stopped after its first checkpoint and gone on with, `-bf16` for a policy of that precision, `-critiques` with the
losses that learn from these, `-vllm` with a stand-in for it, `-rewarded` by a trained reward model, and `-sgd` in place
of Adam, which makes much of the rounding of small gradients; or `loop` for a whole run. It leaves its files in
OUT/CASE. Without a GPU, Accelerate 1.15 enters neither FSDP nor DeepSpeed; `shims` make it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import types
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
STEPS = 4


def shims() -> None:
    """What a CPU lacks for FSDP2 and DeepSpeed, put in from outside."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        fsdp_on_a_cpu()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        deepspeed_on_a_cpu()


def fsdp_on_a_cpu() -> None:
    """Accelerate's state takes the FSDP plugin only with accelerators."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    begin = AcceleratorState.__init__

    def init(self: Any, *arguments: Any, fsdp_plugin: Any = None, **named: Any) -> None:
        first = not AcceleratorState._shared_state
        begin(self, *arguments, fsdp_plugin=fsdp_plugin, **named)
        if first and self.distributed_type == DistributedType.MULTI_CPU and fsdp_plugin is not None:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)

    AcceleratorState.__init__ = init


def deepspeed_on_a_cpu() -> None:
    """Gloo for its process group, no op that is built when it starts, no `use_cpu` (which keeps Accelerate from it),
    and no parameter so small that ZeRO-3 leaves it whole: with a tiny model nothing would be shared out."""
    import deepspeed.comm  # noqa: F401
    import torch
    import transformers.training_args
    from accelerate.state import PartialState
    from accelerate.utils import DeepSpeedPlugin, DistributedType

    import rlhf_loop.models.training

    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_CPU)
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None

    class Torch:
        accelerator = types.SimpleNamespace(is_available=lambda: True)

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    rlhf_loop.models.training.torch = Torch()
    begin = DeepSpeedPlugin.__post_init__

    def init(self: Any) -> None:
        begin(self)
        self.hf_ds_config.config["zero_optimization"]["stage3_param_persistence_threshold"] = 0

    DeepSpeedPlugin.__post_init__ = init


class Stopped(Exception):
    """Stands for a kill, on every rank at once."""


def loop(recipe: str, run_dir: Path, *changes: str) -> None:
    """A whole run with this process as one of its ranks."""
    from rlhf_loop.cli import main

    sys.argv = ["rlhf-loop", "run", recipe, "--rounds", "1", "--run-dir", str(run_dir), *changes]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise


def run(case: str, base: str, output: Path) -> None:
    if case == "loop":
        recipe = HERE.parent / "recipes" / "smoke.yaml"
        loop(str(recipe), output, f"reward.model={HERE.parent / 'reward_models' / 'bradley_terry'}")
        return
    algorithm, size, *options = case.split("-")
    if "resumed" not in options:
        train(algorithm, size == "lora", base, output, options)
        return
    from rlhf_loop.models.checkpoints import MarkComplete
    from rlhf_loop.models.distributed import is_main

    mark, saved = MarkComplete.on_save, []

    def marked(self: Any, args: Any, state: Any, control: Any, **named: Any) -> None:
        mark(self, args, state, control, **named)
        saved.append(state.global_step)
        if len(saved) == 1:
            raise Stopped

    MarkComplete.on_save = marked
    try:
        with suppress(Stopped):
            train(algorithm, size == "lora", base, output, options)
        files = {str(p.relative_to(output)): p.stat().st_size for p in output.rglob("*") if p.is_file()}
        train(algorithm, size == "lora", base, output, options)
    finally:
        MarkComplete.on_save = mark
    if is_main():
        (output.parent / f"{case}.stopped.json").write_text(json.dumps({"saved": saved, "files": files}, indent=1))


def train(algorithm: str, lora: bool, base: str, output: Path, options: list[str]) -> None:
    """Four steps of 4 rows over all ranks, with a checkpoint after two."""
    from rlhf_loop.models.distributed import world_size
    from rlhf_loop.recipe import Generation, Lora, Policy, Update
    from rlhf_loop.updates import update_policy

    dtype = "bfloat16" if "bf16" in options else "float32"
    adapter = {"r": 4, "alpha": 8} if lora else None
    trainer: dict[str, Any] = {
        "learning_rate": 1e-3, "per_device_train_batch_size": 4 // world_size(), "max_steps": STEPS, "save_steps": 2,
    }  # fmt: skip
    if "sgd" in options:
        trainer |= {"optim": "sgd", "learning_rate": 0.1}
    policy = Policy(model=base, dtype=dtype)
    if algorithm == "reward":
        from rlhf_loop.rewards import train_reward_model
        from samples.rewards import bradley_terry, make_pairs

        spec = bradley_terry(lora=adapter, trainer=trainer)
        output.mkdir(parents=True, exist_ok=True)
        train_reward_model(spec, make_pairs(answers=2, prompts=8), output, policy=policy, eval_pairs=[], seed=1)
        return
    if algorithm == "critic":
        critic(trainer, output, policy)
        return
    if algorithm in ("grpo", "rloo"):
        trainer |= {"num_generations": 2, "beta": 0.05}
    if "vllm" in options:
        watch_syncs(output)
        trainer |= {"use_vllm": True}
    if algorithm == "ppo":  # clipping, which is apart or together for critic and policy, out of the way
        trainer |= {"num_ppo_epochs": 1, "max_grad_norm": 1e6}
    given: Any = trained_reward(policy, output) if "rewarded" in options else reward
    from samples.updates import ROWS, with_critiques

    methods = {"predict": {}, "unlikelihood": {}, "hindsight": {"entry_test": False}}
    update_policy(
        ROWS[algorithm], start=base, reference=base, output=output, policy=policy, seed=1, reward=given,
        settings=Update(algorithm=algorithm, lora=Lora(**adapter) if adapter else None, trainer=trainer),
        generation=Generation(max_new_tokens=8, samples_per_prompt=2),
        **with_critiques(methods if "critiques" in options else {}),
    )  # fmt: skip


def critic(trainer: dict[str, Any], output: Path, policy: Any) -> None:
    """A reward model that writes a critique first; of the answers a half has one by people."""
    from rlhf_loop.generation import write_greedily
    from rlhf_loop.rewards import train_reward_model
    from samples.rewards import critic_spec, critiques_of, make_pairs

    pairs = make_pairs(answers=2, prompts=8)
    spec = critic_spec(sft=trainer, trainer=trainer)
    output.mkdir(parents=True, exist_ok=True)
    given = {"critiques": critiques_of(pairs), "writer": write_greedily}
    train_reward_model(spec, pairs, output, policy=policy, eval_pairs=make_pairs(3, seed=1), seed=1, **given)


def watch_syncs(output: Path) -> None:
    """Puts a stand-in in the place of vLLM, and writes to syncs.json for each sync whether the base is as it was before
    all of them, and how much what was sent differs from it."""
    import pytest
    import torch
    from trl.generation.vllm_generation import VLLMGeneration

    from rlhf_loop.models.distributed import is_main
    from rlhf_loop.models.weights import whole_state
    from samples import colocated

    def of_base(model: Any) -> dict[str, Any]:
        state = whole_state(model, lambda name: "lora_" not in name and "ppo_critic" not in name)
        return {name: tensor.clone() for name, tensor in state.items()}

    colocated.stands_in(pytest.MonkeyPatch())
    own, found, first = VLLMGeneration.sync_weights, [], {}

    def sync(self: Any) -> None:
        if not found:
            first.update(of_base(self.model))
        own(self)
        base, sent = of_base(self.model), self.llm.weights
        kept = all(torch.equal(tensor, first[name]) for name, tensor in base.items())
        named = {name.removeprefix("base_model.model.").replace(".base_layer", ""): t for name, t in base.items()}
        moved = [float((sent[name].float() - t.float()).abs().max()) for name, t in named.items() if name in sent]
        found.append({"kept": kept, "sent": len(moved), "moved": max(moved, default=0.0)})
        if is_main():
            output.mkdir(parents=True, exist_ok=True)
            (output / "syncs.json").write_text(json.dumps(found))

    VLLMGeneration.sync_weights = sync


def reward(prompts: Any, completions: Any, **_: Any) -> list[float]:
    """The number of characters."""
    return [len(turns[-1]["content"]) / 10 for turns in completions]


def trained_reward(policy: Any, output: Path) -> Any:
    """A Bradley-Terry model that was trained in the same way; how many numbers it has, and this rank of them, is
    written down."""
    from rlhf_loop.models.distributed import is_main
    from rlhf_loop.rewards import load_reward, train_reward_model
    from samples.rewards import bradley_terry, make_pairs

    folder = output / "reward"
    train_reward_model(bradley_terry(), make_pairs(), folder, policy=policy, eval_pairs=make_pairs(2, seed=1), seed=1)
    loaded: Any = load_reward(folder, id="x", policy=policy)
    if is_main():
        tensors = list(loaded.model.parameters())
        here = sum((tensor.to_local() if hasattr(tensor, "to_local") else tensor).numel() for tensor in tensors)
        held = [sum(tensor.numel() for tensor in tensors), here]
        (output.parent / f"{output.name}.held.json").write_text(json.dumps(held))
    return loaded


def main() -> None:
    base, out, *cases = sys.argv[1:]
    sys.path.insert(0, str(HERE))
    shims()
    if os.environ.get("SAMPLED_BY_TRL"):  # as under FSDP and DeepSpeed, to compare with them
        import rlhf_loop.updates.rollouts

        rlhf_loop.updates.rollouts._can_sample = lambda trainer: False
    from rlhf_loop.models.distributed import barrier, is_main

    for case in cases:
        began = time.monotonic()
        run(case, base, Path(out) / case)
        barrier()
        if is_main():
            from accelerate.state import AcceleratorState

            said = {"state": str(AcceleratorState().distributed_type), "seconds": time.monotonic() - began}
            (Path(out) / f"{case}.done.json").write_text(json.dumps(said))
            print("DONE", case, said, flush=True)


if __name__ == "__main__":
    main()
