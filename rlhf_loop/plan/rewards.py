"""Memory of reward models: in use, and in training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_loop.lora import Lora
from rlhf_loop.plan.case import PROCESS, Case, Memory, peak, peak_of_training, read_again
from rlhf_loop.plan.formulas import FLOAT32, Texts, activations, forward, working
from rlhf_loop.plan.shape import Adapter, Shape, adapter_of
from rlhf_loop.plan.sharing import held
from rlhf_loop.plan.trainer import trainer_of
from rlhf_loop.reward_spec import BradleyTerrySpec, CriticSpec, HeadSpec, RewardSpec, TrainedSpec, with_trainer

SCORED = {"cpu": 4096, "gpu": 65536}
"""Tokens that a reward model reads at a time (`rlhf_loop/rewards/`)."""
IN_FORWARD = {"cpu": 2048}
"""Tokens of one forward of its training; elsewhere a batch is one."""


def weights(case: Case, spec: RewardSpec, shape: Shape | None) -> int:
    """Bytes on a device of a loaded reward model: nothing of a function or a judge behind a server."""
    if shape is None:
        return 0
    if isinstance(spec, HeadSpec):
        return case.read(case.element * shape.trunk(_top(spec, shape) + 1))
    adapter = _adapter(shape, spec.lora) if isinstance(spec, (BradleyTerrySpec, CriticSpec)) else None
    added = adapter.parameters if adapter else 0
    if isinstance(spec, BradleyTerrySpec):
        return case.read(case.element * (shape.trunk() + added))
    head = FLOAT32 * (shape.hidden + 1) * shape.hidden if isinstance(spec, CriticSpec) else 0
    return case.read(case.element * (shape.parameters + added) + head)


def scoring(case: Case, spec: RewardSpec, shape: Shape | None, texts: int) -> int:
    """Bytes that it takes beside its weights while it scores so many texts."""
    if shape is None:
        return 0
    length = _length(case, spec)
    tokens = min(SCORED[case.hardware.kind], texts * length)
    read = Texts(rows=max(1, tokens // length), length=length, scored=0)
    found = forward(shape, read, case.numbers(length)) + case.gathered(shape)
    if isinstance(spec, HeadSpec):  # hidden states of all layers below, and those that are pooled in float32
        found += (case.element * (_top(spec, shape) + 2) + 2 * FLOAT32) * shape.hidden * read.tokens
    return found


def all_weights(case: Case) -> int:
    """Of the recipe's reward, all of its components. Heads on one trunk are loaded apart."""
    return sum(weights(case, *case.rewards[folder]) for folder in _folders(case))


def all_scoring(case: Case, texts: int) -> int:
    """Components score one after the other."""
    return max((scoring(case, *case.rewards[folder], texts) for folder in _folders(case)), default=0)


def training(case: Case) -> list[Memory]:
    """Of each component that is trained."""
    settings = case.recipe.reward.trainer if case.recipe.reward is not None else {}
    return [memory for folder in _folders(case) if (memory := trained(case, folder, settings)) is not None]


def trained(case: Case, folder: Path, settings: Mapping[str, Any]) -> Memory | None:
    """Of the training of a folder of the catalogue, whose `trainer` block the recipe's `settings` go over; None where
    there is none."""
    spec, shape = case.rewards[folder]
    if shape is None or not isinstance(spec, TrainedSpec):
        return None
    stage = f"reward ({folder.name})"
    if isinstance(spec, HeadSpec):
        return _head(case, spec, shape, stage)
    spec = with_trainer(spec, settings)
    if isinstance(spec, BradleyTerrySpec):
        return _bradley_terry(case, spec, shape, stage)
    return _critic(case, spec, shape, stage) if isinstance(spec, CriticSpec) else None


def texts_of_a_prompt(case: Case, most: int) -> int:
    """Different answers of a prompt that pairs are made of: its samples where people are asked about them, else two."""
    asked = case.recipe.feedback.questions_per_round > 0
    return min(most, max(2, case.recipe.generation.samples_per_prompt if asked else 2))


def _head(case: Case, spec: HeadSpec, shape: Shape, stage: str) -> Memory:
    pairs = case.implied.pairs + case.recipe.rounds * case.recipe.feedback.questions_per_round
    width = len(spec.layers) * len(spec.pooling) * shape.hidden
    features = 2 * pairs * width * (FLOAT32 + 2 * 8)  # as computed, and twice in float64: standardised, and a fold
    process = {"process": PROCESS[case.hardware.kind], "weights": weights(case, spec, shape)}
    return peak(
        stage,
        {
            "features": {**process, "working": scoring(case, spec, shape, 2 * pairs)},
            "fit": {**process, "features": features},
        },
        sure=process["weights"],
    )


