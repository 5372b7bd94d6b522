"""Where a test of the suite works: a plain directory (the control), inside a set of a mount, or at the mount's root.

The same function runs in all three, so that a mount is compared with what the machine's own file system does.
What design.md makes different on purpose is asked of a :class:`Place`, never guessed.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from tests.support.users import ROOT

FILE, DIRECTORY, SYMLINK, FIFO, SOCKET, CHAR, BLOCK = ALL_TYPES = (
    "file",
    "dir",
    "symlink",
    "fifo",
    "socket",
    "char",
    "block",
)
NOT_DIRECTORIES = tuple(t for t in ALL_TYPES if t != DIRECTORY)
NOT_SYMLINKS = tuple(t for t in ALL_TYPES if t != SYMLINK)

TYPE_BITS = {
    FILE: stat.S_IFREG,
    DIRECTORY: stat.S_IFDIR,
    SYMLINK: stat.S_IFLNK,
    FIFO: stat.S_IFIFO,
    SOCKET: stat.S_IFSOCK,
    CHAR: stat.S_IFCHR,
    BLOCK: stat.S_IFBLK,
}
NULL_DEVICE = os.makedev(1, 3)
"""The character device of /dev/null; as a block device 1:3 is a RAM disk that is never opened here."""


@dataclass(frozen=True)
class Place:
    """A parent directory (root's, 01777) and the names in it that belong to one test.

    ``top`` is that directory. At the mount's root it is shared by all tests, and *prefix* keeps them apart.
    """

    kind: str
    top: str
    prefix: str = ""
    _numbers: Iterator[int] = field(default_factory=itertools.count, repr=False)

    @property
    def on_mount(self) -> bool:
        """False on the plain directory."""
        return self.kind != "directory"

    @property
    def entries_are_sets(self) -> bool:
        """True at the mount's root: rename and link between sets of different owners are EXDEV there."""
        return self.kind == "mount-root"

    @property
    def stamped(self) -> tuple[str, ...]:
        """The times that chmod, chown and attributes set. ckfs notes what the former say in attributes, and GlusterFS stamps nothing for them."""
        return () if self.kind == "gluster" else ("ctime",)

    @property
    def knows_nameless(self) -> bool:
        """Whether a file that is open without a name can be opened again, and has times and attributes to set: docs/glusterfs.md."""
        return self.kind != "gluster"

    @property
    def has_rename_flags(self) -> bool:
        """Whether the file system under it knows those of renameat2: docs/glusterfs.md."""
        return self.kind not in {"gluster", "mount-on-nfs"}

    @property
    def nodev(self) -> bool:
        """Devices can be made but not opened: always on a mount, and on some machines' temporary directories."""
        return bool(os.statvfs(self.top).f_flag & os.ST_NODEV)

    @property
    def nosuid(self) -> bool:
        return bool(os.statvfs(self.top).f_flag & os.ST_NOSUID)

    def path(self, name: str | bytes = "") -> str:
        """A path that is this test's own; without a name, one that was not given out before."""
        chosen = os.fsdecode(name) if name else f"n{next(self._numbers)}"
        return f"{self.top}/{self.prefix}{chosen}"

    def named(self, length: int) -> str:
        """A path whose last component has *length* bytes."""
        return f"{self.top}/{self.prefix.ljust(length, 'x')}"

    def file(
        self,
        name: str | bytes = "",
        data: bytes = b"",
        mode: int = 0o644,
        uid: int = ROOT,
        gid: int | None = None,
    ) -> str:
        """A regular file, owned by *uid* and the group of the same number unless told otherwise."""
        return make_file(self.path(name), data, mode, uid, gid)

    def dir(self, name: str | bytes = "", mode: int = 0o755, uid: int = ROOT, gid: int | None = None) -> str:
        """A directory: at the mount's root it is a set, and what is in it shares the set's owner."""
        return make(DIRECTORY, self.path(name), mode, uid, gid)

    def make(
        self, kind: str, name: str | bytes = "", mode: int = 0o644, uid: int = ROOT, gid: int | None = None
    ) -> str:
        """A file of any type: see :func:`make`."""
        return make(kind, self.path(name), mode, uid, gid)


def make(kind: str, path: str, mode: int = 0o644, uid: int = ROOT, gid: int | None = None) -> str:
    """A file of type *kind* at *path*; a symlink is dangling and keeps its 0777.

    The suite's umask is 0, so that most files take one call to make. Not for parents with the setgid bit.
    """
    match kind:
        case "file":
            return make_file(path, b"", mode, uid, gid)
        case "dir":
            os.mkdir(path, mode & 0o1777)
        case "symlink":
            os.symlink("nowhere", path)
        case "fifo":
            os.mkfifo(path, mode & 0o777)
        case "socket":
            os.mknod(path, stat.S_IFSOCK | mode & 0o777)
        case "char":
            os.mknod(path, stat.S_IFCHR | mode & 0o777, NULL_DEVICE)
        case "block":
            os.mknod(path, stat.S_IFBLK | mode & 0o777, NULL_DEVICE)
        case _:
            raise AssertionError(kind)
    group = uid if gid is None else gid
    if (uid, group) != (ROOT, ROOT):
        os.lchown(path, uid, group)
    # Last, since a chown clears set-id bits.
    if mode & (0o6000 if kind == DIRECTORY else 0o7000) and kind != SYMLINK:
        os.chmod(path, mode)
    return path


def make_file(path: str, data: bytes, mode: int, uid: int, gid: int | None = None) -> str:
    """A regular file with *data* in it, made through one descriptor."""
    with opened(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode & 0o777) as fd:
        if data:
            assert os.write(fd, data) == len(data)
        group = uid if gid is None else gid
        if (uid, group) != (ROOT, ROOT):
            os.fchown(fd, uid, group)
        if mode & 0o7000:
            os.fchmod(fd, mode)
    return path


def owned(path: str, mode: int, uid: int, gid: int | None = None) -> str:
    """chown, then chmod, so that set-id bits are as asked for."""
    os.chown(path, uid, uid if gid is None else gid)
    os.chmod(path, mode)
    return path


def write_file(path: str, data: bytes) -> str:
    with open(path, "wb") as stream:
        stream.write(data)
    return path


def read_file(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


@contextlib.contextmanager
def opened(path: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> Iterator[int]:
    """An open descriptor that is closed whatever happens: one left open would keep the mount busy."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def open_close(path: str, flags: int, mode: int = 0o644) -> None:
    """Only whether it can be opened."""
    os.close(os.open(path, flags, mode))


def bind_socket(path: str) -> None:
    """A socket's path is limited to 107 bytes: bind through the parent's descriptor."""
    parent, name = os.path.split(path)
    with (
        opened(parent, os.O_PATH | os.O_DIRECTORY) as fd,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as endpoint,
    ):
        endpoint.bind(f"/proc/self/fd/{fd}/{name}")


def connect_socket(path: str) -> socket.socket:
    parent, name = os.path.split(path)
    endpoint = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with opened(parent, os.O_PATH | os.O_DIRECTORY) as fd:
        try:
            endpoint.connect(f"/proc/self/fd/{fd}/{name}")
        except OSError:
            endpoint.close()
            raise
    return endpoint


def exists(path: str) -> bool:
    return os.path.lexists(path)


def type_of(path: str) -> int:
    return stat.S_IFMT(os.lstat(path).st_mode)


def mode_of(path: str) -> int:
    """The twelve permission bits."""
    return stat.S_IMODE(os.lstat(path).st_mode)


def owner_of(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_uid, status.st_gid


def remove(path: str) -> None:
    """Whatever is there, with all under it; in fewer calls than shutil.rmtree makes."""
    try:
        os.unlink(path)
    except IsADirectoryError:
        for name in os.listdir(path):
            remove(f"{path}/{name}")
        os.rmdir(path)


_CLOCK_REALTIME_COARSE = 5
"""The clock that file systems take their times from; Python has no name for it."""


def next_tick() -> None:
    """Returns once the file systems' clock has moved on, so that what is stamped next is later than all before."""
    # Two ticks: a store elsewhere may round what it stamped by up to one.
    for _ in range(2):
        now = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
        while time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) == now:
            time.sleep(0.0005)


def times_of(path: str | int) -> dict[str, int]:
    """The three times in ns, by the names atime, mtime, ctime; of the symlink itself if it is one."""
    status = os.fstat(path) if isinstance(path, int) else os.lstat(path)
    return {"atime": status.st_atime_ns, "mtime": status.st_mtime_ns, "ctime": status.st_ctime_ns}


@contextlib.contextmanager
def stamps(path: str | int, *changed: str, kept: tuple[str, ...] = ()) -> Iterator[None]:
    """The body must move the times *changed* of *path* forward and leave those *kept* as they are."""
    before = times_of(path)
    next_tick()
    yield
    after = times_of(path)
    moved = {name for name in before if after[name] > before[name]}
    same = {name for name in before if after[name] == before[name]}
    assert set(changed) <= moved, f"not updated on {path}: {set(changed) - moved}"
    assert set(kept) <= same, f"changed on {path}: {set(kept) - same}"


# System calls that Python's os module cannot express.

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


def renameat2(source: str, target: str, flags: int) -> None:
    _check(
        _libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags)),
        source,
    )


