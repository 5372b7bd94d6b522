"""Opening a ledger: in a file of this host, or in PostgreSQL."""

from __future__ import annotations

import os
from pathlib import Path

from ckfs.ledger import sqlite
from ckfs.ledger.book import Book


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
