"""Vectors of texts in files, and the exact search among them.

A step adds to those before it: `NAME.npy`, a matrix (N, D) of unit vectors, and `NAME.parquet`, whose rows say which
text a row of the matrix is (`row, prompt_id, completion_id`). A text whose row in the table is gone, as after a
deletion, is not found; its vector is zeros then. Matrices are mapped into memory, so a search reads each once from the
page cache, and only blocks of it are held as float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rlhf_loop.damage import reading
from rlhf_loop.record_files import write_table

BLOCK = 1024
"""Rows that are compared at once: as float32 they stay in a processor's cache."""

SLACK = 2**-10
"""Most that the product of two unit vectors in float16, summed in float32, is off: 2^-11 for rounding one of them, as
much for rounding the product."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """Which text a vector is of: a prompt, or a completion."""

    prompt_id: str
    completion_id: str | None = None


def write(folder: Path, name: str, keys: Sequence[Key], vectors: torch.Tensor, dtype: str) -> None:
    """Writes the vectors (N, D) of a step."""
    matrix = vectors.numpy().astype(dtype)
    np.save(folder / f"{name}.npy", matrix)
    table = pa.table(
        {
            "row": pa.array(range(len(keys)), pa.int64()),
            "prompt_id": pa.array([key.prompt_id for key in keys], pa.string()),
            "completion_id": pa.array([key.completion_id for key in keys], pa.string()),
        }
    )
    write_table(folder / f"{name}.parquet", table)


class Index:
    """The vectors of several steps as one, in the order given."""

    def __init__(self, parts: Sequence[tuple[Sequence[Key | None], torch.Tensor]]):
        """`parts`: keys (None: deleted) and vectors (N, D) of each step."""
        self.keys = [key for keys, _ in parts for key in keys]
        self._matrices = [matrix for _, matrix in parts if len(matrix)]  # a step may have had nothing new
        self._there = torch.tensor([key is not None for key in self.keys])

    @classmethod
    def open(cls, folders: Iterable[Path], name: str) -> Index:
        """What steps wrote under a name, those folders that have it. A damaged file is a `UserError`."""
        parts = []
        for folder in folders:
            path = folder / f"{name}.npy"
            if not path.exists():
                continue
            with reading(path):
                matrix = torch.from_numpy(np.load(path, mmap_mode="c"))
            with reading(folder / f"{name}.parquet"):
                table = pq.read_table(folder / f"{name}.parquet")
                keys: list[Key | None] = [None] * len(matrix)
                for row, prompt_id, completion_id in zip(
                    *(column.to_pylist() for column in table.columns), strict=True
                ):
                    keys[row] = Key(prompt_id=prompt_id, completion_id=completion_id)
            parts.append((keys, matrix))
        return cls(parts)

    def __len__(self) -> int:
        return len(self.keys)

    def vectors(self, rows: Sequence[int]) -> torch.Tensor:
        """(R, D) float32, of these rows."""
        places = torch.tensor(rows, dtype=torch.long)
        starts = np.cumsum([0, *(len(matrix) for matrix in self._matrices)])
        found = torch.zeros(len(rows), self._matrices[0].shape[1] if self._matrices else 0)
        for start, matrix in zip(starts, self._matrices, strict=False):
            here = (places >= start) & (places < start + len(matrix))
            found[here] = matrix[places[here] - start].float()
        return found

    def search(
        self, queries: torch.Tensor, k: int, among: Collection[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The `k` nearest texts to each of `queries` (Q, D), unit vectors: cosines and rows, both (Q, k), best first.

        `among`: the rows that may be found; else all that were not deleted. Fewer than `k`, where there are fewer: a
        cosine of -inf says that its row is none.
        """
        allowed = self._there
        if among is not None:
            allowed = torch.zeros_like(self._there)
            allowed[torch.tensor(sorted(among), dtype=torch.long)] = True
            allowed &= self._there
        queries = queries.float()
        if len(queries) == 1 and all(matrix.dtype == torch.float16 for matrix in self._matrices):
            return self._search_one(queries[0], k, allowed)
        best = torch.full((len(queries), k), -torch.inf)
        rows = torch.zeros((len(queries), k), dtype=torch.long)
        width = self._matrices[0].shape[1] if self._matrices else 0
        buffer = torch.empty(BLOCK, width)
        start = 0
        for matrix in self._matrices:
            for block in matrix.split(BLOCK):
                cosines = queries @ buffer[: len(block)].copy_(block).T  # (Q, b)
                cosines.masked_fill_(~allowed[start : start + len(block)], -torch.inf)
                if bool((cosines.amax(dim=1) > best[:, -1]).any()):
                    found = cosines.topk(min(k, len(block)), dim=1)
                    joined = torch.cat([best, found.values], dim=1)
                    places = torch.cat([rows, found.indices + start], dim=1)
                    best, kept = joined.topk(k, dim=1)
                    rows = places.gather(1, kept)
                start += len(block)
        return best, rows

    def _search_one(self, query: torch.Tensor, k: int, allowed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for one query (D,): all products in float16 as the vectors are, and those that rounding might have
        put below the `k` best once more in float32."""
        best = torch.full((1, k), -torch.inf)
        rows = torch.zeros((1, k), dtype=torch.long)
        if not self._matrices:
            return best, rows
        half = query.half()
        rough = torch.cat([torch.mv(matrix, half) for matrix in self._matrices]).float()  # (N,)
        rough.masked_fill_(~allowed, -torch.inf)
        least = rough.topk(min(k, len(rough))).values[-1]
        near = (rough.ge(least - 2 * SLACK) & allowed).nonzero()[:, 0]
        found = (self.vectors(near.tolist()) @ query).topk(min(k, len(near)))
        best[0, : len(found.values)] = found.values
        rows[0, : len(found.values)] = near[found.indices]
        return best, rows