def utimensat(path: str, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """Times as (seconds, nanoseconds or UTIME_NOW or UTIME_OMIT)."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    _check(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags), path)


def link_following(source: str, target: str) -> None:
    """linkat with AT_SYMLINK_FOLLOW: os.link never follows on Linux, whatever its argument says."""
    _check(
        _libc.linkat(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), AT_SYMLINK_FOLLOW), source
    )


def _check(result: int, path: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


class _Dirent(ctypes.Structure):
    """struct dirent of 64-bit Linux."""

    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_ushort),
        ("d_type", ctypes.c_ubyte),
        ("d_name", ctypes.c_char * 256),
    )


@dataclass(frozen=True)
class Entry:
    name: bytes
    inode: int
    type: int


class DirectoryStream:
    """readdir(3) with its positions, which os.scandir hides."""

    def __init__(self, path: str) -> None:
        _libc.opendir.restype = ctypes.c_void_p
        _libc.readdir.restype = ctypes.POINTER(_Dirent)
        _libc.telldir.restype = ctypes.c_long
        handle = _libc.opendir(os.fsencode(path))
        if not handle:
            _check(-1, path)
        self._handle = ctypes.c_void_p(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _libc.closedir(self._handle)

    def read(self) -> Entry | None:
        ctypes.set_errno(0)
        pointer = _libc.readdir(self._handle)
        if not pointer:
            if ctypes.get_errno():
                _check(-1, "readdir")
            return None
        entry = pointer.contents
        return Entry(entry.d_name, entry.d_ino, entry.d_type)

    def rest(self) -> list[Entry]:
        return list(iter(self.read, None))

    def tell(self) -> int:
        return int(_libc.telldir(self._handle))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._handle, ctypes.c_long(position))

    def rewind(self) -> None:
        _libc.rewinddir(self._handle)
