"""Stage 8: a policy writes candidates, in the way that `generation.strategy` names.

prompts.parquet  policy  [recall/  reward/  embed/ of earlier rounds]
    ->  completions.parquet  [set_aside.parquet  shown.parquet  written.json  features.parquet]

What is in brackets is there for strategies that read of the run's past or keep less than they write.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pyarrow as pa

from rlhf_loop.endpoints.client import Endpoints
from rlhf_loop.files import write_json
from rlhf_loop.generation import Asked, generate_groups, loaded
from rlhf_loop.generation.strategies.given import Exemplar, Given, Written
from rlhf_loop.generation.vllm_engine import Writer
from rlhf_loop.models.distributed import is_main, rank, sharded_map, world_size
from rlhf_loop.models.turns import encode_prompts, with_system_prompt
from rlhf_loop.progress import Progress
from rlhf_loop.recipe import Generation, Recipe, parse
from rlhf_loop.record_files import as_table, read_records, write_records, write_table
from rlhf_loop.records import Completion, Message, Prompt, Recalled, Score
from rlhf_loop.retrieval.index import Index
from rlhf_loop.rewards.kept_features import KeptFeatures
from rlhf_loop.rewards.texts import of_completions
from rlhf_loop.rows.drawn import prompts_of_round
from rlhf_loop.stages.arguments import StageArguments
from rlhf_loop.stages.embed import embedded
from rlhf_loop.stages.reward import kept_before, load
from rlhf_loop.strategies import STRATEGIES


def run(arguments: StageArguments, folder: Path, progress: Progress) -> None:
    """Candidates for this round's share of the prompts; those with a complaint that the next round may learn from go
    first."""
    recipe = parse(arguments.recipe)
    settings = recipe.generation
    prompts: list[Prompt] = read_records(Path(arguments.inputs["prompts"]), Prompt)
    critiques = Path(arguments.inputs["critiques"]) if "critiques" in arguments.inputs else None
    chosen = prompts_of_round(
        prompts,
        settings.prompts_per_round,
        seed=recipe.seed,
        round=arguments.round,
        critiques=critiques,
        feedback_rounds=recipe.pairing.feedback_rounds,
    )
    features = KeptFeatures(kept_before(arguments))
    with Sampler(recipe, settings, arguments, progress) as sampler:
        given = Given(
            prompts=chosen,
            settings=settings,
            sample=lambda asked, samples: sampler(asked, settings.model_copy(update={"samples_per_prompt": samples})),
            fits=sampler.fits,
            score=_scorer(arguments, prompts, features, sampler) if "reward" in arguments.inputs else None,
            earlier=_earlier(arguments, recipe),
            exemplars=_exemplars(arguments, recipe, prompts, chosen),
        )
        written: Written = resolve_name(STRATEGIES[settings.strategy].function)(given)
    features.write(folder, of_completions(prompts, written.completions))
    if is_main():
        write_records(folder / "completions.parquet", written.completions)
        _write_rest(folder, written)


class Sampler:
    """The policy in `values["policy"]`, loaded once, as its engine takes it; to be used in a `with` statement."""

    def __init__(self, recipe: Recipe, settings: Generation, arguments: StageArguments, progress: Progress):
        """`settings.engine` says whether the policy writes, or an endpoint in its place."""
        self.recipe = recipe
        self.arguments = arguments
        self.progress = progress
        self.loaded: tuple[Any, Any]
        self.together = 1  # ranks that share one engine
        self._open = ExitStack()
        if settings.engine == "endpoint":
            assert settings.endpoint is not None
            self.loaded = (Endpoints(recipe.endpoints, arguments.run)[settings.endpoint], None)
        else:
            ready = loaded(
                arguments.values["policy"],
                settings,
                policy_settings=recipe.policy,
                policy_id=arguments.values["policy_id"],
            )
            self.loaded = self._open.enter_context(ready)
            self.together = settings.vllm.tensor_parallel_size if settings.engine == "vllm" else 1

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def __call__(self, asked: Sequence[Prompt | Asked], settings: Generation) -> list[list[Completion]]:
        """`settings.samples_per_prompt` answers to each, the ranks sharing the work; on every rank, in order."""
        return sharded_map(lambda share: self._share(share, settings), asked, self.together)

    def pause(self) -> None:
        """Gives back the memory of an engine in another process, which starts again when it is asked."""
        if isinstance(self.loaded[0], Writer):
            self.loaded[0].close()

    def fits(self, messages: Sequence[Message]) -> bool:
        """Whether a conversation leaves room for an answer in the model's context."""
        model, tokenizer = self.loaded
        config = getattr(model, "config", None)
        limit = model.limit if isinstance(model, Writer) else getattr(config, "max_position_embeddings", None)
        if limit is None:
            return True
        read = encode_prompts(tokenizer, [with_system_prompt(messages, self.recipe.policy.system_prompt)])[0]
        return len(read) + self.recipe.generation.max_new_tokens <= int(limit)

    def _share(self, share: Sequence[Prompt | Asked], settings: Generation) -> list[list[Completion]]:
        who = f"rank {rank()} of {world_size()}" * (world_size() > 1)
        return generate_groups(
            self.loaded,
            share,
            settings,
            policy_settings=self.recipe.policy,
            policy_id=self.arguments.values["policy_id"],
            round=self.arguments.round,
            seed=self.recipe.seed,
            progress=lambda done, total: self.progress(done, total, who),
        )


