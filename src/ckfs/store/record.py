"""What ckfs keeps with every file of the store: one small attribute, readable with getfattr.

The store's file belongs to the set's owner with mode 0600 or 0700; what callers see of it is in the record. For example::

    user.ckfs="1;i=5f3a90c1e2d4b687;u=2101;g=2101;m=100400;r=0;s=c;n=tqn1"

A field that a later version adds goes before ``n``; a reader ignores fields that it does not know. ``c`` (completed), ``y``
(synced), ``k`` (keep) and ``d`` (damaged) are there only if they say something.
"""

from __future__ import annotations

import functools
import secrets
import stat

from ckfs.model import Keep, Record, State
from ckfs.names import Gid, Inode, Uid

ATTRIBUTE = b"user.ckfs"
"""The attribute's name in the store. ``user.ckfs.*`` through a mount is made up, never stored."""

_VERSION = b"1"
_MOST_DECODED = 4096
"""Records that were decoded lately, which are decoded at once: all of a set are looked at again and again."""
_STATES = {
    State.WRITING: b"w",
    State.COMPLETE: b"c",
    State.PARTIAL: b"p",
    State.SUPERSEDED: b"s",
    State.UNKNOWN: b"u",
}
_STATE_OF = {letter: state for state, letter in _STATES.items()}


def encode(record: Record) -> bytes:
    return b"%s;i=%x;u=%d;g=%d;m=%o;r=%x;s=%s%s;n=%s" % (
        _VERSION,
        record.ino,
        record.uid,
        record.gid,
        record.mode,
        record.rdev,
        _STATES[record.state],
        _encode_rest(record),
        record.node,
    )


def _encode_rest(record: Record) -> bytes:
    rest = b";c=%x" % record.completed if record.completed else b""
    if record.synced is not None:
        rest += b";y=%x.%x" % record.synced
    if record.keep is not Keep.BY_RULE:
        rest += b";k=%s" % record.keep.value.encode()
    if record.damaged:
        rest += b";d=%x" % record.damaged
    return rest


@functools.lru_cache(maxsize=_MOST_DECODED)
def decode(raw: bytes) -> Record | None:
    """The record in *raw*; None if it is of no version that this ckfs knows, or damaged."""
    head, _, node = raw.partition(b";n=")
    version, *pairs = head.split(b";")
    fields = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
    try:
        if version != _VERSION:
            return None
        return Record(
            ino=Inode(int(fields[b"i"], 16)),
            uid=Uid(int(fields[b"u"])),
            gid=Gid(int(fields[b"g"])),
            mode=int(fields[b"m"], 8),
            rdev=int(fields[b"r"], 16),
            state=_STATE_OF[fields[b"s"]],
            node=node,
            completed=int(fields.get(b"c", b"0"), 16),
            synced=_decode_synced(fields.get(b"y")),
            keep=Keep(fields.get(b"k", b"").decode()),
            damaged=int(fields.get(b"d", b"0"), 16),
        )
    except (KeyError, ValueError):
        return None


def _decode_synced(raw: bytes | None) -> tuple[int, int] | None:
    if raw is None:
        return None
    size, mtime_ns = raw.split(b".")
    return int(size, 16), int(mtime_ns, 16)


def new_inode() -> Inode:
    """A number that no other file of any mount has: 63 random bits, so that mounts need not agree on anything.

    With ten million files the chance that any two are equal is below 1 in 100,000.
    """
    return Inode(secrets.randbits(62) + 2)  # 0 means "none" to FUSE, and 1 is the mount's root


def adopted(store_stat_mode: int, uid: int, gid: int, size: int) -> Record:
    """The record of a file that has none: put there by an admin, or made by a mount that died between two calls.

    Nobody knows whether the former's are whole; the latter's are empty, and no complete image.
    """
    state = State.COMPLETE
    if stat.S_ISREG(store_stat_mode):
        state = State.UNKNOWN if size else State.WRITING
    return Record(new_inode(), Uid(uid), Gid(gid), store_stat_mode, state=state)
