"""Features of texts that a frozen model computed, kept as a file of a step and read where the texts are scored again.

A row is one completion: `prompt_id`, `completion_id` (by which a deletion finds it), `key` (a hash of the model, of
what is read of it, and of the text's tokens) and `values` (float32, as bytes). What is missing is computed anew.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rlhf_loop.errors import UserError
from rlhf_loop.files import fingerprint
from rlhf_loop.files.damage import reading
from rlhf_loop.models.distributed import gather, is_main
from rlhf_loop.record_files import write_table
from rlhf_loop.rewards.texts import Text

logger = logging.getLogger(__name__)

NAME = "features.parquet"

MOST_BYTES = 64 * 2**20
"""Most that a step keeps; texts beyond it are computed anew."""

MOST_READ = 256 * 2**20
"""Most that a step reads; so it holds no more in memory."""


class KeptFeatures:
    """Those of earlier steps, and those that this one computes."""

    def __init__(self, folders: Iterable[Path] = ()):
        """`folders`: of steps that may have kept some, read in this order; of equal ones the first counts."""
        self.rows: dict[str, bytes] = {}
        self.new: dict[Text, list[str]] = {}  # keys of what this step computed; one a model
        self.trunks: dict[str, Any] = {}  # the frozen models that this step has loaded
        size = 0
        for folder in folders:
            if (folder / NAME).exists() and (size := size + (folder / NAME).stat().st_size) <= MOST_READ:
                try:
                    with reading(folder / NAME):
                        table = pq.read_table(folder / NAME, columns=["key", "values"])
                except UserError as error:  # an earlier round's, whose step need not be made again for it
                    logger.warning("its texts are computed anew: %s", error)
                    continue
                for key, values in zip(*(column.to_pylist() for column in table.columns), strict=True):
                    self.rows.setdefault(key, values)

    def key(self, made_of: str, tokens: Sequence[int], start: int) -> str:
        """Of a text: `made_of` says of which model, and which of its states; `start` where the answer begins."""
        return fingerprint(made_of, tokens, start)

    def find(self, key: str) -> torch.Tensor | None:
        """The features (D,), or None."""
        values = self.rows.get(key)
        return None if values is None else torch.frombuffer(bytearray(values), dtype=torch.float32)

    def add(self, text: Text, key: str, features: torch.Tensor) -> None:
        """What was computed of `text`."""
        if key not in self.rows:
            self.rows[key] = features.numpy().tobytes()
            self.new.setdefault(text, []).append(key)

    def write(self, folder: Path, texts: Iterable[tuple[str, str, Text]]) -> None:
        """Writes those of `texts` (prompt id, completion id, text) that this step computed; all ranks call this."""
        mine = [
            (prompt_id, completion_id, key, self.rows[key])
            for prompt_id, completion_id, text in texts
            for key in self.new.get(text, ())
        ]
        rows = {row[:3]: row for row in gather(mine)}  # where all ranks computed the same, once
        size = 0
        kept = [row for _, row in sorted(rows.items()) if (size := size + len(row[3])) <= MOST_BYTES]
        if kept and is_main():
            names = ("prompt_id", "completion_id", "key", "values")
            table = pa.table(dict(zip(names, zip(*kept, strict=True), strict=True)))
            write_table(folder / NAME, table)
