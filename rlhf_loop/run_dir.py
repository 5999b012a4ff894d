"""The files of a run: where they are.

    RUN/recipe.yaml  RUN/places.json  RUN/promotions.json  RUN/lock  RUN/feedback.db  RUN/endpoints.db  RUN/report.html
    RUN/round_003/snapshot/  reward/  score/  assemble/  update/  evaluate/  checks/  gate/  generate/  rescore/  ask/
    RUN/round_003/manifest.json      written last: the round is complete

Each step owns one folder (`files/step_folders.py`). What this does not protect against: people editing files in a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rlhf_loop.files import explain_os_error, private, read_object, write_json
from rlhf_loop.files.damage import reading
from rlhf_loop.files.locks import InUse, locked

STEPS = (
    "snapshot",
    "judge",
    "reward",
    "score",
    "assemble",
    "update",
    "evaluate",
    "evaluate_warm_start",
    "checks",
    "gate",
    "recall",
    "generate",
    "embed",
    "rescore",
    "ask",
)
"""The folders of a round, in order. `judge` and `evaluate_warm_start` are made in round 0 only; `recall` and
`embed` where `generation` asks for them, `checks` where `critiques` does."""


PROGRESS = "::progress::"
"""How a line of progress begins that a stage in a process of its own prints for its parent."""


LOGS = "logs"
"""In a run: what the jobs of a cluster that work on it say."""


class RunDir:
    """A run's folder."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.name

    @property
    def store_url(self) -> str:
        """The run's own store, for a recipe that names none."""
        return f"sqlite:///{self.path.resolve() / 'feedback.db'}"

    def round(self, number: int) -> Path:
        """The folder of round `number`."""
        return self.path / f"round_{number:03d}"

    def step(self, number: int, step: str) -> Path:
        """The folder of a step of a round, complete or not yet there."""
        return self.round(number) / step

    def arguments(self, number: int, step: str) -> Path:
        """What the stage of a step was told: a file that stays when the step is done."""
        return self.round(number) / f"{step}.arguments.json"

    def rounds(self) -> list[int]:
        """Numbers of the rounds that were begun, in order."""
        return sorted(int(p.name[6:]) for p in self.path.glob("round_*") if p.name[6:].isdigit())

    def complete_rounds(self) -> list[int]:
        """Numbers of the rounds that are complete."""
        return [n for n in self.rounds() if (self.round(n) / "manifest.json").exists()]

    def promotions(self) -> list[tuple[str, float]] | None:
        """The policies of this run that were promoted, oldest first, each with when (seconds since the epoch); None
        where that is not kept in the folder: only the store knows it."""
        if not self._promotions.exists():
            return None
        with reading(self._promotions):
            return [(str(policy), float(at)) for policy, at in read_object(self._promotions)["promotions"]]

    def keep_promotions(self, promotions: Sequence[tuple[str, float]]) -> None:
        """Writes them down, in place of those that were."""
        write_json(self._promotions, {"promotions": [list(one) for one in promotions]})

    @property
    def _promotions(self) -> Path:
        return self.path / "promotions.json"

    def changed_at(self) -> float:
        """When the last folder of a step took its place, or a round was completed: seconds since the epoch."""
        return max((self.round(number).stat().st_mtime for number in self.rounds()), default=0.0)

    def used_by(self) -> str | None:
        """Which process works on this run now, in words; None when none does. May take some seconds to find out."""
        try:
            with self.locked():
                return None
        except InUse as found:
            return found.owner

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps others from working on this run meanwhile; a lock that nobody alive holds is taken over."""
        with ExitStack() as stack:
            try:
                private.make_folder(self.path)
                stack.enter_context(locked(self.path / "lock", str(self.path)))
            except OSError as error:
                raise explain_os_error(error, self.path) from None
            yield
