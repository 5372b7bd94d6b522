"""What the kernel reads and writes in the store by itself (FUSE passthrough), and what that asks of everything else.

The kernel has one *backing* for an inode at a time: as long as a file is open by it, whatever else is opened of that file carries its
number, too, and is either passed through or told to come to the daemon. Nobody can be led to another file of the store, nor be seen
to write: so an image that is passed through counts as being written until its RELEASE, and nothing takes its place meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Protocol

import trio

from ckfs.errors import FsError, Stale
from ckfs.fs.asking import Asking
from ckfs.fs.core import Core
from ckfs.fs.inodes import Backing, Handle, Node, Through, busy, place_of, stored_owner, volume_of
from ckfs.fs.moved import GONE
from ckfs.model import Record
from ckfs.names import Inode, Uid
from ckfs.owners.processes import was_killed
from ckfs.policy import lifecycle, passing, quota
from ckfs.policy.passing import Opened, Wish
from ckfs.policy.quota import Account, Limit
from ckfs.store import leases
from ckfs.store.identity import ROOT, acting_as
from ckfs.store.spots import Found, VolumeId

log = logging.getLogger(__name__)

_LOOK_S = 1.0
"""For how long what was seen of the store's room holds."""
_PLENTY_BYTES = 1 << 30
"""With less room than this nothing is written unseen."""
_TIGHT_BYTES = 64 << 20
"""With less than this, a write of which nobody has heard may have failed."""
_WATCH_S = 0.25
_MOST_REMEMBERED = 4096
_CLOSINGS, _CLOSING_S = 10, 0.05
"""How often, and with what pauses, a file is looked at that its writer may just be closing."""


class Backings(Protocol):
    """Files of the store that the kernel uses by itself, as whoever registers them."""

    def register(self, fd: int) -> int:
        """Blocking; the number of the new backing. OSError if the kernel does not take that file."""

    def forget(self, number: int) -> None: ...


