"""Stage 6, where complaints are asked again: the candidate policy answers the prompts whose answers were complained of.

checks.parquet  prompts.parquet  policy  [reward/  before/]  ->  answers.parquet  results.parquet  checks.json
                                                                 features.parquet

One answer a prompt, greedy, so that a change is the policy's and not the dice's. `before`: the same step of the last
promoted policy, whose answers are judged anew beside it, by the same judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_loop.critique_methods import CheckJudge
from rlhf_loop.endpoints.asks import Unanswered
from rlhf_loop.endpoints.client import Client, Endpoints
from rlhf_loop.endpoints.complaints import Complaint, taken_up
from rlhf_loop.files import write_json
from rlhf_loop.models.distributed import is_main, sharded_map
from rlhf_loop.progress import Progress, counting
from rlhf_loop.recipe import Recipe, parse
from rlhf_loop.record_files import read_records, write_records
from rlhf_loop.records import Check, CheckResult, Completion, Prompt, Score
from rlhf_loop.rewards import Reward
from rlhf_loop.rewards.kept_features import KeptFeatures
from rlhf_loop.rewards.texts import of_completions
from rlhf_loop.rows.checks import JUDGE, by_rule, result, summary
from rlhf_loop.rows.parts import said_of
from rlhf_loop.stages.arguments import StageArguments
from rlhf_loop.stages.generate import sample
from rlhf_loop.stages.reward import kept_before, load


def run(arguments: StageArguments, folder: Path, progress: Progress) -> None:
    """Answers, what became of each complaint, and how many are fixed."""
    recipe = parse(arguments.recipe)
    inputs = {name: Path(path) for name, path in arguments.inputs.items()}
    checks: list[Check] = read_records(inputs["checks"], Check)
    prompts: list[Prompt] = read_records(inputs["prompts"], Prompt)
    asked = {check.prompt_id for check in checks}
    answers = _answers(recipe, [prompt for prompt in prompts if prompt.id in asked], arguments, progress)
    before: list[Completion] = []
    if "before" in inputs:
        before = read_records(inputs["before"] / "answers.parquet", Completion)
    features = KeptFeatures(kept_before(arguments))
    results = _results(checks, prompts, answers, before, arguments, features, progress)
    features.write(folder, of_completions(prompts, [*answers, *map(said_of, checks)]))
    if is_main():
        write_records(folder / "answers.parquet", answers)
        write_records(folder / "results.parquet", results)
        write_json(folder / "checks.json", summary(results, recipe.seed))


def _answers(
    recipe: Recipe, prompts: Sequence[Prompt], arguments: StageArguments, progress: Progress
) -> list[Completion]:
    if not prompts:
        return []
    settings = recipe.generation.model_copy(update={"samples_per_prompt": 1, "temperature": 0.0})
    return sample(recipe, settings, prompts, arguments, progress)


def _results(
    checks: Sequence[Check],
    prompts: Sequence[Prompt],
    answers: Sequence[Completion],
    before: Sequence[Completion],
    arguments: StageArguments,
    features: KeptFeatures,
    progress: Progress,
) -> list[CheckResult]:
    new = {answer.prompt_id: answer for answer in answers}
    old = {answer.prompt_id: answer for answer in before}
    of_rules = [check for check in checks if check.asks != JUDGE]
    of_judge = [check for check in checks if check.asks == JUDGE]
    passed: dict[tuple[str, str], bool | None] = {
        (check.id, answer.id): by_rule(check, answer) for check in of_rules for answer in _of(check, new, old)
    }
    passed |= _judged(
        [(check, answer) for check in of_judge for answer in _of(check, new, old)],
        prompts,
        arguments,
        features,
        progress,
    )
    return [
        result(
            check,
            answer := new[check.prompt_id],
            passed[check.id, answer.id],
            passed[check.id, old[check.prompt_id].id] if check.prompt_id in old else None,
        )
        for check in checks
    ]


def _of(check: Check, *answers: dict[str, Completion]) -> list[Completion]:
    return [given[check.prompt_id] for given in answers if check.prompt_id in given]


def _judged(
    asked: Sequence[tuple[Check, Completion]],
    prompts: Sequence[Prompt],
    arguments: StageArguments,
    features: KeptFeatures,
    progress: Progress,
) -> dict[tuple[str, str], bool | None]:
    """What the judge says of each answer; None where it does not say."""
    recipe = parse(arguments.recipe)
    assert recipe.critiques is not None
    assert recipe.critiques.checks is not None
    if not asked:
        return {}
    judge = recipe.critiques.checks.judge
    if judge is None:
        reward = load(Path(arguments.inputs["reward"]), arguments.recipe, features, progress)
        said = _scored_higher(asked, prompts, reward)
    else:
        with Endpoints(recipe.endpoints, arguments.run, counting(progress, "asking")) as endpoints:
            said = _said_by(endpoints[judge.endpoint], judge, asked, prompts)
    return {(check.id, answer.id): good for (check, answer), good in zip(asked, said, strict=True)}


def _scored_higher(
    asked: Sequence[tuple[Check, Completion]], prompts: Sequence[Prompt], reward: Reward
) -> list[bool | None]:
    """Whether this round's reward model scores an answer above the one that was complained of."""
    texts = {one.id: one for check, answer in asked for one in (said_of(check), answer)}

    def score(share: Sequence[Completion]) -> list[Score]:
        return reward.score(prompts, share)

    by_length = sorted(texts.values(), key=lambda c: (len(c.text), c.id))  # so that ranks get equal work
    values = {score.completion_id: score.value for score in sharded_map(score, by_length)}
    both = [(values.get(answer.id), values.get(check.completion_id)) for check, answer in asked]
    return [None if mine is None or theirs is None else mine > theirs for mine, theirs in both]


def _said_by(
    client: Client, judge: CheckJudge, asked: Sequence[tuple[Check, Completion]], prompts: Sequence[Prompt]
) -> list[bool | None]:
    """Whether a model behind a server says that an answer takes up the complaint."""
    by_id = {prompt.id: prompt for prompt in prompts}

    def share(mine: Sequence[tuple[Check, Completion]]) -> list[bool | None]:
        complaints = [
            Complaint(
                prompt=by_id[check.prompt_id],
                criticised=said_of(check),
                said=check.critiques,
                said_in=check.feedback_ids,
                answer=answer,
            )
            for check, answer in mine
        ]
        said = taken_up(client, complaints, judge.samples, judge.temperature)
        return [None if isinstance(one, Unanswered) else one > judge.above for one in said]

    return sharded_map(share, asked)
