"""The loop: ten steps a round, top to bottom, each made once and kept.

The loop runs the torch-free steps itself, starts the stages by name, and takes their files into the store.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rlhf_loop import launch
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import read_json
from rlhf_loop.kept_recipe import keep_recipe
from rlhf_loop.plan import floor
from rlhf_loop.progress import RunProgress
from rlhf_loop.recipe import EndpointJudge, Recipe, RewardModelJudge
from rlhf_loop.records import Artifact
from rlhf_loop.report import write_report
from rlhf_loop.runs import BASE, Run
from rlhf_loop.steps import learn, measure, write
from rlhf_loop.steps.complete import complete
from rlhf_loop.steps.making import Making, interval, promoted_at
from rlhf_loop.steps.prepare import check_demonstrations, check_keys, check_rewards, take_in


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """How a call of `Loop.run` ended."""

    run_dir: Path
    complete_rounds: int  # update rounds that are complete, round 0 not counted
    waiting_for_labels: int  # questions that people must answer before the next round
    report: Path


class Loop(Run):
    """A recipe and the run that it makes.

    Loop(Recipe.load("recipes/quickstart.yaml")).run(rounds=3)
    """

    def __init__(self, recipe: Recipe, run_dir: str | Path | None = None, progress: RunProgress | None = None):
        super().__init__(recipe, run_dir)
        self.progress = progress or RunProgress(quiet=True)

    def run(self, rounds: int | None = None, wait: bool = True, check_memory: bool = True) -> RunResult:
        """Makes rounds 1 to `rounds` (default: the recipe's; 0: round 0 alone), or goes on where a call stopped.

        Returns early, with `waiting_for_labels` set, when people must answer first; `wait=False` goes on with the
        feedback there is. `check_memory`: a run that surely takes more memory than there is is refused before anything
        is computed. Raises `UserError` for everything a user can mend.
        """
        total = self.recipe.rounds if rounds is None else rounds
        with self.run_dir.locked():
            self.recipe = keep_recipe(self.recipe, self.run_dir)
            launcher = launch.choose(self.recipe)
            launch.check_configs(self.recipe)
            with Store.open(self.store_url) as store:
                if store.is_new and self.recipe.project is not None:
                    self.progress.say(f"project {self.recipe.project} is new in its store; it is made now")
                at = Making(self, store, launcher.run, self.progress)
                _prepare(at)
                waiting, missing = 0, sorted(set(range(total + 1)) - set(self.run_dir.complete_rounds()))
                if missing:
                    check_rewards(store, self.recipe)
                    check_keys(self.recipe)
                    if check_memory:
                        floor.check_memory(self.recipe, updates=total > 0)
                for number in missing:
                    waiting = at.open_questions() if number and wait else 0
                    if waiting:
                        break
                    self.progress.round(number, total, at.promoted())
                    make_round(at, number)
            # Only now: after an error the other ranks may be anywhere, and it is the launcher's work to end them.
            launcher.close()
            report = write_report(self.run_dir, only_if_old=True)
        updates = [number for number in self.run_dir.complete_rounds() if number]
        return RunResult(
            run_dir=self.run_dir.path, complete_rounds=len(updates), waiting_for_labels=waiting, report=report
        )


def _prepare(at: Making) -> None:
    """The base policy, prompts and collected feedback go into the store; a second time changes nothing."""
    at.store.add_artifact(Artifact(id=BASE, kind="policy", path=at.recipe.policy.model, round=0))
    at.run.begin(at.store)
    at.forget()
    take_in(at.store, at.recipe, at.progress)
    check_demonstrations(at.store, at.recipe)


def make_round(at: Making, n: int) -> None:
    """One round, from the feedback so far to fresh candidates and new questions."""
    started = time.time()
    at.figures = {}
    if n == 0:
        _bootstrap(at)
    else:
        _improve(at, n)
    complete(at.files, n, started, at.figures)


def _bootstrap(at: Making) -> None:
    """Round 0: the base policy answers the held-out prompts, writes the first candidates, and asks about them."""
    frozen = learn.freeze(at, 0)
    if isinstance(at.recipe.evaluation.judge, RewardModelJudge):
        measure.train_judge(at, frozen)
    elif isinstance(at.recipe.evaluation.judge, EndpointJudge):
        measure.calibrate_judge(at, at.recipe.evaluation.judge)
    measure.evaluate(at, 0, frozen, at.run.policy(at.store, BASE), None)
    policy = BASE if at.recipe.warm_start is None else _warm_start(at, frozen)
    candidates = write.generate(at, 0, frozen, policy, None)
    write.embed(at, 0, frozen, candidates)
    write.ask_questions(at, 0, frozen, candidates, None)


def _improve(at: Making, n: int) -> None:
    """Round n: steps 1 to 10."""
    frozen = learn.freeze(at, n)
    reward = learn.train_reward(at, n, frozen) if at.recipe.reward is not None else None
    waiting = at.files.step(n - 1, "generate")
    scores = None if reward is None else learn.score(at, n, "score", frozen, reward, waiting)
    if at.recipe.update.algorithm == "none":
        policy = promoted_at(frozen)
    else:
        training = learn.assemble_rows(at, n, frozen, waiting, scores)
        candidate = learn.update(at, n, frozen, training, reward)
        evaluation = measure.evaluate(at, n, frozen, candidate, reward)
        complaints = measure.ask_again(at, n, frozen, candidate, reward)
        policy = measure.gate(at, n, frozen, candidate, evaluation, complaints)
    fresh = write.generate(at, n, frozen, policy, reward)
    write.embed(at, n, frozen, fresh)
    rescored = None if reward is None else learn.score(at, n, "rescore", frozen, reward, fresh)
    write.ask_questions(at, n, frozen, fresh, rescored)


def _warm_start(at: Making, frozen: Path) -> str:
    """Trains, evaluates and promotes the policy that the rounds start from."""
    training = learn.assemble_rows(at, 0, frozen, None, None)
    policy = learn.update(at, 0, frozen, training, None)
    evaluation = measure.evaluate(at, 0, frozen, policy, None, step="evaluate_warm_start")
    numbers = read_json(evaluation / "evaluation.json")
    at.progress.note("", f"warm start: win-rate vs base {interval(numbers['win_rate_vs_base'])}")
    if at.promoted() == BASE:  # not when a later round, or a person, promoted another one
        at.run.promote(at.store, policy.id)
    return policy.id
