"""The places in which the suites of the store run: a plain directory, and what behaves like NFS with root squashed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from ckfs.ledger import sqlite
from ckfs.ledger.book import Book
from tests.fs.cores import STORE_ID
from tests.fs.nfs_stores import new_place


@pytest.fixture(params=["plain", "nfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A new store."""
    with new_place(cast("str", request.param), tmp_path) as path:
        yield path


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
