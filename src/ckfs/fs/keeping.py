"""Complete images that are removed or replaced go to the trash first. Blocking; runs in the store's threads."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import trio

from ckfs.errors import FsError, Stale
from ckfs.fs.core import Core
from ckfs.fs.guard import Guard
from ckfs.fs.inodes import Node, Place, place_of
from ckfs.model import Caller, Owner, Role
from ckfs.owners.processes import program_of
from ckfs.policy import lifecycle
from ckfs.policy.lifecycle import Event
from ckfs.store import record
from ckfs.store.door import Found, Spot
from ckfs.store.gate import Release
from ckfs.store.record import new_inode
from ckfs.store.removed import Item, Note

log = logging.getLogger(__name__)

_EXPIRY_INTERVAL_S = 600.0
_EMPTY_S = 1.0
_ROOM_BYTES = 64 << 20
"""How much of the trash gives way at a time when the store is full."""


@dataclass(frozen=True, slots=True)
class Keeping:
    core: Core
    guard: Guard

    def keeps(self, found: Found) -> bool:
        """Whether removing *found* would lose anything: an image that may be complete, with content, that has no other name."""
        return (
            self.core.policy.retention_s > 0
            and found.record.is_regular
            and lifecycle.may_be_complete(found.record)
            and found.stat.st_size > 0
            and found.stat.st_nlink == 1
        )

    def remove(
        self,
        spot: Spot,
        place: Place,
        owner: Owner | None,
        found: Found,
        caller: Caller,
        remove: Callable[[Spot], None],
    ) -> None:
        """Take *found* away from *place*, by *remove* unless it is kept."""
        if not self.keeps(found):
            remove(spot)
            return
        try:
            self.core.store.trash.put(spot, self._note(place, owner, found, caller))
            self.core.figures.trashed()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # Who frees a full store must be able to.
            log.warning("image %s is removed for good: the trash has no room for it", place)
            remove(spot)

    @contextlib.contextmanager
    def replacing(
        self, spot: Spot, place: Place, owner: Owner | None, found: Found | None, caller: Caller
    ) -> Iterator[None]:
        """Within the block *found*, at *place*, is replaced by a rename."""
        item: Item | None = None
        if found is not None and self.keeps(found):
            item = self.core.store.trash.link(spot, self._note(place, owner, found, caller))
        try:
            yield
        except BaseException:
            if item is not None:
                self.core.store.trash.drop(item)
            raise
        if item is not None:
            self.core.figures.trashed()

    async def renew(self, node: Node, caller: Caller, *, begun: bool) -> None:
        """Before *node* is emptied: let it be a new file of the same number, and what it was go to the trash.

        *begun*: somebody is about to write it. What is open of it on this mount leads to the new file from then on.
        """
        if place_of(node) is None or not self.keeps(await self.core.examine(node)):
            return
        try:
            await self._renew_there(node, caller, begun=begun)
        except (FileNotFoundError, Stale):  # another mount has moved it
            if await self.core.find_again(node):
                await self._renew_there(node, caller, begun=begun)

    async def _renew_there(self, node: Node, caller: Caller, *, begun: bool) -> None:
        place = node.place
        owner, door, spot = node.set_entry.owner, self.core.store.door, node.spot
        open_here = [handle.fd for handle in node.handles]
        releases = [handle.pin() for handle in node.handles]

        def work() -> None:
            found = door.examine(spot, node.ino)
            self.guard.check(place, found, caller)
            if self.keeps(found):
                self._renew(spot, self._note(place, owner, found, caller), found, begun=begun)
                for fd in open_here:
                    door.open_instead(spot, node.ino, fd)

        try:
            releases.append(await self._lock(node, releases))
            await self.core.gate.call(work, releases=releases, of_set=self.core.set_key(node))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            log.warning("image %s is emptied for good: the trash has no room for it", place)

    async def _lock(self, node: Node, releases: list[Release]) -> Release:
        try:
            return await self.core.locks.acquire(node.ino)
        except BaseException:
            for release in releases:
                release()
            raise

    def _renew(self, spot: Spot, note: Note, found: Found, *, begun: bool) -> None:
        door, ino = self.core.store.door, found.record.ino
        new = self.core.store.names.staging_spot(spot.identity)
        of_new = lifecycle.after(found.record, Event.REPLACED) if begun else found.record
        door.make_hidden(new, of_new, b"")
        try:
            for name in door.list_attributes(spot, ino):
                if name.startswith(b"user.") and not name.startswith(record.ATTRIBUTE):
                    door.set_attribute(new, ino, name, door.get_attribute(spot, ino, name))
            item = self.core.store.trash.link(spot, note)
            try:
                door.rename(new, spot)
            except BaseException:
                self.core.store.trash.drop(item)
                raise
        except BaseException:
            with contextlib.suppress(OSError):
                door.unlink(new)
            raise
        # The number stays with the name; what comes back from the trash is another file.
        door.amend(item.spot, ino, lambda old: old.record.with_(ino=new_inode()))
        self.core.figures.trashed()

    def _note(self, place: Place, owner: Owner | None, found: Found, caller: Caller) -> Note:
        return Note(
            uid=caller.uid,
            when_ns=time.time_ns(),
            node=self.core.node_name,
            program=os.fsencode(program_of(caller.pid) or ""),
            set_name=place.set_name,
            path=b"/".join(place.below),
            owner=owner,
            ino=found.record.ino,
        )

    async def make_room(self, owner: Owner | None) -> bool:
        """Let the oldest of what *owner* removed go for good; else, if it is the store that is full, of anybody's."""
        if trio.current_time() < self.core.trash_gives_nothing_until:
            return False
        trash = self.core.store.trash
        freed = await self.core.gate.transfer(
            lambda: trash.make_room(owner, _ROOM_BYTES) or trash.make_room(None, _ROOM_BYTES)
        )
        if not freed:  # many may meet the same full store
            self.core.trash_gives_nothing_until = trio.current_time() + _EMPTY_S
        return freed > 0

    async def expire(self) -> None:
        """Remove for good what has been in the trash for its time; runs for the life of a server's mount."""
        if self.core.role is Role.NODE or self.core.store.read_only:
            return  # housekeeping is for one host, not for hundreds of nodes at once
        while True:
            await trio.sleep(_EXPIRY_INTERVAL_S)
            before_ns = time.time_ns() - int(self.core.policy.retention_s * 1e9)
            try:
                await self.core.gate.transfer(lambda: self.core.store.trash.purge_older(before_ns))  # noqa: B023 - awaited at once
            except (OSError, FsError) as error:
                log.info("the trash is looked through later: %s", error)
