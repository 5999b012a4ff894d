"""Libraries that say nothing while the loop says what it does: their bars would break its lines."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any


@contextmanager
def quiet(*, reports: bool = True) -> Iterator[None]:
    """Without the progress bars of transformers and datasets, and warnings of names that a library still uses itself.

    `reports=False`: also without transformers' reports, such as that a new output layer is new.
    """
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    datasets: Any = sys.modules.get("datasets")  # only training imports it, and it takes a second
    maps = datasets is not None and not datasets.are_progress_bars_disabled()
    logging.disable_progress_bar()
    if maps:
        datasets.disable_progress_bars()
    if not reports:
        logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            # PEFT and TRL read names that transformers has others for now; nobody here can change that.
            warnings.filterwarnings("ignore", r".*is deprecated and will be removed in v6", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if maps:
            datasets.enable_progress_bars()


@contextmanager
def silent() -> Iterator[None]:
    """`quiet`, for work whose bars no switch turns off (the conversion of GGUF): nothing goes to standard error."""
    with quiet(), redirect_stderr(io.StringIO()):
        yield
