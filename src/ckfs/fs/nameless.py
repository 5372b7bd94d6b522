"""The files without a name that this mount counts, since some mount has them open (:mod:`ckfs.store.nameless`).

It keeps a descriptor of those that it has not open itself, and looks once a second whether anybody has them open still, and whether
another mount, which has, counts them by now. Just as often it looks whether something that is open here has lost its name, and is
counted by who has it open no more, or by nobody: that it takes over.

All of it belongs to the event loop's thread. On the store of a network nothing of this is done.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import trio

from ckfs.errors import BadHandle, FsError
from ckfs.fs.core import Core
from ckfs.fs.grants import Grants
from ckfs.fs.inodes import Handle
from ckfs.ledger.ledger import Opened, Settled
from ckfs.names import Inode, Uid
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store import nameless
from ckfs.store.alone import alone_with
from ckfs.store.charges import standings_of, take_over
from ckfs.store.nameless import Left, Mark, Standing
from ckfs.store.record import new_inode
from ckfs.store.shares import Taken
from ckfs.store.spots import OpenFile

_INTERVAL_S = 1.0
_MOST_LOOKED_AT = 4096
"""Of the open files, in one look."""
_MOST_IN_A_CALL = 64

File = tuple[int, int]
"""The store's own device and inode numbers."""


@dataclass(slots=True)
class _Kept:
    """*fd* may be None of what is open here, as long as it is."""

    left: Left
    fd: int | None
    is_open_here: bool = False
    """Something that is open here leads to it: as long as that is so it is not free, and is not looked at."""
    is_looked_at: bool = False
    """A thread has the descriptor."""


