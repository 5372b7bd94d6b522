"""fsync, of files and of directories; and locks."""

from __future__ import annotations

import errno
import fcntl
import os
import statistics
import time

from ckfs.policy.advice import Topic
from ckfs.selftest.identities import create
from ckfs.selftest.outcome import Check, Outcome, fail, ok, warn
from ckfs.selftest.place import Place
from ckfs.selftest.serving import can_lock, lock_file
from ckfs.store.identity import acting_as

_TIMES = 8
_PIECE = b"x" * 65536
_SLOW_S = 1.0
_PART_OF_TIME = 4


def _file(place: Place) -> list[Outcome]:
    check = "fsync.file"
    took: list[float] = []
    with acting_as(place.keeper):
        fd = create(os.path.join(place.new_room(), "synced"))
        try:
            until = time.monotonic() + place.timeout_s / _PART_OF_TIME
            while len(took) < _TIMES and time.monotonic() < until:
                os.write(fd, _PIECE)
                began = time.monotonic()
                os.fsync(fd)
                took.append(time.monotonic() - began)
        except OSError as error:
            return [fail(check, f"of a file: {error.strerror}", place.mend(Topic.SYNC))]
        finally:
            os.close(fd)
    return [_judged(check, "of a file after 64 KiB", took)]


def _directory(place: Place) -> list[Outcome]:
    check = "fsync.directory"
    took: list[float] = []
    with acting_as(place.keeper):
        room = place.new_room()
        fd = os.open(room, os.O_RDONLY | os.O_DIRECTORY)
        try:
            until = time.monotonic() + place.timeout_s / _PART_OF_TIME
            while len(took) < _TIMES and time.monotonic() < until:
                os.close(create(os.path.join(room, str(len(took)))))
                began = time.monotonic()
                os.fsync(fd)
                took.append(time.monotonic() - began)
        except OSError as error:
            return [fail(check, f"of a directory: {error.strerror}", place.mend(Topic.SYNC))]
        finally:
            os.close(fd)
    return [_judged(check, "of a directory after a new name", took)]


def _judged(check: str, what: str, took: list[float]) -> Outcome:
    median_s = statistics.median(took)
    says = f"{what}: {median_s * 1000:.2f} ms"
    if median_s > _SLOW_S:
        mend = "each checkpoint waits that long: look at the storage's write cache and network"
        return warn(check, says, mend, median_s=round(median_s, 6))
    return ok(check, says, median_s=round(median_s, 6))


def _lock(place: Place) -> list[Outcome]:
    check = "locks.flock"
    without = "without them two mounts may copy a set that changes hands twice over"
    with acting_as(place.keeper):
        room = place.new_room()
        fd = lock_file(room)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if can_lock(room):
                return [warn(check, f"two have the same lock: {without}", place.mend(Topic.LOCKS))]
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL):
                raise
            return [warn(check, f"no locks ({error.strerror}): {without}", place.mend(Topic.LOCKS))]
        finally:
            os.close(fd)
    return [ok(check, "what one process has locked another cannot lock")]


CHECKS = (
    Check(("fsync.file",), _file),
    Check(("fsync.directory",), _directory),
    Check(("locks.flock",), _lock),
)
