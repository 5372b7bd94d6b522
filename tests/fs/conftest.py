"""The places in which the suites of the store run: a plain directory, and what behaves like NFS with root squashed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckfs.ledger import sqlite
from ckfs.ledger.book import Book
from tests.fs.cores import STORE_ID
from tests.fs.places import run_on

ON_NFS_ALONE = {"listing_of_copies"}
"""About what happens there alone."""

PLAIN_ALONE = {
    "charging_late_calls": "it takes a store that answers within a tenth of a second on a loaded machine",
    "charging_open_elsewhere": "what is open without a name is not counted on a network's store (docs/quotas.md)",
    "files_of_all_mounts": "the same, and what two mounts take away in the same instant may count twice (docs/quotas.md)",
}
"""Suites that do not run on what behaves like NFS, and why; single tests say so with the mark ``plain_alone``. ``figures`` has no
store, and ``late_errors`` is about NFS, and makes stores of its own."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    about = metafunc.module.__name__.rpartition("test_")[2]
    if about in ON_NFS_ALONE:
        run_on(metafunc, "nfs")
    elif about in PLAIN_ALONE:
        run_on(metafunc, "plain")
    else:
        run_on(metafunc, "plain", "nfs")


@pytest.fixture
def store(place: Path) -> Path:
    """As ``place``."""
    return place


@pytest.fixture
def path(place: Path) -> Path:
    """As ``place``."""
    return place


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Book]:
    book = sqlite.create(os.fsencode(tmp_path / "ledger.sqlite"), STORE_ID)
    yield book
    book.close()
