"""Files of a run that cannot be read: which one, and what makes it again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_loop.errors import UserError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within it, whatever shows that `path` does not hold what was written there becomes a `UserError` with the
    remedy."""
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({_short(error)}); {remedy(path)}") from error


def remedy(path: Path) -> str:
    """What to delete so that the next `rlhf-loop run` makes `path` again, and nothing else."""
    again = "and type the same `rlhf-loop run` command again, which makes it again"
    rounds = [folder for folder in path.parents if re.fullmatch(r"round_\d{3,}", folder.name)]
    if (path.parent / "recipe.yaml").exists():  # it lies at the top of a run, whatever the folders above are called
        rounds = []
    if path.name == "watch.json":
        return "delete it: what was not told yet will not be told"
    if not rounds:
        return "put it back from a copy, or make it again"
    inside = path.relative_to(rounds[0]).parts
    if len(inside) == 1:
        return f"delete this file {again}"
    return f"delete {rounds[0] / inside[0]} and {rounds[0] / 'manifest.json'} {again}"


def _short(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
