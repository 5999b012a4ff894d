"""The loop: ten steps a round, top to bottom, each made once and kept.

The loop runs the torch-free steps itself, starts the stages by name, and takes their files into the store.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlhf_loop import launch
from rlhf_loop.algorithms import ALGORITHMS, AlgorithmName
from rlhf_loop.damage import check_step, hash_file, reading
from rlhf_loop.errors import UserError
from rlhf_loop.feedback.intake.import_file import import_and_split, import_file
from rlhf_loop.feedback.intake.prompts import read_prompts
from rlhf_loop.feedback.privacy.deletion_files import is_redacted
from rlhf_loop.feedback.store.store import Store
from rlhf_loop.files import fingerprint, read_json, write_json
from rlhf_loop.kept_recipe import keep_recipe
from rlhf_loop.launch.launcher import Launcher
from rlhf_loop.places import content
from rlhf_loop.progress import RunProgress
from rlhf_loop.recipe import Recipe, RewardModelJudge
from rlhf_loop.records import Artifact, Completion, Prompt, Score, Split, read_records, stable_id
from rlhf_loop.report import write_report
from rlhf_loop.reward_function import check_columns
from rlhf_loop.reward_spec import FunctionSpec, check_trainer, load_spec
from rlhf_loop.run_dir import RunDir
from rlhf_loop.stages.arguments import StageArguments
from rlhf_loop.step_folders import is_complete, outputs_hash, read_manifest, step_folder
from rlhf_loop.steps.ask import ask, read_ask
from rlhf_loop.steps.assemble import REMEDIES, assemble
from rlhf_loop.steps.gate import decide
from rlhf_loop.steps.snapshot import snapshot

BASE = "base"
"""Artifact id of the policy that the recipe starts from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """How a call of `Loop.run` ended."""

    run_dir: Path
    complete_rounds: int  # update rounds that are complete, round 0 not counted
    waiting_for_labels: int  # questions that people must answer before the next round
    report: Path


class Loop:
    """A recipe and the run that it makes.

    Loop(Recipe.load("recipes/quickstart.yaml")).run(rounds=3)
    """

    def __init__(self, recipe: Recipe, run_dir: str | Path | None = None, progress: RunProgress | None = None):
        self.recipe = recipe
        self.run_dir = RunDir(Path(run_dir or recipe.run_dir or Path("runs") / recipe.name).resolve())
        self.progress = progress or RunProgress(quiet=True)

    @property
    def store_url(self) -> str:
        """Where the feedback is kept: the recipe's `store`, or a database inside the run."""
        return self.recipe.store or f"sqlite:///{self.run_dir.path / 'feedback.db'}"

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
                run = _Run(self, store, launcher)
                run.prepare()
                waiting, missing = 0, sorted(set(range(total + 1)) - set(self.run_dir.complete_rounds()))
                if missing:
                    run.check_rewards()
                for number in missing:
                    waiting = run.open_questions() if number and wait else 0
                    if waiting:
                        break
                    self.progress.round(number, total, run.promoted())
                    run.make_round(number)
            # Only now: after an error the other ranks may be anywhere, and it is the launcher's work to end them.
            launcher.close()
            report = write_report(self.run_dir, only_if_old=True)
        complete = [number for number in self.run_dir.complete_rounds() if number]
        return RunResult(
            run_dir=self.run_dir.path, complete_rounds=len(complete), waiting_for_labels=waiting, report=report
        )

    def weights(self, policy: Artifact) -> str:
        """Where a policy's weights are: the recipe's model, or the folder of the round that made it."""
        if policy.id == BASE:
            return self.recipe.policy.model
        return str(self.run_dir.step(policy.round, "update") / "policy")

    def evaluation(self, policy: Artifact) -> Path:
        """The folder of a policy's evaluation."""
        warm = policy.round == 0 and policy.id != BASE
        return self.run_dir.step(policy.round, "evaluate_warm_start" if warm else "evaluate")

    def policy_id(self, n: int) -> str | None:
        """Of what round `n`'s update made, by content (its weights); None where it made nothing yet."""
        folder = self.run_dir.step(n, "update")
        manifest = read_manifest(folder)
        if manifest is None:
            return None
        weights = [made for name, made in sorted(manifest["files"].items()) if _is_weights(name)]
        made_of: tuple[object, ...] = (n, weights)
        arguments = folder.with_name("update.arguments.json")
        earlier = read_json(arguments).get("run") if arguments.exists() else None
        if earlier is not None:  # made by a version that named policies after the run's folder
            made_of = (earlier, self.recipe.seed, n)
        return f"policy-{n:03d}-{stable_id('policy', *made_of)[:8]}"

    def promoted_id(self, store: Store) -> str | None:
        """The policy of this run that was promoted last; None before any was."""
        return next((id for id, _ in reversed(store.promotions()) if self.holds(id)), None)

    def holds(self, policy_id: str) -> bool:
        """False for a policy that another run made which uses the same store."""
        made = re.fullmatch(r"policy-(\d{3,})-[0-9a-f]{8}", policy_id)
        return made is None or self.policy_id(int(made[1])) == policy_id


