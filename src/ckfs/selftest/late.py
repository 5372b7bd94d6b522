"""When it is that a writer hears that there is no more room: at write, at fsync, at close, or never."""

from __future__ import annotations

import enum
import errno
import os
from dataclasses import dataclass

from ckfs.model import Owner
from ckfs.policy.advice import Topic
from ckfs.selftest.identities import create
from ckfs.selftest.outcome import Check, Figure, Outcome, fail, not_tried, ok, warn
from ckfs.selftest.place import Place
from ckfs.store.identity import acting_as

LATE = "late.errors"
_PIECE = os.urandom(1 << 20)
MOST_BYTES = 256 << 20
"""Of the user who may have only little more."""
_FULL = (errno.EDQUOT, errno.ENOSPC)


class Told(enum.Enum):
    WRITE = "write"
    FSYNC = "fsync"
    CLOSE = "close"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Filled:
    """*written* bytes were taken by write() before it said anything; *number* is the errno that was said, 0 for none."""

    told: Told
    written: int
    number: int


def fill(path: str, owner: Owner, most_bytes: int, piece: bytes = _PIECE) -> Filled:
    """Write to a new file of *owner*'s until somebody refuses. Errors that are no lack of room are raised."""
    written = 0
    with acting_as(owner):
        fd = create(path)
        told, number = Told.NEVER, 0
        try:
            while written < most_bytes:
                written += os.write(fd, piece)
        except OSError as error:
            told, number = Told.WRITE, _lack(error)
        if told is Told.NEVER:
            try:
                os.fsync(fd)
            except OSError as error:
                told, number = Told.FSYNC, _lack(error)
        try:
            os.close(fd)
        except OSError as error:
            if told is Told.NEVER:
                told, number = Told.CLOSE, _lack(error)
    return Filled(told, written, number)


def _lack(error: OSError) -> int:
    if error.errno not in _FULL:
        raise error
    return error.errno


def judged(place: Place, filled: Filled) -> Outcome:
    """Of one who was refused."""
    name = errno.errorcode[filled.number]
    figures: dict[str, Figure] = {
        "told_at": filled.told.value,
        "error": name,
        "written_bytes": filled.written,
    }
    if filled.told is Told.WRITE:
        return ok(LATE, f"who is over his limit is told by write() ({name})", **figures)
    if filled.told is Told.FSYNC:
        return ok(
            LATE,
            f"who is over his limit is told by fsync ({name}), which ckfs calls while he writes",
            **figures,
        )
    says = f"who is over his limit is told at close alone ({name}), when the program is gone"
    return warn(LATE, says, place.mend(Topic.LATE), **figures)


def _late(place: Place) -> list[Outcome]:
    user = place.limited
    assert user is not None
    path = os.path.join(place.new_room(0o1777), "file")
    filled = fill(path, user, MOST_BYTES)
    if filled.told is not Told.NEVER:
        return [judged(place, filled)]
    with acting_as(user):
        kept = os.stat(path).st_size
    if kept < filled.written:
        says = f"{filled.written} bytes were taken, {kept} are there, and nobody was told"
        return [fail(LATE, says, "do not use it: images would be torn, and nobody would know")]
    return [
        not_tried(
            LATE,
            f"uid {user.uid} wrote {MOST_BYTES >> 20} MiB and met no limit",
            "name a user with less room",
        )
    ]


def check_of(*, limited: bool) -> Check:
    """*limited*: a user was named who will be over his limit soon."""
    return Check((LATE,), _late, patience=4) if limited else Check((LATE,), _nobody)


def _nobody(_: Place) -> list[Outcome]:
    why = "there is no limit to meet: neither is the engine's to be set, nor was a user named who is near to his"
    return [not_tried(LATE, why, "give --limited USER, who may have at most 256 MiB more")]
