"""How long the stages of a round take, at most: of all that the recipe lets it have."""

from __future__ import annotations

from rlhf_loop.algorithms import ALGORITHMS
from rlhf_loop.plan.case import Case
from rlhf_loop.plan.formulas import Texts
from rlhf_loop.plan.operations import Time, forward_operations, seconds_of, training_operations, writing
from rlhf_loop.plan.shape import Shape, adapter_of
from rlhf_loop.plan.stages import prompt_length, samples_of
from rlhf_loop.plan.trainer import Trainer, trainer_of
from rlhf_loop.plan.update import COMPARES, critic_of, training_of
from rlhf_loop.recipe import RewardModelJudge
from rlhf_loop.reward_spec import BradleyTerrySpec, CriticSpec, HeadSpec, RewardSpec
from rlhf_loop.strategies import STRATEGIES


def times(case: Case) -> list[Time]:
    """Of the stages of the last round, which has the most feedback, in their order."""
    found = [*_rewards(case), _score(case), _update(case), _evaluate(case), _generate(case)]
    return [one for one in found if one is not None]


def candidates(case: Case) -> int:
    """Answers of a round, before some are set aside."""
    return samples_of(case) * min(case.implied.train, case.recipe.generation.prompts_per_round or case.implied.train)


def feedback_pairs(case: Case) -> int:
    """Pairs that people, or who stands for them, have judged by the last round."""
    return case.implied.pairs + case.recipe.rounds * case.recipe.feedback.questions_per_round


