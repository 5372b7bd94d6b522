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
    _told: dict[tuple[MountId, Uid], float] = field(default_factory=dict)
    """What the ledger has heard, and when it was so last."""
    _begun: trio.Event = field(default_factory=trio.Event)
    _counted_s: float = -math.inf

    def is_said(self, payer: Uid) -> bool:
        """Whether the ledger knows that somebody writes for *payer*; it will for as long as an open file takes to be opened."""
        key = self.grants.mount, payer
        if key not in self._told:
            return False
        self._told[key] = trio.current_time()
        return True

    async def say(self, payer: Uid) -> bool:
        """Have the ledger know that somebody is about to write for *payer*; False if it is away."""
        if not self.is_said(payer):
            key = self.grants.mount, payer
            try:
                await self.grants.say_unseen(payer, is_so=True)
            except LedgerDown:
                return False
            self._told[key] = trio.current_time()
        self._begun.set()
        return True

    def begun(self) -> None:
        self._begun.set()

    @property
    def _open(self) -> list[Handle]:
        return [handle for handle in self.core.handles.all() if handle.is_written_unseen]

    async def run(self) -> None:
        """For the life of the mount."""
        while True:
            await self._begun.wait()
            await trio.sleep(_LOOK_S)  # most are closed by then
            handles = self._open
            with contextlib.suppress(LedgerDown):
                await self._follow(handles)
            if trio.current_time() - self._counted_s >= _COUNTED_S:
                await self._count(handles)
                self._counted_s = trio.current_time()
            if not (self._open or self._told):
                self._begun = trio.Event()

    async def _follow(self, handles: list[Handle]) -> None:
        """Sets may be given to others meanwhile, and this mount may have got another name."""
        mount, payers = self.grants.mount, set[Uid]()
        for handle in handles:
            with contextlib.suppress(Stale):
                payers.add(self.core.payer_of(handle.node))
        for payer in payers:
            await self.say(payer)
        for key in [*self._told]:
            told_s = self._told[key]  # now: it may have been said anew while another was
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

    async def _count(self, handles: list[Handle]) -> None:
        """Not what was given to another owner since it was begun: that has no session any more, and none is begun that nobody might end."""
        for node in {handle.node for handle in handles}:
            session = self.sessions.get(node.ino)
            if session is not None:
                with contextlib.suppress(OSError, FsError):
                    await self.sessions.count(session, node)
