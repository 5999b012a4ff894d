"""Stage 5: the policy update.

training_data.parquet  start  reference  (reward/ for an online update, critiques.parquet for losses that learn from
them)  ->  policy/  train_log.jsonl  metrics.json
"""

from __future__ import annotations

from pathlib import Path

from rlhf_loop.algorithms import ALGORITHMS, ROWS
from rlhf_loop.files import write_json
from rlhf_loop.models.distributed import is_main
from rlhf_loop.progress import Progress
from rlhf_loop.recipe import parse
from rlhf_loop.record_files import read_records
from rlhf_loop.records import CritiquedCompletion, stable_id
from rlhf_loop.stages.arguments import StageArguments
from rlhf_loop.stages.reward import load
from rlhf_loop.updates import update_policy


def run(arguments: StageArguments, folder: Path, progress: Progress) -> None:
    """Runs the recipe's algorithm (in round 0 its warm start) from `values["start"]` against `values["reference"]`."""
    recipe = parse(arguments.recipe)
    settings = recipe.update
    if arguments.round == 0:
        assert recipe.warm_start is not None
        settings = recipe.warm_start.as_update(recipe.update)
    reward = arguments.inputs.get("reward")
    critiques = arguments.inputs.get("critiques")
    metrics = update_policy(
        read_records(Path(arguments.inputs["training_data"]), ROWS[ALGORITHMS[settings.algorithm].consumes]),
        start=arguments.values["start"],
        reference=arguments.values["reference"],
        output=folder,
        policy=recipe.policy,
        settings=settings,
        seed=int(stable_id(recipe.seed, "update", arguments.round)[:7], 16),
        step_offset=arguments.values["step_offset"],
        report_to=recipe.report_to,
        project=arguments.title,
        run_name=f"{arguments.title}-round-{arguments.round}",
        tracking=arguments.tracking / "training",
        progress=progress,
        reward=load(Path(reward), arguments.recipe) if reward else None,
        generation=recipe.generation,
        critiques=read_records(Path(critiques), CritiquedCompletion) if critiques else (),
        critique_settings=recipe.critiques if critiques else None,
    )
    if is_main():
        write_json(folder / "metrics.json", metrics)
