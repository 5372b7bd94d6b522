"""Times as commands show them."""

from __future__ import annotations

import datetime as dt


def local_time(when_ns: int, form: str = "") -> str:
    """A time in ns since the epoch, in this host's time zone, as strftime's *form* says; ISO 8601 with its zone for an empty one;
    ``-`` if no calendar has it: users set any time."""
    try:
        when = dt.datetime.fromtimestamp(when_ns // 1_000_000_000).astimezone()
    except (OSError, OverflowError, ValueError):
        return "-"
    return when.strftime(form) if form else when.isoformat()
