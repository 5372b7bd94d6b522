"""Fixtures of tests of the file system in process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckfs.ledger import sqlite
from ckfs.ledger.book import Book
from tests.fs.cores import STORE_ID, new_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where a new store is."""
    return new_store(tmp_path)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Book]:
    book = sqlite.create(os.fsencode(tmp_path / "ledger.sqlite"), STORE_ID)
    yield book
    book.close()
