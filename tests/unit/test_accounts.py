"""Names aside: nobody waits for the name service longer than the limit."""

from __future__ import annotations

import os
import pwd
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ckfs.model import Owner
from ckfs.names import Gid, Uid
from ckfs.owners import accounts as module
from ckfs.owners.accounts import Account, Accounts, is_user_name

ALICE = Account("alice", Uid(2101), Gid(2100))
ROOT = Account("root", Uid(0), Gid(0))


class Names:
    """A name service in memory that can be made to hang and to fail."""

    def __init__(self, *known: Account) -> None:
        self.known = list(known)
        self.asked: list[int | str] = []
        self.error: Exception | None = None
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()

    def _find(self, key: int | str) -> Account | None:
        self.asked.append(key)
        self.entered.set()
        self.free.wait()
        if self.error is not None:
            raise self.error
        return next((a for a in self.known if key in {a.uid, a.name}), None)

    def by_uid(self, uid: int) -> Account | None:
        return self._find(uid)

    def by_name(self, name: str) -> Account | None:
        return self._find(name)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def ended(accounts: Accounts) -> Iterator[Accounts]:
    """Ends the thread too, so that no test leaves one."""
    try:
        yield accounts
    finally:
        accounts.close()
        thread = accounts._thread
        if thread is not None:
            thread.join(10)
            assert not thread.is_alive()


def test_the_three_questions() -> None:
    with ended(Accounts(10, names=Names(ALICE))) as accounts:
        assert accounts.name_of(2101) == "alice"
        assert accounts.uid_of("alice") == 2101
        assert accounts.primary_gid_of(2101) == 2100
        assert accounts.owner_of_name("alice") == Owner(Uid(2101), Gid(2100))
        assert accounts.owner_of_uid(2101) == Owner(Uid(2101), Gid(2100))


def test_unknown() -> None:
    with ended(Accounts(10, names=Names())) as accounts:
        assert accounts.name_of(2101) is None
        assert accounts.uid_of("alice") is None
        assert accounts.primary_gid_of(2101) is None
        assert accounts.owner_of_name("alice") is None
        assert accounts.owner_of_uid(2101) is None


def test_root_owns_nothing() -> None:
    toor = Account("toor", Uid(0), Gid(0))
    with ended(Accounts(10, names=Names(ROOT, toor))) as accounts:
        assert accounts.name_of(0) == "root"
        assert accounts.owner_of_name("root") is None
        assert accounts.owner_of_name("toor") is None
        assert accounts.owner_of_uid(0) is None


@pytest.mark.parametrize(
    "name", ["", "-rf", "a b", "a:b", "a/b", "a\nb", "a\0b", "\u00e9mile", "a" * 257, "\x1b[0m"]
)
def test_what_cannot_be_a_name_is_not_asked(name: str) -> None:
    names = Names()
    with ended(Accounts(10, names=names)) as accounts:
        assert not is_user_name(name)
        assert accounts.uid_of(name) is None
        assert accounts.owner_of_name(name) is None
    assert names.asked == []


@pytest.mark.parametrize("name", ["alice", "a", "DOM\\alice", "alice@example.org", "a.b-c_d$", "1007"])
def test_what_can_be_a_name(name: str) -> None:
    assert is_user_name(name)


def test_answers_are_kept_for_their_time() -> None:
    names, clock = Names(ALICE), Clock()
    with ended(Accounts(10, ttl_s=300, miss_ttl_s=10, names=names, clock=clock)) as accounts:
        assert [accounts.uid_of("alice"), accounts.uid_of("bob")] == [2101, None]
        clock.now += 9.9
        assert [accounts.uid_of("alice"), accounts.uid_of("bob")] == [2101, None]
        assert names.asked == ["alice", "bob"]
        names.known.append(Account("bob", Uid(2102), Gid(2100)))
        clock.now += 0.1
        assert accounts.uid_of("bob") == 2102
        clock.now += 290
        assert accounts.uid_of("alice") == 2101
        assert names.asked == ["alice", "bob", "bob", "alice"]


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_CACHED", 3)
    with ended(Accounts(10, names=Names(ALICE))) as accounts:
        for uid in range(1, 10):
            accounts.name_of(uid)
        assert len(accounts._cache) == 3


def test_a_failure_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    names = Names(ALICE)
    with ended(Accounts(10, names=names)) as accounts:
        names.error = OSError(111, "refused")
        assert accounts.uid_of("alice") is None
        names.error = None
        assert accounts.uid_of("alice") == 2101
    assert len(caplog.records) == 1


def test_a_hanging_name_service_delays_one_question_only() -> None:
    names = Names(ALICE)
    with ended(Accounts(0.05, names=names)) as accounts:
        names.free.clear()
        assert accounts.uid_of("alice") is None
        # The thread hangs from here on: nobody waits any more, and nothing piles up for it.
        before = time.monotonic()
        assert [accounts.name_of(uid) for uid in range(1, 1001)] == [None] * 1000
        assert time.monotonic() - before < 0.05 * 1000 / 2
        assert names.asked == ["alice"]
        names.free.set()
        _idle(accounts)
        assert accounts.uid_of("alice") == 2101
        assert names.asked == ["alice"]  # the late answer was kept


def test_a_kept_answer_is_given_while_it_hangs() -> None:
    names = Names(ALICE)
    with ended(Accounts(0.05, names=names)) as accounts:
        accounts.uid_of("alice")
        _idle(accounts)
        names.free.clear()
        assert accounts.uid_of("bob") is None
        assert accounts.uid_of("alice") == 2101
        names.free.set()


def test_the_same_question_is_asked_once() -> None:
    names = Names(ALICE)
    with ended(Accounts(10, names=names)) as accounts:
        names.free.clear()
        found: list[Uid | None] = []
        askers = [threading.Thread(target=lambda: found.append(accounts.uid_of("alice"))) for _ in range(8)]
        for asker in askers:
            asker.start()
        assert names.entered.wait(10)
        names.free.set()
        for asker in askers:
            asker.join(10)
        assert found == [2101] * 8
        assert names.asked == ["alice"]


def test_a_service_that_answers_with_somebody_else() -> None:
    class Liar(Names):
        def by_uid(self, uid: int) -> Account | None:
            return ALICE

    with ended(Accounts(10, names=Liar())) as accounts:
        assert accounts.owner_of_uid(2102) is None


def test_the_host_s_own_users() -> None:
    me = pwd.getpwuid(os.getuid())
    with ended(Accounts(10)) as accounts:
        assert accounts.name_of(me.pw_uid) == me.pw_name
        assert accounts.uid_of(me.pw_name) == me.pw_uid
        assert accounts.primary_gid_of(me.pw_uid) == me.pw_gid
        assert accounts.uid_of("no-such-user-here") is None
        assert accounts.name_of(-5) is None
        assert accounts.name_of(2**40) is None


def _idle(accounts: Accounts) -> None:
    """Wait until the thread has done all that it was asked so far."""
    with accounts._lock:
        waiting = list(accounts._pending.values())
    for lookup in waiting:
        assert lookup.done.wait(10)


def test_no_thread_to_be_had_is_unknown_and_the_next_question_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with ended(Accounts(names=Names(ALICE))) as accounts:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", none_left)
            assert accounts.name_of(2101) is None
        assert accounts.name_of(2101) == "alice"
