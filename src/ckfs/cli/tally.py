"""What commands change in a store itself reaches the ledger, as what mounts change does: within a quarter of a second, so that a
recount that runs meanwhile notices it (:mod:`ckfs.fs.recounting`)."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ckfs.cli.host import host_of
from ckfs.cli.stores import service_of
from ckfs.errors import CkfsError, LedgerDown, LedgerUnusable, StoreUnusable
from ckfs.fs import ledgers
from ckfs.fs.liveness import Fate, Judge
from ckfs.ledger.ledger import Ledger, Posting
from ckfs.names import Inode, MountId, Uid, shown
from ckfs.policy.enforcing import QuotaMode
from ckfs.policy.quota import Amount
from ckfs.policy.settings import Policy
from ckfs.store import binding
from ckfs.store.layout import Store, open_store
from ckfs.store.metering import Ended
from ckfs.store.mounts import new_id
from ckfs.store.nameless import Left

_EVERY_S = 0.25
_LIMIT_S = 10.0
"""How long the ledger may take to answer, and may be away at the end."""


@contextlib.contextmanager
def counted_store(path: str, *, read_only: bool = False) -> Iterator[Store]:
    """The store at *path*, open; what changes there in what somebody is charged with is posted to its ledger, if it
    has one. Raises StoreUnusable if it cannot be opened, or its ledger is out of reach; CkfsError at the end if that went
    away meanwhile."""
    with contextlib.closing(open_store(path, service_of(path), read_only=read_only)) as store:
        ledger = None if read_only else _ledger_of(store)
        if ledger is None:
            yield store
            return
        with contextlib.closing(ledger), _posting(store, ledger):
            yield store


def _ledger_of(store: Store) -> Ledger | None:
    """None where nobody counts, or the next mount counts everything anew."""
    policy = _policy_of(store)
    if policy is None or policy.quota.mode is not QuotaMode.LEDGER or binding.read(store.root) is None:
        return None
    try:
        return ledgers.open_as_it_is(store, policy, host_of(store), _LIMIT_S)
    except LedgerUnusable as error:
        _complain(
            f"{error}: what changes is counted when a mount, or 'ckfs quota check --repair', counts anew"
        )
        return None
    except LedgerDown as error:
        raise ledgers.out_of_reach(store, error) from None


def _policy_of(store: Store) -> Policy | None:
    """A mistake in it must keep nobody from his images."""
    try:
        return store.read_policy()
    except StoreUnusable as error:
        _complain(
            f"{error}; until then nobody can tell where the ledger of its quotas is, and what changes is not posted"
        )
        return None


def _complain(text: str) -> None:
    print(f"ckfs: {text}", file=sys.stderr)


@contextlib.contextmanager
def _posting(store: Store, ledger: Ledger) -> Iterator[None]:
    judge, lease_s = Judge(store.mounts), store.read_policy().lease_s
    tally = Tally(ledger, lambda mount: judge.fate(mount, lease_s) is not Fate.GONE)
    store.door.report_to(tally)
    tally.begin()
    try:
        yield
    finally:
        try:
            tally.end()
        except LedgerDown as error:
            raise CkfsError(
                f"{shown(store.path)}: the ledger of its quotas has gone away: {error}: 'ckfs quota check --repair' when it is"
                " back; until then what was freed counts"
            ) from None


@dataclass(slots=True)
class Tally:
    """A meter (:class:`ckfs.store.metering.Meter`), of a process that has no mount. *is_alive* says so of a mount."""

    ledger: Ledger
    is_alive: Callable[[MountId], bool]
    id: MountId = field(default_factory=new_id)
    _used: defaultdict[Uid, Amount] = field(default_factory=lambda: defaultdict(Amount))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ends: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _pending: tuple[Posting, ...] = ()
    _number: int = 0

    # What the door tells, in any thread

    def made(self, payer: Uid, charge: Amount) -> None:
        with self._lock:
            self._used[payer] += charge

    def gone(self, payer: Uid, ino: Inode, charge: Amount) -> None:
        with self._lock:
            self._used[payer] -= charge

    @property
    def keeps(self) -> bool:
        return False

    def left_open(self, left: Left, fd: int) -> None:
        """It keeps nothing, and so is told of nothing."""
        os.close(fd)

    def changed(self, payer: Uid, written: Inode | None, by_bytes: int) -> None:
        self.made(payer, Amount(by_bytes))

    def ended(self, ended: Ended) -> None:
        """It never writes."""

    def held(self, ino: Inode) -> Amount | None:
        return None

    @property
    def mount(self) -> MountId | None:
        return None

    def lives(self, mount: MountId) -> bool:
        try:
            return self.is_alive(mount)
        except OSError:  # then a recount tells
            return True

    # What the ledger hears

    def begin(self) -> None:
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ends.wait(_EVERY_S):
            with contextlib.suppress(LedgerDown):
                self._post()

    def end(self) -> None:
        """Post the rest. LedgerDown if the ledger stays away for too long."""
        self._ends.set()
        if self._thread is not None:
            self._thread.join()
        deadline_s = time.monotonic() + _LIMIT_S
        while True:
            try:
                self._post()
                self._post()  # what came after one that had failed before
                if self._number:
                    self.ledger.end(self.id)
            except LedgerDown:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(_EVERY_S)
            else:
                return

    def _post(self) -> None:
        """Post what was heard; after a failure the very same again, since nobody knows whether it took place."""
        if not self._pending:
            self._pending = self._heard()
            self._number += bool(self._pending)
        if self._pending:
            self.ledger.post(self.id, self._number, self._pending)
            self._pending = ()

    def _heard(self) -> tuple[Posting, ...]:
        with self._lock:
            used = dict(self._used)
            self._used.clear()
        return tuple(Posting(uid, amount) for uid, amount in sorted(used.items()))
