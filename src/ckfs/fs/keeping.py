"""Complete images that are removed or replaced go to the trash first. Blocking; runs in the store's threads."""

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

import trio

from ckfs.errors import FsError, Stale
from ckfs.fs.charges import Hold
from ckfs.fs.core import Core
from ckfs.fs.guard import Guard
from ckfs.fs.inodes import Handle, Node, Place, place_of, volume_of
from ckfs.fs.liveness import Fate
from ckfs.fs.reserve import Reserve
from ckfs.fs.superseded import Superseded
from ckfs.model import Caller, Owner, State
from ckfs.names import Inode, shown
from ckfs.owners.processes import program_of
from ckfs.policy import lifecycle
from ckfs.policy.lifecycle import Event
from ckfs.policy.quota import Amount
from ckfs.store import record
from ckfs.store.charges import charge_of, charge_of_attributes
from ckfs.store.copying import copy_file
from ckfs.store.gate import Release
from ckfs.store.record import new_inode
from ckfs.store.removed import Item, Note
from ckfs.store.spots import HOME, Found, OpenFile, Spot, VolumeId
from ckfs.store.syscalls import FileId, file_id, is_same_file

log = logging.getLogger(__name__)

T = TypeVar("T")

_EMPTY_S = 1.0
_TRIES = 8
"""How often room is made for one call: each time something else may be what is short, and others take what was freed."""
_MOST_OWNERS = 1024
ROOM_BYTES = 64 << 20
"""How much gives way at a time when the store is full."""


