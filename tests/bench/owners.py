"""Owners whose room is counted in a store's ledger: without limits, far from one, and near it."""

from __future__ import annotations

import contextlib
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckfs.ledger import opening, state
from ckfs.ledger.book import Book
from ckfs.names import Uid
from ckfs.policy.quota import Amount, Settings
from tests.support.mounting import state_directory

MIB, TIB = 1 << 20, 1 << 40

NONE, FREE, FAR, NEAR = "no ledger", "no limit", "far from it", "near it"
"""Who writes: in a store in which nobody counts; an owner without limits; one with a limit far away; one close to his."""

NEAR_BYTES, NEAR_FILES = 60 * MIB, 240
"""What is free near a limit: with less than 64 MiB, or 256 files, nothing is granted beyond what a call needs."""
_FAR = Settings(hard_bytes=TIB, hard_files=1 << 30)

_POSTED_S = 0.3
"""A mount posts what happened a quarter of a second later at most."""
_QUIET_WITHIN_S = 30.0
_LEDGER_S = 10.0


@dataclass(frozen=True, slots=True)
class Owner:
    """Somebody of *uid*, who has that much in the store when nothing is going on."""

    book: Book
    uid: Uid

    def limit(self, how: str) -> None:
        """Let him be without limits, far from one, or near it, as things are now."""
        self.book.set_limits(self.uid, self._settings(how))

    def _settings(self, how: str) -> Settings:
        if how != NEAR:
            return _FAR if how == FAR else Settings()
        used = self.book.account(self.uid).used
        return Settings(hard_bytes=used.bytes + NEAR_BYTES, hard_files=used.files + NEAR_FILES)

    def until_quiet(self, rest: Amount) -> None:
        """Wait until everything is posted, and he has *rest*."""
        deadline = time.monotonic() + _QUIET_WITHIN_S
        while self.book.account(self.uid).used != rest or self.book.basis(self.uid).files:
            if time.monotonic() > deadline:
                raise RuntimeError(f"uid {self.uid}: {self.book.account(self.uid)} instead of {rest}")
            time.sleep(0.02)


def let_post() -> None:
    """What is still to be posted is, so that it is no burden for whoever is measured next."""
    time.sleep(_POSTED_S)


def file_of_ledger(store: Path) -> Path:
    """The file in which this host's mounts of *store* count."""
    return state.state_of_store(state_directory(), _id_of(store)).ledger


@contextmanager
def book_of(store: Path, connection: str | None = None) -> Iterator[Book]:
    """The ledger of *store*, which is mounted: in the database that *connection* leads to, or in a file of this host."""
    if connection is None:
        book = opening.embedded(file_of_ledger(store), _id_of(store), _LEDGER_S)
    else:
        book = opening.database(connection, _id_of(store), _LEDGER_S)
    with contextlib.closing(book):
        yield book


def _id_of(store: Path) -> str:
    return str(tomllib.loads((store / "ckfs.toml").read_text("utf-8"))["id"])
