"""A store that behaves like NFS whose server squashes root: the fault store (:mod:`tests.support.faultfs`) as one client of it.

Several of these over one directory are as many clients of one server: each is a process with a cache of its own. They serve with

    python -m tests.support.nfsfs BACKING MOUNTPOINT CONTROL_SOCKET JSON

where JSON has the fields of :class:`Options`. Beside what the fault store obeys, ``expire`` lets all that is remembered of attributes expire.

What is as on NFS 4 (Linux 6.x):

- The server asks who the calling thread is, on every call but read and write, which are made as who opened the file; fsync and
  close are about what was written, and are too. Root, and root's group, are 65534 there. Nobody gives files away.
- Writes are acknowledged at once, and sent at close, at fsync, before attributes are asked or changed, and when more than
  ``unsent_bytes`` have gathered. If the server then has no room, the data is dropped, and close or fsync says so; a write only if it was
  the one that had them sent.
- Attributes hold for ``attributes_s``, names as long as the directory's attributes look the same, also names that there are
  none of (``negative``). Opening a file asks anew.
- A file that loses its last name while it is open on this client is renamed to ``.nfs…``, and goes when it is closed; one that
  another client removed is ESTALE.
- No RENAME_NOREPLACE, RENAME_EXCHANGE or O_TMPFILE. Users' attributes (NFS 4.2) unless ``attributes`` is false.

What is not: locks (flock) hold on one client only, as with ``local_lock=all``; there is no SEEK_DATA and no fallocate, as before
NFS 4.2; and whether an attribute exists, for XATTR_CREATE, is asked just before it is set.

Tests use :func:`tests.support.nfs.nfs_store`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyfuse3
import trio

from tests.support.faultfs import FaultFs, Faults, acting_as, answers, check_user, run, thread_group_of
from tests.support.nfscache import Cache, Unsent

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """Of a client, and of its server: *limits_file* has the server's quotas (:class:`Quotas`)."""

    limits_file: str
    attributes_s: float = 0.0
    negative: bool = True
    unsent_bytes: int = 64 << 20
    attributes: bool = True


class ClientFaults(Faults):
    """The faults of a client, which may also be told that time has passed."""

    cache: Cache

    def command(self, line: str) -> str:
        if line.split() == ["expire"]:
            self.cache.expire()
            return ""
        return super().command(line)


class Quotas:
    """The server's, by uid, in bytes: ``{"2101": 1048576}``. Shared by all clients through a file, which is locked meanwhile."""

    def __init__(self, limits_file: str, top: str) -> None:
        self._file = limits_file
        self._top = top

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """Write all of *data*, or as much as there is room for and then EDQUOT."""
        with open(self._file, "rb") as file:
            limits = json.load(file)
            status = os.fstat(fd)
            limit = limits.get(str(status.st_uid))
            if limit is None:
                _write_all(fd, data, offset)
                return
            fcntl.flock(file, fcntl.LOCK_EX)
            _write_all(fd, data, offset)
            over = self._used_by(status.st_uid) - limit
            if over > 0 and offset + len(data) > status.st_size:
                kept = max(status.st_size, offset + len(data) - over)
                os.ftruncate(fd, kept)
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    def _used_by(self, uid: int) -> int:
        used: dict[int, int] = {}
        for directory, _, names in os.walk(self._top):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    status = os.lstat(f"{directory}/{name}")
                    if status.st_uid == uid and stat.S_ISREG(status.st_mode):
                        used[status.st_ino] = status.st_blocks * 512
        return sum(used.values())


