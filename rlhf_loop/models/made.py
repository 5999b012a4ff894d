"""Models that are made here, from a wheel or from a seed, lie in a cache folder: `RLHF_LOOP_CACHE`, or
`~/.cache/rlhf-loop`. Each is made once, under a lock, and renamed into place when whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_loop.errors import UserError
from rlhf_loop.files import commit_folder
from rlhf_loop.files.locks import locked
from rlhf_loop.files.paths import cache_folder
from rlhf_loop.models.quiet import quiet


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """`cache_folder()/name`, made by `make` in a partial folder if it is not there; one process at a time."""
    folder = cache_folder() / name
    if folder.exists():
        return folder
    partial = folder.with_name(name + ".partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(name + ".lock"), name, wait=True):
            if folder.exists():
                return folder
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                make(partial)
                commit_folder(partial, folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except UserError:
        raise
    except Exception as error:
        # safetensors and tokenizers raise their own classes for a full disk
        if isinstance(error, OSError) or "os error" in str(error).lower():
            raise UserError(
                f"{folder} cannot be made: {error}. Free some space or mend the permissions, or set RLHF_LOOP_CACHE to "
                "a folder elsewhere, and type the same command again"
            ) from error
        raise
    return folder


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes a model that was made, on this rank: of several whichever comes first makes it, and transformers by itself
    would write on rank 0 alone."""
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
    with quiet():
        model.save_pretrained(folder)
    if not list(folder.glob("*.safetensors")):
        raise RuntimeError(f"no weights were written to {folder}")
    tokenizer.save_pretrained(folder)
