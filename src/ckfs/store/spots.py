"""Where something lies in the store, and what was found there: the words of the door (:mod:`ckfs.store.door`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from ckfs.model import Owner, Record
from ckfs.names import Inode, Uid

_CHARGED = (b"users", b"trash")
"""The directories of a store in which files are somebody's to pay for. What is being made in staging/ is nobody's yet."""

VolumeId = bytes
"""The id of a further store (:mod:`ckfs.store.volumes`), or HOME."""
HOME: VolumeId = b""
"""The store itself, which has the names of all sets, and the files of all that lie in no further store."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A name in the store: *components* (at least one) below the root of the store, or of its further store *volume*, reached as
    *identity*.

    *within* is the inode that the directory holding it must be; calls through a name that leads elsewhere are Stale.
    *payer* is who is charged with what lies there, if that is not the identity: of a set that was given away, and whose
    files have yet to follow, its new owner.
    """

    identity: Owner
    components: tuple[bytes, ...]
    within: Inode | None = None
    payer: Uid | None = None
    volume: VolumeId = HOME

    @property
    def charged_to(self) -> Uid | None:
        """Who is charged with what lies there; None where that is nobody."""
        if self.components[0] not in _CHARGED:
            return None
        return self.identity.uid if self.payer is None else self.payer

    def below(self, *names: bytes, within: Inode | None = None) -> Spot:
        """What *names* lead to from here."""
        return Spot(self.identity, (*self.components, *names), within, self.payer, self.volume)

    def at(self, *components: bytes, identity: Owner | None = None) -> Spot:
        """What lies at *components* of the same volume, and is charged to whom it belongs to."""
        return Spot(self.identity if identity is None else identity, components, volume=self.volume)

    def by(self, identity: Owner) -> Spot:
        """The same, reached as somebody else. Who is charged stays."""
        return replace(self, identity=identity, payer=self.identity.uid if self.payer is None else self.payer)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open descriptor of the store. Calls on it are made as whoever owns the file at that moment: a set may have
    changed hands since it was opened. He is charged, too, unless *payer* is said, as of a :class:`Spot`."""

    fd: int
    payer: Uid | None = None

    def paid_by(self, payer: Uid | None) -> OpenFile:
        return self if payer == self.payer else replace(self, payer=payer)


Target = Spot | OpenFile
"""Something that exists, reached by its name or by an open descriptor (which also works when the name is gone)."""


Build = Callable[[Record | None], Record]
"""Makes the record of something new from that of its directory; None where that is not in a set."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file of the store as it is now: its own stat, and what ckfs keeps with it. *removed*: as it was when its last
    name went."""

    stat: os.stat_result
    record: Record
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Times:
    """New times in nanoseconds since the epoch; None leaves one as it is."""

    atime_ns: int | None
    mtime_ns: int | None
