"""What a record says, and why one that says nothing does not."""

from __future__ import annotations

import enum
import os
import re
import stat

from ckfs.model import Owner, Record, State
from ckfs.names import ROOT_INODE, Inode
from ckfs.store import record

_LARGEST = (1 << 63) - 1
_LATER = re.compile(rb"(?:[2-9]|[1-9][0-9]+)[;:]")
_WORDS = re.compile(rb";s=[a-z](?=;)|;k=[a-z]+(?=;)")


class Trouble(enum.Enum):
    MISSING = enum.auto()
    DAMAGED = enum.auto()
    NEWER = enum.auto()


def is_later_version(raw: bytes) -> bool:
    """Whether a record, or an entry in ``names/``, says that it is of a version after this one."""
    return _LATER.match(raw) is not None


def reading(raw: bytes | None, status: os.stat_result) -> Record | Trouble:
    """The record in *raw*, which lies on a file of *status*."""
    if raw is None:
        return Trouble.MISSING
    known = _decoded(raw)
    if isinstance(known, Trouble):
        return known
    fits = known.is_directory == stat.S_ISDIR(status.st_mode) and stat.S_IFMT(known.mode)
    return known if fits and ROOT_INODE < known.ino <= _LARGEST else Trouble.DAMAGED


def reading_of_root(raw: bytes | None) -> Record | Trouble:
    """As :func:`reading`, for what ``names/`` says of the mounts' root."""
    known = Trouble.MISSING if raw is None else _decoded(raw)
    if isinstance(known, Trouble):
        return known
    return known if known.is_directory and known.ino == ROOT_INODE else Trouble.DAMAGED


def _decoded(raw: bytes) -> Record | Trouble:
    known = record.decode(raw)
    if known is None:
        later = is_later_version(raw) or _has_later_words(raw)
        return Trouble.NEWER if later else Trouble.DAMAGED
    return known


def _has_later_words(raw: bytes) -> bool:
    """Whether only its state, or what is kept, is a word that this ckfs does not know."""
    known = _WORDS.sub(lambda match: b";s=c" if match[0].startswith(b";s") else b"", raw)
    return record.decode(known) is not None


def made_up(status: os.stat_result, owner: Owner, ino: Inode | None) -> Record:
    """The record of a file that has lost its own: *owner*'s, of the mode that the file has.

    Nobody knows whether it is whole; and an empty file may have stood for a fifo.
    """
    mode = stat.S_IFMT(status.st_mode) | stat.S_IMODE(status.st_mode) | stat.S_IRUSR | stat.S_IWUSR
    if stat.S_ISDIR(mode):
        return Record(ino or record.new_inode(), owner.uid, owner.gid, mode | stat.S_IXUSR)
    return Record(ino or record.new_inode(), owner.uid, owner.gid, mode, state=State.UNKNOWN)
