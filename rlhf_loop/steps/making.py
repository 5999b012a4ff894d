"""What the steps of a round have at hand: the run, its store, and how a step is made once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_loop.algorithms import AlgorithmName
from rlhf_loop.feedback.borrowed import sources_of
from rlhf_loop.feedback.privacy.forgetting import Forgetting
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import read_json
from rlhf_loop.progress import RunProgress
from rlhf_loop.report.status import with_interval
from rlhf_loop.runs import Run
from rlhf_loop.steps.contents import endpoints_of_rewards
from rlhf_loop.steps.made_once import Start, StepMaker


class Making:
    """A run whose rounds are made, with its store and the starter of stages."""

    def __init__(self, run: Run, store: Store, start: Start, progress: RunProgress):
        """`start`: starts a stage (`made_once.Start`)."""
        self.run = run
        self.recipe = run.recipe
        self.files = run.run_dir
        self.store = store
        self.progress = progress
        self.make = StepMaker(self.files, self.recipe, start, progress, self.forget)
        self.forgetting = Forgetting(self.files, sources_of(run.store_url, self.recipe.feedback.borrows), store)
        self.figures: dict[str, Any] = {}  # of the round that is made, for its manifest

    def forget(self) -> None:
        """Takes out of the run's files what other projects, whose feedback it borrowed, have deleted; and says so."""
        for said in self.forgetting.forget():
            self.progress.note("", said)

    def promoted(self) -> str:
        """The id of the policy that generates now."""
        policy = self.run.promoted_id(self.store)
        assert policy is not None  # `prepare` promotes the base
        return policy

    def open_questions(self) -> int:
        """Questions that people have not answered yet."""
        return self.store.open_questions() if self.recipe.feedback.annotator is None else 0

    def algorithm(self, n: int) -> AlgorithmName:
        """The algorithm of round `n`'s update; in round 0 that of the warm start."""
        return self.recipe.update.algorithm if n else "sft"

    def critiques(self) -> dict[str, Any]:
        """The block of the recipe, where it has one: what a step without it made stays as it is."""
        return {} if self.recipe.critiques is None else self.make.blocks("critiques")

    def complained_of(self, frozen: Path) -> dict[str, Path]:
        """The input of a stage that looks at what was complained of, where a method does; else none."""
        wanted = self.recipe.critiques is not None and self.recipe.critiques.need_fresh
        return {"critiques": frozen / "critiques.parquet"} if wanted else {}

    def written_by(self, policy: str) -> str:
        """Who writes candidates: the policy, or the endpoint that writes in its place."""
        name = self.recipe.generation.endpoint
        return policy if name is None else f"endpoint:{name}:{self.recipe.endpoints[name].model}"

    @property
    def asked(self) -> list[str]:
        """The block of the recipe that scoring follows too where a model behind a server scores."""
        return ["endpoints"] if self.recipe.endpoints and endpoints_of_rewards(self.recipe) else []

    def asked_of(self, judge: object) -> list[str]:
        """The same of a judge, which is the reward model where the recipe names none."""
        return self.asked if judge is None else endpoints_block(judge)

    def asked_in_evaluation(self) -> list[str]:
        """The block of the recipe that an evaluation follows too where an endpoint answers or judges."""
        return endpoints_block(self.recipe.evaluation.judge) or endpoints_block(self.recipe.policy)


def promoted_at(frozen: Path) -> str:
    """The policy that a round started from, as its snapshot says."""
    promoted: str = read_json(frozen / "state.json")["promoted"]
    return promoted


def endpoints_block(block: object) -> list[str]:
    """The block of the recipe that a step follows too whose settings name an endpoint."""
    return ["endpoints"] if getattr(block, "endpoint", None) is not None else []


def interval(value: Mapping[str, Any]) -> str:
    """A rate with its interval and the number of values, as the run's output shows it."""
    return f"{with_interval(value)} (n={value['n']})"
