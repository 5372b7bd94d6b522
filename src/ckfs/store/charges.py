"""What files of a store, and whole sets, are charged with, asked through the door.

Synchronous, for worker threads; OSError as the store raises it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass

from ckfs.errors import Stale
from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store import allocated, attributes, metering, nameless, shares, syscalls, walks, writers
from ckfs.store.door import Door
from ckfs.store.nameless import Left, Standing
from ckfs.store.reports import Reports
from ckfs.store.shares import Taken
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


def share_of(door: Door, file: OpenFile) -> Amount:
    """What the ledger counts the open *file* with, which is being written."""
    with door.opened(file, os.O_RDONLY) as fd:
        return shares.total(shares.read(fd))


def look_again(door: Door, file: OpenFile, ino: Inode, mount: MountId) -> None:
    """Count the open *file*, which *mount*, this one, writes and goes on to write, and of which nothing is under way."""
    if isinstance(door.reports, Reports):
        with door.opened(file, os.O_RDONLY) as fd:
            door.reports.shares.look_again(fd, ino, mount)


def take_over(door: Door, file: OpenFile, mount: MountId, payer: Uid) -> tuple[OpenFile, Taken | None]:
    """Let *mount*, this one, count the open *file* from now on, which has lost its name, if nobody else does. Also another
    descriptor of it, which is the caller's to close."""
    assert isinstance(door.reports, Reports)
    unheld = door.open_again(file, os.O_RDONLY, holding=False)
    try:
        with door.opened(unheld, os.O_RDONLY) as fd:
            return unheld, door.reports.shares.take_over(fd, mount, payer)
    except BaseException:
        os.close(unheld.fd)
        raise


def standings_of(door: Door, kept: Iterable[tuple[OpenFile, Left]], mount: MountId) -> list[Standing]:
    """How files without a name stand that *mount*, this one, goes on counting."""
    standings = []
    for file, left in kept:
        with door.opened(file, os.O_RDONLY) as fd:
            standings.append(nameless.look_at(fd, mount, left))
    return standings


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


def data_in(door: Door, target: Target, begin: int, end: int, upto: int) -> list[tuple[int, int]]:
    """The parts of the file *target* between the offsets *begin* and *end* that are no holes, as far as the store tells; and those that
    were allocated, also behind that, up to *upto*."""
    with door.opened(target, os.O_RDONLY) as fd:
        there = list(syscalls.data_in(fd, begin, end)) if metering.tells_holes(fd, door.unit) else []
        parts = ((max(since, begin), min(till, upto)) for since, till in allocated.of(fd))
        return there + [part for part in parts if part[0] < part[1]]


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
