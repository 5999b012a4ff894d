"""What the report reads: the files of a run, each of which may not be there yet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.records import Completion, Prompt, Score, read_records
from rlhf_loop.run_dir import STEPS, RunDir, read_json, read_manifest
from rlhf_loop.settings_text import read_yaml


@dataclass(frozen=True, kw_only=True)
class Round:
    """The files of one round; a missing one reads as empty."""

    number: int
    path: Path

    def json(self, *parts: str) -> dict[str, Any]:
        """A JSON object among the round's files, or {}."""
        path = self.path.joinpath(*parts)
        return read_json(path) or {} if path.exists() else {}

    @property
    def complete(self) -> bool:
        """Whether the round was finished."""
        return (self.path / "manifest.json").exists()

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """`seconds`, `steps`, `peak_memory_bytes`, `versions` of a complete round."""
        return self.json("manifest.json")

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """What `rlhf_loop.evaluation.evaluate` measured."""
        return self.json("evaluate", "evaluation.json")

    @cached_property
    def decision(self) -> dict[str, Any]:
        """What the gate decided and why."""
        return self.json("gate", "decision.json")

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
    def prompts(self) -> list[Prompt]:
        """The held-out prompts."""
        return self._records("evaluate/prompts.parquet", Prompt)

    @cached_property
    def candidates(self) -> list[Completion]:
        """The fresh candidates."""
        return self._records("generate/completions.parquet", Completion)

    def mean_score(self, step: str) -> float | None:
        """The reward model's mean score in `score` or `rescore`."""
        scores: list[Score] = self._records(f"{step}/scores.parquet", Score)
        return sum(score.value for score in scores) / len(scores) if scores else None

    def _records(self, name: str, record_type: Any) -> list[Any]:
        path = self.path / name
        return read_records(path, record_type) if path.exists() else []


def read_recipe(run: RunDir) -> tuple[dict[str, Any], str]:
    """The run's recipe as plain values and as text; raises `UserError` when there is no run."""
    path = run.path / "recipe.yaml"
    if not path.exists():
        raise UserError(f"{run.path} is not a run: it has no recipe.yaml. Give the folder that `rlhf-loop run` named")
    text = path.read_text(encoding="utf-8")
    return read_yaml(text, f"{path} is damaged; put the recipe of the run back there: it") or {}, text


def read_rounds(run: RunDir) -> list[Round]:
    """The rounds that were begun, in order."""
    return [Round(number=number, path=run.round(number)) for number in run.rounds()]
