"""What is said of images in the store while they are written: begun, synced, complete or partial."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from ckfs.errors import Fenced, Stale
from ckfs.fs.core import Core
from ckfs.fs.guard import Guard
from ckfs.fs.inodes import Handle, Node, place_of
from ckfs.fs.sets import Sets
from ckfs.model import Caller, Record, State
from ckfs.names import SetName
from ckfs.owners.processes import was_killed
from ckfs.policy import lifecycle, presented
from ckfs.policy.lifecycle import Event
from ckfs.store import writing
from ckfs.store.gate import Release
from ckfs.store.spots import Found, Target

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Settling:
    """*completed*: the number under which the image became complete by it; 0 if it did not, or was before."""

    completed: int = 0


@dataclass(frozen=True, slots=True)
class States:
    core: Core
    sets: Sets
    guard: Guard

    def begun(self, record: Record, caller: Caller, event: Event) -> Record:
        """An image's record from when *caller* begins to write it."""
        written = presented.after_write(record, caller.uid, caller.gid)
        return lifecycle.after(written, event).with_(node=self.core.node_name)

    async def begin(self, handle: Handle) -> None:
        """Somebody writes through *handle*, for the first time since the image was settled."""
        try:
            found = await self._update(handle.node, handle, self._beginning(handle))
            was_copied = await self._was_copied(handle.node, found)
        except Stale:
            was_copied = await self._was_copied(handle.node, None)
            if not was_copied:
                raise
        if was_copied:
            await self._update(handle.node, handle, self._beginning(handle))
        handle.marked = True

    async def _was_copied(self, node: Node, found: Found | None) -> bool:
        """Whether what is open of *node* is the file of before its set was copied to a new owner; then the copy is open now.

        Such a file has no name any more. NFS says that it is stale (*found* is None), or, if it was removed on this very host, gives it
        another name for as long as it is open.
        """
        is_gone = found is None or found.stat.st_nlink == 0
        return (is_gone or self.core.late.is_late) and await self.sets.was_copied(node, is_gone=is_gone)

    def _beginning(self, handle: Handle) -> Callable[[Target], Found]:
        door, node, mount = self.core.store.door, handle.node, self.core.mount_id
        handle.mount = mount  # before the mark is made: it is taken away with the handle, made or not
        place = place_of(node)

        def work(target: Target) -> Found:
            if (
                place is not None and not handle.settled
            ):  # somebody else completed it since this one opened it
                found = door.examine(target, node.ino)
                if lifecycle.may_be_complete(found.record):
                    self.guard.check(place, found, handle.opener)
            return self.core.mark(
                mount, target, node.ino, lambda found: self.begun(found.record, handle.opener, Event.WRITTEN)
            )

        return work

    async def synced(self, handle: Handle) -> None:
        """What was written is safe in the store: from now on the image counts, even should its writer not live to close it."""
        node = handle.node
        if not handle.wrote or node.failed or not self.core.policy.is_final(node.name):
            return
        door = self.core.store.door

        def mark(found: Found) -> Record:
            if found.record.state is not State.WRITING:
                return found.record
            return found.record.with_(synced=(found.stat.st_size, found.stat.st_mtime_ns))

        await self._update(node, handle, lambda target: door.amend(target, node.ino, mark))

    async def settle(self, node: Node, handle: Handle | None) -> None:
        """Say what an image is worth, once nobody here is writing it: complete under a final name, or partial."""
        if handle is not None and handle.process is not None and was_killed(handle.process):
            node.killed = True
        if self._is_being_written(node):
            return
        if handle is not None and self._is_fenced(handle):
            raise Fenced("others have settled the image")
        release = await self.core.locks.acquire(node.ino)
        if self._is_being_written(node):  # since this call waited for its turn
            release()
            return
        settling = Settling()
        found = await self._update(node, handle, self._settling(node, settling), release)
        if await self._was_copied(node, found):
            node.failed = True  # in the copy, where the next attempt marks it
            raise OSError(errno.EIO, "the set was copied while the image was written")
        self._log(node, found)
        self._want_digest(node, found, settling)
        node.unsettled = False
        for one in node.handles:
            if not self._is_fenced(one):
                one.mount = None
        if handle is not None:
            handle.settled = True

    def _is_final(self, node: Node) -> bool:
        return self.core.policy.is_final(node.name)

    def _want_digest(self, node: Node, found: Found, settling: Settling) -> None:
        if found.record.state is State.WRITING:  # under a temporary name, most often
            return
        hashed, node.hashed = node.hashed, None
        place = place_of(node)
        if place is not None and found.record.state is State.COMPLETE and not self.core.store.read_only:
            # What another mount has completed that one may have changed since.
            is_ours = hashed is not None and settling.completed == found.record.completed
            self.core.undigested.add(node.ino, place, hashed.of(found) if hashed and is_ours else None)

    def _settling(self, node: Node, settling: Settling) -> Callable[[Target], Found]:
        door, place, mount = self.core.store.door, place_of(node), self.core.mount_id
        killed, failed = node.killed, node.failed or (node.killed and node.unsynced)
        settles = self._is_final(node) or node.failed or node.killed

        def work(target: Target) -> Found:
            if not settles:
                return writing.finish(door, target, node.ino, mount, None)
            name = place.set_name if place is not None else SetName(b"")
            of_family = self.guard.look(name)
            number = self.guard.next_number(of_family, time.time_ns())
            found = writing.finish(door, target, node.ino, mount, lambda found: settled(found, number))
            if found.record.completed == number:
                settling.completed = number
                self.guard.completed(name, of_family, found.record)
            return found

        def settled(found: Found, number: int) -> Record:
            status = found.stat
            event = lifecycle.writer_ended(
                found.record, killed=killed, failed=failed, size=status.st_size, mtime_ns=status.st_mtime_ns
            )
            after = lifecycle.after(found.record, event)
            newly = found.record.state is State.WRITING and after.state is State.COMPLETE
            return after.with_(completed=number) if newly else after

        return work

    @staticmethod
    def _log(node: Node, found: Found) -> None:
        place = place_of(node)
        if found.record.state is State.PARTIAL:
            why = (
                "a write failed"
                if node.failed
                else "its writer was killed"
                if node.killed
                else "it was before"
            )
            log.warning("image %s is partial: %s", place or "(removed)", why)
        elif found.record.state is State.COMPLETE:
            log.info("image %s is complete", place or "(removed)")

    def _is_being_written(self, node: Node) -> bool:
        return node.truncating > 0 or any(
            handle.wrote and not self._is_fenced(handle) for handle in node.handles
        )

    def _is_fenced(self, handle: Handle) -> bool:
        """What was written through it has been settled by others."""
        return handle.mount not in (None, self.core.mount_id)

    async def renamed(self, node: Node, old_name: bytes) -> None:
        """A closed image that moves from a temporary to a final name is complete."""
        if not self.core.policy.is_final(old_name) and not node.is_root:
            await self.settle(node, None)

    async def _update(
        self,
        node: Node,
        handle: Handle | None,
        work: Callable[[Target], Found],
        release: Release | None = None,
    ) -> Found:
        """Change the record of *node*, whose lock *release* gives back if the caller has it already."""
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
            lambda: work(target), releases=releases, of_set=self.core.set_key(node)
        )
