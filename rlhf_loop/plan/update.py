"""Memory of a policy update, each algorithm, on each device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rlhf_loop.algorithms import ALGORITHMS
from rlhf_loop.plan.case import PROCESS, Case, Memory, peak_of_training, read_again
from rlhf_loop.plan.formulas import (
    FLOAT32,
    Numbers,
    Texts,
    activations,
    forward,
    gradient_of_head,
    kept_in_a_layer,
    kv_cache,
    logits_kept,
    logits_working,
    working,
)
from rlhf_loop.plan.rewards import all_scoring, all_weights
from rlhf_loop.plan.shape import Adapter, adapter_of
from rlhf_loop.plan.sharing import Held, held
from rlhf_loop.plan.trainer import Trainer, trainer_of
from rlhf_loop.recipe import Update

COMPARES = ("dpo", "kto")
"""Updates that hold a policy against a reference in each batch."""


def update_memory(case: Case, update: Update | None = None) -> Memory | None:
    """Of the recipe's update, or of another (its warm start); None where nothing is trained."""
    training = training_of(case, update)
    if training is None:
        return None
    moments = training.backward()
    if training.online:
        moments |= training.rollout()
    return peak_of_training(
        case,
        f"update ({training.algorithm})",
        moments,
        sure=training.sure,
        host=training.host * case.hardware.devices,
    )


def training_of(case: Case, update: Update | None = None) -> Training | None:
    """The same, part by part."""
    update = update or case.recipe.update
    return Training(case, update) if ALGORITHMS[update.algorithm].function else None


