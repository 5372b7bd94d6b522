"""Opening a ledger: in a file of this host, or in PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ckfs.errors import LedgerDown
from ckfs.ledger import sqlite
from ckfs.ledger.book import Book

if TYPE_CHECKING:
    from ckfs.ledger.connections import Connection

_BETWEEN_TRIES_S = 0.2
_SAY_AFTER_S = 2.0
_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))"
"""Until the transaction ends: one session is ours for so long, also where there is a pooler."""


def embedded(path: Path, store_id: str, limit_s: float) -> Book:
    """The ledger of the store in the file *path*, a new one if there is none. Raises LedgerUnusable if it is damaged,
    StoreUnusable if it is of a newer version, LedgerDown if other processes keep it locked for longer than *limit_s*."""
    where = os.fsencode(path)
    try:
        return sqlite.open_ledger(where, store_id, busy_s=limit_s)
    except FileNotFoundError:
        return sqlite.create(where, store_id, busy_s=limit_s)


def database(connection: str, store_id: str, limit_s: float) -> Book:
    """The ledger of the store in the database that *connection* leads to. LedgerDown if that does not answer within *limit_s*."""
    from ckfs.ledger import postgres  # psycopg loads libpq: only where it is used

    return postgres.open_ledger(connection, store_id, limit_s)


def upgrade_database(connection: str, store_id: str, limit_s: float) -> tuple[int, int]:
    """Bring the ledger's tables there to the version that this ckfs knows; the versions before and after. Raises as
    :func:`database`."""
    from ckfs.ledger import postgres

    return postgres.upgrade(connection, store_id, limit_s)


@contextlib.contextmanager
def database_locked(
    connection: str, store_id: str, limit_s: float, waiting: Callable[[], None]
) -> Iterator[None]:
    """Alone among all hosts, until the block ends or the process does. *waiting* is told, once, if that takes time. LedgerDown if
    the database does not answer within *limit_s*."""
    from ckfs.ledger.connections import Connections

    connections = Connections(connection, limit_s)
    try:
        began_s, said = time.monotonic(), False
        with connections.taken(began_s + limit_s) as session:
            session.limit_ms = 0  # the transaction is open for as long as everything is counted
            while not _try_lock(session, store_id, limit_s):
                if not said and time.monotonic() - began_s > _SAY_AFTER_S:
                    said = True
                    waiting()
                time.sleep(_BETWEEN_TRIES_S)
            yield
    finally:
        connections.close()


def _try_lock(session: Connection, store_id: str, limit_s: float) -> bool:
    import psycopg

    from ckfs.ledger.connections import TooLate, one_line

    session.until = time.monotonic() + limit_s
    try:
        session.begin("BEGIN")
        has_it = session.execute(_LOCK, (f"ckfs {store_id}",)).fetchone() == (True,)
        if not has_it:
            session.execute(
                "ROLLBACK"
            )  # who waits must not have a pooler's session, which who has the lock may need
        return has_it
    except (psycopg.Error, TooLate) as error:
        raise LedgerDown(f"the ledger's database: {one_line(error)}") from None
