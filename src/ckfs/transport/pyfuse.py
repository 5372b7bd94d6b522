"""The pyfuse3 transport."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from ckfs.errors import FsError, MountFailed, errno_of
from ckfs.fs.filesystem import Filesystem
from ckfs.fs.metadata import Changes
from ckfs.fs.space import Space
from ckfs.model import Caller
from ckfs.names import FileHandle, Gid, Inode, Uid
from ckfs.store.spots import Found
from ckfs.transport.shown import links_of
from ckfs.transport.transport import MOST_REQUESTS, Transport
from ckfs.transport.under_way import UnderWay

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def replies(
    handler: Callable[Concatenate[Operations, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Operations, P], Coroutine[Any, Any, T]]:
    """Turn whatever escapes *handler* into an errno: an exception that pyfuse3 does not expect would end the mount."""

    @functools.wraps(handler)
    async def replying(self: Operations, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.requests.begin()
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError:
            raise
        except (FsError, OSError, RecursionError) as error:
            raise FUSEError(errno_of(error)) from None
        except Exception as error:
            log.exception("%s failed unexpectedly", handler.__name__)
            raise FUSEError(errno_of(error)) from None
        except BaseException:  # noqa: BLE001 - trio.Cancelled, which no answer would follow otherwise
            # A task cancelled while the mount ends: its caller still gets an answer, and trio cancels the next await.
            raise FUSEError(errno.EIO) from None
        finally:
            self.requests.end()

    return replying


class Operations(pyfuse3.Operations):
    """Requests of the kernel, as pyfuse3 hands them over."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, fs: Filesystem, under_way: UnderWay) -> None:
        super().__init__()
        self._fs = fs
        self.requests = under_way

    # Names

    @replies
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        found = await self._fs.naming.lookup(Inode(parent_inode), name)
        entry = attributes_of(found)
        entry.attr_timeout = self._fs.metadata.lookup_holds_s(found)
        return entry

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for inode, count in inode_list:
            self._fs.forget(Inode(inode), count)

    @replies
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        return attributes_of(await self._fs.naming.mkdir(Inode(parent_inode), name, mode, caller_of(ctx)))

    @replies
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return attributes_of(
            await self._fs.naming.mknod(Inode(parent_inode), name, mode, rdev, caller_of(ctx))
        )

    @replies
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        return attributes_of(await self._fs.naming.symlink(Inode(parent_inode), name, target, caller_of(ctx)))

    @replies
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        found = await self._fs.naming.link(Inode(inode), Inode(new_parent_inode), new_name, caller_of(ctx))
        return attributes_of(found)

    @replies
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return FileNameT(await self._fs.naming.readlink(Inode(inode)))

    @replies
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self._fs.naming.unlink(Inode(parent_inode), name, caller_of(ctx))

    @replies
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self._fs.naming.rmdir(Inode(parent_inode), name, caller_of(ctx))

    @replies
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        await self._fs.naming.rename(
            Inode(parent_inode_old), name_old, Inode(parent_inode_new), name_new, flags, caller_of(ctx)
        )

    # Metadata

    @replies
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        found = await self._fs.metadata.getattr(Inode(inode))
        entry = attributes_of(found)
        entry.attr_timeout = self._fs.metadata.answer_holds_s(found)
        return entry

    @replies
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        handle = None if fh is None else FileHandle(fh)
        found = await self._fs.metadata.setattr(
            Inode(inode), _changes_of(attr, fields), handle, caller_of(ctx)
        )
        return attributes_of(found)

    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        return True  # the kernel checks permissions itself (default_permissions)

    @replies
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        return statvfs_of(await self._fs.metadata.statfs(caller_of(ctx)))

    # Content

    @replies
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        handle, found = await self._fs.naming.create(Inode(parent_inode), name, mode, flags, caller_of(ctx))
        return self._file_info(handle), attributes_of(found)

    @replies
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        return self._file_info(await self._fs.opening.open(Inode(inode), flags, caller_of(ctx)))

    def _file_info(self, handle: FileHandle) -> FileInfo:
        direct = self._fs.opening.is_direct(handle)
        return FileInfo(fh=FileHandleT(handle), direct_io=direct, keep_cache=False)

    @replies
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        number, content = FileHandle(fh), self._fs.content
        found = content.found_at_once(number, off, size)
        if found is None:
            return await content.read(number, off, size)  # type: ignore[return-value]  # any buffer: it is done with before pyfuse3 awaits anything
        return found  # type: ignore[return-value]  # as above

    @replies
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        return await self._fs.content.write(FileHandle(fh), off, buf)

    @replies
    async def flush(self, fh: FileHandleT) -> None:
        await self._fs.content.flush(FileHandle(fh))

    @replies
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await self._fs.content.fsync(FileHandle(fh), data_only=datasync)

    @replies
    async def release(self, fh: FileHandleT) -> None:
        await self._fs.content.release(FileHandle(fh))

    # Directories

    @replies
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(await self._fs.listing.opendir(Inode(inode), caller_of(ctx)))

    @replies
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        def emit(name: bytes, found: Found, next_offset: int) -> bool:
            return pyfuse3.readdir_reply(token, FileNameT(name), attributes_of(found), next_offset)

        await self._fs.listing.readdir(FileHandle(fh), start_id, emit)

    @replies
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        await self._fs.listing.fsyncdir(FileHandle(fh), data_only=datasync)

    @replies
    async def releasedir(self, fh: FileHandleT) -> None:
        await self._fs.listing.releasedir(FileHandle(fh))

    # Extended attributes

    @replies
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        return await self._fs.extended.get(Inode(inode), name, caller_of(ctx))

    @replies
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        await self._fs.extended.set(Inode(inode), name, value, caller_of(ctx))

    @replies
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        return [XAttrNameT(name) for name in await self._fs.extended.list(Inode(inode))]

    @replies
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        await self._fs.extended.remove(Inode(inode), name, caller_of(ctx))


