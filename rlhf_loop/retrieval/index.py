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
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from rlhf_loop.files.damage import reading
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


_NAMES = pa.schema([("prompt_id", pa.string()), ("completion_id", pa.string())])


def names_of(keys: Sequence[Key | None]) -> pa.Table:
    """Keys as columns, `prompt_id` and `completion_id`; both null for None, a text that was deleted."""
    rows = [(None, None) if key is None else (key.prompt_id, key.completion_id) for key in keys]
    columns = [pa.array([row[place] for row in rows], pa.string()) for place in (0, 1)]
    return pa.table(columns, schema=_NAMES)


def write(folder: Path, name: str, keys: Sequence[Key], vectors: torch.Tensor, dtype: str) -> None:
    """Writes the vectors (N, D) of a step."""
    matrix = vectors.numpy().astype(dtype)
    np.save(folder / f"{name}.npy", matrix)
    table = names_of(keys)
    table = table.add_column(0, "row", pa.array(range(len(keys)), pa.int64()))
    write_table(folder / f"{name}.parquet", table)


class Index:
    """The vectors of several steps as one, in the order given. Which texts they are of stays in columns: a long history
    has millions."""

    def __init__(self, parts: Sequence[tuple[pa.Table, torch.Tensor]]):
        """`parts`: of each step which texts they are (`names_of`), and the vectors (N, D)."""
        self._names = pa.concat_tables([_NAMES.empty_table(), *(names for names, _ in parts)]).combine_chunks()
        self._matrices = [matrix for _, matrix in parts if len(matrix)]  # a step may have had nothing new
        self._there = torch.from_numpy(self._names.column("prompt_id").is_valid().to_numpy().copy())

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
                places = np.full(len(matrix), -1)
                places[table.column("row").to_numpy()] = np.arange(len(table))
                parts.append((table.select(_NAMES.names).cast(_NAMES).take(pa.array(places, mask=places < 0)), matrix))
        return cls(parts)

    def key(self, row: int) -> Key | None:
        """Which text a row is; None for one that was deleted."""
        prompt_id, completion_id = (self._names.column(name)[row].as_py() for name in _NAMES.names)
        return None if prompt_id is None else Key(prompt_id=prompt_id, completion_id=completion_id)

    def rows_of_prompts(self, ids: Collection[str]) -> dict[str, int]:
        """The last row of each of these prompts that has one."""
        column = self._names.column("prompt_id")
        rows = pc.indices_nonzero(pc.is_in(column, value_set=pa.array(list(ids), pa.string())))
        return dict(zip(column.take(rows).to_pylist(), rows.to_pylist(), strict=True))

    def holds(self, keys: Sequence[Key]) -> list[bool]:
        """Whether each of these texts is there."""
        found: list[bool] = pc.is_in(_one_column(names_of(keys)), value_set=_one_column(self._names)).to_pylist()
        return found

    def __len__(self) -> int:
        return len(self._names)

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


def _one_column(names: pa.Table) -> pa.ChunkedArray:
    """Both names of each row as one text, which is null for a deleted one."""
    prompts, completions = names.columns
    return pc.binary_join_element_wise(prompts, pc.fill_null(completions, ""), "\0")
