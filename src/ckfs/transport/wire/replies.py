"""What the kernel is told: bodies of replies, and the header before them.

No attribute of a file makes these raise: it may have any size and any time, and an exception would leave its caller without an
answer. What does not fit its field becomes the nearest value that does. Handles and node ids are the daemon's own, and are not bent.
"""

from __future__ import annotations

import builtins
import errno
import math
import struct
from typing import NamedTuple

from ckfs.transport.wire import abi
from ckfs.transport.wire.abi import InitFlags

_U16 = (1 << 16) - 1
_U32 = (1 << 32) - 1
_U64 = (1 << 64) - 1
_S64 = (1 << 63) - 1
_NS = 1_000_000_000
_LARGEST_ERRNO = 511
"""The kernel refuses a reply with a larger one, and whoever asked would wait for ever."""
_STATX_BASIC_STATS = 0x7FF
_STATX_BTIME = 0x800


class Attributes(NamedTuple):
    ino: int
    size: int
    blocks: int
    """Of 512 bytes."""
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    """With the type: the kernel answers EIO for a file without one."""
    nlink: int
    uid: int
    gid: int
    rdev: int
    """A dev_t as os.makedev and os.stat have it."""
    blksize: int


def header(unique: int, error: int, body_length: int) -> bytes:
    """The 16 bytes before a body; *error* is an errno, 0 for success. With an error, there must be no body."""
    if not 0 <= error <= _LARGEST_ERRNO:
        error = errno.EIO
    return abi.HEADER_OUT.pack(abi.HEADER_OUT.size + body_length, -error, unique)


def attributes(a: Attributes, valid_s: float) -> bytes:
    """For GETATTR and SETATTR; the kernel may use them for *valid_s*."""
    valid = _duration_of(valid_s)
    try:
        return abi.ATTR_OUT.pack(*valid, *_attr_of(a))
    except struct.error:
        return abi.ATTR_OUT.pack(*valid, *_attr_of(_clamped(a)))


def entry(a: Attributes, nodeid: int, entry_valid_s: float, attr_valid_s: float) -> bytes:
    """For LOOKUP and whatever makes a name: one more lookup of *nodeid*, that FORGET will count down.

    Node 0 says that there is no such name, which the kernel may remember for *entry_valid_s*.
    """
    front = _entry_front(nodeid, entry_valid_s, attr_valid_s)
    try:
        return abi.ENTRY_OUT.pack(*front, *_attr_of(a))
    except struct.error:
        return abi.ENTRY_OUT.pack(*front, *_attr_of(_clamped(a)))


def opened(fh: int, flags: int, backing_id: int = 0) -> bytes:
    """For OPEN and OPENDIR, with flags of :class:`OpenFlags`; *backing_id* counts with PASSTHROUGH only."""
    return abi.OPEN_OUT.pack(fh, flags, backing_id)


def created(
    a: Attributes,
    nodeid: int,
    entry_valid_s: float,
    attr_valid_s: float,
    fh: int,
    flags: int,
    backing_id: int = 0,
) -> bytes:
    """For CREATE and TMPFILE."""
    return entry(a, nodeid, entry_valid_s, attr_valid_s) + opened(fh, flags, backing_id)


def written(count: int) -> bytes:
    """For WRITE and COPY_FILE_RANGE: how many bytes."""
    return abi.WRITE_OUT.pack(_within(count, _U32))


def whole_written(unique: int, count: int) -> bytes:
    """All of the answer to a WRITE, header included; *count* was asked for, so that it fits."""
    return abi.WHOLE_WRITE_OUT.pack(abi.WHOLE_WRITE_OUT.size, 0, unique, count)


def copied(count: int) -> bytes:
    """For COPY_FILE_RANGE_64: how many bytes."""
    return abi.COPY_FILE_RANGE_OUT.pack(_within(count, _U64))


