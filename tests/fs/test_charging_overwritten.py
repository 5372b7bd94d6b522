"""Files that are overwritten on one mount in the very moment in which another one does something to them, too: what is charged in the end is
what is there."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from ckfs.errors import Stale
from ckfs.fs.keeping import Keeping
from ckfs.ledger.book import Book
from ckfs.model import State
from ckfs.names import Inode
from ckfs.policy.quota import Amount
from ckfs.store.door import Door
from ckfs.store.spots import Found, OpenFile, Spot, Target
from tests.fs.cores import Mount, charged
from tests.fs.test_charging import ENOUGH_S, SET, UNIT, settled
from tests.fs.test_charging_late_calls import until

pytestmark = [pytest.mark.root, pytest.mark.trio]

T = TypeVar("T")

ROUNDS = 4
"""Of two calls that are let go at once either may go on first."""


async def overwrite(mount: Mount, path: str) -> None:
    with contextlib.suppress(FileNotFoundError, Stale):
        await mount.alice.close(await mount.alice.open(path, os.O_WRONLY | os.O_TRUNC))


def is_wanted(mount: Mount, ino: Inode) -> bool:
    """Whether a call waits for the lock of *ino*."""
    lock = mount.core.locks._locks.get((ino, b""))
    return lock is not None and bool(lock.waiting)


class Held:
    """The first call of a method of the door has been made, and waits before it returns."""

    def __init__(self) -> None:
        self.has_come = threading.Event()
        self.may_go = threading.Event()

    def instead_of(
        self, real: Callable[..., T], then: Callable[..., None] = lambda *_: None
    ) -> Callable[..., T]:
        """What is called instead of *real*; *then* is done before it waits, with the target and what *real* returned."""

        def called(door: Door, target: Target, *args: Any, **named: Any) -> T:
            result = real(door, target, *args, **named)
            if not self.has_come.is_set():
                then(target, result)
                self.has_come.set()
                assert self.may_go.wait(ENOUGH_S)
            return result

        return called


def torn_by(other: Mount) -> Callable[[Target, Found], None]:
    """*other*, another mount, says that a file is torn."""

    def say(target: Target, found: Found) -> None:
        torn = found.record.with_(state=State.PARTIAL)
        other.core.store.door.amend(target, found.record.ino, lambda _: torn)

    return say


def removed_by(other: Mount) -> Callable[..., contextlib.AbstractContextManager[OpenFile]]:
    """What lets a new file take the place of a torn one: *other*, another mount, removes that at once."""
    renewed = Keeping._renewed

    @contextlib.contextmanager
    def removed(keeping: Keeping, spot: Spot, *args: Any, **named: Any) -> Iterator[OpenFile]:
        with renewed(keeping, spot, *args, **named) as new:
            other.core.store.door.unlink(spot)
            yield new

    return removed


@pytest.mark.plain_alone("what is open without a name is not counted on a network's store")
async def test_what_is_replaced_and_removed_while_somebody_opens_it_to_overwrite_it_is_free(
    store: Path, ledger: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He has emptied the file, and said that this mount writes it; and is told so only when all of that has happened."""
    async with charged(store, ledger) as mount, charged(store, ledger, node="b") as other:
        await mount.alice.mkdir(SET)
        for number in range(ROUNDS):
            path, emptied = f"{SET}/.image{number}", Held()
            await mount.alice.save(path, bytes(3 * UNIT))
            with monkeypatch.context() as patched:
                patched.setattr(Door, "update", emptied.instead_of(Door.update, torn_by(other)))
                patched.setattr(Keeping, "_renewed", removed_by(other))
                async with mount.alice.at(path) as ino, trio.open_nursery() as nursery:
                    nursery.start_soon(overwrite, mount, path)
                    await until(emptied.has_come.is_set)
                    nursery.start_soon(overwrite, mount, path)  # for whom it is replaced
                    await until(partial(is_wanted, mount, ino))
                    emptied.may_go.set()
            assert await settled(ledger, mount, other) == Amount(UNIT, 1)


async def test_who_opens_it_before_and_after_another_mount_has_overwritten_it_has_one_file_open(
    store: Path, ledger: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who came first is told so last."""
    async with charged(store, ledger) as mount, charged(store, ledger, node="b") as other:
        await mount.alice.mkdir(SET)
        await mount.alice.save(f"{SET}/image", bytes(3 * UNIT))
        opened, first = Held(), []

        async def open_first() -> None:
            first.append(await mount.alice.open(f"{SET}/image", os.O_WRONLY))

        async with trio.open_nursery() as nursery:
            with monkeypatch.context() as patched:
                patched.setattr(Door, "open_found", opened.instead_of(Door.open_found))
                nursery.start_soon(open_first)
                await until(opened.has_come.is_set)
            await overwrite(other, f"{SET}/image")
            second = await mount.alice.open(f"{SET}/image", os.O_WRONLY)
            opened.may_go.set()
        await mount.fs.content.write(first[0], 0, b"first")
        await mount.fs.content.write(second, 5, b" and second")
        for handle in (first[0], second):
            await mount.alice.close(handle)
        assert await other.alice.load(f"{SET}/image") == b"first and second"
        await settled(ledger, mount, other)
