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

ON_NFS = {
    "desk",
    "digests",
    "further_stores",
    "listing",
    "moving_between_stores",
    "names",
    "other_mounts",
    "states",
    "trash",
    "ways_around_protection",
}
"""The suites that run there too. Those of what is charged do not: on a store of a network that is not exact (docs/quotas.md)."""

ON_NFS_ALONE = {"listing_of_copies"}
"""Those about what happens there alone."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        about = metafunc.module.__name__.rpartition("test_")[2]
        places = ["nfs"] if about in ON_NFS_ALONE else ["plain", "nfs"] if about in ON_NFS else ["plain"]
        metafunc.parametrize("place", places, indirect=True)


@pytest.fixture
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
