"""A ledger in PostgreSQL, for the mounts of several hosts.

Its tables lie in a schema ``ckfs`` of the database; one database serves several stores. Transactions lock the accounts that they change.
One that got into the way of another is done again. So is one whose connection broke before it was committed, until its time is
over: a database that is away for a moment is noticed by nobody. If the connection breaks while it commits, nobody knows what happened,
and the caller is told LedgerDown.

The time is the database's, the same for all hosts. Statements whose results nobody waits for are sent together with what follows.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Mapping, Sequence

import psycopg
from psycopg import conninfo, errors, pq

from ckfs.errors import LedgerDown, LedgerUnusable, StoreUnusable, UsageError
from ckfs.ledger import schema
from ckfs.ledger.book import Book
from ckfs.ledger.connections import Connection, Connections, TooLate, one_line
from ckfs.ledger.transaction import Clock, Row, T, Transaction

_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED"
_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_NOW = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000000 AS BIGINT)"
_IN_THE_WAY = (errors.DeadlockDetected, errors.SerializationFailure)
_NOT_OURS = (
    errors.UndefinedTable,
    errors.UndefinedColumn,
    errors.UndefinedFunction,
    errors.InvalidSchemaName,
)
_ONE_AT_A_TIME = 0x636B6673  # "ckfs"
"""Of PostgreSQL's advisory locks: who makes or changes tables has it."""


def open_ledger(
    connection: str,
    store: str,
    timeout_s: float,
    steps: Sequence[schema.Step] = schema.STEPS,
    clock: Clock | None = None,
) -> Book:
    """The ledger of the store with the id *store*; every call ends within *timeout_s* seconds (to connect takes libpq up to 2).

    An empty database gets its tables. Raises UsageError for a bad connection string, LedgerDown, and StoreUnusable if the tables are of
    another version than this ckfs's, or the database does not let them be used. *clock* is the database's but in tests.
    """
    backend = _backend(connection, store, timeout_s, clock)
    try:
        backend.write(lambda tx: _take_up(tx, store, steps))
    except BaseException:
        backend.close()
        raise
    return Book(backend)


def upgrade(
    connection: str, store: str, timeout_s: float, steps: Sequence[schema.Step] = schema.STEPS
) -> tuple[int, int]:
    """Bring the tables, of all stores in the database, to this ckfs's version; the versions before and after. Raises as
    :func:`open_ledger`."""

    def work(tx: Transaction) -> tuple[int, int]:
        _find(tx, steps)
        tx.row("SELECT pg_advisory_xact_lock(:key)", key=_ONE_AT_A_TIME)
        before = schema.version_of(tx)
        schema.upgrade(tx, steps)
        return before, len(steps)

    backend = _backend(connection, store, timeout_s)
    try:
        return backend.write(work)
    finally:
        backend.close()


def check_connection_string(connection: str) -> None:
    """Raises UsageError for one that libpq does not understand, or that has a password in it."""
    try:
        given = conninfo.conninfo_to_dict(connection)
    except psycopg.ProgrammingError as error:
        # What it says may quote a part of the string, and that may be a password.
        raise UsageError(
            "the connection string of the ledger's database is not one of libpq's: key=value pairs, or postgresql://…"
        ) from error
    if secrets := sorted(given.keys() & {"password", "sslpassword"}):
        raise UsageError(
            f"the connection string of the ledger's database has a {secrets[0]} in it, which others can read there: "
            f"put it into root's ~/.pgpass, or a service file of root's"
        )


def _backend(connection: str, store: str, timeout_s: float, clock: Clock | None = None) -> Postgres:
    check_connection_string(connection)
    return Postgres(connection, store, timeout_s, clock)


def _take_up(tx: Transaction, store: str, steps: Sequence[schema.Step]) -> None:
    _find(tx, steps)
    version = schema.version_of(tx)
    schema.check_newer(version, steps)
    schema.check_older(version, store, steps)
    tx.run("INSERT INTO stores (store, counted_as) VALUES (:store, NULL) ON CONFLICT (store) DO NOTHING")


def _find(tx: Transaction, steps: Sequence[schema.Step]) -> None:
    """The tables, or make them."""
    if not _are_there(tx):
        _make(tx, steps)
    # Tables in a schema that one may not use are not refused, but as if they were not there.
    elif tx.row("SELECT 1 WHERE has_schema_privilege('ckfs', 'USAGE')") is None:
        raise _refused("permission denied for schema ckfs")


def _are_there(tx: Transaction) -> bool:
    """From the catalogue itself: to_regclass() would not hear, within a transaction, of what another one has just made."""
    return tx.row("SELECT 1 FROM pg_tables WHERE schemaname = 'ckfs' AND tablename = 'about'") is not None


