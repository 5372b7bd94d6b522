"""Requests of the kernel, decoded, and what they are answered with. Nothing is decided here."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import trio

from ckfs.errors import Interrupted
from ckfs.fs.filesystem import Filesystem
from ckfs.fs.lockranges import Range
from ckfs.fs.metadata import Changes
from ckfs.model import Caller
from ckfs.names import FileHandle, Gid, Inode, Uid
from ckfs.store.spots import Found
from ckfs.transport.shown import links_of
from ckfs.transport.under_way import UnderWay
from ckfs.transport.wire import replies, requests
from ckfs.transport.wire.abi import Opcode, OpenFlags
from ckfs.transport.wire.replies import Attributes, Listing
from ckfs.transport.wire.requests import Header

Piece = bytes | memoryview


class Granted(NamedTuple):
    """An answer that gives the kernel something: if nobody waits for it any more, *take_back* takes that back."""

    body: bytes
    take_back: Callable[[], Awaitable[None]]


Answer = Piece | Granted
Handler = Callable[[Header, Any], Coroutine[Any, Any, Answer]]

_NOTHING = b""


@dataclass(frozen=True, slots=True)
class Handlers:
    """*waiting* are the requests that a signal to whoever waits for them ends."""

    fs: Filesystem
    under_way: UnderWay
    waiting: dict[int, trio.CancelScope] = field(default_factory=dict)

    def interrupt(self, unique: int) -> None:
        """A signal came to whoever waits for the request *unique*, which is soon over anyhow unless it waits for others."""
        if (waiting := self.waiting.get(unique)) is not None:
            waiting.cancel()

    def interrupt_all(self) -> None:
        """The mount is gone, and with it everybody who waits for something."""
        for waiting in self.waiting.values():
            waiting.cancel()

    def by_opcode(self) -> dict[int, Handler]:
        """Of all requests that are answered; FORGET and INTERRUPT are not."""
        return {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.READLINK: self._readlink,
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename,
            Opcode.LINK: self._link,
            Opcode.OPEN: self._open,
            Opcode.CREATE: self._create,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.STATFS: self._statfs,
            Opcode.RELEASE: self._release,
            Opcode.FSYNC: self._fsync,
            Opcode.FLUSH: self._flush,
            Opcode.SETXATTR: self._setxattr,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.REMOVEXATTR: self._removexattr,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.FSYNCDIR: self._fsyncdir,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.LSEEK: self._lseek,
            Opcode.COPY_FILE_RANGE: self._copy_file_range,
            Opcode.COPY_FILE_RANGE_64: self._copy_file_range,
            Opcode.STATX: self._statx,
            Opcode.GETLK: self._getlk,
            Opcode.SETLK: self._setlk,
            Opcode.SETLKW: self._setlkw,
            Opcode.DESTROY: self._nothing,
        }

    # Names

    async def _lookup(self, header: Header, asked: requests.Lookup) -> Answer:
        found = await self.fs.naming.lookup(Inode(header.nodeid), asked.name)
        return self._entry(found, self.fs.metadata.lookup_holds_s(found))

    async def _mkdir(self, header: Header, asked: requests.Mkdir) -> Answer:
        return self._entry(
            await self.fs.naming.mkdir(
                Inode(header.nodeid), asked.name, asked.mode, caller_of(header, asked.umask)
            )
        )

    async def _mknod(self, header: Header, asked: requests.Mknod) -> Answer:
        caller, parent = caller_of(header, asked.umask), Inode(header.nodeid)
        return self._entry(await self.fs.naming.mknod(parent, asked.name, asked.mode, asked.rdev, caller))

    async def _symlink(self, header: Header, asked: requests.Symlink) -> Answer:
        parent = Inode(header.nodeid)
        return self._entry(await self.fs.naming.symlink(parent, asked.name, asked.target, caller_of(header)))

    async def _link(self, header: Header, asked: requests.Link) -> Answer:
        parent, inode = Inode(header.nodeid), Inode(asked.node)
        return self._entry(await self.fs.naming.link(inode, parent, asked.name, caller_of(header)))

    async def _readlink(self, header: Header, asked: requests.Readlink) -> Answer:
        return await self.fs.naming.readlink(Inode(header.nodeid))

    async def _unlink(self, header: Header, asked: requests.Unlink) -> Answer:
        await self.fs.naming.unlink(Inode(header.nodeid), asked.name, caller_of(header))
        return _NOTHING

    async def _rmdir(self, header: Header, asked: requests.Rmdir) -> Answer:
        await self.fs.naming.rmdir(Inode(header.nodeid), asked.name, caller_of(header))
        return _NOTHING

    async def _rename(self, header: Header, asked: requests.Rename) -> Answer:
        old, new = Inode(header.nodeid), Inode(asked.new_parent)
        await self.fs.naming.rename(old, asked.old, new, asked.new, asked.flags, caller_of(header))
        return _NOTHING

    def _entry(self, found: Found, attr_valid_s: float = 0) -> Granted:
        ino = found.record.ino
        return Granted(replies.entry(shown(found), ino, 0, attr_valid_s), lambda: self._forget(ino))

    async def _forget(self, ino: Inode) -> None:
        self.fs.forget(ino, 1)

    # Metadata

    async def _getattr(self, header: Header, asked: requests.Getattr) -> Answer:
        found = await self.fs.metadata.getattr(Inode(header.nodeid))
        return replies.attributes(shown(found), self.fs.metadata.answer_holds_s(found))

    async def _statx(self, header: Header, asked: requests.Statx) -> Answer:
        found = await self.fs.metadata.getattr(Inode(header.nodeid))
        born_ns = await self.fs.metadata.birth_time(Inode(header.nodeid))
        return replies.statx(shown(found), born_ns, self.fs.metadata.answer_holds_s(found))

    async def _setattr(self, header: Header, asked: requests.Setattr) -> Answer:
        handle = None if asked.fh is None else FileHandle(asked.fh)
        found = await self.fs.metadata.setattr(
            Inode(header.nodeid), _changes(asked), handle, caller_of(header)
        )
        return replies.attributes(shown(found), 0)

    async def _statfs(self, header: Header, asked: requests.Statfs) -> Answer:
        space = await self.fs.metadata.statfs(caller_of(header))
        return replies.statfs(
            blocks=space.blocks,
            bfree=space.free_blocks,
            bavail=space.available_blocks,
            files=space.files,
            ffree=space.free_files,
            bsize=space.io_bytes,
            namelen=space.longest_name,
            frsize=space.block_bytes,
        )

    # Content

    async def _create(self, header: Header, asked: requests.Create) -> Answer:
        parent, caller = Inode(header.nodeid), caller_of(header, asked.umask)
        handle, found = await self.fs.naming.create(parent, asked.name, asked.mode, asked.flags, caller)
        ino = found.record.ino

        async def take_back() -> None:
            await self.fs.content.release(handle)
            self.fs.forget(ino, 1)

        return Granted(replies.created(shown(found), ino, 0, 0, *self._way(handle)), take_back)

    async def _open(self, header: Header, asked: requests.Open) -> Answer:
        handle = await self.fs.opening.open(Inode(header.nodeid), asked.flags, caller_of(header))
        return Granted(replies.opened(*self._way(handle)), lambda: self.fs.content.release(handle))

    def _way(self, handle: FileHandle) -> tuple[FileHandle, OpenFlags, int]:
        """What the kernel is told of an open file: its number, which way it is read and written, and what it carries."""
        flags = OpenFlags.DIRECT_IO if self.fs.opening.is_direct(handle) else OpenFlags(0)
        backing = self.fs.opening.backing(handle)
        return (handle, flags, 0) if backing is None else (handle, flags | OpenFlags.PASSTHROUGH, backing)

    async def _read(self, header: Header, asked: requests.Read) -> Answer:
        return await self.fs.content.read(FileHandle(asked.fh), asked.offset, asked.size)

    async def _write(self, header: Header, asked: requests.Write) -> Answer:
        return replies.written(await self.fs.content.write(FileHandle(asked.fh), asked.offset, asked.data))

    async def _flush(self, header: Header, asked: requests.Flush) -> Answer:
        number = FileHandle(asked.fh)
        try:
            await self.fs.content.flush(number)
        finally:
            await self.fs.locking.release_owner(number, asked.lock_owner)
        return _NOTHING

    async def _fsync(self, header: Header, asked: requests.Fsync) -> Answer:
        await self.fs.content.fsync(FileHandle(asked.fh), data_only=asked.data_only)
        return _NOTHING

    async def _release(self, header: Header, asked: requests.Release) -> Answer:
        number = FileHandle(asked.fh)
        # Both begin at once: the next request may be somebody's who knows that it is closed.
        self.fs.locking.let_go(number)
        try:
            await self.fs.content.release(number)
        finally:
            await self.fs.locking.released(number)
        return _NOTHING

    async def _fallocate(self, header: Header, asked: requests.Fallocate) -> Answer:
        await self.fs.content.allocate(FileHandle(asked.fh), asked.mode, asked.offset, asked.length)
        return _NOTHING

    async def _lseek(self, header: Header, asked: requests.Lseek) -> Answer:
        return replies.sought(await self.fs.content.seek(FileHandle(asked.fh), asked.offset, asked.whence))

    async def _copy_file_range(self, header: Header, asked: requests.CopyFileRange) -> Answer:
        source, target = FileHandle(asked.fh_in), FileHandle(asked.fh_out)
        count = await self.fs.content.copy_range(
            source, asked.offset_in, target, asked.offset_out, asked.length, asked.flags
        )
        is_wide = header.opcode == Opcode.COPY_FILE_RANGE_64
        return replies.copied(count) if is_wide else replies.written(count)

    # Locks

    async def _getlk(self, header: Header, asked: requests.Lock) -> Answer:
        wanted = _range_of(asked)
        held = await self.fs.locking.get(FileHandle(asked.fh), asked.owner, wanted)
        found = held or replace(wanted, kind=fcntl.F_UNLCK, pid=0)
        return replies.lock(found.start, found.end, found.kind, found.pid)

    async def _setlk(self, header: Header, asked: requests.Lock) -> Answer:
        number = FileHandle(asked.fh)
        await self.fs.locking.set(number, asked.owner, _range_of(asked), is_flock=asked.is_flock)
        return _NOTHING

    async def _setlkw(self, header: Header, asked: requests.Lock) -> Answer:
        number = FileHandle(asked.fh)
        self.waiting[header.unique] = interrupted = trio.CancelScope()
        try:
            with self.under_way.waiting_for_others(), interrupted:
                await self.fs.locking.set_waiting(
                    number, asked.owner, _range_of(asked), is_flock=asked.is_flock
                )
                return _NOTHING
            raise Interrupted("a signal came while a lock was waited for")
        finally:
            del self.waiting[header.unique]

    # Directories

    async def _opendir(self, header: Header, asked: requests.Opendir) -> Answer:
        handle = await self.fs.listing.opendir(Inode(header.nodeid), caller_of(header))
        return Granted(replies.opened(handle, OpenFlags(0)), lambda: self.fs.listing.releasedir(handle))

    async def _readdirplus(self, header: Header, asked: requests.Readdirplus) -> Answer:
        listing, counted = Listing(asked.size), list[Inode]()

        def emit(name: bytes, found: Found, next_offset: int) -> bool:
            is_itself = name in (b".", b"..")
            nodeid = 0 if is_itself else found.record.ino
            if not listing.add_plus(name, next_offset, shown(found), nodeid, 0, 0):
                return False
            if not is_itself:
                counted.append(found.record.ino)
            return True

        async def take_back() -> None:
            for ino in counted:
                self.fs.forget(ino, 1)

        await self.fs.listing.readdir(FileHandle(asked.fh), asked.offset, emit)
        return Granted(listing.bytes(), take_back)

    async def _fsyncdir(self, header: Header, asked: requests.Fsyncdir) -> Answer:
        await self.fs.listing.fsyncdir(FileHandle(asked.fh), data_only=asked.data_only)
        return _NOTHING

    async def _releasedir(self, header: Header, asked: requests.Releasedir) -> Answer:
        await self.fs.listing.releasedir(FileHandle(asked.fh))
        return _NOTHING

    # Extended attributes

    async def _getxattr(self, header: Header, asked: requests.Getxattr) -> Answer:
        value = await self.fs.extended.get(Inode(header.nodeid), asked.name, caller_of(header))
        return _sized(value, asked.size)

    async def _listxattr(self, header: Header, asked: requests.Listxattr) -> Answer:
        names = await self.fs.extended.list(Inode(header.nodeid))
        return _sized(b"".join(name + b"\0" for name in names), asked.size)

    async def _setxattr(self, header: Header, asked: requests.Setxattr) -> Answer:
        inode, caller = Inode(header.nodeid), caller_of(header)
        await self.fs.extended.set(inode, asked.name, asked.value, caller, asked.flags)
        return _NOTHING

    async def _removexattr(self, header: Header, asked: requests.Removexattr) -> Answer:
        await self.fs.extended.remove(Inode(header.nodeid), asked.name, caller_of(header))
        return _NOTHING

    async def _nothing(self, header: Header, asked: object) -> Answer:
        return _NOTHING


def _sized(value: bytes, room: int) -> bytes:
    """Without any room its size is asked for. OSError (ERANGE) if there is too little."""
    if not room:
        return replies.xattr_size(len(value))
    if len(value) > room:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def _range_of(asked: requests.Lock) -> Range:
    return Range(asked.start, asked.end, asked.kind, asked.pid)


def caller_of(header: Header, umask: int = 0) -> Caller:
    return Caller(Uid(header.uid), Gid(header.gid), header.pid, umask)


def shown(found: Found) -> Attributes:
    """What callers see: the store's sizes and times, the record's owner, mode and number."""
    status, record = found.stat, found.record
    return Attributes(
        ino=record.ino,
        size=status.st_size,
        blocks=status.st_blocks,
        atime_ns=status.st_atime_ns,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        mode=record.mode,
        nlink=links_of(found),
        uid=record.uid,
        gid=record.gid,
        rdev=record.rdev,
        blksize=status.st_blksize,
    )


def _changes(asked: requests.Setattr) -> Changes:
    now = time.time_ns()
    return Changes(
        mode=asked.mode,
        uid=None if asked.uid is None else Uid(asked.uid),
        gid=None if asked.gid is None else Gid(asked.gid),
        size=asked.size,
        atime_ns=now if asked.atime_now else asked.atime,
        mtime_ns=now if asked.mtime_now else asked.mtime,
    )
