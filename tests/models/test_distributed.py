"""Which share of the work and which accelerators a rank has."""

from __future__ import annotations

import pytest

from rlhf_loop.errors import UserError
from rlhf_loop.models.distributed import own_accelerators, shard


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, of: int, visible: str) -> None:
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", of), ("LOCAL_WORLD_SIZE", of)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.mark.parametrize("every", [1, 2, 4])
def test_the_first_rank_of_so_many_has_a_share_and_all_shares_together_are_everything(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = []
    for rank in range(4):
        as_rank(monkeypatch, rank, 4, "")
        shares.append(shard(range(11), every))
    assert [bool(share) for share in shares] == [rank % every == 0 for rank in range(4)]
    longest = max(map(len, shares))
    assert [share[i] for i in range(longest) for share in shares if i < len(share)] == list(range(11))


@pytest.mark.parametrize(
    ("rank", "of", "together", "visible", "own"),
    [
        (0, 1, 1, "0,1", ["0"]),
        (0, 1, 2, "GPU-a,GPU-b", ["GPU-a", "GPU-b"]),
        (2, 4, 1, "4,5,6,7", ["6"]),
        (2, 4, 2, "4,5,6,7", ["6", "7"]),
        (3, 4, 2, "4,5,6,7", ["6", "7"]),
        (1, 2, 1, "", []),
    ],
)
def test_a_rank_has_the_accelerators_of_its_group(
    rank: int, of: int, together: int, visible: str, own: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_rank(monkeypatch, rank, of, visible)
    assert own_accelerators(together, "here") == own


@pytest.mark.parametrize(
    ("of", "together", "visible", "words"),
    [
        (1, 2, "", "here: 2 GPUs are needed, and this machine shows 0"),
        (1, 4, "0,1", "here: 4 GPUs are needed, and this machine shows 2"),
        (4, 3, "0,1,2,3", "here: 4 processes on this machine cannot be put together by 3"),
        (4, 1, "0,1", "here: 4 GPUs are needed, and this machine shows 2"),
    ],
)
def test_too_few_accelerators_are_told(
    of: int, together: int, visible: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_rank(monkeypatch, of - 1, of, visible)
    with pytest.raises(UserError, match=words):
        own_accelerators(together, "here")
