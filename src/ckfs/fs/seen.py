"""What a mount has found out of how late it sees what other hosts do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seen:
    """Tried with a mount of *node*. *mend* says what helps, if it *is_late*."""

    node: str
    late_s: float
    is_late: bool = False
    mend: str = ""
