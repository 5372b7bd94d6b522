"""Top-level names: taking one, giving a set to its owner, and moving whole sets."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from ckfs.errors import Invalid, OtherOwner, Stale
from ckfs.fs.core import Core
from ckfs.fs.enforced import check_room
from ckfs.fs.following import Following
from ckfs.fs.guard import Guard
from ckfs.fs.inodes import Node, Place
from ckfs.fs.keeping import Keeping
from ckfs.fs.placing import Placing
from ckfs.model import Caller, Owner
from ckfs.names import ROOT_INODE, Inode, SetName, shown
from ckfs.policy import ownership
from ckfs.policy.quota import Amount
from ckfs.store.entries import USERS, SetEntry
from ckfs.store.handover import name_owner
from ckfs.store.moving import Check, Discard, file_to_set, link_set, rename_set, set_into_directory
from ckfs.store.spots import HOME, Found, Spot, VolumeId
from ckfs.store.syscalls import RENAME_EXCHANGE

log = logging.getLogger(__name__)


def taking(caller: Caller) -> Callable[[Found], None]:
    """Checks the sticky bit of the mount's root against the set that is really there."""

    def check(found: Found) -> None:
        ownership.check_take_away(found.record, caller)

    return check


@dataclass(frozen=True, slots=True)
class Sets:
    core: Core
    following: Following
    guard: Guard
    keeping: Keeping
    placing: Placing

    def _leaving(self, caller: Caller, moves: dict[SetName, SetName]) -> Check:
        """Checks each set that goes from its name: moved as *moves* say, or replaced."""

        def check(name: SetName, found: Found) -> None:
            ownership.check_take_away(found.record, caller)
            place = Place(name, ())
            if name in moves:
                self.guard.check_move(place, Place(moves[name], ()), found, caller)
            else:
                self.guard.check(place, found, caller)

        return check

    def _discarding(self, caller: Caller) -> Discard:
        def discard(name: SetName, entry: SetEntry, found: Found) -> None:
            # Another mount has just removed it, or has the place of it for another set. The rename itself is done.
            with contextlib.suppress(FileNotFoundError, Stale):
                self.keeping.remove(
                    entry.spot, Place(name, ()), entry.owner, found, caller, self.core.store.door.unlink
                )

        return discard

    # Making and claiming

    async def take(
        self,
        name: SetName,
        caller: Caller,
        ino: Inode,
        make: Callable[[Spot], Found],
        undo: Callable[[object], None] | None,
        cost: Amount,
        order: list[VolumeId],
    ) -> tuple[SetEntry, Found]:
        """Make a set of *name*, for its job's owner, for the caller, or unclaimed, in the first volume of *order* that takes it; *cost* is what
        is claimed for its top."""
        owner = await self._owner_for(name, caller)
        stored = self.core.stored_as(owner)
        names = self.core.store.names

        def work() -> tuple[SetEntry, Found]:
            try:
                return self.placing.place(
                    name, order, lambda volume: names.take(name, owner, stored, ino, make, volume)
                )
            except BaseException:
                if undo is not None:
                    undo(None)
                raise

        async with self.core.charging.claimed(stored.uid, cost) as hold:
            taken = await self.core.change((), work, top=(name,), stored=stored, undo=undo, hold=hold)
        if owner is None:
            log.info("set %s made unclaimed by root", shown(name), extra={"always": True})
        return taken

    async def _owner_for(self, name: SetName, caller: Caller) -> Owner | None:
        job_owner = await self.core.job_owner(name, caller)
        ownership.check_take(self.core.policy, name, caller, job_owner)
        return ownership.owner_of_new(self.core.policy, name, caller, job_owner)

    async def check_create(self, directory: Node, caller: Caller) -> None:
        """Refuse a new file where only others may make one. A job's owner claims his unclaimed set by trying."""
        top = directory.top
        entry, name = directory.set_entry, SetName(top.name)
        if entry.owner is None and not caller.is_root:
            job_owner = await self.core.job_owner(name, caller)
            if job_owner is not None and ownership.is_claim(entry.owner, caller, job_owner):
                await self.give(top, job_owner, unless_owned=True)
                entry = directory.set_entry
        ownership.check_create(self.core.policy, name, entry.owner, caller)

    async def check_change(self, node: Node, caller: Caller, *, writing: bool = True) -> None:
        """Refuse a user to change anything in an unclaimed set, whatever its modes say."""
        if caller.is_root or node.is_root or not writing or node.removed is not None:
            return
        if node.set_entry.owner is None:
            await self.check_create(node, caller)

    async def check_move(self, source: Node, target: Node, caller: Caller) -> None:
        """Refuse to move or link between sets of different owners: the caller copies, and is charged, instead."""
        self._check_same_owner(source.set_entry, target.set_entry)
        await self.check_create(target, caller)

    async def give(self, top: Node, owner: Owner, *, unless_owned: bool = False) -> None:
        """Make the set *top* belong to *owner*: its entry says so at once, and its files follow."""
        await self.name_owner(top, owner, unless_owned=unless_owned)
        await self.following.bring_files(top)

    async def name_owner(self, top: Node, owner: Owner, *, unless_owned: bool = False) -> None:
        """The first half of giving; :meth:`Following.bring_files` is the other. OSError (EDQUOT), with nothing changed, if the
        set is more than *owner* may have."""

        async def run() -> SetName:
            await self._check_room(top, stored)
            async with self.core.charging.handed_over(top, stored.uid) as handover:
                name, handover.is_done = await self._name_owner(top, owner, unless_owned=unless_owned)
                return name

        stored = self.core.stored_as(owner)
        name = await self.keeping.with_room(stored, run)
        if top.set_entry.owner == owner:  # else somebody was faster
            log.info("set %s given to uid %d", shown(name), owner.uid, extra={"always": True})

    async def _name_owner(self, top: Node, owner: Owner, *, unless_owned: bool) -> tuple[SetName, bool]:
        store = self.core.store
        name, releases = await self.core.lock_set(top)
        top.entry, changed = await self.core.gate.call(
            lambda: name_owner(store, name, top.ino, owner, unless_owned=unless_owned), releases=releases
        )
        return name, changed

    async def _check_room(self, top: Node, stored: Owner) -> None:
        """Where an engine enforces: OSError (EDQUOT) unless the set fits into what it lets its new owner have."""
        engine, spot = self.core.engine, top.spot
        if engine is not None and spot.volume == HOME and spot.identity.uid != stored.uid:
            await self.core.gate.transfer(lambda: check_room(engine, self.core.store.door, spot, stored.uid))

    async def examine(self, name: SetName) -> tuple[SetEntry, Found]:
        """A set's entry and top. Whoever gave it away may have died before its files followed: then they follow now."""
        try:
            entry, found = await self._examine(name)
        except (PermissionError, Stale):
            await self._follow_unless_done(name)
            entry, found = await self._examine(name)
        is_here = self.core.store.volumes.is_usable(entry.volume)
        if entry.is_followed and is_here and name not in self.core.following:
            await self._follow_unless_done(name)
            entry, found = await self._examine(name)
        await self._keep_up(entry)
        return entry, found

    async def _examine(self, name: SetName) -> tuple[SetEntry, Found]:
        names = self.core.store.names
        if not self.core.locks.is_overdue(ROOT_INODE):
            return await self.core.gate.look(lambda: names.look(name))
        entry = await self.core.read_entry(name)
        return await self.core.look_briefly((USERS, entry.stored.uid), lambda: names.look(name))

    async def _follow_unless_done(self, name: SetName) -> None:
        if not await self.core.moved.has_changed_hands(name):
            await self.following.follow(name)

    async def _keep_up(self, entry: SetEntry) -> None:
        top = self.core.inodes.known(entry.ino)
        if top is None or top.reached is None or top.reached == entry:
            return
        top.entry = entry
        if not entry.lies_with(top.reached):  # else it was given away, and its files have yet to follow
            await self.following.keep_up(top)

    async def was_copied(self, node: Node, *, is_gone: bool = True) -> bool:
        """Whether a file that is open here was copied with its set; then the copy is open. *is_gone*: it has no name any more."""
        try:
            top = node.top
            before = top.reached
            if is_gone:
                await self.examine(SetName(top.name))
            else:
                await self._keep_up(await self._entry_of(SetName(top.name)))
        except (OSError, Stale):
            return False
        after = top.reached
        return before is not None and after is not None and not after.lies_with(before)

    async def _entry_of(self, name: SetName) -> SetEntry:
        if self.core.locks.is_overdue(ROOT_INODE):
            return await self.core.read_entry(name)
        return await self.core.gate.look(lambda: self.core.store.names.read(name))

    # Moving

    async def rename(
        self, source: Node, old_name: bytes, target: Node, new_name: bytes, flags: int, caller: Caller
    ) -> Node | None:
        """Rename where at least one of the two directories is the mount's root. Returns the moved node, if known."""
        if source.is_root and target.is_root:
            return await self._rename_set(SetName(old_name), SetName(new_name), flags, caller)
        if flags & RENAME_EXCHANGE:
            raise Invalid("a set and a file in a set cannot change places")
        if source.is_root:
            return await self._set_into(SetName(old_name), target, new_name, flags, caller)
        return await self._out_to_top(source, old_name, SetName(new_name), flags, caller)

    async def _rename_set(self, old: SetName, new: SetName, flags: int, caller: Caller) -> Node | None:
        await self._owner_for(new, caller)
        if flags & RENAME_EXCHANGE:
            await self._owner_for(old, caller)
        names, door = self.core.store.names, self.core.store.door

        def work() -> tuple[SetEntry, Found | None, SetEntry | None]:
            moves = {old: new, new: old} if flags & RENAME_EXCHANGE else {old: new}
            entry, replaced = rename_set(
                names, door, old, new, flags, self._leaving(caller, moves), self._discarding(caller)
            )
            return entry, replaced, names.read(old) if flags & RENAME_EXCHANGE else None

        entry, replaced, other = await self.core.change((), work, top=(old, new))
        if replaced is not None:
            self.core.inodes.lost_name(replaced)
        if other is not None:
            self._is_now(other.ino, old, other)
        return self._is_now(entry.ino, new, entry)

    def _is_now(self, ino: Inode, name: bytes, entry: SetEntry) -> Node | None:
        node = self.core.inodes.known(ino)
        if node is not None:
            node.parent, node.name, node.entry = self.core.inodes.root, name, entry
            node.reached = entry
        return node

    async def _set_into(
        self, old: SetName, target: Node, new_name: bytes, flags: int, caller: Caller
    ) -> Node | None:
        names, door = self.core.store.names, self.core.store.door
        entry = await self.core.gate.call(lambda: names.read(old))
        self._check_same_owner(entry, target.set_entry)
        await self.check_create(target, caller)

        def work() -> Found:
            new = target.inside(new_name)
            replaced = door.examine_if_there(new)
            if replaced is not None:
                self.guard.check(target.place.inside(new_name), replaced, caller)
            self.guard.check_way(old, target.place.set_name)
            return set_into_directory(names, door, old, new, flags, self._leaving(caller, {}))

        found = await self.core.change((target,), work, top=(old,))
        node = self.core.inodes.known(found.record.ino)
        if node is not None:
            node.parent, node.name, node.entry = target, new_name, None
        return node

    async def _out_to_top(
        self, source: Node, old_name: bytes, new: SetName, flags: int, caller: Caller
    ) -> Node | None:
        like = source.set_entry
        await self._check_new_for(like, new, caller)
        names, door = self.core.store.names, self.core.store.door

        def work() -> tuple[SetEntry, Found]:
            spot = source.inside(old_name)
            self.guard.check(source.place.inside(old_name), door.examine(spot), caller)
            return file_to_set(
                names, door, spot, new, like, flags, self._leaving(caller, {}), self._discarding(caller)
            )

        entry, _ = await self.core.change(
            (source,),
            work,
            top=(new,),
            stored=like.stored,
        )
        return self._is_now(entry.ino, new, entry)

    async def link(self, node: Node, source: Spot, new: SetName, caller: Caller) -> Found:
        """A second name at the top for the file *node*."""
        like = node.set_entry
        await self._check_new_for(like, new, caller)
        names, door = self.core.store.names, self.core.store.door
        place = node.place

        def work() -> tuple[SetEntry, Found]:
            self.guard.check_link(place, door.examine(source, node.ino))
            return link_set(names, door, source, new, like)

        entry, found = await self.core.change((), work, top=(new,), stored=like.stored)
        self.core.inodes.seen(found.record.ino, self.core.inodes.root, new, entry)
        return found

    async def _check_new_for(self, like: SetEntry, new: SetName, caller: Caller) -> None:
        """A set made of another's file stays that one's owner's: only he, or root, makes it."""
        owner = await self._owner_for(new, caller)
        if not caller.is_root and owner is not None and (like.owner is None or like.owner.uid != owner.uid):
            raise OtherOwner("the file's set belongs to another owner")

    @staticmethod
    def _check_same_owner(ours: SetEntry, theirs: SetEntry) -> None:
        if ours.owner != theirs.owner or ours.stored != theirs.stored:
            raise OtherOwner("the two sets belong to different owners")
        if ours.volume != theirs.volume:
            raise OtherOwner("the files of the two sets lie in different stores")
