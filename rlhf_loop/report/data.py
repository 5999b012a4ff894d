"""What the report reads: the files of a run, each of which may not be there yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.files import read_json
from rlhf_loop.files.damage import reading
from rlhf_loop.files.step_folders import read_manifest
from rlhf_loop.kept_recipe import read_kept, without_secrets
from rlhf_loop.record_files import read_records
from rlhf_loop.records import CheckResult, Completion, Feedback, Prompt, Recalled, Score
from rlhf_loop.run_dir import STEPS, RunDir
from rlhf_loop.settings import write_yaml

SHARED = Path(__file__).parent / "shared"
"""Templates of all pages with charts: a chart with its legend, and the style of pages that stand alone."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """The files of one round; a missing one reads as empty."""

    number: int
    path: Path

    def json(self, *parts: str) -> dict[str, Any]:
        """A JSON object among the round's files, or {}; read once."""
        if parts not in self._read:
            path = self.path.joinpath(*parts)
            self._read[parts] = read_json(path) if path.exists() else {}
        return self._read[parts]

    @cached_property
    def _read(self) -> dict[tuple[str, ...], dict[str, Any]]:
        return {}

    @property
    def complete(self) -> bool:
        """Whether the round was finished."""
        return (self.path / "manifest.json").exists()

    @property
    def manifest(self) -> dict[str, Any]:
        """`seconds`, `steps`, `figures`, `peak_memory_bytes`, `versions` of a complete round."""
        return self.json("manifest.json")

    @property
    def evaluation(self) -> dict[str, Any]:
        """What `rlhf_loop.evaluation.evaluate` measured."""
        return self.json("evaluate", "evaluation.json")

    @property
    def decision(self) -> dict[str, Any]:
        """What the gate decided and why."""
        return self.json("gate", "decision.json")

    @property
    def outcome(self) -> str | None:
        """What became of its policy: "promoted", or "kept" where the last one stays; None before the gate."""
        promoted = self.decision.get("promoted")
        return None if promoted is None else "promoted" if promoted else "kept"

    @property
    def win_rate_vs_base(self) -> dict[str, Any] | None:
        """`{mean, low, high, n, ...}`; None before an evaluation, and of round 0: the base against itself is even."""
        return self._measured("win_rate_vs_base")

    @property
    def win_rate_vs_previous(self) -> dict[str, Any] | None:
        """The same against the policy that was promoted before."""
        return self._measured("win_rate_vs_previous")

    @property
    def kl(self) -> float | None:
        """Nats a completion between its policy and the base."""
        return (self._measured("kl") or {}).get("per_completion")

    def variety(self, measure: str) -> dict[str, Any] | None:
        """`{mean, low, high, n}` of its candidates: `distinct_2, self_bleu, overlap`, and where texts are embedded
        `spread, novelty`."""
        found: dict[str, Any] | None = ((self.manifest.get("figures") or {}).get("variety") or {}).get(measure)
        return found

    @property
    def written(self) -> dict[str, Any]:
        """`{counts, set_aside}` of a strategy of generation that reads of the run's past or keeps less than it
        writes."""
        return self.json("generate", "written.json")

    @property
    def revisions(self) -> list[tuple[Recalled, Completion]]:
        """Answers that were revised, each with its first revision."""
        earlier = {one.completion_id: one for one in self._records("recall/to_revise.parquet", Recalled)}
        made: dict[str, Completion] = {}
        for completion in self._records("generate/completions.parquet", Completion) if earlier else []:
            if completion.parent in earlier:
                made.setdefault(completion.parent, completion)
        return [(earlier[id], completion) for id, completion in made.items()]

    @property
    def training_rows(self) -> dict[str, int]:
        """Where the rows came from that its update learned from."""
        return self.json("assemble", "summary.json").get("by_origin") or {}

    @property
    def train_loss(self) -> float | None:
        """The mean loss of its update."""
        return self.json("update", "metrics.json").get("train_loss")

    @property
    def complaints(self) -> dict[str, Any]:
        """What became of complaints under its policy, in counts (`rlhf_loop.rows.checks.summary`)."""
        return self.json("checks", "checks.json")

    @cached_property
    def check_results(self) -> list[CheckResult]:
        """The same one by one."""
        return self._records("checks/results.parquet", CheckResult)

    @property
    def last_step(self) -> str | None:
        """The last step that is complete, of a round that is not."""
        return None if self.complete else next(reversed(self.steps), None)

    @cached_property
    def steps(self) -> dict[str, dict[str, Any]]:
        """The manifest of each complete step, in the order of a round."""
        manifests = {step: read_manifest(self.path / step) for step in STEPS}
        return {step: manifest for step, manifest in manifests.items() if manifest}

    @property
    def timings(self) -> dict[str, float]:
        """Seconds of each complete step."""
        return {step: float(manifest.get("seconds", 0)) for step, manifest in self.steps.items()}

    @cached_property
    def answers(self) -> list[Completion]:
        """What the evaluated policy answered to the held-out prompts; in round 0 the base policy."""
        return self._records("evaluate/answers.parquet", Completion)

    @cached_property
    def feedback(self) -> list[Feedback]:
        """What of the feedback before it was usable."""
        return self._records("snapshot/feedback.parquet", Feedback)

    @cached_property
    def said(self) -> list[Feedback]:
        """All of the feedback before it, as it was said; of earlier versions what was usable."""
        beside = self._records("snapshot/beside.parquet", Feedback)
        return list({record.id: record for record in [*self.feedback, *beside]}.values())

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The held-out prompts."""
        return self._records("evaluate/prompts.parquet", Prompt)

    @property
    def was_answered(self) -> bool:
        """Whether there are answers to the held-out prompts."""
        return (self.path / "evaluate" / "answers.parquet").exists()

    @property
    def was_rescored(self) -> bool:
        """Whether the reward model scored the fresh candidates."""
        return (self.path / "rescore" / "scores.parquet").exists()

    # What a complete round's manifest holds; for others it is read from their files.

    @property
    def candidates(self) -> int:
        """How many fresh candidates there are."""
        return int(self._figure("candidates", lambda: len(self._column("generate/completions.parquet", "id"))))

    @property
    def generated_by(self) -> str | None:
        """The policy that wrote them."""
        policy: str | None = self._figure("generated_by", lambda: self._first("generate/completions.parquet", "policy"))
        return policy

    @property
    def evaluated(self) -> str | None:
        """The policy that answered the held-out prompts."""
        policy: str | None = self._figure("evaluated", lambda: self._first("evaluate/answers.parquet", "policy"))
        return policy

    @property
    def pairs(self) -> int | None:
        """Pairs of training prompts that the round could learn from."""
        pairs: int | None = self._figure("pairs", lambda: _train(self._checked.get("pairs")))
        return pairs

    @property
    def quarantined(self) -> int | None:
        """Pieces of feedback that did not pass its validation."""
        number: int | None = self._figure("quarantined", lambda: _size(self._checked.get("quarantined")))
        return number

    @property
    def criticised(self) -> list[tuple[Completion, Score]]:
        """The fresh candidates that the reward model wrote a critique of, with the score that came of it."""
        if not any(self._column("rescore/scores.parquet", "critique")):
            return []
        answers = {answer.id: answer for answer in self._records("generate/completions.parquet", Completion)}
        scores: list[Score] = self._records("rescore/scores.parquet", Score)
        return [(answers[s.completion_id], s) for s in scores if s.critique is not None and s.completion_id in answers]

    def mean_score(self, step: str) -> float | None:
        """The reward model's mean score in `score` or `rescore`."""

        def mean() -> float | None:
            values = self._column(f"{step}/scores.parquet", "value")
            return sum(values) / len(values) if values else None

        found: float | None = self._figure(f"mean_{step}", mean)
        return found

    @property
    def _checked(self) -> dict[str, Any]:
        return self.json("snapshot", "validation.json")

    def _measured(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.evaluation.get(name) if self.number else None
        return found

    def _figure(self, name: str, measure: Callable[[], Any]) -> Any:
        figures = self.manifest.get("figures") or {}
        return figures[name] if name in figures else measure()

    def _first(self, name: str, column: str) -> str | None:
        return next(iter(self._column(name, column)), None)

    def _column(self, name: str, column: str) -> list[Any]:
        import pyarrow.parquet as pq

        path = self.path / name
        if not path.exists():
            return []
        with reading(path):
            if column not in pq.read_schema(path).names:
                return []
            values: list[Any] = pq.read_table(path, columns=[column]).column(0).to_pylist()
        return values

    def _records(self, name: str, record_type: Any) -> list[Any]:
        path = self.path / name
        return read_records(path, record_type) if path.exists() else []


def read_recipe(run: RunDir) -> tuple[dict[str, Any], str]:
    """The run's recipe as plain values and as text, both without secrets: reports are passed on. Raises `UserError`
    when there is no run."""
    path = run.path / "recipe.yaml"
    if not path.exists():
        raise UserError(f"{run.path} is not a run: it has no recipe.yaml. Give the folder that `rlhf-loop run` named")
    values, text = read_kept(run.path)
    shown = without_secrets(values)
    return shown, text if shown == values else write_yaml(shown)


def read_rounds(run: RunDir) -> list[Round]:
    """The rounds that were begun, in order."""
    return [Round(number=number, path=run.round(number)) for number in run.rounds()]


def latest(rounds: Sequence[Round], read: Callable[[Round], Any]) -> Any:
    """What the last round has that has any, or None."""
    return next((found for r in reversed(rounds) if (found := read(r))), None)


def _train(pairs: Any) -> int | None:
    found: int | None = pairs.get("train") if isinstance(pairs, dict) else pairs
    return found


def _size(listed: Any) -> int | None:
    return len(listed) if isinstance(listed, list) else listed
