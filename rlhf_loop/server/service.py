"""What all parts of the service share: the store, the run, and who may do what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlhf_loop.feedback.store import Store
from rlhf_loop.recipe import Annotation, Recipe


@dataclass(kw_only=True)
class Service:
    """One running service; it is `request.app.state.service`."""

    store: Store
    recipe: Recipe | None = None  # of the run that is served; None: a bare store
    run_dir: Path | None = None
    open_access: bool = False  # only on loopback and only where no token was ever made: everybody is an admin

    @property
    def annotation(self) -> Annotation:
        """How people are asked."""
        return self.recipe.annotation if self.recipe is not None else Annotation()
