"""What fsck may find: one row for each kind. docs/store.md has the same table, and a test compares the two."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from ckfs.errors import FsError, Stale


class Severity(enum.Enum):
    ERROR = "error"
    """Somebody cannot reach what is his, or the store cannot be mounted."""
    WARNING = "warning"
    """Something is not as it must be; nobody misses anything yet."""
    NOTE = "note"
    """Nothing is wrong; an admin may want to know. Does not count for the exit status."""


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE


class Kind(enum.Enum):
    """Code, severity, what is found, and what ``--repair`` does about it (empty: nothing)."""

    TOP_MISSING = "top-missing", _E, "a directory of the store is missing", "made anew, empty"
    TOP_OWNER = "top-owner", _E, "does not belong to the account that keeps the store", "given to it"
    TOP_MODE = "top-mode", _E, "has not the mode that the mounts need", "given that mode"
    TOP_RECORD = (
        "top-record",
        _W,
        "nothing says whose the mounts' root is",
        "0:0 and 01777, as when it was made",
    )
    POLICY = "policy", _E, "the policy cannot be used", ""
    NAME_STRANGER = "name-stranger", _W, "not a link: nothing that ckfs made", ""
    NAME_DAMAGED = "name-damaged", _E, "the entry cannot be read", "moved to staging/damaged-…"
    NAME_NEWER = "name-newer", _W, "the entry is of a later version of ckfs", ""
    NAME_UNREACHED = (
        "name-unreached",
        _N,
        "its files lie in a further store that this host does not reach",
        "",
    )
    NAME_LOST = "name-lost", _W, "the name leads to nothing", "taken away"
    NAME_MISPLACED = "name-misplaced", _E, "the set lies elsewhere than its name says", "says where it lies"
    NAME_NUMBER = "name-number", _W, "the name says another inode number than the set has", "says the set's"
    NAME_TWIN = "name-twin", _W, "leads to the place of another name", "taken away; the other name stays"
    NAME_FOLLOWS = (
        "name-follows",
        _N,
        "given away, and its files have yet to follow",
        "brought to the new owner, where root may chown; else left to the mounts",
    )
    USERS_STRANGER = "users-stranger", _W, "not the directory of a user", ""
    USER_OWNER = "user-owner", _E, "does not belong to the user whose it is", "given to him"
    USER_MODE = "user-mode", _E, "has another mode than 0700", "given that mode"
    PLACE_ORPHAN = "place-orphan", _E, "no name leads to it", "gets its name again, or one beside it"
    PLACE_HANDOVER = "place-handover", _N, "of a set that is, or was, copied to a new owner", ""
    UNREADABLE = "unreadable", _E, "cannot be looked at", ""
    SPECIAL = "special", _W, "not a file or directory: nothing that ckfs made", ""
    LINKED_ACROSS = "linked-across", _E, "a link of a file in another user's set", ""
    OWNER = "owner", _E, "does not belong to whom the set is stored as", "given to him, where root may chown"
    MODE = "mode", _E, "closed to its own owner", "opened to him"
    RECORD_MISSING = (
        "record-missing",
        _W,
        "nothing says whose it is, nor its mode and state",
        "its uid's, of the mode that it has, and of unknown state",
    )
    RECORD_DAMAGED = "record-damaged", _E, "its record cannot be read", "a new one, as for record-missing"
    RECORD_NEWER = "record-newer", _W, "its record is of a later version of ckfs", ""
    LINK_EMPTY = "link-empty", _W, "a symbolic link without a target", ""
    NUMBER_SHARED = "number-shared", _E, "has the inode number of another file", "gets a number of its own"
    IMAGE_LEFT = (
        "image-left",
        _N,
        "was being written by mounts that are gone",
        "complete or partial, as a mount would say",
    )
    MOUNT_DAMAGED = (
        "mount-damaged",
        _W,
        "not what mounts write there",
        "moved to staging/damaged-…; a registration that cannot be read stays",
    )
    MOUNT_DEAD = "mount-dead", _N, "registered, and its process on this host is dead", "ended"
    MOUNT_ENDED = "mount-ended", _N, "ended, and what it was writing may have to be settled yet", ""
    MOUNT_STRANGER = "mount-stranger", _N, "no mount's: nothing that ckfs made", ""
    TRASH_STRANGER = "trash-stranger", _N, "not a user's part of the trash", ""
    TRASH_UNKNOWN = "trash-unknown", _N, "in the trash, and nothing says what it was", ""
    TRASH_PURGED = "trash-purged", _N, "was being removed for good", ""
    STAGING_LEFT = "staging-left", _N, "left by one that died, or in use", ""

    code: str
    severity: Severity
    sentence: str
    mending: str

    def __new__(cls, code: str, severity: Severity, sentence: str, mending: str) -> Self:
        kind = object.__new__(cls)
        kind._value_ = code
        kind.code, kind.severity, kind.sentence, kind.mending = code, severity, sentence, mending
        return kind

    @property
    def counts(self) -> bool:
        return self.severity is not Severity.NOTE


OF_RECORDS = (Kind.RECORD_MISSING, Kind.RECORD_DAMAGED, Kind.RECORD_NEWER, Kind.LINK_EMPTY)
"""What only who has read a file's record finds."""

NUMBERS = {kind: index for index, kind in enumerate(Kind)}


@dataclass(frozen=True, slots=True)
class Finding:
    """*where* is the path below the store; of what lies in a further one, behind that one's name and a colon. *failure*: why it could not be mended. *done*: what was done, if it was."""

    kind: Kind
    where: bytes
    detail: str = ""
    done: str = ""
    failure: str = ""

    @property
    def is_left(self) -> bool:
        return self.kind.counts and not self.done

    @property
    def key(self) -> tuple[Kind, bytes]:
        return self.kind, self.where


Mend = Callable[[], str]
"""One step, or several each of which leaves what a second run goes on with. Returns what was done.

FileNotFoundError or Stale: there is nothing to mend any more.
"""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A finding that may be no more than somebody at work. *mend* None: fsck leaves it as it is."""

    finding: Finding
    mend: Mend | None = None


def settled(suspect: Suspect, *, repair: bool) -> Finding | None:
    """The finding, mended if that is wanted and possible; None if there is nothing to find any more."""
    if suspect.mend is None or not repair:
        return suspect.finding
    try:
        return dataclasses.replace(suspect.finding, done=suspect.mend())
    except (FileNotFoundError, Stale):
        return None
    except PermissionError as error:
        reason = f"root may not ({error.strerror}): do it on the storage server"
        return dataclasses.replace(suspect.finding, failure=reason)
    except RecursionError:
        return dataclasses.replace(suspect.finding, failure="a tree that is deeper than ckfs walks")
    except (OSError, FsError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        return dataclasses.replace(suspect.finding, failure=reason)
