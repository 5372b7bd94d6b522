"""On which mounts a limit does not hold yet, after it was said: those that keep more than it leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ckfs.fs import standing
from ckfs.fs.liveness import registration_here
from ckfs.fs.standing import Keepers
from ckfs.ledger import sqlite
from ckfs.ledger.book import Book
from ckfs.ledger.ledger import Posting
from ckfs.names import MountId, Uid
from ckfs.policy.quota import Amount, Said, Settings
from ckfs.store.layout import Store, open_store
from tests.fs.cores import STORE_ID, keeper_of

A, B, ALICE, BOB = MountId(b"a" * 16), MountId(b"b" * 16), Uid(2101), Uid(2102)
MIB = 1 << 20


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Book]:
    monkeypatch.setattr(standing, "GIVEN_BACK_WITHIN_S", 0.1)
    with closing(sqlite.create(os.fsencode(tmp_path / "ledger.sqlite"), STORE_ID)) as book:
        yield book


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    with closing(open_store(str(place), keeper_of(place))) as store:
        yield store


def grant(ledger: Book, mount: MountId, uid: Uid, size: int) -> None:
    assert ledger.draw(mount, uid, Amount(size), Amount(size)).total.bytes == size


def limit(ledger: Book, uid: Uid | None, hard: int) -> Keepers:
    ledger.set_limits(uid, Settings(hard_bytes=hard))
    return standing.kept_until_given_back(ledger, uid)


def by(*mounts: MountId) -> Keepers:
    return Keepers(granted=frozenset(mounts))


def test_it_does_not_hold_where_more_was_granted_before(ledger: Book) -> None:
    grant(ledger, A, ALICE, MIB)
    grant(ledger, B, ALICE, MIB)
    assert limit(ledger, ALICE, MIB) == by(A, B)
    ledger.answer(A, ALICE)
    assert standing.keeping(ledger, ALICE) == by(B)
    ledger.post(B, 1, [Posting(ALICE, given_up=Amount(MIB))])
    assert standing.keeping(ledger, ALICE) == by(), "what is left is within the limit"


def test_it_holds_at_once_where_nothing_or_less_was_granted(ledger: Book) -> None:
    assert limit(ledger, ALICE, MIB) == by()
    grant(ledger, A, ALICE, MIB)
    assert limit(ledger, ALICE, 2 * MIB) == by()


def test_what_is_said_of_one_does_not_wait_for_what_is_kept_for_another(ledger: Book) -> None:
    grant(ledger, A, ALICE, MIB)
    grant(ledger, A, BOB, MIB)
    assert limit(ledger, BOB, 0) == by(A)
    ledger.answer(A, BOB)
    ledger.recall(B, ALICE)
    assert standing.keeping(ledger, BOB) == by()


def test_what_is_said_of_all_others_waits_for_all_of_them(ledger: Book) -> None:
    grant(ledger, A, ALICE, MIB)
    grant(ledger, B, BOB, MIB)
    ledger.set_limits(BOB, Settings(hard_bytes=2 * MIB))
    assert limit(ledger, None, MIB // 2) == by(A)
    ledger.answer(A, ALICE)
    assert standing.keeping(ledger, None) == by()


def test_it_does_not_hold_where_the_kernel_writes_by_itself(ledger: Book) -> None:
    """However little that is so far: nothing stops it."""
    for mount, uid in ((A, ALICE), (B, BOB)):
        grant(ledger, mount, uid, 1)
        ledger.say_unseen(mount, uid, is_so=True)
    assert limit(ledger, ALICE, MIB) == Keepers(unseen=frozenset({A}))
    ledger.set_limits(ALICE, Settings(hard_bytes=Said.NONE, hard_files=1))
    assert standing.keeping(ledger, ALICE) == by(), "it makes no further files"
    assert limit(ledger, None, MIB) == Keepers(unseen=frozenset({B}))
    ledger.say_unseen(B, BOB, is_so=False)
    assert standing.keeping(ledger, None) == by()


def test_the_line_names_the_mounts(store: Store) -> None:
    assert standing.held_up(store.mounts, by()) == ""
    registration = registration_here(b"node\n7")
    store.mounts.register(registration)
    line = standing.held_up(store.mounts, by(registration.id, MountId(b"f" * 16)))
    assert line.isprintable()
    assert f"mount {registration.id.decode()} of node node" in line
    assert f"mount {'f' * 16}" in line
    line = standing.held_up(store.mounts, Keepers(unseen=frozenset({registration.id})))
    assert f"; not yet on mount {registration.id.decode()} of node node" in line
    assert "the kernel is writing" in line
