"""What is known of something that lies in the trash: one attribute on it, readable with getfattr.

For example, on one line::

    user.ckfs.trash="1;u=2101;t=17f3a90c1e2d4b68;o=2101.2101;i=5f3a90c1e2d4b687;n=tqn1;x=/usr/bin/rm;
                     s=12.server.CK;p=ckpt.12.server.1700000000"

Names are percent-encoded, so that any bytes fit. A reader ignores fields that it does not know.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ckfs.model import Owner
from ckfs.names import Gid, Inode, SetName, Uid
from ckfs.store.spots import Found, Spot

ATTRIBUTE = b"user.ckfs.trash"

_VERSION = b"1"
_LONGEST_BYTES = 2048
"""ext4 has about 4000 bytes for all attributes of a file, and the users' own must stay."""


@dataclass(frozen=True, slots=True)
class Note:
    """Who removed it (*uid*), when (ns since the epoch), from which node, by which program (absolute path; empty if
    unknown); and what it was: *path* in the set *set_name* (empty: the whole set) of *owner* (None: unclaimed)."""

    uid: Uid
    when_ns: int
    node: bytes
    program: bytes
    set_name: SetName
    path: bytes
    owner: Owner | None
    ino: Inode


@dataclass(frozen=True, slots=True)
class Item:
    """Something in the trash, at *spot*."""

    spot: Spot
    found: Found
    note: Note

    @property
    def token(self) -> str:
        """What commands call it by."""
        return self.spot.components[-1].decode("utf-8", "surrogateescape")

    @property
    def when_ns(self) -> int:
        return self.note.when_ns

    @property
    def has_other_name(self) -> bool:
        """The file is still, or again, somewhere else: only a link of it lies here, and nothing was lost.

        So it is between a link made for a rename and that rename, for ever if the mount died there, and for one of
        several names of a file.
        """
        return not self.found.record.is_directory and self.found.stat.st_nlink > 1


@dataclass(frozen=True, slots=True)
class Damaged:
    """Something in the trash of which ckfs cannot tell what it was; *when_ns*: since when it is there, about."""

    spot: Spot
    when_ns: int
    reason: str

    @property
    def token(self) -> str:
        return self.spot.components[-1].decode("utf-8", "surrogateescape")


def encode(note: Note) -> bytes:
    owner = "-" if note.owner is None else f"{note.owner.uid}.{note.owner.gid}"
    names = ";".join(
        f"{key}={quote_from_bytes(value)}"
        for key, value in (("n", note.node), ("x", note.program), ("s", note.set_name), ("p", note.path))
    )
    return _VERSION + f";u={note.uid};t={note.when_ns:x};o={owner};i={note.ino:x};{names}".encode()


def fitted(note: Note) -> Note:
    """*note*, short enough for an attribute: the program goes first, then the directories that it lay in."""
    if len(encode(note)) > _LONGEST_BYTES:
        note = dataclasses.replace(note, program=b"")
    if len(encode(note)) > _LONGEST_BYTES:
        note = dataclasses.replace(note, path=note.path.rpartition(b"/")[2])
    return note


def decode(raw: bytes) -> Note | None:
    """The note in *raw*; None if it is of no version that this ckfs knows, or damaged."""
    version, *pairs = raw.split(b";")
    fields = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
    try:
        if version != _VERSION:
            return None
        note = Note(
            uid=Uid(int(fields[b"u"])),
            when_ns=int(fields[b"t"], 16),
            node=unquote_to_bytes(fields[b"n"]),
            program=unquote_to_bytes(fields[b"x"]),
            set_name=SetName(unquote_to_bytes(fields[b"s"])),
            path=unquote_to_bytes(fields[b"p"]),
            owner=_decode_owner(fields[b"o"]),
            ino=Inode(int(fields[b"i"], 16)),
        )
    except (KeyError, ValueError):
        return None
    return note if _is_sound(note) else None


def _decode_owner(raw: bytes) -> Owner | None:
    if raw == b"-":
        return None
    uid, gid = raw.split(b".")
    return Owner(Uid(int(uid)), Gid(int(gid)))


def _is_sound(note: Note) -> bool:
    """No name in it leads anywhere else when something is restored by it."""
    components = [note.set_name, *(note.path.split(b"/") if note.path else ())]
    return not any(name in (b"", b".", b"..") or b"\0" in name for name in components) and b"/" not in bytes(
        note.set_name
    )
