"""Types that requests have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import Strict

Whole = Annotated[int, Strict()]  # true is no number, and neither is "1"
Number = Annotated[float, Strict()]
