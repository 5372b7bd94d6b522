"""The database stops, freezes, refuses or forgets its connections: calls end in time, and all is right again afterwards."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from ckfs.errors import LedgerDown, LedgerUnusable, StoreUnusable, UsageError
from ckfs.ledger import postgres, schema
from ckfs.ledger.book import Book
from ckfs.ledger.ledger import Posting
from ckfs.names import MountId, Uid
from ckfs.policy.quota import Amount, Settings
from tests.ledger.conftest import STORE, TIMEOUT_S
from tests.support.postgres import Server

A, B, ALICE = MountId(b"a" * 16), MountId(b"b" * 16), Uid(2101)
SOON_S = 0.3
"""How long a call waits that is to find the database away."""
OWN, NEW = schema.VERSION, schema.VERSION + 1
TOO_NEW = f"has version {NEW}, this ckfs knows versions up to {OWN}: update ckfs"
LATER = (*schema.STEPS, ("ALTER TABLE accounts ADD COLUMN nickname TEXT",))


@pytest.fixture
def connection(server: Server, request: pytest.FixtureRequest) -> str:
    """To a database of the test's own."""
    return server.new_database(f"away_{abs(hash(request.node.name)):x}")


@pytest.fixture
def patient(connection: str) -> Iterator[Book]:
    book = postgres.open_ledger(connection, STORE, TIMEOUT_S)
    yield book
    assert book.check() == []
    book.close()


@pytest.fixture
def impatient(connection: str, patient: Book) -> Iterator[Book]:
    book = postgres.open_ledger(connection, STORE, TIMEOUT_S)
    backend = book._backend._backend
    assert isinstance(backend, postgres.Postgres)
    backend._timeout_s = SOON_S
    yield book
    book.close()


def used(book: Book) -> int:
    return book.account(ALICE).used.bytes


