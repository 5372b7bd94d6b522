"""Images that the kernel writes by itself: what becomes of them when they are closed.

Nobody hears of such writes, nor of one that fails; and who holds a descriptor, in which process, is not known. So an image counts as being written
until its RELEASE, and as partial if there is any doubt.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain

import trio

from ckfs.errors import FsError, Stale
from ckfs.fs.core import Core
from ckfs.fs.inodes import Handle, Node, place_of, stored_owner, volume_of
from ckfs.fs.moved import GONE
from ckfs.fs.plenty import Plenty
from ckfs.model import Record
from ckfs.names import Inode, Uid
from ckfs.owners.processes import was_killed
from ckfs.policy import presented
from ckfs.store import leases
from ckfs.store.identity import ROOT, acting_as
from ckfs.store.spots import Found, VolumeId

log = logging.getLogger(__name__)

_WATCH_S = 0.25
_MOST_REMEMBERED = 4096
_CLOSINGS, _CLOSING_S = 10, 0.05
"""How often, and with what pauses, a file is looked at that its writer may just be closing."""


@dataclass(slots=True)
class Unseen:
    core: Core
    plenty: Plenty
    _open: set[Handle] = field(default_factory=set)
    _doubted: set[Handle] = field(default_factory=set)
    """Those of them that were open while there was hardly any room."""
    _begun: trio.Event = field(default_factory=trio.Event)
    _released: OrderedDict[Inode, tuple[int, int]] = field(default_factory=OrderedDict)
    """Size and time of change of images of temporary names, as their writers left them."""
    _releasing: dict[int, set[trio.Event]] = field(default_factory=dict)
    """Those that are just being released, by set: set when one is."""

    # While it is open

    def begin(self, handle: Handle) -> None:
        """From now on the kernel writes by itself through *handle*."""
        handle.node.hashed = None
        handle.node.unsynced = True
        self._open.add(handle)
        self._begun.set()
        self.core.charging.written_unseen()

    async def run(self) -> None:
        """Watch the room that there is while something is written unseen; for the life of the mount."""
        while True:
            await self._begun.wait()
            await self._doubt(self._open, unknown=False)  # it is asked again soon
            await trio.sleep(_WATCH_S)
            if not self._open:
                self._begun = trio.Event()

    async def _doubt(self, handles: Iterable[Handle], *, unknown: bool) -> None:
        """If there is hardly any room, a write through *handles* may have failed, which only its program has heard of. *unknown* is what
        counts if nobody says how much there is."""
        tight: dict[tuple[VolumeId, Uid], bool] = {}
        for handle in [one for one in handles if one not in self._doubted]:
            key = volume_of(handle.node), self.core.payer_of(handle.node)
            if key not in tight:
                said = await self.plenty.is_tight(*key)
                tight[key] = unknown if said is None else said
            if tight[key] and handle in self._open:  # not closed meanwhile
                self._doubted.add(handle)

    async def flush(self, handle: Handle) -> None:
        """A descriptor of what is written unseen is closed; others may be open yet, in any process. Fenced if nobody cares any more."""
        if handle.process is not None and was_killed(handle.process):
            handle.node.killed = True
        await self.core.assure_membership(handle.mount)

    async def as_written(self) -> list[tuple[int, int, int]]:
        """What the store has by now of each of these files: it differs as long as somebody writes."""
        handles = [*self._open]

        def work() -> list[tuple[int, int, int]]:
            seen = [os.fstat(handle.fd) for handle in handles]
            return [(status.st_ino, status.st_size, status.st_mtime_ns) for status in seen]

        try:
            return await self.core.gate.look(work, releases=[handle.pin() for handle in handles])
        except (OSError, FsError):
            return []

    # When it is closed

    @contextmanager
    def releasing(self, handle: Handle) -> Iterator[None]:
        """Within the block *handle* is released; who asks what became of its image waits (:meth:`until_released`)."""
        if not handle.is_written_unseen:
            yield
            return
        key, is_released = self.core.set_key(handle.node), trio.Event()
        self._releasing.setdefault(key, set()).add(is_released)
        try:
            yield
        finally:
            is_released.set()
            self._releasing[key].discard(is_released)
            if not self._releasing[key]:
                del self._releasing[key]

    async def until_released(self, node: Node) -> None:
        """Wait, not for long, for what was closed in the set of *node* (of the root: in any) before this was asked; what is closed
        meanwhile by those who never stop is not waited for."""
        if not self._releasing:
            return
        of_set = self._releasing.get(self.core.set_key(node), set())
        earlier = [*chain(*self._releasing.values())] if node.is_root else [*of_set]
        with trio.move_on_after(self.core.op_timeout_s / 4):
            for is_released in earlier:
                await is_released.wait()

    async def mode_is_set(self, node: Node, mode: int) -> None:
        """Set-id bits go with the next write: of one that is not seen that is known when it is closed."""
        for handle in node.handles:
            if handle.is_written_unseen and mode & (stat.S_ISUID | stat.S_ISGID):
                handle.had = await self.looks_of(handle)

    async def _take_set_ids(self, handle: Handle) -> None:
        """If *handle* was written since set-id bits were given to the file, they go."""
        node, door, opener = handle.node, self.core.store.door, handle.opener

        def change(found: Found) -> Record:
            return presented.after_write(found.record, opener.uid, opener.gid)

        if handle.had is not None and await self.looks_of(handle) != handle.had:
            await self.core.on(node, lambda target: door.amend(target, node.ino, change), locked=True)

    async def looks_of(self, handle: Handle) -> tuple[int, int]:
        """Size and time of change of what *handle* has open."""
        status = await self.core.gate.look(lambda: os.fstat(handle.fd), releases=[handle.pin()])
        return status.st_size, status.st_mtime_ns

    async def was_mapped(self, handle: Handle) -> bool:
        """Whether something was changed since *handle*, which is to be closed, was opened, perhaps through a mapping of it, and nobody has seen who did it."""
        return handle.had is not None and not handle.wrote and await self.looks_of(handle) != handle.had

    async def ending(self, handle: Handle) -> None:
        """The last descriptor of *handle* is closed, and its image about to be settled."""
        if not handle.is_written_unseen:
            return
        node = handle.node
        with contextlib.suppress(OSError, FsError):
            await self._take_set_ids(handle)
        await self._doubt([handle], unknown=True)
        self._open.discard(handle)
        if handle in self._doubted:
            self._doubted.discard(handle)
            node.failed = True
            log.warning(
                "image %s: there was hardly any room when the kernel wrote it, and nobody knows whether it could: it is partial",
                place_of(node),
            )

    async def remember(self, handle: Handle) -> None:
        """The image of *handle*, which was written unseen now or before, is settled: what it is now is what its writers left."""
        node, traffic = handle.node, self.core.figures.traffic
        if not handle.is_written_unseen and not (handle.writable and node.ino in self._released):
            return
        with contextlib.suppress(OSError, FsError):
            found = await self.core.examine(node)
            if handle.is_written_unseen:
                traffic.bytes_written += found.stat.st_size
                traffic.sets_written.add(self.core.set_key(node))
            if place_of(node) is not None and not self.core.policy.is_final(node.name):
                self._released[node.ino] = _looks_of(found)
                while len(self._released) > _MOST_REMEMBERED:
                    self._released.popitem(last=False)

    def changed(self, found: Found) -> None:
        """Somebody has set the size, or the times, of what *found* is now: that is what was left."""
        if found.record.ino in self._released:
            self._released[found.record.ino] = _looks_of(found)

    async def goes_on_without(self, node: Node) -> bool:
        """The mount is gone: whether somebody writes *node* all the same, through the kernel, which has no descriptor of its own of it. True if that cannot be told."""
        door, owner, handles = self.core.store.door, stored_owner(node) or ROOT, node.handles

        def work() -> bool:
            with acting_as(owner):
                for handle in handles:
                    leases.read_only(door, handle.file)
                return leases.is_being_written(handles[0].file)

        for _ in range(_CLOSINGS):
            try:
                if not await self.core.gate.call(work, releases=[handle.pin() for handle in handles]):
                    return False
            except (OSError, FsError) as error:
                log.warning("image %s: nobody can tell whether it is written yet: %s", place_of(node), error)
                return True
            await trio.sleep(_CLOSING_S)
        log.info("image %s: somebody writes it yet", place_of(node))
        return True

    async def renamed(self, node: Node) -> None:
        """Before an image of a temporary name counts as complete under another: the store may have something against what was written
        unseen, and somebody may have gone on to write of whom nobody knows. Then it is partial."""
        left, is_written = self._released.pop(node.ino, None), any(h.is_written_unseen for h in node.handles)
        if not (left or is_written) or not self._has_final_name_in_batch_set(node):
            return
        found = await self._sync(node)
        if not is_written and found is not None and found != left:
            log.warning("image %s was changed after it was closed: it is partial", place_of(node))
            node.failed = True

    def _has_final_name_in_batch_set(self, node: Node) -> bool:
        place, policy = place_of(node), self.core.policy
        return place is not None and policy.is_batch(place.set_name) and policy.is_final(place.name)

    async def _sync(self, node: Node) -> tuple[int, int] | None:
        """Its size and time of change; None if the store does not keep it, so that it is partial, or has it elsewhere by now."""
        try:
            return await self._synced(node)
        except (Stale, FileNotFoundError):  # another mount has moved it: that one says what it is worth
            return None
        except (OSError, FsError) as error:
            log.warning("image %s: the store does not keep it: %s", place_of(node), error)
            node.failed = True
            return None

    async def _synced(self, node: Node) -> tuple[int, int]:
        door = self.core.store.door

        def sync() -> tuple[int, int]:
            with door.reading(node.spot, node.ino) as fd:
                os.fsync(fd)
                status = os.fstat(fd)
                return status.st_size, status.st_mtime_ns

        async def run() -> tuple[int, int]:
            return await self.core.gate.transfer(sync, of_set=self.core.set_key(node))

        return await self.core.moved.again((node,), run, GONE)


def _looks_of(found: Found) -> tuple[int, int]:
    return found.stat.st_size, found.stat.st_mtime_ns
