"""How fast it is, as information: never a reason to fail."""

from __future__ import annotations

import os
import time

from ckfs.selftest.identities import create
from ckfs.selftest.outcome import Check, Outcome, not_tried, ok
from ckfs.selftest.place import Place
from ckfs.store.identity import acting_as

_MOST_BYTES = 64 << 20
_LEAST_BYTES = 1 << 20
_PART_OF_FREE = 8
_PIECE_BYTES = 1 << 20
_MOST_FILES = 500
_PART_OF_TIME = 6
_MIB = 1 << 20


def _data(place: Place) -> list[Outcome]:
    room = place.new_room()
    with acting_as(place.keeper):
        free = os.statvfs(room)
        size = min(_MOST_BYTES, free.f_bavail * free.f_frsize // _PART_OF_FREE) // _PIECE_BYTES * _PIECE_BYTES
        if size < _LEAST_BYTES:
            why = "the store is nearly full"
            return [not_tried("speed.write", why), not_tried("speed.read", why)]
        path = os.path.join(room, "file")
        fd = create(path)
        try:
            written, write_s = _write(fd, size, place.timeout_s / _PART_OF_TIME)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            read, read_s = _read(fd, place.timeout_s / _PART_OF_TIME)
        finally:
            os.close(fd)
    return [
        _rate("speed.write", "written, with fsync", written, write_s),
        _rate("speed.read", "read", read, read_s),
    ]


def _write(fd: int, size: int, limit_s: float) -> tuple[int, float]:
    piece = os.urandom(_PIECE_BYTES)
    began, written = time.monotonic(), 0
    while written < size and time.monotonic() - began < limit_s:
        written += os.write(fd, piece)
    os.fsync(fd)
    return written, time.monotonic() - began


def _read(fd: int, limit_s: float) -> tuple[int, float]:
    began, read = time.monotonic(), 0
    while time.monotonic() - began < limit_s and (piece := len(os.read(fd, _PIECE_BYTES))):
        read += piece
    return read, time.monotonic() - began


def _rate(check: str, how: str, size: int, took_s: float) -> Outcome:
    rate = size / max(took_s, 1e-6)
    return ok(
        check,
        f"{size // _MIB} MiB {how}: {rate / _MIB:.0f} MiB/s",
        bytes=size,
        bytes_per_s=round(rate),
    )


def _metadata(place: Place) -> list[Outcome]:
    room = place.new_room()
    limit_s = place.timeout_s / _PART_OF_TIME
    with acting_as(place.keeper):
        began, files = time.monotonic(), 0
        while files < _MOST_FILES and time.monotonic() - began < limit_s:
            path = os.path.join(room, str(files))
            os.close(create(path))
            os.stat(path)
            os.unlink(path)
            files += 1
        rate = files / max(time.monotonic() - began, 1e-6)
    return [ok("speed.names", f"files made, looked at and removed: {rate:.0f}/s", files_per_s=round(rate, 1))]


CHECKS = (
    Check(("speed.write", "speed.read"), _data),
    Check(("speed.names",), _metadata),
)