def rows(case: Case) -> int:
    """Rows that the update of the last round has."""
    recipe, implied = case.recipe, case.implied
    asked, drawn = recipe.feedback.questions_per_round, candidates(case) // samples_of(case)
    since = min(recipe.rounds, recipe.pairing.feedback_rounds or recipe.rounds)
    consumes = ALGORITHMS[recipe.update.algorithm].consumes
    if consumes == "pairs":
        found = since * asked + implied.pairs if "feedback" in recipe.pairing.sources else 0
        if "reward" in recipe.pairing.sources:
            samples = recipe.generation.samples_per_prompt
            found += drawn * (samples * (samples - 1) // 2 if recipe.pairing.strategy == "all_above_margin" else 1)
        return min(found, recipe.pairing.max_pairs or found)
    if consumes == "labels":
        return implied.labels + 2 * since * asked
    if consumes == "demonstrations":
        return implied.demonstrations + since * asked
    return drawn if consumes == "best_of_n" else implied.train if consumes == "prompts" else 0


def _time(case: Case, stage: str, texts: int, operations: float) -> Time:
    return Time(stage=stage, texts=texts, operations=operations, seconds=seconds_of(case, operations))


def _read(case: Case, count: int, scored: int = 0) -> Texts:
    return Texts(rows=count, length=case.implied.prompt + case.implied.answer, scored=scored)


def _layers(spec: RewardSpec, shape: Shape) -> int | None:
    return 1 + max(max(1, round(share * shape.layers)) for share in spec.layers) if isinstance(spec, HeadSpec) else None


def _scoring(case: Case, count: int) -> float:
    """Operations of scoring so many answers with all components."""
    reward = case.recipe.reward
    total = 0.0
    for one in reward.weighted() if reward is not None else ():
        spec, shape = case.rewards[one.model]
        if shape is not None:
            total += forward_operations(shape, _read(case, count), _layers(spec, shape))
    return total


def _rewards(case: Case) -> list[Time]:
    reward, found = case.recipe.reward, list[Time]()
    if reward is None:
        return found
    for one in reward.weighted():
        spec, shape = case.rewards[one.model]
        texts, stage = 2 * feedback_pairs(case), f"reward ({one.model.name})"
        if shape is None:
            continue
        if isinstance(spec, HeadSpec):
            found.append(_time(case, stage, texts, forward_operations(shape, _read(case, texts), _layers(spec, shape))))
        elif isinstance(spec, (BradleyTerrySpec, CriticSpec)):
            trainer = trainer_of(spec.kind, {**spec.trainer, **reward.trainer})
            adapter = adapter_of(shape, spec.lora.r, spec.lora.target_modules) if spec.lora else None
            once = training_operations(shape, _read(case, texts), adapter, trainer.checkpointing)
            found.append(_time(case, stage, texts, trainer.epochs * once))
    return found


def _score(case: Case) -> Time | None:
    """The fresh candidates, and those of the round before by the new reward model."""
    operations = _scoring(case, 2 * candidates(case))
    return _time(case, "score", 2 * candidates(case), operations) if operations else None


def _update(case: Case) -> Time | None:
    training = training_of(case)
    if training is None:
        return None
    algorithm, trainer, shape, adapter = case.recipe.update.algorithm, training.trainer, case.policy, training.adapter
    stage, devices = f"update ({algorithm})", case.hardware.total
    batch = training.texts()
    if not ALGORITHMS[algorithm].online:
        count = _seen(trainer, rows(case), devices)
        texts = Texts(
            rows=count * batch.rows // trainer.batch, length=batch.length, scored=count * batch.scored // trainer.batch
        )
        operations = training_operations(shape, texts, adapter, trainer.checkpointing)
        if algorithm in COMPARES:  # the layers below the adapters are computed once for policy and reference
            upper = None if adapter is None else shape.layers - adapter.lowest
            operations += forward_operations(shape, texts, upper) * (3 if algorithm == "kto" else 1)
        return _time(case, stage, count, operations)
    steps = trainer.max_steps
    of_rollout = trainer.rollout * devices
    if steps is None:
        rollouts = max(1, round(trainer.epochs * case.implied.train * trainer.samples / of_rollout))
    else:
        rollouts = max(1, -(-steps * trainer.accumulation // max(1, trainer.passes * trainer.rollout // trainer.batch)))
    count = rollouts * of_rollout
    new = batch.scored // batch.rows
    width = case.implied.prompt + new
    most = max(1, case.recipe.generation.batch_tokens // width)
    of_writing, seconds = writing(case, count, trainer.samples, case.implied.prompt, new, most)
    texts = Texts(rows=count, length=width, scored=count * new)
    critic = critic_of(case.recipe.update)
    passes = forward_operations(shape, texts) * (1 + trainer.reference + (critic not in (None, "head")))
    trained = training_operations(shape, texts, adapter, trainer.checkpointing)
    trained *= trainer.passes * (1 if critic in (None, "head") else 2)
    operations = passes + trained + _scoring(case, count)
    rest = seconds_of(case, operations)
    return Time(
        stage=stage,
        texts=count,
        operations=of_writing + operations,
        seconds=None if seconds is None or rest is None else seconds + rest,
    )


def _seen(trainer: Trainer, count: int, devices: int) -> int:
    """Rows that go through a training, each as often as it does."""
    if trainer.max_steps is not None:
        return trainer.max_steps * trainer.batch * trainer.accumulation * devices
    return round(trainer.epochs * count)


def _evaluate(case: Case) -> Time | None:
    if case.recipe.policy.endpoint is not None:
        return None
    evaluation, implied = case.recipe.evaluation, case.implied
    count = evaluation.samples_per_prompt * implied.held_out
    most = max(1, case.recipe.generation.batch_tokens // (implied.prompt + implied.new))
    operations, seconds = writing(case, count, evaluation.samples_per_prompt, implied.prompt, implied.new, most)
    measured = 2 * forward_operations(case.policy, _read(case, count, count * implied.new)) + _scoring(case, count)
    if isinstance(evaluation.judge, RewardModelJudge):
        spec, shape = case.rewards[evaluation.judge.model]
        measured += 0.0 if shape is None else forward_operations(shape, _read(case, count), _layers(spec, shape))
    return _together(case, "evaluate", count, operations, seconds, measured)


def _generate(case: Case) -> Time | None:
    generation = case.recipe.generation
    if generation.engine == "endpoint" or case.recipe.policy.endpoint is not None:
        return None
    count, length = candidates(case), prompt_length(case)
    most = max(1, generation.batch_tokens // (length + case.implied.new))
    operations, seconds = writing(case, count, samples_of(case), length, case.implied.new, most)
    scored = _scoring(case, count) if STRATEGIES[generation.strategy].scores else 0.0
    return _together(case, "generate", count, operations, seconds, scored)


def _together(case: Case, stage: str, count: int, operations: float, seconds: float | None, more: float) -> Time:
    rest = seconds_of(case, more)
    total = None if seconds is None or rest is None else seconds + rest
    return Time(stage=stage, texts=count, operations=operations + more, seconds=total)
