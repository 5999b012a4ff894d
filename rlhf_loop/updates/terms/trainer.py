"""Adds terms to a trainer of TRL."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import torch

from rlhf_loop.critique_methods import METHODS
from rlhf_loop.models.turns import Tokens, Turns
from rlhf_loop.updates.terms.examples import Context
from rlhf_loop.updates.terms.side_batches import side_batch
from rlhf_loop.updates.terms.term import Read, Term, log_probs_of

if TYPE_CHECKING:
    from rlhf_loop.updates.train_and_save import Training


class WithTerms:
    """Put before a trainer of TRL among the base classes: overrides `compute_loss`.

    Each batch of the update brings a side batch of each term's examples along, the mean of whose losses is added, times
    the term's weight, and logged as `critiques/NAME_loss` among the trainer's metrics. Without terms, and in
    evaluations, nothing is done.
    """

    terms: Sequence[Term] = ()
    terms_seed = 0
    _micro_batch = (0, 0)  # optimizer step, batches of it that were seen

    def compute_loss(self: Any, model: Any, inputs: Any, return_outputs: bool = False, **named: Any) -> Any:
        """TRL's loss and the terms'."""
        loss = super().compute_loss(model, inputs, return_outputs, **named)  # type: ignore[misc]
        if not self.terms or return_outputs or not model.training:
            return loss

        def read(sequences: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
            return log_probs_of(model, sequences, self.accelerator.device)

        number = self._batch_number()
        if number == 0:
            self._check_terms(model, read)
        if getattr(self, "in_value_warmup", False):  # of PPO's critic: the policy waits
            return loss
        return loss + self._share_of_step(named) * self._loss_of_terms(read, number)

    def _loss_of_terms(self: Any, read: Read, number: int) -> torch.Tensor:
        total = torch.zeros((), device=self.accelerator.device)
        values: dict[str, torch.Tensor] = {}
        for term in self.terms:
            size = term.batch_size or self.args.per_device_train_batch_size
            rows = side_batch(len(term.examples), size, number, self.terms_seed)
            loss, metrics = term.loss(read, [term.examples[row] for row in rows])
            total = total + term.weight * loss
            values[f"critiques/{term.name}_loss"] = loss.detach()
            values |= {f"critiques/{term.name}_{name}": value.detach() for name, value in metrics.items()}
        self._log_of_terms(values)
        return total

    def _check_terms(self: Any, model: Any, read: Read) -> None:
        """Before the first step: a training that goes on from a checkpoint passed here."""
        with torch.no_grad(), _without_dropout(model):
            for term in self.terms:
                for name, value in term.check(read).items():
                    self._metrics["train"][f"critiques/{term.name}_{name}"].append(value)

    def _batch_number(self: Any) -> int:
        """Of all batches that the training goes through, counted in a way that a resume keeps."""
        step, seen = self._micro_batch
        seen = seen if step == self.state.global_step else 0
        self._micro_batch = (self.state.global_step, seen + 1)
        return int(self.state.global_step) * int(self.args.gradient_accumulation_steps) + seen

    def _share_of_step(self: Any, named: dict[str, Any]) -> float:
        """A step's term is the mean over its batches. Where TRL's loss is a sum over a step that the trainer does not
        divide by its batches, we do."""
        scaled = self.loss_is_scaled_for_ga
        if scaled is None:
            scaled = self.compute_loss_func is not None or (
                self.model_accepts_loss_kwargs and named.get("num_items_in_batch") is not None
            )
        return 1 / self.current_gradient_accumulation_steps if scaled else 1.0

    def _log_of_terms(self: Any, values: dict[str, torch.Tensor]) -> None:
        """Means over the ranks that have something to say of a metric, else NaN."""
        of_ranks = self.accelerator.gather(torch.stack([value.float() for value in values.values()])[None])
        for name, value in zip(values, of_ranks.nanmean(0).tolist(), strict=True):
            if not math.isnan(value):
                self._metrics["train"][name].append(value)


def add_terms(trainer: Any, tokenizer: Any, training: Training) -> dict[str, Any]:
    """Gives a trainer the terms that the recipe switches on; counts of each for the metrics of the update.

    A term without anything to train on stays off, and its counts say why (`off`).
    """
    settings = training.critique_settings
    wanted = {} if settings is None else settings.gives("term")
    if not wanted:
        return {}
    if WithTerms not in type(trainer).__mro__:  # one of somebody's own update
        raise TypeError(
            f"{type(trainer).__name__} takes no losses of critiques: put `WithTerms` before its base classes"
        )
    model = trainer.accelerator.unwrap_model(trainer.model)
    turns = Turns(tokenizer, model)
    context = Context(turns=turns, policy=training.policy, limit=_limit(trainer.args, model))
    made: list[Term] = [
        resolve_name(METHODS[name].function)(of_term, training.critiques, context, training.seed)
        for name, of_term in wanted.items()
    ]
    turns.say_unfit(len(training.critiques) * len(made))
    trainer.terms = [term for term in made if len(term.examples)]
    trainer.terms_seed = training.seed
    off = {term.name: {"off": _why_off(term, len(training.critiques))} for term in made if not len(term.examples)}
    return {"critiques": {term.name: {**term.counts, **off.get(term.name, {})} for term in made}}


def _limit(args: Any, model: Any) -> int | None:
    """Tokens of a sequence: what the update's own may have, else what the model reads."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [limit for limit in (getattr(args, "max_length", None), context) if limit is not None]
    return min(limits) if limits else None


def _why_off(term: Term, rows: int) -> str:
    if not rows:
        return "there are no critiques yet"
    reasons = ", ".join(f"{count} {reason}" for reason, count in term.counts["left_out"].items())
    return f"none of {rows} critiques can be trained on ({reasons})"


@contextmanager
def _without_dropout(model: Any) -> Iterator[None]:
    model.eval()
    try:
        yield
    finally:
        model.train()
