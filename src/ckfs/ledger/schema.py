"""The tables of a ledger, and how those of an older ckfs become them.

The same in SQLite and PostgreSQL, where they lie in a schema (namespace) ``ckfs``. One database serves several stores, so that
each row says of which one it is; in SQLite's file there is one store only. Amounts are bytes and files, times ns since the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckfs.errors import StoreUnusable
from ckfs.ledger.transaction import Transaction

Step = Sequence[str]
"""Statements that bring a ledger from one version to the next."""

_FIRST: Step = (
    """
    CREATE TABLE stores (
        store          TEXT     NOT NULL PRIMARY KEY,  -- the store's id, from its ckfs.toml
        counted_as     TEXT                            -- by which id the store knows this ledger; NULL: what is in the store is not in it yet
    )
    """,
    """
    CREATE TABLE accounts (
        store          TEXT     NOT NULL,
        uid            BIGINT   NOT NULL,              -- the owner
        version        BIGINT   NOT NULL,              -- grows with whatever a recount would have to know
        used_bytes     BIGINT   NOT NULL,              -- what is at rest in the store, and files that are being written as they were before; for a moment less than nothing, if one mount has posted that something went and another has yet to post that it came, which is claimed meanwhile
        used_files     BIGINT   NOT NULL,
        claimed_bytes  BIGINT   NOT NULL,              -- the sum of his grants
        claimed_files  BIGINT   NOT NULL,
        over_bytes_s   DOUBLE PRECISION,               -- for how long the soft limit has been passed; NULL: it is not
        over_bytes_ns  BIGINT,                         -- until when that was added up
        over_files_s   DOUBLE PRECISION,
        over_files_ns  BIGINT,
        PRIMARY KEY (store, uid)
    )
    """,
    """
    CREATE TABLE limits (
        store          TEXT     NOT NULL,
        uid            BIGINT   NOT NULL,              -- an owner; -1: all of whom nothing else is said
        soft_bytes     BIGINT,                         -- a number; -1: no limit; NULL: what holds for all others
        hard_bytes     BIGINT,
        soft_files     BIGINT,
        hard_files     BIGINT,
        grace_s        BIGINT,
        PRIMARY KEY (store, uid)
    )
    """,
    """
    CREATE TABLE grants (
        store          TEXT     NOT NULL,
        uid            BIGINT   NOT NULL,              -- the owner whose room it is
        mount          TEXT     NOT NULL,              -- who may use it
        number         BIGINT   NOT NULL,              -- another one if the grant was taken back, and given anew
        bytes          BIGINT   NOT NULL,              -- granted and not given up yet; 0 stays, and tells whom the mount had to do with
        files          BIGINT   NOT NULL,
        recalled       SMALLINT NOT NULL,              -- 1: the mount is asked to give back what it does not need
        PRIMARY KEY (store, uid, mount)
    )
    """,
    "CREATE INDEX grants_of_mount ON grants (store, mount, recalled)",
    """
    CREATE TABLE open_files (
        store          TEXT     NOT NULL,
        ino            BIGINT   NOT NULL,              -- a file that is being written
        mount          TEXT     NOT NULL,              -- by whom
        uid            BIGINT   NOT NULL,              -- who is charged for it; the same in all rows of a file
        base_bytes     BIGINT   NOT NULL,              -- what it counts with in used; the same in all rows of a file
        base_files     BIGINT   NOT NULL,
        PRIMARY KEY (store, ino, mount)
    )
    """,
    "CREATE INDEX open_files_of_owner ON open_files (store, uid)",
    """
    CREATE TABLE posts (
        store          TEXT     NOT NULL,
        mount          TEXT     NOT NULL,
        number         BIGINT   NOT NULL,              -- of the mount's last posting that was taken up
        PRIMARY KEY (store, mount)
    )
    """,
    """
    CREATE TABLE moves (
        store          TEXT     NOT NULL,
        mount          TEXT     NOT NULL,
        number         BIGINT   NOT NULL,              -- of a handing over that was taken up: it is not taken up twice
        PRIMARY KEY (store, mount, number)
    )
    """,
)

_UNSEEN: Step = (
    """
    CREATE TABLE unseen (
        store          TEXT     NOT NULL,
        mount          TEXT     NOT NULL,              -- whose kernel writes something by itself
        uid            BIGINT   NOT NULL,              -- for this owner: no limit stops that before it is closed
        PRIMARY KEY (store, mount, uid)
    )
    """,
)

STEPS: Sequence[Step] = (_FIRST, _UNSEEN)
"""The first makes the tables; each further one brings those of the version before it to the next. Never changed, only added to."""
VERSION = len(STEPS)
TABLES = ("stores", "accounts", "limits", "grants", "open_files", "posts", "moves", "unseen")
_ABOUT = "CREATE TABLE about (version BIGINT NOT NULL)  -- of these tables; one row"


def create(tx: Transaction, steps: Sequence[Step] = STEPS) -> None:
    """Make the tables of an empty database."""
    tx.run(_ABOUT)
    tx.run("INSERT INTO about (version) VALUES (0)")
    upgrade(tx, steps)


def version_of(tx: Transaction) -> int:
    """The version of tables that are there."""
    row = tx.row("SELECT version FROM about")
    return 0 if row is None else int(row[0])


def upgrade(tx: Transaction, steps: Sequence[Step] = STEPS) -> None:
    """Bring the tables to the newest version; all of it happens, or nothing. Raises as :func:`check_newer`."""
    version = version_of(tx)
    check_newer(version, steps)
    for statements in steps[version:]:
        for statement in statements:
            tx.run(statement)
    if version < len(steps):
        tx.run("UPDATE about SET version = :version", version=len(steps))


def check_newer(version: int, steps: Sequence[Step] = STEPS) -> None:
    """Raises StoreUnusable if the tables are of a version that this ckfs does not know."""
    if version > len(steps):
        raise StoreUnusable(
            f"the ledger of quotas has version {version}, this ckfs knows versions up to {len(steps)}: update ckfs on this host"
        )


def check_older(version: int, store: str, steps: Sequence[Step] = STEPS) -> None:
    """Raises StoreUnusable if the tables are of an older version, and other hosts' ckfs may be using them."""
    if version < len(steps):
        raise StoreUnusable(
            f"the ledger of quotas has version {version}, this ckfs needs version {len(steps)}: once ckfs is updated on all hosts, "
            f'run "ckfs ledger upgrade STORE" (the store with the id {store})'
        )
