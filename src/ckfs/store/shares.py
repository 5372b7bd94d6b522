"""With what the ledger counts a file that is being written: the file itself says so, in the marks of the mounts that write it.

A mark (:mod:`ckfs.store.writers`) has as its value a *share*, bytes and files, and the sum of them is what the ledger counts the file with once it has
heard everything. Whoever marks a file that nobody writes gives it as its share what is there; who comes later, nothing. As long as
somebody writes the file nobody else tells how its data changes. A mount that ends while others go on leaves them its share, and with it all that it
has claimed for the file; the last one looks what the file has, and tells the difference. So what is told adds up, in whatever order
the ledger hears of it, and nothing that anybody may still write on is given back before that.

All of it happens under a lock of the file (flock), so that each change is either told by who made it, or seen by who ends. Where
the store knows no locks, a recount finds what was told twice or not at all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store import attributes, nameless, writers
from ckfs.store.alone import alone_with
from ckfs.store.metering import Ended, Meter, charge_of, number_at
from ckfs.store.nameless import Left, Mark
from ckfs.store.record import new_inode

Marks = dict[MountId, Amount | None]
"""Mounts that have marked a file, with their shares; None of one that has none any more."""
_NONE = b"1"


def read(where: attributes.Where, mounts: Iterable[MountId] | None = None) -> Marks:
    """The marks of a file; *mounts* are those that have made them, if that is known."""
    found = writers.of(where) if mounts is None else mounts
    return {mount: _share_in(attributes.get_or_none(where, writers.mark_of(mount)) or b"") for mount in found}


def total(marks: Marks) -> Amount:
    return sum((share or NOTHING for share in marks.values()), NOTHING)


def _share_in(value: bytes) -> Amount | None:
    size, _, files = value.partition(b" ")
    try:
        return Amount(int(size), int(files))
    except ValueError:
        return None


def _share(marks: Marks, mount: MountId) -> Amount:
    return marks[mount] or NOTHING


def _write(fd: int, mount: MountId, share: Amount) -> None:
    attributes.put(fd, writers.mark_of(mount), b"%d %d" % (share.bytes, share.files))


@dataclass(frozen=True, slots=True)
class Taken:
    """A file without a name that this mount counts from now on. *is_uncounted*: nobody did. *is_unknown*: only a recount tells, since whoever
    did is dead."""

    left: Left
    is_uncounted: bool
    is_unknown: bool


@dataclass(frozen=True, slots=True)
class Shares:
    """*unit* as of :class:`ckfs.store.reports.Reports`. Every *fd* is an open file, of which the thread acts as the owner."""

    meter: Meter
    unit: int

    def living(self, mounts: Collection[MountId]) -> frozenset[MountId]:
        """Those of *mounts* that will tell what becomes of a file."""
        return frozenset(mount for mount in mounts if self.meter.lives(mount))

    def begin(self, fd: int, mount: MountId) -> None:
        """*mount* begins to write the file."""
        with alone_with(fd):
            marks = read(fd)
            if mount in marks:
                return
            share = NOTHING
            if not self.living(marks):
                self._void(fd, marks)
                if self.still_counts(fd):
                    share = charge_of(os.fstat(fd), fd, self.unit)
            _write(fd, mount, share)

    def end(self, fd: int, ino: Inode, mount: MountId) -> None:
        """*mount*, this one, writes the file no more, and has nothing under way of which anybody knows."""
        with alone_with(fd):
            marks = read(fd)
            if mount not in marks:
                return
            others = {one: share for one, share in marks.items() if one != mount}
            if living := self.living(others):
                self._leave_to(fd, ino, marks, mount, min(living))
                return
            status = os.fstat(fd)
            final, counted = charge_of(status, fd, self.unit), total(marks)
            writers.drop(fd, mount)
            dead = self._void(fd, others)
            if is_gone := not status.st_nlink:
                nameless.is_first_to_mark(fd, Mark(mount))
            self.meter.ended(Ended(ino, Uid(status.st_uid), counted, final, is_gone=is_gone, dead=dead))

    def _leave_to(self, fd: int, ino: Inode, marks: Marks, mount: MountId, heir: MountId) -> None:
        held = self.meter.held(ino) or NOTHING
        _write(fd, heir, _share(marks, heir) + _share(marks, mount) + held)
        try:
            writers.drop(fd, mount)
        except BaseException:
            _write(fd, heir, _share(marks, heir))
            raise
        counted = total(marks)
        payer = Uid(os.fstat(fd).st_uid)
        self.meter.ended(Ended(ino, payer, counted, counted + held, is_last=False))

    def look_again(self, fd: int, ino: Inode, mount: MountId) -> None:
        """*mount*, this one, goes on to write the file, and has nothing under way: if it is the only one, what it has is counted."""
        with alone_with(fd):
            marks = read(fd)
            others = {one: share for one, share in marks.items() if one != mount}
            status = os.fstat(fd)
            if mount not in marks or not status.st_nlink or self.living(others):
                return
            final, payer = charge_of(status, fd, self.unit), Uid(status.st_uid)
            _write(fd, mount, final)
            dead = self._void(fd, others)
            self.meter.ended(Ended(ino, payer, total(marks), final, goes_on=True, dead=dead))

    def drop(self, fd: int, mount: MountId) -> None:
        """*mount* is gone: its mark goes, too, unless others write on, who have yet to see what it has written."""
        with alone_with(fd):
            if not self.living(writers.of(fd) - {mount}):
                writers.drop(fd, mount)

    def take_in(self, fd: int, by_bytes: int) -> bool:
        """Something of the file that nobody writes on has changed, which is told at once: it belongs to what the ledger counts. Whether
        somebody writes the file. In the lock."""
        marks = read(fd)
        living = self.living(marks)
        if living:
            _write(fd, min(living), _share(marks, min(living)) + Amount(by_bytes))
        return bool(living)

    def is_told_of_cut(self, fd: int, ino: Inode) -> bool:
        """Whether who cuts the file tells by how much: if nobody writes it, or this mount is about to, and has claimed
        nothing yet. In the lock."""
        living = self.living(writers.of(fd))
        return not living or (living == {self.meter.mount} and self.meter.held(ino) is None)

    def gone(self, fd: int, payer: Uid) -> Amount | None:
        """What the open file counted with if it has lost its last name, and it is for us to tell that it does no more; None else. While
        it is being written, who ends last tells; of all others, who makes the mark that it has gone. If somebody has it open, this
        mount goes on counting it."""
        with alone_with(fd):
            status = os.fstat(fd)
            if status.st_nlink or self.living(writers.of(fd)):
                return None
            charge, kept = charge_of(status, fd, self.unit), self._kept(fd)
            if kept is None or (keeper := self.meter.mount) is None:
                return charge if nameless.is_first_to_mark(fd, Mark(None)) else None
            left = Left(payer, new_inode(), charge)
            if nameless.is_first_to_mark(fd, Mark(keeper, left)):
                self.meter.left_open(left, kept)
            else:
                os.close(kept)
            return None

    def _kept(self, fd: int) -> int | None:
        """A descriptor of the open file for who goes on counting it; None if nobody here does, or need to."""
        if self.meter.mount is not None and self.meter.keeps and nameless.is_held(fd):
            with contextlib.suppress(OSError):  # too many are open here
                return os.dup(fd)
        return None

    def take_over(self, fd: int, keeper: MountId, payer: Uid) -> Taken | None:
        """Let *keeper*, this mount, which holds the file, count it from now on, if it has lost its last name and nobody else does. *fd* is
        another descriptor than that by which it is held. *payer* is charged if nobody says who was. What this mount writes to it since is
        counted by itself; of what others write nobody but them knows how much it is."""
        with alone_with(fd):
            status, writing = os.fstat(fd), self.living(writers.of(fd))
            if status.st_nlink or not nameless.is_held(fd) or writing - {keeper}:
                return None
            mark = nameless.mark_of(fd)
            before = None if mark is None else mark.keeper
            is_kept = before is not None and self.meter.lives(before)
            if before == keeper or (is_kept and (mark is None or mark.left is None)):
                return None
            if writing and (before is None or is_kept):
                return None
            left = None if mark is None else mark.left
            if left is None:
                left = Left(payer, new_inode(), self._unwritten(fd, keeper))
            elif not is_kept:  # under another number: a recount would wait for who is noted beside the dead
                left = replace(left, number=new_inode())
            nameless.put_mark(fd, Mark(keeper))
            is_uncounted = mark is not None and before is None
            return Taken(left, is_uncounted=is_uncounted, is_unknown=not (is_kept or is_uncounted))

    def _unwritten(self, fd: int, mount: MountId) -> Amount:
        """What the file takes beyond what *mount*, this one, counts since it began to write it."""
        charge, share = charge_of(os.fstat(fd), fd, self.unit), read(fd).get(mount)
        if share is None:
            return charge
        return (charge - share - (self.meter.held(number_at(fd)) or NOTHING)).not_below_zero()

    def counted(self, where: attributes.Where, names: Collection[bytes]) -> Amount | None:
        """What the ledger counts a file with that is being written; None of one that is not."""
        marks = writers.among(names)
        return total(read(where)) if marks and self.living(marks) else None

    def still_counts(self, fd: int) -> bool:
        """Whether the open file has a name, or nobody has told yet that it has none. In the lock."""
        return bool(os.fstat(fd).st_nlink) or not nameless.is_marked(fd)

    @staticmethod
    def _void(fd: int, dead: Marks) -> frozenset[MountId]:
        """What the dead had written is counted by now: their shares are theirs no more. Who had any."""
        had = frozenset(mount for mount, share in dead.items() if share is not None)
        for mount in had:
            attributes.put(fd, writers.mark_of(mount), _NONE)
        return had
