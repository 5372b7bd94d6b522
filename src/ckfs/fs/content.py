"""Open files: reading, writing, syncing, closing, and when an image counts as complete. Opening them is in :mod:`ckfs.fs.opening`."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio

from ckfs.errors import Denied, Fenced, FsError, NoGrant, Stale, errno_of
from ckfs.fs import lateness
from ckfs.fs.charges import Claim
from ckfs.fs.closing import close_soon
from ckfs.fs.core import Core
from ckfs.fs.inodes import Handle, Node, Unwritten, stored_owner, volume_of
from ckfs.fs.sets import Sets
from ckfs.fs.states import States
from ckfs.model import Owner
from ckfs.names import FileHandle
from ckfs.owners.processes import open_for_writing
from ckfs.store.appending import append, append_at
from ckfs.store.gate import Release

log = logging.getLogger(__name__)

T = TypeVar("T")

_SETTLE_INTERVAL_S = 2.0


@dataclass(frozen=True, slots=True)
class Content:
    core: Core
    sets: Sets
    states: States

    # Closing

    async def release(self, number: FileHandle) -> None:
        handle = self.core.handle(number)
        if handle.wrote:  # through a mapping that outlived its descriptor, or by a child of its opener
            with contextlib.suppress(OSError, FsError):
                await self._hand_over(handle)
            await self._settle_or_later(handle)
        while handle.node.truncating:  # who overwrites it settles it, unless that fails
            await handle.node.until_truncated()
            if handle.mount is not None:
                await self._settle_or_later(handle)
        self.core.handles.remove(number)
        handle.node.without_handle(handle)
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
        """A memoryview is valid until the caller's next ``await``."""
        handle, traffic = self.core.handle(number), self.core.figures.traffic
        handle.stream.read(offset, size, time.monotonic())
        if not self.core.gate.answers_at_once:
            piece: bytes | memoryview | None = await self._read_by_thread(handle, offset, size)
        else:
            piece = self.core.quick.read(handle.fd, offset, size)
        if piece is None:
            piece = await self._read_from_disk(handle, offset, size)
        traffic.bytes_read += len(piece)
        if not handle.has_read:
            handle.has_read = True
            traffic.sets_read.add(self.core.set_key(handle.node))
        return piece

    async def _read_from_disk(self, handle: Handle, offset: int, size: int) -> bytes | memoryview:
        """One read at a time: a disk is read ahead for a reader who goes on in order, not for several at once."""
        async with handle.reading:
            piece = self.core.quick.read(handle.fd, offset, size)
            if piece is not None:  # read ahead meanwhile
                return piece
            return await self._read_by_thread(handle, offset, size)

    async def _read_by_thread(self, handle: Handle, offset: int, size: int) -> bytes:
        def work() -> bytes:
            return os.pread(handle.fd, size, offset)

        try:
            return await self._transfer(handle, work)
        except (
            Stale
        ):  # on a network's store that is all that is left of a file which another host has removed
            if not await self.sets.was_copied(handle.node):
                raise
            return await self._transfer(handle, work)

    async def write(self, number: FileHandle, offset: int, data: bytes) -> int:
        """Returns how many bytes were written, which may be fewer than given where the store ran out of room."""
        handle = self.core.handle(number)
        if not handle.admitted:
            with self._failing(handle):
                await self.sets.keeping.may_write(stored_owner(handle.node), handle)
        had_written = handle.wrote
        handle.wrote = True  # before the mark: who settles meanwhile must see that somebody writes
        with self._failing(handle):
            await self.core.assure_membership(handle.mount)
            if not handle.marked:
                try:
                    await self.sets.keeping.with_room(
                        stored_owner(handle.node),
                        lambda: self.states.begin(handle),
                        volume_of(handle.node),
                    )
                except Denied:  # nothing was written, so nothing is amiss
                    handle.wrote = had_written
                    raise
            node, traffic = handle.node, self.core.figures.traffic
            node.unsynced = True
            written = await self._write(handle, offset, data)
            traffic.bytes_written += written
            if not handle.has_written:
                handle.has_written = True
                traffic.sets_written.add(self.core.set_key(node))
            if node.unwritten is not None:
                node.unwritten = node.unwritten.after(offset, offset + written)
            return written

    async def _write(self, handle: Handle, offset: int, data: bytes) -> int:
        """Where there is no room, what its owner needs least gives way."""
        keeping, owner, charging = self.sets.keeping, stored_owner(handle.node), self.core.charging

        async def write(begin: int) -> int:
            claim = await charging.claim(handle, offset + begin, len(data) - begin)
            piece = data if claim.count == len(data) else data[begin : begin + claim.count]
            if claim.appended is not None or claim.only_at is not None:
                return await self._append(handle, owner, piece, claim)
            put = partial(_put_at, handle.fd, piece, offset + begin)
            count, _ = await self._put(handle, owner, put, piece, partial(charging.done, claim))
            return count

        written = 0
        while True:
            try:
                count = await keeping.with_room(owner, partial(write, written), volume_of(handle.node))
            except (OSError, NoGrant) as error:
                rest = Unwritten(offset + written, offset + len(data), errno_of(error))
                self._note_unwritten(handle.node, rest, is_said=not written)
                if not written:
                    raise
                return written  # the next write of the caller meets the error
            written += count
            if written == len(data) or not count:
                return written

    async def _append(self, handle: Handle, owner: Owner | None, piece: bytes, claim: Claim) -> int:
        """To the end of the file, wherever that is."""
        core = self.core
        releases: list[Release] = [partial(core.charging.done, claim)]
        put = partial(append, handle.fd, piece)
        if claim.only_at is not None:  # under a lock of the file, which is one for all threads here
            put = partial(append_at, core.store.door, handle.file, piece, claim.only_at, core.mount_id)
            try:
                releases.append(await core.locks.acquire(handle.node.ino))
            except BaseException:
                releases[0]()
                raise
        written, end = await self._put(handle, owner, put, piece, *releases)
        core.charging.appended(claim, end - written, end)
        return written

    async def _put(
        self,
        handle: Handle,
        owner: Owner | None,
        put: Callable[[], tuple[int, int]],
        piece: bytes,
        *releases: Release,
    ) -> tuple[int, int]:
        """Give the store *piece*, of *owner* (as stored), by *put*, and ask it, if that is due, whether it keeps what it took:
        how many bytes it took, and where they end. Unkept if it does not keep what it took before."""
        door, node, taken = self.core.store.door, handle.node, handle.node.taken
        stored = None if owner is None else owner.uid
        asks, earlier, before = self.core.late.asks(taken, len(piece), owner), taken.is_any, taken.bytes
        if taken.under_way:
            node.hashed = None  # nobody knows which of them comes first
        hashed = node.hashed

        def work() -> tuple[int, int]:
            with door.refusals.stored_as(stored):
                count, end = put()
                if hashed is not None:
                    hashed.put(piece, count, end)
                if asks:
                    lateness.ask(handle.fd)
                return count, end

        taken.under_way += 1
        try:
            count, end = await self._hand_in(handle, work, len(piece), *releases)
        except OSError as error:
            raise self.core.late.refused(error, owner, earlier=earlier or taken.under_way > 1) from error
        finally:
            taken.under_way -= 1
        if asks:
            taken.kept(before)
        else:
            taken.bytes += count
        return count, end

    async def fsync(self, number: FileHandle, *, data_only: bool) -> None:
        handle = self.core.handle(number)
        sync = os.fdatasync if data_only else os.fsync
        handle.node.unsynced = False  # before: what is written meanwhile may not be in it
        with self._failing(handle):
            await self.core.assure_membership(handle.mount)
            await self._ask(handle, lambda: sync(handle.fd))
            self._check_all_written(handle)
        await self.states.synced(handle)

    async def flush(self, number: FileHandle) -> None:
        """A descriptor of the file is closed: let the store say now what it has against the data, and settle the state.

        While its opener has others of it (fork, dup), nothing is settled but what the store had to say.
        """
        handle = self.core.handle(number)
        if not handle.wrote:
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

        with self._failing(handle):
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
            result = await self._transfer(handle, asking)
        except OSError as error:
            raise self.core.late.refused(error, owner, earlier=taken.is_any) from error
        taken.kept(before)
        return result

    @staticmethod
    def _note_unwritten(node: Node, rest: Unwritten, *, is_said: bool) -> None:
        """Of a file that may be mapped, to be written; until it *is said* to whoever wrote it."""
        if is_said:
            if node.unwritten is not None and node.unwritten.begin == rest.begin:
                node.unwritten = None
        elif any(handle.writable and not handle.direct for handle in node.handles):
            node.unwritten = rest

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

    @contextlib.contextmanager
    def _failing(self, handle: Handle) -> Iterator[None]:
        """What was written may be lost if the block fails: its image can only become partial."""
        try:
            yield
        except (OSError, FsError):
            handle.node.hashed = None
            handle.node.failed = handle.node.failed or handle.wrote
            raise

    async def _hand_in(self, handle: Handle, work: Callable[[], T], size: int, *releases: Release) -> T:
        if self.core.engine is not None:  # which may be asked about a refusal, and take its time
            return await self._transfer(handle, work, *releases)
        pinned = (handle.pin(), *releases)
        return await self.core.gate.put(work, size, releases=pinned, of_set=self.core.set_key(handle.node))

    async def _transfer(self, handle: Handle, work: Callable[[], T], *releases: Release) -> T:
        return await self.core.gate.transfer(
            work, releases=(handle.pin(), *releases), of_set=self.core.set_key(handle.node)
        )


def _put_at(fd: int, piece: bytes, at: int) -> tuple[int, int]:
    count = os.pwrite(fd, piece, at)
    return count, at + count
