"""An engine, made of a driver: what is the same whichever file system enforces.

Accounts that calls of the file system ask for are a second old at most, since each may take a run of the engine's tool.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from ckfs.engines import proven, said
from ckfs.engines.engine import REALM_MODE, Driver, Realms
from ckfs.engines.headroom import Headroom
from ckfs.errors import EngineFailed, Unsupported
from ckfs.names import ROOT_UID, Gid, MountId, Uid
from ckfs.policy.quota import UNLIMITED, Account, Limit, Limits, Room, Said, Settings, limits_of, room

log = logging.getLogger(__name__)

_FRESH_S = 1.0
_MOST_KEPT = 4096


@dataclass(slots=True)
class Driven:
    """The Engine of *realms*, whose descriptor it owns."""

    driver: Driver
    realms: Realms
    _prepared: set[Uid] = field(default_factory=set)
    _accounts: dict[Uid, tuple[float, Account]] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def start(self) -> None:
        """Before anything else, once; see :meth:`Driver.start`."""
        self.driver.start()
        if not self.tried:
            log.warning(
                "quotas by %s: this driver was not yet tried on a real one: run ckfs selftest before you rely on it",
                self.name,
            )

    @property
    def name(self) -> str:
        return self.driver.name

    @property
    def tried(self) -> bool:
        return self.driver.tried or proven.has_passed(self.realms.fd, self.name)

    @property
    def says_full(self) -> bool:
        return self.driver.says_full

    @property
    def refuses_notes(self) -> bool:
        return self.driver.refuses_notes

    def headroom(self, uid: Uid) -> AbstractContextManager[None]:
        return Headroom(self.driver, self.realms).lifted(uid)

    def _alone(self, uid: Uid) -> AbstractContextManager[None]:
        """For a change of the limit of the realm *uid*, which must not meet one for headroom."""
        return (
            Headroom(self.driver, self.realms).alone(uid) if self.refuses_notes else contextlib.nullcontext()
        )

    def close(self) -> None:
        os.close(self.realms.fd)

    # Realms

    def prepare(self, uid: Uid, gid: Gid) -> None:
        if uid in self._prepared:
            return
        with self._lock:
            try:
                self._prepare(uid, gid)
            except OSError as error:
                raise EngineFailed(f"users/{uid} cannot be set up for quotas: {error.strerror}") from None
            self._prepared.add(uid)

    def _prepare(self, uid: Uid, gid: Gid) -> None:
        if not self._is_there(uid):
            with contextlib.suppress(FileExistsError):
                self.driver.make(uid)
        self._finish(uid, gid)

    def _finish(self, uid: Uid, gid: Gid) -> None:
        """All that may be missing of a realm, the owner last: until then nobody but root writes there."""
        with self.realms.opened(uid) as fd:
            self.driver.mark(uid)
            limits = limits_of(said.read(fd), self._default_of(uid))
            with self._alone(uid):
                if _of(limits) != _of(UNLIMITED) == _of(self.driver.account(uid).limits):
                    self.driver.limit(uid, limits)
            if os.fstat(fd).st_uid != uid:
                os.fchmod(fd, REALM_MODE)
                os.fchown(fd, uid, gid)

    def forget(self, uid: Uid) -> None:
        with self._lock:
            self._prepared.discard(uid)
            self._accounts.pop(uid, None)
            try:
                self.driver.remove(uid)
            except OSError as error:
                raise EngineFailed(f"users/{uid} cannot be removed: {error.strerror}") from None

    def _default_of(self, uid: Uid) -> Settings:
        """What is said of all others does not hold for root, nor for the account that keeps the store."""
        keeper = os.fstat(self.realms.fd).st_uid
        return Settings() if uid in (ROOT_UID, keeper) else self.settings(None)

    # Looking

    def account(self, uid: Uid) -> Account:
        self.driver.settle()
        return self._account(uid)

    def _account(self, uid: Uid) -> Account:
        if not self._is_there(uid):
            return Account(uid, limits=limits_of(Settings(), self._default_of(uid)))
        return self.driver.account(uid)

    def _is_there(self, uid: Uid) -> bool:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self.realms.opened(uid):
            return True
        return False

    def accounts(self) -> list[Account]:
        self.driver.settle()
        return sorted(self.driver.accounts(), key=lambda account: account.uid)

    def recent(self, uid: Uid) -> Account:
        now = time.monotonic()
        with self._lock:
            at, known = self._accounts.get(uid, (0.0, None))
            if known is not None and now < at + _FRESH_S:
                return known
        account = self._account(uid)
        with self._lock:
            if len(self._accounts) >= _MOST_KEPT:
                self._accounts.clear()
            self._accounts[uid] = (time.monotonic(), account)
        return account

    def room(self, uid: Uid) -> Room:
        return room(self.recent(uid), time.time_ns())

    def is_at_limit(self, uid: Uid) -> bool:
        """It is his limit that is met if he is nearer to it than the store is to its end."""
        his, store = self.room(uid), os.fstatvfs(self.realms.fd)
        if his.files == 0:
            return True
        if store.f_files and not store.f_favail:
            return False
        return his.bytes is not None and his.bytes < store.f_bavail * store.f_frsize

    # Limits

    def settings(self, uid: Uid | None) -> Settings:
        if uid is None:
            return said.read(self.realms.fd)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self.realms.opened(uid) as fd:
            return said.read(fd)
        return Settings()

    def asked_back(self) -> dict[MountId, set[Uid]]:
        return {}

    def unseen(self) -> dict[MountId, set[Uid]]:
        return {}

    def all_settings(self) -> dict[Uid | None, Settings]:
        everyone: list[Uid | None] = [None, *self.realms.uids()]
        everything = {who: self.settings(who) for who in everyone}
        return {who: settings for who, settings in everything.items() if settings != Settings()}

    def set_limits(self, uid: Uid | None, settings: Settings) -> None:
        """Of a user whom nothing is stored of yet, the realm is made. A new default comes to all who have it; whose limits were set
        by the engine's own tool keeps these."""
        if settings.grace_s is not Said.DEFAULT:
            raise Unsupported(
                f"{self.name} has a grace time of its own, for all: set it with the engine's tool"
            )
        with self._lock:
            if uid is None:
                self._set_default(settings)
            else:
                self._set_own(uid, settings)
            self._accounts.clear()

    def _set_own(self, uid: Uid, settings: Settings) -> None:
        limits = limits_of(settings, self._default_of(uid))
        self.driver.check(limits)
        if not self._is_there(uid):
            self.prepare(uid, Gid(uid))
        with self._alone(uid):
            self.driver.limit(uid, limits)
        noting = self.headroom(uid) if self.refuses_notes else contextlib.nullcontext()
        with self.realms.opened(uid) as fd, noting:
            said.write(fd, settings)

    def _set_default(self, settings: Settings) -> None:
        before = self.settings(None)
        self.driver.check(limits_of(Settings(), settings))
        said.write(self.realms.fd, settings)
        for account in self.accounts():
            own = self.settings(account.uid)
            was, will = limits_of(own, before), limits_of(own, settings)
            if self._default_of(account.uid) != settings or _of(was) == _of(will):
                continue
            if _of(account.limits) != _of(was):
                log.info("the limits of uid %d were not set by ckfs, and stay as they are", account.uid)
                continue
            with self._alone(account.uid):
                self.driver.limit(account.uid, will)


def _of(limits: Limits) -> tuple[Limit, Limit]:
    """What of *limits* an engine keeps for each owner."""
    return limits.bytes, limits.files
