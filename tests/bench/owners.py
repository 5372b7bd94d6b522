"""Owners whose room is counted in a store's ledger: without limits, far from one, and near it."""

from __future__ import annotations

import contextlib
import os
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

NONE, FREE, FAR, NEAR = "no ledger", "no limit", "far from it", "up to it"
"""Who writes: in a store in which nobody counts; an owner without limits; one with a limit far away; one who writes all that he
may have, to the last byte."""

_UNIT = 4096
_FAR = Settings(hard_bytes=TIB, hard_files=1 << 30)
_BALLAST = "ballast.tmp"

_POSTED_S = 0.3
"""A mount posts what happened a quarter of a second later at most."""
_QUIET_WITHIN_S = 30.0
_LEDGER_S = 10.0


@dataclass(frozen=True, slots=True)
class Owner:
    """Somebody of *uid*. *most* he may have, beside a directory and his ballast, if he writes up to his limit."""

    book: Book
    uid: Uid
    most: Amount

    def limit(self, how: str) -> None:
        """Let him be far from a limit, or near it. Before he has anything: who has is asked to give back what he does not need,
        and is granted no more than he needs for a while."""
        near = Settings(hard_bytes=self.most.bytes + _UNIT, hard_files=self.most.files + 2)
        self.book.set_limits(self.uid, {FAR: _FAR, NEAR: near}.get(how, Settings()))

    def until_quiet(self, rest: Amount) -> None:
        """Wait until everything is posted, and he has *rest*."""
        deadline = time.monotonic() + _QUIET_WITHIN_S
        while self.book.account(self.uid).used != rest:
            if time.monotonic() > deadline:
                raise RuntimeError(f"uid {self.uid}: {self.book.account(self.uid)} instead of {rest}")
            time.sleep(0.02)


def fill(directory: str, size: int) -> None:
    """Let *size* bytes be ballast, which brings their owner so much closer to his limit. As he."""
    with open(f"{directory}/{_BALLAST}", "wb") as file:
        file.writelines(bytes(min(MIB, size - at)) for at in range(0, size, MIB))


def clear(directory: str) -> None:
    """Remove everything in *directory* but the ballast. As the owner."""
    for name in os.listdir(directory):
        if name != _BALLAST:
            os.unlink(f"{directory}/{name}")


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