class _Run:
    """One call of `Loop.run`: the loop with its store and its launcher at hand."""

    def __init__(self, loop: Loop, store: Store, launcher: Launcher):
        self.loop = loop
        self.recipe = loop.recipe
        self.weights = loop.weights
        self.evaluation = loop.evaluation
        self.files = loop.run_dir
        self.progress = loop.progress
        self.store = store
        self.launcher = launcher
        self.values = loop.recipe.model_dump(mode="json")
        self.portable = _without_place(self.values, self.files.path)
        self.figures: dict[str, Any] = {}  # of the round that is made, for its manifest
        self.checked: set[Path] = set()  # folders whose files are what their steps wrote

    # What a round is

    def prepare(self) -> None:
        """Prompts and collected feedback go into the store; a second time changes nothing."""
        recipe = self.recipe
        base = Artifact(id=BASE, kind="policy", path=recipe.policy.model, round=0)
        self.store.add_artifact(base)
        if self.loop.promoted_id(self.store) is None:
            self.store.promote(BASE)
        for split in ("train", "dev", "test"):
            for path in getattr(recipe.prompts, split):
                self.store.add_prompts(read_prompts(path, split))
        for wanted in recipe.feedback.imports:
            if wanted.split is not None:
                summary = import_file(
                    self.store, wanted.path, wanted.format, columns=wanted.map, redact=wanted.redact,
                    scales=wanted.scale, splits=wanted.split,
                )  # fmt: skip
            else:
                fractions = (recipe.prompts.test_fraction, recipe.prompts.judge_fraction)
                summary = import_and_split(
                    self.store,
                    wanted.path,
                    wanted.format,
                    wanted.redact,
                    recipe.seed,
                    *fractions,
                    wanted.scale,
                    wanted.map,
                )
            if summary.all_rejected:
                raise UserError(f"no row of {wanted.path} can be used. The first: {summary.examples[0]}")
            new = summary.new
            if new["feedback"] or new["quarantined"]:
                self.progress.say(
                    f"imported {wanted.path.name}: {new['feedback']} pieces of feedback on {new['prompts']} prompts, "
                    f"{new['quarantined']} rows quarantined (rlhf-loop feedback check)"
                )
                for reason, count in summary.notes.most_common(5):
                    self.progress.say(f"  {count} rows: {reason}")
                if summary.redacted:
                    self.progress.say(f"{summary.redacted} rows held personal data, which is not stored")
        self._refuse_without_demonstrations()

    def _refuse_without_demonstrations(self) -> None:
        """Before anything is computed: a warm start, or an sft update, that nothing can feed."""
        recipe, annotator = self.recipe, self.recipe.feedback.annotator
        if recipe.warm_start is None and recipe.update.algorithm != "sft":
            return
        train = {prompt.id: prompt for prompt in self.store.prompts(split="train")}
        written = any(prompt.reference for prompt in train.values()) or any(
            record.prompt_id in train for record in self.store.feedback(kinds=["edit"])
        )
        if written:
            return
        if recipe.warm_start is not None:
            raise UserError(
                "warm_start: there is nothing to imitate before round 1: give training prompts a `reference` answer, "
                "or import edits of answers with `feedback.imports`"
            )
        asks = recipe.feedback.questions_per_round > 0
        if not (asks and (annotator is None or annotator.edits)):
            raise UserError(f"update.algorithm: sft has no demonstrations to learn from. {REMEDIES['demonstrations']}")

    def check_rewards(self) -> None:
        """Before anything is computed: a folder that is no reward model, settings that it cannot be trained with, or a
        function that asks for what there is not."""
        reward, judge = self.recipe.reward, self.recipe.evaluation.judge
        if reward is not None:
            self._check_rewards("train", [one.model for one in reward.weighted()], reward.trainer, "reward")
        if isinstance(judge, RewardModelJudge):
            self._check_rewards("judge", [judge.model], judge.trainer, "evaluation.judge")

    def _check_rewards(self, split: Split, folders: list[Path], trainer: Mapping[str, Any], where: str) -> None:
        specs = [load_spec(folder) for folder in folders]
        check_trainer(specs, trainer, where)
        for folder, spec in zip(folders, specs, strict=True):
            if isinstance(spec, FunctionSpec):
                check_columns(folder, spec, lambda: self._prompts_of((split, self.recipe.evaluation.split)))

    def _prompts_of(self, splits: tuple[Split, ...]) -> dict[str, list[Prompt]]:
        """By split; those that have none are left out."""
        found = {split: self.store.prompts(split=split) for split in splits}
        return {split: prompts for split, prompts in found.items() if prompts}

    def make_round(self, n: int) -> None:
        """One round, from the feedback so far to fresh candidates and new questions."""
        started = time.time()
        self.figures = {}
        if n == 0:
            self._bootstrap()
        else:
            self._improve(n)
        write_json(
            self.files.round(n) / "manifest.json",
            {
                "round": n,
                "seconds": round(time.time() - started, 3),
                "steps": self._step_seconds(n),
                "figures": self.figures,
                "peak_memory_bytes": _peak_memory(),
                "versions": {name: version(name) for name in ("rlhf-loop", "torch", "transformers", "trl", "peft")},
                "python": sys.version.split()[0],
            },
        )

    def _bootstrap(self) -> None:
        """Round 0: the base policy answers the held-out prompts, writes the first candidates, and asks about them."""
        frozen = self._snapshot(0)
        if isinstance(self.recipe.evaluation.judge, RewardModelJudge):
            self._judge(frozen)
        self._evaluate(0, frozen, self.store_policy(BASE), None)
        policy = BASE
        if self.recipe.warm_start is not None:
            policy = self._warm_start(frozen)
        candidates = self._generate(0, frozen, policy)
        self._ask(0, frozen, candidates, None)

    def _improve(self, n: int) -> None:
        """Round n: steps 1 to 10."""
        frozen = self._snapshot(n)
        reward = self._reward(n, frozen) if self.recipe.reward is not None else None
        waiting = self.files.step(n - 1, "generate")
        scores = None if reward is None else self._score(n, "score", frozen, reward, waiting)
        if self.recipe.update.algorithm == "none":
            policy = read_json(frozen / "state.json")["promoted"]
        else:
            training = self._assemble(n, frozen, waiting, scores)
            candidate = self._update(n, frozen, training, reward)
            evaluation = self._evaluate(n, frozen, candidate, reward)
            policy = self._gate(n, frozen, candidate, evaluation)
        fresh = self._generate(n, frozen, policy)
        rescored = None if reward is None else self._score(n, "rescore", frozen, reward, fresh)
        self._ask(n, frozen, fresh, rescored)

    # The steps

    def _snapshot(self, n: int) -> Path:
        folder = self._step(
            n,
            "snapshot",
            [],
            {},
            lambda partial: snapshot(self.store, self.recipe, n, partial, self._promoted_before(n)),
        )
        report = read_json(folder / "validation.json")
        pairs, refused = report["pairs"]["train"], len(report["quarantined"])
        self.figures |= {"pairs": pairs, "quarantined": refused}
        if n:
            text = f"{pairs} pairs to learn from; {refused} records quarantined, {report['set_aside']} ties or skips"
            self.progress.note("", text)
        return folder

    def _judge(self, frozen: Path) -> Path:
        folder = self._stage(
            0, "judge", "reward",
            {"pairs": frozen / "judge_pairs.parquet", "prompts": frozen / "judge_prompts.parquet"}, [frozen],
            {"role": "judge", "specs": self._spec_hashes()},
        )  # fmt: skip
        metrics = read_json(folder / "metrics.json")
        self.store.add_artifact(
            Artifact(id=_reward_id(folder), kind="judge", path=str(folder), round=0, metrics=metrics)
        )
        return folder

    def _reward(self, n: int, frozen: Path) -> Path:
        specs = self._spec_hashes()
        earlier = self._reward_of_same_pairs(n, frozen, specs)
        if earlier is not None:
            self.progress.note("reward", f"no new pairs: the reward model of round {earlier} stays")
            return self.files.step(earlier, "reward")
        kept = self._features(n, ("rescore", "reward"))
        folder = self._stage(
            n, "reward", "reward",
            {"pairs": frozen / "pairs.parquet", "prompts": frozen / "prompts.parquet", **kept},
            [frozen, *kept.values()],
            {"role": "reward", "specs": specs},
        )  # fmt: skip
        metrics = read_json(folder / "metrics.json")
        self.store.add_artifact(
            Artifact(
                id=_reward_id(folder),
                kind="reward_model",
                path=str(folder),
                round=n,
                trained_on=tuple(_feedback_ids(frozen / "pairs.parquet")),
                metrics=metrics,
            )
        )
        for name, values in metrics.items():
            accuracy = values.get("accuracy")
            if accuracy:
                self.progress.note("", f"{name}: held-out accuracy {_interval(accuracy)}")
        return folder

    def _reward_of_same_pairs(self, n: int, frozen: Path, specs: list[str]) -> int | None:
        """The last round that trained a reward model, if since then no pair came or went and nobody edited it."""
        pairs = _hash_of_pairs(frozen)
        for earlier in range(n - 1, 0, -1):
            before = self.files.step(earlier, "snapshot")
            if is_redacted(before) or _hash_of_pairs(before) != pairs:
                return None
            made = read_manifest(self.files.step(earlier, "reward"))
            if made is not None:
                return earlier if made["settings"]["specs"] == specs else None
        return None

    def _score(self, n: int, step: str, frozen: Path, reward: Path, completions: Path) -> Path:
        inputs = {
            "reward": reward,
            "prompts": frozen / "prompts.parquet",
            "completions": completions / "completions.parquet",
        }
        kept = self._features(n, ("rescore",)) if step == "score" else {}
        folder = self._stage(n, step, "score", inputs | kept, [frozen, reward, completions, *kept.values()], {})
        scores: list[Score] = read_records(folder / "scores.parquet", Score)
        self.store.add_scores(scores)
        mean = sum(score.value for score in scores) / len(scores) if scores else None
        self.figures[f"mean_{step}"] = mean
        if step == "rescore" and mean is not None:
            self.progress.note("", f"mean reward of the fresh candidates {mean:+.3f}")
        return folder

    def _features(self, n: int, steps: tuple[str, ...]) -> dict[str, Path]:
        """The last of these steps before round `n` that kept features of texts which this round scores again."""
        found = {}
        for step in steps:
            folders = (self.files.step(earlier, step) for earlier in range(n - 1, 0, -1))
            made = ((folder, read_manifest(folder)) for folder in folders)
            last = next(((folder, manifest) for folder, manifest in made if manifest is not None), None)
            if last is not None and "features.parquet" in last[1]["files"]:
                found[f"features_of_{step}"] = last[0]
        return found

    def _assemble(self, n: int, frozen: Path, waiting: Path | None, scores: Path | None) -> Path:
        algorithm = self._algorithm(n)
        folder = self._step(
            n,
            "assemble",
            [path for path in (frozen, waiting, scores) if path is not None],
            {"pairing": self.portable["pairing"], "algorithm": algorithm},
            lambda partial: assemble(
                self.recipe,
                n,
                algorithm,
                frozen=frozen,
                folder=partial,
                completions=waiting / "completions.parquet" if waiting else None,
                scores=scores / "scores.parquet" if scores else None,
            ),
        )
        summary = read_json(folder / "summary.json")
        origins = ", ".join(f"{count} {origin}" for origin, count in summary["by_origin"].items())
        self.progress.note("", f"{summary['rows']} rows to train {algorithm} on ({origins})")
        return folder

    def _update(self, n: int, frozen: Path, training: Path, reward: Path | None) -> Artifact:
        """The candidate policy; `reward` is the folder of the round's reward model."""
        algorithm, update = ALGORITHMS[self._algorithm(n)], self.recipe.update
        promoted = read_json(frozen / "state.json")["promoted"]
        origin = self._warm_policy() if n and self.recipe.warm_start is not None else BASE
        start = promoted if n and update.start_from == "promoted" else origin
        reference = promoted if n and update.reference == "previous" else origin
        inputs, read = {"training_data": training / "training_data.parquet"}, [training]
        if algorithm.online:
            assert reward is not None
            inputs["reward"] = reward
            read.append(reward)
        folder = self._stage(
            n,
            "update",
            "update",
            inputs,
            read,
            {
                "start": self.weights(self.store_policy(start)),
                "reference": self.weights(self.store_policy(reference)),
                "step_offset": self._steps_before(n),
            },
        )
        candidate = Artifact(
            id=self._policy_id(n),
            kind="policy",
            path=str(folder / "policy"),
            round=n,
            parent=start,
            trained_on=tuple(self._trained_on(n, frozen, training)),
            metrics=read_json(folder / "metrics.json"),
        )
        self.store.add_artifact(candidate)
        return candidate

    def _steps_before(self, n: int) -> int:
        """Optimizer steps of all updates before round `n`: those before the last one, and its own."""
        for earlier in range(n - 1, -1, -1):
            metrics = self.files.step(earlier, "update") / "metrics.json"
            if metrics.exists():
                return self._step_offset(earlier) + int(read_json(metrics)["steps"])
        return 0

    def _step_offset(self, n: int) -> int:
        """Optimizer steps before round `n`'s update, which is complete."""
        made = read_manifest(self.files.step(n, "update"))
        assert made is not None
        return int(made["settings"]["step_offset"])

    def _trained_on(self, n: int, frozen: Path, training: Path) -> list[str]:
        """The feedback that a policy was trained on; where only the reward model speaks, what that was trained on."""
        consumes = ALGORITHMS[self._algorithm(n)].consumes
        if consumes in ("prompts", "best_of_n"):
            return _feedback_ids(frozen / "pairs.parquet")
        return _feedback_ids(training / "training_data.parquet")

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

    def _warm_policy(self) -> str:
        return self._policy_id(0)

    def _algorithm(self, n: int) -> AlgorithmName:
        """The algorithm of round `n`'s update; in round 0 that of the warm start."""
        return self.recipe.update.algorithm if n else "sft"

    def _evaluate(self, n: int, frozen: Path, candidate: Artifact, reward: Path | None, step: str = "evaluate") -> Path:
        inputs = {"prompts": frozen / "held_out.parquet"}
        read = [frozen]
        if isinstance(self.recipe.evaluation.judge, RewardModelJudge):
            inputs["judge"] = self.files.step(0, "judge")
            read.append(inputs["judge"])
        if candidate.id != BASE:
            previous = BASE if n == 0 else read_json(frozen / "state.json")["promoted"]
            inputs["base"] = self.files.step(0, "evaluate")
            inputs["previous"] = self.evaluation(self.store_policy(previous))
            read += [inputs["base"], inputs["previous"], self.files.step(n, "update")]
        if reward is not None:
            kept = self._features(n, ("evaluate",))
            inputs |= {"reward": reward, **kept}
            read += [reward, *kept.values()]
        folder = self._stage(
            n,
            step,
            "evaluate",
            inputs,
            read,
            {"policy": self.weights(candidate), "policy_id": candidate.id, "plain_text": self._plain_text_hash()},
        )
        self.store.add_completions(read_records(folder / "answers.parquet", Completion))
        if step == "evaluate":
            self.figures["evaluated"] = candidate.id
        return folder

    def _gate(self, n: int, frozen: Path, candidate: Artifact, evaluation: Path) -> str:
        numbers = read_json(evaluation / "evaluation.json")

        def make(partial: Path) -> None:
            write_json(partial / "decision.json", decide(numbers, self.recipe.gate))

        folder = self._step(n, "gate", [evaluation], {"gate": self.portable["gate"]}, make)
        decision = read_json(folder / "decision.json")
        self.progress.note("", f"win-rate vs base {_interval(numbers['win_rate_vs_base'])}")
        self.progress.note("", decision["reason"])
        kept: str = read_json(frozen / "state.json")["promoted"]
        policy = candidate.id if decision["promoted"] else kept
        if policy != kept and self.promoted() == kept:  # not when a person promoted another one in the meantime
            self.store.promote(policy)
        return policy

    def _generate(self, n: int, frozen: Path, policy: str) -> Path:
        folder = self._stage(
            n,
            "generate",
            "generate",
            {"prompts": frozen / "prompts.parquet"},
            [frozen, *([self.files.step(self.store_policy(policy).round, "update")] if policy != BASE else [])],
            {"policy": self.weights(self.store_policy(policy)), "policy_id": policy},
        )
        candidates = read_records(folder / "completions.parquet", Completion)
        self.store.add_completions(candidates)
        self.figures |= {"candidates": len(candidates), "generated_by": policy}
        return folder

    def _ask(self, n: int, frozen: Path, candidates: Path, scores: Path | None) -> None:
        folder = self._step(
            n,
            "ask",
            [frozen, candidates, *([scores] if scores else [])],
            {"feedback": self.portable["feedback"]},
            lambda partial: ask(
                self.recipe,
                n,
                prompts=frozen / "prompts.parquet",
                completions=candidates / "completions.parquet",
                scores=scores / "scores.parquet" if scores else None,
                folder=partial,
            ),
        )
        questions, answers = read_ask(folder)
        if self.recipe.feedback.annotator is None:
            questions = [replace(question, overlap=self.recipe.annotation.overlap) for question in questions]
        self.store.add_questions(questions)
        self.store.add_feedback(answers)
        who = "answered by a simulated annotator" if answers else "queued for people"
        self.progress.note("", f"{len(questions)} questions, {who}")

    # How a step is made

    def _step(
        self, n: int, step: str, inputs: list[Path], settings: Mapping[str, Any], make: Callable[[Path], object]
    ) -> Path:
        """The folder of a step: as it is when it was made from the same inputs and settings, else made now."""
        folder = self.files.step(n, step)
        key = fingerprint(step, n, settings, [outputs_hash(path) for path in inputs])
        if is_complete(folder, key):
            self._check(folder)
            return folder
        self._check(*inputs)
        with self.progress.step(step), step_folder(folder, key, settings) as partial:
            make(partial)
        self.checked.add(folder)
        return folder

    def _stage(
        self,
        n: int,
        step: str,
        stage: str,
        inputs: Mapping[str, Path],
        read: list[Path],
        values: Mapping[str, Any],
    ) -> Path:
        """The same for a stage, which the launcher starts; `read` are the folders that its inputs lie in."""
        folder = self.files.step(n, step)
        settings = {name: self.portable[name] for name in ("seed", "policy", *_SETTINGS[stage])}
        if stage == "update" and "reward" in inputs:
            settings["generation"] = self.portable["generation"]
        if stage == "update" and n == 0:
            settings["warm_start"] = self.portable["warm_start"]
        in_run = _without_place(values, self.files.path)
        key = fingerprint(step, n, settings, in_run, [outputs_hash(path) for path in read])
        if is_complete(folder, key):
            self._check(folder)
            return folder
        weights = [
            Path(values[name]) for name in ("policy", "start", "reference") if os.path.isabs(values.get(name, ""))
        ]
        self._check(*read, *weights)
        arguments = StageArguments(
            stage=stage,
            title=self.files.name,
            round=n,
            key=key,
            output=str(folder),
            recipe=self.values,
            inputs={name: str(path) for name, path in inputs.items()},
            values=dict(values),
        )
        file = self.files.arguments(n, step)
        arguments.write(file)
        with self.progress.step(step) as report:
            self.launcher.run(file, report)
        if not is_complete(folder, key):
            raise UserError(
                f"stage {step} ended without making {folder}. If it ran on another machine, the run folder must be on "
                "a file system that all machines share"
            )
        return folder

    def _check(self, *folders: Path) -> None:
        """Raises `UserError` for a file in folders of complete steps that is not what the step wrote; once a call."""
        for folder in folders:
            if folder not in self.checked:
                check_step(folder)
                self.checked.add(folder)

    # What the run knows

    def promoted(self) -> str:
        """The id of the policy that generates now."""
        policy = self.loop.promoted_id(self.store)
        assert policy is not None  # `prepare` promotes the base
        return policy

    def _promoted_before(self, n: int) -> str:
        """The policy that round `n` starts from: not one of this round or a later one, where it is made again."""
        promoted = BASE
        for id, _ in self.store.promotions():
            if self.loop.holds(id):
                if (made := re.match(r"policy-(\d{3,})-", id)) and int(made[1]) >= n:
                    break
                promoted = id
        return promoted

    def store_policy(self, policy_id: str) -> Artifact:
        """A policy by its id, without what it was trained on."""
        for artifact in self.store.artifacts(kind="policy", ids=[policy_id], with_feedback=False):
            return artifact
        raise UserError(f"policy {policy_id} is not in the store; was {self.files.path} moved to another store?")

    def open_questions(self) -> int:
        """Questions that people have not answered yet."""
        return self.store.open_questions() if self.recipe.feedback.annotator is None else 0

    def _policy_id(self, n: int) -> str:
        id = self.loop.policy_id(n)
        assert id is not None  # the update was made before
        return id

    def _spec_hashes(self) -> list[str]:
        """Contents of the reward-model folders: a changed one means training again."""
        folders = [] if self.recipe.reward is None else [one.model for one in self.recipe.reward.weighted()]
        if isinstance(self.recipe.evaluation.judge, RewardModelJudge):
            folders.append(self.recipe.evaluation.judge.model)
        return [hash_file(f) for folder in folders for f in sorted(folder.glob("*")) if f.suffix in (".yaml", ".py")]

    def _plain_text_hash(self) -> str | None:
        path = self.recipe.evaluation.plain_text
        if path is None:
            return None
        if not path.exists():
            raise UserError(f"evaluation.plain_text: no file at {path}")
        return hash_file(path)

    def _step_seconds(self, n: int) -> dict[str, float]:
        manifests = {folder.name: read_manifest(folder) for folder in self.files.round(n).iterdir() if folder.is_dir()}
        return {name: manifest["seconds"] for name, manifest in manifests.items() if manifest}


