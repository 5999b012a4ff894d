"""Stage 6: the candidate policy on held-out prompts, against the base and the last promoted policy.

    held_out.parquet  policy  base's and previous answers  ->  answers.parquet  prompts.parquet  evaluation.json

In round 0 the candidate is the base itself: its answers are what later rounds are compared with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rlhf_loop.annotators import gold_scores
from rlhf_loop.errors import UserError
from rlhf_loop.evaluation import Models, Scorer, evaluate
from rlhf_loop.files import write_json
from rlhf_loop.models.distributed import is_main
from rlhf_loop.models.loading import check_model, load_policy
from rlhf_loop.recipe import Recipe, RewardModelJudge, parse
from rlhf_loop.records import Completion, Prompt, read_records, write_records
from rlhf_loop.stages import Progress
from rlhf_loop.stages.arguments import StageArguments
from rlhf_loop.stages.generate import sample
from rlhf_loop.stages.reward import load
from rlhf_loop.tracking import evaluation_run
from rlhf_loop.updates.adapters import lora_config


def run(arguments: StageArguments, folder: Path, progress: Progress) -> None:
    """Samples the candidate's answers, has them judged, and measures what may have been lost."""
    recipe = parse(arguments.recipe)
    name = f"{arguments.title}-evaluation"
    # Opened first: a tracker that does not start is told of before anything is computed.
    with evaluation_run(recipe.report_to, arguments.title, name, arguments.tracking) as log:
        result = _evaluate(recipe, arguments, folder, progress)
        log({**_numbers(result), "evaluation/round": arguments.round}, arguments.round)


def _evaluate(recipe: Recipe, arguments: StageArguments, folder: Path, progress: Progress) -> dict[str, object]:
    if arguments.round == 0:
        check_model(recipe.policy, lora_config(recipe.update.lora) if recipe.update.lora else None)
    plain_text = _plain_text(recipe.evaluation.plain_text)
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
    policy, tokenizer = load_policy(arguments.values["policy"], recipe.policy)
    reference = None if hasattr(policy, "disable_adapter") else _reference(policy, arguments, recipe)
    judge, name, simulated = _judge(recipe, inputs.get("judge"), arguments, prompts)
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
        proxy=_reward_scorer(inputs["reward"], arguments, prompts) if "reward" in inputs else None,
        models=Models(policy=policy, tokenizer=tokenizer, settings=recipe.policy, reference=reference),
        plain_text=plain_text,
    )
    if is_main():
        write_records(folder / "answers.parquet", answers)
        write_records(folder / "prompts.parquet", prompts)
        write_json(folder / "evaluation.json", result)
    return result


def _reference(policy: object, arguments: StageArguments, recipe: Recipe) -> object:
    if arguments.values["policy"] == recipe.policy.model:
        return policy
    return load_policy(recipe.policy.model, recipe.policy)[0]


def _answers(folder: Path) -> list[Completion]:
    answers: list[Completion] = read_records(folder / "answers.parquet", Completion)
    return answers


def _judge(
    recipe: Recipe, folder: Path | None, arguments: StageArguments, prompts: Sequence[Prompt]
) -> tuple[Scorer, str, bool]:
    """The judge, its name, and whether it stands for a simulated annotator."""
    judge = recipe.evaluation.judge
    if isinstance(judge, RewardModelJudge):
        assert folder is not None
        return (
            _reward_scorer(folder, arguments, prompts),
            f"reward model {judge.model.name}, of feedback kept apart",
            False,
        )
    return lambda prompts, answers: gold_scores(judge.rule, prompts, answers), f"gold rule {judge.rule}", True


def _reward_scorer(folder: Path, arguments: StageArguments, held_out: Sequence[Prompt]) -> Scorer:
    reward = load(folder, arguments.recipe)

    def score(prompts: Sequence[Prompt], answers: Sequence[Completion]) -> list[float | None]:
        known = {score.completion_id: score.value for score in reward.score(held_out, answers)}
        return [known.get(answer.id) for answer in answers]

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
