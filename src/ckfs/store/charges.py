"""What files of a store, and whole sets, are charged with, asked through the door.

Synchronous, for worker threads; OSError as the store raises it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterator
from dataclasses import dataclass

from ckfs.errors import Stale
from ckfs.names import Inode, MountId
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store import attributes, metering, syscalls, turns, walks, writers
from ckfs.store.door import Door
from ckfs.store.reports import Unreported
from ckfs.store.spots import Found, OpenFile, Spot, Target


@dataclass(frozen=True, slots=True)
class Charges:
    """*of* has some of the files by themselves, too."""

    total: Amount
    of: dict[Inode, Amount]


def charge_of(door: Door, target: Target) -> Amount:
    """What *target* is charged with; nothing of a file that has no name any more."""
    with door.opened(target, os.O_RDONLY) as fd:
        status = os.fstat(fd)
        return metering.charge_of(status, fd, door.unit) if status.st_nlink else NOTHING


def charge_while_open(door: Door, file: OpenFile) -> tuple[Amount, bool]:
    """What the open *file* is charged with for as long as it is open, and whether it has no name any more."""
    with door.opened(file, os.O_RDONLY) as fd:
        status = os.fstat(fd)
        return metering.charge_of(status, fd, door.unit), not status.st_nlink


def charge_in_turn(door: Door, file: OpenFile, within_s: float | None = None) -> tuple[Amount, bool] | None:
    """As :func:`charge_while_open`, once it is this mount's turn, which is to be given back; None if it is another's.
    If it does not become ours *within_s* seconds, *file* is looked at all the same."""
    with door.opened(file, os.O_RDONLY) as fd:
        if not turns.take(fd, within_s or 0.0) and within_s is None:
            return None
        return charge_while_open(door, file)


def give_turn_back(door: Door, file: OpenFile) -> None:
    with door.opened(file, os.O_RDONLY) as fd:
        turns.give_back(fd)


def charge_of_attributes(door: Door, target: Target, name: bytes = b"", size: int | None = None) -> int:
    """What the users' own attributes of *target* are charged with, in bytes; *size*: if the value of *name* had as many."""
    with door.opened(target, os.O_RDONLY) as fd:
        charged = metering.attribute_bytes(fd)
        if size is not None and metering.is_charged(name):
            before = attributes.get_or_none(fd, name)
            charged += len(name) + size - (0 if before is None else len(name) + len(before))
        return metering.rounded(charged, door.unit)


def end_of(door: Door, file: OpenFile, own: MountId) -> tuple[int, bool]:
    """The size of the open *file* in bytes, and whether mounts other than *own* say that they are writing it."""
    with door.opened(file, os.O_RDONLY) as fd:
        return os.fstat(fd).st_size, bool(writers.of(fd) - {own})


def data_in(door: Door, target: Target, begin: int, end: int) -> list[tuple[int, int]]:
    """The parts of the file *target* between the offsets *begin* and *end* that are no holes."""
    with door.opened(target, os.O_RDONLY) as fd:
        return list(syscalls.data_in(fd, begin, end))


def is_gone_for_us(door: Door, file: OpenFile) -> bool:
    """Whether the open *file*, which is not written here any more, has lost its last name, and nobody else tells of that."""
    if isinstance(door.reports, Unreported) or not door.reports.exact:
        return True
    with door.opened(file, os.O_RDONLY) as fd:
        if door.volumes.all() and not syscalls.is_local(
            fd
        ):  # it may lie in a further store, which is not exact
            return True
        return door.reports.is_gone_for_us(fd)


def charges_of_set(door: Door, top: Spot, apart: Container[Inode]) -> Charges:
    """What is at *top* and below it, each file once; and of the files *apart* what each is charged with. Blocking."""
    total, of, seen = NOTHING, dict[Inode, Amount](), set[Inode]()
    for path, found in _everything(door, top):
        ino = found.record.ino
        if ino in seen:
            continue
        if found.stat.st_nlink > 1:
            seen.add(ino)
        with contextlib.suppress(FileNotFoundError, Stale):
            charge = charge_of(door, top.below(*path.split(b"/")) if path else top)
            total += charge
            if ino in apart:
                of[ino] = charge
    return Charges(total, of)


def _everything(door: Door, top: Spot) -> Iterator[tuple[bytes, Found]]:
    """*top*, whose path is empty, and all below it. A chown leaves the atime alone, and so does what is looked at for it."""
    found = door.examine(top)
    yield b"", found
    if found.record.is_directory:
        yield from walks.everything(door, top, unseen=True)