@dataclass(slots=True)
class NamelessFiles:
    """Of one mount. *grants* is set before anything is called. *is_elsewhere* says of a file that it is counted in another
    way here, since it was written."""

    core: Core
    is_elsewhere: Callable[[Inode], bool]
    to_recount: set[Uid]
    grants: Grants = field(init=False)
    _kept: dict[File, _Kept] = field(default_factory=dict)
    _next: int = 0

    @property
    def is_empty(self) -> bool:
        return not self._kept

    @property
    def may_be_more(self) -> bool:
        """Whether what loses its name here may be kept; in any thread. Else who has it open takes it over, within a second."""
        return len(self._kept) < resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8

    # What comes

    def left_open(self, left: Left, fd: int) -> None:
        """Something has lost its name here, and is open somewhere."""
        self._keep(_file_of(os.fstat(fd)), _Kept(left, fd))

    def _keep(self, file: File, kept: _Kept) -> None:
        self._kept[file] = kept
        self.grants.note(kept.left.payer, Opened(kept.left.number, kept.left.amount))
        self.grants.hurry()

    def inherits(self, handle: Handle, payer: Uid, amount: Amount) -> bool:
        """The last *handle* of a file here is closed, which counts with *amount*: whether it goes on counting, since others have
        it open."""
        if not self._is_looked_at(handle):
            return False
        status = os.fstat(handle.fd)
        if status.st_nlink or not nameless.is_held(handle.fd):
            return False
        if nameless.mark_of(handle.fd) != Mark(self.core.mount_id):  # another keeps what it was before
            return False
        self._keep(_file_of(status), _Kept(Left(payer, new_inode(), amount), os.dup(handle.fd)))
        return True

    def noted_anew(self, uid: Uid) -> None:
        """The ledger has forgotten what this mount noted of *uid*."""
        for kept in self._kept.values():
            if kept.left.payer == uid:
                self.grants.note(uid, Opened(kept.left.number, kept.left.amount))

    # What goes

    def closed(self, handle: Handle) -> None:
        """*handle* is to be closed, and its node has it no more."""
        if not self._is_looked_at(handle):
            return
        status = os.fstat(handle.fd)
        nameless.let_go(handle.fd)
        kept = self._kept.get(_file_of(status))
        if (
            kept is None
            or kept.is_looked_at
            or any(_is_open_as(other, status) for other in handle.node.handles)
        ):
            return
        fd = handle.fd if kept.fd is None else kept.fd
        with alone_with(fd, within_s=0) as is_alone:
            knows = is_alone and not handle.is_pinned
            standing = nameless.standing_of(fd, self.core.mount_id) if knows else Standing.HELD
        kept.is_open_here = False
        if standing is Standing.HELD and kept.fd is None:
            kept.fd = os.dup(handle.fd)
        self._took(_file_of(status), kept, standing)

    def _took(self, file: File, kept: _Kept, standing: Standing) -> None:
        if standing is Standing.HELD or self._kept.get(file) is not kept:
            return
        del self._kept[file]
        if kept.fd is not None:
            os.close(kept.fd)
        left, is_free = kept.left, standing is Standing.FREE
        purse, final = self.grants.purse(left.payer), NOTHING if is_free else left.amount
        if self.grants.noted_not(left.number) is None:
            purse.settle(Settled(left.number, final, left.amount, is_last=is_free), NOTHING)
        else:
            purse.spend(final - left.amount)
        self.grants.hurry()

    def leave(self) -> None:
        """The last that the mount does: others find what it has counted."""
        for kept in self._kept.values():
            if kept.fd is not None:
                os.close(kept.fd)
                kept.fd = None

    # Looking

    async def run(self) -> None:
        """For the life of the mount."""
        while self.core.store.door.is_local:
            await trio.sleep(_INTERVAL_S)
            if self.core.gate.is_up:
                with contextlib.suppress(OSError, FsError):  # the store is slow: later
                    await self.look()

    async def look(self) -> None:
        for handle in self._nameless_here():
            with contextlib.suppress(BadHandle):  # it has been closed meanwhile
                await self._take_over(handle)
        self._look_what_is_open()
        kept = [item for item in self._kept.items() if not (item[1].is_open_here or item[1].is_looked_at)]
        for begin in range(0, len(kept), _MOST_IN_A_CALL):
            await self._look_at(kept[begin : begin + _MOST_IN_A_CALL])

    def _look_what_is_open(self) -> None:
        """Handles come to lead to another file where one takes the place of what they led to."""
        doubtful = [item for item in self._kept.items() if item[1].is_open_here and item[1].fd is not None]
        if doubtful:
            handles = filter(self._is_looked_at, self.core.handles.all())
            files = {_file_of(os.fstat(handle.fd)) for handle in handles}
            for file, kept in doubtful:
                kept.is_open_here = file in files

    def _nameless_here(self) -> list[Handle]:
        """Those of the open files that have no name, and are not counted here. No more than some are looked at, the others next
        time."""
        handles = list(self.core.handles.all())
        begin = self._next if self._next < len(handles) else 0
        self._next = begin + _MOST_LOOKED_AT
        return [
            handle for handle in itertools.islice(handles, begin, self._next) if self._is_nameless(handle)
        ]

    def _is_looked_at(self, handle: Handle) -> bool:
        """Whether such as *handle* are held, and may be asked in the event loop."""
        return handle.is_near and self.core.store.door.is_local

    def _is_nameless(self, handle: Handle) -> bool:
        if not self._is_looked_at(handle):
            return False
        with contextlib.suppress(OSError):
            status = os.fstat(handle.fd)
            if stat.S_ISREG(status.st_mode) and not status.st_nlink:
                is_elsewhere = self.is_elsewhere(handle.node.ino) and not self._is_kept_by_others(handle)
                return _file_of(status) not in self._kept and not is_elsewhere
        return False

    def _is_kept_by_others(self, handle: Handle) -> bool:
        """Others count what it was before it was written here, and may be dead."""
        mark = nameless.mark_of(handle.fd)
        return mark is not None and mark.keeper not in (None, self.core.mount_id)

    async def _take_over(self, handle: Handle) -> None:
        core = self.core
        work = partial(take_over, core.store.door, handle.file, core.mount_id, core.payer_of(handle.node))
        file, taken = await core.gate.call(work, undo=_close, releases=(handle.pin(),))
        status = os.fstat(file.fd)
        is_open = any(_is_open_as(other, status) for other in handle.node.handles)
        is_kept_open = taken is not None and (not is_open or self.may_be_more)
        if taken is not None:
            fd = file.fd if is_kept_open else None
            self._keep(_file_of(status), _Kept(taken.left, fd, is_open_here=is_open))
            self._tell(taken)
        if not is_kept_open:
            os.close(file.fd)

    def _tell(self, taken: Taken) -> None:
        payer = taken.left.payer
        if taken.is_uncounted:
            self.grants.purse(payer).spend(taken.left.amount)
        if taken.is_unknown:
            self.to_recount.add(payer)

    async def _look_at(self, some: list[tuple[File, _Kept]]) -> None:
        some = [(file, kept) for file, kept in some if self._kept.get(file) is kept and not kept.is_looked_at]
        files = [(OpenFile(kept.fd), kept.left) for _, kept in some if kept.fd is not None]
        for _, kept in some:
            kept.is_looked_at = True

        def looked_at() -> None:
            for _, kept in some:
                kept.is_looked_at = False

        work = partial(standings_of, self.core.store.door, files, self.core.mount_id)
        standings = await self.core.gate.call(work, releases=(looked_at,))
        for (file, kept), standing in zip(some, standings, strict=True):
            self._took(file, kept, standing)


def _file_of(status: os.stat_result) -> File:
    return status.st_dev, status.st_ino


def _is_open_as(handle: Handle, status: os.stat_result) -> bool:
    return os.path.samestat(os.fstat(handle.fd), status)


def _close(opened: tuple[OpenFile, Taken | None]) -> None:
    os.close(opened[0].fd)
