"""How a stage is started: in this process, in processes of its own, on ranks that are already waiting, or as a job.

One interface, `run(arguments_file, progress)`; one way at a time in a run.
"""

from __future__ import annotations

import os

from rlhf_loop.errors import UserError
from rlhf_loop.launch.launcher import Launcher
from rlhf_loop.machine import visible_accelerators
from rlhf_loop.recipe import Recipe
from rlhf_loop.settings import read_yaml


def choose(recipe: Recipe) -> Launcher:
    """The launcher for a recipe's `launch`; `auto`: ranks under a launcher, child with several accelerators or
    settings for it, else inline.

    Raises `UserError` for `ranks` in a process that nobody launched, for `slurm` and `kubernetes` where there is none,
    and for more devices than there are.
    """
    mode, wants_child = recipe.launch, bool(recipe.accelerate_config or recipe.stages)
    launched = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if mode == "auto":
        mode = "ranks" if launched else "child" if visible_accelerators() > 1 or wants_child else "inline"
    if mode == "ranks":
        if not launched:
            raise UserError(
                "`launch: ranks` needs several processes and there is one. Use `accelerate launch --num_processes N -m "
                "rlhf_loop run RECIPE`; on CPU Accelerate starts one process whatever --num_processes says, so use "
                "`torchrun --nproc_per_node N -m rlhf_loop run RECIPE` there; or set `launch: inline`"
            )
        from rlhf_loop.launch.ranks import Ranks

        return Ranks()
    if launched:
        raise UserError(f"`launch: {mode}` is for one process, but {os.environ['WORLD_SIZE']} were launched; use ranks")
    if mode == "slurm":
        from rlhf_loop.cluster.slurm_profile import read_profile
        from rlhf_loop.launch.slurm import Slurm

        return Slurm(read_profile(recipe.cluster_profile), recipe.accelerate_config, recipe.stages)
    if mode == "kubernetes":
        from rlhf_loop.cluster.kubernetes_profile import read_profile as read_kubernetes_profile
        from rlhf_loop.launch.kubernetes import Kubernetes

        return Kubernetes(read_kubernetes_profile(recipe.cluster_profile), recipe.accelerate_config, recipe.stages)
    if mode == "child":
        from rlhf_loop.launch.child import Child

        return Child(recipe.accelerate_config, recipe.stages)
    from rlhf_loop.launch.inline import Inline

    return Inline()


def check_configs(recipe: Recipe) -> None:
    """Raises `UserError` for an Accelerate config that is not there, or is none: `accelerate launch` would end a stage
    with a traceback, after all that came before it."""
    configs = {"accelerate_config": recipe.accelerate_config}
    configs |= {f"stages.{name}.accelerate_config": stage.accelerate_config for name, stage in recipe.stages.items()}
    for key, path in configs.items():
        if path is None:
            continue
        if not path.is_file():
            raise UserError(f"{key}: there is no file {path}; recipes/accelerate/ has configs to copy")
        if not isinstance(read_yaml(path.read_text(encoding="utf-8"), str(path)), dict):
            raise UserError(f"{key}: {path} is no config of Accelerate; recipes/accelerate/ has some to copy")
