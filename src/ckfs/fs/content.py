"""Open files: reading, syncing, closing, and when an image counts as complete. Opening them is in :mod:`ckfs.fs.opening`, what changes
their content in :mod:`ckfs.fs.writing`."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from ckfs.errors import Fenced, FsError, Invalid, Stale
from ckfs.fs import lateness
from ckfs.fs.allocating import Allocating
from ckfs.fs.closing import close_soon
from ckfs.fs.core import Core
from ckfs.fs.duplicating import Duplicating
from ckfs.fs.inodes import Handle, stored_owner
from ckfs.fs.passing import Passing
from ckfs.fs.sets import Sets
from ckfs.fs.states import States
from ckfs.fs.writing import Writing
from ckfs.model import Data
from ckfs.names import FileHandle
from ckfs.owners.processes import open_for_writing
from ckfs.store import seeking

log = logging.getLogger(__name__)

T = TypeVar("T")

_SETTLE_INTERVAL_S = 2.0


@dataclass(frozen=True, slots=True)
class Content:
    core: Core
    sets: Sets
    states: States
    writing: Writing
    passing: Passing
    allocating: Allocating
    duplicating: Duplicating

    # Closing

    async def release(self, number: FileHandle) -> None:
        handle = self.core.handle(number)
        with self.passing.unseen.releasing(handle):
            await self._release(number, handle)

    async def _release(self, number: FileHandle, handle: Handle) -> None:
        await self.passing.unseen.ending(handle)
        with contextlib.suppress(OSError, FsError):
            if await self.passing.unseen.was_mapped(handle):
                await self.writing.begin(handle)
        if handle.wrote:  # through a mapping that outlived its descriptor, or by a child of its opener
            with contextlib.suppress(OSError, FsError):
                await self._hand_over(handle)
            await self._settle_or_later(handle)
        while handle.node.truncating:  # who overwrites it settles it, unless that fails
            await handle.node.until_truncated()
            if handle.mount is not None:
                await self._settle_or_later(handle)
        await self.passing.unseen.remember(handle)
        self.core.handles.remove(number)
        handle.node.without_handle(handle)
        self.passing.released(handle)
        self.core.charging.closed(handle)
        self.core.inodes.drop_unused(handle.node)
        handle.close_when_unused(lambda: close_soon(handle.fd))

    async def _settle_or_later(self, handle: Handle) -> None:
        try:
            await self._settle(handle)
        except Fenced:
            pass
        except (OSError, FsError):
            handle.node.unsettled = handle.node.removed is None

    async def end(self) -> None:
        """The mount is gone: what was written unseen, and has been closed by all, is released. The kernel does not wait to say so."""
        for number in self.core.handles.numbers():
            handle = self.core.handle(number)
            if handle.is_written_unseen:
                self.passing.let_go(handle.node)
                if not await self.passing.unseen.goes_on_without(handle.node):
                    await self.release(number)

    async def settle_later(self) -> None:
        """Settle what could not be settled when its last writer ended; runs for the life of the mount."""
        while True:
            await trio.sleep(_SETTLE_INTERVAL_S)
            for node in self.core.inodes.unsettled() if self.core.gate.is_up else ():
                try:
                    await self.states.settle(node, None)
                except (FileNotFoundError, Stale):
                    node.unsettled = False  # it has been removed
                except (OSError, FsError) as error:
                    log.debug("image of inode %x cannot be settled yet: %s", node.ino, error)
                self.core.inodes.drop_unused(node)

    # Reading and writing

    async def read(self, number: FileHandle, offset: int, size: int) -> bytes | memoryview:
        """A memoryview is valid until the caller's next ``await``. Transports try :meth:`found_at_once` before."""
        handle = self.core.handle(number)
        handle.stream.read(offset, size, time.monotonic())
        is_near = self.core.gate.answers_at_once
        piece = await (self._read_from_disk if is_near else self._read_by_thread)(handle, offset, size)
        self._has_read(handle, len(piece))
        return piece

    def found_at_once(self, number: FileHandle, offset: int, size: int) -> memoryview | None:
        """What the store has in memory, valid as for :meth:`read`; None if something would have to be waited for, or there is no such handle."""
        handle = self.core.handles.find(number)
        if handle is None or not self.core.gate.answers_at_once:
            return None
        piece = self.core.quick.read(handle.fd, offset, size)
        if piece is not None:
            handle.stream.read(offset, size, time.monotonic())
            self._has_read(handle, len(piece))
        return piece

    def _has_read(self, handle: Handle, count: int) -> None:
        traffic = self.core.figures.traffic
        traffic.bytes_read += count
        if not handle.has_read:
            handle.has_read = True
            traffic.sets_read.add(self.core.set_key(handle.node))

    async def _read_from_disk(self, handle: Handle, offset: int, size: int) -> bytes | memoryview:
        """One read at a time: a disk is read ahead for a reader who goes on in order, not for several at once."""
        async with handle.reading:
            piece = self.core.quick.read(handle.fd, offset, size)
            if piece is not None:  # read ahead meanwhile
                return piece
            return await self._read_by_thread(handle, offset, size)

    async def _read_by_thread(self, handle: Handle, offset: int, size: int) -> bytes:
        return await self._looked_at(handle, lambda: os.pread(handle.fd, size, offset))

    async def _looked_at(self, handle: Handle, work: Callable[[], T]) -> T:
        """What *work* finds in the content."""
        try:
            return await self.writing.transfer(handle, work)
        except (
            Stale
        ):  # on a network's store that is all that is left of a file which another host has removed
            if not await self.sets.was_copied(handle.node):
                raise
            return await self.writing.transfer(handle, work)

    async def seek(self, number: FileHandle, offset: int, whence: int) -> int:
        """Where the next data or hole begins (SEEK_DATA, SEEK_HOLE). What was allocated and not written is a hole, or data, as the store has
        it. OSError (ENXIO) behind the end."""
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise Invalid("the kernel seeks the rest itself")
        handle, door = self.core.handle(number), self.core.store.door
        return await self._looked_at(
            handle, lambda: seeking.seek(door, handle.file, offset, whence, anew=handle.appends)
        )

    def wrote_at_once(self, number: FileHandle, offset: int, data: Data) -> bool:
        """As :meth:`Writing.wrote_at_once`; False also if there is no such handle."""
        handle = self.core.handles.find(number)
        return handle is not None and self.writing.wrote_at_once(handle, offset, data)

    async def write(self, number: FileHandle, offset: int, data: Data) -> int:
        """As :meth:`Writing.write`."""
        return await self.writing.write(self.core.handle(number), offset, data)

    async def allocate(self, number: FileHandle, mode: int, offset: int, length: int) -> None:
        """As :meth:`Allocating.allocate`."""
        await self.allocating.allocate(self.core.handle(number), mode, offset, length)

    async def copy_range(
        self,
        source: FileHandle,
        offset_in: int,
        target: FileHandle,
        offset_out: int,
        length: int,
        flags: int,
    ) -> int:
        """As :meth:`Duplicating.copy_range`."""
        return await self.duplicating.copy_range(
            self.core.handle(source), offset_in, self.core.handle(target), offset_out, length, flags
        )

    async def fsync(self, number: FileHandle, *, data_only: bool) -> None:
        handle = self.core.handle(number)
        sync = os.fdatasync if data_only else os.fsync
        handle.node.unsynced = False  # before: what is written meanwhile may not be in it
        with self.writing.failing(handle):
            await self.core.assure_membership(handle.mount)
            await self._ask(handle, lambda: sync(handle.fd))
            self._check_all_written(handle)
        await self.states.synced(handle)

    async def flush(self, number: FileHandle) -> None:
        """A descriptor of the file is closed: let the store say now what it has against the data, and settle the state.

        While its opener has others of it (fork, dup), nothing is settled but what the store had to say; nor is what is written unseen,
        before nobody has it any more.
        """
        handle = self.core.handle(number)
        if not handle.wrote:
            return
        if handle.is_written_unseen:
            await self.passing.unseen.flush(handle)
            return
        try:
            goes_on = await self._hand_over(handle)
        except (OSError, FsError):
            await self._settle(handle)
            raise
        if not goes_on:
            await self._settle(handle)

    async def _hand_over(self, handle: Handle) -> bool:
        """Whether whoever opened *handle* has it open for writing still, after one descriptor of it was closed."""
        node, process = handle.node, handle.process
        others = sum(other.process == process and other is not handle for other in node.handles)
        asks = self.core.late.is_late and node.taken.is_any

        def work() -> bool:
            if asks:
                lateness.ask(handle.fd)
            os.close(os.dup(handle.fd))  # closing is when NFS reports a full quota
            return process is not None and open_for_writing(process, node.ino) > others

        with self.writing.failing(handle):
            goes_on = await self._ask(handle, work)
            self._check_all_written(handle)
        return goes_on

    async def _ask(self, handle: Handle, work: Callable[[], T]) -> T:
        """Run *work*, in which the store says whether it keeps what it took."""
        taken, owner, door = handle.node.taken, stored_owner(handle.node), self.core.store.door
        before, stored = taken.bytes, None if owner is None else owner.uid

        def asking() -> T:
            with door.refusals.stored_as(stored):
                return work()

        try:
            result = await self.writing.transfer(handle, asking)
        except OSError as error:
            raise self.core.late.refused(error, owner, earlier=taken.is_any) from error
        taken.kept(before)
        return result

    @staticmethod
    def _check_all_written(handle: Handle) -> None:
        """Nobody else says of what was stored in a mapping that there was no room for it. It is said once."""
        node = handle.node
        unwritten, node.unwritten = node.unwritten, None
        if unwritten is not None:
            node.failed = True
            raise OSError(unwritten.errno, os.strerror(unwritten.errno))

    async def _settle(self, handle: Handle) -> None:
        handle.wrote = handle.marked = handle.admitted = False
        try:
            await self.states.settle(handle.node, handle)
        except (OSError, FsError):
            handle.wrote = True  # the release tries again
            raise
        await self.core.charging.settled()
