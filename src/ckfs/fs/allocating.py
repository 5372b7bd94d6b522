"""fallocate(2) on open files: room is claimed for all of it, or nothing is done; what is punched is free at once."""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass
from functools import partial

from ckfs.errors import BadHandle, FsError, Invalid, NoGrant, NotDone, Unsupported, errno_of
from ckfs.fs.asking import Asking
from ckfs.fs.core import Core
from ckfs.fs.inodes import Handle, stored_owner, volume_of
from ckfs.fs.keeping import ROOM_BYTES
from ckfs.fs.writing import Writing
from ckfs.store import allocating
from ckfs.store.gate import Release
from ckfs.store.syscalls import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE

_PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE
_MODES = frozenset((0, FALLOC_KEEP_SIZE, _PUNCH, FALLOC_ZERO_RANGE, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE))
_LARGEST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Allocating:
    core: Core
    writing: Writing

    async def allocate(self, handle: Handle, mode: int, offset: int, length: int) -> None:
        """NotDone where the store does not do it (EOPNOTSUPP), or there is no room for all of it (EDQUOT, ENOSPC): then nothing was done,
        and nothing is amiss. If the store itself met its end half-way, what it has made of that stays, and is charged."""
        _check(handle, mode, offset, length)
        if mode != _PUNCH:
            await self._check_possible(handle, length)
        await self.writing.begin(handle)
        try:
            with self.writing.failing(handle):
                await self._allocate(handle, mode, offset, length)
        except (OSError, FsError):
            await self._give_back(handle)
            raise
        if mode == _PUNCH:
            await self._give_back(handle)

    async def _allocate(self, handle: Handle, mode: int, offset: int, length: int) -> None:
        """Where there is no room, what its owner needs least gives way, as for the same number of bytes that were written."""
        core, owner, is_claimed = self.core, stored_owner(handle.node), False
        put = partial(allocating.allocate, core.store.door, handle.file, mode, offset, length)

        async def once() -> None:
            nonlocal is_claimed
            # Of what is punched nothing is claimed; it is under way as all else that is written.
            begin, count = (0, 0) if mode == _PUNCH else (offset, length)
            claim = await core.charging.claim_all(handle, begin, count)
            is_claimed = True
            releases: list[Release] = [partial(core.charging.done, claim)]
            try:
                releases.append(await core.locks.acquire(handle.node.ino))
            except BaseException:
                releases[0]()
                raise
            await self.writing.put(handle, owner, put, 0, *releases)

        tries = 1 + length // ROOM_BYTES
        try:
            await self.writing.keeping.with_room(owner, once, volume_of(handle.node), more_tries=tries)
        except (OSError, NoGrant) as error:
            if is_claimed:
                raise
            raise NotDone(errno_of(error), "there is no room for all of it") from error

    async def _give_back(self, handle: Handle) -> None:
        """What is not there is not claimed any more; where that cannot be seen now, once the file is closed."""
        with contextlib.suppress(OSError, FsError):
            await self.core.charging.settle_now(handle.node)

    async def _check_possible(self, handle: Handle, length: int) -> None:
        """For what could not be had in an empty store, nor within an owner's limit if he had nothing else, nothing is to give way."""
        core, volume = self.core, volume_of(handle.node)
        if length <= ROOM_BYTES:
            return
        there = await core.gate.call(partial(core.store.door.room, volume))
        if length > there.f_blocks * there.f_frsize:
            raise NotDone(errno.ENOSPC, "the store is smaller")
        account = await Asking(core).account_at_once(core.payer_of(handle.node))
        limit = None if account is None else account.limits.bytes.hard
        if limit is not None and length > limit:
            raise NotDone(errno.EDQUOT, "the limit is lower")


def _check(handle: Handle, mode: int, offset: int, length: int) -> None:
    """As the kernel does, in its order."""
    if offset < 0 or length <= 0:
        raise Invalid("nothing to allocate")
    if mode not in _MODES:
        raise Unsupported("no such way to allocate")
    if not handle.writable:
        raise BadHandle("the file is not open for writing")
    if offset + length > _LARGEST:
        raise NotDone(errno.EFBIG, "no file is as large")