_SETTINGS = {
    "reward": ("reward",),
    "score": ("reward",),
    "update": ("update",),
    "evaluate": ("evaluation", "generation"),
    "generate": ("generation",),
}
"""Blocks of the recipe that a stage depends on, beside the seed and the policy."""


def _hash_of_pairs(snapshot: Path) -> str | None:
    """That of its `pairs.parquet`; None where the snapshot is not complete."""
    manifest = read_manifest(snapshot)
    return None if manifest is None else manifest["files"]["pairs.parquet"]


def _feedback_ids(rows: Path) -> list[str]:
    """All `feedback_ids` of a file of training rows."""
    import pyarrow.parquet as pq

    with reading(rows):
        if "feedback_ids" not in pq.read_schema(rows).names:  # a file without rows has no columns
            return []
        lists = pq.read_table(rows, columns=["feedback_ids"]).column(0).to_pylist()
    return sorted({id for ids in json.loads(f"[{','.join(lists)}]") for id in ids})


def _reward_id(folder: Path) -> str:
    id: str = read_json(folder / "components.json")["id"]
    return id


def _is_weights(name: str) -> bool:
    return name.startswith("policy/") and name.endswith(".safetensors")


def _interval(value: Mapping[str, Any]) -> str:
    if value["low"] is None:  # too few to say
        return f"{value['mean']:.2f} (n={value['n']})"
    return f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}] (n={value['n']})"


def _without_place(value: Any, run: Path) -> Any:
    """Plain values with a path inside the run relative to it, a folder of a model by what it holds, and any other path
    by its name: a run that was moved, with its project or alone, keeps its keys."""
    if isinstance(value, Mapping):
        return {name: _without_place(part, run) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_place(part, run) for part in value]
    if not isinstance(value, str) or not value.startswith("/"):
        return value
    path = Path(value)
    if path.is_relative_to(run):
        return str(Path("RUN") / path.relative_to(run))
    return (content(path) if os.path.isdir(path) else None) or path.name


def _peak_memory() -> int:
    """Largest resident size of this process and of its children so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    )
