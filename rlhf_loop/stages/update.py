"""Stage 5: the policy update.

training_data.parquet  start  reference  ->  policy/  train_log.jsonl  metrics.json
"""

from __future__ import annotations

from pathlib import Path

from rlhf_loop.distributed import is_main
from rlhf_loop.recipe import parse
from rlhf_loop.records import PreferencePair, read_records, stable_id
from rlhf_loop.run_dir import StageArguments, write_json
from rlhf_loop.stages import Progress
from rlhf_loop.updates import update_policy


def run(arguments: StageArguments, folder: Path, progress: Progress) -> None:
    """Runs the recipe's algorithm from `values["start"]` against `values["reference"]`."""
    recipe = parse(arguments.recipe)
    metrics = update_policy(
        read_records(Path(arguments.inputs["training_data"]), PreferencePair),
        start=arguments.values["start"],
        reference=arguments.values["reference"],
        output=folder,
        policy=recipe.policy,
        settings=recipe.update,
        seed=int(stable_id(recipe.seed, "update", arguments.round)[:7], 16),
        step_offset=arguments.values["step_offset"],
        report_to=recipe.report_to,
        run_name=f"{arguments.run}-round-{arguments.round}",
        tracking=arguments.tracking / "training",
        progress=progress,
    )
    if is_main():
        write_json(folder / "metrics.json", metrics)
