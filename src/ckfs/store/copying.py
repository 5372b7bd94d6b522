"""Copying a tree of the store to another identity, with all that ckfs and the users keep with its files."""

from __future__ import annotations

import contextlib
import os

from ckfs.model import Owner
from ckfs.names import Inode
from ckfs.store import record
from ckfs.store.door import Door, Found, OpenFile, Spot, Times
from ckfs.store.identity import acting_as
from ckfs.store.syscalls import names_in

_PIECE_BYTES = 1 << 20


Contents = dict[bytes, tuple[Inode, int, int]]
"""Of each file below a directory: its number, size in bytes, and mtime in ns."""


def contents(door: Door, source: Spot) -> Contents:
    """What is there now, to see later whether anything changed."""
    found = door.examine(source)
    files = door.files_below(source) if found.record.is_directory else iter([(b"", found)])
    return {path: (file.record.ino, file.stat.st_size, file.stat.st_mtime_ns) for path, file in files}


def copy_tree(door: Door, source: Spot, target: Spot) -> None:
    """Copy *source* and all below it to *target*; what an earlier attempt left there is replaced.

    Numbers, presented owners and modes, attributes, times and hard links are as before. OSError (EAGAIN) if a file
    changed while it was copied.
    """
    with contextlib.suppress(FileNotFoundError):
        door.remove_tree(target)
    _copy(door, source, target, {})


def _copy(door: Door, source: Spot, target: Spot, links: dict[Inode, Spot]) -> None:
    found = door.examine(source)
    if found.record.is_directory:
        door.make_directory(target, lambda _: found.record)
        for name in _names(door, source, found):
            _copy(door, _inside(source, name), _inside(target, name), links)
        _finish(door, source, target, found)
    elif found.record.ino in links:
        door.link(links[found.record.ino], target)
    else:
        _copy_file(door, source, target, found)
        if found.stat.st_nlink > 1:
            links[found.record.ino] = target


def _inside(directory: Spot, name: bytes) -> Spot:
    return Spot(directory.identity, (*directory.components, name))


def _names(door: Door, source: Spot, found: Found) -> list[bytes]:
    opened = door.open(source, os.O_RDONLY | os.O_DIRECTORY, found.record.ino)
    try:
        return list(names_in(opened.fd))
    finally:
        os.close(opened.fd)


def _copy_file(door: Door, source: Spot, target: Spot, found: Found) -> None:
    reading = door.open(source, os.O_RDONLY, found.record.ino)
    try:
        fd, _ = door.make_file(target, lambda _: found.record, os.O_WRONLY)
        writing = OpenFile(fd)
        try:
            _copy_content(reading, writing, target.identity)
        finally:
            os.close(fd)
        now = door.examine(reading)
        if (now.stat.st_size, now.stat.st_mtime_ns) != (found.stat.st_size, found.stat.st_mtime_ns):
            raise BlockingIOError("the file is being written")
    finally:
        os.close(reading.fd)
    _finish(door, source, target, found)


def _copy_content(reading: OpenFile, writing: OpenFile, identity: Owner) -> None:
    offset = 0
    with acting_as(identity):
        while piece := os.pread(reading.fd, _PIECE_BYTES, offset):
            if piece.strip(b"\0"):  # holes stay holes
                written = 0
                while written < len(piece):
                    written += os.pwrite(writing.fd, piece[written:], offset + written)
            offset += len(piece)
        os.ftruncate(writing.fd, offset)
        os.fsync(writing.fd)


def _finish(door: Door, source: Spot, target: Spot, found: Found) -> None:
    """The users' attributes, and the times, which everything before has moved."""
    ino = found.record.ino
    for name in door.list_attributes(source, ino):
        if name.startswith(b"user.") and name != record.ATTRIBUTE:
            door.set_attribute(target, ino, name, door.get_attribute(source, ino, name))
    times = Times(found.stat.st_atime_ns, found.stat.st_mtime_ns)
    door.update(target, found.record.ino, lambda unchanged: unchanged, times=times)