class Pyfuse(Transport):
    name = "pyfuse3"

    def __init__(self, fs: Filesystem) -> None:
        super().__init__()
        self._operations = Operations(fs, self.requests)

    def begin(self, fd: int) -> None:
        try:
            pyfuse3.init(self._operations, f"/dev/fd/{fd}", set())
        except RuntimeError as error:
            raise MountFailed(f"pyfuse3: {error}") from None

    @property
    def details(self) -> str:
        return f"pyfuse3 {pyfuse3.__version__}, which cannot pass through"

    async def run(self) -> None:
        await pyfuse3.main(max_tasks=MOST_REQUESTS)

    def end(self) -> None:
        pyfuse3.terminate()

    def close(self) -> None:
        pyfuse3.close(unmount=False)


def caller_of(ctx: RequestContext) -> Caller:
    return Caller(Uid(ctx.uid), Gid(ctx.gid), ctx.pid, ctx.umask)


def attributes_of(found: Found) -> EntryAttributes:
    """What callers see: the store's sizes and times, the record's owner, mode and number. The kernel keeps nothing of it (0 s), unless
    whoever answers says otherwise."""
    entry, status, record = EntryAttributes(), found.stat, found.record
    entry.st_ino = InodeT(record.ino)
    entry.entry_timeout = entry.attr_timeout = 0
    entry.st_mode = ModeT(record.mode)
    entry.st_uid, entry.st_gid = record.uid, record.gid
    entry.st_rdev = record.rdev
    entry.st_nlink = links_of(found)
    entry.st_size = status.st_size
    entry.st_blksize, entry.st_blocks = status.st_blksize, status.st_blocks
    entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = (
        status.st_atime_ns,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
    return entry


def statvfs_of(space: Space) -> StatvfsData:
    answer = StatvfsData()
    answer.f_bsize, answer.f_frsize = space.io_bytes, space.block_bytes
    answer.f_blocks, answer.f_bfree, answer.f_bavail = space.blocks, space.free_blocks, space.available_blocks
    answer.f_files, answer.f_ffree, answer.f_favail = space.files, space.free_files, space.available_files
    answer.f_namemax = space.longest_name
    return answer


def _changes_of(attr: EntryAttributes, fields: SetattrFields) -> Changes:
    return Changes(
        mode=attr.st_mode if fields.update_mode else None,
        uid=Uid(attr.st_uid) if fields.update_uid else None,
        gid=Gid(attr.st_gid) if fields.update_gid else None,
        size=attr.st_size if fields.update_size else None,
        atime_ns=attr.st_atime_ns if fields.update_atime else None,
        mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
    )
