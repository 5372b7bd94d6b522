"""The files that this mount is writing, and what becomes of their claims when they are written no more.

Here is also what the door tells of all other files (:class:`ckfs.store.metering.Meter`): whether something counts now, or is seen
when a file that is open here is settled, is one question. What is told comes from any thread, and is queued; all else belongs
to the event loop's thread.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio

from ckfs.errors import FsError, Stale
from ckfs.fs.charges import Session
from ckfs.fs.core import Core
from ckfs.fs.grants import Grants
from ckfs.fs.inodes import Handle, Node
from ckfs.ledger.ledger import Opened, Settled
from ckfs.names import Inode, Uid
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store import metering
from ckfs.store.charges import charge_in_turn, charge_while_open, give_turn_back, is_gone_for_us

_MOST_RANGES = 4096
"""A file that was written in more pieces is settled in between."""
_TURN_S = 2.0
"""For so long another mount is waited for that is just telling the ledger what the same file takes."""
_IDLE_S = 2.0
"""For so long the writes that are under way are waited for, where a file is to be counted in between."""


@dataclass(frozen=True, slots=True)
class Event:
    """What the door told. *ino* is None of what is new."""

    payer: Uid
    ino: Inode | None
    change: Amount
    is_gone: bool = False


class Sessions:
    """Of one mount. *grants* is set before anything is called."""

    grants: Grants

    def __init__(self, core: Core) -> None:
        self._core = core
        self._sessions: dict[Inode, Session] = {}
        self._beginning: dict[Inode, trio.Lock] = {}
        self._turns: dict[Inode, trio.Lock] = {}
        self._events: deque[Event] = deque()
        self._lingering: dict[Inode, Uid] = {}
        """Who pays for what has no name any more, and is open here."""
        self.to_recount: set[Uid] = set()
        """Owners of whom only a recount tells what they use: their grants were taken back while this mount seemed dead."""
        self._token: trio.lowlevel.TrioToken | None = None

    def listen(self) -> None:
        """From now on what goes is posted at once. In the event loop."""
        self._token = trio.lowlevel.current_trio_token()

    def listen_no_more(self) -> None:
        self._token = None

    @property
    def is_empty(self) -> bool:
        """Nothing is written here, nor open without a name."""
        return not (self._sessions or self._lingering)

    # What the door tells

    def tell(self, event: Event) -> None:
        self._events.append(event)
        token = self._token
        if token is not None and (event.change.bytes < 0 or event.change.files < 0):
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self.grants.hurry)

    def gather(self) -> None:
        """Take up what the door has told."""
        for _ in range(len(self._events)):
            event = self._events.popleft()
            purse = self.grants.purse(event.payer)
            if event.ino is None and purse.claims and not purse.balance.covers(event.change):
                self._events.append(event)  # what was claimed for it is given back in a moment, and spent
            elif event.ino is None:
                purse.spend(event.change)
            elif not self._is_settled_later(event.ino, event):
                if event.is_gone:
                    purse.spend(event.change)
                else:
                    purse.spend_on(event.ino, event.change)

    def _is_settled_later(self, ino: Inode, event: Event) -> bool:
        """Whether what was told of *ino* is seen when it is settled, since it is open here; or was, already."""
        session = self._sessions.get(ino)
        if session is not None:
            session.is_ours_to_bury = session.is_ours_to_bury or event.is_gone
            return True
        if not event.is_gone:
            return False
        node = self._core.inodes.known(ino)
        if node is None or not node.handles or ino in self._lingering:
            return False
        self._linger(event.payer, ino, -event.change)
        return True

    def _linger(self, payer: Uid, ino: Inode, charge: Amount) -> None:
        self._lingering[ino] = payer
        self.grants.note(payer, Opened(ino, charge))

    # Looking

    def get(self, ino: Inode) -> Session | None:
        return self._sessions.get(ino)

    def of_payer(self, uid: Uid) -> list[Session]:
        """Those for which something is held that *uid* pays for."""
        return [session for session in self._sessions.values() if session.payer == uid and session.held]

    def below(self, top: Node) -> list[Node]:
        """The files of the set *top* that are being written here."""
        return [
            node for ino in self._sessions if (node := self._core.inodes.known(ino)) and _is_in(node, top)
        ]

    @staticmethod
    async def until_idle(session: Session) -> None:
        if session.under_way:
            session.idle = session.idle or trio.Event()
            with trio.move_on_after(_IDLE_S):
                await session.idle.wait()

    # From the first write to the last

    async def of(self, handle: Handle) -> Session:
        """That of the file which is open as *handle*; begun if there is none."""
        node = handle.node
        if (going := self.going_on(node)) is not None:
            return going
        async with _alone(self._beginning, node.ino):  # nobody writes before the ledger has heard of it
            session = self._sessions.get(node.ino)
            if session is None:
                return await self._begin(handle)
            if not session.is_told:  # whoever began it was given up
                await self._tell(session)
            if self._goes_on(session, node):
                return session
            await self.until_idle(session)  # those who come next wait for this one
            await self.count(session, handle)
            return await self._begin(handle) if session.ended else session

    def going_on(self, node: Node) -> Session | None:
        """That of *node*, if there is one that its next write may be claimed in."""
        session = self._sessions.get(node.ino)
        return session if session and session.is_told and self._goes_on(session, node) else None

    def _goes_on(self, session: Session, node: Node) -> bool:
        """It is neither in too many pieces, nor another's by now than whose it was when this began."""
        if len(session.ranges) > _MOST_RANGES:
            return False
        if session.entry is not None and session.entry is node.entry_above:
            return True
        return session.payer == self._core.payer_of(node)

    async def _begin(self, handle: Handle) -> Session:
        self.gather()
        node = handle.node
        async with self._charge_in_turn(handle) as (base, is_gone):
            self.gather()
            if is_gone and node.ino not in self._lingering:
                base = (
                    NOTHING  # another mount has removed it, and said so: nobody was charged with it any more
                )
            payer = self._core.payer_of(node)
            session = self._sessions[node.ino] = Session(node.ino, payer, base, node.entry_above)
            session.is_ours_to_bury = is_gone
            if node.ino not in self._lingering:  # else it is noted
                self.grants.note(session.payer, Opened(node.ino, base))
                await self._tell(session)  # what other mounts tell of the file from now on is settled with it
            session.is_told = True
            return session

    async def _tell(self, session: Session) -> None:
        await self.grants.tell_notes()
        session.is_told = True

    async def _until_told(self, ino: Inode) -> None:
        """Until the ledger has heard of a session that is just beginning: one that ends before counts with what others change."""
        session = self._sessions.get(ino)
        if session is not None and not session.is_told:
            async with _alone(self._beginning, ino):
                pass

    async def _charge(self, handle: Handle) -> tuple[Amount, bool]:
        look = partial(charge_while_open, self._core.store.door, handle.file)
        return await self._core.gate.look(look, releases=(handle.pin(),))

    @asynccontextmanager
    async def _charge_in_turn(self, handle: Handle) -> AsyncIterator[tuple[Amount, bool]]:
        """As :meth:`_charge`; within the block nobody else looks what the file takes, to tell the ledger, on any mount."""
        door, gate, file = self._core.store.door, self._core.gate, handle.file
        release = handle.pin()  # it may be another's, who closes it meanwhile
        try:
            async with _alone(self._turns, handle.node.ino):
                seen = await gate.look(partial(charge_in_turn, door, file), releases=(handle.pin(),))
                if seen is None:
                    wait = partial(charge_in_turn, door, file, _TURN_S)
                    seen = await gate.call(wait, releases=(handle.pin(),))
                assert seen is not None
                try:
                    yield seen
                finally:
                    with trio.CancelScope(shield=True), contextlib.suppress(OSError, FsError):
                        give_back = partial(give_turn_back, door, file)
                        await gate.look(give_back, releases=(handle.pin(),))
        finally:
            release()

    async def settle(self, handle: Handle) -> None:
        node = handle.node
        await self._until_told(node.ino)
        session = self._sessions.get(node.ino)
        if session is None or any(other.wrote for other in node.handles):
            return
        if session.under_way:
            session.is_left = True
            return
        await self.count(session, handle)  # before other mounts hear that it is written no more

    async def settle_now(self, node: Node) -> None:
        await self._until_told(node.ino)
        session = self._sessions.get(node.ino)
        if session is not None:
            await self.until_idle(session)
        if session is not None and node.handles:
            await self.count(session, node.handles[0])

    async def unmarked(self, handle: Handle) -> None:
        """The file is not marked as being written by this mount any more. Who took its last name before that has left it to us to
        tell of it."""
        node = handle.node
        if node.ino in self._sessions or node.ino in self._lingering:
            return
        charge, is_gone = await self._charge(handle)
        if not is_gone or not await self._is_ours_to_bury(handle) or node.ino in self._sessions:
            return
        self._linger(self._core.payer_of(node), node.ino, charge)  # its handle is open yet

    async def _is_ours_to_bury(self, handle: Handle) -> bool:
        look = partial(is_gone_for_us, self._core.store.door, handle.file)
        return await self._core.gate.call(look, releases=(handle.pin(),))

    async def count(self, session: Session, handle: Handle) -> None:
        """End *session* with what the file, open as *handle*, takes in the store now, and tell the ledger; not if a write begins
        meanwhile."""
        claims = session.claims
        try:
            async with self._charge_in_turn(handle) as (final, is_gone):
                if is_gone and not session.is_ours_to_bury and await self._is_ours_to_bury(handle):
                    session.is_ours_to_bury = True
                if not (session.ended or session.under_way) and session.claims == claims:
                    self._end(session, final)
                await self.grants.tell()
        except (OSError, FsError):
            if not session.under_way:
                self.end_unseen(session)
            raise

    def end_unseen(self, session: Session) -> None:
        """Nobody could see what the file takes: it counts with all that was claimed for it, until a recount."""
        if not session.ended:
            self._end(session, session.base + Amount(session.held))
            self.to_recount.add(session.payer)

    def _end(self, session: Session, final: Amount) -> None:
        """*final* is what the file counts with from now on; one that has no name any more, for as long as it is open here, or until
        who took its name has told that it is gone."""
        self.gather()
        if session.ended:
            return
        self._drop(session)
        node = self._core.inodes.known(session.ino)
        is_open = node is not None and bool(node.handles)
        if session.is_ours_to_bury and not is_open:
            final = NOTHING
        purse = self.grants.purse(session.payer)
        noted = self.grants.noted_not(session.ino)
        if noted is None:
            purse.settle(Settled(session.ino, final), Amount(session.held))
        else:
            purse.give_back(Amount(session.held))
            purse.spend_on(session.ino, final - noted.base)
        if session.is_ours_to_bury and is_open:
            self._linger(session.payer, session.ino, final)
        if purse.is_wanted_by_others(trio.current_time()):
            purse.give_up_balance()
            self.grants.hurry()

    def _drop(self, session: Session) -> None:
        """What is held for it stays so until the ledger says otherwise."""
        session.ended = True
        self._sessions.pop(session.ino, None)

    def cut(self, node: Node, size: int) -> None:
        session = self._sessions.get(node.ino)
        if session is not None:
            session.ranges.cut(metering.rounded(size, self._core.unit))

    def closed(self, node: Node) -> None:
        if node.handles or node.ino not in self._lingering:
            return
        purse = self.grants.purse(self._lingering.pop(node.ino))
        noted = self.grants.noted_not(node.ino)
        if noted is None:
            purse.settle(Settled(node.ino, NOTHING), NOTHING)
        else:
            purse.spend_on(node.ino, -noted.base)
        self.grants.hurry()

    def lost(self, uid: Uid) -> None:
        """The ledger took back the grant for *uid*: what was claimed is not any more. Sessions begin anew, and a recount tells the rest."""
        for session in list(self._sessions.values()):
            if session.payer == uid:
                self._drop(session)
                if self.grants.noted_not(session.ino) is None:  # it may have been noted anew just now
                    self.grants.purse(uid).settle(Settled(session.ino, session.base), NOTHING)
        self.to_recount.add(uid)


@asynccontextmanager
async def _alone(locks: dict[Inode, trio.Lock], ino: Inode) -> AsyncIterator[None]:
    """One at a time for each file: others must not wait for a store that is slow with this one."""
    lock = locks.setdefault(ino, trio.Lock())
    try:
        async with lock:
            yield
    finally:
        if not lock.statistics().tasks_waiting and not lock.locked():
            locks.pop(ino, None)


def _is_in(node: Node, top: Node) -> bool:
    with contextlib.suppress(Stale):
        return node.top is top
    return False
