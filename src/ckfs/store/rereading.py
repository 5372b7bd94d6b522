"""Reading images of a store from end to end: to make their digests, to compare with them, to mark what is damaged.

Blocking. Everything is done as the owner, through the door. An image may be written, replaced or moved by a mount at any
moment: so what was found by reading it counts only if it was the same, complete, before and after; and whoever begins to write
an image says so in its record first.
"""

from __future__ import annotations

import enum
import errno
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass

from ckfs.model import Record
from ckfs.names import Inode, MountId
from ckfs.policy import lifecycle
from ckfs.policy.lifecycle import Event
from ckfs.store import digests, writing
from ckfs.store.digests import Digest
from ckfs.store.door import Door
from ckfs.store.spots import Found, Spot, Target

_PIECE_BYTES = 256 << 10
"""Fits into a processor's cache."""
_PIECES_PER_STEP = 32
_TRIES = 3


Progress = Callable[[int], None]
"""Is told how many bytes more have been read."""


class Result(enum.Enum):
    """What is known of an image's content."""

    VERIFIED = "verified"
    DAMAGED = "damaged"
    NO_DIGEST = "without digest"
    MADE = "digest made"
    NOT_COMPLETE = "not complete"
    UNKNOWN = "of unknown state"


class Reading:
    """The image at *spot*, which *found* was, as it is read, one step after the other.

    Nothing is open between two steps. *from_disk*: past what this host's memory has of it, where the store allows that.
    """

    def __init__(self, door: Door, spot: Spot, found: Found, *, from_disk: bool = False) -> None:
        self._door = door
        self._spot = spot
        self._found = found
        self._from_disk = from_disk
        self._hash = digests.new_hash()
        # Pages of its own: copies to an address that is no multiple of 32 take twice as long.
        self._buffer = memoryview(mmap.mmap(-1, min(_PIECE_BYTES, max(found.stat.st_size, 1))))
        self.offset = 0
        """Bytes that have been read."""

    def step(self) -> bool:
        """Read on for a few pieces; whether there may be more. Stale if the file is another by now."""
        with self._door.reading(self._spot, self._found.record.ino) as fd:
            if self._from_disk and self.offset == 0:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for _ in range(_PIECES_PER_STEP):
                # Not beyond what it was: somebody may add to it as fast as it is read.
                wanted = min(len(self._buffer), self._found.stat.st_size - self.offset)
                count = os.preadv(fd, [self._buffer[:wanted]], self.offset) if wanted else 0
                if not count:
                    return False
                self._hash.update(self._buffer[:count])
                self.offset += count
        return True

    def to_the_end(self, progress: Progress) -> Digest:
        more = True
        while more:
            before = self.offset
            more = self.step()
            progress(self.offset - before)
        return self.digest

    @property
    def digest(self) -> Digest:
        """Of what was read."""
        record = self._found.record
        return Digest(digests.ALGORITHM, self._hash.hexdigest(), self.offset, record.completed)

    def keep(self) -> bool:
        """Keep the digest with the image, if that is still what it was before it was read."""
        digest, ino = self.digest, self._found.record.ino
        return keep(
            self._door,
            self._spot,
            ino,
            digest,
            lambda now: digest.fits(now) and is_unchanged(now, self._found),
        )


def keep(door: Door, spot: Spot, ino: Inode, digest: Digest, holds: Callable[[Found], bool]) -> bool:
    """Keep *digest* with the image at *spot* if *holds* says so of what that is now; returns what it said."""
    return door.set_attribute_if(spot, ino, digests.ATTRIBUTE, digests.encode(digest), holds)


def is_unchanged(now: Found, before: Found) -> bool:
    """Nothing at all was done to it in between: ctime tells of every change, those that set mtime back too."""
    return (now.record, now.stat.st_size, now.stat.st_mtime_ns, now.stat.st_ctime_ns) == (
        before.record,
        before.stat.st_size,
        before.stat.st_mtime_ns,
        before.stat.st_ctime_ns,
    )


