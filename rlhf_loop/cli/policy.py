"""`rlhf-loop policy ...`: the policies of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rlhf_loop.cli.shared import AsJson, RunFolder, existing_run

app = typer.Typer(help="The policies of a run: list, promote, roll back, export.", no_args_is_help=True)


@app.command("list")
def policy_list(run: RunFolder, as_json: AsJson = False) -> None:
    """The policies of a run, the promoted one marked."""
    from rlhf_loop import policies

    rows = policies.listed(existing_run(run))
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{'*' if row['promoted'] else ' '} {row['id']:<24} round {row['round']:<3} {row['path']}")


@app.command("promote")
def policy_promote(run: RunFolder, policy: Annotated[str, typer.Argument(help="Id of a policy.")]) -> None:
    """Make a policy the promoted one: the next round starts from it."""
    from rlhf_loop import policies

    policies.promote(existing_run(run), policy)
    print(f"promoted {policy}")


@app.command("rollback")
def policy_rollback(run: RunFolder) -> None:
    """Promote the policy that was promoted before the current one."""
    from rlhf_loop import policies

    print(f"promoted {policies.rollback(existing_run(run))}")


@app.command("export")
def policy_export(
    run: RunFolder,
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    policy: Annotated[str | None, typer.Option(help="Id of a policy (default: the promoted one).")] = None,
    form: Annotated[str, typer.Option("--form", help="merged (plain weights) or adapter.")] = "merged",
    dtype: Annotated[
        str | None, typer.Option(help="Of merged weights: float32, bfloat16 or float16 (default: the policy's).")
    ] = None,
) -> None:
    """Write a policy with a model card and its lineage, ready for transformers and vLLM."""
    from rlhf_loop import policies

    print(policies.export(existing_run(run), output, policy, form, dtype))
