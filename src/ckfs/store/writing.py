"""The first and the last step of writing an image, as the store sees them: mark and record, in an order that no other mount's
steps and no death can turn into a torn image that counts as whole.

* The mark comes before the state ``writing``, so that an image of that state without a mark is not being written.
* Whoever begins says so once more, in a way that stays (:func:`writers.note_another`), before he changes content: no mount takes what it
  knows of a file from writing it for all that was written.
* Partial is said before the mark goes: nobody may take what is torn for left by its writers in good order.
* Complete is said after the mark has gone, and only if no other mount has one. Of two mounts that end together each takes its
  own away before it looks, so that at least one of them sees that it is the last.
* Who says complete looks once more: a writer that began in that moment has marked the image before it read the record.

Where files can be locked for a moment each step is one for all (:meth:`Door.opened_alone`); the order is for stores that know no locks.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from ckfs.errors import Stale
from ckfs.model import Record, State
from ckfs.names import Inode, MountId
from ckfs.policy import lifecycle
from ckfs.policy.lifecycle import Event
from ckfs.store import attributes, record, writers
from ckfs.store.door import Door
from ckfs.store.refusals import noting
from ckfs.store.spots import Found, Target

Change = Callable[[Found], Record]


@noting
def begin(
    door: Door, target: Target, ino: Inode, mount: MountId, change: Change, is_gone: Callable[[MountId], bool]
) -> Found:
    """Mark *target* as written by *mount*, and let *change* say so in its record."""
    with door.opened_alone(target) as fd:
        _same(door, fd, ino)
        door.reports.mark(fd, mount)
        writers.note_another(fd)
        before = _same(door, fd, ino)  # as it is now that others see the mark
        if (
            before.record.state is not State.WRITING
        ):  # what mounts left that died between settling and unmarking
            for other in writers.of(fd) - {mount}:
                if is_gone(other):
                    door.reports.unmark_dead(fd, other)
        return _changed(fd, before, change(before))


@noting
def finish(door: Door, target: Target, ino: Inode, mount: MountId, change: Change | None) -> Found:
    """*mount* writes *target* no more; *change* settles the record if no other mount does. None: it has no final name yet."""
    with door.opened_alone(target) as fd:
        before = _same(door, fd, ino)
        after = before.record if change is None else change(before)
        if after.state is State.PARTIAL:
            before = _changed(fd, before, after)
        door.reports.unmark(fd, ino, mount)
        if writers.of(fd):
            return Found(os.fstat(fd), before.record)
        found = _changed(fd, before, after)
        if found.record.state is not State.WRITING and writers.of(fd):
            return _changed(fd, found, lifecycle.after(found.record, Event.WRITTEN))
        return found


@noting
def say(door: Door, target: Target, ino: Inode, change: Change) -> Found:
    """As :meth:`Door.amend`, for who says something of an image that others may begin to write in that very moment: then it is
    being written, whatever *change* said. Marks that were there before may be of the dead, and say nothing."""
    with door.opened_alone(target) as fd:
        marked = writers.of(fd)  # before the record is read: who begins marks the image first
        before = _same(door, fd, ino)
        found = _changed(fd, before, change(before))
        if found is before or before.record.state is State.WRITING or not writers.of(fd) - marked:
            return found
        written = lifecycle.after(before.record, Event.WRITTEN)
        return _changed(fd, found, written.with_(keep=found.record.keep))


@noting
def settle_left(door: Door, target: Target, ino: Inode, left: frozenset[MountId], change: Change) -> Found:
    """Settle what the mounts *left*, all gone, were writing: nothing happens if there are other marks on it by now."""
    with door.opened_alone(target) as fd:
        before = _same(door, fd, ino)
        if before.record.state is not State.WRITING or writers.of(fd) != left:
            return before
        found = _changed(fd, before, change(before))
        for mount in left:
            door.reports.unmark_dead(fd, mount)
        if writers.of(fd):
            return _changed(fd, found, lifecycle.after(found.record, Event.WRITTEN))
        return found


def _same(door: Door, fd: int, ino: Inode) -> Found:
    found = door.found(os.fstat(fd), fd)
    if found.record.ino != ino:
        raise Stale("the name leads to another file by now")
    return found


def _changed(fd: int, before: Found, after: Record) -> Found:
    if after == before.record:
        return before
    attributes.put(fd, record.ATTRIBUTE, record.encode(after))
    return Found(os.fstat(fd), after)
