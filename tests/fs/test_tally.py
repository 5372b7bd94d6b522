"""What commands change in a store itself, and what its ledger says then."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from ckfs.cli import tally
from ckfs.cli.tally import Tally, counted_store
from ckfs.errors import CkfsError, LedgerDown
from ckfs.fs import ledgers
from ckfs.fs.ledgers import Host
from ckfs.ledger import opening, state
from ckfs.ledger.book import Book
from ckfs.ledger.ledger import Posting
from ckfs.model import Owner, Record
from ckfs.names import Gid, Inode, MountId, SetName, Uid
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store.counting import count
from ckfs.store.layout import Store, open_store
from ckfs.store.record import new_inode
from ckfs.store.removed import Note
from tests.fs.cores import keeper_of
from tests.support.nfs import on_server

pytestmark = pytest.mark.root

ALICE = Owner(Uid(2101), Gid(2101))
SET = SetName(b"dump")
SOON_S = 20.0


def on_host(path: str) -> Store:
    return open_store(path, keeper_of(Path(path)))


@pytest.fixture
def path(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store whose trash has two sets of Alice's, and a ledger that knows."""
    monkeypatch.setenv(state.VARIABLE, str(tmp_path / "state"))
    path = str(place)
    with contextlib.closing(on_host(path)) as store:
        for name in (SET, SetName(b"other")):
            _remove_set(store, name)
        host = Host.here(state.state_directory(None), "a")
        opened = ledgers.open_ledger(store, store.read_policy(), host, 10.0)
        assert opened is not None
        opened.close()
    assert used(path) == in_store(path) == Amount(8192, 2)
    return path


def _remove_set(store: Store, name: SetName) -> None:
    record = Record(new_inode(), ALICE.uid, ALICE.gid, stat.S_IFDIR | 0o755)
    store.names.take(
        name, ALICE, ALICE, record.ino, lambda spot: store.door.make_directory(spot, lambda _: record)
    )
    store.trash.put_set(
        name, record.ino, lambda _, found: Note(Uid(0), 1, b"", b"", name, b"", ALICE, found.record.ino)
    )


def ledger_of(path: str) -> Book:
    with contextlib.closing(on_host(path)) as store:
        kept = state.state_of_store(state.state_directory(None), store.id)
        return opening.embedded(kept.ledger, store.id, 10.0)


def used(path: str) -> Amount:
    with contextlib.closing(ledger_of(path)) as ledger:
        return ledger.account(ALICE.uid).used


def in_store(path: str) -> Amount:
    with contextlib.closing(on_host(path)) as store:
        return count(store, ALICE.uid, store.door.unit)


def purge_one(store: Store) -> None:
    store.trash.purge(next(iter(store.trash.items())))


def test_what_a_command_frees_is_posted(path: str) -> None:
    with counted_store(path) as store:
        purge_one(store)
    assert used(path) == in_store(path) == Amount(4096, 1)
    with contextlib.closing(ledger_of(path)) as ledger:
        assert ledger.mounts() == {}


def test_it_is_posted_while_the_command_goes_on(path: str) -> None:
    """So that a recount that runs at the same time notices."""
    with counted_store(path) as store:
        purge_one(store)
        deadline_s = time.monotonic() + SOON_S
        while used(path) != Amount(4096, 1):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        purge_one(store)
    assert used(path) == NOTHING


def test_it_is_posted_though_the_command_fails(path: str) -> None:
    def fail() -> None:
        with counted_store(path) as store:
            purge_one(store)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert used(path) == in_store(path) == Amount(4096, 1)


def test_a_store_that_no_mount_has_counted_yet_has_no_ledger(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with counted_store(str(place)) as store:
        assert store.door.unmetered is store.door
    assert capsys.readouterr().err == ""


def test_a_store_whose_policy_is_damaged_can_be_worked_on(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (on_server(Path(path)) / "policy.toml").write_text("[quota")
    with counted_store(path) as store:
        purge_one(store)
    assert "what changes is not posted" in capsys.readouterr().err


def test_a_ledger_that_is_missing_is_named(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(on_host(path)) as store:
        state.state_of_store(state.state_directory(None), store.id).ledger.unlink()
    with counted_store(path) as store:
        purge_one(store)
    assert "no ledger of its quotas on this host" in capsys.readouterr().err


def test_read_only_asks_no_ledger(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(state.VARIABLE, os.devnull)
    with counted_store(path, read_only=True) as store:
        assert store.read_only


class Failing:
    """A ledger that says of its first *failures* posts that it is away, of each after it has taken place."""

    def __init__(self, ledger: Book, failures: int) -> None:
        self.ledger = ledger
        self.failures = failures

    def post(self, mount: MountId, number: int, postings: Iterable[Posting]) -> None:
        self.ledger.post(mount, number, postings)
        if self.failures:
            self.failures -= 1
            raise LedgerDown("away")

    def end(self, mount: MountId) -> None:
        self.ledger.end(mount)


@pytest.fixture
def ledger(path: str) -> Iterator[Book]:
    with contextlib.closing(ledger_of(path)) as opened:
        yield opened


def test_what_may_have_been_posted_is_posted_again_and_counts_once(ledger: Book) -> None:
    counting = Tally(Failing(ledger, 2), lambda _: False)  # type: ignore[arg-type]  # a ledger, but for one call
    counting.begin()
    counting.gone(ALICE.uid, Inode(2), Amount(4096, 1))
    counting.end()
    assert ledger.account(ALICE.uid).used == Amount(4096, 1)


def test_a_ledger_that_stays_away_ends_with_a_line(ledger: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_LIMIT_S", 0.0)
    counting = Tally(Failing(ledger, 1000), lambda _: False)  # type: ignore[arg-type]  # a ledger, but for one call
    counting.changed(ALICE.uid, Inode(2), -4096)
    with pytest.raises(LedgerDown):
        counting.end()


def test_a_command_whose_ledger_goes_away_says_what_to_do(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_LIMIT_S", 0.0)

    def away(*_: object) -> None:
        raise LedgerDown("the server has gone")

    def purge() -> None:
        with counted_store(path) as store:
            monkeypatch.setattr(Book, "post", away)
            purge_one(store)

    with pytest.raises(CkfsError, match="the server has gone: 'ckfs quota check --repair'"):
        purge()
