"""Names of users, looked up aside with a time limit.

The name service may ask LDAP, and a call into it can hang for minutes and cannot be interrupted. So only one daemon
thread ever calls it. Whoever asks waits for that thread at most *timeout_s*; while a lookup is overdue everybody is
answered ``None`` at once, until it returns. ``None`` means unknown, never "no such user".
"""

from __future__ import annotations

import logging
import pwd
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ckfs.model import Owner
from ckfs.names import Gid, Uid
from ckfs.owners.resolver import owner_of_ids

log = logging.getLogger(__name__)

_MAX_NAME = 256
_NO_UID = 0xFFFFFFFF
_MAX_CACHED = 4096
"""Entries; a user who lists names must not grow the daemon."""


@dataclass(frozen=True, slots=True)
class Account:
    name: str
    uid: Uid
    gid: Gid


class NameService(Protocol):
    """What the daemon thread calls; ``None`` if there is no such account. May hang, may raise OSError."""

    def by_uid(self, uid: int) -> Account | None: ...
    def by_name(self, name: str) -> Account | None: ...


class SystemNames:
    """The host's name service (NSS): /etc/passwd, LDAP, SSSD, whatever the host is set up for."""

    def by_uid(self, uid: int) -> Account | None:
        try:
            return _account(pwd.getpwuid(uid))
        except KeyError:
            return None

    def by_name(self, name: str) -> Account | None:
        try:
            return _account(pwd.getpwnam(name))
        except KeyError:
            return None


def _account(entry: pwd.struct_passwd) -> Account:
    return Account(entry.pw_name, Uid(entry.pw_uid), Gid(entry.pw_gid))


def is_user_name(text: str) -> bool:
    """Whether *text* can name a user: printable ASCII without blanks, ``:`` and ``/``, and not like an option."""
    return (
        0 < len(text) <= _MAX_NAME
        and text.isascii()
        and not text.startswith("-")
        and all(c.isprintable() and c not in " :/" for c in text)
    )


def uid_in(text: str) -> Uid | None:
    """The uid that *text* writes in decimal; None if it is no number, or none that an account can have."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    return Uid(int(text)) if int(text) < _NO_UID else None


@dataclass(slots=True)
class _Lookup:
    key: int | str
    done: threading.Event = field(default_factory=threading.Event)
    found: Account | None = None


class Accounts:
    """Users by name and by number. Safe to call from any number of threads.

    *ttl_s* is how long an answer is kept, *miss_ttl_s* how long "no such account" is: short, since a new user's first
    job may come before the name service knows him.
    """

    def __init__(
        self,
        timeout_s: float = 2.0,
        ttl_s: float = 300.0,
        miss_ttl_s: float = 10.0,
        *,
        names: NameService | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout_s = timeout_s
        self._ttl_s = ttl_s
        self._miss_ttl_s = miss_ttl_s
        self._names = SystemNames() if names is None else names
        self._clock = clock
        self._lock = threading.Lock()
        self._cache: dict[int | str, tuple[float, Account | None]] = {}
        self._pending: dict[int | str, _Lookup] = {}
        self._overdue = False
        self._lookups: queue.SimpleQueue[_Lookup | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def name_of(self, uid: int) -> str | None:
        account = self._find(uid)
        return None if account is None else account.name

    def uid_of(self, name: str) -> Uid | None:
        account = self._by_name(name)
        return None if account is None else account.uid

    def primary_gid_of(self, uid: int) -> Gid | None:
        account = self._find(uid)
        return None if account is None else account.gid

    def owner_of_name(self, name: str) -> Owner | None:
        """The account *name* as an owner; ``None`` for root, as for a name that is unknown."""
        account = self._by_name(name)
        return None if account is None else owner_of_ids(account.uid, account.gid)

    def owner_of_uid(self, uid: int) -> Owner | None:
        """The account with the number *uid* as an owner, with its primary group."""
        account = self._find(uid)
        # A name service that answers with another number than it was asked for is not believed.
        return None if account is None or account.uid != uid else owner_of_ids(uid, account.gid)

    def close(self) -> None:
        """End the thread when it is idle. One that hangs in the name service is left behind; it is a daemon thread."""
        self._lookups.put(None)

    def _by_name(self, name: str) -> Account | None:
        return self._find(name) if is_user_name(name) else None

    def _find(self, key: int | str) -> Account | None:
        with self._lock:
            kept = self._cache.get(key)
            if kept is not None and self._clock() < kept[0]:
                return kept[1]
            if self._overdue:
                return None
            lookup = self._pending.get(key)
            if lookup is None:
                lookup = self._pending[key] = _Lookup(key)
                self._lookups.put(lookup)
            if not self._is_served():
                return None
        if lookup.done.wait(self._timeout_s):
            return lookup.found
        with self._lock:
            if not lookup.done.is_set() and not self._overdue:
                self._overdue = True
                log.warning(
                    "name service: no answer within %g s, names are unknown until it answers", self._timeout_s
                )
        return None

    def _is_served(self) -> bool:
        """Start the thread if there is none; False if none is to be had: whoever asks next tries again."""
        if self._thread is None:
            thread = threading.Thread(target=self._serve, name="ckfs-names", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                log.warning("name service: %s", error)
                return False
            self._thread = thread
        return True

    def _serve(self) -> None:
        while (lookup := self._lookups.get()) is not None:
            found, failed = self._ask(lookup.key)
            with self._lock:
                if not failed:
                    self._keep(lookup.key, found)
                if self._overdue:
                    log.warning("name service: answers again")
                self._overdue = False
                del self._pending[lookup.key]
                lookup.found = found
                lookup.done.set()

    def _ask(self, key: int | str) -> tuple[Account | None, bool]:
        try:
            found = self._names.by_uid(key) if isinstance(key, int) else self._names.by_name(key)
        except Exception as error:  # noqa: BLE001 - this thread serves everybody and must outlive any failure
            log.warning("name service: %r", error)
            return None, True
        return found, False

    def _keep(self, key: int | str, found: Account | None) -> None:
        self._cache.pop(key, None)
        while len(self._cache) >= _MAX_CACHED:
            del self._cache[next(iter(self._cache))]
        ttl_s = self._miss_ttl_s if found is None else self._ttl_s
        self._cache[key] = (self._clock() + ttl_s, found)
