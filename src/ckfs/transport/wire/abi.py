"""Numbers and layouts of the protocol, under the names that the kernel's header gives them.

Layouts are in the host's byte order and explicitly padded, as the header's are: they are the same on every platform.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

MAJOR: Final = 7
MINOR: Final = 45
ROOT_ID: Final = 1
UNIQUE_RESEND: Final = 1 << 63
"""Set in the unique number of a request that is sent again (only if HAS_RESEND was agreed)."""
MIN_READ_BUFFER: Final = 8192


class Opcode(IntEnum):
    LOOKUP = 1
    FORGET = 2  # no reply
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36  # no reply, unless EAGAIN
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41  # no reply
    BATCH_FORGET = 42  # no reply
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class NotifyCode(IntEnum):
    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RETRIEVE = 5
    DELETE = 6
    RESEND = 7
    INC_EPOCH = 8
    PRUNE = 9


class InitFlags(IntFlag):
    """What kernel and daemon agree on; bits from 32 on travel in a field of their own, valid only with INIT_EXT."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    FILE_OPS = 1 << 2
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    MAP_ALIGNMENT = 1 << 26
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    INIT_RESERVED = 1 << 31
    SECURITY_CTX = 1 << 32
    HAS_INODE_DAX = 1 << 33
    CREATE_SUPP_GROUP = 1 << 34
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42


