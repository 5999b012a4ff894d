from __future__ import annotations

import random

from rlhf_loop.batches import batches


def test_batches_hold_every_text_once_and_keep_within_both_limits():
    draw = random.Random(0)
    lengths = [draw.randint(1, 90) for _ in range(200)] + [500]
    outputs = [draw.randint(0, length) for length in lengths]
    made = batches(lengths, 256, outputs, 60)
    assert sorted(number for numbers in made for number in numbers) == list(range(201))
    for numbers in made:
        assert len(numbers) == 1 or len(numbers) * max(lengths[n] for n in numbers) <= 256
        assert len(numbers) == 1 or len(numbers) * max(outputs[n] for n in numbers) <= 60


def test_batches_are_as_large_as_the_budget_lets_them_be_longest_first():
    assert batches([1, 4, 2, 4], 8) == [[1, 3], [2, 0]]
    assert batches([4, 4, 4], 8, outputs=[1, 1, 3], most_outputs=2) == [[0, 1], [2]]
    assert batches([9, 1], 8) == [[0], [1]]  # a longer text goes alone
    assert batches([], 8) == []
