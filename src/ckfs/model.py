"""The shared vocabulary: plain frozen values, no behaviour that needs a system."""

from __future__ import annotations

import dataclasses
import enum
import stat
from dataclasses import dataclass

from ckfs.names import Gid, Inode, SetName, Uid

Data = bytes | memoryview
"""Content of a file on its way to the store."""


class Role(enum.Enum):
    """What a mount's host is to the batch system. ``NODE`` is the default: it is the safest."""

    NODE = "node"
    SERVER = "server"
    BOTH = "both"


class State(enum.Enum):
    """What an image is worth to somebody who wants to restart from it."""

    WRITING = "writing"
    COMPLETE = "complete"
    PARTIAL = "partial"
    SUPERSEDED = "superseded"
    UNKNOWN = "unknown"
    """Nobody has said: its attributes were lost, or an admin put it into the store."""


class Keep(enum.Enum):
    """What somebody said about a checkpoint, over what its age says."""

    BY_RULE = ""
    PINNED = "pinned"
    RELEASED = "released"


class JobFate(enum.Enum):
    """What a batch system says of a job. Whoever fails to ask it has learnt nothing."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Owner:
    """The user whom a set is charged to, and whose identity its files have in the store."""

    uid: Uid
    gid: Gid


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a system call. *pid* is the caller's thread id, 0 if it is in another pid namespace."""

    uid: Uid
    gid: Gid
    pid: int
    umask: int

    @property
    def is_root(self) -> bool:
        return self.uid == 0


@dataclass(frozen=True, slots=True)
class Record:
    """*mode* is a whole st_mode with the file type, since special files are placeholders in the store."""

    ino: Inode
    uid: Uid
    gid: Gid
    mode: int
    rdev: int = 0
    state: State = State.COMPLETE
    node: bytes = b""
    """The node whose mount wrote the content last; empty if unknown."""
    completed: int = 0
    """When the image became complete: in a batch set a later one has a higher number. ns since the epoch, about."""
    synced: tuple[int, int] | None = None
    """Size in bytes and mtime in ns at the last fsync under a final name."""
    keep: Keep = Keep.BY_RULE
    damaged: int = 0
    """When its content was found to differ from its digest; 0 if it was not. ns since the epoch."""

    def with_(self, **changes: object) -> Record:
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]  # the call sites name real fields

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)


@dataclass(frozen=True, slots=True)
class Image:
    """A regular file of a set. *path* is the one below the set, empty if the set is the file."""

    path: bytes
    record: Record


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A direct entry *name* of the batch set *set_name*, or the set itself if that is a file (*name* empty).

    *keep* is what somebody said of it, or of the set as a whole.
    """

    set_name: SetName
    name: bytes
    keep: Keep
    images: tuple[Image, ...]

    @property
    def key(self) -> tuple[SetName, bytes]:
        return self.set_name, self.name

    @property
    def order(self) -> int:
        """When its last image became complete."""
        return max((image.record.completed for image in self.images), default=0)
