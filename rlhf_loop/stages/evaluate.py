"""Stage 6: the candidate policy on held-out prompts, against the base and the last promoted policy.

    held_out.parquet  policy  base's and previous evaluation
        ->  answers.parquet  prompts.parquet  evaluation.json  measured.json  features.parquet

In round 0 the candidate is the base itself: its answers are what later rounds are compared with. What is measured of
them, and of the last promoted policy's answers, is read from the evaluations that measured it first (`measured.json`:
numbers under hashes of what they follow from; without them, the same is measured again).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_loop.annotators.simulated import gold_scores
from rlhf_loop.endpoints.asks import Unanswered
from rlhf_loop.endpoints.client import Client, Endpoints
from rlhf_loop.endpoints.judging import Winner, compare
from rlhf_loop.errors import UserError
from rlhf_loop.evaluation import Comparer, Measured, Models, Scorer, evaluate
from rlhf_loop.files import read_json, write_json
from rlhf_loop.models.checks import check_model
from rlhf_loop.models.distributed import is_main, sharded_map
from rlhf_loop.models.identity import computed_by
from rlhf_loop.models.loading import load_policy
from rlhf_loop.progress import Progress, counting
from rlhf_loop.recipe import EndpointJudge, Recipe, RewardModelJudge, parse
from rlhf_loop.record_files import read_records, write_records
from rlhf_loop.records import Completion, Prompt, Score
from rlhf_loop.reward_spec import FunctionSpec, PretrainedSpec, load_spec
from rlhf_loop.rewards.kept_features import KeptFeatures
from rlhf_loop.rewards.texts import of_completions
from rlhf_loop.stages.arguments import StageArguments
from rlhf_loop.stages.generate import sample
from rlhf_loop.stages.reward import kept_before, load
from rlhf_loop.tracking import evaluation_run


def run(arguments: StageArguments, folder: Path, progress: Progress) -> None:
    """Samples the candidate's answers, has them judged, and measures what may have been lost."""
    recipe = parse(arguments.recipe)
    name = f"{arguments.title}-evaluation"
    # Opened first: a tracker that does not start is told of before anything is computed.
    with evaluation_run(recipe.report_to, arguments.title, name, arguments.tracking) as log:
        result = _evaluate(recipe, arguments, folder, progress)
        log({**_numbers(result), "evaluation/round": arguments.round}, arguments.round)


def _evaluate(recipe: Recipe, arguments: StageArguments, folder: Path, progress: Progress) -> dict[str, object]:
    if arguments.round == 0 and recipe.policy.endpoint is None:
        from rlhf_loop.updates.adapters import lora_config

        check_model(recipe.policy, lora_config(recipe.update.lora) if recipe.update.lora else None)
    plain_text = _plain_text(recipe.evaluation.plain_text)
    loaded = recipe.policy.endpoint is None
    inputs = {name: Path(path) for name, path in arguments.inputs.items()}
    prompts: list[Prompt] = read_records(inputs["prompts"], Prompt)
    settings = recipe.generation.model_copy(
        update={
            "samples_per_prompt": recipe.evaluation.samples_per_prompt,
            "temperature": recipe.generation.temperature
            if recipe.evaluation.temperature is None
            else recipe.evaluation.temperature,
        }
    )
    answers = sample(recipe, settings, prompts, arguments, progress)
    base = _answers(inputs["base"]) if "base" in inputs else answers
    previous = _answers(inputs["previous"]) if "previous" in inputs else None
    measured = Measured(_known(inputs))
    features = KeptFeatures(kept_before(arguments))
    scorer = partial(
        _reward_scorer,
        arguments=arguments,
        held_out=prompts,
        measured=measured,
        features=features,
        progress=progress,
    )
    judge, name, simulated = _judge(recipe, arguments, scorer, progress)
    result = evaluate(
        prompts,
        answers,
        base,
        previous,
        judge=judge,
        judge_name=name,
        simulated=simulated,
        settings=recipe.evaluation,
        seed=recipe.seed,
        proxy=scorer(inputs["reward"]) if "reward" in inputs else None,
        models=_models(recipe, arguments) if loaded else None,
        plain_text=plain_text,
        measured=measured,
    )
    if isinstance(recipe.evaluation.judge, EndpointJudge):
        result["judge"]["calibration"] = read_json(inputs["judge"] / "calibration.json")
    features.write(folder, of_completions(prompts, [*answers, *base]))
    if is_main():
        write_records(folder / "answers.parquet", answers)
        write_records(folder / "prompts.parquet", prompts)
        write_json(folder / "evaluation.json", result)
        write_json(folder / "measured.json", measured.numbers)
    return result


