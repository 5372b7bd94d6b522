"""Open files: reading, writing, syncing, and when an image counts as complete."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import outcome
import trio

from ckfs.errors import FsError, Stale
from ckfs.fs.core import Core
from ckfs.fs.inodes import Handle, Node
from ckfs.fs.sets import Sets
from ckfs.model import Caller, Record, State
from ckfs.names import FileHandle, Gid, Inode, Uid, shown
from ckfs.policy import presented
from ckfs.store.door import Found, OpenFile, Target
from ckfs.store.gate import Release

log = logging.getLogger(__name__)

T = TypeVar("T")

KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_SYNC | os.O_DSYNC
"""Of a caller's open flags, those that the store's own descriptor gets too."""


@dataclass(frozen=True, slots=True)
class Content:
    core: Core
    sets: Sets

    # Opening and closing

    async def open(self, ino: Inode, flags: int, caller: Caller) -> FileHandle:
        node = self.core.inodes.get(ino)
        truncate = bool(flags & os.O_TRUNC)
        await self.sets.check_change(node, caller, writing=truncate or bool(flags & os.O_ACCMODE))
        self.core.check_handles(caller)
        change = self._begun_by(caller.uid, caller.gid)
        door = self.core.store.door

        def work() -> OpenFile:
            file = door.open_again(held, access) if held is not None else door.open(node.spot, access, ino)
            try:
                if truncate:
                    door.update(file if access & os.O_ACCMODE else node.spot, ino, change, size=0)
            except BaseException:
                os.close(file.fd)
                raise
            return file

        access, held = flags & KEPT_FLAGS, None
        node.truncating += truncate
        try:
            file = await self.core.opening(node, work, undo=_close)
        except (Stale, FileNotFoundError):
            if not node.handles:
                raise
            held = node.handles[0].file  # it has no name any more, but somebody has it open
            file = await self.core.gate.call(work, undo=_close, releases=(node.handles[0].pin(),))
        finally:
            node.truncating -= truncate
        if truncate:
            node.failed = False
        return self.opened(node, file, caller, flags, wrote=truncate)

    def opened(self, node: Node, file: OpenFile, caller: Caller, flags: int, *, wrote: bool) -> FileHandle:
        handle = Handle(node, file, caller, writable=bool(flags & os.O_ACCMODE))
        handle.direct = self._goes_past_the_cache(node, flags)
        handle.wrote = handle.marked = wrote
        node.with_handle(handle)
        return self.core.handles.add(handle)

    def _goes_past_the_cache(self, node: Node, flags: int) -> bool:
        """Whether reads and writes come in whole, up to 1 MiB each, instead of page by page.

        What is open for writing alone cannot be mapped anyhow, and gets ENOSPC from the very write that met it. Images of
        batch sets are read once, from end to end, and are not mapped shared (which would be ENODEV).
        """
        access = flags & os.O_ACCMODE
        if access == os.O_WRONLY or flags & os.O_DIRECT:
            return True
        try:
            return access == os.O_RDONLY and self.core.policy.is_batch(node.set_name)
        except Stale:
            return False

    def is_direct(self, number: FileHandle) -> bool:
        """Whether the kernel is to keep no pages for this handle."""
        return self.core.handle(number).direct

    async def release(self, number: FileHandle) -> None:
        handle = self.core.handle(number)
        if handle.wrote:  # through a mapping that outlived its descriptor
            with contextlib.suppress(OSError, FsError):
                await self.flush(number)
        self.core.handles.remove(number)
        handle.node.without_handle(handle)
        self.core.inodes.drop_unused(handle.node)
        handle.close_when_unused(lambda: close_soon(handle.fd))

    # Reading and writing

    async def read(self, number: FileHandle, offset: int, size: int) -> bytes | memoryview:
        """A memoryview is valid until the caller's next ``await``."""
        handle = self.core.handle(number)
        handle.stream.read(offset, size, time.monotonic())
        if not self.core.gate.answers_at_once:
            return await self._transfer(handle, lambda: os.pread(handle.fd, size, offset))
        piece = self.core.quick.read(handle.fd, offset, size)
        return await self._read_from_disk(handle, offset, size) if piece is None else piece

    async def _read_from_disk(self, handle: Handle, offset: int, size: int) -> bytes | memoryview:
        """One read at a time: a disk is read ahead for a reader who goes on in order, not for several at once."""
        async with handle.reading:
            piece = self.core.quick.read(handle.fd, offset, size)
            if piece is not None:  # read ahead meanwhile
                return piece
            return await self._transfer(handle, lambda: os.pread(handle.fd, size, offset))

    async def write(self, number: FileHandle, offset: int, data: bytes) -> int:
        """Returns how many bytes were written, which may be fewer than given where the store ran out of room."""
        handle = self.core.handle(number)
        handle.wrote = True  # before the mark: who settles meanwhile must see that somebody writes
        with self._failing(handle):
            if not handle.marked:
                await self._mark_writing(handle)
            return await self._transfer(handle, lambda: os.pwrite(handle.fd, data, offset))

    async def fsync(self, number: FileHandle, *, data_only: bool) -> None:
        handle = self.core.handle(number)
        sync = os.fdatasync if data_only else os.fsync
        with self._failing(handle):
            await self._transfer(handle, lambda: sync(handle.fd))

    @contextlib.contextmanager
    def _failing(self, handle: Handle) -> Iterator[None]:
        """What was written may be lost if the block fails: its image can only become partial."""
        try:
            yield
        except (OSError, FsError):
            handle.node.failed = handle.node.failed or handle.wrote
            raise

    async def _transfer(self, handle: Handle, work: Callable[[], T]) -> T:
        return await self.core.gate.transfer(
            work, releases=(handle.pin(),), of_set=self.core.set_key(handle.node)
        )

    # States

    def _begun_by(self, uid: Uid, gid: Gid) -> Callable[[Record], Record]:
        """An image's record from when somebody begins to write it."""

        def change(record: Record) -> Record:
            return presented.after_write(record, uid, gid).with_(
                state=State.WRITING, node=self.core.node_name
            )

        return change

    async def _mark_writing(self, handle: Handle) -> None:
        change = self._begun_by(handle.opener.uid, handle.opener.gid)
        found = await self._update(handle.node, handle, change)
        if found.stat.st_nlink == 0 and await self.sets.was_copied(handle.node):
            await self._update(handle.node, handle, change)
        handle.marked = True

    async def flush(self, number: FileHandle) -> None:
        """A descriptor of the file is closed: let the store say now what it has against the data, and settle the state.

        Other descriptors may live on (fork, dup): what is written afterwards is marked again.
        """
        handle = self.core.handle(number)
        if not handle.wrote:
            return
        try:
            with self._failing(handle):  # closing is when NFS reports a full quota
                await self._transfer(handle, lambda: os.close(os.dup(handle.fd)))
        finally:
            handle.wrote = handle.marked = False
            try:
                await self._settle(handle.node, handle)
            except (OSError, FsError):
                handle.wrote = True  # the release tries again
                raise

    async def _settle(self, node: Node, handle: Handle | None) -> None:
        """Mark an image complete, or partial, once nobody here is writing it under a final name."""
        if self._is_being_written(node) or not self.core.policy.is_final(node.name):
            return
        failed = node.failed

        def change(record: Record) -> Record:
            if record.state is not State.WRITING:
                return record
            return record.with_(state=State.PARTIAL if failed else State.COMPLETE)

        release = await self.core.locks.acquire(node.ino)
        if self._is_being_written(node):  # since this call waited for its turn
            release()
            return
        found = await self._update(node, handle, change, release)
        if found.stat.st_nlink == 0 and await self.sets.was_copied(node):
            node.failed = True  # in the copy, where the next attempt marks it
            raise OSError(errno.EIO, "the set was copied while the image was written")
        if failed:
            log.warning("image %s of set %s is partial: a write failed", shown(node.name), _set_of(node))
        elif found.record.state is State.COMPLETE:
            log.debug("image %s of set %s is complete", shown(node.name), _set_of(node))

    @staticmethod
    def _is_being_written(node: Node) -> bool:
        return node.truncating > 0 or any(handle.wrote for handle in node.handles)

    async def renamed(self, node: Node, old_name: bytes) -> None:
        """A closed image that moves from a temporary to a final name is complete."""
        if not self.core.policy.is_final(old_name) and not node.is_root:
            await self._settle(node, None)

    async def _update(
        self,
        node: Node,
        handle: Handle | None,
        change: Callable[[Record], Record],
        release: Release | None = None,
    ) -> Found:
        """Amend the record of *node*, whose lock *release* gives back if the caller has it already."""
        door = self.core.store.door
        releases = [release or await self.core.locks.acquire(node.ino)]
        target: Target
        try:
            if handle is None:
                target = self.core.target(node, releases)
            else:
                target = handle.file
                releases.append(handle.pin())
        except BaseException:
            for held in releases:
                held()
            raise
        return await self.core.gate.call(
            lambda: door.amend(target, node.ino, change),
            releases=releases,
            of_set=self.core.set_key(node),
        )


def _set_of(node: Node) -> str:
    try:
        return shown(node.top.name)
    except Stale:
        return "(removed)"


def _close(file: OpenFile) -> None:
    os.close(file.fd)


def close_soon(fd: int) -> None:
    """Close in a thread, since a store may hang there too; nobody waits for it. Here and now if no thread is to be had."""

    def close() -> None:
        os.close(fd)

    try:
        trio.lowlevel.start_thread_soon(close, _log_failed_close)
    except RuntimeError:
        _log_failed_close(outcome.capture(close))


def _log_failed_close(result: outcome.Outcome[None]) -> None:
    if isinstance(result, outcome.Error):
        log.warning("closing a file of the store failed: %s", result.error)