@dataclass(slots=True)
class Passing:
    """*backings* is None where nothing is passed through."""

    core: Core
    asking: Asking
    wish: Wish = Wish.AUTO
    backings: Backings | None = None
    is_refused: bool = False
    """The kernel did not take a file of the store: none is passed through that is not yet."""
    _deciding: dict[Inode, trio.Lock] = field(default_factory=dict)
    _roomy: dict[VolumeId, tuple[float, bool]] = field(default_factory=dict)
    _unseen: set[Handle] = field(default_factory=set)
    """What is being written unseen, and what of it while there was hardly any room:"""
    _doubted: set[Handle] = field(default_factory=set)
    _begun: trio.Event = field(default_factory=trio.Event)
    _released: OrderedDict[Inode, tuple[int, int]] = field(default_factory=OrderedDict)
    """Size and time of change of images of temporary names that were written unseen, as their writers left them."""
    _releasing: dict[int, set[trio.Event]] = field(default_factory=dict)
    """Those that are just being released, by set: set when one is."""

    @property
    def is_on(self) -> bool:
        return self.backings is not None and not self.is_refused

    # When something is opened

    async def decide(self, handle: Handle, record: Record, flags: int) -> None:
        """Say how what was just opened of a file, which *record* is about, is read and written. OSError (ETXTBSY) if that cannot be."""
        if not self.is_on and handle.node.backing is None:
            handle.through = Through.DAEMON
            return
        ino = handle.node.ino
        lock = self._deciding.setdefault(ino, trio.Lock())
        try:
            async with lock:
                await self._decide(handle, record, flags)
        finally:
            if not lock.locked():
                self._deciding.pop(ino, None)

    async def _decide(self, handle: Handle, record: Record, flags: int) -> None:
        node, opened = handle.node, self._opened(handle, record, flags)
        handle.through = Through.DAEMON  # unless all goes well
        passes = opened is not None and self.is_on and await self._may_pass(handle, opened)
        if node.backing is not None:
            self._join(node.backing, handle, flags & os.O_ACCMODE, passes=passes)
        elif passes and (number := await self._register(handle)) is not None:
            node.backing = Backing(number, handle.leads_to)
            self._goes_through(handle, Through.KERNEL)

    def _join(self, backing: Backing, handle: Handle, access: int, *, passes: bool) -> None:
        """What is passed through already is opened once more."""
        handle.node.check_access(access)
        is_same = handle.leads_to == backing.leads_to
        # What is mapped of it is what the kernel has: of a copy that is as good, of what took its place it is not.
        if not is_same and access == os.O_RDONLY and backing.leads_to is not None:
            raise busy()
        by_kernel = is_same and (passes or access == os.O_RDONLY)
        backing.count += 1
        self._goes_through(handle, Through.KERNEL if by_kernel else Through.DAEMON_BESIDE)

    def _opened(self, handle: Handle, record: Record, flags: int) -> Opened | None:
        place = place_of(handle.node)
        if place is None:
            return None
        policy = self.core.policy
        in_batch_set, is_final = policy.is_batch(place.set_name), policy.is_final(place.name)
        return Opened(flags, record, in_batch_set, is_final, is_new=handle.wrote)

    def _goes_through(self, handle: Handle, through: Through) -> None:
        handle.through = through
        if handle.is_written_unseen:
            handle.node.hashed = None
            handle.node.unsynced = True
            self._unseen.add(handle)
            self._begun.set()

    async def _may_pass(self, handle: Handle, opened: Opened) -> bool:
        node = handle.node
        others = [other for other in node.handles if other is not handle]
        # What goes through the kernel's own pages keeps the kernel from passing anything of that file through.
        if any(other.through is Through.DAEMON and not other.direct for other in others):
            return False
        if not (handle.is_near or self.wish is Wish.ON):
            return False
        if opened.access == os.O_RDONLY:
            is_complete = lifecycle.is_complete(opened.record) and not any(other.writable for other in others)
            return passing.may_be_read(opened, is_complete=is_complete)
        if any(other.writable and other.through is not Through.KERNEL for other in others):
            return False
        return (
            passing.may_be_written(opened)
            and await self._is_roomy(node)
            and await self._is_unlimited(self.core.payer_of(node))
        )

    async def _is_unlimited(self, payer: Uid) -> bool:
        """Or the store's own engine limits him, and he is far from that. Asked each time: a limit holds as soon as it is set."""
        if self.core.quotas is None:
            return True
        account = await self.asking.account_at_once(payer)
        if account is None:
            return False
        if self.core.ledger is not None:
            return account.limits.bytes == Limit()
        return _left_bytes(account) >= _PLENTY_BYTES

    async def _is_roomy(self, node: Node) -> bool:
        """Or something will have to give way to what is written, which only the daemon sees to."""
        volume, now_s = volume_of(node), trio.current_time()
        seen_s, said = self._roomy.get(volume, (-_LOOK_S, False))
        if now_s - seen_s >= _LOOK_S:
            there = await self._room(volume)
            kept_bytes = there.f_blocks * there.f_frsize * self.core.policy.keep_free
            said = there.f_bavail * there.f_frsize >= max(kept_bytes, _PLENTY_BYTES)
            self._roomy[volume] = now_s, said
        return said

    async def _room(self, volume: VolumeId) -> os.statvfs_result:
        return await self.core.gate.look(partial(self.core.store.door.room, volume))

    async def _register(self, handle: Handle) -> int | None:
        """The number of a backing, as the file's owner in the store; None if there can be none."""
        backings, leads_to, renewals = self.backings, handle.leads_to, handle.node.renewals
        assert backings is not None
        owner = stored_owner(handle.node) or ROOT

        def work() -> int:
            with acting_as(owner):
                return backings.register(handle.fd)

        try:
            number = await self.core.gate.call(work, undo=backings.forget, releases=(handle.pin(),))
        except OSError as error:
            log.warning(
                "nothing is passed through from now on: the kernel does not take files of the store: %s",
                error,
            )
            self.is_refused = True
            return None
        if (
            handle.leads_to != leads_to
            or handle.node.renewals != renewals
            or handle.node.renewing is not None
        ):
            backings.forget(number)
            return None
        return number

    # While it is open

    async def run(self) -> None:
        """Watch the room that there is while something is written unseen; for the life of the mount."""
        while True:
            await self._begun.wait()
            await self._doubt(self._unseen)
            await trio.sleep(_WATCH_S)
            if not self._unseen:
                self._begun = trio.Event()

    async def _doubt(self, handles: Iterable[Handle]) -> None:
        """If there is hardly any room, a write through *handles* may have failed, which only its program has heard of."""
        tight: dict[tuple[VolumeId, Uid], bool] = {}
        for handle in [one for one in handles if one not in self._doubted]:
            key = volume_of(handle.node), self.core.payer_of(handle.node)
            if key not in tight:
                tight[key] = await self._is_tight(*key)
            if tight[key]:
                self._doubted.add(handle)

    async def _is_tight(self, volume: VolumeId, payer: Uid) -> bool:
        try:
            there = await self._room(volume)
        except (OSError, FsError):
            return True  # nobody knows
        if there.f_bavail * there.f_frsize < _TIGHT_BYTES:
            return True
        if self.core.engine is None:
            return False
        account = await self.asking.account_at_once(payer)
        return account is None or _left_bytes(account) < _TIGHT_BYTES

    async def flush(self, handle: Handle) -> None:
        """A descriptor of what is written unseen is closed; others may be open yet, in any process. Fenced if nobody cares any more."""
        if handle.process is not None and was_killed(handle.process):
            handle.node.killed = True
        await self.core.assure_membership(handle.mount)

    async def written_unseen(self) -> list[tuple[int, int, int]]:
        """What the store has by now of each file that is written unseen: it differs as long as somebody writes."""
        handles = [handle for handle in self.core.handles.all() if handle.is_written_unseen]

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

    async def ending(self, handle: Handle) -> None:
        """The last descriptor of *handle* is closed, and its image about to be settled."""
        if not handle.is_written_unseen:
            return
        node = handle.node
        await self._doubt([handle])
        self._unseen.discard(handle)
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

    def released(self, handle: Handle) -> None:
        """*handle* is closed."""
        node, backing = handle.node, handle.node.backing
        if backing is None or handle.through is Through.DAEMON:
            return
        backing.count -= 1
        if not backing.count:
            node.backing = None
            if self.backings is not None:
                self.backings.forget(backing.number)

    async def goes_on_without(self, node: Node) -> bool:
        """The mount is gone: whether somebody writes *node* all the same, through the kernel. True if that cannot be told."""
        door, owner, handles = self.core.store.door, stored_owner(node) or ROOT, node.handles
        if node.backing is not None and self.backings is not None:
            self.backings.forget(node.backing.number)  # which has the file open for writing itself

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
        log.warning("image %s: somebody writes it yet", place_of(node))
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


def _left_bytes(account: Account) -> float:
    """What its owner may write yet."""
    left = quota.room(account, time.time_ns()).bytes
    return math.inf if left is None else left


def _looks_of(found: Found) -> tuple[int, int]:
    return found.stat.st_size, found.stat.st_mtime_ns
