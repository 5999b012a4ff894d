"""Training checkpoints that a kill cannot break.

`transformers.Trainer` writes a checkpoint in place and resumes from the highest number, torn or not. Here each
checkpoint gets a mark once it is whole on every rank, which lists its files. The mark is the first thing that a
removal takes. What has no mark, lacks a file or cannot be read is removed before resuming.
What this does not protect against: a disk that changes bytes inside a file's tensors; and optimizer states are read
with `torch.load` (weights only), so resume only in folders of your own.
"""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback

from rlhf_loop.models.distributed import barrier, is_main, said_by_main

logger = logging.getLogger(__name__)

MARK = "COMPLETE"

_WEIGHTS = ("model", "adapter_model", "pytorch_model", "global_step")
"""How files of weights begin: those of transformers, PEFT, FSDP and DeepSpeed."""

_UNREADABLE = (OSError, ValueError, SafetensorError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
"""What readers raise for damaged files; zipfile a `RuntimeError` where a flipped bit says that a file is encrypted."""


class MarkComplete(TrainerCallback):  # type: ignore[misc]
    """Marks each checkpoint when it is whole, then removes the ones before it.

    The last step gets none: the policy itself is saved then, and who resumes there trains a step too many.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Runs after the callback that says when to save and when to stop."""
        if control.should_training_stop:
            control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Runs after a rank wrote its last file of a checkpoint."""
        barrier()  # the others may still be writing theirs
        if not is_main():
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / MARK).write_text(json.dumps(_sizes(folder)))
        for other in Path(args.output_dir).glob("checkpoint-*"):
            if other != folder:
                _remove(other)


def last_complete(folder: Path) -> str | None:
    """The newest whole checkpoint in `folder`, the same on every rank; torn ones are removed."""
    return said_by_main(lambda: _last_complete(folder))


def remove_all(folder: Path) -> None:
    """Removes the checkpoints in `folder`, and it; a kill on the way leaves nothing to resume from by mistake."""
    for checkpoint in folder.glob("checkpoint-*"):
        _remove(checkpoint)
    shutil.rmtree(folder, ignore_errors=True)


def _last_complete(folder: Path) -> str | None:
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        torn = _torn(checkpoint)
        if torn is None:
            whole.append(checkpoint)
            continue
        logger.warning("%s is not whole (%s): removed", checkpoint, torn)
        _remove(checkpoint)
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return str(newest) if newest else None


def _remove(checkpoint: Path) -> None:
    (checkpoint / MARK).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def _torn(checkpoint: Path) -> str | None:
    """Why `checkpoint` cannot be resumed from; None when it can."""
    try:
        mark = (checkpoint / MARK).read_text()
        listed = json.loads(mark) if mark else {}
    except FileNotFoundError:
        return "it has no mark"
    except ValueError:
        listed = None
    if not isinstance(listed, dict):
        return "its mark is damaged"
    sizes = _sizes(checkpoint)
    for name, size in listed.items():
        if sizes.get(name) != size:
            return f"{name} has {sizes[name]} of {size} bytes" if name in sizes else f"{name} is missing"
    if not any(name.startswith(_WEIGHTS) for name in sizes):
        return "it holds no weights"
    for name in sizes:
        try:
            _read(checkpoint / name)
        except _UNREADABLE as error:
            return f"{name} cannot be read: {error}"
    return None


def _read(path: Path) -> None:
    """Reads what tells a damaged file from a sound one; raises what the reader of its kind raises."""
    if path.suffix == ".json":
        json.loads(path.read_bytes())
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt"):
            pass
    elif path.suffix in (".pt", ".pth", ".bin"):  # of `torch.save`
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} in it is damaged")


def _sizes(checkpoint: Path) -> dict[str, int]:
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARK)
    return {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