def _bradley_terry(case: Case, spec: BradleyTerrySpec, shape: Shape, stage: str) -> Memory:
    trainer = trainer_of("bradley_terry", spec.trainer)
    adapter = _adapter(shape, spec.lora)
    total = shape.trunk() + shape.hidden + (adapter.parameters if adapter else 0)
    state = held(
        case.sharing,
        case.shares(),
        shape,
        total=total,
        trained=adapter.parameters + shape.hidden if adapter else total,
        element=case.element if adapter else FLOAT32,
        precise=True,
        optimizer=trainer.optimizer,
    )
    device = case.hardware.kind
    length = min(case.implied.prompt + case.implied.answer, spec.max_length)
    texts = Texts(rows=trainer.batch * texts_of_a_prompt(case, spec.max_texts), length=length, scored=0)
    at_work = Texts(
        rows=max(1, min(texts.tokens, IN_FORWARD.get(device, texts.tokens)) // length), length=length, scored=0
    )
    probed = Texts(rows=max(1, SCORED[device] // length), length=length, scored=0)
    numbers = case.numbers(length, adapter_copies=True)
    one_layer = working(shape, at_work, numbers)
    base = {"process": PROCESS[device], "weights": state.weights, "gathered": state.gathered}
    saved = read_again(case, adapter.parameters if adapter else total, FLOAT32)
    training = {**base, "optimizer": state.optimizer, "working": one_layer, "read again": saved}
    moments = {
        "the probe reads": {**base, "working": forward(shape, probed, numbers)},
        "the backward pass begins": {
            **training,
            "activations": activations(shape, texts, numbers, adapter, trainer.checkpointing),
            "gradients": state.gradients if trainer.accumulation > 1 else 0,
            # trained in float32 and multiplied in fewer bits: of each weight a rounded one, until the pass is over
            "rounded weights": case.element * total if adapter is None and case.element < FLOAT32 else 0,
        },
        "the backward pass ends": {**training, "gradients": state.gradients},
    }
    return peak_of_training(case, stage, moments, sure=state.sure, host=state.host * case.hardware.devices)


def _critic(case: Case, spec: CriticSpec, shape: Shape, stage: str) -> Memory:
    adapter = _adapter(shape, spec.lora)
    assert adapter is not None
    trained = adapter.parameters + (shape.hidden + 1) * shape.hidden
    length = min(case.implied.prompt + case.implied.answer + 32, spec.max_length) + spec.max_critique
    moments, sure, host = {}, 0, 0
    for name, settings, most in (
        ("sft", spec.sft, 1),
        ("joint", spec.trainer, texts_of_a_prompt(case, spec.max_texts)),
    ):
        trainer = trainer_of("critic", settings)
        state = held(
            case.sharing,
            case.shares(),
            shape,
            total=shape.parameters + trained,
            trained=trained,
            element=case.element,
            precise=True,
            optimizer=trainer.optimizer,
        )
        sure, host = max(sure, state.sure), max(host, state.host)
        rows = trainer.batch * most
        texts = Texts(rows=rows, length=length, scored=rows * spec.max_critique)
        numbers = case.numbers(length, adapter_copies=True)
        # transformers' own logits: as computed, in float32, their softmax and its gradient
        logits = texts.scored * shape.vocabulary * (numbers.element + 3 * FLOAT32)
        moments[name] = {
            "process": PROCESS[case.hardware.kind],
            "weights": state.weights,
            "gathered": state.gathered,
            "gradients": state.gradients,
            "optimizer": state.optimizer,
            "activations": activations(shape, texts, numbers, adapter, trainer.checkpointing),
            "logits": logits,
            "working": working(shape, texts, numbers),
        }
    return peak_of_training(case, stage, moments, sure=sure, host=host * case.hardware.devices)


def _folders(case: Case) -> list[Path]:
    reward = case.recipe.reward
    return [] if reward is None else [one.model for one in reward.weighted()]


def _top(spec: HeadSpec, shape: Shape) -> int:
    return max(max(1, round(share * shape.layers)) for share in spec.layers)


def _adapter(shape: Shape, lora: Lora | None) -> Adapter | None:
    return None if lora is None else adapter_of(shape, lora.r, lora.target_modules)


def _length(case: Case, spec: RewardSpec) -> int:
    most = getattr(spec, "max_length", None)
    length = case.implied.prompt + case.implied.answer
    return length if most is None else min(length, most)
