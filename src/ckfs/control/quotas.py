"""What commands ask a mount of quotas: how owners stand, what holds from now on, whether there is room."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import trio

from ckfs.control.moments import Moments
from ckfs.control.protocol import Malformed, Values
from ckfs.errors import NotPermitted
from ckfs.fs import room
from ckfs.fs.asking import Asking
from ckfs.fs.core import Core
from ckfs.fs.room import Answer, GivingWay, StoreRoom
from ckfs.fs.standing import (
    GIVEN_BACK_WITHIN_S,
    LOOK_S,
    Keepers,
    default_limits,
    described,
    held_up,
    keep_copy,
    keeping,
    known_accounts,
    say,
    standings,
)
from ckfs.fs.superseded import Superseded
from ckfs.ledger.ledger import Quotas
from ckfs.model import Owner
from ckfs.names import ROOT_UID, Gid, Uid
from ckfs.owners.accounts import uid_in
from ckfs.policy import limits, quota
from ckfs.policy.quota import NOTHING, Account, Amount
from ckfs.store.metering import rounded

log = logging.getLogger(__name__)

Tell = Callable[[Values], Awaitable[None]]


def uid_asked(text: str | None) -> Uid:
    uid = None if text is None else uid_in(text)
    if uid is None:
        raise Malformed("uids are numbers, of 32 bits")
    return uid


@dataclass(frozen=True, slots=True)
class QuotaDesk:
    """*uid* asks. *store_calls* as for :class:`Moments`."""

    core: Core
    uid: Uid
    store_calls: trio.CapacityLimiter

    @property
    def _asking(self) -> Asking:
        return Asking(self.core)

    @property
    def _moments(self) -> Moments:
        return Moments(self.core, self.store_calls)

    async def show(self, uids: Sequence[Uid], tell: Tell) -> None:
        """*uids*, or for root all of whom there is something to say. Everybody sees himself."""
        if self.uid != ROOT_UID:
            uids = uids or [self.uid]
            self._check_own(uids, "see")

        def look(quotas: Quotas) -> list[Account]:
            return [quotas.account(uid) for uid in uids] if uids else known_accounts(quotas)

        accounts = await self._asking.ask(look, self.uid)
        if self.uid == ROOT_UID:
            await tell({"default": asdict(await self._asking.ask(default_limits, self.uid))})
        rows, more = standings(accounts, self.core.store.trash), True
        while more:
            values, more = await self._moments.next_of(rows)
            for row in values:
                await tell({"owner": asdict(row)})

    async def set(self, uid: Uid | None, said: Mapping[str, str], login_uid: int | None, tell: Tell) -> None:
        if self.uid != ROOT_UID:
            raise NotPermitted("only root sets quotas")
        holds, yet_to_hold = await self._asking.ask(lambda quotas: say(quotas, uid, said), self.uid), ""
        if said:
            if self.core.ledger is not None:
                everything = await self._asking.ask(lambda quotas: quotas.all_settings(), self.uid)
                await self._moments.in_store(lambda: keep_copy(self.core.store, everything))
            log.info("%s", described(uid, said, login_uid), extra={"always": True})
            keepers = await self._kept(uid)
            yet_to_hold = await self._moments.in_store(lambda: held_up(self.core.store.mounts, keepers))
        await tell({"holds": limits.described(holds) + yet_to_hold})

    async def _kept(self, uid: Uid | None) -> Keepers:
        """The mounts on which a limit that was set does not hold yet, once they have had the time to answer."""
        until_s = trio.current_time() + GIVEN_BACK_WITHIN_S
        while True:
            keepers = await self._asking.ask(lambda quotas: keeping(quotas, uid), self.uid)
            if not keepers or trio.current_time() > until_s:
                return keepers
            await trio.sleep(LOOK_S)

    async def room(self, uid: Uid, size_bytes: int, superseded: Superseded, tell: Tell) -> None:
        self._check_own([uid], "ask for")
        stored = self.core.stored_as(Owner(uid, Gid(uid)))
        unit = await self._moments.in_store(lambda: self.core.store.door.unit)
        wanted = Amount(rounded(size_bytes, unit), 1)
        account = None if self.core.quotas is None else await self._asking.account(stored.uid, self.uid)
        store = await self._moments.in_store(lambda: self._store_room(uid))
        told_ns = 0 if account is None else quota.told_ns(account)
        found = room.answer(wanted, account, store, GivingWay(), told_ns)
        if not found.fits:  # only now, since it may take a while
            giving = await self._giving(stored, superseded, found)
            found = room.answer(wanted, account, store, giving, told_ns)
        await tell(asdict(found))

    def _store_room(self, uid: Uid) -> StoreRoom:
        there, policy = self.core.store.door.room(), self.core.policy
        total_bytes = there.f_blocks * there.f_frsize
        return StoreRoom.of(there, 0 if uid == ROOT_UID else policy.quota.reserve.bytes_of(total_bytes))

    async def _giving(self, stored: Owner, superseded: Superseded, found: Answer) -> GivingWay:
        trash = self.core.store.trash
        own = await self._total(room.of_his_own(stored, trash, superseded))
        if not any(lack.of in ("store", "inodes") for lack in found.lacks):
            return GivingWay(own)
        return GivingWay(own, await self._total(room.of_others(stored, trash)))

    async def _total(self, pieces: Iterator[Amount]) -> Amount:
        total, more = NOTHING, True
        while more:
            values, more = await self._moments.next_of(pieces)
            total = sum(values, total)
        return total

    def _check_own(self, uids: Sequence[Uid], do: str) -> None:
        if self.uid != ROOT_UID and any(uid != self.uid for uid in uids):
            raise NotPermitted(f"you may {do} your own quota alone: only root those of others")
