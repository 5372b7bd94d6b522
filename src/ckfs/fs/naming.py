"""Calls that look names up, make them and take them away. Top-level names, the sets, are in :mod:`ckfs.fs.sets`."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from ckfs.errors import Exists, FsError, Invalid, NotFound, OtherOwner, Stale
from ckfs.fs.core import Core
from ckfs.fs.guard import Guard
from ckfs.fs.inodes import Node, Place, volume_of
from ckfs.fs.keeping import Keeping
from ckfs.fs.opening import KEPT_FLAGS, Opening
from ckfs.fs.sets import Sets, taking
from ckfs.model import Caller, Checkpoint, Owner, Record, State
from ckfs.names import FileHandle, Inode, SetName
from ckfs.policy import lifecycle, presented
from ckfs.policy.quota import Amount
from ckfs.store.entries import SetEntry
from ckfs.store.metering import rounded
from ckfs.store.moving import check_single, looking_again
from ckfs.store.record import new_inode
from ckfs.store.spots import Build, Found, OpenFile, Spot
from ckfs.store.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE

_PATH_MAX = 4096

Make = Callable[[Spot, Build], Found]


@dataclass(frozen=True, slots=True)
class Naming:
    core: Core
    sets: Sets
    opening: Opening
    guard: Guard
    keeping: Keeping

    async def lookup(self, parent: Inode, name: bytes) -> Found:
        directory = self.core.inodes.get(parent)
        if directory.is_root:
            entry, found = await self.sets.examine(SetName(name))
            node = self.core.inodes.seen(found.record.ino, directory, name, entry)
        else:
            found = await self.core.below(
                directory, lambda: self.core.store.door.examine(directory.inside(name))
            )
            node = self.core.inodes.seen(found.record.ino, directory, name)
        self.core.inodes.looked_up(node)
        return found

    # Making

    async def mkdir(self, parent: Inode, name: bytes, mode: int, caller: Caller) -> Found:
        make, cost = self.core.store.door.make_directory, self.core.unit
        return await self._make(parent, name, stat.S_IFDIR | mode, caller, make, cost_bytes=cost)

    async def mknod(self, parent: Inode, name: bytes, mode: int, rdev: int, caller: Caller) -> Found:
        make = self._make_closed if stat.S_ISREG(mode) else self._placeholder(b"")
        return await self._make(parent, name, mode, caller, make, rdev)

    async def symlink(self, parent: Inode, name: bytes, target: bytes, caller: Caller) -> Found:
        make, cost = self._placeholder(target), rounded(len(target), self.core.unit)
        return await self._make(parent, name, stat.S_IFLNK | 0o777, caller, make, cost_bytes=cost)

    async def create(
        self, parent: Inode, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[FileHandle, Found]:
        self.core.check_handles(caller)
        await self.core.assure_membership(None)
        writer = self.core.mount_id
        opened: list[tuple[OpenFile, Inode]] = []
        access = flags & KEPT_FLAGS

        def make(spot: Spot, build: Build) -> Found:
            fd, found = self.core.store.door.make_file(spot, build, access, writer)
            opened.append((OpenFile(fd), found.record.ino))
            return found

        def undo(_: object) -> None:
            while opened:  # before it is tried once more, too
                file, ino = opened.pop()
                with contextlib.suppress(OSError, FsError):  # it is as if this mount had died writing it
                    self.core.store.door.unmark(file, ino, writer)
                os.close(file.fd)

        try:
            found = await self._make(parent, name, stat.S_IFREG | mode, caller, make, undo=undo)
        except (FileExistsError, Exists):
            if flags & os.O_EXCL:
                raise
            # Another mount made it since the kernel looked: let it look again, and check permissions this time.
            raise Stale("the file exists by now") from None
        node = self.core.inodes.get(found.record.ino)
        return await self.opening.made(node, opened[0][0], found, caller, flags), found

    async def _make(
        self,
        parent: Inode,
        name: bytes,
        mode: int,
        caller: Caller,
        make: Make,
        rdev: int = 0,
        undo: Callable[[object], None] | None = None,
        *,
        cost_bytes: int = 0,
    ) -> Found:
        directory, cost = self.core.inodes.get(parent), Amount(cost_bytes, files=1)
        ino = new_inode()

        def build(of_directory: Record | None) -> Record:
            return presented.of_new(ino, caller, of_directory, mode, rdev, self.core.node_name)

        if directory.is_root:
            own = None if caller.is_root else Owner(caller.uid, caller.gid)
            order = self.sets.placing.order()
            await self.keeping.may_begin(own, caller, order[0])
            entry, found = await self.keeping.with_room(
                own,
                lambda: self.sets.take(
                    SetName(name), caller, ino, lambda spot: make(spot, build), undo, cost, order
                ),
            )
            node = self.core.inodes.seen(found.record.ino, directory, name, entry)
        else:
            await self.sets.check_create(directory, caller)
            await self.keeping.may_begin(directory.set_entry.stored, caller, volume_of(directory))

            async def make_inside() -> Found:
                async with self.core.charging.claimed(self.core.payer_of(directory), cost) as hold:
                    return await self.core.change(
                        (directory,), lambda: make(directory.inside(name), build), undo=undo, hold=hold
                    )

            found = await self.keeping.with_room(
                directory.set_entry.stored, make_inside, volume_of(directory)
            )
            node = self.core.inodes.seen(found.record.ino, directory, name)
        self.core.inodes.looked_up(node)
        return found

    def _make_closed(self, spot: Spot, build: Build) -> Found:
        def complete(of_directory: Record | None) -> Record:
            return build(of_directory).with_(state=State.COMPLETE)  # nobody holds it open for writing

        fd, found = self.core.store.door.make_file(spot, complete, os.O_WRONLY)
        os.close(fd)
        return found

    def _placeholder(self, content: bytes) -> Make:
        door, names = self.core.store.door, self.core.store.names

        def make(spot: Spot, build: Build) -> Found:
            return door.make_placeholder(spot, build, content, names.staging_spot(spot.identity, spot.volume))

        return make

    # Taking away

    async def unlink(self, parent: Inode, name: bytes, caller: Caller) -> None:
        await self._remove(parent, name, caller, self.core.store.door.unlink)

    async def rmdir(self, parent: Inode, name: bytes, caller: Caller) -> None:
        await self._remove(parent, name, caller, self.core.store.door.rmdir)

    async def _remove(
        self, parent: Inode, name: bytes, caller: Caller, remove: Callable[[Spot], None]
    ) -> None:
        directory, door = self.core.inodes.get(parent), self.core.store.door
        await self.opening.passing.unseen.until_released(directory)
        await self.sets.check_change(directory, caller)

        def inside() -> Found:
            spot, place = directory.inside(name), directory.place.inside(name)
            found = door.examine(spot)
            before = check(place, found)
            self.keeping.remove(spot, place, directory.set_entry.owner, found, caller, remove)
            if lifecycle.may_be_complete(found.record):
                self.guard.removed(place, before)
            return found

        def check(place: Place, found: Found) -> list[Checkpoint] | None:
            if found.record.is_directory:  # one that holds anything is ENOTEMPTY
                return []
            return self.guard.check(place, found, caller)

        def at_top(found: Found) -> None:
            taking(caller)(found)
            check(Place(SetName(name), ()), found)

        def remove_set(entry: SetEntry, found: Found) -> None:
            place = Place(SetName(name), ())
            self.keeping.remove(entry.spot, place, entry.owner, found, caller, remove)

        if directory.is_root:
            found = await self.core.change(
                (),
                lambda: self.core.store.names.remove(SetName(name), remove_set, at_top),
                top=(SetName(name),),
            )
        else:
            found = await self.core.change((directory,), inside)
        self.core.inodes.lost_name(found)

    # Moving

    async def rename(
        self,
        old_parent: Inode,
        old_name: bytes,
        new_parent: Inode,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> None:
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise Invalid("an unknown rename flag")
        source, target = self.core.inodes.get(old_parent), self.core.inodes.get(new_parent)
        for directory in (source, target):
            await self.opening.passing.unseen.until_released(directory)
        if source.is_root or target.is_root:
            moved = await self.sets.rename(source, old_name, target, new_name, flags, caller)
        else:
            moved = await self._rename_inside(source, old_name, target, new_name, flags, caller)
        if moved is not None:
            await self.opening.passing.unseen.renamed(moved)
            await self.opening.states.renamed(moved, old_name)

    async def _rename_inside(
        self, source: Node, old_name: bytes, target: Node, new_name: bytes, flags: int, caller: Caller
    ) -> Node | None:
        await self.sets.check_move(source, target, caller)
        await self.sets.check_change(source, caller)
        if flags & RENAME_EXCHANGE:
            await self.sets.check_move(target, source, caller)
        door = self.core.store.door

        def work() -> tuple[Found, Found | None]:
            return looking_again(flags, once)

        def once() -> tuple[Found, Found | None]:
            old, new = source.inside(old_name), target.inside(new_name)
            moved, other = door.examine(old), door.examine_if_there(new)
            self.guard.check(source.place.inside(old_name), moved, caller)
            if other is not None:
                self.guard.check(target.place.inside(new_name), other, caller)
            if source.top is not target.top:
                check_single(moved)
                if other is not None and flags & RENAME_EXCHANGE:
                    check_single(other)
            self.guard.check_way(source.place.set_name, target.place.set_name)
            if flags & RENAME_EXCHANGE:
                self.guard.check_way(target.place.set_name, source.place.set_name)
            if flags or (other is not None and other.record.ino == moved.record.ino):
                door.rename(old, new, flags)
            else:
                place, owner = target.place.inside(new_name), target.set_entry.owner
                with self.keeping.replacing(new, place, owner, other, caller):
                    door.rename(old, new)
            if moved.record.is_directory or source.top is not target.top:  # checkpoints as a whole
                self.guard.recount(target.place.set_name)
            return moved, other

        moved, other = await self.core.change((source, target), work)
        if other is not None and other.record.ino == moved.record.ino:
            return None  # two names of one file: nothing has moved
        if flags & RENAME_EXCHANGE:
            if other is not None and (node := self.core.inodes.known(other.record.ino)):
                node.parent, node.name = source, old_name
        elif other is not None:
            self.core.inodes.lost_name(other)
        node = self.core.inodes.known(moved.record.ino)
        if node is not None:
            node.parent, node.name, node.entry = target, new_name, None
        return node

    async def link(self, ino: Inode, new_parent: Inode, new_name: bytes, caller: Caller) -> Found:
        node, target = self.core.inodes.get(ino), self.core.inodes.get(new_parent)
        try:
            source = node.spot
        except Stale:
            raise NotFound("the file has no name any more") from None
        if target.is_root:
            if node.entry is None:
                raise OtherOwner("a file in a set cannot also be a set")
            found = await self.sets.link(node, source, SetName(new_name), caller)
        else:
            if node.top is not target.top:
                raise OtherOwner("a file has links in one set only, so that each set can change hands")
            await self.sets.check_move(node, target, caller)
            door = self.core.store.door

            def work() -> Found:
                new = target.inside(new_name)
                self.guard.check_link(target.place, door.examine(source, ino))
                door.link(source, new, ino)
                return door.examine(new)

            found = await self.core.change((target,), work)
            self.core.inodes.seen(found.record.ino, target, new_name)
        self.core.inodes.looked_up(self.core.inodes.get(found.record.ino))
        return found

    async def readlink(self, ino: Inode) -> bytes:
        node = self.core.inodes.get(ino)
        return await self.core.on(
            node, lambda target: self.core.store.door.read_content(target, _PATH_MAX, ino)
        )
