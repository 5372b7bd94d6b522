"""What the name of a set says: whose the set is, and where its files are. It is the target of a link in ``names/``
(:mod:`ckfs.store.namelinks`)::

    12.server.CK -> 1:5f3a90c1e2d4b687:2101.2101:2101.2101:12.server.CK
                    version, inode of the set's top, owner, stored as, name below users/<stored uid>/

An owner of ``-`` means unclaimed. Of a set whose files lie in a further store the entry has two fields more, the store's id and
the mode of the set's top as callers saw it when its files came there, for hosts that do not reach it::

    12.server.CK -> 2:5f3a90c1e2d4b687:2101.2101:2101.2101:69d1552e-614e-4812-9ac9-825137704d29:40755:12.server.CK
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ckfs.model import Owner
from ckfs.names import Gid, Inode, SetName, Uid, shown
from ckfs.store.identity import ROOT
from ckfs.store.spots import HOME, Spot, VolumeId

USERS = b"users"
RESERVED = b".ckfs-"
"""So begin names in a user's directory that are ckfs's own; no new set gets such a place."""
_ESCAPE = b"_"
_VERSION = b"1"
_FURTHER_VERSION = b"2"


@dataclass(frozen=True, slots=True)
class SetEntry:
    """Owner and place of a set. *owner* None: unclaimed. *stored* is the identity that its files have in the store, *volume* the
    further store in which they lie. *mode* is the top's where that may be out of reach; 0 at home."""

    ino: Inode
    owner: Owner | None
    stored: Owner
    place: bytes
    volume: VolumeId = HOME
    mode: int = 0

    @property
    def is_followed(self) -> bool:
        """The set was given to a user, and its files have yet to follow. (Root's are whichever service account's.)"""
        return self.owner is not None and self.owner.uid not in (ROOT.uid, self.stored.uid)

    @property
    def payer(self) -> Uid:
        """Who is charged with the set's files: its owner from the moment on in which it says so."""
        return self.owner.uid if self.owner is not None and self.is_followed else self.stored.uid

    @property
    def spot(self) -> Spot:
        payer = self.payer if self.is_followed else None
        components = (USERS, b"%d" % self.stored.uid, self.place)
        return Spot(self.stored, components, payer=payer, volume=self.volume)

    def lies_with(self, other: SetEntry) -> bool:
        """Its files are where those of *other* are, whoever pays for them."""
        return (self.stored, self.volume, self.place) == (other.stored, other.volume, other.place)

    def of_top(self, ino: Inode, mode: int) -> SetEntry:
        """The same of a set whose top has that number and mode."""
        return replace(self, ino=ino, mode=0 if self.volume == HOME else mode)


def encode(entry: SetEntry) -> bytes:
    owner = b"-" if entry.owner is None else _encode_owner(entry.owner)
    whose = b"%x:%s:%s" % (entry.ino, owner, _encode_owner(entry.stored))
    if entry.volume == HOME:
        return b"%s:%s:%s" % (_VERSION, whose, entry.place)
    return b"%s:%s:%s:%o:%s" % (_FURTHER_VERSION, whose, entry.volume, entry.mode, entry.place)


def decode(target: bytes) -> SetEntry:
    """The entry in a link's *target*; OSError (EIO) if it is damaged or of a later version."""
    try:
        version, ino, owner, stored, place = target.split(b":", 4)
        volume, mode = HOME, b"0"
        if version == _FURTHER_VERSION:
            volume, mode, place = place.split(b":", 2)
        if (
            version not in (_VERSION, _FURTHER_VERSION)
            or not place
            or b"/" in place
            or place in (b".", b"..")
        ):
            raise ValueError
        if version == _FURTHER_VERSION and not volume:
            raise ValueError
        whose = None if owner == b"-" else _decode_owner(owner)
        return SetEntry(Inode(int(ino, 16)), whose, _decode_owner(stored), place, volume, int(mode, 8))
    except ValueError:
        raise OSError(errno.EIO, "a set's entry in names/ is damaged") from None


def _encode_owner(owner: Owner) -> bytes:
    return b"%d.%d" % (owner.uid, owner.gid)


def _decode_owner(raw: bytes) -> Owner:
    uid, gid = raw.split(b".")
    return Owner(Uid(int(uid)), Gid(int(gid)))


def on_the_way(name: SetName, entry: SetEntry) -> Iterator[SetEntry]:
    """Where a set's files may be whose *entry* is out of date: under its own name, or with its new owner already."""
    beside = (place_beside(place, entry.ino) for place in (name, entry.place))
    places = dict.fromkeys((entry.place, place_of(name, entry.ino), *beside))
    for stored in dict.fromkeys((entry.stored, entry.owner or entry.stored)):
        for place in places:
            yield replace(entry, stored=stored, place=place)


def place_of(name: bytes, ino: Inode) -> bytes:
    """The name below ``users/<uid>/`` under which the set *name* lies if nothing else has it: its own, mostly."""
    return place_beside(name, ino) if name.startswith(RESERVED) else name


def place_beside(name: bytes, ino: Inode) -> bytes:
    """Another name below ``users/<uid>/`` for the set *name*: nothing else has it, and it still says whose it is."""
    escape = _ESCAPE if name.startswith(RESERVED) else b""
    return b"%s%s~%x" % (escape, name[:230], ino)


_BESIDE = re.compile(rb"~[0-9a-f]{1,16}(?:~copy(?:~[0-9a-f]{16})?|~old)?\Z")


def shown_place(place: bytes) -> str:
    """The name of the set that lies at *place*, for people."""
    return shown(name_beside(_BESIDE.sub(b"", place) or place))


def name_beside(escaped: bytes) -> bytes:
    """The set's name in the first part of what :func:`place_beside` made."""
    return escaped.removeprefix(_ESCAPE) if escaped.startswith(_ESCAPE + RESERVED) else escaped


def place_of_copy(name: bytes, ino: Inode) -> bytes:
    """Where the set *name* is copied to: never taken for the set itself before its entry says so."""
    return place_beside(name, ino) + b"~copy"
