"""Opening files that are there, to read, to write, or to overwrite them. Naming makes new ones."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import trio

from ckfs.errors import FsError, Stale, StoreDown
from ckfs.fs.closing import close_soon
from ckfs.fs.core import Core
from ckfs.fs.guard import Guard
from ckfs.fs.hashed import Hashed
from ckfs.fs.inodes import Handle, Node, Place, Through, place_of, stored_owner, volume_of
from ckfs.fs.left import Left
from ckfs.fs.moved import GONE
from ckfs.fs.passing import Passing
from ckfs.fs.sets import Sets
from ckfs.fs.states import States
from ckfs.model import Caller, Record, State
from ckfs.names import FileHandle, Inode, MountId
from ckfs.owners.processes import process_of
from ckfs.policy.lifecycle import Event
from ckfs.store import writing
from ckfs.store.gate import Release
from ckfs.store.spots import Found, OpenFile, Target
from ckfs.store.syscalls import FileId, file_id

log = logging.getLogger(__name__)

KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_SYNC | os.O_DSYNC
"""Of a caller's open flags, those that the store's own descriptor gets too."""


Work = Callable[[], tuple[OpenFile, FileId]]
"""Opens a file, in a thread."""
Opened = Callable[[OpenFile, FileId], Handle]
"""Makes the handle of what was opened, in the event loop."""


@dataclass(frozen=True, slots=True)
class Opening:
    core: Core
    sets: Sets
    guard: Guard
    states: States
    left: Left
    passing: Passing

    async def open(self, ino: Inode, flags: int, caller: Caller) -> FileHandle:
        node = self.core.inodes.get(ino)
        truncate = bool(flags & os.O_TRUNC)
        await self.sets.check_change(node, caller, writing=truncate or bool(flags & os.O_ACCMODE))
        self.core.check_handles(caller)
        await self.passing.unseen.until_released(node)
        node.check_access(flags & os.O_ACCMODE)
        door, place = self.core.store.door, place_of(node)
        torn_too = self.core.reads_partial or self.core.permits.take(caller.pid, ino)

        def change(record: Record) -> Record:
            return self.states.begun(record, caller, Event.REPLACED)

        def work() -> tuple[OpenFile, FileId]:
            if held is not None:
                file, found = door.open_again(held, access), door.examine(held, ino)
            else:
                file, found = door.open_found(node.spot, access, ino)
            try:
                self._check_open(held or node.spot, found, place, flags, caller, torn_too=torn_too)
                seen.append(found)
                if truncate:
                    target = file if access & os.O_ACCMODE else node.spot
                    with self._marked(mount, file, ino, access, keep=is_marked):
                        seen.append(door.update(target, ino, change, size=0))
                    node.failed = True  # unless somebody gets it, which this thread does not know
            except BaseException:
                os.close(file.fd)
                raise
            return file, file_id(found.stat)

        if truncate:
            await self.core.assure_membership(None)
            await self.sets.keeping.may_begin(stored_owner(node), caller, volume_of(node))
            await self.core.charging.settle_now(node)
            await self.sets.keeping.renew(node, caller, begun=True)
        access, held, mount = flags & KEPT_FLAGS, None, self.core.mount_id if truncate else None
        is_marked = any(handle.mount is not None for handle in node.handles)
        seen: list[Found] = []  # as it was found last, and left

        def opened(file: OpenFile, leads_to: FileId) -> Handle:
            if truncate:
                self.core.charging.cut(node, 0)
                node.failed, node.killed, node.unwritten, node.hashed = False, False, None, None
            return self._handle(node, file, leads_to, caller, flags, wrote=truncate)

        open_it = self._overwrite if truncate else self._as_it_is
        with node.being_truncated() if truncate else contextlib.nullcontext():
            try:
                handle = await self.core.moved.again((node,), lambda: open_it(node, work, opened), GONE)
            except (Stale, FileNotFoundError):
                if not node.handles:
                    raise
                by = node.handles[0]  # it has no name any more, but somebody has it open
                held, unpin = by.file, by.pin()
                try:
                    handle = await open_it(node, work, opened, by)
                finally:
                    unpin()
            else:
                await self._follow(handle)
        number = self.core.handles.add(handle)
        if truncate:
            await self.core.charging.settle_now(node)
            await self.core.charging.begun(handle)
        await self._decide(number, handle, seen[-1], flags)
        return number

    async def _decide(self, number: FileHandle, handle: Handle, found: Found, flags: int) -> None:
        """Whether the kernel reads and writes it by itself."""
        try:
            await self.passing.decide(handle, found, flags)
        except BaseException:
            self.core.handles.remove(number)
            self._drop(handle)
            raise

    def _drop(self, handle: Handle) -> None:
        """Nobody gets it."""
        handle.node.without_handle(handle)
        handle.close_when_unused(partial(close_soon, handle.fd))
        if handle.wrote:
            handle.node.failed = handle.node.unsettled = True

    async def _overwrite(self, node: Node, work: Work, opened: Opened, *by: Handle) -> Handle:
        """Open and empty it, *by* an open descriptor if it has no name. Who lets another file take its place, for which the lock is needed, too,
        finds it open, and marked by who has it so."""
        lock = await self.core.locks.acquire(node.ino)
        try:
            set_key = self.core.set_key(node)
            releases: list[Release] = [lock.share(), *(handle.pin() for handle in by)]
            return opened(*await self.core.gate.call(work, undo=_close, releases=releases, of_set=set_key))
        except (StoreDown, trio.Cancelled):
            node.unsettled = True  # it may be emptied yet, and marked, by a call that nobody waits for
            raise
        finally:
            lock()

    async def _as_it_is(self, node: Node, work: Work, opened: Opened, *by: Handle) -> Handle:
        """As :meth:`_overwrite`, and leave it as it is. Open it anew if another file has taken its place meanwhile: what was open then leads to
        that already."""
        while True:
            renewals, set_key = node.renewals, self.core.set_key(node)
            releases = [handle.pin() for handle in by]
            file, leads_to = await self.core.gate.call(work, undo=_close, releases=releases, of_set=set_key)
            while node.renewing is not None:
                await node.renewing.wait()
            if node.renewals == renewals:
                return opened(file, leads_to)
            close_soon(file.fd)

    async def _follow(self, handle: Handle) -> None:
        """If another mount has let another file take its place, all that is open of it here leads there from now on."""
        if all(other.leads_to == handle.leads_to for other in handle.node.handles):
            return
        try:
            await self.sets.keeping.follow(handle)
        except BaseException:
            self._drop(handle)
            raise

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

    async def made(self, node: Node, file: OpenFile, found: Found, caller: Caller, flags: int) -> FileHandle:
        """Of a new file, which is *found*."""
        node.hashed = Hashed(file_id(found.stat))
        handle = self._handle(node, file, file_id(found.stat), caller, flags, wrote=True)
        number = self.core.handles.add(handle)
        self.core.charging.created(node)
        await self._decide(number, handle, found, flags)
        return number

    def _handle(
        self, node: Node, file: OpenFile, leads_to: FileId, caller: Caller, flags: int, *, wrote: bool
    ) -> Handle:
        handle = Handle(node, file, caller, writable=bool(flags & os.O_ACCMODE))
        handle.leads_to = leads_to
        handle.appends = bool(flags & os.O_APPEND)
        handle.direct = self._goes_past_the_cache(node, flags)
        handle.wrote = handle.marked = handle.admitted = wrote
        handle.mount = self.core.mount_id if wrote and handle.writable else None
        handle.process = process_of(caller.pid) if handle.writable else None
        handle.is_near = self._is_near(node)
        node.was_charged_to = self.core.payer_of(node)
        node.with_handle(handle)
        return handle

    def _is_near(self, node: Node) -> bool:
        """What has no name any more lies where it did when others opened it."""
        if node.entry_above is None and node.handles:
            return node.handles[0].is_near
        return self.core.is_near(node)

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
        handle = self.core.handle(number)
        return handle.through is Through.DAEMON_BESIDE or (handle.direct and handle.through is Through.DAEMON)

    def backing(self, number: FileHandle) -> int | None:
        """What this handle has to carry, if the kernel has its file by itself."""
        backing = self.core.handle(number).node.backing
        return None if backing is None else backing.number


def _close(opened: tuple[OpenFile, FileId]) -> None:
    os.close(opened[0].fd)
