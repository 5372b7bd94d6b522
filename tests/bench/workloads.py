"""What the places are compared by. Each step runs in a process of its own and gives the seconds that it took.

The steps of a scenario work on what the steps before them left in the place's directory. What they share with ``ckfs bench`` is there.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ckfs.bench.workloads import read_file, write_file, write_files_at_once, write_images

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_NEW, _FINAL = "image.tmp", "image"
_SMALL_CALLS, _SYNCED = "small.tmp", "synced.tmp"
"""Temporary names: images under them never become complete."""
_WRITERS = 8
_IMAGE_BYTES = 64 * KIB

WRITE, WRITE_SYNCED, WRITE_SMALL = (
    "write, 1 MiB calls",
    "write, 1 MiB calls, and fsync",
    "write, 4 KiB calls",
)
READ, READ_SMALL, READ_COLD = "read, 1 MiB calls", "read, 4 KiB calls", "read, 1 MiB calls, cold"
AT_ONCE = f"{_WRITERS} writers at once, 1 MiB calls"
CYCLE = f"create, write {_IMAGE_BYTES // KIB} KiB, fsync, rename, close"
MB_S, FILES_S = "MB/s", "files/s"


class Caches(Enum):
    """What is done to the caches before a step, in every place alike."""

    AS_THEY_ARE = "as they are"
    NO_PAGES = "pages dropped"
    NO_NAMES = "names dropped"


@dataclass(frozen=True, slots=True)
class Step:
    """*work* gets the place's directory; *of_images* is for the one in which files get final names. *amount* is what it handles, in
    *unit*; no amount: not measured. Afterwards everything is written out if it *writes*; and if files get final names, their digests
    are waited for."""

    title: str
    work: Callable[..., float]
    args: tuple[int, ...]
    amount: float = 0.0
    unit: str = MB_S
    caches: Caches = Caches.AS_THEY_ARE
    disk_only: bool = False
    of_images: bool = False
    writes: bool = False
    completes: bool = False

    @property
    def written_bytes(self) -> int:
        """What it takes of memory, where that is counted in bytes."""
        return int(self.amount * 1e6) if self.writes and self.unit == MB_S else 0


@dataclass(frozen=True, slots=True)
class Scale:
    """*stream_bytes* per sequential step, *small_bytes* for writes of 4 KiB; what protection costs is measured in so many
    *rounds*, each of so many *images*; a process that CRIU dumps has *memory_bytes*."""

    stream_bytes: int
    small_bytes: int
    files: int
    cycles: int
    sets: int
    repetitions: int
    rounds: int
    images: int
    memory_bytes: int


FULL = Scale(2 * GIB, GIB, 2_000, 2_000, 100_000, 5, 25, 96, GIB)
QUICK = Scale(256 * MIB, 32 * MIB, 2_000, 300, 10_000, 3, 15, 48, 256 * MIB)
TINY = Scale(4 * MIB, 256 * KIB, 20, 5, 50, 1, 2, 2, 4 * MIB)


def scenarios(scale: Scale) -> list[list[Step]]:
    """Each scenario runs in new and empty places."""
    stream, small, files = scale.stream_bytes, scale.small_bytes, scale.files
    each = stream // _WRITERS // MIB * MIB or MIB
    size = stream / 1e6
    no_names = Caches.NO_NAMES
    return [
        [
            Step(WRITE, write, (stream, MIB), size, of_images=True, writes=True),
            Step("", give_final_name, (), of_images=True, completes=True),
            Step(READ, read, (MIB,), size, of_images=True),
            Step(READ_SMALL, read, (4 * KIB,), size, of_images=True),
            Step(READ_COLD, read, (MIB,), size, caches=Caches.NO_PAGES, disk_only=True, of_images=True),
        ],
        [Step(WRITE_SYNCED, write_synced, (stream, MIB), size, disk_only=True, writes=True)],
        [Step(WRITE_SMALL, write_small, (small, 4 * KIB), small / 1e6, writes=True)],
        [Step(AT_ONCE, write_at_once, (each, MIB), _WRITERS * each / 1e6, writes=True)],
        [Step(CYCLE, cycle, (scale.cycles,), scale.cycles, FILES_S, writes=True, completes=True)],
        [
            Step("", make_files, (files,)),
            Step(f"stat of {files:,} files", stat_files, (files,), files, FILES_S, no_names),
            Step(f"ls -l of {files:,} files", list_files, (), files, FILES_S, no_names),
        ],
    ]


def write(directory: str, size: int, call: int) -> float:
    return write_file(f"{directory}/{_NEW}", size, call)


def give_final_name(directory: str) -> float:
    os.rename(f"{directory}/{_NEW}", f"{directory}/{_FINAL}")
    return 0.0


def write_synced(directory: str, size: int, call: int) -> float:
    return write_file(f"{directory}/{_SYNCED}", size, call, sync=True)


def write_small(directory: str, size: int, call: int) -> float:
    return write_file(f"{directory}/{_SMALL_CALLS}", size, call)


def read(directory: str, call: int) -> float:
    return read_file(f"{directory}/{_FINAL}", None, call)


def write_at_once(directory: str, size: int, call: int) -> float:
    """Eight processes, each with a file of its own."""
    return write_files_at_once([f"{directory}/{number}.tmp" for number in range(_WRITERS)], size, call)


def make_files(directory: str, count: int, suffix: str = "") -> float:
    begin = time.monotonic()
    for number in range(count):
        os.close(os.open(f"{directory}/{number}{suffix}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    return time.monotonic() - begin


def stat_files(directory: str, count: int) -> float:
    begin = time.monotonic()
    for number in range(count):
        os.stat(f"{directory}/{number}")
    return time.monotonic() - begin


def list_files(directory: str) -> float:
    begin = time.monotonic()
    subprocess.run(
        ["ls", "-l", directory], check=True, stdout=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"}
    )
    return time.monotonic() - begin


def cycle(directory: str, count: int) -> float:
    os.chdir(directory)
    return write_images(count, _IMAGE_BYTES)
