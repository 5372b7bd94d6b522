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

from ckfs.bench.workloads import read_file, write_file, write_files_at_once

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_FILE, _SMALL_CALLS, _SYNCED = "image.tmp", "small.tmp", "synced.tmp"
"""Temporary names: an image that is complete would be kept in the trash when it is removed."""
_WRITERS = 8


class Caches(Enum):
    """What is done to the caches before a step, in every place alike."""

    AS_THEY_ARE = "as they are"
    NO_PAGES = "pages dropped"
    NO_NAMES = "names dropped"


@dataclass(frozen=True, slots=True)
class Step:
    """*work* gets the place's directory. *amount* is what it handles, in *unit*; no amount: not measured."""

    title: str
    work: Callable[..., float]
    args: tuple[int, ...]
    amount: float = 0.0
    unit: str = "MB/s"
    caches: Caches = Caches.AS_THEY_ARE
    disk_only: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """*stream_bytes* per sequential step, *small_bytes* for writes of 4 KiB; what protection costs is measured in so many
    *rounds*, each of so many *images*."""

    stream_bytes: int
    small_bytes: int
    files: int
    cycles: int
    sets: int
    repetitions: int
    rounds: int
    images: int


FULL = Scale(2 * GIB, 2 * GIB, 10_000, 2_000, 100_000, 5, 25, 96)
QUICK = Scale(256 * MIB, 32 * MIB, 2_000, 300, 10_000, 3, 15, 48)
TINY = Scale(4 * MIB, 256 * KIB, 20, 5, 50, 1, 2, 2)


def scenarios(scale: Scale) -> list[list[Step]]:
    """Each scenario runs in new and empty places."""
    stream, small = scale.stream_bytes, scale.small_bytes
    each = stream // _WRITERS // MIB * MIB or MIB
    return [
        [
            Step("write, 1 MiB calls", write, (stream, MIB), stream / 1e6),
            Step("read, 1 MiB calls", read, (MIB,), stream / 1e6),
            Step("read, 4 KiB calls", read, (4 * KIB,), stream / 1e6),
            Step("read, 1 MiB calls, cold", read, (MIB,), stream / 1e6, caches=Caches.NO_PAGES, disk_only=True),
        ],
        [
            Step(
                "write, 1 MiB calls, and fsync", write_synced, (stream, MIB), stream / 1e6, disk_only=True,
            )
        ],
        [Step("write, 4 KiB calls", write_small, (small, 4 * KIB), small / 1e6)],
        [Step("8 writers at once, 1 MiB calls", write_at_once, (each, MIB), _WRITERS * each / 1e6)],
        [
            Step("", make_files, (scale.files,)),
            Step(
                f"stat of {scale.files:,} files", stat_files, (scale.files,), scale.files, "files/s", Caches.NO_NAMES
            ),
            Step(
                f"ls -l of {scale.files:,} files", list_files, (), scale.files, "files/s", Caches.NO_NAMES
            ),
            Step(
                "create, write 4 KiB, fsync, rename, unlink", cycle, (scale.cycles,), scale.cycles, "files/s",
            ),
        ],
    ]  # fmt: skip


def write(directory: str, size: int, call: int) -> float:
    return write_file(f"{directory}/{_FILE}", size, call)


def write_synced(directory: str, size: int, call: int) -> float:
    return write_file(f"{directory}/{_SYNCED}", size, call, sync=True)


def write_small(directory: str, size: int, call: int) -> float:
    return write_file(f"{directory}/{_SMALL_CALLS}", size, call)


def read(directory: str, call: int) -> float:
    return read_file(f"{directory}/{_FILE}", None, call)


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
    data = os.urandom(4 * KIB)
    begin = time.monotonic()
    for number in range(count):
        new, final = f"{directory}/new-{number}.tmp", f"{directory}/image-{number}"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, data)
        os.fsync(fd)
        os.close(fd)
        os.rename(new, final)
        os.unlink(final)
    return time.monotonic() - begin