def _make(tx: Transaction, steps: Sequence[schema.Step]) -> None:
    """Several hosts may begin to use a new database at once."""
    tx.row("SELECT pg_advisory_xact_lock(:key)", key=_ONE_AT_A_TIME)
    if _are_there(tx):
        return
    if tx.row("SELECT 1 FROM pg_namespace WHERE nspname = 'ckfs'") is None:
        tx.run("CREATE SCHEMA ckfs")
    schema.create(tx, steps)


@functools.cache
def _translated(sql: str) -> str:
    return re.sub(r"(?<![:\w]):(\w+)", r"%(\1)s", sql)


class _Transaction:
    def __init__(self, connection: Connection, store: str, clock: Clock | None) -> None:
        self._connection = connection
        self._store = store
        self._clock = clock

    def rows(self, sql: str, **values: object) -> list[Row]:
        return self._execute(sql, values).fetchall()

    def row(self, sql: str, **values: object) -> Row | None:
        return self._execute(sql, values).fetchone()

    def rows_of_each(self, sql: str, each: Sequence[Mapping[str, object]]) -> list[list[Row]]:
        cursors = [self._execute(sql, values) for values in each]
        return [cursor.fetchall() for cursor in cursors]

    def row_now(self, sql: str, **values: object) -> tuple[Row | None, int]:
        first, second = self._execute(sql, values), self._execute(_NOW, {})
        now = second.fetchone()
        assert now is not None
        return first.fetchone(), now[0] if self._clock is None else self._clock()

    def run(self, sql: str, **values: object) -> None:
        self._execute(sql, values)

    def _execute(self, sql: str, values: Mapping[str, object]) -> psycopg.Cursor[Row]:
        # S608 and psycopg's own types: ckfs's statements only, with values apart.
        return self._connection.execute(_translated(sql), {**values, "store": self._store})


class Postgres:
    """The database that *connection* leads to."""

    kind = "postgresql"

    def __init__(self, connection: str, store: str, timeout_s: float, clock: Clock | None) -> None:
        self._store = store
        self._clock = clock
        self._timeout_s = timeout_s
        self._connections = Connections(connection, timeout_s)

    def write(self, work: Callable[[Transaction], T]) -> T:
        return self._run(_WRITE, work)

    def read(self, work: Callable[[Transaction], T]) -> T:
        return self._run(_READ, work)

    def damage(self) -> list[str]:
        """PostgreSQL looks after its tables itself; here, that they are all there."""
        missing = self.read(
            lambda tx: [
                table
                for table in schema.TABLES
                if tx.row("SELECT 1 WHERE to_regclass(:table) IS NULL", table=f"ckfs.{table}") is not None
            ]
        )
        return [f"the table ckfs.{table} is missing from the ledger's database" for table in missing]

    def close(self) -> None:
        self._connections.close()

    def _run(self, begin: str, work: Callable[[Transaction], T]) -> T:
        until = time.monotonic() + self._timeout_s
        while True:
            attempt = _Attempt(begin)
            try:
                with self._connections.taken(until) as connection:
                    return attempt.of(work, connection, _Transaction(connection, self._store, self._clock))
            except TooLate as late:
                raise LedgerDown("the ledger's database does not answer in time") from late
            except _IN_THE_WAY as error:
                if time.monotonic() > until:
                    raise _error(error) from error
            except psycopg.Error as error:
                if not attempt.may_be_repeated or time.monotonic() > until:
                    raise _error(error) from error
                self._connections.drop()


class _Attempt:
    """One try at a transaction."""

    def __init__(self, begin: str) -> None:
        self._begin = begin
        self._is_committing = False
        self._is_broken = False

    @property
    def may_be_repeated(self) -> bool:
        """The connection broke, and nothing was committed."""
        return self._is_broken and not self._is_committing

    def of(self, work: Callable[[Transaction], T], connection: Connection, tx: Transaction) -> T:
        try:
            with connection.pipeline():
                connection.begin(self._begin)
                result = work(tx)
                self._is_committing = self._begin == _WRITE
                connection.execute("COMMIT")
            return result
        except psycopg.Error as error:
            # A server that is shut down, or may no more be written to, says so first.
            self._is_broken = connection.pgconn.status != pq.ConnStatus.OK or isinstance(
                error, errors.AdminShutdown | errors.ReadOnlySqlTransaction
            )
            raise


def _error(error: psycopg.Error) -> Exception:
    line = one_line(error)
    if isinstance(error, _NOT_OURS):
        return LedgerUnusable(f"the ledger's database is damaged: {line}")
    if isinstance(error, errors.InsufficientPrivilege):
        return _refused(line)
    return LedgerDown(f"the ledger's database: {line}")


def _refused(line: str) -> StoreUnusable:
    return StoreUnusable(
        f"the ledger's database refuses ckfs's role: {line}: make the role the owner of the schema ckfs (docs/quotas.md)"
    )
