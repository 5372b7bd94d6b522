"""The file of an embedded ledger: made, opened, upgraded, refused, found damaged."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ckfs.errors import LedgerDown, LedgerUnusable, StoreUnusable
from ckfs.ledger import schema, sqlite
from ckfs.ledger.ledger import Opened, Posting
from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import Amount, Settings
from tests.ledger.conftest import STORE

A, ALICE = MountId(b"a" * 16), Uid(2101)
LATER = (
    *schema.STEPS,
    ("ALTER TABLE accounts ADD COLUMN nickname TEXT", "UPDATE accounts SET nickname = 'x'"),
)


@pytest.fixture
def path(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path / "ledger.sqlite")


@pytest.fixture
def filled(path: bytes) -> bytes:
    book = sqlite.create(path, STORE)
    for uid in range(2000, 2200):
        book.draw(A, Uid(uid), Amount(5), Amount(5), [Opened(Inode(uid), Amount(1, 1))])
    book.post(A, 1, [Posting(ALICE, Amount(10, 1))])
    book.set_limits(ALICE, Settings(hard_bytes=20))
    book.close()
    return path


def test_what_one_has_written_the_next_reads(filled: bytes) -> None:
    book = sqlite.open_ledger(filled, STORE)
    assert book.account(ALICE).used == Amount(10, 1)
    assert book.draw(A, ALICE, Amount(100), Amount(100)).total == Amount(10)
    assert book.check() == []
    book.close()


def test_the_file_is_its_maker_s_alone_and_never_made_over_another(path: bytes) -> None:
    sqlite.create(path, STORE).close()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with pytest.raises(FileExistsError):
        sqlite.create(path, STORE)


def test_one_that_is_missing_is_not_made_by_the_way(path: bytes) -> None:
    with pytest.raises(FileNotFoundError):
        sqlite.open_ledger(path, STORE)
    assert not os.path.exists(path)


def test_the_ledger_of_another_store_is_refused(filled: bytes) -> None:
    with pytest.raises(LedgerUnusable, match=r"is not the ledger of the store other$"):
        sqlite.open_ledger(filled, "other")


def garbage(path: bytes) -> None:
    Path(os.fsdecode(path)).write_bytes(b"no data base, but long enough to be one\n" * 1000)


def empty(path: bytes) -> None:
    Path(os.fsdecode(path)).write_bytes(b"")


def foreign(path: bytes) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()


@pytest.mark.parametrize("make", [garbage, empty, foreign])
def test_what_is_no_ledger_is_refused_with_one_line(path: bytes, make: Callable[[bytes], None]) -> None:
    make(path)
    with pytest.raises(LedgerUnusable) as refused:
        sqlite.open_ledger(path, STORE)
    assert os.fsdecode(path) in str(refused.value)
    assert "\n" not in str(refused.value)


PAGE = 4096


def overwrite(path: bytes, first_page: int, last_page: int) -> None:
    """Pages count from 1, of which the first is the header and the list of tables, the second says the version."""
    with open(path, "r+b") as file:
        file.seek((first_page - 1) * PAGE)
        file.write(b"\xff" * (last_page + 1 - first_page) * PAGE)


def pages_of(path: bytes, table: str) -> int:
    connection = sqlite3.connect(path)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    connection.close()
    return int(page)


def test_a_damaged_file_is_refused(filled: bytes) -> None:
    overwrite(filled, 3, os.stat(filled).st_size // PAGE)
    with pytest.raises(LedgerUnusable, match=r"is damaged: database disk image is malformed$"):
        sqlite.open_ledger(filled, STORE)


def test_damage_is_found_by_calls_and_by_check(filled: bytes) -> None:
    page = pages_of(filled, "grants")
    overwrite(filled, page, page)
    book = sqlite.open_ledger(filled, STORE)
    with pytest.raises(LedgerUnusable, match=r"is damaged: database disk image is malformed$"):
        book.draw(A, ALICE, Amount(1), Amount(1))
    lines = book.check()
    assert lines
    assert all(os.fsdecode(filled) in line and "\n" not in line for line in lines)
    book.close()


def test_a_table_that_is_missing_is_damage(filled: bytes) -> None:
    connection = sqlite3.connect(filled)
    connection.execute("DROP TABLE grants")
    connection.close()
    book = sqlite.open_ledger(filled, STORE)
    with pytest.raises(LedgerUnusable, match=r"is damaged: no such table: grants$"):
        book.draw(A, ALICE, Amount(1), Amount(1))
    book.close()


def test_check_names_every_sum_that_does_not_add_up(filled: bytes) -> None:
    connection = sqlite3.connect(filled)
    with connection:
        connection.execute("UPDATE accounts SET claimed_bytes = 6 WHERE uid = 2151")
        connection.execute("UPDATE limits SET hard_bytes = -2")
        connection.execute("DELETE FROM accounts WHERE uid = 2152")
        connection.execute("DELETE FROM grants WHERE uid = 2153")
        connection.execute("UPDATE accounts SET claimed_bytes = 0 WHERE uid = 2153")
        connection.execute(
            "INSERT INTO open_files SELECT store, ino, 'bbbbbbbbbbbbbbbb', 2101, 9, 1 FROM open_files WHERE ino = 2154"
        )
    connection.close()
    book = sqlite.open_ledger(filled, STORE)
    assert [line.removesuffix('; "ckfs quota check --repair" counts anew') for line in book.check()] == [
        "a limit of uid 2101 (-1: of all others) is less than nothing",
        "for uid 2151 6 bytes and 0 files are claimed, but mounts have grants of 5 bytes and 0 files",
        "mounts have grants for uid 2152, who has no account",
        "the mount bbbbbbbbbbbbbbbb writes files of uid 2101 (1), but has no grant for him",
        "the mount aaaaaaaaaaaaaaaa writes files of uid 2153 (1), but has no grant for him",
        "the file with the inode number 2154 counts differently for the mounts that write it",
    ]
    book.close()


# Versions


def test_an_older_version_is_upgraded_when_it_is_opened(filled: bytes) -> None:
    book = sqlite.open_ledger(filled, STORE, steps=LATER)
    assert book.account(ALICE).used == Amount(10, 1)
    book.close()
    connection = sqlite3.connect(filled)
    assert connection.execute("SELECT version FROM about").fetchall() == [(schema.VERSION + 1,)]
    assert connection.execute("SELECT DISTINCT nickname FROM accounts").fetchall() == [("x",)]
    connection.close()


def test_an_upgrade_that_fails_leaves_all_as_it_was(filled: bytes) -> None:
    broken = (*LATER, ("DROP TABLE there_is_none",))
    with pytest.raises(LedgerUnusable):
        sqlite.open_ledger(filled, STORE, steps=broken)
    book = sqlite.open_ledger(filled, STORE)
    assert book.account(ALICE).used == Amount(10, 1)
    book.close()


def test_a_newer_version_is_refused_with_the_way_out(filled: bytes) -> None:
    sqlite.open_ledger(filled, STORE, steps=LATER).close()
    new, own = schema.VERSION + 1, schema.VERSION
    with pytest.raises(
        StoreUnusable, match=f"has version {new}, this ckfs knows versions up to {own}: update ckfs"
    ):
        sqlite.open_ledger(filled, STORE)


# Other processes


def test_one_who_keeps_the_file_locked_is_waited_for_not_for_ever(filled: bytes) -> None:
    book = sqlite.open_ledger(filled, STORE, busy_s=0.05)
    other = sqlite3.connect(filled, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerDown, match=r"is kept locked by another process$"):
        book.draw(A, ALICE, Amount(1), Amount(1))
    assert book.account(ALICE).used == Amount(10, 1)  # reading goes on
    other.execute("ROLLBACK")
    assert book.draw(A, ALICE, Amount(1), Amount(1)).total == Amount(6)
    book.close()
    other.close()
