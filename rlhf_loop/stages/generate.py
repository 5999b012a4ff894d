"""Stage 8: a policy writes candidates.

prompts.parquet  policy  ->  completions.parquet
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from rlhf_loop.generation import generate
from rlhf_loop.models.distributed import is_main, rank, sharded_map, world_size
from rlhf_loop.models.loading import load_policy
from rlhf_loop.progress import Progress
from rlhf_loop.recipe import Generation, Recipe, parse
from rlhf_loop.records import Completion, CritiquedCompletion, Prompt, read_records, stable_id, write_records
from rlhf_loop.rows.critiques.fresh import answers
from rlhf_loop.stages.arguments import StageArguments


def run(arguments: StageArguments, folder: Path, progress: Progress) -> None:
    """Candidates for this round's share of the prompts; those with a complaint that the next round may learn from go
    first."""
    recipe = parse(arguments.recipe)
    prompts = read_records(Path(arguments.inputs["prompts"]), Prompt)
    first: set[str] = set()
    if "critiques" in arguments.inputs:
        rows = read_records(Path(arguments.inputs["critiques"]), CritiquedCompletion)
        kept = recipe.pairing.feedback_rounds
        recent = [row for row in rows if kept is None or row.round >= arguments.round + 1 - kept]
        first = {answer.prompt_id for answer in answers(recent)}
    chosen = prompts_of_round(prompts, recipe.generation, recipe.seed, arguments.round, first)
    completions = sample(recipe, recipe.generation, chosen, arguments, progress)
    if is_main():
        write_records(folder / "completions.parquet", completions)


def sample(
    recipe: Recipe, settings: Generation, prompts: Sequence[Prompt], arguments: StageArguments, progress: Progress
) -> list[Completion]:
    """Completions of the policy in `values["policy"]`, the ranks sharing the prompts; on every rank, in order.

    An adapter is added to the base in float32 and rounded once, which samples twice as fast and is no further from the
    float32 policy than the adapter in bf16 beside a bf16 base.
    """
    loaded = load_policy(arguments.values["policy"], recipe.policy, merged=True)

    def share_of_prompts(share: Sequence[Prompt]) -> list[list[Completion]]:
        completions = generate(
            loaded,
            share,
            settings,
            policy_settings=recipe.policy,
            policy_id=arguments.values["policy_id"],
            round=arguments.round,
            seed=recipe.seed,
            progress=lambda done, total: progress(done, total, f"rank {rank()} of {world_size()}" * (world_size() > 1)),
        )
        n = settings.samples_per_prompt
        return [completions[i : i + n] for i in range(0, len(completions), n)]

    return [completion for group in sharded_map(share_of_prompts, prompts) for completion in group]


def prompts_of_round(
    prompts: Sequence[Prompt], settings: Generation, seed: int, round: int, first: Collection[str] = ()
) -> list[Prompt]:
    """All prompts, or `prompts_per_round` of them drawn anew each round, as a function of seed and round; those whose
    ids are in `first` before others."""
    if settings.prompts_per_round is None or settings.prompts_per_round >= len(prompts):
        return list(prompts)
    drawn = sorted(prompts, key=lambda p: (p.id not in first, stable_id("prompts of round", seed, round, p.id)))
    kept = {prompt.id for prompt in drawn[: settings.prompts_per_round]}
    return [prompt for prompt in prompts if prompt.id in kept]
