"""Bringing the files of sets that were given away to their new owners.

Where root may chown, that is done at once. Where root is squashed they are copied, beside the calls of everybody else: the set
is read and changed where it was until the copy takes its place, in a moment in which no call of this mount is on the set.
What cannot be copied now is tried again: somebody writes, another mount is copying it, there is no room.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import trio

from ckfs.errors import FsError, StoreDown
from ckfs.fs.core import Core, Quiet
from ckfs.fs.inodes import Node
from ckfs.model import Owner
from ckfs.names import SetName, shown
from ckfs.store.entries import SetEntry
from ckfs.store.handover import Copying, bring_files, said_of
from ckfs.store.remains import remove_left

log = logging.getLogger(__name__)

_INTERVAL_S = 5.0
_WAIT_S = 2.0
"""How long a call waits for a copy; a small one is done by then."""
_QUIET_S = 60.0
"""Another node's image that is unchanged for so long is not being written any more, whatever its state says."""
_GRACE_S = 0.25
"""For calls of other mounts that were on their way to the old files; later ones do not find these."""
_LATER = (OSError, FsError, ValueError)


@dataclass(frozen=True, slots=True)
class Following:
    core: Core

    async def run(self) -> None:
        """Try again what had to wait; runs for the life of the mount."""
        async with trio.open_nursery() as nursery:
            self.core.background = nursery
            nursery.start_soon(self._clear)
            while True:
                await trio.sleep(_INTERVAL_S)
                for name in list(self.core.following):
                    await self._try_again(name)

    async def _clear(self) -> None:
        """What hand-overs left that died is removed by whoever mounts the store next; what is in use yet on this host, when it is not."""
        store = self.core.store
        if store.read_only:
            return
        self.core.has_left = True
        while True:
            if self.core.has_left:
                self.core.has_left = await self._remove_left()
            await trio.sleep(_INTERVAL_S)

    async def _remove_left(self) -> bool:
        store = self.core.store
        try:
            return await self.core.gate.transfer(lambda: remove_left(store))
        except _LATER as error:
            log.info("what hand-overs may have left stays: %s", error)
            return False

    async def _try_again(self, name: SetName) -> None:
        try:
            await self.follow(name)
        except FileNotFoundError:
            self._done(name)
        except (OSError, FsError) as error:
            log.debug("set %s cannot follow its owner yet: %s", shown(name), error)

    async def follow(self, name: SetName) -> None:
        """Let the files of the set *name* follow its owner, whoever gave it to him."""
        entry = await self.core.gate.call(lambda: self.core.store.names.read(name))
        top = self.core.inodes.known(entry.ino) or Node(entry.ino, self.core.inodes.root, name)
        top.entry = entry
        await self.bring_files(top)

    async def bring_files(self, top: Node) -> None:
        """Let the files of a set that was given away follow now, or later if that is not possible."""
        name, entry, store = SetName(top.name), top.set_entry, self.core.store
        stored = self.core.stored_as(entry.owner)
        if entry.stored.uid == stored.uid or store.read_only:
            self._done(name)
            return
        if top.ino not in self.core.copying:
            try:
                name, entry, moved = await self._move(top)
            except _LATER as error:
                self._later(name, error)
                return
            if moved is not None:
                top.entry = top.reached = moved
                self._done(name)
                return
        await self._copy_or_wait(top, name, entry, stored)

    async def _move(self, top: Node) -> tuple[SetName, SetEntry, SetEntry | None]:
        """The set's name and entry, and the entry after its files have followed without a copy, if they could."""
        name, releases = await self.core.lock_set(top)
        store, stored_as = self.core.store, self.core.stored_as

        def work() -> tuple[SetName, SetEntry, SetEntry | None]:
            entry = said_of(store, name, top.ino)
            return name, entry, bring_files(store, name, entry, stored_as(entry.owner))

        return await self.core.gate.transfer(work, releases=releases)

    def _done(self, name: SetName) -> None:
        self.core.following.pop(name, None)
        self.core.others.pop(name, None)

    def _later(self, name: SetName, error: BaseException) -> None:
        reason = str(error)
        if (
            self.core.following.get(name) != reason
        ):  # it is tried every few seconds, for as long as a writer takes
            log.info("the files of set %s follow its new owner later: %s", shown(name), reason)
        self.core.following[name] = reason

    async def _copy_or_wait(self, top: Node, name: SetName, entry: SetEntry, stored: Owner) -> None:
        """Begin to copy unless this mount does already, and wait for a while."""
        self.core.following.setdefault(name, "")  # looks at it do not wait any more
        ended = self.core.copying.get(top.ino)
        if ended is None:
            ended = self.core.copying[top.ino] = trio.Event()
            if self.core.background is None:
                await self._copy_now(top, name, entry, stored)
            else:
                self.core.background.start_soon(self._copy_now, top, name, entry, stored)
        with trio.move_on_after(_WAIT_S):
            await ended.wait()

    async def _copy_now(self, top: Node, name: SetName, entry: SetEntry, stored: Owner) -> None:
        try:
            await self.copy(top, name, Copying(self.core.store, name, entry, stored))
            self._done(name)
            log.info("the files of set %s followed to uid %d", shown(name), stored.uid)
        except _LATER as error:
            self._later(name, error)
        finally:
            self.core.copying.pop(top.ino).set()

    async def copy(self, top: Node, name: SetName, copying: Copying) -> None:
        """Let a copy be the set *name*, which nobody writes meanwhile; the caller has put it into :attr:`Core.copying`."""
        gate = self.core.gate
        try:
            self._check_not_written_here(top)
            written = await gate.transfer(copying.begin)
            self._check_not_written_elsewhere(name, await gate.transfer(copying.writers), written)
            while await gate.transfer(copying.step):  # each with a time limit of its own
                pass
            async with gate.alone(top.ino):
                self._check_not_written_here(top)
                top.entry = await gate.transfer(copying.finish)
                await self._reopen_handles(top)
            await gate.transfer(copying.put_old_aside)
            self.core.copying[top.ino].set()
            await trio.sleep(_GRACE_S)
            if not await gate.transfer(copying.remove_old):
                self.core.has_left = True
        finally:
            await gate.clean_up(copying.close)

    def _check_not_written_here(self, top: Node) -> None:
        if any(
            handle.writable and self.core.set_key(handle.node) == top.ino
            for handle in self.core.handles.all()
        ):
            raise BlockingIOError("somebody has a file of it open for writing")

    def _check_not_written_elsewhere(
        self, name: SetName, writers: dict[bytes, set[bytes]], contents: object
    ) -> None:
        """Only the states of images tell of writers on other mounts, and also of some that died long ago."""
        nodes = writers.keys() - {self.core.node_name}
        quiet = self.core.others.pop(name, None)
        if not nodes:
            return
        now = trio.current_time()
        if quiet is None or quiet.written != contents:
            quiet = Quiet(contents, now)
        if now - quiet.since_s < _QUIET_S:
            self.core.others[name] = quiet
            raise BlockingIOError(
                f"an image is being written on {', '.join(shown(n) for n in sorted(nodes))}"
            )

    async def keep_up(self, top: Node) -> None:
        """Another mount has moved or copied the set: what is open of it here may lead to files that are gone."""
        if top.ino in self.core.copying:
            return
        try:
            async with self.core.gate.alone(top.ino):
                await self._reopen_handles(top)
        except StoreDown as error:
            log.debug("open files of set %s are looked for later: %s", shown(top.name), error)

    async def _reopen_handles(self, top: Node) -> None:
        """What is open here of a set whose files are others by now leads to these from here on.

        Under the numbers of the old descriptors, so that nobody has to know. Only while no call is on the set.
        """
        top.reached = top.entry
        for handle in list(self.core.handles.all()):
            if self.core.set_key(handle.node) == top.ino:
                reopen = partial(
                    self.core.store.door.open_instead, handle.node.spot, handle.node.ino, handle.fd
                )
                is_other = True  # a call that comes too late may still do it
                try:
                    is_other = await self.core.gate.transfer(reopen, releases=(handle.pin(),))
                except _LATER as error:
                    log.debug("an open file of set %s stays what it was: %s", shown(top.name), error)
                handle.is_near = self.core.is_near(handle.node)
                handle.leads_to = handle.node.hashed = None
                if handle.node.backing is not None:
                    handle.node.backing.leads_to = None
                handle.reopened(is_other=is_other)
