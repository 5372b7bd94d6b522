"""What calls claim before they add anything to the store, and what is settled afterwards: how a mount keeps its owners within
their quotas.

A write takes from its owner's purse (:mod:`ckfs.fs.grants`), mostly without waiting for anything. A file that is being written
has a session (:mod:`ckfs.fs.sessions`): what of it was written, and so claimed, since it was settled last. When its writers end, what it takes
in the store by then is posted. Of everything else the door tells what it changed, which is posted soon after.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import trio

from ckfs.errors import FsError, LedgerDown, NoGrant
from ckfs.fs.charges import Claim, Handover, Hold, Session
from ckfs.fs.core import Core
from ckfs.fs.events import Event, LeftOpen
from ckfs.fs.grants import Grants
from ckfs.fs.inodes import Handle, Node
from ckfs.fs.liveness import Fate
from ckfs.fs.moved import GONE
from ckfs.fs.openended import OpenEnded
from ckfs.fs.sessions import Sessions
from ckfs.ledger.ledger import Ledger, Opened
from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import NOTHING, Account, Amount
from ckfs.store import metering
from ckfs.store.charges import charges_of_set, data_in, end_of
from ckfs.store.gate import Release
from ckfs.store.metering import Ended
from ckfs.store.nameless import Left

log = logging.getLogger(__name__)

_COUNTED_S = 1.0
"""For so long the files of one owner are not counted again to find what is claimed for them in vain."""
_TRIES = 8
"""How often a file may be settled, by others, while one write of it is claimed for."""


def _hears_nothing(_: Account) -> None:
    pass


def _over_quota() -> OSError:
    return OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


class Charging:
    """The charging of one mount. *watch* hears how an account stands whenever the ledger says so."""

    def __init__(self, core: Core, ledger: Ledger, watch: Callable[[Account], None]) -> None:
        self._core = core
        self._unit = core.unit
        self.sessions = Sessions(core)
        gather, lost = self.sessions.gather, self.sessions.lost
        self.grants = Grants(core, ledger, watch, gather, lost, self._free_unneeded)
        self.sessions.grants = self.sessions.nameless.grants = self.grants
        self.open_ended = OpenEnded(core, self.grants, self.sessions)

    @property
    def to_recount(self) -> set[Uid]:
        return self.sessions.to_recount

    @property
    def fell_short(self) -> int:
        return self.grants.fell_short

    async def run(self) -> None:
        """For the life of the mount."""
        self.sessions.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.grants.run)
            nursery.start_soon(self.sessions.nameless.run)
            nursery.start_soon(self.open_ended.run)

    def leave(self) -> None:
        """Blocking; the last that a mount does. What it still writes is found by the others' recount."""
        self.sessions.listen_no_more()
        self.sessions.gather()
        is_empty = self.sessions.is_empty
        self.sessions.nameless.leave()
        self.grants.leave(finished=is_empty)

    # What the door tells, in any thread

    def made(self, payer: Uid, charge: Amount) -> None:
        self.sessions.tell(Event(payer, None, charge))

    def gone(self, payer: Uid, ino: Inode, charge: Amount) -> None:
        self.sessions.tell(Event(payer, ino, -charge, is_gone=True))

    @property
    def keeps(self) -> bool:
        return self.sessions.nameless.may_be_more

    def left_open(self, left: Left, fd: int) -> None:
        self.sessions.tell(LeftOpen(left, fd))

    def changed(self, payer: Uid, written: Inode | None, by_bytes: int) -> None:
        self.sessions.tell(Event(payer, written, Amount(by_bytes)))

    def ended(self, ended: Ended) -> None:
        self.sessions.tell(ended)

    def held(self, ino: Inode) -> Amount | None:
        return self.sessions.held(ino)

    @property
    def mount(self) -> MountId | None:
        return None if self._core.member is None else self._core.member.id

    def lives(self, mount: MountId) -> bool:
        try:
            return self._core.fate(mount) is not Fate.GONE
        except OSError:  # it may yet tell
            return True

    # Claiming

    @asynccontextmanager
    async def claimed(self, payer: Uid, amount: Amount) -> AsyncIterator[Hold]:
        await self._take(payer, amount)
        purse, holders = self.grants.purse(payer), 0

        def hold() -> Release:
            nonlocal holders
            holders += 1
            return let_go

        def let_go() -> None:
            nonlocal holders
            holders -= 1
            if not holders:
                purse.claims -= 1
                purse.give_back(amount)
                self.sessions.gather()  # what was made is spent out of what was just given back

        purse.claims += 1
        release = hold()
        try:
            yield hold
        finally:
            release()

    def created(self, node: Node) -> None:
        self.sessions.created(node)

    async def begun(self, handle: Handle) -> None:
        with contextlib.suppress(OSError, FsError):  # the first write tries again
            await self.sessions.of(handle)

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
        sessions = self.sessions.of_payer(uid)
        for session in sessions:
            node = self._core.inodes.known(session.ino)
            if node is not None and not session.under_way:
                with contextlib.suppress(OSError, FsError):
                    await self.sessions.count(session, node)
        return bool(sessions)

    async def claim(self, handle: Handle, offset: int, count: int) -> Claim:
        if handle.appends:
            return await self._claim_end(handle, count)
        claim = self.claim_at_once(handle.node, offset, count)
        if claim is not None:
            return claim
        return await self._claim_there(handle, offset, count, there=offset + count)

    def claim_at_once(self, node: Node, offset: int, count: int) -> Claim | None:
        unit = self._unit
        session = self._at_once(node, offset // unit * unit, metering.rounded(offset + count, unit))
        return None if session is None else Claim(session, count)

    def _at_once(self, node: Node, begin: int, end: int) -> Session | None:
        """The session in which all from *begin* to *end* was claimed for a write that need not wait for anything: nearly each.
        So nothing is done here that is not needed for such a one."""
        session = self.sessions.going_on(node)
        if session is None:
            return None
        cost = session.ranges.missing(begin, end)
        if cost and not self.grants.take_at_once(session.payer, cost):
            return None
        session.held += cost
        session.ranges.add(begin, end)
        session.under_way += 1
        return session

    async def claim_all(self, handle: Handle, offset: int, count: int) -> Claim:
        unit = self._unit
        begin, end = offset // unit * unit, metering.rounded(offset + count, unit)
        session = self._at_once(handle.node, begin, end)
        if session is not None:
            return Claim(session, count)
        session = await self._whole(handle, begin, end)
        if session is None:
            await self._count_anew(handle, begin, end)
            session = await self._whole(handle, begin, end)
        if session is None:
            raise _over_quota()
        session.ranges.add(begin, end)
        session.under_way += 1
        return Claim(session, count)

    async def _claim_there(self, handle: Handle, offset: int, count: int, there: int) -> Claim:
        unit = self._unit
        begin, end = offset // unit * unit, metering.rounded(offset + count, unit)
        session = await self._whole(handle, begin, end)
        if session is None:
            session, end = await self._part(handle, begin, end, metering.rounded(there, unit))
        session.ranges.add(begin, end)
        session.under_way += 1
        return Claim(session, min(count, end - offset))

    async def _claim_end(self, handle: Handle, count: int) -> Claim:
        """Where the file ends is known when it is written, if other mounts write it too: a unit more than that takes may be needed."""
        unit = self._core.unit
        cost = metering.rounded(count, unit) + unit
        session = await self._whole(handle, 0, 0, cost)
        if session is None:
            look = partial(end_of, self._core.store.door, handle.file, self._core.mount_id)
            offset, is_shared = await self._core.gate.look(look, releases=(handle.pin(),))
            if not is_shared:
                claim = await self._claim_there(handle, offset, count, there=offset)
                claim.only_at = offset
                return claim
            session = await self.sessions.of(handle)
            purse = self.grants.purse(session.payer)
            cost = purse.balance.bytes // unit * unit
            if cost <= unit or not purse.take(Amount(cost)):
                raise _over_quota()
            session.held += cost
        session.under_way += 1
        session.appending += 1
        return Claim(session, min(count, cost - unit), appended=cost)

    def appended(self, claim: Claim, begin: int, end: int) -> None:
        session, unit = claim.session, self._core.unit
        if claim.appended is None or session is None or session.ended:
            return
        begin, end = begin // unit * unit, metering.rounded(end, unit)
        unneeded = claim.appended - session.ranges.missing(begin, end)
        session.ranges.add(begin, end)
        session.held -= unneeded
        self.grants.purse(session.payer).give_back(Amount(unneeded))

    def done(self, claim: Claim) -> None:
        session = claim.session
        assert session is not None
        session.under_way -= 1
        session.appending -= claim.appended is not None
        if session.under_way:
            return
        if session.idle is not None:
            session.idle.set()
            session.idle = None
        if session.ended and session.held:
            self.sessions.written_late(session)

    async def _whole(self, handle: Handle, begin: int, end: int, besides: int = 0) -> Session | None:
        """The session in which all from *begin* to *end* is claimed, and *besides*; None if there is not as much."""
        for _ in range(_TRIES):
            session = await self.sessions.of(handle)
            cost = session.ranges.missing(begin, end) + besides
            if cost and not await self.grants.take(session.payer, Amount(cost)):
                if not await self._free_unneeded(session.payer):
                    return None
                continue
            if self._hold(session, cost, session.ranges.missing(begin, end) + besides):
                return session
        return None

    def _hold(self, session: Session, taken: int, needed: int) -> bool:
        """False if the session was ended, counted or cut while *taken* was, so that more is *needed* by now."""
        is_enough = not session.ended and not session.is_counted and taken >= needed
        kept = needed if is_enough else 0
        session.held += kept
        if taken > kept:
            self.grants.purse(session.payer).give_back(Amount(taken - kept))
        return is_enough

    async def _part(self, handle: Handle, begin: int, end: int, there: int) -> tuple[Session, int]:
        """The file is counted anew, since what was written over was claimed once more; what is there already needs no room, up to
        *there*; and of the rest as much is claimed as can be. Returns up to where."""
        await self._count_anew(handle, begin, min(end, there), end)
        session = await self._whole(handle, begin, end)
        if session is not None:
            return session, end
        session, unit = await self.sessions.of(handle), self._core.unit
        purse = self.grants.purse(session.payer)
        end = session.ranges.reach(begin, end, max(0, purse.balance.bytes)) // unit * unit
        cost = session.ranges.missing(begin, end)
        if end <= begin or not purse.take(Amount(cost)):
            raise _over_quota()
        session.held += cost
        return session, end

    async def _count_anew(self, handle: Handle, begin: int, end: int, upto: int = 0) -> None:
        """What has data between *begin* and *end* is claimed by being there, and so is what was allocated up to *upto*."""
        unit, door = self._core.unit, self._core.store.door
        session = await self.sessions.of(handle)
        await self.sessions.until_idle(session)
        await self.sessions.count(session, handle.node)
        look = partial(data_in, door, handle.file, begin, end, max(end, upto))
        for _ in range(_TRIES):
            session = await self.sessions.of(handle)
            counts = session.counts
            there = await self._core.gate.call(look, releases=(handle.pin(),))
            # Else it may have been cut since it was seen, or is just being appended, which is claimed for already.
            if session.counts == counts and not session.appending:
                for since, upto in there:
                    session.ranges.add(since // unit * unit, metering.rounded(upto, unit))
                return
            await self.sessions.until_idle(session)

    # What becomes of files

    async def settled(self) -> None:
        self.sessions.gather()
        await self.grants.tell()

    async def told(self) -> None:
        await self.grants.tell()

    async def settle_now(self, node: Node) -> None:
        await self.sessions.settle_now(node)

    def paused(self, node: Node) -> AbstractAsyncContextManager[None]:
        return self.sessions.paused(node)

    def cut(self, node: Node, size: int) -> None:
        self.sessions.cut(node, size)

    def is_said_unseen(self, payer: Uid) -> bool:
        return self.open_ended.is_said(payer)

    async def say_unseen(self, payer: Uid) -> bool:
        return await self.open_ended.say(payer)

    def written_unseen(self) -> None:
        self.open_ended.begun()

    def closed(self, handle: Handle) -> None:
        self.sessions.closed(handle)

    # Handing over

    @asynccontextmanager
    async def handed_over(self, top: Node, taker: Uid) -> AsyncIterator[Handover]:
        handover = Handover()
        giver = self._core.payer_of(top)
        if giver != taker:
            for node in self.sessions.below(top):
                await self.settle_now(node)
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

    async def _counted(self, top: Node, taker: Uid) -> tuple[Uid, Amount, list[Opened]]:
        """Who pays for the set now, what it counts with, and those of its files that other mounts are writing with what they
        count with. Another mount, or another call of this one, may move it, or give it away, in this moment."""

        async def count() -> tuple[Uid, Amount, list[Opened]]:
            giver, spot, door = self._core.payer_of(top), top.spot, self._core.store.door
            if giver == taker:
                return taker, NOTHING, []
            try:
                noted = await self.grants.noted(giver)
                charges = await self._core.gate.transfer(partial(charges_of_set, door, spot, noted))
            except LedgerDown:
                raise NoGrant(self._core.policy.quota.away.errno) from None
            return giver, charges.total, [Opened(ino, amount) for ino, amount in charges.of.items()]

        return await self._core.moved.again((top,), count, GONE)


def charge(core: Core, watch: Callable[[Account], None] = _hears_nothing) -> None:
    """Let *core* charge owners for what they have, if it has a ledger. Before anybody calls it."""
    if core.ledger is not None:
        charging = Charging(core, core.ledger, watch)
        core.charging = charging
        core.store.door.report_to(charging)
