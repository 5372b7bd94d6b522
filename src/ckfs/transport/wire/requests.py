"""What the kernel asks: a value per kind of request, and the header before each; :mod:`.decoding` makes them of bytes.

They are NamedTuples because those are made fastest.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, TypeAlias

from ckfs.transport.wire import abi


class Malformed(ValueError):
    """Bytes that are no request of this protocol. Answer EIO, if there is a header to answer to."""


class Unsupported(Exception):
    """A kind of request that is unknown, or was never agreed on. Answer ENOSYS."""


class Header(NamedTuple):
    length: int
    """Of the whole message in bytes, this header included."""
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    extensions_length: int
    """Of what follows the body proper, in units of 8 bytes."""


class Lookup(NamedTuple):
    name: bytes


class Forget(NamedTuple):
    count: int  # type: ignore[assignment]  # a tuple's method of this name is no loss here


class BatchForget(NamedTuple):
    items: list[tuple[int, int]]
    """Node ids and how many lookups of each are forgotten."""


class Getattr(NamedTuple):
    fh: int | None


class Setattr(NamedTuple):
    """Each field is None unless its bit of *valid* is set; times are in ns and may be negative."""

    valid: int
    fh: int | None
    size: int | None
    lock_owner: int | None
    atime: int | None
    mtime: int | None
    ctime: int | None
    atime_now: bool
    mtime_now: bool
    mode: int | None
    uid: int | None
    gid: int | None
    kill_suidgid: bool


class Readlink(NamedTuple):
    pass


class Symlink(NamedTuple):
    name: bytes
    target: bytes


class Mknod(NamedTuple):
    mode: int
    rdev: int
    """As the kernel packs it (12 bits of major, 20 of minor), which is what glibc's makedev makes of the same two."""
    umask: int
    name: bytes


class Mkdir(NamedTuple):
    mode: int
    umask: int
    name: bytes


class Unlink(NamedTuple):
    name: bytes


class Rmdir(NamedTuple):
    name: bytes


class Rename(NamedTuple):
    """RENAME, whose flags are 0, and RENAME2."""

    new_parent: int
    flags: int
    old: bytes
    new: bytes


class Link(NamedTuple):
    node: int
    name: bytes


class Open(NamedTuple):
    flags: int
    kill_suidgid: bool


class Opendir(NamedTuple):
    flags: int


class Create(NamedTuple):
    flags: int
    mode: int
    umask: int
    name: bytes
    kill_suidgid: bool


class Tmpfile(NamedTuple):
    """O_TMPFILE; the name says nothing: the kernel's nameless entry is called ``/``."""

    flags: int
    mode: int
    umask: int
    name: bytes
    kill_suidgid: bool


class Read(NamedTuple):
    fh: int
    offset: int
    size: int
    flags: int
    lock_owner: int | None


class Write(NamedTuple):
    fh: int
    offset: int
    flags: int
    """FUSE_WRITE_*."""
    open_flags: int
    lock_owner: int | None
    data: memoryview
    """A part of the body: as long as that is valid."""


class Statfs(NamedTuple):
    pass


class Release(NamedTuple):
    fh: int
    flags: int
    flush: bool
    flock_unlock: bool
    lock_owner: int


class Releasedir(NamedTuple):
    fh: int


class Fsync(NamedTuple):
    fh: int
    data_only: bool


class Fsyncdir(NamedTuple):
    fh: int
    data_only: bool


class Setxattr(NamedTuple):
    name: bytes
    value: bytes
    flags: int
    """XATTR_CREATE or XATTR_REPLACE."""


class Getxattr(NamedTuple):
    name: bytes
    size: int
    """The room for the value; 0 asks how long it is."""


class Listxattr(NamedTuple):
    size: int


class Removexattr(NamedTuple):
    name: bytes


class Flush(NamedTuple):
    fh: int
    lock_owner: int


class Init(NamedTuple):
    major: int
    minor: int
    max_readahead: int
    flags: int
    """All 64 bits; those from 32 on are 0 unless the kernel set INIT_EXT."""


class Destroy(NamedTuple):
    pass


class Readdir(NamedTuple):
    fh: int
    offset: int
    size: int


class Readdirplus(NamedTuple):
    fh: int
    offset: int
    size: int


class Access(NamedTuple):
    mask: int


class Lock(NamedTuple):
    """GETLK, SETLK and SETLKW: the opcode says which."""

    fh: int
    owner: int
    start: int
    end: int
    """The last byte, inclusive."""
    kind: int
    """F_RDLCK, F_WRLCK or F_UNLCK."""
    pid: int
    is_flock: bool


class Interrupt(NamedTuple):
    unique: int
    """Of the request that nobody waits for any more."""


class Bmap(NamedTuple):
    block: int
    blocksize: int


class Ioctl(NamedTuple):
    fh: int
    flags: int
    cmd: int


class Poll(NamedTuple):
    fh: int


class Fallocate(NamedTuple):
    fh: int
    offset: int
    length: int
    mode: int


class Lseek(NamedTuple):
    fh: int
    offset: int
    whence: int


class CopyFileRange(NamedTuple):
    """COPY_FILE_RANGE, answered by ``replies.written``, and COPY_FILE_RANGE_64, by ``replies.copied``."""

    fh_in: int
    offset_in: int
    node_out: int
    fh_out: int
    offset_out: int
    length: int
    flags: int


class Statx(NamedTuple):
    fh: int | None
    flags: int
    mask: int


class Syncfs(NamedTuple):
    pass


Request: TypeAlias = (
    Lookup
    | Forget
    | BatchForget
    | Getattr
    | Setattr
    | Readlink
    | Symlink
    | Mknod
    | Mkdir
    | Unlink
    | Rmdir
    | Rename
    | Link
    | Open
    | Opendir
    | Create
    | Tmpfile
    | Read
    | Write
    | Statfs
    | Release
    | Releasedir
    | Fsync
    | Fsyncdir
    | Setxattr
    | Getxattr
    | Listxattr
    | Removexattr
    | Flush
    | Init
    | Destroy
    | Readdir
    | Readdirplus
    | Access
    | Lock
    | Interrupt
    | Bmap
    | Ioctl
    | Poll
    | Fallocate
    | Lseek
    | CopyFileRange
    | Statx
    | Syncfs
)

_HEADER_BYTES = abi.HEADER_IN.size


def header_of(view: memoryview) -> Header:
    """The header of the message that *view* begins with and holds all of."""
    try:
        header = tuple.__new__(Header, abi.HEADER_IN.unpack_from(view))
    except struct.error:
        raise Malformed(
            f"a message of {len(view)} bytes has no header, which takes {_HEADER_BYTES}"
        ) from None
    if not _HEADER_BYTES <= header.length <= len(view):
        raise Malformed(f"a message of {len(view)} bytes says that it has {header.length}")
    return header
