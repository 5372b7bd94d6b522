"""System calls that Python does not offer, or offers only process-wide.

Calls that may wait for the store release the interpreter lock (``CDLL``); those that never wait keep it (``PyDLL``),
which saves two lock hand-overs per call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from collections.abc import Iterator

_libc = ctypes.CDLL(None, use_errno=True)
_quick_libc = ctypes.PyDLL(None, use_errno=True)

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_NUMBERS = {
    # setfsuid, setfsgid, setgroups, getdents64, capget, capset (from the kernel's asm/unistd.h)
    "x86_64": (122, 123, 116, 217, 125, 126),
    "aarch64": (151, 152, 159, 61, 90, 91),
    "riscv64": (151, 152, 159, 61, 90, 91),
    "ppc64le": (138, 139, 81, 202, 183, 184),
}
try:
    _SETFSUID, _SETFSGID, _SETGROUPS, _GETDENTS64, _CAPGET, _CAPSET = _NUMBERS[platform.machine()]
except KeyError:
    raise ImportError(f"ckfs does not know the system call numbers of {platform.machine()}") from None

_NO_ID = 0xFFFFFFFF

_set_id = _quick_libc[
    "syscall"
]  # a function of its own: it is called several times in every call on the store
_set_id.argtypes = (ctypes.c_long, ctypes.c_uint32)
_set_id.restype = ctypes.c_uint32


def _failed(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def set_fsuid(uid: int) -> None:
    """Switch the calling thread's file system uid; PermissionError if the kernel did not."""
    _set_id(_SETFSUID, uid)
    if _set_id(_SETFSUID, _NO_ID) != uid:  # the call itself reports no error
        raise PermissionError(errno.EPERM, f"the kernel refused the file system uid {uid}")


def set_fsgid(gid: int) -> None:
    """Switch the calling thread's file system gid; PermissionError if the kernel did not."""
    _set_id(_SETFSGID, gid)
    if _set_id(_SETFSGID, _NO_ID) != gid:
        raise PermissionError(errno.EPERM, f"the kernel refused the file system gid {gid}")


def set_thread_groups(groups: tuple[int, ...]) -> None:
    """Set the calling thread's supplementary groups (glibc's setgroups would set those of every thread)."""
    array = (ctypes.c_uint32 * len(groups))(*groups)
    if _quick_libc.syscall(_SETGROUPS, ctypes.c_size_t(len(groups)), array) != 0:
        raise _failed("setgroups")


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_CAP_VERSION_3 = 0x20080522
CAP_SYS_RESOURCE = 24


def drop_effective_capability(capability: int) -> None:
    """Take *capability* out of the calling thread's effective set; threads started afterwards inherit that."""
    header = _CapHeader(_CAP_VERSION_3, 0)
    data = (_CapData * 2)()
    if _quick_libc.syscall(_CAPGET, ctypes.byref(header), data) != 0:
        raise _failed("capget")
    data[capability // 32].effective &= ~(1 << capability % 32)
    if _quick_libc.syscall(_CAPSET, ctypes.byref(header), data) != 0:
        raise _failed("capset")


def rename(src_dir: int, src: bytes, dst_dir: int, dst: bytes, flags: int) -> None:
    """renameat2(2). EINVAL where the file system does not know a flag."""
    if flags == 0:
        os.rename(src, dst, src_dir_fd=src_dir, dst_dir_fd=dst_dir)
    elif _libc.renameat2(src_dir, src, dst_dir, dst, ctypes.c_uint(flags)) != 0:
        raise _failed("renameat2")


FALLOC_KEEP_SIZE = 0x01
FALLOC_PUNCH_HOLE = 0x02
FALLOC_ZERO_RANGE = 0x10


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2). The C library's posix_fallocate would write instead where the file system has none."""
    if _libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        raise _failed("fallocate")


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_UTIME_OMIT = (1 << 30) - 2


def set_times(fd: int, atime_ns: int | None, mtime_ns: int | None) -> None:
    """futimens(3). None leaves a time as it is."""
    times = (_Timespec * 2)(*(_timespec(time_ns) for time_ns in (atime_ns, mtime_ns)))
    if _libc.futimens(fd, times) != 0:
        raise _failed("futimens")


def _timespec(time_ns: int | None) -> _Timespec:
    if time_ns is None:
        return _Timespec(0, _UTIME_OMIT)
    return _Timespec(*divmod(time_ns, 1_000_000_000))


_DIRENT_BUFFER_BYTES = 32768


def directory_entries(fd: int) -> list[tuple[bytes, int]]:
    """The next names of the open directory *fd* (``.`` and ``..`` among them), each with the offset at which the one after
    it is read; empty at the end.

    getdents64(2) rather than scandir: the kernel's own offsets stay valid while entries come and go, so that a caller
    can go on, or seek back, in a directory of any size without anybody keeping the names.
    """
    buffer = ctypes.create_string_buffer(_DIRENT_BUFFER_BYTES)
    length = _libc.syscall(_GETDENTS64, ctypes.c_int(fd), buffer, ctypes.c_size_t(_DIRENT_BUFFER_BYTES))
    if length < 0:
        raise _failed("getdents64")
    return list(_dirents(buffer.raw[:length]))


def names_in(fd: int) -> Iterator[bytes]:
    """All names of the open directory *fd*, from where it stands, without ``.`` and ``..``."""
    while entries := directory_entries(fd):
        yield from (name for name, _ in entries if name not in (b".", b".."))


