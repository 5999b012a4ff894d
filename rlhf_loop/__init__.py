"""rlhf-loop: the feedback loop, whole.

    from rlhf_loop import Loop, Recipe
    Loop(Recipe.load("recipes/quickstart.yaml")).run(rounds=3)

`compare("recipes/compare/algorithms.yaml")` runs several strategies and says what differs.
Each step also works alone: `train_reward_model`, `load_reward`, `update_policy`, `generate`, `evaluate`.
Nothing here imports torch until it is needed.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where it is installed PEFT imports it, and it then warns of a kernel that a policy is never computed with.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

if TYPE_CHECKING:
    from rlhf_loop.comparison import compare
    from rlhf_loop.evaluation import evaluate
    from rlhf_loop.feedback.store.store import Store
    from rlhf_loop.generation import generate
    from rlhf_loop.loop import Loop
    from rlhf_loop.recipe import Recipe
    from rlhf_loop.rewards import load_reward, load_spec, train_reward_model
    from rlhf_loop.updates import update_policy

__all__ = [
    "Loop",
    "Recipe",
    "Store",
    "compare",
    "evaluate",
    "generate",
    "load_reward",
    "load_spec",
    "train_reward_model",
    "update_policy",
]

_HOMES = {
    "Loop": "loop",
    "Recipe": "recipe",
    "Store": "feedback.store.store",
    "compare": "comparison",
    "evaluate": "evaluation",
    "generate": "generation",
    "load_reward": "rewards",
    "load_spec": "rewards",
    "train_reward_model": "rewards",
    "update_policy": "updates",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rlhf_loop' has no attribute {name!r}")
    return getattr(import_module(f"rlhf_loop.{_HOMES[name]}"), name)
