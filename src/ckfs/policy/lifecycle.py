"""What becomes of an image: its states, and what takes it from one to the next.

``superseded`` is a complete image that enough newer complete checkpoints of its batch set have outlived.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from ckfs.model import Record, State


class Event(enum.Enum):
    """What happens to an image."""

    REPLACED = "emptied to be written anew"
    WRITTEN = "written to"
    FINISHED = "closed by its last writer, with nothing amiss, under a final name"
    BROKEN = "left by a writer that was killed, or whose write failed"
    DAMAGED = "found to differ from its digest"
    OUTLIVED = "followed by as many newer checkpoints as are kept"
    NEEDED = "among the newest checkpoints again"
    ACCEPTED = "said to be whole by an admin"


_WRITING, _COMPLETE, _PARTIAL, _SUPERSEDED = State.WRITING, State.COMPLETE, State.PARTIAL, State.SUPERSEDED
_UNKNOWN = State.UNKNOWN

TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (_WRITING, Event.REPLACED): _WRITING,
    (_WRITING, Event.WRITTEN): _WRITING,
    (_WRITING, Event.FINISHED): _COMPLETE,
    (_WRITING, Event.BROKEN): _PARTIAL,
    (_WRITING, Event.DAMAGED): _WRITING,
    (_WRITING, Event.OUTLIVED): _WRITING,
    (_WRITING, Event.NEEDED): _WRITING,
    (_WRITING, Event.ACCEPTED): _WRITING,
    (_COMPLETE, Event.REPLACED): _WRITING,
    (_COMPLETE, Event.WRITTEN): _WRITING,
    (_COMPLETE, Event.FINISHED): _COMPLETE,
    (_COMPLETE, Event.BROKEN): _COMPLETE,
    (_COMPLETE, Event.DAMAGED): _PARTIAL,
    (_COMPLETE, Event.OUTLIVED): _SUPERSEDED,
    (_COMPLETE, Event.NEEDED): _COMPLETE,
    (_COMPLETE, Event.ACCEPTED): _COMPLETE,
    # Nothing that is added mends what is missing: only writing it anew does.
    (_PARTIAL, Event.REPLACED): _WRITING,
    (_PARTIAL, Event.WRITTEN): _PARTIAL,
    (_PARTIAL, Event.FINISHED): _PARTIAL,
    (_PARTIAL, Event.BROKEN): _PARTIAL,
    (_PARTIAL, Event.DAMAGED): _PARTIAL,
    (_PARTIAL, Event.OUTLIVED): _PARTIAL,
    (_PARTIAL, Event.NEEDED): _PARTIAL,
    (_PARTIAL, Event.ACCEPTED): _PARTIAL,
    (_SUPERSEDED, Event.REPLACED): _WRITING,
    (_SUPERSEDED, Event.WRITTEN): _WRITING,
    (_SUPERSEDED, Event.FINISHED): _SUPERSEDED,
    (_SUPERSEDED, Event.BROKEN): _SUPERSEDED,
    (_SUPERSEDED, Event.DAMAGED): _PARTIAL,
    (_SUPERSEDED, Event.OUTLIVED): _SUPERSEDED,
    (_SUPERSEDED, Event.NEEDED): _COMPLETE,
    (_SUPERSEDED, Event.ACCEPTED): _SUPERSEDED,
    # What was there before may have been torn, whatever its last writer did.
    (_UNKNOWN, Event.REPLACED): _WRITING,
    (_UNKNOWN, Event.WRITTEN): _UNKNOWN,
    (_UNKNOWN, Event.FINISHED): _UNKNOWN,
    (_UNKNOWN, Event.BROKEN): _PARTIAL,
    (_UNKNOWN, Event.DAMAGED): _PARTIAL,
    (_UNKNOWN, Event.OUTLIVED): _UNKNOWN,
    (_UNKNOWN, Event.NEEDED): _UNKNOWN,
    (_UNKNOWN, Event.ACCEPTED): _COMPLETE,
}


def after(record: Record, event: Event) -> Record:
    """*record* as *event* leaves it. A synced mark ends with what it was made for, and damage with what was damaged."""
    state = TRANSITIONS[record.state, event]
    synced = None if event in (Event.REPLACED, Event.FINISHED, Event.BROKEN) else record.synced
    damaged = 0 if event is Event.REPLACED else record.damaged
    if (state, synced, damaged) == (record.state, record.synced, record.damaged):
        return record
    return record.with_(state=state, synced=synced, damaged=damaged)


def writer_ended(record: Record, *, killed: bool, failed: bool, size: int, mtime_ns: int) -> Event:
    """What it means for an image that its last writer is gone.

    What was synced, and has not changed since, is whole even if its writer did not live to close it.
    """
    if failed or (killed and record.synced != (size, mtime_ns)):
        return Event.BROKEN
    return Event.FINISHED


def as_left(record: Record, *, marked: bool, is_final: bool, size: int, mtime_ns: int) -> Event | None:
    """What became of an image of the state ``writing`` that nobody alive is writing; None for nothing yet.

    *marked*: a mount that was writing it died. Otherwise all writers have closed it, and whoever then gave it its final name
    died before saying so; or, if it is empty, its writer may be about to begin.
    """
    if record.state is not State.WRITING:
        return None
    if marked:
        return writer_ended(record, killed=True, failed=False, size=size, mtime_ns=mtime_ns)
    return Event.FINISHED if is_final and size else None


def closed_unsaid(record: Record, *, is_final: bool, marked: bool, size: int, ctime_ns: int) -> Record:
    """*record* as it is meant where all writers of an image have closed it under a temporary name, and it has a final one now,
    but nobody has come to say so yet. Its number is about that moment."""
    if (
        marked
        or as_left(record, marked=False, is_final=is_final, size=size, mtime_ns=0) is not Event.FINISHED
    ):
        return record
    return after(record, Event.FINISHED).with_(completed=ctime_ns)


def is_complete(record: Record) -> bool:
    """Somebody can restart from it."""
    return record.state in (State.COMPLETE, State.SUPERSEDED)


def may_be_complete(record: Record) -> bool:
    """It is, for all that anybody knows: what would be lost with it may be somebody's only image."""
    return is_complete(record) or record.state is State.UNKNOWN


def is_worth_keeping(record: Record) -> bool:
    """It may be complete, or it was, and most of it is what it was: a disk may have lost no more than a byte."""
    return may_be_complete(record) or bool(record.damaged)
