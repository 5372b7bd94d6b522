"""What a mount's daemon takes of its host: processor time and memory, as /proc says."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reading:
    """*peak_bytes* is the most that was ever resident."""

    cpu_s: float
    resident_bytes: int
    peak_bytes: int


def read(pid: int | None) -> Reading | None:
    """None where that is not to be had: of another pid namespace, hidden, or gone."""
    if pid is None:
        return None
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            words = file.read().rpartition(")")[2].split()
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        ticks = int(words[11]) + int(words[12])
        return Reading(ticks / os.sysconf("SC_CLK_TCK"), _bytes(fields["VmRSS"]), _bytes(fields["VmHWM"]))
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _bytes(kib: str) -> int:
    return int(kib.split()[0]) << 10
