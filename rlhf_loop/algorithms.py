"""The policy updates: one line each says where it is, what it consumes and which config its `trainer:` block goes to.

To add one: a file in `rlhf_loop/updates/` with a function `update` (see its `__init__.py`) and a line in the table.
`python tests/samples/trl_fields.py` then writes the field names of its config, which recipes are checked against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rlhf_loop.records import Demonstration, LabelledCompletion, PreferencePair, Prompt

Consumes = Literal["pairs", "labels", "prompts", "best_of_n", "demonstrations", "nothing"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Algorithm:
    """One way to update a policy."""

    consumes: Consumes  # what `steps/assemble` makes of the feedback, the candidates and their scores
    function: str = ""  # MODULE:FUNCTION; none for an algorithm that trains nothing
    config: str | None = None  # MODULE:CLASS of its trainer settings

    @property
    def online(self) -> bool:
        """Whether it samples answers itself and asks the reward model about them while it trains."""
        return self.consumes == "prompts"


ALGORITHMS: dict[str, Algorithm] = {
    "dpo": Algorithm(consumes="pairs", function="rlhf_loop.updates.dpo:update", config="trl:DPOConfig"),
    "kto": Algorithm(consumes="labels", function="rlhf_loop.updates.kto:update", config="trl:KTOConfig"),
    "ppo": Algorithm(
        consumes="prompts", function="rlhf_loop.updates.ppo:update", config="rlhf_loop.updates.ppo:PPOConfig"
    ),
    "grpo": Algorithm(consumes="prompts", function="rlhf_loop.updates.grpo:update", config="trl:GRPOConfig"),
    "rloo": Algorithm(consumes="prompts", function="rlhf_loop.updates.rloo:update", config="trl:RLOOConfig"),
    "rejection_sampling": Algorithm(
        consumes="best_of_n", function="rlhf_loop.updates.rejection_sampling:update", config="trl:SFTConfig"
    ),
    "sft": Algorithm(consumes="demonstrations", function="rlhf_loop.updates.sft:update", config="trl:SFTConfig"),
    "none": Algorithm(consumes="nothing"),
}
"""The name in a recipe -> the update."""

if TYPE_CHECKING:
    AlgorithmName = str
else:
    AlgorithmName = Literal[tuple(ALGORITHMS)]

ROWS: dict[Consumes, Any] = {
    "pairs": PreferencePair,
    "labels": LabelledCompletion,
    "prompts": Prompt,
    "best_of_n": Demonstration,
    "demonstrations": Demonstration,
}
"""What is consumed -> the record of one row of `training_data.parquet`."""

TRAINER_CONFIGS: dict[str, str] = {
    **{name: algorithm.config for name, algorithm in ALGORITHMS.items() if algorithm.config},
    "bradley_terry": "trl:RewardConfig",
    "critic": "transformers:TrainingArguments",
}
"""Update or kind of reward model -> MODULE:CLASS of the config that its `trainer:` block goes to."""
