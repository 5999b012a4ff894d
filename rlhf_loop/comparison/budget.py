"""What cells spend: labels, samples and optimizer steps, as far as a recipe says and as a run's files say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from rlhf_loop.algorithms import ALGORITHMS
from rlhf_loop.feedback.intake.prompts import read_prompts
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.recipe import Recipe
from rlhf_loop.report.data import Round
from rlhf_loop.runs import Run

SPENT = {"labels": "labels", "samples": "samples", "updates": "optimizer steps"}
"""What a budget is made of, and what people call it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """What a run had spent when a policy was evaluated."""

    given: Mapping[str, int] = field(default_factory=Counter)  # pieces of feedback by kind; a comment is a critique
    samples: int = 0  # sampled for the updates; answers to held-out prompts are not among them
    updates: int = 0  # optimizer steps of policies

    def labels(self, prices: Mapping[str, float]) -> float:
        """The price of the feedback."""
        return priced(self.given, prices)


def priced(given: Mapping[str, float], prices: Mapping[str, float]) -> float:
    """What pieces of feedback cost; kinds without a price cost nothing."""
    return sum(count * prices.get(kind, 0.0) for kind, count in given.items())


def spent(run: Run, rounds: list[Round]) -> list[Spent]:
    """What had been spent when the policy of each of `rounds` (from 0 on, complete) was evaluated.

    A round has learned from the feedback of the rounds before it, and its update from their candidates. Feedback that
    was given and not used counts: somebody gave it.
    """
    by_round = _given(run)
    found, samples, updates = [], 0, 0
    for round in rounds:
        trained = round.json("update", "metrics.json")
        updates += int(trained.get("steps") or 0)
        samples += int(trained.get("completions_sampled") or 0)
        given = sum((counts for number, counts in by_round.items() if number < round.number), Counter[str]())
        found.append(Spent(given=given, samples=samples, updates=updates))
        samples += round.candidates + sum((round.written.get("set_aside") or {}).values())
    return found


def _given(run: Run) -> dict[int, Counter[str]]:
    """All feedback in the run's store by its round and kind."""
    by_round: dict[int, Counter[str]] = {}
    with Store.open(run.store_url, create=False) as store:
        for record in store.feedback(effective=False):
            counts = by_round.setdefault(record.round, Counter())
            counts[record.kind] += 1
            counts["critique"] += bool(record.comment) and record.kind != "critique"
    return by_round


def expected(recipe: Recipe, prices: Mapping[str, float]) -> dict[str, float | None]:
    """What a run of the recipe will spend at most on `labels` that its questions ask for, `samples` and `updates`; None
    for what only shows when it runs. Feedback that is imported comes on top."""
    settings, generation = recipe.feedback, recipe.generation
    prompts = generation.prompts_per_round or _prompts(recipe)
    labels: float | None = None
    if settings.questions_per_round == 0:
        labels = 0.0
    elif prompts is not None:
        answers = generation.samples_per_prompt
        questions = min(settings.questions_per_round, prompts * math.comb(min(answers, 16), 2))
        if settings.annotator is None:
            questions *= recipe.annotation.overlap
        gives = getattr(settings.annotator, "gives", frozenset({"preference"}))
        each = dict.fromkeys(gives, questions)
        if "thumb" in each:
            each["thumb"] = min(2 * questions, prompts * answers)
        if getattr(settings.annotator, "critiques", False) is True:
            each["critique"] = questions
        labels = recipe.rounds * priced(each, prices)
    kept, later = generation.samples_per_prompt, generation.samples_per_prompt
    if generation.strategy == "best_of_n":  # from round 1 on, and what is not kept was sampled all the same
        later = max(kept, generation.best_of_n.n)
    algorithm = ALGORITHMS[recipe.update.algorithm]
    steps = recipe.update.trainer_settings().get("max_steps", -1)
    return {
        "labels": labels,
        "samples": None
        if prompts is None or algorithm.online
        else float(prompts * (kept + (recipe.rounds - 1) * later)),
        "updates": 0.0
        if algorithm.consumes == "nothing"
        else float(recipe.rounds * steps)
        if steps > 0 and recipe.warm_start is None
        else None,
    }


def _prompts(recipe: Recipe) -> int | None:
    """How many training prompts the recipe's files hold; None where feedback brings some."""
    return None if recipe.prompts.from_feedback else sum(map(_prompts_in, recipe.prompts.train))


@cache  # cells mostly share their prompts
def _prompts_in(path: Path) -> int:
    return len(read_prompts(path))


def unequal(budgets: Mapping[str, Mapping[str, float | None]], reference: str, tolerance: float) -> list[str]:
    """Each budget of a cell that differs from the reference's by more than `tolerance` of it, in words; what is not
    known of either is left out."""
    found = []
    for cell, budget in budgets.items():
        for what, words in SPENT.items():
            here, there = budget.get(what), budgets[reference].get(what)
            if here is None or there is None or abs(here - there) <= tolerance * max(there, 1e-9):
                continue
            times = f", {here / there:.2f} times as many" if there else ""
            found.append(f"{cell}: {shown(here)} {words}; {reference}: {shown(there)}{times}")
    return found


def shown(value: float) -> str:
    """A number of labels or steps, without decimals where it has none."""
    return f"{value:,.0f}" if abs(value - round(value)) < 0.05 else f"{value:,.1f}"
