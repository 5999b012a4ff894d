"""Rows of data sets as Hugging Face's `datasets` keeps them: a folder, or a data set of the hub.

- A folder that `save_to_disk` wrote: of one split, or of several, of which `train` is read; `FOLDER/SPLIT` is another.
- A folder of Arrow or Parquet files.
- `hf:OWNER/NAME` or `hf:OWNER/NAME:SPLIT`: streamed from the hub, which needs the library.

Files are read with pyarrow alone, batch by batch. A row's place is its file and number in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.files.columnar import batch_rows, parquet_rows
from rlhf_loop.feedback.files.row import Refused, Row
from rlhf_loop.files.paths import HUB


def is_data_set(path: str | Path) -> bool:
    """Whether `path` names a data set of the hub, or a folder."""
    return str(path).startswith(HUB) or Path(path).is_dir()


def read_data_set(path: str | Path) -> Iterator[Row | Refused]:
    """The rows of a data set, in order.

    Raises `UserError` for a folder without data, a split that is not there, and what keeps a hub's data set from being
    opened.
    """
    if str(path).startswith(HUB):
        yield from _hub(str(path))
        return
    for file in _files(Path(path)):
        rows = _arrow_rows(file) if file.suffix == ".arrow" else parquet_rows(file)
        for row in rows:
            yield row if isinstance(row, Refused) else row._replace(file=str(file))


def _files(folder: Path) -> list[Path]:
    """The files that hold a folder's rows."""
    splits = folder / "dataset_dict.json"
    if splits.exists():
        names = _json(splits).get("splits", [])
        if "train" in names:
            return _files(folder / "train")
        if len(names) == 1:
            return _files(folder / str(names[0]))
        raise UserError(f"{folder} has the splits {', '.join(map(str, names))}; name one of them: {folder}/SPLIT")
    state = folder / "state.json"
    if state.exists():
        named = [Path(str(entry.get("filename"))).name for entry in _json(state).get("_data_files", [])]
        return [folder / name for name in named]  # names alone: a path that leads out of the folder is not followed
    found = sorted(file for file in folder.iterdir() if file.suffix in (".arrow", ".parquet"))
    if not found:
        raise UserError(f"{folder} is a folder; give one of the files in it, or the folder of a data set")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); write or fetch the data set again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged (no object); write or fetch the data set again")
    return values


def _arrow_rows(path: Path) -> Iterator[Row | Refused]:
    import pyarrow as pa

    number = 0
    try:
        with pa.memory_map(str(path)) as file:
            try:
                batches: Iterator[Any] = iter(pa.ipc.open_stream(file))
            except pa.ArrowInvalid:
                reader = pa.ipc.open_file(file)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            for batch in batches:
                yield from batch_rows(path, batch, number)
                number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        if number == 0:
            raise UserError(f"{path} cannot be read as Arrow ({error}); write or fetch the data set again") from None
        yield Refused(str(path), number + 1, f"the Arrow file is damaged from here on ({error})", "")


def _hub(name: str) -> Iterator[Row | Refused]:
    repository, _, split = name.removeprefix(HUB).partition(":")
    try:
        import datasets
    except ModuleNotFoundError:
        raise UserError(f"{name} needs the library datasets; pip install datasets") from None
    try:
        rows = datasets.load_dataset(repository, split=split or "train", streaming=True)
        for number, values in enumerate(rows, 1):
            yield Row(number, {key: value for key, value in values.items() if value is not None}, file=name)
    except Exception as error:  # whatever the hub's client raises: names, network, access, formats
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"{name} cannot be read from the hub: {reason}. Check its name, its splits (hf:OWNER/NAME:SPLIT), the "
            "network and your access"
        ) from error
