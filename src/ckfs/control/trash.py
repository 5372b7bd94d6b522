"""A user's trash, in the daemon: the desk of :mod:`ckfs.store.desk`, by calls on the store that each take a moment."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass

import trio

from ckfs.control.moments import Moments
from ckfs.control.protocol import Values
from ckfs.errors import UsageError
from ckfs.fs.core import Core
from ckfs.model import Caller
from ckfs.names import ROOT_INODE, SetName
from ckfs.store import desk
from ckfs.store.choosing import Choice, Entry, check_purge, check_restore
from ckfs.store.desk import Desk, Outcome
from ckfs.store.setnames import SetNames

log = logging.getLogger(__name__)

Tell = Callable[[Values], Awaitable[None]]

_MOST = 20_000
"""Items that are held in memory for one who asks."""
_MOST_NAMED = 10


@dataclass(frozen=True, slots=True)
class TrashDesk:
    """*store_calls* says how many such calls there may be at a time."""

    core: Core
    caller: Caller
    store_calls: trio.CapacityLimiter

    @property
    def _desk(self) -> Desk:
        return Desk(self.core.store, self.core.policy, self.caller, self.core.policy.retention_s)

    @property
    def _moments(self) -> Moments:
        return Moments(self.core, self.store_calls)

    async def ls(self, choice: Choice, tell: Tell) -> None:
        rows, more = self._desk.rows(choice), True
        while more:
            values, more = await self._moments.next_of(rows)
            for row in values:
                await tell(asdict(row))

    async def restore(self, choice: Choice, to: str | None, tell: Tell) -> None:
        target = check_restore(choice, to)
        chosen = await self._chosen(choice)
        if not chosen:
            raise UsageError(desk.NOTHING_THERE)
        for name, group in desk.groups(chosen, target):
            outcomes = await self._restored(name, group)
            self._log("restored", outcomes)
            for outcome in outcomes:
                await tell(asdict(outcome))

    async def _restored(self, name: SetName, group: Sequence[Entry]) -> list[Outcome]:
        """With the lock of the set's name, and counted as a change of the set, as any that the mount makes."""
        job_owner = await self.core.job_owner(name, self.caller)
        at_desk, names = self._desk, self.core.store.names
        of_set = await self._moments.in_store(lambda: _inode_of(names, name))
        async with self.store_calls:
            locks = await self.core.lock_all([(ROOT_INODE, name)])
            return await self.core.gate.transfer(
                lambda: at_desk.restore(name, group, job_owner), releases=locks, of_set=of_set
            )

    async def purge(self, choice: Choice, everything: bool, tell: Tell) -> None:
        check_purge(choice, everything=everything)
        at_desk = self._desk
        outcomes = (at_desk.purge(entry) for entry in await self._chosen(choice))
        more = True
        while more:
            values, more = await self._moments.next_of(outcomes)
            self._log("removed for good", values)
            for outcome in values:
                await tell(asdict(outcome))

    async def _chosen(self, choice: Choice) -> list[Entry]:
        """UsageError if it is more than one may ask for at a time."""
        found, more = self._desk.found(choice), True
        entries: list[Entry] = []
        values: list[Entry]
        while more:
            values, more = await self._moments.next_of(found)
            entries += values
            if len(entries) > _MOST:
                raise UsageError(f"more than {_MOST} items at once: choose fewer, by --set or by times")
        return choice.of(entries)

    def _log(self, what: str, outcomes: Sequence[Outcome]) -> None:
        done = [outcome.item for outcome in outcomes if not outcome.failed]
        if done:
            more = f" and {len(done) - _MOST_NAMED} more" if len(done) > _MOST_NAMED else ""
            names = ", ".join(done[:_MOST_NAMED])
            log.info("trash: uid %d %s %d items: %s%s", self.caller.uid, what, len(done), names, more)


def _inode_of(names: SetNames, name: SetName) -> int:
    """What calls of the set are counted by; 0 if it is not there."""
    with contextlib.suppress(OSError):
        return names.read(name).ino
    return 0
