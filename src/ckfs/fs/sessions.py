"""The files that this mount is writing, and what becomes of their claims when they are written no more.

Here is also what the door tells of all other files (:class:`ckfs.store.metering.Meter`): whether something counts now, or is seen
when a file that is open here is settled, is one question. What is told comes from any thread, and is queued; all else belongs
to the event loop's thread.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from ckfs.errors import FsError, Stale
from ckfs.fs.charges import Session
from ckfs.fs.core import Core
from ckfs.fs.events import Event, LeftOpen, Told, is_urgent
from ckfs.fs.grants import Grants
from ckfs.fs.inodes import Handle, Node
from ckfs.fs.nameless import NamelessFiles
from ckfs.fs.purse import Purse
from ckfs.fs.ranges import Ranges
from ckfs.ledger.ledger import Opened, Settled
from ckfs.names import Inode, Uid
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store import metering
from ckfs.store.charges import look_again, share_of
from ckfs.store.gate import Release
from ckfs.store.metering import Ended

_MOST_RANGES = 4096
"""A file that was written in more pieces is settled in between."""
_IDLE_S = 2.0
"""For so long the writes that are under way are waited for, where a file is to be counted in between."""


class Sessions:
    """Of one mount. *grants* is set before anything is called."""

    grants: Grants

    def __init__(self, core: Core) -> None:
        self._core = core
        self._sessions: dict[Inode, Session] = {}
        self._beginning: dict[Inode, trio.Lock] = {}
        self._events: deque[Told] = deque()
        self._lingering: dict[Inode, tuple[Uid, Amount]] = {}
        """Who pays for what has no name any more, and is open here; and how much."""
        self.to_recount: set[Uid] = set()
        """Owners of whom only a recount tells what they use: their grants were taken back while this mount seemed dead."""
        self.nameless = NamelessFiles(core, self._is_counted, self.to_recount)
        self._token: trio.lowlevel.TrioToken | None = None

    def listen(self) -> None:
        """From now on what goes is posted at once. In the event loop."""
        self._token = trio.lowlevel.current_trio_token()

    def listen_no_more(self) -> None:
        self._token = None

    @property
    def is_empty(self) -> bool:
        """Nothing is written here, nor open without a name."""
        return not (self._sessions or self._lingering) and self.nameless.is_empty

    def _is_counted(self, ino: Inode) -> bool:
        return ino in self._sessions or ino in self._lingering

    # What the door tells

    def tell(self, event: Told) -> None:
        self._events.append(event)
        token = self._token
        if token is not None and is_urgent(event):
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self.grants.hurry)

    def held(self, ino: Inode) -> Amount | None:
        """As :meth:`ckfs.store.metering.Meter.held`; in any thread."""
        session = self._sessions.get(ino)
        return None if session is None else Amount(session.held)

    def gather(self) -> None:
        """Take up what the door has told."""
        for _ in range(len(self._events)):
            event = self._events.popleft()
            if isinstance(event, Ended):
                self._take_up(event)
            elif isinstance(event, LeftOpen):
                self.nameless.left_open(event.left, event.fd)
            elif event.is_gone and event.ino is not None:
                self._take_up_gone(event.ino, event)
            else:
                self._take_up_change(event)

    def _take_up_change(self, event: Event) -> None:
        purse = self.grants.purse(event.payer)
        if purse.claims and not purse.balance.covers(event.change):
            self._events.append(event)  # what was claimed for it is given back in a moment, and spent
        else:
            purse.spend(event.change)
            if event.ino is not None and not self.grants.note_grown(event.ino, event.change):
                purse.grown(Opened(event.ino, event.change))

    def _take_up_gone(self, ino: Inode, event: Event) -> None:
        session, node = self._sessions.get(ino), self._core.inodes.known(ino)
        if session is not None and not self._core.store.door.is_local:
            session.is_gone = True  # the store does not say so itself
        elif node is not None and _has_nameless(node) and ino not in self._lingering:
            self._linger(event.payer, ino, -event.change)
        else:
            self.grants.purse(event.payer).spend(event.change)

    def _linger(self, payer: Uid, ino: Inode, more: Amount) -> None:
        before = self._lingering[ino][1] if ino in self._lingering else NOTHING
        self._lingering[ino] = payer, before + more
        self.grants.note(payer, Opened(ino, before + more))

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
            if session.idle is None:
                session.idle = trio.Event()
            with trio.move_on_after(_IDLE_S):
                await session.idle.wait()

    # From the first write to the last

    def created(self, node: Node) -> None:
        """What was just made is marked as being written here, and the ledger notes it in a while: it may lose its name before the
        first write, and then only the note tells a recount of it."""
        if node.ino in self._sessions:  # somebody else here has begun to write it already
            return
        payer, base = self._core.payer_of(node), Amount(0, files=1)
        self._sessions[node.ino] = Session(node.ino, payer, base, node.entry_above)
        self.grants.note(payer, Opened(node.ino, base))

    async def of(self, handle: Handle) -> Session:
        """That of the file which is open as *handle*; begun if there is none."""
        node = handle.node
        if (going := self.going_on(node)) is not None:
            return going
        async with self._alone(node.ino):  # nobody writes before the ledger has heard of it
            session = self._sessions.get(node.ino)
            if session is None:
                return await self._begin(handle)
            if not session.is_told:  # whoever began it was given up
                await self._tell(session)
            if self._goes_on(session, node):
                return session
            await self.until_idle(session)  # those who come next wait for this one
            await self._count(session, node)
            return self._sessions.get(node.ino) or await self._begin(handle)

    def going_on(self, node: Node) -> Session | None:
        """That of *node*, if there is one that its next write may be claimed in."""
        session = self._sessions.get(node.ino)
        return session if session and session.is_told and self._goes_on(session, node) else None

    def _goes_on(self, session: Session, node: Node) -> bool:
        """It is neither just being counted, nor in too many pieces, nor another's by now than whose it was when this began."""
        if session.is_counted or len(session.ranges) > _MOST_RANGES:
            return False
        if session.entry is not None and session.entry is node.entry_above:
            return True
        return session.payer == self._core.payer_of(node)

    @asynccontextmanager
    async def _alone(self, ino: Inode) -> AsyncIterator[None]:
        """One at a time for each file: others must not wait for a store that is slow with this one."""
        lock = self._beginning.setdefault(ino, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._beginning.pop(ino, None)

    async def _begin(self, handle: Handle) -> Session:
        self.gather()
        node = handle.node
        payer = self._core.payer_of(node)
        if payer in self.to_recount:  # what was claimed for the file may be no more
            await self._look_again(node)
        look = partial(share_of, self._core.store.door, handle.file)
        base = await self._core.gate.look(look, releases=(handle.pin(),))
        self.gather()
        session = self._sessions[node.ino] = Session(node.ino, payer, base, node.entry_above)
        if node.ino not in self._lingering:  # else it is noted
            self.grants.note(payer, Opened(node.ino, base))
            await self._tell(
                session
            )  # who gives the set away from now on has the ledger move what was written
        session.is_told = True
        return session

    async def _tell(self, session: Session) -> None:
        await self.grants.tell_notes()
        session.is_told = True

    @asynccontextmanager
    async def paused(self, node: Node) -> AsyncIterator[None]:
        """Within the block nothing is written of *node* here, unless it is under way for long: who would write waits."""
        async with self._alone(node.ino):
            session = self._sessions.get(node.ino)
            if session is None:
                yield
                return
            session.is_counted = True
            try:
                await self.until_idle(session)
                yield
            finally:
                session.is_counted = False

    async def settle_now(self, node: Node) -> None:
        session = self._sessions.get(node.ino)
        if session is not None:
            await self.until_idle(session)
            await self.count(session, node)
            await self.grants.tell()

    async def count(self, session: Session, node: Node) -> None:
        """End *session* with what its file takes in the store now: unless a write is under way, or other mounts write the file, too.
        For these nothing may be given back that was claimed for it."""
        async with self._alone(session.ino):
            await self._count(session, node)

    async def _count(self, session: Session, node: Node) -> None:
        if session.ended or session.under_way:
            return
        session.is_counted = True  # who would write on waits
        try:
            await self._look_again(node)
        except (OSError, FsError):
            self.gather()
            if not session.ended:
                self._end_unseen(session)
            raise
        finally:
            session.is_counted = False
        self.gather()

    async def _look_again(self, node: Node) -> None:
        if not node.handles:
            return
        core, handle = self._core, node.handles[0]
        look = partial(look_again, core.store.door, handle.file, node.ino, core.mount_id)
        pinned = handle.pin()  # before anything is waited for: it may be closed meanwhile
        try:
            lock: Release = await core.locks.acquire(node.ino)
        except BaseException:
            pinned()
            raise
        await core.gate.call(look, releases=(lock, pinned))

    def _take_up(self, ended: Ended) -> None:
        """What a file counts with that this mount wrote, by what the door saw."""
        session = self._sessions.get(ended.ino)
        payer = self._payer_of(ended) if session is None else session.payer
        purse = self.grants.purse(payer)
        if ended.dead or (session is None and ended.goes_on):
            self.to_recount.add(payer)
        if ended.goes_on and session is None:
            return
        if ended.goes_on and session is not None and session.under_way:  # seen so late that others write on
            self._take_up_late(session, ended)
            return
        if ended.goes_on and session is not None and self._payer_of(ended) == payer:
            self._take_up_between(session, ended)
            return
        held = NOTHING
        if session is not None:
            self._drop(session)
            if not (session.under_way and ended.is_last):
                held, session.held = Amount(session.held), 0
        is_gone = ended.is_gone or (session is not None and session.is_gone)
        final = self._nameless(ended, held) if is_gone else ended.final
        if session is None or self.grants.noted_not(ended.ino) is not None:
            purse.give_back(held)
            purse.spend(final - ended.counted)
        else:
            purse.settle(Settled(ended.ino, final, ended.counted, is_last=ended.is_last), held)
        purse.spent_by(ended.dead, final - ended.counted - held)
        if (is_gone and final) or ended.ino in self._lingering:  # what was noted of it is settled now
            self._linger(payer, ended.ino, final if is_gone else NOTHING)
        self._give_up_what_others_want(purse)

    def _give_up_what_others_want(self, purse: Purse) -> None:
        if purse.is_wanted_by_others(trio.current_time()):
            purse.give_up_balance()
            self.grants.hurry()

    def _take_up_between(self, session: Session, ended: Ended) -> None:
        """*session* goes on with what its file takes now; it stays noted, since the file may lose its name before it is written again."""
        session.ranges = Ranges()
        session.counts += 1
        if ended.final == ended.counted and not session.held:
            return  # nothing is to be told: who tries again and again at his limit keeps no recount up
        purse, held = self.grants.purse(session.payer), Amount(session.held)
        session.held, session.base = 0, ended.final
        if self.grants.noted_not(ended.ino) is None:
            purse.settle(Settled(ended.ino, ended.final, ended.counted, goes_on=True), held)
        else:
            self.grants.note(session.payer, Opened(ended.ino, ended.final))
            purse.give_back(held)
            purse.spend(ended.final - ended.counted)
        purse.spent_by(ended.dead, ended.final - ended.counted - held)
        self._give_up_what_others_want(purse)

    def _take_up_late(self, session: Session, ended: Ended) -> None:
        """What was written by then is claimed no more; what is being written is."""
        purse, more = self.grants.purse(session.payer), ended.final - ended.counted
        held = Amount(min(session.held, max(0, more.bytes)))
        session.held -= held.bytes
        purse.spend_held(held)
        purse.spend(more - held)
        purse.spent_by(ended.dead, more - held)

    def _payer_of(self, ended: Ended) -> Uid:
        node = self._core.inodes.known(ended.ino)
        with contextlib.suppress(Stale):
            if node is not None:
                return self._core.payer_of(node)
        return ended.payer

    def _nameless(self, ended: Ended, held: Amount) -> Amount:
        """Something without a name counts for as long as it is open here: with what it did, and what was claimed for it."""
        node = self._core.inodes.known(ended.ino)
        if node is None or not node.handles:
            return NOTHING
        before = self._lingering[ended.ino][1] if ended.ino in self._lingering else NOTHING
        most, there = ended.counted.bytes + held.bytes, ended.final.bytes - before.bytes
        return Amount(max(0, min(most, there)), ended.counted.files)

    def _end_unseen(self, session: Session) -> None:
        """Nobody could see what the file takes: it counts with all that was claimed for it, until a recount."""
        self._drop(session)
        held, session.held = Amount(session.held), 0
        purse = self.grants.purse(session.payer)
        if self.grants.noted_not(session.ino) is not None:
            purse.give_back(held)
            purse.spend(held)
        else:
            purse.settle(Settled(session.ino, session.base + held, session.base), held)
        self.to_recount.add(session.payer)

    def written_late(self, session: Session) -> None:
        """The last write of *session* is over, which had been given up, and for which nobody waited: what was claimed is
        taken for written, until a recount."""
        self.grants.purse(session.payer).spend_held(Amount(session.held))
        session.held = 0
        self.to_recount.add(session.payer)

    def _drop(self, session: Session) -> None:
        """What is held for it stays so until the ledger says otherwise."""
        session.ended = True
        self._sessions.pop(session.ino, None)

    def cut(self, node: Node, size: int) -> None:
        session = self._sessions.get(node.ino)
        if session is not None:
            session.ranges.cut(metering.rounded(size, self._core.unit))
            session.counts += 1

    def closed(self, handle: Handle) -> None:
        node = handle.node
        self.gather()
        self.nameless.closed(handle)
        if node.handles:
            return
        session = self._sessions.get(node.ino)
        if (
            session is not None and not session.under_way
        ):  # the store could not be told that it is written no more
            self._end_unseen(session)
        if node.ino not in self._lingering:
            return
        payer, amount = self._lingering.pop(node.ino)
        purse = self.grants.purse(payer)
        final = amount if self.nameless.inherits(handle, payer, amount) else NOTHING
        if self.grants.noted_not(node.ino) is None:
            purse.settle(Settled(node.ino, final, amount), NOTHING)
        else:
            purse.spend(final - amount)
        self.grants.hurry()

    def lost(self, uid: Uid) -> None:
        """The ledger took back the grant for *uid*: what was claimed is not any more. Sessions begin anew, and a recount tells the rest."""
        for session in list(self._sessions.values()):
            if session.payer == uid:
                self._drop(session)
                if self.grants.noted_not(session.ino) is None:  # it may have been noted anew just now
                    settled = Settled(session.ino, session.base, session.base)
                    self.grants.purse(uid).settle(settled, NOTHING)
        self.nameless.noted_anew(uid)
        self.to_recount.add(uid)


def _has_nameless(node: Node) -> bool:
    """Whether what is open here as *node* has no name any more: one that another file has taken the place of is not."""
    for handle in node.handles:
        with contextlib.suppress(OSError):
            if not handle.is_near or not os.fstat(handle.fd).st_nlink:
                return True
    return False


def _is_in(node: Node, top: Node) -> bool:
    with contextlib.suppress(Stale):
        return node.top is top
    return False