class Training:
    """What is held throughout, and what comes on top when."""

    def __init__(self, case: Case, update: Update):
        self.case, self.algorithm = case, update.algorithm
        shape = self.shape = case.policy
        self.trainer: Trainer = trainer_of(update.algorithm, update.trainer_settings())
        self.adapter: Adapter | None = None
        if update.lora is not None:
            self.adapter = adapter_of(shape, update.lora.r, update.lora.target_modules)
        self.online = ALGORITHMS[update.algorithm].online
        self.critic = critic_of(update)
        of_adapter = self.adapter.parameters if self.adapter else 0
        policy = self._held(shape.parameters + of_adapter, of_adapter or shape.parameters)
        self.policy = replace(policy, weights=policy.weights - case.saved)
        self.of_critic = self._held_by_critic()
        self.reference = self._held(shape.parameters, 0) if self._has_reference() else None

    def _held(self, total: int, trained: int, precise: bool | None = None) -> Held:
        case = self.case
        return held(
            case.sharing,
            case.shares(),
            self.shape,
            total=total,
            trained=trained,
            element=case.element,
            precise=self.adapter is not None if precise is None else precise,
            optimizer=self.trainer.optimizer,
        )

    def _held_by_critic(self) -> Held | None:
        """A trunk and a head, a head, or an adapter and a head (`updates/ppo/critic.py`)."""
        if self.critic is None:
            return None
        if self.critic == "separate":
            trunk = self.shape.trunk() + self.shape.hidden
            return self._held(trunk, trunk, precise=False)
        added = self.shape.hidden + (self.adapter.parameters if self.critic == "adapter" and self.adapter else 0)
        return self._held(added, added, precise=True)

    def _has_reference(self) -> bool:
        """A model of its own; with an adapter the reference is the policy without it."""
        if self.adapter is not None:
            return False
        return self.trainer.reference if self.online else self.algorithm in COMPARES

    @property
    def networks(self) -> list[Held]:
        """All that are held."""
        return [one for one in (self.policy, self.of_critic, self.reference) if one is not None]

    @property
    def sure(self) -> int:
        """Weights, gradients and the optimizer's state of all of them, and what the reward model has."""
        return sum(one.sure for one in self.networks) + self._of_reward

    @property
    def host(self) -> int:
        """In main memory, for each device."""
        return sum(one.host for one in self.networks)

    @property
    def _of_reward(self) -> int:
        return all_weights(self.case) if self.online else 0

    @property
    def throughout(self) -> dict[str, int]:
        """From the second step on."""
        return {
            "process": PROCESS[self.case.hardware.kind],
            "weights": self.policy.weights,
            "critic": self.of_critic.weights if self.of_critic else 0,
            "reference": self.reference.weights if self.reference else 0,
            "reward model": self._of_reward,
            "optimizer": sum(one.optimizer for one in self.networks),
            "gathered": sum(one.gathered for one in self.networks),
            "read again": self._read_again(),
        }

    def _read_again(self) -> int:
        """On a CPU what is saved is read again from its file, whose pages count as the process's, while the memory of
        the training is still kept for more of it (`models/memory.py`)."""
        trained = self.adapter.parameters if self.adapter else self.shape.parameters
        return read_again(self.case, trained, FLOAT32 if self.adapter else self.case.element)

    def backward(self) -> dict[str, Mapping[str, int]]:
        """When all activations are there and the first gradients come; and when all gradients are."""
        gradients = sum(one.gradients for one in self.networks)
        texts = self.texts()
        numbers = self._numbers(texts)
        shape, checkpointing = self.shape, self.trainer.checkpointing
        kept = activations(shape, texts, numbers, self.adapter, checkpointing) + self._of_frozen_layers(texts, numbers)
        if self.critic == "separate":
            kept += activations(shape, texts, numbers, None, checkpointing)
        elif self.critic == "adapter":
            kept += activations(shape, texts, numbers, self.adapter, checkpointing)
        logits = logits_kept(shape, texts, numbers)
        for beside in self._side_batches():
            kept += activations(shape, beside, self._numbers(beside), self.adapter, checkpointing)
            logits += logits_kept(shape, beside, numbers)
        full = self.adapter is None
        at_head = logits_working(shape, texts, numbers)
        tied = self.case.element * shape.embedding if full and not shape.head else 0
        one_layer = working(shape, texts, numbers)
        again = kept_in_a_layer(shape, texts, numbers, self.adapter)
        first = gradients if self.trainer.accumulation > 1 else gradient_of_head(shape, numbers) if full else 0
        begins = {"activations": kept, "logits": logits, "working": max(at_head, one_layer), "gradients": first}
        return {
            "the reference reads": {**self.throughout, "working": self._without_gradients(texts, numbers)},
            "the backward pass begins": {**self.throughout, **begins},
            "the backward pass ends": {
                **self.throughout, "gradients": gradients + tied, "activations": again, "working": one_layer,
            },
        }  # fmt: skip

    def _without_gradients(self, texts: Texts, numbers: Numbers) -> int:
        """A pass whose logits are kept for nobody."""
        at_head = logits_working(self.shape, texts, numbers, keeps=False)
        return max(at_head, forward(self.shape, texts, numbers))

    def rollout(self) -> dict[str, Mapping[str, int]]:
        """While the policy samples, with its adapter merged, and while the reward model reads."""
        case, shape = self.case, self.shape
        numbers = case.numbers(case.implied.prompt)
        new = self.trainer.completion or case.implied.new
        width = case.implied.prompt + new
        rows = self.trainer.rollout
        merged = 0
        if case.sharing.left_to_trl:  # all rows of a rollout at once; ZeRO-3 gathers the weights meanwhile
            merged = case.element * shape.parameters if case.sharing.deepspeed and case.sharing.weights else 0
        else:
            rows = min(rows, max(1, case.recipe.generation.batch_tokens // width))
            merged = case.element * self.adapter.adapted if self.adapter and not case.saved else 0
        prompts = Texts(rows=-(-rows // self.trainer.samples), length=case.implied.prompt, scored=0)
        return {
            "the policy samples": {
                **self.throughout,
                "merged": merged,
                "KV cache": kv_cache(shape, rows * width, numbers.element),
                "logits": 2 * numbers.element * rows * shape.vocabulary,
                "working": forward(shape, prompts, numbers),
            },
            "the reward model reads": {**self.throughout, "working": all_scoring(case, self.trainer.rollout)},
        }

    def texts(self) -> Texts:
        """Of one batch of a device."""
        batch, implied = self.trainer.batch, self.case.implied
        if self.online:
            new = self.trainer.completion or implied.new
            return Texts(rows=batch, length=implied.prompt + new, scored=batch * new)
        length = self._cut(implied.prompt + implied.answer)
        answer = min(implied.answer, length - 1)
        if self.algorithm != "dpo":
            return Texts(rows=batch, length=length, scored=batch * answer)
        apart = Texts(rows=2 * batch, length=length, scored=2 * batch * answer)
        together = Texts(rows=batch, length=length + answer + 1, scored=2 * batch * answer)
        return together if self._pairs_share_a_row(apart, together) else apart

    def _pairs_share_a_row(self, apart: Texts, together: Texts) -> bool:
        """Where `updates/pair_rows.py` puts both answers behind one prompt: it multiplies less."""
        if self._left_to_trl or self.case.attention() not in ("eager", "sdpa", "grouped"):
            return False
        costs = [one.tokens * (6 * self.shape.hidden + one.length) for one in (apart, together)]
        return costs[1] < costs[0]

    @property
    def _left_to_trl(self) -> bool:
        return self.case.sharing.left_to_trl or self.trainer.checkpointing

    def _cut(self, length: int) -> int:
        limits = [limit for limit in (self.trainer.max_length, self.shape.context) if limit is not None]
        return min([length, *limits])

    def _numbers(self, texts: Texts) -> Numbers:
        """DPO and KTO round an adapter's input with its neighbours' (`updates/log_probs.py`)."""
        return self.case.numbers(texts.length, adapter_copies=self.algorithm not in COMPARES)

    def _of_frozen_layers(self, texts: Texts, numbers: Numbers) -> int:
        """What the layers below the adapters gave, kept for the policy's pass after the reference's: e h of each."""
        if self.adapter is None or self.algorithm not in COMPARES or self._left_to_trl:
            return 0
        return numbers.element * self.adapter.lowest * self.shape.hidden * texts.tokens

    def _side_batches(self) -> list[Texts]:
        """Of losses of critiques, which come beside each batch."""
        critiques = self.case.recipe.critiques
        if critiques is None:
            return []
        implied, found = self.case.implied, []
        for settings in critiques.gives("term").values():
            rows = getattr(settings, "batch_size", None) or self.trainer.batch
            length = self._cut(implied.prompt + implied.answer)
            found.append(Texts(rows=rows, length=length, scored=rows * min(implied.answer, length - 1)))
        return found


def critic_of(update: Update) -> str | None:
    """Where PPO's critic is; None of other updates."""
    if update.algorithm != "ppo":
        return None
    named = update.trainer_settings().get("critic")
    return str(named) if named else "adapter" if update.lora is not None else "separate"