def statfs(
    blocks: int, bfree: int, bavail: int, files: int, ffree: int, bsize: int, namelen: int, frsize: int
) -> bytes:
    """Counts of blocks are in units of *frsize*."""
    large = (_within(value, _U64) for value in (blocks, bfree, bavail, files, ffree))
    small = (_within(value, _U32) for value in (bsize, namelen, frsize))
    return abi.STATFS_OUT.pack(*large, *small)


def xattr_size(n: int) -> bytes:
    """For GETXATTR and LISTXATTR of size 0: the room that the value needs."""
    return abi.GETXATTR_OUT.pack(_within(n, _U32))


def lock(start: int, end: int, kind: int, pid: int) -> bytes:
    """For GETLK: the lock in the way, up to and with byte *end*, or F_UNLCK."""
    return abi.LK_OUT.pack(_within(start, _S64), _within(end, _S64), _within(kind, _U32), _within(pid, _U32))


def sought(offset: int) -> bytes:
    """For LSEEK."""
    return abi.LSEEK_OUT.pack(_within(offset, _S64))


def statx(a: Attributes, btime_ns: int | None, valid_s: float) -> bytes:
    """For STATX: everything of *a*, and the time of birth if it is known. Of no device: the kernel fills in the mount's."""
    a = _clamped(a)
    valid, valid_nsec = _duration_of(valid_s)
    return abi.STATX_OUT.pack(
        valid,
        valid_nsec,
        0,
        _STATX_BASIC_STATS if btime_ns is None else _STATX_BASIC_STATS | _STATX_BTIME,
        a.blksize,
        0,
        a.nlink,
        a.uid,
        a.gid,
        a.mode & _U16,
        a.ino,
        a.size,
        a.blocks,
        0,
        *divmod(a.atime_ns, _NS),
        *divmod(0 if btime_ns is None else _time_within(btime_ns), _NS),
        *divmod(a.ctime_ns, _NS),
        *divmod(a.mtime_ns, _NS),
        _major_of(a.rdev),
        _minor_of(a.rdev),
        0,
        0,
    )


def init(
    *,
    minor: int,
    max_readahead: int,
    flags: InitFlags,
    max_background: int,
    congestion_threshold: int,
    max_write: int,
    time_gran: int,
    max_pages: int,
    max_stack_depth: int,
    request_timeout_s: int,
) -> bytes:
    """The 64 bytes that a kernel of minor version 23 or later expects."""
    return abi.INIT_OUT.pack(
        abi.MAJOR,
        _within(minor, _U32),
        _within(max_readahead, _U32),
        flags & _U32,
        _within(max_background, _U16),
        _within(congestion_threshold, _U16),
        _within(max_write, _U32),
        _within(time_gran, _U32),
        _within(max_pages, _U16),
        0,
        flags >> 32,
        _within(max_stack_depth, _U32),
        _within(request_timeout_s, _U16),
    )