CALLS: dict[str, Callable[[Book], object]] = {
    "draw": lambda book: book.draw(A, ALICE, Amount(10), Amount(10)),
    "post": lambda book: book.post(A, 1, [Posting(ALICE, Amount(10))]),
    "move": lambda book: book.move(ALICE, A, Uid(2102), Amount(1), [], 1),
    "account": lambda book: book.account(ALICE),
    "recalled": lambda book: book.recalled(A),
    "end": lambda book: book.end(A),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
def test_calls_while_the_database_is_away_end_in_time_and_work_again_afterwards(
    server: Server, impatient: Book, patient: Book, call: Callable[[Book], object], how: signal.Signals
) -> None:
    patient.post(B, 1, [Posting(ALICE, Amount(1000))])
    server.stop(how)
    try:
        for _ in range(2):
            began_s = time.monotonic()
            with pytest.raises(LedgerDown) as down:
                call(impatient)
            assert time.monotonic() - began_s < TIMEOUT_S / 2
            assert "\n" not in str(down.value)
    finally:
        server.start()
    call(patient)
    assert used(patient) in {0, 999, 1000, 1010}


def test_a_short_restart_is_noticed_by_nobody(server: Server, patient: Book) -> None:
    patient.post(A, 1, [Posting(ALICE, Amount(5))])
    server.stop()
    answers: list[int] = []
    waiting = threading.Thread(
        target=lambda: answers.append(patient.draw(A, ALICE, Amount(7), Amount(7)).total.bytes)
    )
    waiting.start()
    server.start()
    waiting.join(TIMEOUT_S)
    assert answers == [7]
    assert used(patient) == 5


def test_a_server_that_freezes_is_given_up_on_and_found_again(
    server: Server, impatient: Book, patient: Book
) -> None:
    patient.draw(A, ALICE, Amount(3), Amount(3))
    impatient.account(ALICE)  # it has a connection
    with server.frozen():
        for _ in range(2):  # with that, and with none
            began_s = time.monotonic()
            with pytest.raises(LedgerDown):
                impatient.draw(A, ALICE, Amount(10), Amount(10))
            assert time.monotonic() - began_s < TIMEOUT_S / 2
    assert patient.draw(A, ALICE, Amount(1), Amount(1)).total.bytes in {
        4,
        14,
    }  # whether it happened is unknown


def test_one_who_keeps_a_lock_is_waited_for_not_for_ever(
    connection: str, impatient: Book, patient: Book
) -> None:
    patient.post(A, 1, [Posting(ALICE, Amount(5))])
    with psycopg.connect(connection) as other:
        other.execute("SELECT 1 FROM ckfs.accounts WHERE uid = 2101 FOR UPDATE")
        with pytest.raises(LedgerDown):
            impatient.draw(A, ALICE, Amount(1), Amount(1))
        impatient.draw(A, Uid(2102), Amount(1), Amount(1))  # others do not wait
        assert used(impatient) == 5  # who reads does not wait, either
        other.rollback()
    assert patient.draw(A, ALICE, Amount(1), Amount(1)).total.bytes == 1


def test_connections_that_the_server_has_ended_are_made_anew(server: Server, patient: Book) -> None:
    for number in range(1, 4):
        patient.post(A, number, [Posting(ALICE, Amount(1))])
        server.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ckfs'")
    assert used(patient) == 3


def test_a_closed_ledger_says_so(connection: str) -> None:
    book = postgres.open_ledger(connection, STORE, TIMEOUT_S)
    book.close()
    with pytest.raises(LedgerDown, match=r"^the ledger is closed$"):
        book.account(ALICE)


def test_a_database_that_is_not_there_is_down() -> None:
    with pytest.raises(LedgerDown, match=r"^the ledger's database cannot be reached: .*No such file"):
        postgres.open_ledger("host=/nowhere dbname=x", STORE, 1.0)


# Several stores, several roles


def test_one_database_keeps_several_stores_apart(connection: str, patient: Book) -> None:
    other = postgres.open_ledger(connection, "another store", TIMEOUT_S)
    for book, number in ((patient, 5), (other, 7)):
        book.set_limits(ALICE, Settings(hard_bytes=100 * number))
        book.post(A, 1, [Posting(ALICE, Amount(number))])
        book.draw(A, ALICE, Amount(number), Amount(number))
    other.all_counted("its id")
    for book, number in ((patient, 5), (other, 7)):
        assert book.account(ALICE).total == Amount(2 * number)
        assert book.account(ALICE).limits.bytes.hard == 100 * number
        assert book.counted_as() == ("its id" if book is other else None)
    other.end(A)
    other.close()
    assert patient.mounts() == {A: {ALICE}}


def test_a_role_without_rights_is_refused_with_the_way_out(
    server: Server, connection: str, patient: Book
) -> None:
    server.run("CREATE ROLE guest LOGIN")
    with pytest.raises(StoreUnusable, match=r"refuses ckfs's role: permission denied for schema ckfs"):
        postgres.open_ledger(connection.replace("user=postgres", "user=guest"), STORE, TIMEOUT_S)


def test_a_role_that_owns_the_schema_needs_no_other_rights(server: Server, connection: str) -> None:
    server.run("CREATE ROLE keeper LOGIN")
    with psycopg.connect(connection, autocommit=True) as session:
        session.execute("CREATE SCHEMA ckfs AUTHORIZATION keeper")
    book = postgres.open_ledger(connection.replace("user=postgres", "user=keeper"), STORE, TIMEOUT_S)
    book.post(A, 1, [Posting(ALICE, Amount(5))])
    assert book.check() == []
    book.close()


def test_hosts_that_begin_with_an_empty_database_at_once_make_its_tables_once(connection: str) -> None:
    opened: list[Book] = []
    threads = [
        threading.Thread(target=lambda: opened.append(postgres.open_ledger(connection, STORE, TIMEOUT_S)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    for book in opened:
        assert book.check() == []
        book.close()


def test_tables_that_are_missing_are_damage(connection: str) -> None:
    book = postgres.open_ledger(connection, STORE, TIMEOUT_S)
    with psycopg.connect(connection, autocommit=True) as session:
        session.execute("DROP TABLE ckfs.grants")
    assert book.check() == ["the table ckfs.grants is missing from the ledger's database"]
    with pytest.raises(LedgerUnusable, match=r"is damaged: relation .*grants"):
        book.draw(A, ALICE, Amount(1), Amount(1))
    book.close()


# Versions


def test_an_older_version_is_upgraded_only_when_that_is_said(connection: str, patient: Book) -> None:
    patient.post(A, 1, [Posting(ALICE, Amount(5))])
    with pytest.raises(StoreUnusable, match=r'run "ckfs ledger upgrade STORE" \(the store with the id '):
        postgres.open_ledger(connection, STORE, TIMEOUT_S, LATER)
    assert postgres.upgrade(connection, STORE, TIMEOUT_S, LATER) == (OWN, NEW)
    assert postgres.upgrade(connection, STORE, TIMEOUT_S, LATER) == (NEW, NEW)
    book = postgres.open_ledger(connection, STORE, TIMEOUT_S, LATER)
    assert used(book) == 5
    book.close()
    with pytest.raises(StoreUnusable, match=TOO_NEW):
        postgres.open_ledger(connection, STORE, TIMEOUT_S)
    with pytest.raises(StoreUnusable, match=TOO_NEW):
        postgres.upgrade(connection, STORE, TIMEOUT_S)


def test_an_upgrade_that_fails_leaves_all_as_it_was(connection: str, patient: Book) -> None:
    with pytest.raises(LedgerUnusable):
        postgres.upgrade(connection, STORE, TIMEOUT_S, (*LATER, ("DROP TABLE there_is_none",)))
    assert postgres.upgrade(connection, STORE, TIMEOUT_S) == (OWN, OWN)


# Connection strings


@pytest.mark.parametrize(
    "text",
    [
        "host=db password=geheim",
        "postgresql://ckfs:geheim@db/ckfs",
        "postgresql://db/ckfs?password=geheim",
        "host=db sslpassword=geheim",
        "host=db password=''",
    ],
)
def test_a_password_in_a_connection_string_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"has a (ssl)?password in it.*put it into root's ~/\.pgpass"
    ) as refused:
        postgres.check_connection_string(text)
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "service=ckfs", "host=a,b dbname=ckfs", "postgresql://ckfs@db/ckfs"])
def test_connection_strings_of_libpq_are_taken(text: str) -> None:
    postgres.check_connection_string(text)


@pytest.mark.parametrize("text", ["geheim", "hots=db", "host=db password", "postgresql://[::1"])
def test_what_libpq_does_not_understand_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not one of libpq's") as refused:
        postgres.check_connection_string(text)
    assert "geheim" not in str(refused.value)