def _dirents(raw: bytes) -> Iterator[tuple[bytes, int]]:
    at = 0
    while at < len(raw):  # struct linux_dirent64: u64 ino, s64 off, u16 reclen, u8 type, char name[]
        next_offset = int.from_bytes(raw[at + 8 : at + 16], "little", signed=True)
        record_length = int.from_bytes(raw[at + 16 : at + 18], "little")
        name = raw[at + 19 : raw.index(b"\0", at + 19)]
        yield name, next_offset
        at += record_length


def mount(source: bytes, target: bytes, kind: bytes, flags: int, data: bytes) -> None:
    """mount(2)."""
    if _libc.mount(source, target, kind, ctypes.c_ulong(flags), data) != 0:
        raise _failed("mount")


def unmount(target: bytes, flags: int) -> None:
    """umount2(2)."""
    if _libc.umount2(target, ctypes.c_int(flags)) != 0:
        raise _failed("umount2")


_AT_SYMLINK_NOFOLLOW = 0x100
_AT_EMPTY_PATH = 0x1000
_STATX_BTIME = 0x800
_STATX_BYTES = 256


def birth_time_ns(dir_fd: int, name: bytes) -> int | None:
    """When the file was made (statx(2)), in ns since the epoch; None where the file system does not say. Without a *name*: the open file
    *dir_fd* itself."""
    buffer, flags = ctypes.create_string_buffer(_STATX_BYTES), _AT_SYMLINK_NOFOLLOW | _AT_EMPTY_PATH
    if _libc.statx(dir_fd, name, flags, ctypes.c_uint(_STATX_BTIME), buffer) != 0:
        raise _failed("statx")
    raw = buffer.raw  # struct statx: u32 stx_mask at 0; stx_btime at 80: s64 seconds, u32 nanoseconds
    if not int.from_bytes(raw[0:4], sys.byteorder) & _STATX_BTIME:
        return None
    seconds = int.from_bytes(raw[80:88], sys.byteorder, signed=True)
    return seconds * 1_000_000_000 + int.from_bytes(raw[88:92], sys.byteorder)


_STATFS_BYTES = 256
"""More than struct statfs takes on any machine; its first field is the magic number of the file system's kind."""


def file_system_magic(fd: int) -> int:
    """What kind of file system *fd* is on: a number of linux/magic.h."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(fd, buffer) != 0:
        raise _failed("fstatfs")
    return ctypes.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF


_TMPFS = 0x01021994
_LOCAL_FILE_SYSTEMS = {
    _TMPFS: "tmpfs",
    0xEF53: "ext2, ext3, ext4",
    0x58465342: "XFS",
    0x9123683E: "btrfs",
    0xF2F52010: "F2FS",
    0x2FC12FC1: "ZFS",
}
"""By the kernel's magic numbers. All others may have to wait for another machine or process."""


def is_local(fd: int) -> bool:
    """Whether *fd* is on this host's own disk or in its memory."""
    return file_system_magic(fd) in _LOCAL_FILE_SYSTEMS


def is_in_memory(fd: int) -> bool:
    return file_system_magic(fd) == _TMPFS


_M_ARENA_MAX = -8


def bound_malloc_arenas(count: int) -> None:
    """Keep glibc from giving each worker thread an arena of its own: the daemon's size would grow with its threads."""
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:  # other C libraries have no arenas
        mallopt(_M_ARENA_MAX, count)


def data_in(fd: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of the open file between the offsets *begin* and *end* that are no holes, from one offset to another. Where the
    file system tells of no holes there are none."""
    while begin < end:
        try:
            begin = os.lseek(fd, begin, os.SEEK_DATA)
            if begin >= end:
                return
            upto = min(end, os.lseek(fd, begin, os.SEEK_HOLE))
        except OSError as error:
            if error.errno == errno.ENXIO:  # there is no data any more
                return
            raise
        yield begin, upto
        begin = upto


_PROT_READ, _MAP_SHARED = 1, 1
_WINDOW = 256 << 20
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64)
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


def pages_in_memory(fd: int) -> int:
    """How many pages of the open file the kernel has in its memory; of a file that the calling thread could not change, all."""
    size, page = os.fstat(fd).st_size, os.sysconf("SC_PAGESIZE")
    count = 0
    for begin in range(0, size, _WINDOW):
        length = min(_WINDOW, size - begin)
        there = ctypes.create_string_buffer(-(-length // page))
        at = _libc.mmap(None, length, _PROT_READ, _MAP_SHARED, fd, begin)
        if at == ctypes.c_void_p(-1).value:
            raise _failed("mmap")
        try:
            if _libc.mincore(at, length, there) != 0:
                raise _failed("mincore")
        finally:
            _libc.munmap(at, length)
        count += sum(known & 1 for known in there.raw)
    return count


FileId = tuple[int, int]
"""Device and inode number: of one file of the store, for as long as it is open."""


def file_id(status: os.stat_result) -> FileId:
    return status.st_dev, status.st_ino


def is_same_file(opened: int, before: int) -> bool:
    """Whether two descriptors lead to one file of the store; False also if one of them is closed, or stale. Raises nothing."""
    try:
        return os.path.sameopenfile(opened, before)
    except OSError:  # ESTALE: another host has removed it
        return False
