"""What the store makes after its caller was answered: it is claimed until then, and counts from then on."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from ckfs.errors import StoreDown
from ckfs.fs import content, sessions
from ckfs.ledger.book import Book
from ckfs.model import State
from ckfs.names import Uid
from ckfs.policy.quota import Amount
from ckfs.store import shares
from ckfs.store.charges import look_again
from ckfs.store.door import Door
from tests.fs.cores import ALICE, Mount, charged, charging_of, lies_at
from tests.fs.test_charging import ENOUGH_S, SET, UNIT, limit, settled

pytestmark = [pytest.mark.root, pytest.mark.trio]

OVER = os.strerror(errno.EDQUOT)
TIMEOUT_S = 1.0


class Slow:
    """A store that is slow in one call, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.go = threading.Event()

    def in_call(self, name: str, *, fails: bool = False) -> None:
        real, is_slow = getattr(Door, name), threading.Lock()

        def call(door: Door, *args: object, **named: object) -> object:
            if is_slow.acquire(blocking=False):
                assert self.go.wait(ENOUGH_S)
                if fails:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(door, *args, **named)

        self._monkeypatch.setattr(Door, name, call)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    slow = Slow(monkeypatch)
    yield slow
    slow.go.set()


async def until(done: Callable[[], bool]) -> None:
    with trio.fail_after(ENOUGH_S):
        while not done():  # noqa: ASYNC110 - what is waited for tells nobody
            await trio.sleep(0.01)


@asynccontextmanager
async def watched(store: Path, ledger: Book) -> AsyncIterator[Mount]:
    """A mount that notices when its store answers again."""
    async with charged(store, ledger, timeout_s=TIMEOUT_S) as mount, trio.open_nursery() as nursery:
        nursery.start_soon(mount.core.gate.watch)
        yield mount
        nursery.cancel_scope.cancel()


async def given_up(mount: Mount, call: Awaitable[object]) -> None:
    """Make a *call*, which the store does not answer in time; the store is up again when this returns."""
    with pytest.raises(StoreDown):
        await call
    await until(lambda: mount.core.gate.is_up)


async def let_go(mount: Mount, slow: Slow) -> None:
    slow.go.set()
    await until(lambda: not mount.core.gate.overdue)


async def make_directory(mount: Mount, path: str) -> None:
    await mount.alice.mkdir(path)


async def make_node(mount: Mount, path: str) -> None:
    await mount.alice.mknod(path)


async def make_link(mount: Mount, path: str) -> None:
    await mount.alice.symlink(path, b"elsewhere")


async def make_file(mount: Mount, path: str) -> None:
    await mount.alice.close(await mount.alice.create(path, flags=os.O_WRONLY))


MADE_BY = {
    "make_directory": make_directory,
    "make_file": make_file,
    "make_placeholder": make_link,
}


