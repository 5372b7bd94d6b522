"""Each test of the ledger runs on every database that can keep one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from ckfs.ledger import postgres, sqlite
from ckfs.ledger.book import Book
from tests.support.clocks import WallClock
from tests.support.postgres import (
    Server,
    pooled,
    running,
    skip_unless_installed,
    skip_unless_pooler_installed,
)

STORE = "7f0c1a52-5c6e-4f3b-9d6e-0a4c3f2b1d00"
TIMEOUT_S = 60.0
"""Nothing here is to take so long, however busy the machine is."""


@dataclass
class Where:
    """A new ledger. *open* may be called more than once, and in other processes (it can be pickled)."""

    open: Callable[[], Book]
    clock: WallClock = field(default_factory=WallClock)


@contextlib.contextmanager
def in_sqlite(directory: Path) -> Iterator[Where]:
    path, clock = os.fsencode(directory / "ledger.sqlite"), WallClock()
    sqlite.create(path, STORE, clock).close()
    yield Where(partial(sqlite.open_ledger, path, STORE, clock), clock)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A PostgreSQL of this test file's own."""
    skip_unless_installed()
    with running(connections=400) as started:  # the pooler keeps some for each test's database
        yield started


@contextlib.contextmanager
def in_postgres(server: Server) -> Iterator[Where]:
    connection, clock = server.new_database(f"ledger_{secrets.token_hex(4)}"), WallClock()
    yield Where(partial(postgres.open_ledger, connection, STORE, TIMEOUT_S, clock=clock), clock)


@pytest.fixture(scope="module")
def pooler(server: Server) -> Iterator[Callable[[str], str]]:
    """One before it, with fewer sessions than tests have connections."""
    skip_unless_pooler_installed()
    with pooled(server, sessions=3) as string_for:
        yield string_for


@contextlib.contextmanager
def in_pooled_postgres(server: Server, string_for: Callable[[str], str]) -> Iterator[Where]:
    """Each transaction may have another session."""
    name, clock = f"ledger_{secrets.token_hex(4)}", WallClock()
    server.new_database(name)
    yield Where(partial(postgres.open_ledger, string_for(name), STORE, TIMEOUT_S, clock=clock), clock)


@pytest.fixture(params=["sqlite", "postgres", "pooled"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Where]:
    match request.param:
        case "sqlite":
            made = in_sqlite(tmp_path)
        case "postgres":
            made = in_postgres(request.getfixturevalue("server"))
        case _:
            pooler = request.getfixturevalue("pooler")
            made = in_pooled_postgres(request.getfixturevalue("server"), pooler)
    with made as found:
        yield found


@pytest.fixture
def clock(where: Where) -> WallClock:
    return where.clock


@pytest.fixture
def ledger(where: Where) -> Iterator[Book]:
    """One whose sums add up in the end, whatever a test did."""
    book = where.open()
    yield book
    wrong = book.check()
    book.close()
    assert wrong == []