def kept(door: Door, target: Target, found: Found) -> Digest | None:
    """The digest that is kept with *found*; None if there is none, or it is not of what the image is now."""
    try:
        digest = digests.decode(door.get_attribute(target, found.record.ino, digests.ATTRIBUTE))
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return None
    return digest if digest is not None and digest.fits(found) else None


def begin(door: Door, spot: Spot, found: Found) -> Reading | None:
    """What makes the digest of *found*; None if there is nothing to make."""
    if not digests.has_digest(found) or kept(door, spot, found) is not None:
        return None
    return Reading(door, spot, found)


@dataclass(frozen=True, slots=True)
class Checker:
    """Reads images and compares them with their digests. What differs twice is marked as damaged if it *marks*; a digest that
    is missing is made if it *makes* them."""

    door: Door
    marks: bool
    makes: bool
    progress: Progress

    def check(self, spot: Spot, now_ns: int) -> tuple[Result, Found]:
        """Of the image at *spot*, and what that is now. FileNotFoundError or Stale if it is not there any more."""
        found = self.door.examine(spot)
        for _ in range(_TRIES):
            result = self._check_once(spot, found, now_ns)
            after = self.door.examine(spot, found.record.ino)
            if result is not None:
                return result, after
            found = after
        return Result.NO_DIGEST, found  # none that fits: it changes all the time

    def _check_once(self, spot: Spot, found: Found, now_ns: int) -> Result | None:
        """None if it has changed meanwhile."""
        if found.record.damaged:
            return Result.DAMAGED
        if not lifecycle.is_complete(found.record):
            return Result.UNKNOWN if lifecycle.may_be_complete(found.record) else Result.NOT_COMPLETE
        if not found.stat.st_size:
            return Result.VERIFIED  # there is no content that could be damaged
        if not digests.has_digest(found):
            return Result.NO_DIGEST
        digest = kept(self.door, spot, found)
        if digest is None:
            return self._made(spot, found) if self.makes else Result.NO_DIGEST
        if not digest.is_known:
            return Result.NO_DIGEST
        # Once more if it differs: an error on the way is not the image's.
        if self._is_as(spot, found, digest) or self._is_as(spot, found, digest):
            return Result.VERIFIED
        return self._damaged(spot, found, now_ns)

    def _is_as(self, spot: Spot, found: Found, digest: Digest) -> bool:
        return Reading(self.door, spot, found, from_disk=True).to_the_end(self.progress) == digest

    def _made(self, spot: Spot, found: Found) -> Result | None:
        reading = Reading(self.door, spot, found)
        reading.to_the_end(self.progress)
        return Result.MADE if reading.keep() else None

    def _damaged(self, spot: Spot, before: Found, now_ns: int) -> Result | None:
        ino = before.record.ino

        def marked(now: Found) -> Record:
            if not is_unchanged(now, before):
                return now.record
            return lifecycle.after(now.record, Event.DAMAGED).with_(damaged=now_ns)

        if self.marks:
            after = writing.say(self.door, spot, ino, marked).record
            is_damaged = bool(after.damaged)
        else:
            is_damaged = is_unchanged(self.door.examine(spot, ino), before)
        return Result.DAMAGED if is_damaged else None


def accept(
    door: Door, spot: Spot, before: Found, number: int, is_gone: Callable[[MountId], bool], progress: Progress
) -> Digest | None:
    """Let the image of unknown state at *spot* be complete, as an admin says; *number* is its completion. None, and nothing
    done, if it is not what it was any more, or may not stay so: what a mount that is not gone writes is of unknown state too."""
    numbered = Found(before.stat, before.record.with_(completed=number))
    digest = Reading(door, spot, numbered).to_the_end(progress)

    def accepted(now: Found) -> Record:
        if not is_unchanged(now, before) or digest.size_bytes != now.stat.st_size:
            return now.record
        if not all(map(is_gone, door.writers(spot, before.record.ino))):
            return now.record
        return lifecycle.after(now.record, Event.ACCEPTED).with_(completed=number)

    after = writing.say(door, spot, before.record.ino, accepted)
    if after.record.completed != number or not lifecycle.is_complete(after.record):
        return None
    if digest.size_bytes:
        keep(door, spot, before.record.ino, digest, digest.fits)
    return digest
