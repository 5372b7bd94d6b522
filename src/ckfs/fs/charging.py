"""What calls claim before they add anything to the store, and what is settled afterwards: how a mount keeps its owners within
their quotas.

A write takes from its owner's purse (:mod:`ckfs.fs.grants`), mostly without waiting for anything. A file that is being written
has a :class:`~ckfs.fs.charges.Session`: what of it was written, and so claimed, since it was settled last. When its writers end, what it takes
in the store by then is posted. Of everything else the door tells what it changed (:class:`ckfs.store.metering.Meter`), which is
posted soon after.

All of it belongs to the event loop's thread; what the door tells, in any thread, is queued.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio

from ckfs.errors import FsError, LedgerDown, NoGrant, Stale
from ckfs.fs.charges import Handover, Session
from ckfs.fs.core import Core
from ckfs.fs.grants import Grants
from ckfs.fs.inodes import Handle, Node
from ckfs.fs.liveness import Fate
from ckfs.ledger.ledger import Ledger, Opened, Settled
from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import NOTHING, Account, Amount
from ckfs.store import metering
from ckfs.store.charges import charges_of_set

log = logging.getLogger(__name__)

_MOST_RANGES = 4096
"""A file that was written in more pieces is settled in between."""
_MOST_REMEMBERED = 4096
_IDLE_S = 2.0
"""For so long the writes that are under way are waited for, where a file is to be counted in between."""
_COUNTED_S = 1.0
"""For so long the files of one owner are not counted again to find what is claimed for them in vain."""
_TRIES = 8
"""How often a file may be settled, by others, while one write of it is claimed for."""


@dataclass(frozen=True, slots=True)
class Event:
    """What the door told. *ino* is None of what is new."""

    payer: Uid
    ino: Inode | None
    change: Amount
    is_gone: bool = False


def _hears_nothing(_: Account) -> None:
    pass


def _over_quota() -> OSError:
    return OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


class Charging:
    """The charging of one mount. *watch* hears how an account stands whenever the ledger says so."""

    def __init__(self, core: Core, ledger: Ledger, watch: Callable[[Account], None]) -> None:
        self._core = core
        self.grants = Grants(core, ledger, watch, self._gather, self._lost, self._free_unneeded)
        self._sessions: dict[Inode, Session] = {}
        self._beginning = trio.Lock()
        self._events: deque[Event] = deque()
        self._lingering: dict[Inode, Uid] = {}
        """Who pays for what has no name any more, and is open here."""
        self._settled_gone: OrderedDict[Inode, None] = OrderedDict()
        """Files that were settled as gone before the door had told of it."""
        self.to_recount: set[Uid] = set()
        """Owners of whom only a recount tells what they use: their grants were taken back while this mount seemed dead."""
        self._token: trio.lowlevel.TrioToken | None = None

    async def run(self) -> None:
        """For the life of the mount."""
        self._token = trio.lowlevel.current_trio_token()
        await self.grants.run()

    def leave(self) -> None:
        """Blocking; the last that a mount does. What it still writes is found by the others' recount."""
        self._token = None
        self.grants.leave(finished=not (self._sessions or self._lingering))

    # What the door tells, in any thread

    def made(self, payer: Uid, charge: Amount) -> None:
        self._tell(Event(payer, None, charge))

    def gone(self, payer: Uid, ino: Inode, charge: Amount) -> None:
        self._tell(Event(payer, ino, -charge, is_gone=True))

    def changed(self, payer: Uid, ino: Inode, by_bytes: int) -> None:
        self._tell(Event(payer, ino, Amount(by_bytes)))

    def settles_elsewhere(self, writers: frozenset[MountId]) -> bool:
        member = self._core.member
        others = writers if member is None else writers - {member.id}
        return any(self._core.fate(mount) is not Fate.GONE for mount in others)

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        token = self._token
        if token is not None and (event.change.bytes < 0 or event.change.files < 0):
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self.grants.hurry)

    def _gather(self) -> None:
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
            session.heard_gone = session.heard_gone or event.is_gone
            return True
        if not event.is_gone:
            return False
        if ino in self._settled_gone:
            del self._settled_gone[ino]
            return True
        node = self._core.inodes.known(ino)
        if node is None or not node.handles or ino in self._lingering:
            return False
        self._linger(event.payer, ino, -event.change)
        return True

    def _linger(self, payer: Uid, ino: Inode, charge: Amount) -> None:
        self._lingering[ino] = payer
        self.grants.note(payer, Opened(ino, charge))

    # Claiming

    @asynccontextmanager
    async def claimed(self, payer: Uid, amount: Amount, of: Inode | None = None) -> AsyncIterator[None]:
        await self._take(payer, amount)
        purse = self.grants.purse(payer)
        purse.claims += 1
        try:
            yield
            if of is not None:
                amount -= self._held_for(of, payer, amount)
        finally:
            purse.claims -= 1
            purse.give_back(amount)
            self._gather()  # what was made is spent out of what was just given back

    def _held_for(self, ino: Inode, payer: Uid, amount: Amount) -> Amount:
        """What of *amount* stays held until the file is settled, since it is being written here."""
        session = self._sessions.get(ino)
        if session is None or session.payer != payer:
            return NOTHING
        session.held += amount.bytes
        return amount

    async def begun(self, handle: Handle) -> None:
        with contextlib.suppress(OSError, FsError):  # the first write tries again
            await self._session(handle)

    async def _take(self, payer: Uid, amount: Amount) -> None:
        if await self.grants.take(payer, amount):
            return
        if not await self._free_unneeded(payer) or not await self.grants.take(payer, amount):
            raise _over_quota()

    async def _free_unneeded(self, uid: Uid) -> bool:
        """What is claimed for files of *uid* that are being written, beyond what they take, is free again: what was written over
        was claimed once more. Whether anything may be."""
        purse, now_s = self.grants.purse(uid), trio.current_time()
        if now_s < purse.counted_until_s:
            return False
        purse.counted_until_s = now_s + _COUNTED_S
        sessions = [session for session in self._sessions.values() if session.payer == uid and session.held]
        for session in sessions:
            node = self._core.inodes.known(session.ino)
            if node is not None and node.handles and not session.under_way:
                with contextlib.suppress(OSError, FsError):
                    await self._settle(session, node.handles[0])
        return bool(sessions)

    async def claim(self, handle: Handle, offset: int, count: int) -> tuple[Session, int]:
        unit = self._core.unit
        if appends := bool(fcntl.fcntl(handle.fd, fcntl.F_GETFL) & os.O_APPEND):
            # Its end is not where the kernel of this mount saw it last, if other mounts write the file too.
            offset = await self._core.gate.look(lambda: os.fstat(handle.fd).st_size, releases=(handle.pin(),))
        begin, end = offset // unit * unit, metering.rounded(offset + count, unit)
        session = await self._whole(handle, begin, end)
        if session is None:
            there = metering.rounded(offset, unit) if appends else end
            session, end = await self._part(handle, begin, end, there)
        session.ranges.add(begin, end)
        session.under_way += 1
        session.claims += 1
        session.is_left = False
        return session, min(count, end - offset)

    def done(self, session: Session | None) -> None:
        assert session is not None
        session.under_way -= 1
        if session.under_way:
            return
        if session.idle is not None:
            session.idle.set()
            session.idle = None
        if session.is_left:
            self._end_unseen(session)

    async def _whole(self, handle: Handle, begin: int, end: int) -> Session | None:
        """The session in which all from *begin* to *end* is claimed; None if there is not as much."""
        for _ in range(_TRIES):
            session = await self._session(handle)
            cost = session.ranges.missing(begin, end)
            if cost and not await self.grants.take(session.payer, Amount(cost)):
                if not await self._free_unneeded(session.payer):
                    return None
                continue
            if self._hold(session, cost):
                return session
        return None

    def _hold(self, session: Session, cost: int) -> bool:
        """False if the session was ended while *cost* was being taken."""
        if session.ended:
            self.grants.purse(session.payer).give_back(Amount(cost))
            return False
        session.held += cost
        return True

    async def _part(self, handle: Handle, begin: int, end: int, there: int) -> tuple[Session, int]:
        """The file is counted anew, since what was written over was claimed once more; what is there already needs no room, up to
        *there*; and of the rest as much is claimed as can be. Returns up to where."""
        await self._count_anew(handle, begin, min(end, there))
        session = await self._whole(handle, begin, end)
        if session is not None:
            return session, end
        session, unit = await self._session(handle), self._core.unit
        purse = self.grants.purse(session.payer)
        end = session.ranges.reach(begin, end, purse.balance.bytes) // unit * unit
        cost = session.ranges.missing(begin, end)
        if end <= begin or not purse.take(Amount(cost)):
            raise _over_quota()
        session.held += cost
        return session, end

    async def _count_anew(self, handle: Handle, begin: int, end: int) -> None:
        unit, door = self._core.unit, self._core.store.door
        session = await self._session(handle)
        await self._until_idle(session)
        await self._settle(session, handle)
        session = await self._session(handle)
        there = partial(door.data_in, handle.file, begin, end)
        for since, upto in await self._core.gate.call(there, releases=(handle.pin(),)):
            session.ranges.add(since // unit * unit, metering.rounded(upto, unit))

    @staticmethod
    async def _until_idle(session: Session) -> None:
        if session.under_way:
            session.idle = session.idle or trio.Event()
            with trio.move_on_after(_IDLE_S):
                await session.idle.wait()

    # Sessions

    async def _session(self, handle: Handle) -> Session:
        ino = handle.node.ino
        session = self._sessions.get(ino)
        if session is not None and len(session.ranges) <= _MOST_RANGES:
            return session
        async with self._beginning:
            session = self._sessions.get(ino)
            if session is None:
                return await self._begin(handle)
            if session.under_way or len(session.ranges) <= _MOST_RANGES:
                return session
            self._end(session, *await self._charge(handle))
            return await self._begin(handle)

    async def _begin(self, handle: Handle) -> Session:
        self._gather()
        node = handle.node
        base, _ = await self._charge(handle)
        session = self._sessions[node.ino] = Session(node.ino, self._core.payer_of(node), base)
        self.grants.note(session.payer, Opened(node.ino, base))
        return session

    async def _charge(self, handle: Handle) -> tuple[Amount, bool]:
        look = partial(self._core.store.door.charge_open, handle.file)
        return await self._core.gate.look(look, releases=(handle.pin(),))

    async def settle(self, handle: Handle) -> None:
        node = handle.node
        session = self._sessions.get(node.ino)
        if session is None or any(other.wrote for other in node.handles):
            return
        if session.under_way:
            session.is_left = True
            return
        await self._settle(session, handle)

    async def settle_now(self, node: Node) -> None:
        session = self._sessions.get(node.ino)
        if session is not None:
            await self._until_idle(session)
        if session is not None and node.handles:
            await self._settle(session, node.handles[0])

    async def _settle(self, session: Session, handle: Handle) -> None:
        claims = session.claims
        try:
            seen = await self._charge(handle)
        except (OSError, FsError):
            if not session.under_way:
                self._end_unseen(session)
            raise
        if not (session.ended or session.under_way) and session.claims == claims:
            self._end(session, *seen)

    def _end_unseen(self, session: Session) -> None:
        """Nobody could see what the file takes: it counts with all that was claimed for it, until a recount."""
        if not session.ended:
            self._end(session, session.base + Amount(session.held), is_gone=False)
            self.to_recount.add(session.payer)

    def _end(self, session: Session, final: Amount, is_gone: bool) -> None:
        """*final* is what the file counts with from now on; one that has no name any more, *is_gone*, for as long as it is open."""
        self._gather()
        if session.ended:
            return
        self._drop(session)
        node = self._core.inodes.known(session.ino)
        if is_gone and (node is None or not node.handles):
            final = NOTHING
        purse = self.grants.purse(session.payer)
        noted = self.grants.noted_not(session.ino)
        if noted is None:
            purse.settle(Settled(session.ino, final), Amount(session.held))
        else:
            purse.give_back(Amount(session.held))
            purse.spend_on(session.ino, final - noted.base)
        if is_gone and not session.heard_gone:
            self._settled_gone[session.ino] = None
            while len(self._settled_gone) > _MOST_REMEMBERED:
                self._settled_gone.popitem(last=False)
        if is_gone and final:
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

    # Handing over

    @asynccontextmanager
    async def handed_over(self, top: Node, taker: Uid) -> AsyncIterator[Handover]:
        handover = Handover()
        giver = self._core.payer_of(top)
        if giver != taker:
            await self._settle_below(top)
            giver, moved, files = await self._counted(top, taker)
        if giver == taker:
            yield handover
            return
        if not await self.grants.take(taker, moved):
            raise _over_quota()
        purse = self.grants.purse(taker)
        try:
            yield handover
        except BaseException:
            purse.give_back(moved)
            raise
        if handover.is_done:
            await self.grants.move(giver, taker, moved, files)
        else:  # somebody was faster
            purse.give_back(moved)

    async def _settle_below(self, top: Node) -> None:
        for ino in [ino for ino in self._sessions if self._is_in(ino, top)]:
            if (node := self._core.inodes.known(ino)) is not None:
                await self.settle_now(node)

    def _is_in(self, ino: Inode, top: Node) -> bool:
        node = self._core.inodes.known(ino)
        with contextlib.suppress(Stale):
            return node is not None and node.top is top
        return False

    async def _counted(self, top: Node, taker: Uid) -> tuple[Uid, Amount, list[Opened]]:
        """Who pays for the set now, what it counts with, and those of its files that other mounts are writing with what they
        count with. Another mount may move it, or give it away, in this moment."""
        for _ in range(_TRIES):
            giver, spot, door = self._core.payer_of(top), top.spot, self._core.store.door
            if giver == taker:
                break
            try:
                noted = await self.grants.noted(giver)
                charges = await self._core.gate.transfer(partial(charges_of_set, door, spot, noted))
            except LedgerDown:
                raise NoGrant(self._core.policy.quota.away.errno) from None
            except (FileNotFoundError, PermissionError, Stale):
                if not await self._core.find_again(top):
                    raise
            else:
                return giver, charges.total, [Opened(ino, amount) for ino, amount in charges.of.items()]
        return taker, NOTHING, []

    def _lost(self, uid: Uid) -> None:
        """The ledger took back the grant for *uid*: what was claimed is not any more. Sessions begin anew, and a recount tells the rest."""
        for session in list(self._sessions.values()):
            if session.payer == uid:
                self._drop(session)
                if self.grants.noted_not(session.ino) is None:  # it may have been noted anew just now
                    self.grants.purse(uid).settle(Settled(session.ino, session.base), NOTHING)
        self.to_recount.add(uid)


def charge(core: Core, watch: Callable[[Account], None] = _hears_nothing) -> None:
    """Let *core* charge owners for what they have, if it has a ledger. Before anybody calls it."""
    if core.ledger is not None:
        charging = Charging(core, core.ledger, watch)
        core.charging = charging
        core.store.door.report_to(charging)
