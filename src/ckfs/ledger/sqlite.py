"""A ledger in a file of SQLite, for the mounts of one host. Nothing needs to be set up.

One connection serves all threads of a process, in turn: a transaction takes some dozen microseconds. Between processes the file
is locked; who finds it locked asks again soon, since SQLite itself would sleep far too long. A commit survives kill -9
(``synchronous=NORMAL``); after a loss of power the last ones may be missing, but never parts of one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from ckfs.errors import LedgerDown, LedgerUnusable
from ckfs.ledger import schema
from ckfs.ledger.book import Book
from ckfs.ledger.transaction import Clock, Row, T, Transaction
from ckfs.names import shown

BUSY_S = 10.0
"""How long other processes may keep the file locked."""
_ASK_AGAIN_S = 0.0005
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_PRIMARY = 0xFF
"""Of an error code of SQLite's: which kind it is of."""
_SETUP = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = NORMAL", "PRAGMA trusted_schema = OFF")


def create(path: bytes, store: str, clock: Clock = time.time_ns, busy_s: float = BUSY_S) -> Book:
    """A new ledger at *path*, where nothing is yet, for the store with the id *store*. Raises FileExistsError."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    backend = Sqlite(path, store, clock, busy_s)
    try:
        backend.write(_make)
    except BaseException:
        backend.close()
        raise
    return Book(backend)


def open_ledger(
    path: bytes,
    store: str,
    clock: Clock = time.time_ns,
    busy_s: float = BUSY_S,
    steps: Sequence[schema.Step] = schema.STEPS,
) -> Book:
    """The ledger at *path*; one of an older version is upgraded. Raises FileNotFoundError, LedgerUnusable if it is damaged or
    not the ledger of *store*, StoreUnusable if it is of a newer version."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{shown(path)} does not exist")
    backend = Sqlite(path, store, clock, busy_s)
    try:
        backend.write(lambda tx: _take_up(tx, store, path, steps))
    except BaseException:
        backend.close()
        raise
    return Book(backend)


def _make(tx: Transaction) -> None:
    schema.create(tx)
    tx.run("INSERT INTO stores (store, counted_as) VALUES (:store, NULL)")


def _take_up(tx: Transaction, store: str, path: bytes, steps: Sequence[schema.Step]) -> None:
    if tx.row("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'about'") is None:
        raise LedgerUnusable(f"{shown(path)} is no ledger of ckfs")
    schema.upgrade(tx, steps)
    if tx.row("SELECT 1 FROM stores WHERE store = :store") is None:
        raise LedgerUnusable(f"{shown(path)} is not the ledger of the store {shown(store)}")


@functools.cache
def _translated(sql: str) -> str:
    """There is one writer at a time: rows need not be locked."""
    return sql.removesuffix(" FOR UPDATE")


class _Transaction:
    def __init__(self, connection: sqlite3.Connection, store: str, clock: Clock) -> None:
        self._connection = connection
        self._store = store
        self._clock = clock

    def rows(self, sql: str, **values: object) -> list[Row]:
        return self._execute(sql, values).fetchall()

    def row(self, sql: str, **values: object) -> Row | None:
        row: Row | None = self._execute(sql, values).fetchone()
        return row

    def rows_of_each(self, sql: str, each: Sequence[Mapping[str, object]]) -> list[list[Row]]:
        return [self.rows(sql, **values) for values in each]

    def row_now(self, sql: str, **values: object) -> tuple[Row | None, int]:
        return self.row(sql, **values), self._clock()

    def run(self, sql: str, **values: object) -> None:
        self._execute(sql, values)

    def _execute(self, sql: str, values: dict[str, object]) -> sqlite3.Cursor:
        values["store"] = self._store
        return self._connection.execute(_translated(sql), values)


class Sqlite:
    """The file *path*, which is there."""

    kind = "sqlite"

    def __init__(self, path: bytes, store: str, clock: Clock, busy_s: float) -> None:
        self._path = path
        self._store = store
        self._clock = clock
        self._busy_s = busy_s
        self._lock = threading.Lock()
        with self._named():
            self._connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
            try:
                for pragma in _SETUP:
                    self._until_free(lambda pragma=pragma: self._connection.execute(pragma))  # type: ignore[misc]  # a default binds it
            except BaseException:
                self._connection.close()
                raise

    def write(self, work: Callable[[Transaction], T]) -> T:
        return self._run("BEGIN IMMEDIATE", work)

    def read(self, work: Callable[[Transaction], T]) -> T:
        return self._run("BEGIN", work)

    def damage(self) -> list[str]:
        try:
            lines = self.read(lambda tx: [str(line) for (line,) in tx.rows("PRAGMA quick_check")])
        except LedgerUnusable as unusable:
            return [str(unusable)]
        return [] if lines == ["ok"] else [f"{shown(self._path)}: {shown(line)}" for line in lines]

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _run(self, begin: str, work: Callable[[Transaction], T]) -> T:
        def once() -> T:
            self._connection.execute(begin)
            try:
                result = work(_Transaction(self._connection, self._store, self._clock))
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # some errors of SQLite's have ended it already
                    self._connection.execute("ROLLBACK")
                raise
            return result

        with self._named(), self._lock:
            return self._until_free(once)

    def _until_free(self, once: Callable[[], T]) -> T:
        """Whether the file is locked shows before anything is changed, or all that was is taken back."""
        deadline = time.monotonic() + self._busy_s
        while True:
            try:
                return once()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & _PRIMARY not in _BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(_ASK_AGAIN_S * (0.5 + random.random()))  # noqa: S311 - so that two do not ask in step

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of SQLite's as ckfs's own."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._error(error) from error

    def _error(self, error: sqlite3.Error) -> Exception:
        code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY
        if code in _BUSY:
            return LedgerDown(f"the ledger {shown(self._path)} is kept locked by another process")
        # Tables that are missing, or values that no ckfs has put there: not to be mended by waiting.
        if code in _DAMAGED or code == sqlite3.SQLITE_ERROR:
            return LedgerUnusable(f"the ledger {shown(self._path)} is damaged: {shown(str(error))}")
        return LedgerDown(f"the ledger {shown(self._path)}: {shown(str(error))}")
