"""The memory that a placement of PPO's critic takes, in copies of the model; `updates.py` runs it once for each.

    python benchmarks/updates_memory.py --folder FOLDER --make
    python benchmarks/updates_memory.py --folder FOLDER --placement separate --out result.json

Copies of the weights that are held: with full fine-tuning policy, reference and critic; the head alone needs no critic
of its own; with LoRA policy, reference and critic are one. What is trained is held three times more: its gradient and
Adam's two moments. A policy with an adapter samples from merged weights, which are there beside its own meanwhile.
Measured is the peak of resident memory in training less what the process had before it loaded the model. On Linux.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from machine import memory
from updates_upstream import Meter, Task, make_model, our_trainer

TASK = Task(
    vocabulary=8192, width=768, layers=16, heads=12, inner=2048, wanted_each=4, prompt_words=(4, 8),
    completion_tokens=8, mean_words=8, rollout=4, rollouts=2, learning_rate=1e-5, kl_coef=0.05, teaching_steps=0,
    epochs=1, minibatches=1,
)  # fmt: skip
"""Large enough (120M parameters) and on so little text that next to the weights nothing else counts."""

WEIGHTS = {"separate": 3, "head": 2, "adapter": 1}
TRAINED = {"separate": 2, "head": 1, "adapter": 0}
MERGED = {"separate": 0, "head": 0, "adapter": 1}
"""Copies, by placement of the critic. An adapter is about none."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the model")
    parser.add_argument("--make", action="store_true", help="make the model")
    parser.add_argument("--placement", choices=WEIGHTS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.make:
        make_model(TASK, arguments.folder)
        return
    import peft

    import rlhf_loop.updates.ppo  # noqa: F401  what is imported counts as there before

    placement, before = arguments.placement, memory("VmRSS")
    lora = peft.LoraConfig(r=8, target_modules="all-linear", exclude_modules=["lm_head"], task_type="CAUSAL_LM")
    trainer = our_trainer(
        TASK,
        arguments.folder,
        Meter(TASK),
        seed=0,
        critic=placement,
        lora=lora if placement == "adapter" else None,
    )
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here: loading has one of its own
    trainer.train()
    peak = memory("VmHWM") - before
    copy = sum(file.stat().st_size for file in arguments.folder.glob("*.safetensors"))
    modules = [trainer.model, *([trainer.ref_model] if trainer.ref_model is not None else [])]
    held = {p.data_ptr(): p.nbytes for module in modules for p in module.parameters()}
    trained = sum(p.nbytes for p in trainer.model.parameters() if p.requires_grad)
    arguments.out.write_text(
        json.dumps(
            {
                "copy_mib": round(copy / 2**20),
                "weights": {"predicted": WEIGHTS[placement], "held": round(sum(held.values()) / copy, 2)},
                "trained": {"predicted": TRAINED[placement], "held": round(trained / copy, 2)},
                "peak": {
                    "predicted": WEIGHTS[placement] + 3 * TRAINED[placement] + MERGED[placement],
                    "measured": round(peak / copy, 2),
                },
            }
        )
    )


if __name__ == "__main__":
    main()
