"""Where in a store lies what is a user's: his sets, what of his was removed, and what is being made for him.

Renames do not go from one part of a file system to another that has a quota of its own (btrfs subvolumes, projects of XFS and
ext4, directories of CephFS). So where the engine under a store enforces quotas, all that is a user's lies in one directory, his
*realm*; everywhere else the trash and ``staging/`` are directories of all users. This module alone knows which it is.
"""

from __future__ import annotations

import enum

from ckfs.names import Uid
from ckfs.store.entries import RESERVED, USERS
from ckfs.store.spots import HOME, Spot, VolumeId

STAGING = b"staging"
"""For links that are on their way to ``names/``; and for files that are, unless these are in realms."""
TRASH = b"trash"
_REALMS_TRASH = RESERVED + b"trash"
_REALMS_STAGING = RESERVED + b"staging"

Components = tuple[bytes, ...]
"""Below the store's root."""


def realm_of(components: Components) -> Uid | None:
    """Whose directory of sets *components* lead into, if they do."""
    if components[:1] == (USERS,) and len(components) > 1 and components[1].isdigit():
        return Uid(int(components[1]))
    return None


def realm_at(spot: Spot) -> Uid | None:
    """As :func:`realm_of`. In further stores there are none: what limits users there is not ckfs's."""
    return realm_of(spot.components) if spot.volume == HOME else None


class Arrangement(enum.Enum):
    """*value* is what ``ckfs.toml`` calls it."""

    SHARED = "shared"
    """Trash and staging are directories of all users."""
    REALMS = "realms"
    """They lie with each user's sets."""

    def of(self, volume: VolumeId) -> Arrangement:
        """That of a further store of a store that has this one."""
        return self if volume == HOME else Arrangement.SHARED

    @staticmethod
    def user(uid: Uid) -> Components:
        """The directory of the sets that are stored as *uid*."""
        return (USERS, b"%d" % uid)

    def trash(self, uid: Uid) -> Components:
        if self is Arrangement.REALMS:
            return (*self.user(uid), _REALMS_TRASH)
        return (TRASH, b"%d" % uid)

    def staging(self, uid: Uid) -> Components:
        return (*self.user(uid), _REALMS_STAGING) if self is Arrangement.REALMS else (STAGING,)

    def of_trash(self) -> Components:
        """The directory in which each entry named like a number has to do with that user's trash."""
        return (USERS,) if self is Arrangement.REALMS else (TRASH,)

    def is_trash(self, components: Components) -> bool:
        """Whether they lead into somebody's trash."""
        if self is Arrangement.REALMS:
            return components[:1] == (USERS,) and components[2:3] == (_REALMS_TRASH,)
        return components[:1] == (TRASH,)

    def is_place(self, name: bytes) -> bool:
        """Whether what is called *name*, in the directory of a user's sets, is to be a set."""
        return self is Arrangement.SHARED or not name.startswith(RESERVED)
