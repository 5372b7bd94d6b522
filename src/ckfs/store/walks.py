"""What lies below a directory of the store: walks through the door, each name looked at relative to its open directory.

All calls are synchronous, and raise OSError as the store does. What goes while they look is passed over.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator

from ckfs.errors import Stale
from ckfs.model import Record, State
from ckfs.names import Inode
from ckfs.store import attributes, record, syscalls
from ckfs.store.door import Door
from ckfs.store.spots import Found, Spot

_WORST_FIRST = (State.PARTIAL, State.UNKNOWN, State.WRITING, State.COMPLETE, State.SUPERSEDED)
"""All are superseded only where nothing newer is beside them."""
_MOST_STATES = 10_000
_REMOVED_WHILE_OPEN = re.compile(rb"\.nfs[0-9a-f]{24}")
"""So a client of NFS calls what was removed on it while it has it open."""


def records(door: Door, spot: Spot) -> list[tuple[bytes, Record]]:
    """The records of the directory *spot*, its path being empty, and of everything under it; a directory comes before
    what is in it. Looked at as briefly as can be: what protects images does it at every close and removal of one."""
    with door.opened(spot, os.O_RDONLY | os.O_DIRECTORY) as fd:
        return [(b"", door.directory_record(fd, None)), *_records(door, fd, b"")]


def _records(door: Door, fd: int, prefix: bytes) -> Iterator[tuple[bytes, Record]]:
    for name in os.listdir(b"/proc/self/fd/%d" % fd):
        known = _record_in(door, fd, name)
        if known is None:
            continue
        yield prefix + name, known
        if known.is_directory:
            try:
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            except FileNotFoundError:  # removed since: all the others are there
                continue
            try:
                yield from _records(door, inner, prefix + name + b"/")
            finally:
                os.close(inner)


def _record_in(door: Door, dir_fd: int, name: bytes) -> Record | None:
    """The record of a name in an open directory; None if that is gone by now."""
    try:
        raw = attributes.get_or_none(attributes.path_of(dir_fd, name), record.ATTRIBUTE)
        known = record.decode(raw) if raw is not None else None
        return known if known is not None else door.examine_in(dir_fd, name).record
    except (FileNotFoundError, Stale):
        return None


def files(door: Door, spot: Spot) -> Iterator[tuple[bytes, Found]]:
    """Every regular file under the directory *spot*, with its path below it."""
    for path, found in everything(door, spot):
        if found.record.is_regular:
            yield path, found


def everything(door: Door, spot: Spot, *, unseen: bool = False) -> Iterator[tuple[bytes, Found]]:
    """Everything under the directory *spot*, of whatever kind, with its path below it. *unseen*: no atime tells of it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | (os.O_NOATIME if unseen else 0)
    with door.opened(spot, flags) as fd:
        yield from _everything(door, fd, b"", flags)


def _everything(door: Door, fd: int, prefix: bytes, flags: int) -> Iterator[tuple[bytes, Found]]:
    for name in syscalls.names_in(fd):
        found = _or_none(door, fd, name)
        if found is None:
            continue
        yield prefix + name, found
        if found.record.is_directory:
            inner = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                yield from _everything(door, inner, prefix + name + b"/", flags)
            finally:
                os.close(inner)


def find(door: Door, spot: Spot, wanted: Inode, deadline: float) -> list[tuple[bytes, Inode]]:
    """The names and inodes that lead from the directory *spot* to the inode *wanted*; empty if it is not among the
    first few thousand files there, or those that could be looked at before *deadline* (of time.monotonic)."""
    budget = itertools.takewhile(lambda _: time.monotonic() < deadline, range(_MOST_STATES))
    with door.opened(spot, os.O_RDONLY | os.O_DIRECTORY) as fd:
        return _path_to(door, fd, wanted, budget)


def _path_to(door: Door, fd: int, wanted: Inode, budget: Iterator[int]) -> list[tuple[bytes, Inode]]:
    for name in syscalls.names_in(fd):
        found = _or_none(door, fd, name)
        if next(budget, None) is None:
            return []
        if found is None or _REMOVED_WHILE_OPEN.fullmatch(name):
            continue
        here = (name, found.record.ino)
        if found.record.ino == wanted:
            return [here]
        if found.record.is_directory:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                if rest := _path_to(door, inner, wanted, budget):
                    return [here, *rest]
            finally:
                os.close(inner)
    return []


def worst_state(door: Door, spot: Spot, state_of: Callable[[Spot, Found], State]) -> State | None:
    """The least that any image under the directory *spot* is worth, as *state_of* says; None if there is none.

    EOVERFLOW where more files would have to be looked at than one answer is worth.
    """
    states = set()
    for count, (path, found) in enumerate(files(door, spot)):
        if count == _MOST_STATES:
            raise OSError(errno.EOVERFLOW, "too many files to look at for one answer")
        states.add(state_of(spot.below(*path.split(b"/")), found))
    return next((state for state in _WORST_FIRST if state in states), None)


def _or_none(door: Door, fd: int, name: bytes) -> Found | None:
    try:
        return door.examine_in(fd, name)
    except (FileNotFoundError, Stale):
        return None
