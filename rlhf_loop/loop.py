"""The loop: ten steps a round, top to bottom, each made once and kept.

The loop runs the torch-free steps itself, starts the stages by name, and takes their files into the store.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_loop import launch
from rlhf_loop.algorithms import ALGORITHMS, AlgorithmName
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import read_json, write_json
from rlhf_loop.kept_recipe import keep_recipe
from rlhf_loop.launch.launcher import Launcher
from rlhf_loop.progress import RunProgress
from rlhf_loop.recipe import EndpointJudge, Recipe, RewardModelJudge
from rlhf_loop.records import Artifact
from rlhf_loop.report import write_report
from rlhf_loop.report.status import with_interval
from rlhf_loop.rows.checks import in_words
from rlhf_loop.runs import BASE, Run
from rlhf_loop.step_folders import read_manifest
from rlhf_loop.steps.ask import ask
from rlhf_loop.steps.assemble import assemble
from rlhf_loop.steps.calibrate import calibrate, calibration_hash
from rlhf_loop.steps.complete import complete
from rlhf_loop.steps.contents import endpoints_of_rewards, has_critic, plain_text_hash, spec_hashes
from rlhf_loop.steps.earlier import kept_features, reward_of_same_pairs, steps_before, steps_of_rounds
from rlhf_loop.steps.gate import decide, judge_agreement
from rlhf_loop.steps.keep import keep_completions, keep_model, keep_questions, keep_reward_model, keep_scores
from rlhf_loop.steps.made_once import StepMaker
from rlhf_loop.steps.prepare import check_demonstrations, check_rewards, take_in
from rlhf_loop.steps.recall import recall
from rlhf_loop.steps.snapshot import snapshot
from rlhf_loop.steps.variety import variety
from rlhf_loop.strategies import STRATEGIES

CONTROL = (
    "CONTROL EXPERIMENT: critiques are shuffled between answers (critiques.control), so nothing can be learned from "
    "what they say"
)


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

    def run(self, rounds: int | None = None, wait: bool = True) -> RunResult:
        """Makes rounds 1 to `rounds` (default: the recipe's; 0: round 0 alone), or goes on where a call stopped.

        Returns early, with `waiting_for_labels` set, when people must answer first; `wait=False` goes on with the
        feedback there is. Raises `UserError` for everything a user can mend.
        """
        total = self.recipe.rounds if rounds is None else rounds
        with self.run_dir.locked():
            self.recipe = keep_recipe(self.recipe, self.run_dir)
            launcher = launch.choose(self.recipe.launch, self.recipe.accelerate_config)
            with Store.open(self.store_url) as store:
                made = _Rounds(self, store, launcher, self.progress)
                made.prepare()
                waiting, missing = 0, sorted(set(range(total + 1)) - set(self.run_dir.complete_rounds()))
                if missing:
                    check_rewards(store, self.recipe)
                for number in missing:
                    waiting = made.open_questions() if number and wait else 0
                    if waiting:
                        break
                    self.progress.round(number, total, made.promoted())
                    made.make_round(number)
            # Only now: after an error the other ranks may be anywhere, and it is the launcher's work to end them.
            launcher.close()
            report = write_report(self.run_dir, only_if_old=True)
        updates = [number for number in self.run_dir.complete_rounds() if number]
        return RunResult(
            run_dir=self.run_dir.path, complete_rounds=len(updates), waiting_for_labels=waiting, report=report
        )


class _Rounds:
    """One call of `Loop.run`: the rounds of a run, with its store and its launcher at hand."""

    def __init__(self, run: Run, store: Store, launcher: Launcher, progress: RunProgress):
        self.run = run
        self.recipe = run.recipe
        self.files = run.run_dir
        self.store = store
        self.progress = progress
        self.make = StepMaker(self.files, self.recipe, launcher.run, progress)
        self.figures: dict[str, Any] = {}  # of the round that is made, for its manifest

    # What a round is

    def prepare(self) -> None:
        """The base policy, prompts and collected feedback go into the store; a second time changes nothing."""
        self.store.add_artifact(Artifact(id=BASE, kind="policy", path=self.recipe.policy.model, round=0))
        if self.run.promoted_id(self.store) is None:
            self.store.promote(BASE)
        take_in(self.store, self.recipe, self.progress)
        check_demonstrations(self.store, self.recipe)

    def make_round(self, n: int) -> None:
        """One round, from the feedback so far to fresh candidates and new questions."""
        started = time.time()
        self.figures = {}
        if n == 0:
            self._bootstrap()
        else:
            self._improve(n)
        complete(self.files, n, started, self.figures)

    def _bootstrap(self) -> None:
        """Round 0: the base policy answers the held-out prompts, writes the first candidates, and asks about them."""
        frozen = self._snapshot(0)
        if isinstance(self.recipe.evaluation.judge, RewardModelJudge):
            self._judge(frozen)
        elif isinstance(self.recipe.evaluation.judge, EndpointJudge):
            self._calibrate(self.recipe.evaluation.judge)
        self._evaluate(0, frozen, self.run.policy(self.store, BASE), None)
        policy = BASE if self.recipe.warm_start is None else self._warm_start(frozen)
        candidates = self._generate(0, frozen, policy, None)
        self._embed(0, frozen, candidates)
        self._ask(0, frozen, candidates, None)

    def _improve(self, n: int) -> None:
        """Round n: steps 1 to 10."""
        frozen = self._snapshot(n)
        reward = self._reward(n, frozen) if self.recipe.reward is not None else None
        waiting = self.files.step(n - 1, "generate")
        scores = None if reward is None else self._score(n, "score", frozen, reward, waiting)
        if self.recipe.update.algorithm == "none":
            policy = _promoted_at(frozen)
        else:
            training = self._assemble(n, frozen, waiting, scores)
            candidate = self._update(n, frozen, training, reward)
            evaluation = self._evaluate(n, frozen, candidate, reward)
            policy = self._gate(n, frozen, candidate, evaluation, self._check(n, frozen, candidate, reward))
        fresh = self._generate(n, frozen, policy, reward)
        self._embed(n, frozen, fresh)
        rescored = None if reward is None else self._score(n, "rescore", frozen, reward, fresh)
        self._ask(n, frozen, fresh, rescored)

    def _warm_start(self, frozen: Path) -> str:
        """Trains, evaluates and promotes the policy that the rounds start from."""
        training = self._assemble(0, frozen, None, None)
        policy = self._update(0, frozen, training, None)
        evaluation = self._evaluate(0, frozen, policy, None, step="evaluate_warm_start")
        numbers = read_json(evaluation / "evaluation.json")
        self.progress.note("", f"warm start: win-rate vs base {_interval(numbers['win_rate_vs_base'])}")
        if self.promoted() == BASE:  # not when a later round, or a person, promoted another one
            self.store.promote(policy.id)
        return policy.id

    # The steps

    def _snapshot(self, n: int) -> Path:
        def make(partial: Path) -> None:
            snapshot(self.store, self.recipe, n, partial, self.run.promoted_before(self.store, n))

        folder = self.make.step(n, "snapshot", [], self._critiques(), make)
        report = read_json(folder / "validation.json")
        pairs, refused = report["pairs"]["train"], len(report["quarantined"])
        self.figures |= {"pairs": pairs, "quarantined": refused}
        if n:
            text = f"{pairs} pairs to learn from; {refused} records quarantined, {report['set_aside']} ties or skips"
            self.progress.note("", text)
        return folder

    def _judge(self, frozen: Path) -> None:
        folder = self.make.stage(
            0,
            "judge",
            "reward",
            follows=["reward"],
            inputs={"pairs": frozen / "judge_pairs.parquet", "prompts": frozen / "judge_prompts.parquet"},
            read=[frozen],
            values={"role": "judge", "specs": spec_hashes(self.recipe)},
        )
        keep_reward_model(self.store, folder, 0, "judge")

    def _calibrate(self, judge: EndpointJudge) -> None:
        """A judge behind a server shows what it is worth, where a trained one would be trained."""
        folder = self.make.step(
            0,
            "judge",
            [],
            {
                "judge": self.make.blocks("evaluation")["evaluation"]["judge"],
                "endpoint": self.make.blocks("endpoints")["endpoints"][judge.endpoint],
                "calibration": calibration_hash(judge),
            },
            lambda partial: calibrate(self.recipe, partial, self.files.path),
        )
        self.progress.note("", judge_agreement(read_json(folder / "calibration.json"))["text"])

    def _reward(self, n: int, frozen: Path) -> Path:
        specs = spec_hashes(self.recipe)
        names = ["pairs", "critiques"] if has_critic(self.recipe) else ["pairs"]
        learned_from = {name: frozen / f"{name}.parquet" for name in names}
        earlier = reward_of_same_pairs(self.files, n, frozen, specs, [path.name for path in learned_from.values()])
        if earlier is not None:
            self.progress.note("reward", f"no new {' or '.join(names)}: the reward model of round {earlier} stays")
            return self.files.step(earlier, "reward")
        kept = kept_features(self.files, n, ("rescore", "reward", "score", "generate"))
        folder = self.make.stage(
            n,
            "reward",
            "reward",
            follows=["reward", *self._asked],
            inputs={**learned_from, "prompts": frozen / "prompts.parquet", **kept},
            read=[frozen, *kept.values()],
            values={"role": "reward", "specs": specs},
        )
        made = keep_reward_model(self.store, folder, n, "reward_model", list(learned_from.values()))
        for name, values in made.metrics.items():
            if values.get("accuracy"):
                self.progress.note("", f"{name}: held-out accuracy {_interval(values['accuracy'])}")
        return folder

    def _score(self, n: int, step: str, frozen: Path, reward: Path, completions: Path) -> Path:
        kept = kept_features(self.files, n, ("rescore", "reward", "generate"), rounds=1) if step == "score" else {}
        if step == "rescore" and (completions / "features.parquet").exists():
            kept[f"features_{n:03d}_generate"] = completions
        critiqued = self._complained_of(frozen) if step == "score" else {}
        folder = self.make.stage(
            n,
            step,
            "score",
            follows=["reward", *critiqued, *self._asked],
            inputs={
                "reward": reward,
                "prompts": frozen / "prompts.parquet",
                "completions": completions / "completions.parquet",
                **critiqued,
                **kept,
            },
            read=[frozen, reward, completions, *kept.values()],
            values={},
        )
        if (folder / "unanswered.json").exists():
            reasons = read_json(folder / "unanswered.json")["reasons"]
            told = "; ".join(f"{count}: {reason}" for reason, count in reasons.items())
            self.progress.note("", f"answers without a score: {told}")
        mean = self.figures[f"mean_{step}"] = keep_scores(self.store, folder)
        if step == "rescore" and mean is not None:
            self.progress.note("", f"mean reward of the fresh candidates {mean:+.3f}")
        return folder

    def _assemble(self, n: int, frozen: Path, waiting: Path | None, scores: Path | None) -> Path:
        algorithm = self._algorithm(n)
        critiqued = self._complained_of(frozen)
        folder = self.make.step(
            n,
            "assemble",
            [path for path in (frozen, waiting, scores) if path is not None],
            {**self.make.blocks("pairing"), "algorithm": algorithm, **self._critiques()},
            lambda partial: assemble(
                self.recipe,
                n,
                algorithm,
                frozen=frozen,
                folder=partial,
                completions=waiting / "completions.parquet" if waiting else None,
                scores=scores / "scores.parquet" if scores else None,
                critiqued_scores=scores / "critiqued_scores.parquet" if scores and critiqued else None,
            ),
        )
        summary = read_json(folder / "summary.json")
        origins = ", ".join(f"{count} {origin}" for origin, count in summary["by_origin"].items())
        self.progress.note("", f"{summary['rows']} rows to train {algorithm} on ({origins})")
        if summary.get("control") is not None:
            self.progress.note("", CONTROL)
        return folder

    def _update(self, n: int, frozen: Path, training: Path, reward: Path | None) -> Artifact:
        """The candidate policy; `reward` is the folder of the round's reward model."""
        algorithm, update, promoted = ALGORITHMS[self._algorithm(n)], self.recipe.update, _promoted_at(frozen)
        origin = self.run.made_in(0) if n and self.recipe.warm_start is not None else BASE
        start = promoted if n and update.start_from == "promoted" else origin
        reference = promoted if n and update.reference == "previous" else origin
        follows, inputs, read = ["update"], {"training_data": training / "training_data.parquet"}, [training]
        if n == 0:
            follows.append("warm_start")
        if (training / "critiques.parquet").exists():
            follows.append("critiques")
            inputs["critiques"] = training / "critiques.parquet"
        if algorithm.online:
            assert reward is not None
            follows.append("generation")
            inputs["reward"] = reward
            read.append(reward)
        folder = self.make.stage(
            n,
            "update",
            "update",
            follows=follows,
            inputs=inputs,
            read=read,
            values={
                "start": self.run.weights(self.run.policy(self.store, start)),
                "reference": self.run.weights(self.run.policy(self.store, reference)),
                "step_offset": steps_before(self.files, n),
            },
        )
        for name, counts in read_json(folder / "metrics.json").get("critiques", {}).items():
            left_out = "".join(f", {count} left out ({reason})" for reason, count in counts["left_out"].items())
            found = f"off, {counts['off']}" if "off" in counts else f"{counts['examples']} answers{left_out}"
            self.progress.note("", f"critiques.{name}: {found}")
        # Where only the reward model speaks, the policy was trained on what that was trained on.
        only_reward = algorithm.consumes in ("prompts", "best_of_n")
        rows = [frozen / "pairs.parquet" if only_reward else training / "training_data.parquet"]
        rows += [inputs["critiques"]] if "critiques" in inputs else []
        return keep_model(self.store, folder, n, self.run.made_in(n), "policy", parent=start, rows=rows)

    def _evaluate(self, n: int, frozen: Path, candidate: Artifact, reward: Path | None, step: str = "evaluate") -> Path:
        inputs = {"prompts": frozen / "held_out.parquet"}
        read = [frozen]
        if self.recipe.evaluation.judge.kind != "rule":
            inputs["judge"] = self.files.step(0, "judge")
            read.append(inputs["judge"])
        if candidate.id != BASE:
            previous = BASE if n == 0 else _promoted_at(frozen)
            inputs["base"] = self.files.step(0, "evaluate")
            inputs["previous"] = self.run.evaluation(self.run.policy(self.store, previous))
            read += [inputs["base"], inputs["previous"], self.files.step(n, "update")]
        if reward is not None:
            kept = kept_features(self.files, n, ("evaluate",))
            inputs |= {"reward": reward, **kept}
            read += [reward, *kept.values()]
        folder = self.make.stage(
            n,
            step,
            "evaluate",
            follows=["evaluation", "generation", *self._asked_in_evaluation()],
            inputs=inputs,
            read=read,
            values={
                "policy": self.run.weights(candidate),
                "policy_id": candidate.id if self.recipe.policy.endpoint is None else self._written_by(candidate.id),
                "plain_text": plain_text_hash(self.recipe),
            },
        )
        keep_completions(self.store, folder / "answers.parquet")
        if step == "evaluate":
            self.figures["evaluated"] = candidate.id
        return folder

    def _check(self, n: int, frozen: Path, candidate: Artifact, reward: Path | None) -> Path | None:
        """What people complained of, asked again of the candidate, where the recipe does."""
        if self.recipe.critiques is None or self.recipe.critiques.checks is None:
            return None
        inputs = {"checks": frozen / "checks.parquet", "prompts": frozen / "prompts.parquet"}
        read = [frozen, self.files.step(n, "update")]
        before = self.files.step(self.run.policy(self.store, _promoted_at(frozen)).round, "checks")
        if read_manifest(before) is not None:  # not of the base, nor of a policy of rounds without checks
            inputs["before"] = before
            read.append(before)
        if reward is not None:
            kept = kept_features(self.files, n, ("checks",))
            inputs |= {"reward": reward, **kept}
            read += [reward, *kept.values()]
        folder = self.make.stage(
            n,
            "checks",
            "checks",
            follows=["critiques", "generation", *self._asked_of(self.recipe.critiques.checks.judge)],
            inputs=inputs,
            read=read,
            values={"policy": self.run.weights(candidate), "policy_id": candidate.id},
        )
        self.progress.note("", in_words(read_json(folder / "checks.json")))
        return folder

    def _gate(self, n: int, frozen: Path, candidate: Artifact, evaluation: Path, checks: Path | None) -> str:
        numbers = read_json(evaluation / "evaluation.json")
        complaints = read_json(checks / "checks.json") if checks is not None else None

        def make(partial: Path) -> None:
            write_json(partial / "decision.json", decide(numbers, self.recipe.gate, complaints))

        read = [evaluation, *([checks] if checks is not None else [])]
        folder = self.make.step(n, "gate", read, self.make.blocks("gate"), make)
        decision = read_json(folder / "decision.json")
        self.progress.note("", f"win-rate vs base {_interval(numbers['win_rate_vs_base'])}")
        self.progress.note("", decision["reason"])
        kept = _promoted_at(frozen)
        policy = candidate.id if decision["promoted"] else kept
        if policy != kept and self.promoted() == kept:  # not when a person promoted another one in the meantime
            self.store.promote(policy)
        return policy

    def _generate(self, n: int, frozen: Path, policy: str, reward: Path | None) -> Path:
        writer = self.run.policy(self.store, policy)
        inputs, read = {"prompts": frozen / "prompts.parquet", **self._complained_of(frozen)}, [frozen]
        if policy != BASE:
            read.append(self.files.step(writer.round, "update"))
        past = self._past(n, frozen, reward)
        folder = self.make.stage(
            n,
            "generate",
            "generate",
            follows=[
                "generation",
                *(["critiques", "pairing"] if self._complained_of(frozen) else []),
                *_endpoints(self.recipe.generation),
            ],
            inputs=inputs | past,
            read=[*read, *past.values()],
            values={"policy": self.run.weights(writer), "policy_id": self._written_by(policy)},
        )
        candidates = keep_completions(self.store, folder / "completions.parquet")
        self.figures |= {"candidates": len(candidates), "generated_by": self._written_by(policy)}
        before = self.files.step(n - 1, "generate") / "completions.parquet" if n else None
        self.figures["variety"] = variety(candidates, before, self.recipe.seed)
        return folder

    def _past(self, n: int, frozen: Path, reward: Path | None) -> dict[str, Path]:
        """What the strategy of generation reads of the run's past: stage inputs. Round 0 has none."""
        strategy, past = STRATEGIES[self.recipe.generation.strategy], {}
        if n and strategy.scores and reward is not None:
            past["reward"] = reward
        if n and (strategy.revises or strategy.exemplars):
            past["recalled"] = self.make.step(
                n,
                "recall",
                [frozen],
                {**self.make.blocks("generation", "pairing"), **self._critiques()},
                lambda partial: recall(self.store, self.recipe, n, frozen, partial),
            )
        if n and strategy.exemplars:
            past |= steps_of_rounds(self.files, n, "embed", "embedded")
        return past

    def _embed(self, n: int, frozen: Path, candidates: Path) -> None:
        """Vectors of the texts that no earlier round embedded, where `generation` asks for them."""
        if self.recipe.generation.embeds is None:
            return
        earlier = steps_of_rounds(self.files, n, "embed", "embedded")
        older = {
            name: path
            for name, path in steps_of_rounds(self.files, n, "generate", "completions").items()
            if name.replace("completions", "embedded") not in earlier
        }
        folder = self.make.stage(
            n,
            "embed",
            "embed",
            follows=["generation"],
            inputs={
                "prompts": frozen / "prompts.parquet",
                "completions": candidates / "completions.parquet",
                **{name: path / "completions.parquet" for name, path in older.items()},
                **earlier,
            },
            read=[frozen, candidates, *older.values(), *earlier.values()],
            values={},
        )
        self.figures["variety"] |= read_json(folder / "embed.json")["variety"]

    def _ask(self, n: int, frozen: Path, candidates: Path, scores: Path | None) -> None:
        folder = self.make.step(
            n,
            "ask",
            [frozen, candidates, *([scores] if scores else [])],
            self.make.blocks("feedback", *_endpoints(self.recipe.feedback.annotator)),
            lambda partial: ask(
                self.recipe,
                n,
                prompts=frozen / "prompts.parquet",
                completions=candidates / "completions.parquet",
                scores=scores / "scores.parquet" if scores else None,
                folder=partial,
                run=self.files.path,
            ),
        )
        annotator = self.recipe.feedback.annotator
        overlap = self.recipe.annotation.overlap if annotator is None else None
        self.progress.note("", keep_questions(self.store, folder, overlap, annotator.called if annotator else ""))

    # What the run knows

    def promoted(self) -> str:
        """The id of the policy that generates now."""
        policy = self.run.promoted_id(self.store)
        assert policy is not None  # `prepare` promotes the base
        return policy

    def open_questions(self) -> int:
        """Questions that people have not answered yet."""
        return self.store.open_questions() if self.recipe.feedback.annotator is None else 0

    def _critiques(self) -> dict[str, Any]:
        """The block of the recipe, where it has one: what a step without it made stays as it is."""
        return {} if self.recipe.critiques is None else self.make.blocks("critiques")

    def _complained_of(self, frozen: Path) -> dict[str, Path]:
        """The input of a stage that looks at what was complained of, where a method does; else none."""
        wanted = self.recipe.critiques is not None and self.recipe.critiques.need_fresh
        return {"critiques": frozen / "critiques.parquet"} if wanted else {}

    def _written_by(self, policy: str) -> str:
        """Who writes candidates: the policy, or the endpoint that writes in its place."""
        name = self.recipe.generation.endpoint
        return policy if name is None else f"endpoint:{name}:{self.recipe.endpoints[name].model}"

    def _asked_in_evaluation(self) -> list[str]:
        """The block of the recipe that an evaluation follows too where an endpoint answers or judges."""
        return _endpoints(self.recipe.evaluation.judge) or _endpoints(self.recipe.policy)

    @property
    def _asked(self) -> list[str]:
        """The block of the recipe that scoring follows too where a model behind a server scores."""
        return ["endpoints"] if self.recipe.endpoints and endpoints_of_rewards(self.recipe) else []

    def _asked_of(self, judge: object) -> list[str]:
        """The same of a judge, which is the reward model where the recipe names none."""
        return self._asked if judge is None else _endpoints(judge)

    def _algorithm(self, n: int) -> AlgorithmName:
        """The algorithm of round `n`'s update; in round 0 that of the warm start."""
        return self.recipe.update.algorithm if n else "sft"


def _promoted_at(frozen: Path) -> str:
    """The policy that a round started from, as its snapshot says."""
    promoted: str = read_json(frozen / "state.json")["promoted"]
    return promoted


def _endpoints(block: object) -> list[str]:
    """The block of the recipe that a step follows too whose settings name an endpoint."""
    return ["endpoints"] if getattr(block, "endpoint", None) is not None else []


def _interval(value: Mapping[str, Any]) -> str:
    return f"{with_interval(value)} (n={value['n']})"
