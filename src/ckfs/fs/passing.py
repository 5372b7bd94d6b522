"""What the kernel reads and writes in the store by itself (FUSE passthrough), and what that asks of everything else.

The kernel has one *backing* for an inode at a time: as long as a file is open by it, whatever else is opened of that file carries its
number, too, and is either passed through or told to come to the daemon. Nobody can be led to another file of the store, nor be seen
to write: so an image that is passed through counts as being written until its RELEASE, and nothing takes its place meanwhile.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import Protocol

import trio

from ckfs.fs.core import Core
from ckfs.fs.inodes import Backing, Handle, Node, Through, busy, place_of, stored_owner, volume_of
from ckfs.fs.plenty import Plenty
from ckfs.fs.unseen import Unseen
from ckfs.names import Inode, Uid
from ckfs.policy import lifecycle, passing
from ckfs.policy.passing import Opened, Wish
from ckfs.store.identity import ROOT, acting_as
from ckfs.store.spots import Found

log = logging.getLogger(__name__)

_NOT_PLAIN = os.O_APPEND | os.O_SYNC | os.O_DSYNC | os.O_DIRECT


class Backings(Protocol):
    """Files of the store that the kernel uses by itself, as whoever registers them."""

    def register(self, fd: int) -> int:
        """Blocking; the number of the new backing. OSError if the kernel does not take that file."""

    def forget(self, number: int) -> None: ...


@dataclass(slots=True)
class Passing:
    """*backings* is None where nothing is passed through."""

    core: Core
    plenty: Plenty
    unseen: Unseen
    wish: Wish = Wish.AUTO
    backings: Backings | None = None
    is_refused: bool = False
    """The kernel did not take a file of the store: none is passed through that is not yet."""
    _deciding: dict[Inode, trio.Lock] = field(default_factory=dict)

    @property
    def is_on(self) -> bool:
        return self.backings is not None and not self.is_refused

    # When something is opened

    async def decide(self, handle: Handle, found: Found, flags: int) -> None:
        """Say how what was just opened of a file, which was *found* so, is read and written. OSError (ETXTBSY) if that cannot be."""
        if not self.is_on and handle.node.backing is None:
            handle.through = Through.DAEMON
            return
        ino = handle.node.ino
        lock = self._deciding.setdefault(ino, trio.Lock())
        try:
            async with lock:
                await self._decide(handle, found, flags)
        finally:
            if not lock.locked():
                self._deciding.pop(ino, None)

    async def _decide(self, handle: Handle, found: Found, flags: int) -> None:
        node, opened = handle.node, self._opened(handle, found, flags)
        handle.through = Through.DAEMON  # unless all goes well
        passes = opened is not None and self.is_on and await self._may_pass(handle, opened)
        if node.backing is not None:
            if flags & os.O_ACCMODE == os.O_RDWR:
                await self._check_mapped(handle, node.backing)
            self._join(node.backing, handle, flags & os.O_ACCMODE, passes=passes)
        elif passes and (number := await self._register(handle)) is not None:
            node.backing = Backing(number, handle.leads_to)
            self._goes_through(handle, Through.KERNEL)

    async def _check_mapped(self, handle: Handle, backing: Backing) -> None:
        """*handle*, for both, is opened beside what is read unseen: what is stored through a mapping of it is noticed when it is closed, and nobody
        claims for it. OSError (ETXTBSY) if that cannot be."""
        if handle.leads_to != backing.leads_to or not await self.plenty.is_unlimited(
            self.core.payer_of(handle.node)
        ):
            raise busy()
        handle.had = await self.unseen.looks_of(handle)

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

    def _opened(self, handle: Handle, found: Found, flags: int) -> Opened | None:
        place = place_of(handle.node)
        if place is None:
            return None
        policy = self.core.policy
        access = flags & os.O_ACCMODE
        return Opened(
            reads=access != os.O_WRONLY,
            writes=access != os.O_RDONLY,
            is_plain=not flags & _NOT_PLAIN,
            record=found.record,
            size=found.stat.st_size,
            in_batch_set=policy.is_batch(place.set_name),
            is_final=policy.is_final(place.name),
            is_new=handle.wrote,
        )

    def _goes_through(self, handle: Handle, through: Through) -> None:
        handle.through = through
        if handle.is_written_unseen:
            self.unseen.begin(handle)

    async def _may_pass(self, handle: Handle, opened: Opened) -> bool:
        node = handle.node
        others = [other for other in node.handles if other is not handle]
        # What goes through the kernel's own pages keeps the kernel from passing anything of that file through.
        if any(other.through is Through.DAEMON and not other.direct for other in others):
            return False
        if not (handle.is_near or self.wish is Wish.ON):
            return False
        if not opened.writes:
            is_complete = lifecycle.is_complete(opened.record) and not any(other.writable for other in others)
            if not passing.may_be_read(opened, is_complete=is_complete):
                return False
            return opened.in_batch_set or await self.plenty.is_unlimited(self.core.payer_of(node))
        if any(other.writable and other.through is not Through.KERNEL for other in others):
            return False
        return (
            passing.may_be_written(opened)
            and await self.plenty.is_roomy(volume_of(node))
            and await self._is_unlimited_until_said(self.core.payer_of(node))
        )

    async def _is_unlimited_until_said(self, payer: Uid) -> bool:
        """Whether *payer* has no limit, and whoever sets one from then on hears that the kernel writes for him."""
        charging = self.core.charging
        is_said = charging.is_said_unseen(payer)
        if not (await self.plenty.is_unlimited(payer) and await charging.say_unseen(payer)):
            return False
        return is_said or await self.plenty.is_unlimited(payer)

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

    # When it is closed

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

    def let_go(self, node: Node) -> None:
        """The mount is gone: the kernel's own descriptor of *node*, if it has one, is closed; whoever has it open keeps it."""
        if node.backing is not None and self.backings is not None:
            self.backings.forget(node.backing.number)
