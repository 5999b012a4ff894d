"""Rules of what is learned from critiques: each method needs something that gives, and something that takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_loop.strategies import STRATEGIES

if TYPE_CHECKING:
    from rlhf_loop.recipe import Recipe


def critiques_give_what_the_update_takes(recipe: Recipe) -> str | None:
    """Pairs go to an update that learns from pairs, texts to imitate to one that imitates."""
    if recipe.critiques is None:
        return None
    for given, algorithm in (("pairs", "dpo"), ("demonstrations", "sft")):
        for name in recipe.critiques.gives(given) if recipe.update.consumes != given else ():
            return (
                f"critiques.{name}: it gives {given}, and update.algorithm {recipe.update.algorithm} learns from none; "
                f"set `update.algorithm: {algorithm}`, or leave it out"
            )
    return None


def revisions_are_written(recipe: Recipe) -> str | None:
    """By a strategy that revises."""
    wanted = recipe.critiques is not None and "revisions" in recipe.critiques.methods()
    if wanted and not STRATEGIES[recipe.generation.strategy].revises:
        return (
            "critiques.revisions: nobody revises anything; set `generation.strategy: refine`, which writes answers "
            "anew by their critiques"
        )
    return None


def losses_of_critiques_have_an_update(recipe: Recipe) -> str | None:
    """They stand beside its own."""
    if recipe.critiques is None or recipe.update.consumes != "nothing":
        return None
    for name in recipe.critiques.gives("term"):
        return (
            f"critiques.{name}: it is a loss beside that of an update, and update.algorithm {recipe.update.algorithm} "
            "trains nothing; set another algorithm, such as dpo, or leave it out"
        )
    return None


def checks_have_a_policy(recipe: Recipe) -> str | None:
    """A new one to be asked, and complaints that may come back."""
    checks = recipe.critiques is not None and recipe.critiques.checks is not None
    if checks and recipe.update.consumes == "nothing":
        return (
            f"critiques.checks: it asks each new policy, and update.algorithm {recipe.update.algorithm} makes none; "
            "set another algorithm, such as dpo, or leave it out"
        )
    if recipe.gate.max_came_back is not None and not checks:
        return "gate.max_came_back: nothing is asked again; set `critiques: {checks: {}}`, or null"
    return None


def next_messages_have_a_reader(recipe: Recipe) -> str | None:
    """A method that learns from what is said of answers; edits are none, and checks are of what people were asked."""
    if recipe.critiques is None or recipe.critiques.next_message is None:
        return None
    if recipe.critiques.gives("term") or "fresh" in recipe.critiques.methods():
        return None
    return (
        "critiques.next_message: nothing learns from what users say next; set a method that does beside it, such as "
        "`predict: {}`, or leave it out"
    )