def _write_all(fd: int, data: bytes, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count


@dataclass
class _Open:
    """A file that is open on this client. *errors*: up to which its opener was told of (:meth:`Unsent.sample`)."""

    ino: int
    writable: bool
    errors: int


@dataclass(frozen=True)
class _Silly:
    """Where a file waits that has lost its name while it was open, and who took it."""

    directory: int
    name: bytes
    who: tuple[int, int]


class NfsFs(FaultFs):
    """One client."""

    def __init__(self, backing: str, faults: ClientFaults, options: Options) -> None:
        super().__init__(backing, faults)
        self._options = options
        self._cache = faults.cache = Cache(options.attributes_s, options.negative)
        self._quotas = Quotas(options.limits_file, backing)
        self._unsent: dict[int, Unsent] = {}
        self._open: dict[int, _Open] = {}
        self._times_open: Counter[int] = Counter()
        self._silly: dict[int, _Silly] = {}
        self._numbers = itertools.count(1)

    # The server

    async def _call(
        self, op: str, ctx: pyfuse3.RequestContext, inode: int, name: bytes, call: Callable[[], T]
    ) -> T:
        fd = self._nodes[inode].fd

        def on_server() -> T:
            _check_there(fd)
            return call()

        return await super()._call(op, ctx, inode, name, on_server)

    async def _on_handle(self, op: str, fh: int, call: Callable[[], T]) -> T:
        def on_server() -> T:
            _check_there(fh)
            return call()

        return await super()._on_handle(op, fh, on_server)

    # What this client remembers

    def _attributes(self, st: os.stat_result) -> pyfuse3.EntryAttributes:
        entry = super()._attributes(st)
        unsent = self._unsent.get(st.st_ino)
        if unsent is not None:
            entry.st_size = max(entry.st_size, unsent.end)
        return entry

    def _known(self, fd: int) -> pyfuse3.EntryAttributes:
        self._cache.saw(os.fstat(fd))
        return super()._known(fd)

    async def _status(self, inode: int, ctx: pyfuse3.RequestContext) -> os.stat_result:
        """As it looks to this client."""
        fd = self._nodes[inode].fd
        status = self._cache.status(os.fstat(fd).st_ino)
        if status is None:
            status = await self._call("getattr", ctx, inode, b"", lambda: os.fstat(fd))
            self._cache.saw(status)
        return status

    def _changed(self, *inodes: int) -> None:
        self._cache.changed(*(os.fstat(self._nodes[inode].fd).st_ino for inode in inodes))

    @answers
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        await self._send_all(inode)
        return self._attributes(await self._status(inode, ctx))

    @answers
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if not self._cache.is_on:
            return await super().lookup(parent_inode, name, ctx)
        parent = await self._status(parent_inode, ctx)
        if not self._cache.may_search(parent, self._who(ctx)):
            await self._ask_to_search(parent_inode, ctx)
            self._cache.let_search(parent, self._who(ctx))
        if self._cache.knows(parent, name):
            ino = self._cache.name(parent, name)
            if ino is None:
                raise pyfuse3.FUSEError(errno.ENOENT)
            node = self._nodes.get(ino)
            if node is not None:
                with contextlib.suppress(OSError):
                    entry = self._attributes(await self._status(ino, ctx))
                    node.lookups += 1
                    return entry
        return await self._look_up(parent, parent_inode, name, ctx)

    async def _ask_to_search(self, directory: int, ctx: pyfuse3.RequestContext) -> None:
        link = self._nodes[directory].link
        may = await self._call(
            "access", ctx, directory, b"", lambda: os.access(link, os.X_OK, effective_ids=True)
        )
        if not may:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    async def _look_up(
        self, parent: os.stat_result, inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        try:
            entry = await super().lookup(inode, name, ctx)
        except pyfuse3.FUSEError as error:
            if error.errno == errno.ENOENT:
                self._cache.found(parent, name, None)
            raise
        self._cache.found(parent, name, entry.st_ino)
        return entry

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        await super().forget(inode_list)
        for inode, _ in inode_list:
            if inode not in self._nodes and inode not in self._times_open:
                self._cache.forget(inode)
                self._unsent.pop(inode, None)

    # Names

    async def _made(
        self, op: str, ctx: pyfuse3.RequestContext, parent: int, name: bytes, make: Callable[[int], object]
    ) -> pyfuse3.EntryAttributes:
        self._changed(parent)
        return await super()._made(op, ctx, parent, name, make)

    @answers
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        at, who = self._nodes[parent_inode].fd, self._who(ctx)

        def call() -> int:
            ino = os.stat(name, dir_fd=at, follow_symlinks=False).st_ino
            if not self._put_aside(at, name, who):
                os.unlink(name, dir_fd=at)
            return ino

        self._cache.changed(await self._call("unlink", ctx, parent_inode, name, call))
        self._changed(parent_inode)

    @answers
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await super().rmdir(parent_inode, name, ctx)
        self._changed(parent_inode)

    @answers
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        if flags:
            raise pyfuse3.FUSEError(errno.EINVAL)
        old, new, who = self._nodes[parent_inode_old].fd, self._nodes[parent_inode_new].fd, self._who(ctx)

        def call() -> list[int]:
            involved = [os.stat(name_old, dir_fd=old, follow_symlinks=False).st_ino]
            with contextlib.suppress(FileNotFoundError):
                involved.append(os.stat(name_new, dir_fd=new, follow_symlinks=False).st_ino)
                if len(set(involved)) == 2:
                    self._put_aside(new, name_new, who)
            os.rename(name_old, name_new, src_dir_fd=old, dst_dir_fd=new)
            return involved

        self._cache.changed(*await self._call("rename", ctx, parent_inode_old, name_old, call))
        self._changed(parent_inode_old, parent_inode_new)

    def _put_aside(self, at: int, name: bytes, who: tuple[int, int]) -> bool:
        """Rename what has only this name and is open here. Called by a thread, as the caller."""
        status = os.stat(name, dir_fd=at, follow_symlinks=False)
        if status.st_ino in self._silly and name.startswith(b".nfs"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        if status.st_nlink != 1 or not self._times_open[status.st_ino]:
            return False
        aside = b".nfs%016x%08x" % (status.st_ino, next(self._numbers))
        os.rename(name, aside, src_dir_fd=at, dst_dir_fd=at)
        self._silly[status.st_ino] = _Silly(os.dup(at), aside, who)
        return True

    # Attributes

    @answers
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        await self._send_all(inode)
        self._changed(inode)
        return await super().setattr(inode, attr, fields, fh, ctx)

    def _check_attributes(self) -> None:
        if not self._options.attributes:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    @answers
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._check_attributes()
        self._changed(inode)
        await super().setxattr(inode, name, value, ctx)

    @answers
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        check_user(name)
        self._check_attributes()
        if not self._cache.is_on:
            return await super().getxattr(inode, name, ctx)
        status = await self._status(inode, ctx)
        value = self._cache.value(status, name)
        if value is None:
            value = await super().getxattr(inode, name, ctx)
            self._cache.read_value(status, name, value)
        return value

    @answers
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """The server wants who asks to be one who may read the file (nfsd_listxattr); a local file system tells everybody."""
        self._check_attributes()
        return await super().listxattr(inode, ctx)

    @staticmethod
    def names_of_attributes(link: str) -> list[str]:
        if not os.access(link, os.R_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return FaultFs.names_of_attributes(link)

    @answers
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._check_attributes()
        self._changed(inode)
        await super().removexattr(inode, name, ctx)

    # Data

    def _opened(self, fd: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        self._openers[fd] = thread_group_of(ctx.pid)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(fd))
        self._cache.changed(status.st_ino)  # whoever opens a file sees what others wrote and closed
        unsent = self._unsent.get(status.st_ino)
        writable = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE)
        self._open[fd] = _Open(status.st_ino, writable, unsent.sample() if unsent is not None else 0)
        self._times_open[status.st_ino] += 1
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(fd), direct_io=True)

    @answers
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        self._changed(parent_inode)
        return await super().create(parent_inode, name, mode, flags, ctx)

    @answers
    async def read(self, fh: int, off: int, size: int) -> bytes:
        data = await self._on_handle("read", fh, lambda: os.pread(fh, size, off))
        unsent = self._unsent.get(self._open[fh].ino)
        return data if unsent is None else unsent.over(data, off, size)

    @answers
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        file = self._open[fh]
        unsent = self._unsent.setdefault(file.ino, Unsent())
        unsent.chunks.append((fh, off, buf))
        if unsent.size > self._options.unsent_bytes:
            before = unsent.sample()
            await self._send(file.ino)
            if unsent.errors > before:
                self._say(file, unsent)
        return len(buf)

    @answers
    async def flush(self, fh: int) -> None:
        file = self._open.get(fh)
        if file is None or not file.writable:
            return
        unsent = self._unsent.setdefault(file.ino, Unsent())
        before = unsent.sample()
        await super()._on_handle("flush", fh, lambda: None)
        await self._send(file.ino)
        if unsent.errors > before:
            raise OSError(unsent.errno, os.strerror(unsent.errno))

    @answers
    async def fsync(self, fh: int, datasync: bool) -> None:
        file = self._open[fh]
        await self._send(file.ino)
        await self._on_handle("fsync", fh, lambda: os.fdatasync(fh) if datasync else os.fsync(fh))
        unsent = self._unsent.get(file.ino)
        if unsent is not None and unsent.errors > file.errors:
            self._say(file, unsent)

    @staticmethod
    def _say(file: _Open, unsent: Unsent) -> None:
        file.errors, unsent.is_said = unsent.errors, True
        raise OSError(unsent.errno, os.strerror(unsent.errno))

    async def _send_all(self, inode: int) -> None:
        await self._send(os.fstat(self._nodes[inode].fd).st_ino)

    async def _send(self, ino: int) -> None:
        """Send the server what was written to *ino*; what it has no room for is dropped, and noted."""
        unsent = self._unsent.get(ino)
        if unsent is None:
            return
        async with unsent.sending:
            while unsent.chunks:
                fh, offset, data = unsent.chunks[0]
                try:
                    await self._on_handle("write", fh, _writing(self._quotas, fh, data, offset))
                except OSError as error:
                    unsent.failed(error.errno or errno.EIO)
                finally:
                    unsent.chunks.pop(0)
                    self._cache.changed(ino)

    @answers
    async def release(self, fh: int) -> None:
        file = self._open.pop(fh, None)
        if file is None:
            await super().release(fh)
            return
        aside = self._closed(file.ino)  # at once: the kernel may have sent an unlink right behind this
        if file.writable:
            await self._send(file.ino)
        await super().release(fh)
        if aside is not None:
            await trio.to_thread.run_sync(_remove, aside)

    def _closed(self, ino: int) -> _Silly | None:
        """One handle of it less; what waited for the last one, if it was that."""
        self._times_open[ino] -= 1
        if self._times_open[ino]:
            return None
        del self._times_open[ino]
        return self._silly.pop(ino, None)


def _writing(quotas: Quotas, fh: int, data: bytes, offset: int) -> Callable[[], None]:
    return lambda: quotas.write(fh, data, offset)


def _check_there(fd: int) -> None:
    if os.fstat(fd).st_nlink == 0:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def _remove(aside: _Silly) -> None:
    try:
        with contextlib.suppress(OSError), acting_as(*aside.who):
            os.unlink(aside.name, dir_fd=aside.directory)
    finally:
        os.close(aside.directory)


def main(backing: str, mountpoint: str, control: str, options: str) -> None:
    """Serve until the mount is taken away."""
    fields: dict[str, Any] = json.loads(options)
    faults = ClientFaults(squash=True)
    run(NfsFs(backing, faults, Options(**fields)), faults, mountpoint, control)


if __name__ == "__main__":
    main(*sys.argv[1:])
