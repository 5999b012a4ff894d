"""Times as files hold them: ISO texts, seconds or smaller units since the epoch, and the time objects of data sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any

from rlhf_loop.feedback.files.row import RowError
from rlhf_loop.feedback.files.rows import shown

LATEST = 253402300800.0  # the end of the year 9999
UNITS = ((1e11, 1.0), (1e14, 1e3), (1e17, 1e6), (math.inf, 1e9))
"""Below this number the unit is so many to a second: seconds reach the year 5138, milliseconds begin in 1973."""

NAMES = ("created_at", "timestamp", "created")
"""What plain files call the time at which something was said, in the order in which they are looked for."""


def time_of(value: Any, name: str) -> float:
    """Seconds since the epoch, UTC; 0 for None and empty text.

    A number counts seconds, milliseconds, microseconds or nanoseconds, as its size says; as text too. A text is ISO
    8601 (with an offset, `Z` or neither, which is UTC) or the date of a mail. Raises `RowError` for anything else.
    """
    if value is None or value == "":
        return 0.0
    if isinstance(value, Mapping) and set(value) in ({"$date"}, {"$numberLong"}):  # as MongoDB exports it
        return time_of(next(iter(value.values())), name)
    if isinstance(value, datetime):
        return _seconds(value)
    if isinstance(value, date):
        return _seconds(datetime(value.year, value.month, value.day))
    if isinstance(value, str):
        return _of_text(value.strip(), name)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            seconds = number / next(unit for limit, unit in UNITS if abs(number) < limit)
            if abs(seconds) < LATEST:
                return seconds
    raise _no_time(value, name)


def time_in(row: Mapping[str, Any], *names: str) -> float:
    """The time under the first of `names` that a row has; 0 where it has none."""
    return next((time_of(row[name], name) for name in names if row.get(name) not in (None, "")), 0.0)


def is_time(text: str) -> bool:
    """Whether a text is a time in ISO 8601 and nothing else, so that it can hold no personal data.

    A number alone may be that of a card, and what reads the dates of mails passes over other words.
    """
    try:
        return text[4:5] == "-" and datetime.fromisoformat(_with_offset(text)) is not None
    except ValueError:
        return False


def _of_text(text: str, name: str) -> float:
    try:
        return time_of(float(text), name)
    except ValueError:  # `RowError` too: infinity is no time
        pass
    iso = _with_offset(text)
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            return _seconds(read(iso))
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    raise _no_time(text, name)


def _with_offset(text: str) -> str:
    return text.removesuffix(" UTC") + "+00:00" if text.endswith(" UTC") else text


def _seconds(moment: datetime) -> float:
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise RowError(f"there is no such time: {shown(moment)}") from None


def _no_time(value: Any, name: str) -> RowError:
    return RowError(f"`{name}` must be a time such as 2026-01-31T12:00:00Z, or seconds since 1970, got {shown(value)}")
