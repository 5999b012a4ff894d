"""The order of prompts in an online update, the same after a resume.

TRL's sampler draws each epoch's order from one generator, which starts over when a training is resumed: its later
epochs would then repeat the orders of the first ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trl.trainer.utils import RepeatSampler


class EpochSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's sampler with an order for each epoch that depends on the seed and the epoch alone; the first is TRL's."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Row numbers."""
        if self.shuffle and self.seed is not None:
            self.generator.manual_seed(self.seed + self.epoch)
        yield from super().__iter__()


def resumable(sampler: Any) -> Any:
    """The sampler of a TRL trainer as an `EpochSampler`; any other as it is."""
    if type(sampler) is not RepeatSampler:
        return sampler
    return EpochSampler(
        sampler.data_source,
        sampler.mini_repeat_count,
        sampler.batch_size,
        sampler.repeat_count,
        sampler.shuffle,
        sampler.seed,
    )
