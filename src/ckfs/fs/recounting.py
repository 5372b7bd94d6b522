"""Counting anew, from the store, what an owner has: after a mount has died, or to see whether the ledger is right.

Others may write meanwhile. What is at rest is counted as it lies there; a file that a living mount writes counts with its base,
as in the ledger, whatever it has by now and whether or not it still has a name; what was added is in that mount's grant. A
mount that died has no grant any more, so its files count as they are.

Mounts post what has changed at rest within :data:`POSTED_WITHIN_S`. So a count is right if nothing was posted of the owner from a
moment before it until that long after it: the ledger compares versions. If something was, the count is worth nothing, and is
made again later; until then everything stays claimed, so that never too much is given.

Everything here blocks, for as long as it takes to look at all files of the owners.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ckfs.errors import Stale
from ckfs.fs.liveness import Fate
from ckfs.ledger.ledger import Basis, Ledger
from ckfs.names import MountId, Uid
from ckfs.policy.quota import Amount
from ckfs.store.counting import BetweenMounts, count
from ckfs.store.layout import Store

POSTED_WITHIN_S = 1.0
"""Mounts post after a quarter of a second at latest."""
_WAITS = 3
"""So often what has just been done, and is yet to be posted, is waited for."""
_TOGETHER = 32
"""Owners who share the waits for what has yet to be posted."""


@dataclass(frozen=True, slots=True)
class Recount:
    """Of one owner: *said* is what he has at rest as the ledger said, *counted* what was found, None if things changed
    meanwhile. *taken_up*: the ledger says that now."""

    uid: Uid
    said: Amount
    counted: Amount | None = None
    taken_up: bool = False

    @property
    def differs(self) -> bool:
        return self.counted is not None and self.counted != self.said


@dataclass(frozen=True, slots=True)
class _Found:
    """*amount* is None where there is nothing to be said yet."""

    uid: Uid
    basis: Basis
    dead: frozenset[MountId]
    amount: Amount | None


@dataclass(frozen=True, slots=True)
class Recounting:
    """*fate* says which mounts are alive. *pause* waits so many seconds."""

    store: Store
    ledger: Ledger
    fate: Callable[[MountId], Fate]
    pause: Callable[[float], None] = time.sleep

    def compare(self, uids: Iterable[Uid]) -> Iterator[Recount]:
        """Count anew without changing anything."""
        return self._each(uids, self._compared)

    def repair(self, uids: Iterable[Uid]) -> Iterator[Recount]:
        """Count anew, and let the ledger say what was found; in the same step dead mounts lose what they were granted for the
        owner. OSError from the store, LedgerDown from the ledger."""
        return self._each(uids, self._repaired)

    def _each(self, uids: Iterable[Uid], end: Callable[[_Found, Amount], Recount]) -> Iterator[Recount]:
        rest = iter(uids)
        while some := list(itertools.islice(rest, _TOGETHER)):
            found = [self._count(uid, basis) for uid, basis in self._quiet(some).items()]
            self.pause(POSTED_WITHIN_S)
            for one in found:
                yield Recount(one.uid, one.basis.used) if one.amount is None else end(one, one.amount)

    def _quiet(self, uids: list[Uid]) -> dict[Uid, Basis]:
        """How things were before a time in which nothing was posted; of who is busy, whatever was last. It saves counts that would
        be worth nothing."""
        bases = {uid: self.ledger.basis(uid) for uid in uids}
        for _ in range(_WAITS):
            before = bases
            self.pause(POSTED_WITHIN_S)
            bases = {uid: self.ledger.basis(uid) for uid in uids}
            if all(before[uid].version == basis.version for uid, basis in bases.items()):
                break
        return before

    def _count(self, uid: Uid, before: Basis) -> _Found:
        basis = self.ledger.basis(uid)
        dead = self._dead(uid, basis)
        written = {file.ino: file.base for file in basis.files if file.mount not in dead}
        # What of a file the dead mount has written, and what a living one, is known when that has settled it.
        is_shared = any(file.ino in written for file in basis.files if file.mount in dead)
        if basis.version == before.version and not is_shared:
            with contextlib.suppress(Stale, BetweenMounts):  # something was moved under the count
                counted = count(self.store, uid, self.store.door.unit, written, self._lives)
                return _Found(uid, basis, dead, counted)
        return _Found(uid, basis, dead, None)

    def _lives(self, mount: MountId) -> bool:
        return self.fate(mount) is Fate.ALIVE

    def _dead(self, uid: Uid, basis: Basis) -> frozenset[MountId]:
        granted = {mount for mount, owners in self.ledger.mounts().items() if uid in owners}
        mounts = granted | {file.mount for file in basis.files}
        return frozenset(mount for mount in mounts if self.fate(mount) is not Fate.ALIVE)

    def _compared(self, found: _Found, amount: Amount) -> Recount:
        now = self.ledger.basis(found.uid)
        return Recount(found.uid, now.used, amount if now.version == found.basis.version else None)

    def _repaired(self, found: _Found, amount: Amount) -> Recount:
        taken_up = self.ledger.recounted(found.uid, found.basis.version, amount, found.dead)
        return Recount(found.uid, found.basis.used, amount if taken_up else None, taken_up)
