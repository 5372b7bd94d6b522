"""What is charged of images that the kernel writes by itself, as long as they are open.

Nobody claims for such a write, so no limit stops it. What it has written is counted once a second; and the ledger is told before it begins for
whom this mount has such writers, so that whoever sets a limit hears where it does not hold yet. Everything belongs to the event loop's thread.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field

import trio

from ckfs.errors import FsError, LedgerDown, Stale
from ckfs.fs.core import Core
from ckfs.fs.grants import Grants
from ckfs.fs.inodes import Handle
from ckfs.fs.sessions import Sessions
from ckfs.names import MountId, Uid

_LOOK_S = 0.25
_COUNTED_S = 1.0
_KEPT_S = 1.0
"""Who has closed one file often begins the next: the ledger is told so late that nobody writes any more."""


@dataclass(slots=True)
class OpenEnded:
    core: Core
    grants: Grants
    sessions: Sessions
    _open: set[Handle] = field(default_factory=set)
    _told: dict[tuple[MountId, Uid], float] = field(default_factory=dict)
    """What the ledger has heard, and when it was so last."""
    _begun: trio.Event = field(default_factory=trio.Event)
    _counted_s: float = -math.inf

    async def may_begin(self, payer: Uid) -> bool:
        """Whether the ledger knows that somebody is about to write for *payer*."""
        key = self.grants.mount, payer
        if key not in self._told:
            try:
                await self.grants.say_unseen(payer, is_so=True)
            except LedgerDown:
                return False
        self._told[key] = trio.current_time()
        self._begun.set()
        return True

    def begun(self, handle: Handle) -> None:
        self._open.add(handle)
        self._begun.set()

    def closed(self, handle: Handle) -> None:
        self._open.discard(handle)

    async def run(self) -> None:
        """For the life of the mount."""
        while True:
            await self._begun.wait()
            await trio.sleep(_LOOK_S)  # most are closed by then
            with contextlib.suppress(LedgerDown):
                await self._follow()
            if trio.current_time() - self._counted_s >= _COUNTED_S:
                await self._count()
                self._counted_s = trio.current_time()
            if not (self._open or self._told):
                self._begun = trio.Event()

    async def _follow(self) -> None:
        """Sets may be given to others meanwhile, and this mount may have got another name."""
        mount, payers = self.grants.mount, set[Uid]()
        for handle in self._open:
            with contextlib.suppress(Stale):
                payers.add(self.core.payer_of(handle.node))
        for payer in payers:
            await self.may_begin(payer)
        for key, told_s in [*self._told.items()]:
            if trio.current_time() - told_s < _KEPT_S:
                continue
            del self._told[key]
            if key[0] == mount:  # what was said under another name went with it
                await self._say_no_more(key, told_s)

    async def _say_no_more(self, key: tuple[MountId, Uid], told_s: float) -> None:
        try:
            await self.grants.say_unseen(key[1], is_so=False)
        except LedgerDown:
            self._told.setdefault(key, told_s)
            raise

    async def _count(self) -> None:
        for node in {handle.node for handle in self._open}:
            session = self.sessions.get(node.ino)
            if session is not None:
                with contextlib.suppress(OSError, FsError):
                    await self.sessions.count(session, node)