def sample(
    recipe: Recipe, settings: Generation, prompts: Sequence[Prompt], arguments: StageArguments, progress: Progress
) -> list[Completion]:
    """Completions of the policy in `values["policy"]`, whoever writes the candidates; the ranks share the prompts. On
    every rank, in order."""
    if settings.engine == "endpoint" and recipe.policy.endpoint is None:
        settings = settings.model_copy(update={"engine": "transformers"})
    with Sampler(recipe, settings, arguments, progress) as sampler:
        groups = sampler(prompts, settings)
    return [completion for group in groups for completion in group]


def _scorer(
    arguments: StageArguments, prompts: Sequence[Prompt], features: KeptFeatures, sampler: Sampler
) -> Callable[[Sequence[Completion]], Mapping[str, float]]:
    """What the round's reward model says, which is loaded when it is asked."""

    def score(completions: Sequence[Completion]) -> Mapping[str, float]:
        sampler.pause()
        reward = load(Path(arguments.inputs["reward"]), arguments.recipe, features, sampler.progress)
        by_length = sorted(completions, key=lambda c: (len(c.text), c.id))  # so that ranks get equal work
        scores: list[Score] = sharded_map(lambda share: reward.score(prompts, share), by_length)
        return {score.completion_id: score.value for score in scores}

    return score


def _earlier(arguments: StageArguments, recipe: Recipe) -> dict[str, Recalled]:
    """The answer to revise of each prompt."""
    if "recalled" not in arguments.inputs or not STRATEGIES[recipe.generation.strategy].revises:
        return {}
    recalled: list[Recalled] = read_records(Path(arguments.inputs["recalled"]) / "to_revise.parquet", Recalled)
    return {one.prompt_id: one for one in recalled}


def _exemplars(
    arguments: StageArguments, recipe: Recipe, prompts: Sequence[Prompt], chosen: Sequence[Prompt]
) -> dict[str, list[Exemplar]]:
    """For each prompt the best-scored answers to the prompts most like it, the nearest last.

    Neither the prompt's own answers nor those to a prompt that is nearly the same.
    """
    if "recalled" not in arguments.inputs or not STRATEGIES[recipe.generation.strategy].exemplars:
        return {}
    recalled: list[Recalled] = read_records(Path(arguments.inputs["recalled"]) / "exemplars.parquet", Recalled)
    answers = {one.prompt_id: one for one in recalled}
    index = Index.open(embedded(arguments, recipe), "prompts")
    row_of = index.rows_of_prompts({*answers, *(prompt.id for prompt in chosen)})
    asked = [prompt for prompt in chosen if prompt.id in row_of]
    known = {prompt.id: prompt for prompt in prompts}
    among = [row_of[id] for id in answers if id in row_of and id in known]
    if not asked or not among:
        return {}
    settings = recipe.generation.exemplars
    most = min(len(among), settings.neighbours + 1 + max(len(one.near) for one in recalled))
    cosines, rows = index.search(index.vectors([row_of[prompt.id] for prompt in asked]), most, among)
    found: dict[str, list[Exemplar]] = {}
    for prompt, near, places in zip(asked, cosines.tolist(), rows.tolist(), strict=True):
        neighbours = []
        for similarity, row in zip(near, places, strict=True):
            key = index.key(row)
            if similarity == -math.inf or key is None:
                continue
            one = answers[key.prompt_id]
            if one.prompt_id != prompt.id and prompt.id not in one.near:
                neighbours.append(Exemplar(prompt=known[one.prompt_id], answer=one, similarity=similarity))
        best = sorted(neighbours[: settings.neighbours], key=lambda one: -(one.answer.standing or 0.0))[: settings.k]
        found[prompt.id] = sorted(best, key=lambda one: one.similarity)
    return found


def _write_rest(folder: Path, written: Written) -> None:
    """What is no candidate, what was shown, and counts; nothing where there is none of it."""
    reasons = Counter(reason for _, reason in written.set_aside)
    if written.set_aside:
        table = as_table([completion for completion, _ in written.set_aside])
        reason = pa.array([reason for _, reason in written.set_aside])
        write_table(folder / "set_aside.parquet", table.append_column("reason", reason))
    if written.shown:
        write_records(folder / "shown.parquet", written.shown)
    if written.counts or reasons:
        write_json(folder / "written.json", {"counts": dict(written.counts), "set_aside": dict(reasons)})
