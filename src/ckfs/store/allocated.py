"""What of a file was allocated beyond its data (fallocate): a note beside its record, by which it is charged.

Where nobody has written yet, a file system says that there are holes (lseek), and behind the file's end it keeps room of its own
accord, too (XFS), so that nothing but this tells what somebody has asked for. A note has the parts of the file, in bytes, half-open and
in order, for example::

    user.ckfs.allocated="0-10485760,20971520-20975616"

It is made before anything is allocated, and taken back after that is free: whoever dies in between pays for what he may not have,
until the file is truncated, or the part is punched. What was written of it since is in it, too.

Synchronous, as the owner of the file, and with the file's lock (:mod:`ckfs.store.alone`) where it is changed.
"""

from __future__ import annotations

import contextlib
import re

from ckfs.store import attributes

ATTRIBUTE = b"user.ckfs.allocated"
MOST = 32
"""So many parts are noted of one file: all of its attributes may have to fit into a block (ext4)."""

Parts = tuple[tuple[int, int], ...]
"""Disjoint, in order, and none touches another."""

_PARTS = re.compile(rb"\d{1,19}-\d{1,19}(,\d{1,19}-\d{1,19})*")


def of(where: attributes.Where) -> Parts:
    """Of a file; none if what is noted is damaged."""
    raw = attributes.get_or_none(where, ATTRIBUTE)
    if raw is None or not _PARTS.fullmatch(raw):
        return ()
    parts = [part.split(b"-") for part in raw.split(b",")]
    return _joined([(int(begin), int(end)) for begin, end in parts])


def note(fd: int, parts: Parts) -> None:
    if parts:
        attributes.put(fd, ATTRIBUTE, b",".join(b"%d-%d" % part for part in parts))
        return
    with contextlib.suppress(OSError):  # there is none
        attributes.remove(fd, ATTRIBUTE)


def cut(fd: int, end: int) -> None:
    """Nothing is allocated beyond *end* any more. What cannot be noted is charged on."""
    with contextlib.suppress(OSError):
        parts = of(fd)
        if parts and parts[-1][1] > end:
            note(fd, without(parts, end, parts[-1][1]))


def having(parts: Parts, begin: int, end: int) -> Parts:
    return _joined([*parts, (begin, end)])


def without(parts: Parts, begin: int, end: int) -> Parts:
    left = [(since, min(upto, begin)) for since, upto in parts]
    right = [(max(since, end), upto) for since, upto in parts]
    return _joined([*left, *right])


def _joined(parts: list[tuple[int, int]]) -> Parts:
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(parts):
        if begin >= end:
            continue
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return tuple(joined)
