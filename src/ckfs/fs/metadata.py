"""What a file looks like, and changing that: getattr, setattr, statfs."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ckfs.errors import Denied, NotOwner, Stale, StoreDown, Unreached
from ckfs.fs.asking import Asking
from ckfs.fs.core import Core
from ckfs.fs.guard import Guard
from ckfs.fs.inodes import Handle, Node, Place, place_of
from ckfs.fs.sets import Sets
from ckfs.fs.space import Space
from ckfs.fs.streams import ANSWER_HOLDS_S
from ckfs.fs.unseen import Unseen
from ckfs.model import Caller, Owner, Record
from ckfs.names import ROOT_INODE, FileHandle, Gid, Inode, SetName, Uid
from ckfs.policy import lifecycle, ownership, presented, quota
from ckfs.policy.lifecycle import Event
from ckfs.store.gate import Release
from ckfs.store.spots import Found, Target, Times

_ON_THE_WAY_S = 0.001
"""For how long the kernel may take for true what it was told of a directory on a call's way: it asks for it twice, to find it and to see whether the
caller may pass. It counts in ticks of 1 to 10 ms."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a setattr asks for; None leaves as it is. Times in nanoseconds since the epoch, size in bytes."""

    mode: int | None = None
    uid: Uid | None = None
    gid: Gid | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Metadata:
    core: Core
    sets: Sets
    guard: Guard
    unseen: Unseen

    async def getattr(self, ino: Inode) -> Found:
        node = self.core.inodes.get(ino)
        await self.unseen.until_released(node)
        if node.removed is not None and not node.handles:
            return node.removed
        try:
            found = await self.core.examine(node)
        except (Unreached, StoreDown):
            if not self._is_out_of_reach(node):
                raise
            return (await self.core.gate.look(lambda: self.core.store.names.look(SetName(node.name))))[1]
        except Stale:  # behind a network an open directory is gone with its name
            if node.removed is None or not node.removed.record.is_directory:
                raise
            return node.removed
        if await self._was_copied(node, found):
            found = await self.core.examine(node)
        return (
            found if node.removed is None else replace(found, removed=True)
        )  # the trash may have a name for it

    async def birth_time(self, ino: Inode) -> int | None:
        """When the file was made that now lies in the store for *ino*, in ns since the epoch; None if the store does not say, or it is
        gone, or out of reach. A copy was made when it was copied: for a new owner, or to another store; and so was what took the
        place of an image that was overwritten, and is in the trash now."""
        node = self.core.inodes.get(ino)
        if node.removed is not None and not node.handles:
            return None
        door = self.core.store.door
        try:
            if node.is_root:
                return await self.core.gate.look(lambda: door.birth_time(self.core.store.names.top, ino))
            return await self.core.on(node, lambda target: door.birth_time(target, ino))
        except (Unreached, StoreDown):
            if not self._is_out_of_reach(node):
                raise
            return None
        except Stale:
            if node.removed is None:
                raise
            return None

    def _is_out_of_reach(self, node: Node) -> bool:
        """Whether *node* is a set in a further store that this host does not reach: its name says what there is to say of it."""
        return node.entry is not None and not self.core.store.volumes.is_usable(node.entry.volume)

    async def _was_copied(self, node: Node, found: Found) -> bool:
        """By a descriptor that was open before another mount copied the set, a file is met that is gone."""
        return found.stat.st_nlink == 0 and node.removed is None and await self.sets.was_copied(node)

    async def _changed_in_vain(self, node: Node, found: Found) -> bool:
        """As :meth:`_was_copied`, after a change. NFS gives what was removed on this host another name for as long as it is open."""
        if await self._was_copied(node, found):
            return True
        may_be = self.core.late.is_late and bool(node.handles) and node.removed is None
        return may_be and await self.sets.was_copied(node, is_gone=False)

    def answer_holds_s(self, found: Found) -> float:
        """For how many seconds the kernel may take *found* for true: 0 but of the mount's root, through which every call goes, and while
        somebody streams through the file."""
        if found.record.ino == ROOT_INODE:
            return _ON_THE_WAY_S
        node, now = self.core.inodes.known(found.record.ino), time.monotonic()
        if node is None:
            return 0
        streams = any(handle.stream.is_running(found.stat.st_size, now) for handle in node.handles)
        return ANSWER_HOLDS_S if streams else 0

    @staticmethod
    def lookup_holds_s(found: Found) -> float:
        """As :meth:`answer_holds_s`, of what was just looked up."""
        return _ON_THE_WAY_S if found.record.is_directory else 0

    async def setattr(self, ino: Inode, changes: Changes, number: FileHandle | None, caller: Caller) -> Found:
        """The kernel has checked the caller's rights by what getattr presented."""
        node = self.core.inodes.get(ino)
        handle = None if number is None else self.core.handle(number)
        await self.unseen.until_released(node)
        await self.sets.check_change(node, caller)
        if node.is_root and (changes.uid or changes.gid):
            raise NotOwner("the mount's root belongs to root")
        if changes.size is not None:
            await self.core.charging.settle_now(node)
        if changes.size == 0:
            await self.sets.keeping.renew(node, caller, begun=handle is not None)
        has_owner = changes.uid is not None and node.entry is not None
        if changes.uid is not None and has_owner:
            await self._name_owner(node, changes.uid, changes.gid, caller)
        if changes.mode is not None:
            await self.unseen.mode_is_set(node, changes.mode)
            for other in node.handles:
                other.marked = False  # a write through it must take new set-id bits away
        try:
            found = await self._apply(node, changes, handle, caller)
        except OSError as error:
            if not has_owner or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # Whom it is taken from may have no room even for that (btrfs, at its limit): it is done where the set goes.
            await self.sets.following.bring_files(node)
            found = await self._apply(node, changes, handle, caller)
        if changes.size is not None or changes.mtime_ns is not None:
            self.unseen.changed(found)
        if changes.size is not None:
            self.core.charging.cut(node, changes.size)
            await self.core.charging.settle_now(node)
            await self.core.charging.told()
        if not has_owner or node.removed is not None:
            return found
        await self.sets.following.bring_files(node)  # last: a copy that was begun would have to begin anew
        return await self.core.examine(node)

    async def _name_owner(self, top: Node, uid: Uid, gid: Gid | None, caller: Caller) -> None:
        owner = top.set_entry.owner
        if not ownership.other_owner(owner, uid):
            return
        ownership.check_give(caller)
        if owner is None and uid == 0:
            return  # root's chown to root leaves an unclaimed set unclaimed
        if (
            top.removed is None
        ):  # an open file without a name belongs to no set any more: only its looks change
            await self.sets.name_owner(top, await self._owner_of(uid, gid, caller))

    async def _owner_of(self, uid: Uid, gid: Gid | None, caller: Caller) -> Owner:
        if gid is not None:
            return Owner(uid, gid)
        known = await self.core.aside.ask(lambda: self.core.lookup.owner_named(str(uid)), caller.uid)
        return Owner(uid, known.gid if known is not None else Gid(uid))

    async def _apply(self, node: Node, changes: Changes, handle: Handle | None, caller: Caller) -> Found:
        # Whoever has written through a handle before, and perhaps failed, begins nothing anew by cutting it to nothing.
        anew = handle is not None and changes.size == 0 and not handle.wrote
        change = self._change(changes, handle, caller, Event.REPLACED if anew else Event.WRITTEN)
        times = None
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            times = Times(changes.atime_ns, changes.mtime_ns)

        place, cuts = place_of(node), handle is not None and changes.size is not None
        if cuts:
            await self.core.assure_membership(handle.mount if handle is not None else None)
        mount, is_marked = self.core.mount_id if cuts else None, False
        if changes.size is not None:
            node.hashed = None

        def work(target: Target) -> Found:
            nonlocal is_marked
            if place is not None and not (handle is not None and handle.settled):
                self._check(place, node, target, changes, handle, caller)
            if mount is not None:
                self.core.mark(mount, target, node.ino, lambda found: found.record)
                is_marked = True
            return self.core.store.door.update(target, node.ino, change, size=changes.size, times=times)

        if handle is not None and cuts:
            handle.mount = mount
            try:
                found = await self._cut(node, handle, work)
            finally:
                if is_marked:
                    await self.core.charging.begun(handle)
            if anew:
                node.failed, node.killed, node.unwritten = False, False, None
            return found
        by_name = changes.size is not None
        found = await self.core.on(node, work, locked=True, by_name=by_name)
        if by_name and place is not None:
            self.core.undigested.add(node.ino, place)
        if await self._changed_in_vain(node, found):
            return await self.core.on(node, work, locked=True, by_name=by_name)
        return found

    async def _cut(self, node: Node, handle: Handle, work: Callable[[Target], Found]) -> Found:
        """ftruncate: a write through *handle*."""
        had_written, handle.wrote, node.unsynced = handle.wrote, True, True
        releases: list[Release] = [await self.core.locks.acquire(node.ino), handle.pin()]
        try:
            found = await self.core.gate.call(
                lambda: work(handle.file), releases=releases, of_set=self.core.set_key(node)
            )
        except Denied:  # nothing was cut
            handle.wrote = had_written
            raise
        handle.marked = True
        return found

    def _check(
        self,
        place: Place,
        node: Node,
        target: Target,
        changes: Changes,
        handle: Handle | None,
        caller: Caller,
    ) -> None:
        """Refuse to cut a protected image short, or to give it to anybody but the set's owner. What is synced, but not
        complete, is its writers' to cut."""
        if not self.core.policy.is_batch(place.set_name) or (changes.size is None and changes.uid is None):
            return
        found = self.core.store.door.examine(target, node.ino)
        owner = node.set_entry.owner
        if handle is not None and changes.uid is None and not lifecycle.may_be_complete(found.record):
            return
        own = (None, found.record.uid, None if owner is None else owner.uid)
        if changes.size is not None or (changes.uid not in own and not found.record.is_directory):
            self.guard.check(place, found, caller)

    def _change(
        self, changes: Changes, handle: Handle | None, caller: Caller, event: Event
    ) -> Callable[[Record], Record]:
        def change(record: Record) -> Record:
            if changes.size is not None:
                record = presented.after_write(record, caller.uid, caller.gid)
                if handle is not None:
                    record = lifecycle.after(record, event).with_(node=self.core.node_name)
                elif (
                    record.completed
                ):  # other content: what was known of it by that number does not hold any more
                    record = record.with_(completed=record.completed + 1)
            if changes.uid is not None or changes.gid is not None:
                record = presented.with_owner(record, changes.uid, changes.gid)
            if changes.mode is not None:
                record = presented.with_mode(record, changes.mode)
            return record

        return change

    async def statfs(self, caller: Caller) -> Space:
        """Of the whole store for root; for a user what of it may be his. One look at the ledger, and none that is waited for."""
        space = Space.of_store(await self.core.gate.call(self.core.store.door.room))
        if caller.is_root:
            return space
        reserve = self.core.policy.quota.reserve.bytes_of(space.total_bytes)
        account = await Asking(self.core).account_at_once(caller.uid)
        space = space.less_reserve(reserve)
        return space if account is None else space.of_owner(account, quota.told_ns(account))
