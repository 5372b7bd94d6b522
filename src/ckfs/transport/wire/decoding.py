"""From the bytes of a request to its value.

READ, WRITE, GETATTR and LOOKUP, which a busy mount answers by the ten thousand a second, are made by ``tuple.__new__`` without
the detour of a NamedTuple's constructor.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from ckfs.transport.wire import abi
from ckfs.transport.wire.abi import FUSE_GETATTR_FH, FUSE_READ_LOCKOWNER, FUSE_WRITE_LOCKOWNER, Opcode
from ckfs.transport.wire.requests import (
    Access,
    BatchForget,
    Bmap,
    CopyFileRange,
    Create,
    Destroy,
    Fallocate,
    Flush,
    Forget,
    Fsync,
    Fsyncdir,
    Getattr,
    Getxattr,
    Init,
    Interrupt,
    Ioctl,
    Link,
    Listxattr,
    Lock,
    Lookup,
    Lseek,
    Malformed,
    Mkdir,
    Mknod,
    Open,
    Opendir,
    Poll,
    Read,
    Readdir,
    Readdirplus,
    Readlink,
    Release,
    Releasedir,
    Removexattr,
    Rename,
    Request,
    Rmdir,
    Setattr,
    Setxattr,
    Statfs,
    Statx,
    Symlink,
    Syncfs,
    Tmpfile,
    Unlink,
    Unsupported,
    Write,
)

# Looked up once rather than for each of the most frequent requests.
_unpack_getattr = abi.GETATTR_IN.unpack_from
_unpack_read = abi.READ_IN.unpack_from
_unpack_write = abi.WRITE_IN.unpack_from
_WRITE_BYTES = abi.WRITE_IN.size
_unpack_io = abi.WHOLE_IO_IN.unpack_from
_IO_BYTES = abi.WHOLE_IO_IN.size
_READ, _WRITE = int(Opcode.READ), int(Opcode.WRITE)


def io_of(whole: memoryview) -> tuple[int, int, int, int, memoryview | None] | None:
    """The short way to a READ or WRITE: its unique, fh, offset and size, and what is to be written. None if the message *whole* is
    neither, or only :func:`decode` can tell what it is."""
    if len(whole) < _IO_BYTES:
        return None
    length, opcode, unique, extensions, fh, offset, size = _unpack_io(whole)
    if extensions or length != len(whole):
        return None
    if opcode == _WRITE and length == size + _IO_BYTES:
        return unique, fh, offset, size, whole[_IO_BYTES:]
    if opcode == _READ and length == _IO_BYTES:
        return unique, fh, offset, size, None
    return None


def decode(opcode: int, body: memoryview, extensions_length: int = 0) -> Request:
    """The request that *body* is, which is what follows the header.

    Raises Malformed or Unsupported, and nothing else, whatever the bytes are. The extensions at the end of the body (a caller's
    further group, a security context; in units of 8 bytes, as the header counts them) are passed over.
    """
    decoder = _DECODERS.get(opcode)
    if decoder is None:
        raise Unsupported(f"opcode {opcode} is none that this daemon agreed to")
    if extensions_length:
        end = len(body) - 8 * extensions_length
        if end < 0:
            raise Malformed(
                f"a body of {len(body)} bytes cannot end in {8 * extensions_length} of extensions"
            )
        body = body[:end]
    try:
        return decoder(body)
    except struct.error:
        raise Malformed(f"{_called(opcode)} with a body of {len(body)} bytes is too short") from None
    except Malformed as error:
        raise Malformed(f"{_called(opcode)}: {error}") from None


def _called(opcode: int) -> str:
    return Opcode(opcode).name


# Of names, and what stands before them

_NUL, _SLASH = b"\0/"


def _name_of(raw: bytes) -> bytes:
    """The name that *raw* is, up to the NUL that ends it and the body."""
    name = _text_of(raw)
    if _SLASH in name:
        raise Malformed("there is a slash in a name")
    return name


def _text_of(raw: bytes) -> bytes:
    """What may hold slashes: the target of a symbolic link, the name of an attribute."""
    text = raw[:-1]
    if not text:
        raise Malformed("a name is empty")
    if raw[-1] or _NUL in text:
        raise Malformed("a name does not end where the body ends")
    return text


def _two_of(raw: bytes) -> tuple[bytes, bytes]:
    """Two texts, each with its NUL."""
    end = raw.find(b"\0") + 1
    if not end:
        raise Malformed("a name does not end where the body ends")
    return raw[:end], raw[end:]


def _lookup(body: memoryview) -> Lookup:
    raw = body.tobytes()
    name = raw[:-1]
    if not name or raw[-1] or _NUL in name or _SLASH in name:
        name = _name_of(raw)  # which says what is wrong with it
    return tuple.__new__(Lookup, (name,))


def _unlink(body: memoryview) -> Unlink:
    return Unlink(_name_of(body.tobytes()))


def _rmdir(body: memoryview) -> Rmdir:
    return Rmdir(_name_of(body.tobytes()))


def _symlink(body: memoryview) -> Symlink:
    name, target = _two_of(body.tobytes())
    return Symlink(_name_of(name), _text_of(target))


def _mknod(body: memoryview) -> Mknod:
    mode, rdev, umask = abi.MKNOD_IN.unpack_from(body)
    return Mknod(mode, rdev, umask, _name_of(body[abi.MKNOD_IN.size :].tobytes()))


def _mkdir(body: memoryview) -> Mkdir:
    mode, umask = abi.MKDIR_IN.unpack_from(body)
    return Mkdir(mode, umask, _name_of(body[abi.MKDIR_IN.size :].tobytes()))


def _rename(body: memoryview) -> Rename:
    (new_parent,) = abi.RENAME_IN.unpack_from(body)
    old, new = _two_of(body[abi.RENAME_IN.size :].tobytes())
    return Rename(new_parent, 0, _name_of(old), _name_of(new))


def _rename2(body: memoryview) -> Rename:
    new_parent, flags = abi.RENAME2_IN.unpack_from(body)
    old, new = _two_of(body[abi.RENAME2_IN.size :].tobytes())
    return Rename(new_parent, flags, _name_of(old), _name_of(new))


def _link(body: memoryview) -> Link:
    (node,) = abi.LINK_IN.unpack_from(body)
    return Link(node, _name_of(body[abi.LINK_IN.size :].tobytes()))


def _create(body: memoryview) -> Create:
    flags, mode, umask, open_flags = abi.CREATE_IN.unpack_from(body)
    name = _name_of(body[abi.CREATE_IN.size :].tobytes())
    return Create(flags, mode, umask, name, bool(open_flags & abi.FUSE_OPEN_KILL_SUIDGID))


def _tmpfile(body: memoryview) -> Tmpfile:
    flags, mode, umask, open_flags = abi.CREATE_IN.unpack_from(body)
    name = _text_of(body[abi.CREATE_IN.size :].tobytes())
    return Tmpfile(flags, mode, umask, name, bool(open_flags & abi.FUSE_OPEN_KILL_SUIDGID))


# Of metadata


def _forget(body: memoryview) -> Forget:
    return Forget(*abi.FORGET_IN.unpack_from(body))


def _batch_forget(body: memoryview) -> BatchForget:
    (count,) = abi.BATCH_FORGET_IN.unpack_from(body)
    rest = body[abi.BATCH_FORGET_IN.size :]
    if len(rest) != count * abi.FORGET_ONE.size:
        raise Malformed(f"{len(rest)} bytes are not {count} nodes to forget")
    return BatchForget([(node, lookups) for node, lookups in abi.FORGET_ONE.iter_unpack(rest)])


def _getattr(body: memoryview) -> Getattr:
    flags, fh = _unpack_getattr(body)
    return tuple.__new__(Getattr, (fh if flags & FUSE_GETATTR_FH else None,))


def _statx(body: memoryview) -> Statx:
    getattr_flags, fh, flags, mask = abi.STATX_IN.unpack_from(body)
    return Statx(fh if getattr_flags & FUSE_GETATTR_FH else None, flags, mask)


def _setattr(body: memoryview) -> Setattr:
    (
        valid,
        fh,
        size,
        lock_owner,
        atime,
        mtime,
        ctime,
        atime_nsec,
        mtime_nsec,
        ctime_nsec,
        mode,
        uid,
        gid,
    ) = abi.SETATTR_IN.unpack_from(body)
    return Setattr(
        valid,
        fh=fh if valid & abi.FATTR_FH else None,
        size=size if valid & abi.FATTR_SIZE else None,
        lock_owner=lock_owner if valid & abi.FATTR_LOCKOWNER else None,
        atime=atime * 1_000_000_000 + atime_nsec if valid & abi.FATTR_ATIME else None,
        mtime=mtime * 1_000_000_000 + mtime_nsec if valid & abi.FATTR_MTIME else None,
        ctime=ctime * 1_000_000_000 + ctime_nsec if valid & abi.FATTR_CTIME else None,
        atime_now=bool(valid & abi.FATTR_ATIME_NOW),
        mtime_now=bool(valid & abi.FATTR_MTIME_NOW),
        mode=mode if valid & abi.FATTR_MODE else None,
        uid=uid if valid & abi.FATTR_UID else None,
        gid=gid if valid & abi.FATTR_GID else None,
        kill_suidgid=bool(valid & abi.FATTR_KILL_SUIDGID),
    )


def _readlink(body: memoryview) -> Readlink:
    return Readlink()


def _statfs(body: memoryview) -> Statfs:
    return Statfs()


def _access(body: memoryview) -> Access:
    return Access(*abi.ACCESS_IN.unpack_from(body))


def _setxattr(body: memoryview) -> Setxattr:
    size, flags = abi.COMPAT_SETXATTR_IN.unpack_from(body)
    name, value = _two_of(body[abi.COMPAT_SETXATTR_IN.size :].tobytes())
    if len(value) != size:
        raise Malformed(f"a value of {len(value)} bytes is said to have {size}")
    return Setxattr(_text_of(name), value, flags)


def _getxattr(body: memoryview) -> Getxattr:
    (size,) = abi.GETXATTR_IN.unpack_from(body)
    return Getxattr(_text_of(body[abi.GETXATTR_IN.size :].tobytes()), size)


def _listxattr(body: memoryview) -> Listxattr:
    return Listxattr(*abi.GETXATTR_IN.unpack_from(body))


def _removexattr(body: memoryview) -> Removexattr:
    return Removexattr(_text_of(body.tobytes()))


# Of open files and directories


def _open(body: memoryview) -> Open:
    flags, open_flags = abi.OPEN_IN.unpack_from(body)
    return Open(flags, bool(open_flags & abi.FUSE_OPEN_KILL_SUIDGID))


def _opendir(body: memoryview) -> Opendir:
    flags, _ = abi.OPEN_IN.unpack_from(body)
    return Opendir(flags)


def _read(body: memoryview) -> Read:
    fh, offset, size, read_flags, owner, flags = _unpack_read(body)
    return tuple.__new__(Read, (fh, offset, size, flags, owner if read_flags & FUSE_READ_LOCKOWNER else None))


def _write(body: memoryview) -> Write:
    fh, offset, size, flags, owner, open_flags = _unpack_write(body)
    data = body[_WRITE_BYTES:]
    if len(data) != size:
        raise Malformed(f"{len(data)} bytes to write are said to be {size}")
    return tuple.__new__(
        Write, (fh, offset, flags, open_flags, owner if flags & FUSE_WRITE_LOCKOWNER else None, data)
    )


def _release(body: memoryview) -> Release:
    fh, flags, release_flags, owner = abi.RELEASE_IN.unpack_from(body)
    flush = bool(release_flags & abi.FUSE_RELEASE_FLUSH)
    return Release(fh, flags, flush, bool(release_flags & abi.FUSE_RELEASE_FLOCK_UNLOCK), owner)


def _releasedir(body: memoryview) -> Releasedir:
    fh, _, _, _ = abi.RELEASE_IN.unpack_from(body)
    return Releasedir(fh)


def _fsync(body: memoryview) -> Fsync:
    fh, flags = abi.FSYNC_IN.unpack_from(body)
    return Fsync(fh, bool(flags & abi.FUSE_FSYNC_FDATASYNC))


def _fsyncdir(body: memoryview) -> Fsyncdir:
    fh, flags = abi.FSYNC_IN.unpack_from(body)
    return Fsyncdir(fh, bool(flags & abi.FUSE_FSYNC_FDATASYNC))


def _flush(body: memoryview) -> Flush:
    return Flush(*abi.FLUSH_IN.unpack_from(body))


def _readdir(body: memoryview) -> Readdir:
    fh, offset, size, _, _, _ = abi.READ_IN.unpack_from(body)
    return Readdir(fh, offset, size)


def _readdirplus(body: memoryview) -> Readdirplus:
    fh, offset, size, _, _, _ = abi.READ_IN.unpack_from(body)
    return Readdirplus(fh, offset, size)


def _lock(body: memoryview) -> Lock:
    fh, owner, start, end, kind, pid, flags = abi.LK_IN.unpack_from(body)
    return Lock(fh, owner, start, end, kind, pid, bool(flags & abi.FUSE_LK_FLOCK))


def _bmap(body: memoryview) -> Bmap:
    return Bmap(*abi.BMAP_IN.unpack_from(body))


def _ioctl(body: memoryview) -> Ioctl:
    fh, flags, cmd, _, _, _ = abi.IOCTL_IN.unpack_from(body)
    return Ioctl(fh, flags, cmd)


def _poll(body: memoryview) -> Poll:
    fh, _, _, _ = abi.POLL_IN.unpack_from(body)
    return Poll(fh)


def _fallocate(body: memoryview) -> Fallocate:
    return Fallocate(*abi.FALLOCATE_IN.unpack_from(body))


def _lseek(body: memoryview) -> Lseek:
    return Lseek(*abi.LSEEK_IN.unpack_from(body))


def _copy_file_range(body: memoryview) -> CopyFileRange:
    return CopyFileRange(*abi.COPY_FILE_RANGE_IN.unpack_from(body))


# Of the connection


def _init(body: memoryview) -> Init:
    major, minor = abi.VERSION_IN.unpack_from(body)
    if major != abi.MAJOR:
        return Init(major, minor, 0, 0)  # nothing but the version means the same in another major version
    _, _, max_readahead, flags = abi.COMPAT_INIT_IN.unpack_from(body)
    if flags & abi.InitFlags.INIT_EXT:
        _, _, _, _, flags2 = abi.INIT_IN.unpack_from(body)
        flags |= flags2 << 32
    return Init(major, minor, max_readahead, flags)


def _destroy(body: memoryview) -> Destroy:
    return Destroy()


def _interrupt(body: memoryview) -> Interrupt:
    return Interrupt(*abi.INTERRUPT_IN.unpack_from(body))


def _syncfs(body: memoryview) -> Syncfs:
    return Syncfs()


_DECODERS: dict[int, Callable[[memoryview], Request]] = {
    Opcode.LOOKUP: _lookup,
    Opcode.FORGET: _forget,
    Opcode.GETATTR: _getattr,
    Opcode.SETATTR: _setattr,
    Opcode.READLINK: _readlink,
    Opcode.SYMLINK: _symlink,
    Opcode.MKNOD: _mknod,
    Opcode.MKDIR: _mkdir,
    Opcode.UNLINK: _unlink,
    Opcode.RMDIR: _rmdir,
    Opcode.RENAME: _rename,
    Opcode.LINK: _link,
    Opcode.OPEN: _open,
    Opcode.READ: _read,
    Opcode.WRITE: _write,
    Opcode.STATFS: _statfs,
    Opcode.RELEASE: _release,
    Opcode.FSYNC: _fsync,
    Opcode.SETXATTR: _setxattr,
    Opcode.GETXATTR: _getxattr,
    Opcode.LISTXATTR: _listxattr,
    Opcode.REMOVEXATTR: _removexattr,
    Opcode.FLUSH: _flush,
    Opcode.INIT: _init,
    Opcode.OPENDIR: _opendir,
    Opcode.READDIR: _readdir,
    Opcode.RELEASEDIR: _releasedir,
    Opcode.FSYNCDIR: _fsyncdir,
    Opcode.GETLK: _lock,
    Opcode.SETLK: _lock,
    Opcode.SETLKW: _lock,
    Opcode.ACCESS: _access,
    Opcode.CREATE: _create,
    Opcode.INTERRUPT: _interrupt,
    Opcode.BMAP: _bmap,
    Opcode.DESTROY: _destroy,
    Opcode.IOCTL: _ioctl,
    Opcode.POLL: _poll,
    Opcode.BATCH_FORGET: _batch_forget,
    Opcode.FALLOCATE: _fallocate,
    Opcode.READDIRPLUS: _readdirplus,
    Opcode.RENAME2: _rename2,
    Opcode.LSEEK: _lseek,
    Opcode.COPY_FILE_RANGE: _copy_file_range,
    Opcode.COPY_FILE_RANGE_64: _copy_file_range,
    Opcode.SYNCFS: _syncfs,
    Opcode.TMPFILE: _tmpfile,
    Opcode.STATX: _statx,
}
