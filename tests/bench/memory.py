"""The machine's memory before something is measured that takes some of it.

A virtual machine gets memory from its host when it first touches it, and gives back what it has freed (free page reporting): writing there is
several times slower than anywhere else, and whoever is measured first pays for all. So as much as a step will take is touched just before it,
in every place alike.
"""

from __future__ import annotations

import mmap


def touch(size: int) -> None:
    """Have *size* bytes of memory, or half of what is available if that is less, touched and free again."""
    least = min(size, _available_bytes() // 2)
    if least:
        mmap.mmap(-1, least, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def _available_bytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