@pytest.mark.parametrize("where", [f"{SET}/late", "late"], ids=["in a set", "at the top"])
@pytest.mark.parametrize("call", MADE_BY)
async def test_what_is_made_late_is_claimed_until_it_is_there(
    store: Path, ledger: Book, slow: Slow, call: str, where: str
) -> None:
    async with watched(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        await mount.alice.mkdir("other")
        limit(ledger, units=100, files=3)
        slow.in_call(call)
        await given_up(mount, MADE_BY[call](mount, where))
        with pytest.raises(OSError, match=OVER):
            await mount.alice.mkdir("other/more")
        await let_go(mount, slow)
        assert await mount.alice.stat(where)
        with pytest.raises(OSError, match=OVER):
            await mount.alice.mkdir("other/more")
        assert (await settled(ledger, mount)).files == 3


@pytest.mark.parametrize("make", [make_node, make_file])
async def test_a_file_that_was_made_late_is_free_when_it_is_removed(
    store: Path, ledger: Book, slow: Slow, make: Callable[[Mount, str], Awaitable[None]]
) -> None:
    async with watched(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        slow.in_call("make_file")
        await given_up(mount, make(mount, f"{SET}/.late"))
        await let_go(mount, slow)
        await mount.alice.unlink(f"{SET}/.late")
        assert await settled(ledger, mount) == Amount(UNIT, 1)


async def test_what_fails_late_is_not_claimed_any_more(store: Path, ledger: Book, slow: Slow) -> None:
    async with watched(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        limit(ledger, units=100, files=2)
        slow.in_call("make_directory", fails=True)
        await given_up(mount, mount.alice.mkdir(f"{SET}/late"))
        await let_go(mount, slow)
        await mount.alice.mkdir(f"{SET}/more")
        assert await settled(ledger, mount) == Amount(2 * UNIT, 2)


async def test_what_is_counted_late_is_claimed_no_more_though_the_file_is_written_on(
    store: Path, ledger: Book, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, writes, pwrite = threading.Event(), threading.Event(), os.pwrite

    def counted_late(*args: Any) -> None:
        counts.set()
        assert slow.go.wait(ENOUGH_S)
        look_again(*args)

    def written_late(fd: int, data: bytes, offset: int) -> int:
        assert writes.wait(ENOUGH_S)
        return pwrite(fd, data, offset)

    limit(ledger, units=8)
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        handle = await mount.alice.create(f"{SET}/.image", flags=os.O_WRONLY)
        assert await mount.fs.content.write(handle, 0, bytes(3 * UNIT)) == 3 * UNIT
        monkeypatch.setattr(sessions, "look_again", counted_late)
        monkeypatch.setattr(os, "pwrite", written_late)
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as caller:
                nursery.start_soon(cancelled_after, caller, counts)
                await charging_of(mount).settle_now(mount.core.handle(handle).node)
            nursery.start_soon(mount.fs.content.write, handle, 3 * UNIT, bytes(4 * UNIT))
            await until(lambda: ledger.account(Uid(ALICE.uid)).total.bytes == 8 * UNIT)
            await let_go(mount, slow)
            await charging_of(mount).grants.post()
            account = ledger.account(Uid(ALICE.uid))
            assert (account.used.bytes, account.claimed.bytes) == (4 * UNIT, 4 * UNIT)
            writes.set()
        await mount.alice.close(handle)
        assert (await settled(ledger, mount)).bytes == 8 * UNIT


async def cancelled_after(caller: trio.CancelScope, begun: threading.Event) -> None:
    await until(begun.is_set)
    caller.cancel()


async def test_an_attribute_that_is_set_late_is_claimed_until_it_is_there(
    store: Path, ledger: Book, slow: Slow
) -> None:
    async with watched(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        await mount.alice.mkdir("other")
        limit(ledger, units=3)
        slow.in_call("set_attribute")
        async with mount.alice.at(SET) as ino, mount.alice.at("other") as other:
            await given_up(mount, mount.fs.extended.set(ino, b"user.note", bytes(1000), ALICE))
            with pytest.raises(OSError, match=OVER):
                await mount.fs.extended.set(other, b"user.note", b"x", ALICE)
            await let_go(mount, slow)
            with pytest.raises(OSError, match=OVER):
                await mount.fs.extended.set(other, b"user.note", b"x", ALICE)
        assert await settled(ledger, mount) == Amount(3 * UNIT, 2)
        assert ledger.account(Uid(ALICE.uid)).claimed.files == 0


async def test_what_is_emptied_late_is_torn_and_written_by_nobody(
    store: Path, ledger: Book, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "_SETTLE_INTERVAL_S", 0.01)
    async with watched(store, ledger) as mount, trio.open_nursery() as nursery:
        nursery.start_soon(mount.fs.content.settle_later)
        await mount.alice.mkdir(SET)
        await mount.alice.save(f"{SET}/image", bytes(3 * UNIT))
        slow.in_call("update")
        image = os.fsencode(lies_at(store, SET) / "image")
        await given_up(mount, mount.alice.open(f"{SET}/image", os.O_WRONLY | os.O_TRUNC))
        await let_go(mount, slow)
        await until(lambda: os.stat(image).st_size == 0 and not shares.read(image))
        assert await mount.alice.state(f"{SET}/image") is State.PARTIAL
        await settled(ledger, mount)
        nursery.cancel_scope.cancel()
