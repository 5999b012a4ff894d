"""`rlhf-loop plan`: what a recipe takes, before it is started."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from rlhf_loop.cli.shared import AsJson
from rlhf_loop.errors import UserError


def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/quickstart.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings over the recipe's: key.sub=value.", metavar="[KEY=VALUE]...")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs of a machine (default: this machine's).")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpu: Annotated[str | None, typer.Option(help="Their name, such as H100 or A100-80GB.")] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(min=0.1, max=1e6, help="Memory of each in GiB.", metavar="GIB")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a recipe takes, from the model's configuration alone: memory and time of each stage, and what fits."""
    from rlhf_loop.plan.advice import advice
    from rlhf_loop.plan.hardware import chosen, measured
    from rlhf_loop.plan.implied import implied
    from rlhf_loop.plan.page import render, values
    from rlhf_loop.plan.planning import case_of, plans, recommended
    from rlhf_loop.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or [], to_run=False)
    if loaded.policy.endpoint is not None:
        raise UserError(
            f"{recipe}: the policy is behind a server, which says itself what it needs; there is nothing to plan here"
        )
    hardware, dtype = chosen(gpus, nodes, gpu_memory, gpu, loaded.policy.dtype)
    case = case_of(loaded, hardware if hardware.kind == "gpu" else measured(hardware, dtype), dtype, implied(loaded))
    found = plans(case)
    best = recommended(found)
    change = advice(best)
    if as_json:
        print(json.dumps(values(found, best, change), indent=2))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False, soft_wrap=False)
    for part in render(found, best, change):
        console.print(part)
