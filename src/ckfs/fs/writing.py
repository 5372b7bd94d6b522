"""Writing to open files, and what everything that changes their content has in common, whoever makes it.

Before the first change the image is marked and said to be written (:meth:`Writing.begin`); what may be lost makes it partial
(:meth:`Writing.failing`); the store is given it by :meth:`Writing.put`, claimed for, in as many pieces as there is room for
(:meth:`Writing.in_pieces`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ckfs.errors import Denied, FsError, NoGrant, NotDone, errno_of
from ckfs.fs import lateness
from ckfs.fs.charges import Claim
from ckfs.fs.core import Core
from ckfs.fs.inodes import Handle, Node, Unwritten, stored_owner, volume_of
from ckfs.fs.keeping import Keeping
from ckfs.fs.states import States
from ckfs.fs.unseen import Unseen
from ckfs.model import Data, Owner
from ckfs.store.appending import append, append_at
from ckfs.store.gate import Release

T = TypeVar("T")

Put = Callable[[], tuple[int, int]]
"""Changes a file of the store, in a thread: how many bytes it took, and where they end. NotDone if it changed nothing, and could not have."""
PutPiece = Callable[[int, Claim], Awaitable[int]]
"""Writes what was claimed, from so many bytes on, of what is to be written: how many bytes more were."""


@dataclass(frozen=True, slots=True)
class Writing:
    core: Core
    keeping: Keeping
    states: States
    unseen: Unseen

    async def write(self, handle: Handle, offset: int, data: Data) -> int:
        """Returns how many bytes were written, which may be fewer than given where the store ran out of room.

        Of a memoryview nobody may change the bytes any more, also when this has failed: a store that did not answer in time may take
        them later.
        """
        if self.wrote_at_once(handle, offset, data):
            return len(data)
        await self.begin(handle)
        with self.failing(handle):
            owner = stored_owner(handle.node)
            put = partial(self._write, handle, owner, offset, data)
            written, error = await self.in_pieces(handle, owner, offset, len(data), put)
            if error is not None:
                rest = Unwritten(offset + written, offset + len(data), errno_of(error))
                self._note_unwritten(handle.node, rest, is_said=not written)
                if not written:
                    raise error
            self.wrote(handle, offset, written)
            return written  # if there was an error, the next write of the caller meets it

    def wrote_at_once(self, handle: Handle, offset: int, data: Data) -> bool:
        """Whether all was written, without waiting for anything: so most writes go that are not the first of their image. Where that is not
        possible, or goes wrong, the way with all its care is gone, from the beginning."""
        core, node, count = self.core, handle.node, len(data)
        is_under_way = handle.wrote and handle.marked and handle.admitted and not handle.appends
        if not is_under_way or node.taken.under_way or node.unwritten is not None:
            return False
        if core.engine is not None or core.late.is_late or not core.gate.takes_at_once(count):
            return False
        if core.member is None or not core.member.is_sure(core.policy, handle.mount):
            return False
        claim = core.charging.claim_at_once(node, offset, count)
        if claim is None:
            return False
        node.unsynced = True
        try:
            written, end = core.gate.at_once(partial(_put_at, handle.fd, data, offset))
        except OSError:
            return False
        finally:
            core.charging.done(claim)
        if written != count:
            return False
        if node.hashed is not None:
            node.hashed.put(data, written, end)
        self.wrote(handle, offset, count)
        return True

    # What every change has in common

    async def begin(self, handle: Handle) -> None:
        """Something is about to be changed through *handle*. Denied if that would cost a checkpoint; ENOSPC if only the reserve is left."""
        if not handle.marked:  # what others have just closed is protected before this is written
            await self.unseen.until_released(handle.node)
        if not handle.admitted:
            with self.failing(handle):
                await self.keeping.may_write(stored_owner(handle.node), handle)
        had_written = handle.wrote
        handle.wrote = True  # before the mark: who settles meanwhile must see that somebody writes
        with self.failing(handle):
            await self.core.assure_membership(handle.mount)
            if not handle.marked:
                try:
                    await self.keeping.with_room(
                        stored_owner(handle.node),
                        lambda: self.states.begin(handle),
                        volume_of(handle.node),
                    )
                except Denied:  # nothing was written, so nothing is amiss
                    handle.wrote = had_written
                    raise
        handle.node.unsynced = True

    @contextlib.contextmanager
    def failing(self, handle: Handle) -> Iterator[None]:
        """What was written may be lost if the block fails: its image can only become partial. Not if that is NotDone."""
        try:
            yield
        except NotDone:
            raise
        except (OSError, FsError):
            handle.node.hashed = None
            handle.node.failed = handle.node.failed or handle.wrote
            raise

    async def in_pieces(
        self, handle: Handle, owner: Owner | None, offset: int, size: int, put: PutPiece
    ) -> tuple[int, OSError | NoGrant | None]:
        """Have *put* write the *size* bytes that belong to *offset*, at each call as many as could be claimed for. How many it wrote,
        and what ended that before all were. Where there is no room, what the file's *owner* (as stored) needs least gives way."""
        keeping, charging, volume = self.keeping, self.core.charging, volume_of(handle.node)

        async def piece(begin: int) -> int:
            return await put(begin, await charging.claim(handle, offset + begin, size - begin))

        written = 0
        while True:
            try:
                count = await keeping.with_room(owner, partial(piece, written), volume)
            except (OSError, NoGrant) as error:
                return written, error
            written += count
            if written == size or not count:
                return written, None

    def wrote(self, handle: Handle, offset: int, count: int) -> None:
        """*count* bytes of content were written at *offset*."""
        node, traffic = handle.node, self.core.figures.traffic
        traffic.bytes_written += count
        if not handle.has_written:
            handle.has_written = True
            traffic.sets_written.add(self.core.set_key(node))
        if node.unwritten is not None:
            node.unwritten = node.unwritten.after(offset, offset + count)

    async def put(
        self,
        handle: Handle,
        owner: Owner | None,
        put: Put,
        size: int,
        *releases: Release,
        piece: Data | None = None,
    ) -> tuple[int, int]:
        """Give the store *size* bytes, of *owner* (as stored), by *put*, and ask it, if that is due, whether it keeps what it took: what
        *put* says. Unkept if it does not keep what it took before. *piece* are the bytes, if they come from here."""
        door, node, taken = self.core.store.door, handle.node, handle.node.taken
        stored = None if owner is None else owner.uid
        asks, earlier, before = self.core.late.asks(taken, size, owner), taken.is_any, taken.bytes
        if taken.under_way:
            node.hashed = None  # nobody knows which of them comes first
        hashed = node.hashed

        def work() -> tuple[int, int]:
            with door.refusals.stored_as(stored):
                if hashed is None:
                    count, end = put()
                elif piece is None:
                    with hashed.forgotten():
                        count, end = put()
                else:
                    count, end = put()
                    hashed.put(piece, count, end)
                if asks:
                    lateness.ask(handle.fd)
                return count, end

        taken.under_way += 1
        try:
            count, end = await self.transfer(handle, work, *releases, at_once=None if piece is None else size)
        except OSError as error:
            raise self.core.late.refused(error, owner, earlier=earlier or taken.under_way > 1) from error
        finally:
            taken.under_way -= 1
        if piece is None:
            node.hashed = None
        if asks:
            taken.kept(before)
        else:
            taken.bytes += count
        return count, end

    async def transfer(
        self, handle: Handle, work: Callable[[], T], *releases: Release, at_once: int | None = None
    ) -> T:
        """Run *work* on the descriptor of *handle* as a data call; if it only gives the store *at_once* bytes, right here where that is sooner."""
        try:
            pinned = handle.pin()
        except BaseException:
            for release in releases:
                release()
            raise
        gate, held, of_set = self.core.gate, (pinned, *releases), self.core.set_key(handle.node)
        if (
            at_once is None or self.core.engine is not None
        ):  # which may be asked about a refusal, and take its time
            return await gate.transfer(work, releases=held, of_set=of_set)
        return await gate.put(work, at_once, releases=held, of_set=of_set)

    # Bytes

    async def _write(
        self, handle: Handle, owner: Owner | None, offset: int, data: Data, begin: int, claim: Claim
    ) -> int:
        piece = data if claim.count == len(data) else data[begin : begin + claim.count]
        if claim.appended is not None or claim.only_at is not None:
            return await self._append(handle, owner, piece, claim)
        put = partial(_put_at, handle.fd, piece, offset + begin)
        done = partial(self.core.charging.done, claim)
        count, _ = await self.put(handle, owner, put, len(piece), done, piece=piece)
        return count

    async def _append(self, handle: Handle, owner: Owner | None, piece: Data, claim: Claim) -> int:
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
        written, end = await self.put(handle, owner, put, len(piece), *releases, piece=piece)
        core.charging.appended(claim, end - written, end)
        return written

    @staticmethod
    def _note_unwritten(node: Node, rest: Unwritten, *, is_said: bool) -> None:
        """Of a file that may be mapped, to be written; until it *is said* to whoever wrote it."""
        if is_said:
            if node.unwritten is not None and node.unwritten.begin == rest.begin:
                node.unwritten = None
        elif any(handle.writable and not handle.direct for handle in node.handles):
            node.unwritten = rest


def _put_at(fd: int, piece: Data, at: int) -> tuple[int, int]:
    count = os.pwrite(fd, piece, at)
    return count, at + count