def _known(inputs: Mapping[str, Path]) -> dict[str, Any]:
    """What the base's evaluation and the last promoted policy's measured; of earlier versions there is none."""
    files = [inputs[name] / "measured.json" for name in ("base", "previous") if name in inputs]
    return {key: number for file in files if file.exists() for key, number in read_json(file).items()}


def _models(recipe: Recipe, arguments: StageArguments) -> Models:
    policy, tokenizer = load_policy(arguments.values["policy"], recipe.policy, only_read=True)
    return Models(
        policy=policy,
        tokenizer=tokenizer,
        settings=recipe.policy,
        reference=None if hasattr(policy, "disable_adapter") else _reference(policy, arguments, recipe),
        reference_made_of=computed_by(recipe.policy.model, recipe.policy),
    )


def _reference(policy: object, arguments: StageArguments, recipe: Recipe) -> object:
    if arguments.values["policy"] == recipe.policy.model:
        return policy
    return load_policy(recipe.policy.model, recipe.policy, only_read=True)[0]


def _answers(folder: Path) -> list[Completion]:
    answers: list[Completion] = read_records(folder / "answers.parquet", Completion)
    return answers


def _judge(
    recipe: Recipe, arguments: StageArguments, scorer: Callable[[Path], Scorer], progress: Progress
) -> tuple[Scorer | Comparer, str, bool]:
    """The judge, its name, and whether it stands for a simulated annotator."""
    judge = recipe.evaluation.judge
    if isinstance(judge, EndpointJudge):
        client = Endpoints(recipe.endpoints, arguments.run)[judge.endpoint]
        return _comparer(client, judge.rubric, progress), f"{client.settings.model} (endpoint {client.name})", False
    if isinstance(judge, RewardModelJudge):
        folder = Path(arguments.inputs["judge"])
        name = judge.model.name
        spec = load_spec(folder / name)
        if isinstance(spec, FunctionSpec):
            return scorer(folder), f"function {name}", False
        if isinstance(spec, PretrainedSpec):
            return scorer(folder), f"reward model {name}, trained by others", False
        return scorer(folder), f"reward model {name}, of feedback kept apart", False
    return lambda prompts, answers: gold_scores(judge.rule, prompts, answers), f"gold rule {judge.rule}", True


def _comparer(client: Client, rubric: str, progress: Progress) -> Comparer:
    """A model behind a server, asked in both orders; the ranks share the comparisons."""

    def share(mine: Sequence[tuple[Prompt, Completion, Completion]]) -> list[float | None]:
        verdicts = compare(client, rubric, mine, progress=counting(progress, "judging"))
        return [None if isinstance(one, Unanswered) else _WON[one.winner] for one in verdicts]

    return Comparer(compare=lambda comparisons: sharded_map(share, comparisons))


_WON: dict[Winner, float] = {"a": 1.0, "b": 0.0, "tie": 0.5}


def _reward_scorer(
    folder: Path,
    *,
    arguments: StageArguments,
    held_out: Sequence[Prompt],
    measured: Measured,
    features: KeptFeatures,
    progress: Progress,
) -> Scorer:
    """The reward model's scores; answers that it scored in an earlier evaluation are not scored again."""
    reward = load(folder, arguments.recipe, features, progress)
    policy = parse(arguments.recipe).policy
    made_of = [reward.id, computed_by(policy.model, policy)]

    def score(prompts: Sequence[Prompt], answers: Sequence[Completion]) -> list[float | None]:
        def scores() -> list[dict[str, Any]]:
            by_length = sorted(answers, key=lambda c: (len(c.text), c.id))  # so that ranks get equal work
            scored: list[Score] = sharded_map(lambda share: reward.score(held_out, share), by_length)
            known = {score.completion_id: score.value for score in scored}
            # each beside its id, so that a deletion finds it
            return [{"completion_id": answer.id, "score": known.get(answer.id)} for answer in answers]

        texts = [asdict(prompt) for prompt in held_out], [asdict(answer) for answer in answers]
        return [one["score"] for one in measured(["scores", *made_of, *texts], scores)]

    return score


def _plain_text(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines if line.strip()]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a text that is none")
        return texts
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'evaluation.plain_text: {path} must hold a {{"text": ...}} a line ({error!r})') from None


def _numbers(result: dict[str, object]) -> dict[str, float]:
    """What trackers are told of an evaluation."""
    return {
        f"evaluation/{block}/{key}": float(value)
        for block, numbers in result.items()
        if isinstance(numbers, dict)
        for key, value in numbers.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
