"""Recounts by one mount while another one writes, deletes what is open, and closes it: whatever is taken up is right."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio

from ckfs.fs.metadata import Changes
from ckfs.fs.recounting import Recount, Recounting
from ckfs.ledger.book import Book
from ckfs.names import FileHandle
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store import counting
from tests.fs.cores import ALICE, Mount, charged, charging_of

pytestmark = [pytest.mark.root, pytest.mark.trio]

UNIT = 4096
ROUNDS = 4
LONG_S = 60.0


@dataclass
class Writer:
    """Alice, on one mount, at random."""

    mount: Mount
    dice: random.Random
    open: list[FileHandle] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    made: int = 0

    async def go_on(self, steps: int) -> None:
        for _ in range(steps):
            await self.dice.choice((self._create, self._write, self._write, self._unlink, self._close))()

    async def _create(self) -> None:
        self.made += 1
        self.names.append(f"set/image-{self.made}")
        self.open.append(await self.mount.alice.create(self.names[-1]))

    async def _write(self) -> None:
        if self.open:
            data = bytes(self.dice.randrange(1, 20 * UNIT))
            handle = self.dice.choice(self.open)
            await self.mount.fs.content.write(handle, self.dice.randrange(50 * UNIT), data)

    async def _unlink(self) -> None:
        if self.names:
            await self.mount.alice.unlink(self.names.pop(self.dice.randrange(len(self.names))))

    async def _close(self) -> None:
        if self.open:
            await self.mount.alice.close(self.open.pop(self.dice.randrange(len(self.open))))

    async def end(self) -> None:
        while self.open:
            await self._close()


async def recount(mount: Mount, ledger: Book) -> Recount:
    recounting = Recounting(mount.core.store, ledger, mount.core.fate)
    [one] = await trio.to_thread.run_sync(lambda: list(recounting.repair([ALICE.uid])))
    return one


async def recounted(mount: Mount, ledger: Book) -> Recount:
    """As :func:`recount`, taken up."""
    with trio.fail_after(LONG_S):
        while not (one := await recount(mount, ledger)).taken_up:
            pass
    return one


async def is_right(mount: Mount, ledger: Book) -> None:
    """Once everything is closed and nothing claimed, the ledger says what is in the store."""
    store = mount.core.store
    count = partial(counting.count, store, ALICE.uid, store.door.unit)
    with trio.fail_after(LONG_S):
        # The ledger sends no event.
        while ledger.account(ALICE.uid).claimed != NOTHING:  # noqa: ASYNC110 - the ledger sends no event
            await trio.sleep(0.05)
    counted = await trio.to_thread.run_sync(count)
    with trio.move_on_after(LONG_S):  # what was open without a name is given back when it is posted
        while ledger.account(ALICE.uid).used != counted:  # noqa: ASYNC110 - the ledger sends no event
            await trio.sleep(0.05)
    assert ledger.account(ALICE.uid).used == counted
    assert ledger.check() == []


@pytest.mark.parametrize("seed", range(3))
async def test_a_recount_changes_nothing_where_the_ledger_is_right(
    store: Path, ledger: Book, seed: int
) -> None:
    async with charged(store, ledger, node="a") as a, charged(store, ledger, node="b") as b:
        await a.alice.mkdir("set")
        writer = Writer(a, random.Random(seed))
        for _ in range(ROUNDS):
            await writer.go_on(30)
            one = await recount(b, ledger)  # with files open, some of them without a name
            assert not one.differs
            if one.taken_up:
                assert one.counted == one.said
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.go_on, 300)
            for _ in range(2):
                assert not (await recount(b, ledger)).differs
        await writer.end()
        await is_right(b, ledger)


async def test_a_ledger_that_went_wrong_is_right_again_though_files_are_open(
    store: Path, ledger: Book
) -> None:
    async with charged(store, ledger, node="a") as a, charged(store, ledger, node="b") as b:
        await a.alice.mkdir("set")
        writer = Writer(a, random.Random(7))
        await writer.go_on(60)
        with trio.fail_after(LONG_S):
            while True:
                ledger.recounted(ALICE.uid, None, Amount(1 << 40, 1 << 20))
                if (await recount(b, ledger)).taken_up:
                    break
        await writer.go_on(60)
        await writer.end()
        await is_right(b, ledger)


@pytest.mark.parametrize("where", [0, 1])
async def test_an_attribute_that_is_removed_while_its_file_is_written_counts_until_that_is_settled(
    path: Path, ledger: Book, where: int
) -> None:
    async with charged(path, ledger, node="a") as a, charged(path, ledger, node="b") as b:
        await a.alice.mkdir("set")
        await a.alice.save("set/.image", bytes(UNIT))
        async with a.alice.at("set/.image") as ino:
            await a.fs.extended.set(ino, b"user.note", bytes(100), ALICE)
        handle = await a.alice.open("set/.image", os.O_WRONLY)
        await a.fs.content.write(handle, 0, bytes(UNIT))
        mount = (a, b)[where]
        async with mount.alice.at("set/.image") as ino:
            await mount.fs.extended.remove(ino, b"user.note", ALICE)
        one = await recounted(b, ledger)
        assert one.counted == one.said == Amount(3 * UNIT, 2)
        await a.alice.close(handle)
        await is_right(b, ledger)
        assert ledger.account(ALICE.uid).used == Amount(2 * UNIT, 2)


@pytest.mark.plain_alone("what is open without a name is not counted on a network's store")
@pytest.mark.parametrize("is_written", [False, True])
async def test_what_was_cut_and_then_lost_its_name_is_found(
    path: Path, ledger: Book, *, is_written: bool
) -> None:
    async with charged(path, ledger, node="a") as a, charged(path, ledger, node="b") as b:
        await a.alice.mkdir("set")
        await a.alice.save("set/.image", bytes(4 * UNIT))
        handle = await b.alice.open("set/.image", os.O_RDWR)
        if is_written:
            await b.fs.content.write(handle, 4 * UNIT, bytes(UNIT))
        await b.fs.metadata.setattr(b.core.handle(handle).node.ino, Changes(size=2 * UNIT), handle, ALICE)
        await a.alice.unlink("set/.image")
        for item in list(a.core.store.trash.items()):
            a.core.store.trash.purge(item)
        one = await recounted(a, ledger)
        assert one.counted == one.said == Amount(3 * UNIT, 2)
        await b.alice.close(handle)
        await is_right(a, ledger)


@pytest.mark.plain_alone("what is open without a name is not counted on a network's store")
@pytest.mark.parametrize("is_noted", [False, True])
@pytest.mark.parametrize("where", [0, 1])
async def test_an_attribute_of_a_file_that_is_written_is_found_though_that_has_no_name(
    path: Path, ledger: Book, where: int, *, is_noted: bool
) -> None:
    async with charged(path, ledger, node="a") as a, charged(path, ledger, node="b") as b:
        await a.alice.mkdir("set")
        handle = await a.alice.create("set/.image", flags=os.O_WRONLY)
        if is_noted:
            await a.fs.content.write(handle, 0, bytes(UNIT))
        mount = (a, b)[where]
        async with mount.alice.at("set/.image") as ino:
            if not is_noted:
                await charging_of(a).grants.post()
            await mount.fs.extended.set(ino, b"user.note", bytes(100), ALICE)
        await b.alice.unlink("set/.image")
        one = await recounted(b, ledger)
        assert one.counted == one.said == Amount(2 * UNIT, 2)
        await a.alice.close(handle)
        await is_right(b, ledger)
