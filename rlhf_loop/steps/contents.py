"""What lies outside of a run and is read by its stages, by what it holds: where it changes, they are made again."""

from __future__ import annotations

from rlhf_loop.errors import UserError
from rlhf_loop.files.damage import hash_file
from rlhf_loop.recipe import Recipe, RewardModelJudge
from rlhf_loop.reward_spec import CriticSpec, JudgeSpec, load_spec


def spec_hashes(recipe: Recipe) -> list[str]:
    """Of the reward-model folders: a changed one means training again."""
    folders = [] if recipe.reward is None else [one.model for one in recipe.reward.weighted()]
    if isinstance(recipe.evaluation.judge, RewardModelJudge):
        folders.append(recipe.evaluation.judge.model)
    return [hash_file(f) for folder in folders for f in sorted(folder.glob("*")) if f.suffix in (".yaml", ".py")]


def endpoints_of_rewards(recipe: Recipe) -> list[str]:
    """The endpoints that the recipe's reward models ask."""
    folders = [] if recipe.reward is None else [one.model for one in recipe.reward.weighted()]
    return [spec.endpoint for folder in folders if isinstance(spec := load_spec(folder), JudgeSpec)]


def has_critic(recipe: Recipe) -> bool:
    """Whether a reward model of the recipe learns from critiques too."""
    return recipe.reward is not None and any(
        isinstance(load_spec(one.model), CriticSpec) for one in recipe.reward.weighted()
    )


def plain_text_hash(recipe: Recipe) -> str | None:
    """Of the held-out text; None where the recipe names none."""
    path = recipe.evaluation.plain_text
    if path is None:
        return None
    if not path.exists():
        raise UserError(f"evaluation.plain_text: no file at {path}")
    return hash_file(path)