@dataclass(frozen=True, slots=True)
class Keeping:
    core: Core
    guard: Guard
    reserve: Reserve

    def keeps(self, found: Found) -> bool:
        """Whether removing *found* would lose anything: an image that is worth it, with content, that has no other name."""
        return found.stat.st_nlink == 1 and self._is_worth_it(found)

    def _is_worth_it(self, found: Found) -> bool:
        return (
            self.core.policy.retention_s > 0
            and found.record.is_regular
            and lifecycle.is_worth_keeping(found.record)
            and found.stat.st_size > 0
        )

    def _keeps_at(self, spot: Spot, found: Found) -> bool:
        """As :meth:`keeps`, and what has no other name but one in the trash, from a rename that died before it took place: if
        it were emptied, so would be what the trash has."""
        is_linked = found.stat.st_nlink == 2 and self._is_worth_it(found)
        return self.keeps(found) or (is_linked and self.core.store.trash.has_link_of(spot, found))

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
            item = self.core.store.trash.put(spot, self._note(place, owner, found, caller))
            self._count(item, "removed")
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
        """Within the block *found*, at *place*, is replaced by a rename. Stale if that is not there any more."""
        item: Item | None = None
        if found is not None and self.keeps(found):
            try:
                item = self.core.store.trash.link(spot, self._note(place, owner, found, caller))
            except FileNotFoundError:
                raise Stale("another mount has just removed what is replaced") from None
        try:
            yield
        except BaseException:
            if item is not None:
                self.core.store.trash.drop(item)
            raise
        if item is not None:
            self._count(item, "replaced")

    def _count(self, item: Item, what: str) -> None:
        self.core.figures.trashed()
        note = item.note
        name = b"/".join(filter(None, (note.set_name, note.path)))
        by = shown(note.program) or "an unknown program"
        log.info(
            "image %s, %s by uid %d (%s): in the trash, item %s", shown(name), what, note.uid, by, item.token
        )

    async def renew(self, node: Node, caller: Caller, *, begun: bool) -> None:
        """Before *node* is emptied: let it be a new file of the same number, and what it was go to the trash, if it is kept.

        So is what is torn, without being kept: a mount that is taken for dead may yet write to the old file.

        *begun*: somebody is about to write it. What is open of it on this mount leads to the new file from then on.
        """
        if place_of(node) is None:
            return
        found = await self.core.examine(node)
        if not self._may_be_renewed(found) and found.stat.st_nlink != 2:
            return
        try:
            await self._renew_there(node, found, caller, begun=begun)
        except (FileNotFoundError, Stale):  # another mount has moved it
            if await self.core.moved.find_again(node):
                await self._renew_there(node, found, caller, begun=begun)

    def _may_be_renewed(self, found: Found) -> bool:
        is_torn = found.record.is_regular and found.record.state in (State.PARTIAL, State.WRITING)
        return self.keeps(found) or (is_torn and found.stat.st_nlink == 1)

    def _is_left(self, spot: Spot, found: Found) -> bool:
        """Whether *found* is torn, and written by no mount but dead ones."""
        if not self._may_be_renewed(found):
            return False
        others = self.core.store.door.writers(spot, found.record.ino) - {self.core.mount_id}
        is_written = any(self.core.fate(mount) is Fate.ALIVE for mount in others)
        return not is_written and (found.record.state is State.PARTIAL or bool(others))

    async def _renew_there(self, node: Node, seen: Found, caller: Caller, *, begun: bool) -> None:
        place = node.place
        owner, door, spot = node.set_entry.owner, self.core.store.door, node.spot

        def work(open_here: list[OpenFile]) -> FileId | None:
            found = door.examine(spot, node.ino)
            self.guard.check(place, found, caller)
            is_kept = self._keeps_at(spot, found)
            if not is_kept and not self._is_left(spot, found):
                return None
            node.check_keeps_place()  # by now: nobody is given a backing of it any more before this is over
            note = self._note(place, owner, found, caller) if is_kept else None
            with self._renewed(spot, note, found, begun=begun) as new:  # which may have lost its name by now
                for one in open_here:
                    door.open_instead(new, node.ino, one.fd)
                return file_id(os.fstat(new.fd))

        async def run() -> None:
            if node.backing is not None:
                await self._copy_aside(node, caller)
                return
            # Also of one that is not kept: others may have a part in telling that it is gone.
            cost, charging = await self._cost_of_keeping(node), self.core.charging
            async with charging.claimed(self.core.payer_of(node), cost) as hold:
                await self._lead(node, work, hold)

        try:
            await self.with_room(node.set_entry.stored, run, volume_of(node))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if self.keeps(seen):
                log.warning("image %s is emptied for good: the trash has no room for it", place)

    async def _copy_aside(self, node: Node, caller: Caller) -> None:
        """As :meth:`renew`, for what the kernel has by itself, and so cannot be led to another file: a copy of it goes to the trash, and it is
        emptied where it is."""
        door, spot, place, owner = self.core.store.door, node.spot, node.place, node.set_entry.owner
        staged = self.core.store.names.staging_spot(spot.identity, spot.volume)

        def work() -> None:
            found = door.examine(spot, node.ino)
            self.guard.check(place, found, caller)
            if not self._keeps_at(spot, found):
                return
            try:
                for _ in copy_file(door, spot, staged, found):
                    pass
                item = self.core.store.trash.put(staged, self._note(place, owner, found, caller))
            except BaseException:
                with contextlib.suppress(OSError, FsError):
                    door.unlink(staged)
                raise
            door.amend(item.spot, node.ino, lambda old: old.record.with_(ino=new_inode()))
            self._count(item, "emptied")

        cost = await self.core.on(node, partial(charge_of, door))
        async with self.core.charging.claimed(self.core.payer_of(node), cost) as hold:
            lock = await self.core.locks.acquire(node.ino)
            await self.core.gate.transfer(work, releases=(lock, hold()), of_set=self.core.set_key(node))

    async def _cost_of_keeping(self, node: Node) -> Amount:
        """Of the file that takes the place of one that is kept: its attributes are the same."""
        look = partial(charge_of_attributes, self.core.store.door)
        return Amount(await self.core.on(node, look), files=1)

    @contextlib.contextmanager
    def _renewed(self, spot: Spot, note: Note | None, found: Found, *, begun: bool) -> Iterator[OpenFile]:
        """The new, empty file that takes the place of *found*, at *spot*, open for the block: if this mount writes that one, it writes
        the other from then on. The old one goes to the trash with *note*, or for good without one."""
        door, mount, ino = self.core.store.door, self.core.mount_id, found.record.ino
        is_written = mount in door.writers(spot, ino)
        if is_written:
            door.unmark(spot, ino, mount)
        with contextlib.ExitStack() as opened:
            new: OpenFile | None = None
            try:
                new = self._renew(spot, note, found, begun=begun)
                opened.callback(os.close, new.fd)
            finally:
                if is_written:
                    self.core.mark(mount, new or spot, ino, lambda found: found.record)
            yield new

    async def follow(self, handle: Handle) -> None:
        """Another mount has let another file take the place of what *handle* is of: all that is open of it here leads to what its name leads to,
        from now on; to what *handle* does if it has none any more."""
        node, door, mount = handle.node, self.core.store.door, self.core.mount_id
        ino = node.ino

        def work(open_here: list[OpenFile]) -> FileId:
            is_written, current = False, handle.file
            with contextlib.ExitStack() as opened:
                with contextlib.suppress(FileNotFoundError, Stale):
                    current = door.open(node.spot, os.O_RDONLY, ino)
                    opened.callback(os.close, current.fd)
                for one in open_here:
                    if is_same_file(one.fd, current.fd):
                        continue
                    with contextlib.suppress(OSError, FsError):  # on a network it may be gone for good
                        if mount in door.writers(one, ino):
                            door.unmark(one, ino, mount)
                            is_written = True
                    door.open_instead(current, ino, one.fd)
                if is_written:
                    self.core.mark(mount, current, ino, lambda found: found.record)
                return file_id(os.fstat(current.fd))

        await self._lead(node, work)

    async def _lead(self, node: Node, work: Callable[[list[OpenFile]], FileId | None], *holds: Hold) -> None:
        """Let *work* lead what is open here of *node* to another file; nobody opens or writes it meanwhile. It returns to which, if to any."""
        async with self.core.charging.paused(node):
            lock, handles = await self.core.locks.acquire(node.ino), node.handles
            files = [handle.file for handle in handles]
            releases: list[Release] = [
                lock,
                *(hold() for hold in holds),
                *(handle.pin() for handle in handles),
            ]
            with node.being_renewed():
                leads_to = await self.core.gate.call(
                    lambda: work(files), releases=releases, of_set=self.core.set_key(node)
                )
            if leads_to is not None:
                node.hashed = None
                for handle in handles:
                    handle.leads_to = leads_to
                    handle.marked = False  # of the other file nobody has said that it is written through it

    def _renew(self, spot: Spot, note: Note | None, found: Found, *, begun: bool) -> OpenFile:
        """Put a new, empty file at *spot*; the old one goes to the trash with *note*, or for good without one."""
        door, ino = self.core.store.door, found.record.ino
        staged = self.core.store.names.staging_spot(spot.identity, spot.volume)
        of_new = lifecycle.after(found.record, Event.REPLACED) if begun else found.record
        door.make_hidden(staged, of_new, b"")
        try:
            new = door.open(staged, os.O_RDONLY, ino)  # before another mount can remove it
            try:
                item = self._put_in_place(staged, spot, note, ino)
            except BaseException:
                os.close(new.fd)
                raise
        except BaseException:
            with contextlib.suppress(OSError):
                door.unlink(staged)
            raise
        if item is not None:
            self._count(item, "emptied")
        return new

    def _put_in_place(self, staged: Spot, spot: Spot, note: Note | None, ino: Inode) -> Item | None:
        door = self.core.store.door
        for name in door.list_attributes(spot, ino):
            if name.startswith(b"user.") and not name.startswith(record.ATTRIBUTE):
                door.set_attribute(staged, ino, name, door.get_attribute(spot, ino, name))
        item = None if note is None else self.core.store.trash.link(spot, note)
        try:
            door.rename(staged, spot)
        except BaseException:
            if item is not None:
                self.core.store.trash.drop(item)
            raise
        if item is not None:  # the number stays with the name; what comes back from the trash is another file
            door.amend(item.spot, ino, lambda old: old.record.with_(ino=new_inode()))
        return item

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

    async def may_begin(self, owner: Owner | None, caller: Caller, volume: VolumeId = HOME) -> None:
        """Before *caller* makes something new of *owner* (as stored) in *volume*: ENOSPC if only its reserve is left."""
        await self.with_room(owner, lambda: self.reserve.check_begin(caller.uid, volume), volume)

    async def may_write(self, owner: Owner | None, handle: Handle) -> None:
        """As :meth:`may_begin`, before something is written through *handle*."""
        await self.with_room(owner, lambda: self.reserve.check_write(handle), volume_of(handle.node))

    async def with_room(
        self,
        owner: Owner | None,
        run: Callable[[], Awaitable[T]],
        volume: VolumeId = HOME,
        *,
        more_tries: int = 0,
    ) -> T:
        """What *run* returns, which writes in *volume*; it is tried again when it met a full store and something gave way: more often if it
        needs more room than that gives."""
        for _ in range(_TRIES + more_tries):
            try:
                return await run()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if not await self.make_room(owner, error.errno, volume):
                    raise
        return await run()

    async def make_room(self, owner: Owner | None, error_number: int, volume: VolumeId = HOME) -> bool:
        """After *error_number*, ENOSPC or EDQUOT: let something of *owner* (as stored) go for good, if he has anything to give:
        first what he removed, then what newer checkpoints of his have outlived. What others removed follows if it is the
        store that is full: then only what lies in that, *volume*, is of any help. The oldest goes first. Whether anything went.
        """
        where = volume if error_number == errno.ENOSPC else None
        now, nothing_until = trio.current_time(), self.core.nothing_to_give_until
        until, trashed = nothing_until.get((owner, where), (now, 0))
        had_trashed = self.core.figures.read().trashed
        if now < until and trashed == had_trashed:
            return False
        trash, superseded = self.core.store.trash, Superseded(self.core, self.guard)
        ways: list[Callable[[], int]] = []
        if owner is not None:
            ways += [
                lambda: trash.make_room(owner, ROOM_BYTES, where),
                lambda: superseded.give_way(owner, ROOM_BYTES, where),
            ]
        if error_number == errno.ENOSPC:
            ways.append(lambda: trash.make_room(None, ROOM_BYTES, where))
        for way in ways:
            if await self.core.gate.transfer(way):
                self.reserve.look_again()
                return True
        if len(nothing_until) > _MOST_OWNERS:
            nothing_until.clear()
        # many may meet the same full store
        nothing_until[owner, where] = trio.current_time() + _EMPTY_S, had_trashed
        return False