class Listing:
    """The body of an answer to READDIR or READDIRPLUS, of at most *room* bytes."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._content = bytearray()

    def add(self, name: bytes, next_offset: int, ino: int, mode: int) -> bool:
        """Add an entry of READDIR, unless it has no room; *next_offset* is where a listing goes on after it."""
        if not self._fits(abi.DIRENT.size + len(name)):
            return False
        self._content += abi.DIRENT.pack(*_dirent_of(name, next_offset, ino, mode))
        self._finish(name)
        return True

    def add_plus(
        self,
        name: bytes,
        next_offset: int,
        a: Attributes,
        nodeid: int,
        entry_valid_s: float,
        attr_valid_s: float,
    ) -> bool:
        """Add an entry of READDIRPLUS, unless it has no room: one more lookup of *nodeid*, as :func:`entry` is.

        The kernel counts none for node 0, which says "look it up yourself", and for ``.`` and ``..``, whatever their node.
        """
        if not self._fits(abi.DIRENTPLUS.size + len(name)):
            return False
        front = _entry_front(nodeid, entry_valid_s, attr_valid_s)
        back = _dirent_of(name, next_offset, a.ino, a.mode)
        try:
            self._content += abi.DIRENTPLUS.pack(*front, *_attr_of(a), *back)
        except struct.error:
            self._content += abi.DIRENTPLUS.pack(*front, *_attr_of(_clamped(a)), *back)
        self._finish(name)
        return True

    def bytes(self) -> builtins.bytes:
        """Empty where the directory ends."""
        return bytes(self._content)

    def _fits(self, length: int) -> bool:
        return len(self._content) + length + -length % 8 <= self._room

    def _finish(self, name: builtins.bytes) -> None:
        self._content += name
        self._content += bytes(-len(self._content) % 8)


def _attr_of(a: Attributes) -> tuple[int, ...]:
    """The fields of struct fuse_attr, which fit or make pack raise."""
    atime, atime_nsec = divmod(a.atime_ns, _NS)
    mtime, mtime_nsec = divmod(a.mtime_ns, _NS)
    ctime, ctime_nsec = divmod(a.ctime_ns, _NS)
    return (
        a.ino,
        min(a.size, _S64),  # more than an off_t makes the kernel answer EIO
        a.blocks,
        atime,
        mtime,
        ctime,
        atime_nsec,
        mtime_nsec,
        ctime_nsec,
        a.mode,
        a.nlink,
        a.uid,
        a.gid,
        _encoded_dev(a.rdev) if a.rdev else 0,
        a.blksize,
        0,
    )


def _entry_front(nodeid: int, entry_valid_s: float, attr_valid_s: float) -> tuple[int, ...]:
    entry_valid, entry_nsec = _duration_of(entry_valid_s)
    attr_valid, attr_nsec = _duration_of(attr_valid_s)
    return nodeid, 0, entry_valid, attr_valid, entry_nsec, attr_nsec


def _dirent_of(name: bytes, next_offset: int, ino: int, mode: int) -> tuple[int, int, int, int]:
    return _within(ino, _U64), _within(next_offset, _S64), len(name), mode >> 12 & 0o17


def _clamped(a: Attributes) -> Attributes:
    return Attributes(
        ino=_within(a.ino, _U64),
        size=_within(a.size, _S64),
        blocks=_within(a.blocks, _U64),
        atime_ns=_time_within(a.atime_ns),
        mtime_ns=_time_within(a.mtime_ns),
        ctime_ns=_time_within(a.ctime_ns),
        mode=_within(a.mode, _U32),
        nlink=_within(a.nlink, _U32),
        uid=_within(a.uid, _U32),
        gid=_within(a.gid, _U32),
        rdev=_within(a.rdev, _U64),
        blksize=_within(a.blksize, _U32),
    )


def _within(value: int, most: int) -> int:
    return 0 if value < 0 else min(value, most)


def _time_within(when_ns: int) -> int:
    """A time whose seconds fit 64 bits."""
    return max((-_S64 - 1) * _NS, min(when_ns, _S64 * _NS + _NS - 1))


def _duration_of(seconds: float) -> tuple[int, int]:
    """Seconds and ns; whatever is no duration is none."""
    if not seconds > 0:
        return 0, 0
    if seconds >= _S64:
        return _S64, 0
    fraction, whole = math.modf(seconds)
    return int(whole), int(fraction * _NS)


# glibc's dev_t: 12 bits of the minor number's upper part, 20 of the major's, 12 of the major, 8 of the minor.


def _major_of(device: int) -> int:
    return device >> 8 & 0xFFF | device >> 32 & 0xFFFFF000


def _minor_of(device: int) -> int:
    return device & 0xFF | device >> 12 & 0xFFFFFF00


def _encoded_dev(device: int) -> int:
    """As the kernel's new_encode_dev packs it, which has no room for more than 12 bits of major and 20 of minor."""
    major, minor = min(_major_of(device), 0xFFF), min(_minor_of(device), 0xFFFFF)
    return minor & 0xFF | major << 8 | (minor & 0xFFF00) << 12
