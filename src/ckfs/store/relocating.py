"""Copying a set to another volume so that it can be gone on with, and comparing the copy with what it is of.

What a copy that was begun has already stays if its times say that it was finished: they are set last, after its content was synced.
Nothing is trusted for that: everything is read again and compared before the copy becomes the set.

Each step may be made by another thread, and returns how many bytes were read.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from ckfs.names import Inode
from ckfs.store import record
from ckfs.store.copying import copy_file, everything, finish, names_in_directory
from ckfs.store.door import Door
from ckfs.store.identity import acting_as
from ckfs.store.spots import Found, OpenFile, Spot

_PIECE_BYTES = 1 << 20


def copy_on(door: Door, source: Spot, target: Spot) -> Iterator[int]:
    """Copy *source* and all below it to *target*, where a part of it may lie. As :func:`ckfs.store.copying.copy_tree` otherwise."""
    return _copy_on(door, source, target, {})


def _copy_on(door: Door, source: Spot, target: Spot, links: dict[Inode, Spot]) -> Iterator[int]:
    found, there = door.examine(source), door.examine_if_there(target)
    if there is not None and not _is_of(there, found, links):
        door.remove_tree(target)
        there = None
    if found.record.is_directory:
        yield from _directory(door, source, target, found, there, links)
    elif found.record.ino in links:
        door.link(links[found.record.ino], target)
    else:
        if there is None:
            for _ in copy_file(door, source, target, found):
                yield _PIECE_BYTES
        else:
            _without_others(door, source, target, found)
            finish(door, source, target, found)
        if found.stat.st_nlink > 1:
            links[found.record.ino] = target
    yield 0


def _directory(
    door: Door, source: Spot, target: Spot, found: Found, there: Found | None, links: dict[Inode, Spot]
) -> Iterator[int]:
    if there is None:
        door.make_directory(target, lambda _: found.record)
    names = set(names_in_directory(door, source, found))
    if there is not None:
        door.update(target, found.record.ino, lambda _: found.record)
        _without_others(door, source, target, found)
        for name in names_in_directory(door, target, there):
            if name not in names:
                door.remove_tree(target.below(name))
    for name in sorted(names):
        yield from _copy_on(door, source.below(name), target.below(name), links)
    finish(door, source, target, found)


def _is_of(there: Found, found: Found, links: dict[Inode, Spot]) -> bool:
    """Whether *there*, in a copy that was begun, can stay."""
    if found.record.is_directory:
        return there.record.is_directory and there.record.ino == found.record.ino
    is_same = (there.record, there.stat.st_size, there.stat.st_mtime_ns) == (
        found.record,
        found.stat.st_size,
        found.stat.st_mtime_ns,
    )
    return is_same and found.record.ino not in links and there.stat.st_nlink == 1


def _without_others(door: Door, source: Spot, target: Spot, found: Found) -> None:
    """Attributes that were removed since."""
    ino = found.record.ino
    kept = set(door.list_attributes(source, ino))
    for name in door.list_attributes(target, ino):
        if name.startswith(b"user.") and name != record.ATTRIBUTE and name not in kept:
            door.remove_attribute(target, ino, name)


def compare_trees(door: Door, source: Spot, target: Spot) -> Iterator[int]:
    """Read both again, the copy past what this host's memory has of it. OSError (EIO) if they differ."""
    originals, copies = (dict(everything(door, top)) for top in (source, target))
    of_copies = {path: found.record for path, found in copies.items()}
    if {path: found.record for path, found in originals.items()} != of_copies:
        raise BlockingIOError(errno.EAGAIN, "the set changed while it was copied")
    yield 0
    for path, found in originals.items():
        if not found.record.is_directory:
            below = path.split(b"/") if path else []
            yield from _compare(door, source.below(*below), target.below(*below), found)


def _compare(door: Door, source: Spot, target: Spot, found: Found) -> Iterator[int]:
    ino = found.record.ino
    with contextlib.ExitStack() as opened:
        files = [door.open(spot, os.O_RDONLY, ino) for spot in (source, target)]
        for file in files:
            opened.callback(os.close, file.fd)
        with acting_as(target.identity), contextlib.suppress(OSError):
            os.posix_fadvise(files[1].fd, 0, 0, os.POSIX_FADV_DONTNEED)
        offset = 0
        while True:
            length = _compared(files[0], files[1], source, target, offset)
            if not length:
                return
            offset += length
            yield length


def _compared(one: OpenFile, other: OpenFile, source: Spot, target: Spot, offset: int) -> int:
    with acting_as(source.identity):
        piece = os.pread(one.fd, _PIECE_BYTES, offset)
    with acting_as(target.identity):
        copy = os.pread(other.fd, _PIECE_BYTES, offset)
    if piece != copy:
        raise OSError(errno.EIO, "the copy differs from what it is of: it is not used")
    return len(piece)
