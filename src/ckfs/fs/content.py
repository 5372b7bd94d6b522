"""Open files: reading, writing, syncing, and when an image counts as complete."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import outcome
import trio

from ckfs.errors import Denied, Fenced, FsError, NoGrant, Stale, errno_of
from ckfs.fs import lateness
from ckfs.fs.charges import Claim
from ckfs.fs.core import Core
from ckfs.fs.guard import Guard
from ckfs.fs.inodes import Handle, Node, Place, Unwritten, place_of, volume_of
from ckfs.fs.left import Left
from ckfs.fs.sets import Sets
from ckfs.fs.states import States
from ckfs.model import Caller, Owner, Record, State
from ckfs.names import FileHandle, Inode, MountId
from ckfs.owners.processes import open_for_writing, process_of
from ckfs.policy.lifecycle import Event
from ckfs.store import writing
from ckfs.store.appending import append, append_at
from ckfs.store.gate import Release
from ckfs.store.spots import Found, OpenFile, Target

log = logging.getLogger(__name__)

T = TypeVar("T")

_SETTLE_INTERVAL_S = 2.0

KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_SYNC | os.O_DSYNC
"""Of a caller's open flags, those that the store's own descriptor gets too."""


@dataclass(frozen=True, slots=True)
class Content:
    core: Core
    sets: Sets
    guard: Guard
    states: States
    left: Left

    # Opening and closing

    async def open(self, ino: Inode, flags: int, caller: Caller) -> FileHandle:
        node = self.core.inodes.get(ino)
        truncate = bool(flags & os.O_TRUNC)
        await self.sets.check_change(node, caller, writing=truncate or bool(flags & os.O_ACCMODE))
        self.core.check_handles(caller)
        door, place = self.core.store.door, place_of(node)
        torn_too = self.core.reads_partial or self.core.permits.take(caller.pid, ino)

        def change(record: Record) -> Record:
            return self.states.begun(record, caller, Event.REPLACED)

        def work() -> OpenFile:
            if held is not None:
                file, found = door.open_again(held, access), door.examine(held, ino)
            else:
                file, found = door.open_found(node.spot, access, ino)
            try:
                self._check_open(held or node.spot, found, place, flags, caller, torn_too=torn_too)
                if truncate:
                    target = file if access & os.O_ACCMODE else node.spot
                    with self._marked(mount, file, ino, access, keep=is_marked):
                        door.update(target, ino, change, size=0)
            except BaseException:
                os.close(file.fd)
                raise
            return file

        if truncate:
            await self.core.assure_membership(None)
            await self.sets.keeping.may_begin(_stored_owner_of(node), caller, volume_of(node))
            await self.core.charging.settle_now(node)
            await self.sets.keeping.renew(node, caller, begun=True)
        access, held, mount = flags & KEPT_FLAGS, None, self.core.mount_id if truncate else None
        is_marked = any(handle.mount is not None for handle in node.handles)
        with node.being_truncated() if truncate else contextlib.nullcontext():
            try:
                file = await self._as_it_is(
                    node, lambda: self.core.opening(node, work, undo=_close, locked=truncate)
                )
            except (Stale, FileNotFoundError):
                if not node.handles:
                    raise
                held = node.handles[0].file  # it has no name any more, but somebody has it open
                file = await self.core.gate.call(work, undo=_close, releases=(node.handles[0].pin(),))
        if truncate:
            self.core.charging.cut(node, 0)
            node.failed, node.killed, node.unwritten = False, False, None
        number = self.opened(node, file, caller, flags, wrote=truncate)
        if truncate:
            await self.core.charging.settle_now(node)
            await self.core.charging.begun(self.core.handle(number))
        return number

    @staticmethod
    async def _as_it_is(node: Node, open_it: Callable[[], Awaitable[OpenFile]]) -> OpenFile:
        """Open it anew if another file has taken its place meanwhile: what was open then leads to that already."""
        while True:
            renewals = node.renewals
            file = await open_it()
            while node.renewing is not None:
                await node.renewing.wait()
            if node.renewals == renewals:
                return file
            close_soon(file.fd)

    @contextlib.contextmanager
    def _marked(
        self, mount: MountId | None, file: OpenFile, ino: Inode, access: int, *, keep: bool
    ) -> Iterator[None]:
        """Within the block the image begins to be written anew; it is not marked any more if that fails, unless others here
        write it (*keep*). Who cannot write through what he opened writes nothing."""
        if mount is None or not access & os.O_ACCMODE:
            yield
            return
        self.core.mark(mount, file, ino, lambda found: found.record)
        try:
            yield
        except BaseException:
            if not keep:
                with contextlib.suppress(OSError, FsError):
                    writing.finish(self.core.store.door, file, ino, mount, None)
            raise

    def _check_open(
        self,
        target: Target,
        found: Found,
        place: Place | None,
        flags: int,
        caller: Caller,
        *,
        torn_too: bool,
    ) -> None:
        """Refuse to write what is protected, and to read what is torn."""
        if place is None:
            return
        if flags & os.O_ACCMODE or flags & os.O_TRUNC:
            self.guard.check(place, found, caller)
        elif not torn_too and self.left.state_of(target, found, place) is State.PARTIAL:
            what = "damaged" if found.record.damaged else "partial"
            log.warning("image %s is %s: not opened for uid %d", place, what, caller.uid)
            raise OSError(errno.EIO, "a partial image")

    def opened(self, node: Node, file: OpenFile, caller: Caller, flags: int, *, wrote: bool) -> FileHandle:
        handle = Handle(node, file, caller, writable=bool(flags & os.O_ACCMODE))
        handle.appends = bool(flags & os.O_APPEND)
        handle.direct = self._goes_past_the_cache(node, flags)
        handle.wrote = handle.marked = handle.admitted = wrote
        handle.mount = self.core.mount_id if wrote and handle.writable else None
        handle.process = process_of(caller.pid) if handle.writable else None
        node.was_charged_to = self.core.payer_of(node)
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
        if handle.wrote:  # through a mapping that outlived its descriptor, or by a child of its opener
            with contextlib.suppress(OSError, FsError):
                await self._hand_over(handle)
            await self._settle_or_later(handle)
        if (
            handle.mount is not None and handle.node.truncating
        ):  # who overwrites it settles it, unless that fails
            await handle.node.until_truncated()
            await self._settle_or_later(handle)
        self.core.handles.remove(number)
        handle.node.without_handle(handle)
        self.core.charging.closed(handle.node)
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
                await self.sets.keeping.may_write(_stored_owner(handle), handle)
        had_written = handle.wrote
        handle.wrote = True  # before the mark: who settles meanwhile must see that somebody writes
        with self._failing(handle):
            await self.core.assure_membership(handle.mount)
            if not handle.marked:
                try:
                    await self.sets.keeping.with_room(
                        _stored_owner(handle), lambda: self.states.begin(handle), volume_of(handle.node)
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
        keeping, owner, charging = self.sets.keeping, _stored_owner(handle), self.core.charging

        async def write(begin: int) -> int:
            claim = await charging.claim(handle, offset + begin, len(data) - begin)
            piece = data if claim.count == len(data) else data[begin : begin + claim.count]
            if claim.appended is not None or claim.only_at is not None:
                return await self._append(handle, owner, piece, claim)
            put = partial(_put_at, handle.fd, piece, offset + begin)
            count, _ = await self._put(handle, owner, put, len(piece), partial(charging.done, claim))
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
            put = partial(append_at, handle.fd, piece, claim.only_at, core.mount_id)
            try:
                releases.append(await core.locks.acquire(handle.node.ino))
            except BaseException:
                releases[0]()
                raise
        written, end = await self._put(handle, owner, put, len(piece), *releases)
        core.charging.appended(claim, end - written, end)
        return written

    async def _put(
        self,
        handle: Handle,
        owner: Owner | None,
        put: Callable[[], tuple[int, int]],
        size: int,
        *releases: Release,
    ) -> tuple[int, int]:
        """Give the store a piece of *owner* (as stored), of *size* bytes, and ask it, if that is due, whether it keeps what it took:
        how many bytes it took, and where they end. Unkept if it does not keep what it took before."""
        door, taken = self.core.store.door, handle.node.taken
        stored = None if owner is None else owner.uid
        asks, earlier, before = self.core.late.asks(taken, size, owner), taken.is_any, taken.bytes

        def work() -> tuple[int, int]:
            with door.refusals.stored_as(stored):
                result = put()
                if asks:
                    lateness.ask(handle.fd)
                return result

        taken.under_way += 1
        try:
            count, end = await self._transfer(handle, work, *releases)
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
        taken, owner, door = handle.node.taken, _stored_owner(handle), self.core.store.door
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
            handle.node.failed = handle.node.failed or handle.wrote
            raise

    async def _transfer(self, handle: Handle, work: Callable[[], T], *releases: Release) -> T:
        return await self.core.gate.transfer(
            work, releases=(handle.pin(), *releases), of_set=self.core.set_key(handle.node)
        )


def _stored_owner(handle: Handle) -> Owner | None:
    """Whose trash gives way first for what is written through *handle*."""
    return _stored_owner_of(handle.node)


def _stored_owner_of(node: Node) -> Owner | None:
    return node.set_entry.stored if place_of(node) is not None else None


def _put_at(fd: int, piece: bytes, at: int) -> tuple[int, int]:
    count = os.pwrite(fd, piece, at)
    return count, at + count


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
