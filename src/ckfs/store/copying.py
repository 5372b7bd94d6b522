"""Copying a tree of the store to another identity, with all that ckfs and the users keep with its files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from ckfs.model import Owner, Record, State
from ckfs.names import Inode
from ckfs.store import allocated, digests, record, walks
from ckfs.store.door import Door
from ckfs.store.identity import acting_as
from ckfs.store.spots import Found, OpenFile, Spot, Times
from ckfs.store.syscalls import names_in

_PIECE_BYTES = 1 << 20

Contents = dict[bytes, tuple[Record, int, int, int]]
"""Of a file or directory and all below it: record, size in bytes, mtime and ctime in ns, by path.

The ctime tells of what the others do not: links, attributes, new and renamed files of every kind.
"""
Attributes = dict[bytes, dict[bytes, bytes]]
"""The users' attributes of the same, and what ckfs keeps beside a record, but for digests: these may come at any time, and are of what was there
before."""


def contents(door: Door, source: Spot) -> Contents:
    """What is there now, to see later whether anything changed."""
    return {path: _fingerprint(found) for path, found in everything(door, source)}


def attributes_in(door: Door, source: Spot) -> Attributes:
    """As they are now."""
    return {path: _attributes_of(door, _at(source, path), found) for path, found in everything(door, source)}


def _at(top: Spot, path: bytes) -> Spot:
    return top.below(*filter(None, path.split(b"/")))


def _attributes_of(door: Door, source: Spot, found: Found) -> dict[bytes, bytes]:
    ino = found.record.ino
    kept = (name for name in _copied_attributes(door, source, ino) if name != digests.ATTRIBUTE)
    return {name: door.get_attribute(source, ino, name) for name in kept}


def _copied_attributes(door: Door, source: Spot, ino: Inode) -> list[bytes]:
    names = door.list_attributes(source, ino)
    of_the_file = (record.ATTRIBUTE, allocated.ATTRIBUTE)  # of a copy nothing is allocated
    return [name for name in names if name.startswith(b"user.") and name not in of_the_file]


def writers(door: Door, source: Spot) -> dict[bytes, set[bytes]]:
    """The nodes that say that they are writing, with the images that they say it of."""
    writing: dict[bytes, set[bytes]] = {}
    for path, found in everything(door, source):
        if found.record.is_regular and found.record.state is State.WRITING:
            writing.setdefault(found.record.node, set()).add(path)
    return writing


def everything(door: Door, source: Spot) -> Iterator[tuple[bytes, Found]]:
    """*source*, whose path is empty, and all below it."""
    found = door.examine(source)
    yield b"", found
    if found.record.is_directory:
        yield from walks.everything(door, source)


def _fingerprint(found: Found) -> tuple[Record, int, int, int]:
    status = found.stat
    return found.record, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def copy_tree(door: Door, source: Spot, target: Spot) -> Iterator[None]:
    """Copy *source* and all below it to *target*, where nothing is, a piece at each step.

    Numbers, presented owners and modes, attributes, times and hard links are as before. OSError (EAGAIN) if a file
    changed while it was copied. Each step may be made by another thread: none ends in somebody's identity.
    """
    return _copy(door, source, target, {})


def _copy(door: Door, source: Spot, target: Spot, links: dict[Inode, Spot]) -> Iterator[None]:
    found = door.examine(source)
    if found.record.is_directory:
        door.make_directory(target, lambda _: found.record)
        for name in names_in_directory(door, source, found):
            yield from _copy(door, _inside(source, name), _inside(target, name), links)
        finish(door, source, target, found)
    elif found.record.ino in links:
        door.link(links[found.record.ino], target)
    else:
        yield from copy_file(door, source, target, found)
        if found.stat.st_nlink > 1:
            links[found.record.ino] = target
    yield


def _inside(directory: Spot, name: bytes) -> Spot:
    return directory.below(name)


def names_in_directory(door: Door, source: Spot, found: Found) -> list[bytes]:
    """What is in the directory *source*."""
    # As whose it is: GlusterFS asks who reads a directory at every read.
    with door.opened(source, os.O_RDONLY | os.O_DIRECTORY, found.record.ino) as fd:
        return list(names_in(fd))


def copy_file(door: Door, source: Spot, target: Spot, found: Found) -> Iterator[None]:
    """Copy the one file *source*, which is *found*, a piece at each step; its times come last, when its content is safe."""
    reading = door.open(source, os.O_RDONLY, found.record.ino)
    try:
        fd, _ = door.make_file(target, lambda _: found.record, os.O_WRONLY)
        try:
            yield from _copy_content(reading, OpenFile(fd), target.identity)
        finally:
            os.close(fd)
        if _fingerprint(door.examine(reading)) != _fingerprint(found):
            raise BlockingIOError(errno.EAGAIN, "a file changed while it was copied")
    finally:
        os.close(reading.fd)
    finish(door, source, target, found)


def _copy_content(reading: OpenFile, writing: OpenFile, identity: Owner) -> Iterator[None]:
    offset = 0
    while length := _copy_piece(reading, writing, offset, identity):
        offset += length
        yield
    with acting_as(identity):
        os.ftruncate(writing.fd, offset)
        os.fsync(writing.fd)


def _copy_piece(reading: OpenFile, writing: OpenFile, offset: int, identity: Owner) -> int:
    with acting_as(identity):
        piece = os.pread(reading.fd, _PIECE_BYTES, offset)
        if piece.strip(b"\0"):  # holes stay holes
            written = 0
            while written < len(piece):
                written += os.pwrite(writing.fd, piece[written:], offset + written)
        return len(piece)


def finish(door: Door, source: Spot, target: Spot, found: Found) -> None:
    """The users' attributes, and the times, which everything before has moved."""
    ino = found.record.ino
    for name in _copied_attributes(door, source, ino):
        door.set_attribute(target, ino, name, door.get_attribute(source, ino, name))
    times = Times(found.stat.st_atime_ns, found.stat.st_mtime_ns)
    door.update(target, found.record.ino, lambda unchanged: unchanged, times=times)