class OpenFlags(IntFlag):
    """FOPEN_*: what the daemon says of a handle when it answers OPEN, OPENDIR or CREATE."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3
    STREAM = 1 << 4
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6
    PASSTHROUGH = 1 << 7


# Single bits of requests are plain integers: decoding tests them for every request, and an IntFlag takes 20 times as long.
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_LOCKOWNER: Final = 1 << 9
FATTR_CTIME: Final = 1 << 10
FATTR_KILL_SUIDGID: Final = 1 << 11

FUSE_RELEASE_FLUSH: Final = 1 << 0
FUSE_RELEASE_FLOCK_UNLOCK: Final = 1 << 1
FUSE_GETATTR_FH: Final = 1 << 0
FUSE_LK_FLOCK: Final = 1 << 0
FUSE_WRITE_CACHE: Final = 1 << 0
FUSE_WRITE_LOCKOWNER: Final = 1 << 1
FUSE_WRITE_KILL_SUIDGID: Final = 1 << 2
FUSE_READ_LOCKOWNER: Final = 1 << 1
FUSE_FSYNC_FDATASYNC: Final = 1 << 0
FUSE_OPEN_KILL_SUIDGID: Final = 1 << 0
FUSE_IOCTL_COMPAT: Final = 1 << 0
FUSE_IOCTL_UNRESTRICTED: Final = 1 << 1
FUSE_IOCTL_RETRY: Final = 1 << 2
FUSE_IOCTL_32BIT: Final = 1 << 3
FUSE_IOCTL_DIR: Final = 1 << 4
FUSE_IOCTL_COMPAT_X32: Final = 1 << 5
FUSE_POLL_SCHEDULE_NOTIFY: Final = 1 << 0
FUSE_ATTR_SUBMOUNT: Final = 1 << 0
FUSE_ATTR_DAX: Final = 1 << 1
FUSE_EXPIRE_ONLY: Final = 1 << 0
FUSE_EXT_GROUPS: Final = 32

# ioctls of /dev/fuse, as asm-generic numbers them (x86, arm, riscv, s390; not powerpc, mips, sparc)
FUSE_DEV_IOC_CLONE: Final = 0x8004E500
FUSE_DEV_IOC_BACKING_OPEN: Final = 0x4010E501
FUSE_DEV_IOC_BACKING_CLOSE: Final = 0x4004E502
FUSE_DEV_IOC_SYNC_INIT: Final = 0xE503

# Times of attributes are unsigned in the header, and the kernel makes them signed again.
_ATTR: Final = "QQQqqqIIIIIIIIII"
_SX_TIME: Final = "qI4x"
_FILE_LOCK: Final = "QQII"
_DIRENT: Final = "QQII"

HEADER_IN: Final = Struct("=IIQQIIIH2x")
HEADER_OUT: Final = Struct("=IiQ")

FORGET_IN: Final = Struct("=Q")
FORGET_ONE: Final = Struct("=QQ")
BATCH_FORGET_IN: Final = Struct("=I4x")
GETATTR_IN: Final = Struct("=I4xQ")
STATX_IN: Final = Struct("=I4xQII")
MKNOD_IN: Final = Struct("=III4x")
MKDIR_IN: Final = Struct("=II")
RENAME_IN: Final = Struct("=Q")
RENAME2_IN: Final = Struct("=QI4x")
LINK_IN: Final = Struct("=Q")
SETATTR_IN: Final = Struct("=I4xQQQqqqIIII4xII4x")
OPEN_IN: Final = Struct("=II")
CREATE_IN: Final = Struct("=IIII")
RELEASE_IN: Final = Struct("=QIIQ")
FLUSH_IN: Final = Struct("=Q8xQ")
READ_IN: Final = Struct("=QQIIQI4x")
WRITE_IN: Final = Struct("=QQIIQI4x")
WHOLE_IO_IN: Final = Struct("=IIQ20xH2xQQI20x")
"""HEADER_IN with WRITE_IN, or READ_IN, in one: the length of all, opcode, unique, extensions; fh, offset and size."""
FSYNC_IN: Final = Struct("=QI4x")
COMPAT_SETXATTR_IN: Final = Struct("=II")
SETXATTR_IN: Final = Struct("=III4x")  # only if SETXATTR_EXT was agreed
GETXATTR_IN: Final = Struct("=I4x")
LK_IN: Final = Struct(f"=QQ{_FILE_LOCK}I4x")
ACCESS_IN: Final = Struct("=I4x")
VERSION_IN: Final = Struct("=II")  # what INIT begins with, whatever the major version
COMPAT_INIT_IN: Final = Struct("=IIII")
INIT_IN: Final = Struct("=IIIII44x")
INTERRUPT_IN: Final = Struct("=Q")
BMAP_IN: Final = Struct("=QI4x")
IOCTL_IN: Final = Struct("=QIIQII")
POLL_IN: Final = Struct("=QQII")
FALLOCATE_IN: Final = Struct("=QQQI4x")
LSEEK_IN: Final = Struct("=QQI4x")
COPY_FILE_RANGE_IN: Final = Struct("=QQQQQQQ")
SETUPMAPPING_IN: Final = Struct("=QQQQQ")
REMOVEMAPPING_IN: Final = Struct("=I")
REMOVEMAPPING_ONE: Final = Struct("=QQ")
SYNCFS_IN: Final = Struct("=8x")
NOTIFY_RETRIEVE_IN: Final = Struct("=8xQI20x")

ENTRY_OUT: Final = Struct(f"=QQQQII{_ATTR}")
ATTR_OUT: Final = Struct(f"=QI4x{_ATTR}")
STATX_OUT: Final = Struct(f"=QII16xIIQIIIH2xQQQQ{_SX_TIME * 4}IIII112x")
OPEN_OUT: Final = Struct("=QIi")
WRITE_OUT: Final = Struct("=I4x")
WHOLE_WRITE_OUT: Final = Struct("=IiQI4x")  # HEADER_OUT and WRITE_OUT in one
STATFS_OUT: Final = Struct("=QQQQQIII28x")
GETXATTR_OUT: Final = Struct("=I4x")
LK_OUT: Final = Struct(f"={_FILE_LOCK}")
INIT_OUT: Final = Struct("=IIIIHHIIHHIIH22x")
BMAP_OUT: Final = Struct("=Q")
IOCTL_OUT: Final = Struct("=iIII")
POLL_OUT: Final = Struct("=I4x")
LSEEK_OUT: Final = Struct("=Q")
COPY_FILE_RANGE_OUT: Final = Struct("=Q")
DIRENT: Final = Struct(f"={_DIRENT}")
DIRENTPLUS: Final = Struct(f"=QQQQII{_ATTR}{_DIRENT}")

NOTIFY_POLL_WAKEUP_OUT: Final = Struct("=Q")
NOTIFY_INVAL_INODE_OUT: Final = Struct("=Qqq")
NOTIFY_INVAL_ENTRY_OUT: Final = Struct("=QII")
NOTIFY_DELETE_OUT: Final = Struct("=QQI4x")
NOTIFY_STORE_OUT: Final = Struct("=QQI4x")
NOTIFY_RETRIEVE_OUT: Final = Struct("=QQQI4x")
NOTIFY_PRUNE_OUT: Final = Struct("=I12x")

BACKING_MAP: Final = Struct("=iI8x")  # of FUSE_DEV_IOC_BACKING_OPEN
