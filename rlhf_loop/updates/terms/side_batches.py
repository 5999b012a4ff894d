"""Which critiqued answers are trained on beside a batch of an update's own: a function of the seed and the batch's
number alone, so that a training that was resumed sees what it would have seen."""

from __future__ import annotations

import random
from functools import lru_cache

from rlhf_loop.models.distributed import shard, world_size


def side_batch(rows: int, size: int, number: int, seed: int) -> list[int]:
    """The numbers of this rank's `size` of `rows` rows, beside batch `number` (from 0) of a training.

    All ranks together go through the rows in one shuffled order after the other, each rank taking others; what is left
    over at the end of an order is left out of it. With fewer rows than that takes, each rank has fewer, but one at
    least.
    """
    ranks = world_size()
    together = min(size, max(1, rows // ranks)) * ranks
    epoch, place = divmod(number, max(1, rows // together))
    order = _order(rows, epoch, seed)
    return shard([order[n % rows] for n in range(place * together, (place + 1) * together)])


@lru_cache(maxsize=4)
def _order(rows: int, epoch: int, seed: int) -> tuple[int, ...]:
    order = list(range(rows))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return tuple(order)
