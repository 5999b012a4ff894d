"""Rules of a recipe's endpoints: who they are, and what a model behind a server cannot do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_loop.algorithms import ALGORITHMS
from rlhf_loop.endpoints.client import unknown

if TYPE_CHECKING:
    from rlhf_loop.recipe import Recipe


def endpoints_are_known(recipe: Recipe) -> str | None:
    """Those that other settings name."""
    blocks: dict[str, object] = {
        "policy": recipe.policy,
        "feedback.annotator": recipe.feedback.annotator,
        "evaluation.judge": recipe.evaluation.judge,
        "generation": recipe.generation,
    }
    if recipe.critiques is not None and recipe.critiques.checks is not None:
        blocks["critiques.checks.judge"] = recipe.critiques.checks.judge
    for where, block in blocks.items():
        named = getattr(block, "endpoint", None)
        if named is not None and named not in recipe.endpoints:
            return f"{where}.endpoint: {unknown(named, recipe.endpoints)}"
    return None


def a_writer_is_named(recipe: Recipe) -> str | None:
    """An endpoint writes candidates where the engine says so, and no update takes them for the policy's own."""
    settings, algorithm = recipe.generation, recipe.update.algorithm
    if (settings.engine == "endpoint") != (settings.endpoint is not None):
        return "generation: `engine: endpoint` and `endpoint: NAME` go together; give both or neither"
    if settings.engine == "endpoint" and ALGORITHMS[algorithm].online:
        return (
            f"generation.engine: {algorithm} learns from what the policy itself writes while it trains, not from an "
            "endpoint's answers; set `update.algorithm: rejection_sampling`, dpo, sft or kto"
        )
    if settings.engine == "endpoint" and settings.strategy != "fresh":
        return "generation.strategy: an endpoint writes fresh answers; set `strategy: fresh`"
    return None


def an_endpoint_is_not_trained(recipe: Recipe) -> str | None:
    """Its weights are elsewhere."""
    named = recipe.policy.endpoint
    if named is None:
        return None
    if recipe.update.algorithm != "none" or recipe.warm_start is not None:
        return (
            "update.algorithm: a policy behind a server cannot be trained; set `update.algorithm: none` and no "
            "`warm_start`, or give a `policy.model` of your own and let the endpoint write its candidates with "
            "`generation: {engine: endpoint, endpoint: NAME}`"
        )
    if recipe.generation.endpoint != named:
        return f"generation: the policy is an endpoint; set `generation: {{engine: endpoint, endpoint: {named}}}`"
    return None
