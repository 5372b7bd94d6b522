"""What a file of the store is charged with, and whom the door tells when that changes.

A regular file, and what stands for a symbolic link or device, counts with its blocks in the store (st_blocks), as far as they hold
its data: not what a file system sets aside beyond its end (XFS: speculative preallocation), nor its own bookkeeping of extents and
attributes, which comes and goes on its own. What somebody has allocated counts, whether or not he has written it
(:mod:`ckfs.store.allocated`). A directory counts as one unit, whatever its file system says: how that grows with the names in it
depends on the engine, and the number of these is limited by that of files. The users' own attributes count with their names
and values, rounded up as well: many engines show them nowhere. What ckfs keeps with a file is not charged.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import Amount
from ckfs.store import allocated, attributes, record, syscalls
from ckfs.store.nameless import Left

_BLOCK_BYTES = 512
"""Of st_blocks, on Linux, whatever the file system's own are."""


_MOST_EXTENTS = 1 << 16
"""A file in more pieces is charged with its blocks."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A mount writes the file *ino* no more, or looked again while nobody else does (*goes_on*). The ledger counted it with
    *counted*, and does so with *final* from now on; ``final - counted`` is to be told, for *payer* unless the mount knows better."""

    ino: Inode
    payer: Uid
    counted: Amount
    final: Amount
    is_last: bool = True
    """Else others go on: *final* has all that this mount had claimed for it."""
    is_gone: bool = False
    """It has no name any more, and counts for as long as it is open."""
    goes_on: bool = False
    dead: frozenset[MountId] = frozenset()
    """Mounts that are dead had been writing it: what they have written was granted to them, and they may not have told all."""


class Meter(Protocol):
    """Hears of everything that changes what somebody is charged with, after it happened. Called in any thread; never raises,
    and never blocks. *payer* is who is charged."""

    @property
    def mount(self) -> MountId | None:
        """Whose meter this is, as the marks of files that are being written say it; None: who never writes."""

    def made(self, payer: Uid, charge: Amount) -> None:
        """Something new counts, or, with a negative *charge*, counts for somebody else."""

    def gone(self, payer: Uid, ino: Inode, charge: Amount) -> None:
        """The last name of the file or directory *ino* has gone. If somebody has it open here, it counts until that ends."""

    @property
    def keeps(self) -> bool:
        """Whether files that have lost their last name, and are open on any mount, may be left to it to count (:meth:`left_open`)."""

    def left_open(self, left: Left, fd: int) -> None:
        """As :meth:`gone`, of a file that somebody has open: it counts until nobody has. *fd*, a descriptor of it, is the meter's to close."""

    def changed(self, payer: Uid, written: Inode | None, by_bytes: int) -> None:
        """The charge of something has changed; of a file that is being written, *written*, also what it counts with meanwhile."""

    def ended(self, ended: Ended) -> None: ...

    def held(self, ino: Inode) -> Amount | None:
        """What is claimed here for the file, beyond what it counts with; None if it is not being written here."""

    def lives(self, mount: MountId) -> bool:
        """Whether *mount*, which may be this one, will tell what becomes of the files that it has marked."""


def rounded(size_bytes: int, unit: int) -> int:
    return -(-size_bytes // unit) * unit


def bytes_of(
    status: os.stat_result, where: attributes.Where, unit: int, names: Iterable[bytes] | None = None
) -> int:
    """What a file or directory with *status*, to be found *where*, is charged with, apart from its attributes; *unit* in bytes, *names*
    are those of its attributes, if that is known."""
    if stat.S_ISDIR(status.st_mode):
        return unit
    data = 0
    if status.st_size:
        # GlusterFS tells no more blocks than the size needs, whatever its bricks give out; so does btrfs of what lies in its metadata.
        blocks = rounded(status.st_blocks * _BLOCK_BYTES, unit)
        data = min(blocks, _data_bytes(where, status.st_size, unit))
    if names is not None and allocated.ATTRIBUTE not in names:
        return data
    return data + _allocated_bytes(where, allocated.of(where), status.st_size, unit)


def _allocated_bytes(where: attributes.Where, parts: allocated.Parts, size: int, unit: int) -> int:
    """The units of *parts* in which a file of *size* has no data."""
    return sum(
        rounded(end, unit) - begin // unit * unit - _data_bytes(where, size, unit, (begin, end))
        for begin, end in parts
    )


def _data_bytes(where: attributes.Where, size: int, unit: int, part: tuple[int, int] | None = None) -> int:
    """The units in which a file of *size* has data, within *part* of it; all that there are where nobody can tell."""
    begin, end = (0, size) if part is None else (part[0] // unit * unit, min(part[1], size))
    try:
        if isinstance(where, int):
            return _data_bytes_of(where, begin, end, unit)
        fd = os.open(where, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return _data_bytes_of(fd, begin, end, unit)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise
    except OSError:
        return max(0, rounded(end, unit) - begin)


def _data_bytes_of(fd: int, first: int, last: int, unit: int) -> int:
    total = end = 0
    for count, (since, upto) in enumerate(syscalls.data_in(fd, first, last)):
        if count == _MOST_EXTENTS:
            return rounded(last, unit) - first
        begin, end = max(end, since // unit * unit), rounded(upto, unit)
        total += end - begin
    return total


def tells_holes(fd: int, unit: int) -> bool:
    """False of a file with fewer blocks than it needs for its size, of which all is said to be data (NFS before 4.2)."""
    status = os.fstat(fd)
    needed = status.st_size - unit
    return status.st_blocks * _BLOCK_BYTES >= needed or os.lseek(fd, 0, os.SEEK_HOLE) < status.st_size


def is_charged(attribute: bytes) -> bool:
    """Whether the attribute of that name is a user's own."""
    is_own = attribute == record.ATTRIBUTE or attribute.startswith(record.ATTRIBUTE + b".")
    return attribute.startswith(b"user.") and not is_own


def attribute_bytes(where: attributes.Where, names: Iterable[bytes] | None = None) -> int:
    """The users' own attributes of a file, names and values; *names* are those that it has, if that is known."""
    charged = filter(is_charged, _names(where) if names is None else names)
    return sum(len(name) + len(attributes.get_or_none(where, name) or b"") for name in charged)


def _names(where: attributes.Where) -> list[bytes]:
    """None of what cannot have any; nor if there are more than can be listed, which the door lets nobody set."""
    try:
        return attributes.names(where)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EPERM, errno.E2BIG):
            return []
        raise


def number_at(where: attributes.Where) -> Inode:
    """The number of a file; 0 of one that has none, or cannot be asked: nobody has it open."""
    with contextlib.suppress(OSError):
        raw = attributes.get_or_none(where, record.ATTRIBUTE)
        if raw is not None and (known := record.decode(raw)) is not None:
            return known.ino
    return Inode(0)


def charge_of(
    status: os.stat_result, where: attributes.Where, unit: int, names: Iterable[bytes] | None = None
) -> Amount:
    """What the file or directory with *status* is charged with in all; *where* and *names* as for :func:`attribute_bytes`."""
    names = _names(where) if names is None else list(names)
    return Amount(bytes_of(status, where, unit, names) + rounded(attribute_bytes(where, names), unit), 1)
