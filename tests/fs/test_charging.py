"""What owners are charged with by one mount and by several, in process: the ledger is asked for more, and told what became of it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from ckfs.fs.metadata import Changes
from ckfs.ledger.book import Book
from ckfs.ledger.ledger import Drawn, Ledger, Opened
from ckfs.names import Gid, MountId, Uid
from ckfs.policy.quota import NOTHING, Amount, Settings
from ckfs.store import counting
from tests.fs.cores import ALICE, BOB, Mount, charged, charging_of, keeper_of

UNIT = 4096
SET = "dump"
ENOUGH_S = 20.0


def limit(ledger: Book, uid: int = ALICE.uid, *, units: int, files: int = 1000) -> None:
    ledger.set_limits(Uid(uid), Settings(hard_bytes=units * UNIT, hard_files=files))


async def settled(ledger: Book, *mounts: Mount, uid: int = ALICE.uid) -> Amount:
    """What *uid* is charged with, once nobody has a claim: the same as is counted in the store."""
    store = mounts[0].core.store
    counted = counting.count(store, Uid(uid), store.door.unit)
    account = ledger.account(Uid(uid))
    with trio.move_on_after(ENOUGH_S):
        while (account.used, account.claimed) != (counted, NOTHING):  # the ledger sends no event
            await trio.sleep(0.02)
            account = ledger.account(Uid(uid))
    assert (account.used, account.claimed) == (counted, NOTHING)
    return counted


async def write(mount: Mount, path: str, at: int, count: int) -> int:
    """How many of *count* bytes at the offset *at* were written, in one call; the file is made if it is not there."""
    process = mount.alice
    try:
        handle = await process.open(path, os.O_WRONLY)
    except FileNotFoundError:
        handle = await process.create(path, flags=os.O_WRONLY)
    try:
        return await mount.fs.content.write(handle, at, bytes(count))
    finally:
        await process.close(handle)


@pytest.mark.trio
async def test_a_file_is_charged_with_its_blocks_and_a_directory_with_a_unit(
    store: Path, ledger: Book
) -> None:
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        await mount.alice.save(f"{SET}/image", bytes(3 * UNIT - 1))
        assert await settled(ledger, mount) == Amount(4 * UNIT, 2)


@pytest.mark.trio
async def test_what_is_removed_is_free_again_once_the_trash_has_let_it_go(store: Path, ledger: Book) -> None:
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        await mount.alice.save(f"{SET}/image", bytes(UNIT))
        await mount.alice.unlink(f"{SET}/image")
        assert await settled(ledger, mount) == Amount(2 * UNIT, 2)  # it is in the trash
        for item in mount.core.store.trash.items(Uid(ALICE.uid)):
            mount.core.store.trash.purge(item)
        assert await settled(ledger, mount) == Amount(UNIT, 1)
        await mount.alice.rmdir(SET)
        assert await settled(ledger, mount) == NOTHING


@pytest.mark.trio
async def test_the_last_bytes_fit_and_the_next_do_not(store: Path, ledger: Book) -> None:
    limit(ledger, units=5)
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        handle = await mount.alice.create(f"{SET}/image", flags=os.O_WRONLY)
        write = mount.fs.content.write
        assert await write(handle, 0, bytes(3 * UNIT)) == 3 * UNIT
        assert await write(handle, 3 * UNIT, bytes(4 * UNIT)) == UNIT
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            await write(handle, 4 * UNIT, b"x")
        assert await write(handle, 0, bytes(4 * UNIT)) == 4 * UNIT  # what is there can be written over
        await mount.alice.close(handle)
        assert await settled(ledger, mount) == Amount(5 * UNIT, 2)


@pytest.mark.trio
async def test_written_over_at_the_limit_by_who_opens_it_anew(store: Path, ledger: Book) -> None:
    limit(ledger, units=4)
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        assert await write(mount, f"{SET}/image", 0, 3 * UNIT) == 3 * UNIT
        assert await write(mount, f"{SET}/image", 0, 3 * UNIT) == 3 * UNIT
        assert await write(mount, f"{SET}/image", UNIT, 9) == 9
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            await write(mount, f"{SET}/image", 3 * UNIT, 1)
        assert await settled(ledger, mount) == Amount(4 * UNIT, 2)


@pytest.mark.plain_alone("there what the server keeps beside the data counts too, in a file with holes")
@pytest.mark.trio
async def test_holes_cost_nothing_until_they_are_filled(store: Path, ledger: Book) -> None:
    limit(ledger, units=4)
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        assert await write(mount, f"{SET}/image", 9 * UNIT, UNIT) == UNIT
        assert await settled(ledger, mount) == Amount(2 * UNIT, 2)
        assert await write(mount, f"{SET}/image", 0, UNIT) == UNIT
        assert await write(mount, f"{SET}/image", 3 * UNIT, 4 * UNIT) == UNIT
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            await write(mount, f"{SET}/image", 5 * UNIT, 1)
        assert await settled(ledger, mount) == Amount(4 * UNIT, 2)


@pytest.mark.trio
async def test_files_are_counted_too(store: Path, ledger: Book) -> None:
    limit(ledger, units=1000, files=3)
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        await mount.alice.symlink(f"{SET}/link", b"to")
        await mount.alice.save(f"{SET}/image", b"")
        for make in (mount.alice.mkdir, mount.alice.mknod, mount.alice.create):
            with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
                await make(f"{SET}/more")
        await mount.alice.link(f"{SET}/image", f"{SET}/other")  # another name is no other file
        assert (await settled(ledger, mount)).files == 3
        await mount.alice.unlink(f"{SET}/image")
        await mount.alice.unlink(f"{SET}/other")
        await mount.alice.mkdir(f"{SET}/more")


@pytest.mark.plain_alone("there what the server keeps beside the data counts too, in a file with holes")
@pytest.mark.trio
async def test_cutting_a_file_short_frees_and_making_it_longer_costs_nothing(
    store: Path, ledger: Book
) -> None:
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        handle = await mount.alice.create(f"{SET}/image", flags=os.O_WRONLY)
        await mount.fs.content.write(handle, 0, bytes(4 * UNIT))
        ino = mount.core.handle(handle).node.ino
        await mount.fs.metadata.setattr(ino, Changes(size=UNIT), handle, ALICE)
        await mount.fs.content.write(handle, 2 * UNIT, bytes(UNIT))
        await mount.alice.close(handle)
        assert await settled(ledger, mount) == Amount(3 * UNIT, 2)
        await mount.alice.setattr(f"{SET}/image", Changes(size=100 * UNIT))
        assert await settled(ledger, mount) == Amount(3 * UNIT, 2)


@pytest.mark.trio
async def test_what_is_removed_while_it_is_open_counts_until_it_is_closed(store: Path, ledger: Book) -> None:
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        writing = await mount.alice.create(f"{SET}/.written", flags=os.O_WRONLY)
        await mount.fs.content.write(writing, 0, bytes(2 * UNIT))
        await mount.alice.save(f"{SET}/.read", bytes(UNIT))
        reading = await mount.alice.open(f"{SET}/.read")
        await mount.alice.unlink(f"{SET}/.written")
        await mount.alice.unlink(f"{SET}/.read")
        await trio.sleep(0.6)  # everything has been posted by then
        account = ledger.account(Uid(ALICE.uid))
        assert account.total.bytes >= 4 * UNIT
        await mount.alice.close(reading)
        await mount.alice.close(writing)
        for item in list(mount.core.store.trash.items(Uid(ALICE.uid))):
            mount.core.store.trash.purge(item)
        assert await settled(ledger, mount) == Amount(UNIT, 1)


@pytest.mark.trio
async def test_what_another_mount_does_not_need_is_to_be_had(store: Path, ledger: Book) -> None:
    limit(ledger, units=100_000)
    async with charged(store, ledger) as one, charged(store, ledger, node="b") as other:
        await one.alice.mkdir(SET)
        first = await one.alice.create(f"{SET}/first", flags=os.O_WRONLY)
        await one.fs.content.write(first, 0, b"x")  # with a grant far beyond that
        limit(ledger, units=20)
        second = await other.alice.create(f"{SET}/second", flags=os.O_WRONLY)
        assert await other.fs.content.write(second, 0, bytes(30 * UNIT)) == 18 * UNIT
        await one.alice.close(first)
        await other.alice.close(second)
        assert await settled(ledger, one, other) == Amount(20 * UNIT, 3)


@pytest.mark.trio
async def test_a_set_is_charged_to_its_new_owner_before_it_is_his(store: Path, ledger: Book) -> None:
    limit(ledger, units=3)
    async with charged(store, ledger) as mount:
        await mount.root.mkdir(SET)
        await mount.root.save(f"{SET}/image", b"x" * (3 * UNIT))
        theirs = Changes(uid=Uid(ALICE.uid), gid=Gid(ALICE.gid))
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            await mount.root.setattr(SET, theirs)
        assert await settled(ledger, mount) == NOTHING
        assert (await settled(ledger, mount, uid=keeper_of(store).uid)) == Amount(4 * UNIT, 2)
        limit(ledger, units=4)
        await mount.root.setattr(SET, theirs)
        assert await settled(ledger, mount) == Amount(4 * UNIT, 2)
        assert await settled(ledger, mount, uid=keeper_of(store).uid) == NOTHING
        assert ledger.account(Uid(BOB.uid)).total == NOTHING


@pytest.mark.trio
async def test_what_followed_its_new_owner_counts_with_what_it_takes(store: Path, ledger: Book) -> None:
    """Where root is squashed it is copied, and what was written as zeros is a hole in the copy."""
    async with charged(store, ledger) as mount:
        await mount.root.mkdir(SET)
        await mount.root.save(f"{SET}/image", bytes(3 * UNIT))
        await mount.root.setattr(SET, Changes(uid=Uid(ALICE.uid), gid=Gid(ALICE.gid)))
        await settled(ledger, mount)
        await settled(ledger, mount, uid=keeper_of(store).uid)


@pytest.mark.trio
async def test_holes_of_a_file_that_was_there_are_filled_within_the_limit(store: Path, ledger: Book) -> None:
    """Also where the store tells no holes from data."""
    limit(ledger, units=8)
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        handle = await mount.alice.create(f"{SET}/.image", flags=os.O_WRONLY)
        assert await mount.fs.content.write(handle, 3 * UNIT, bytes(UNIT)) == UNIT
        await mount.alice.close(handle)
        handle = await mount.alice.open(f"{SET}/.image", os.O_WRONLY)
        assert 6 * UNIT <= await mount.fs.content.write(handle, 0, bytes(10 * UNIT)) <= 7 * UNIT
        await mount.alice.close(handle)
        await charging_of(mount).grants.post()
        assert ledger.account(Uid(ALICE.uid)).total.bytes <= 8 * UNIT
        assert counting.count(mount.core.store, Uid(ALICE.uid), UNIT).bytes <= 8 * UNIT


@pytest.mark.trio
async def test_attributes_of_users_are_charged(store: Path, ledger: Book) -> None:
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        async with mount.alice.at(SET) as ino:
            await mount.fs.extended.set(ino, b"user.note", bytes(1000), ALICE)
            assert await settled(ledger, mount) == Amount(2 * UNIT, 1)
            await mount.fs.extended.remove(ino, b"user.note", ALICE)
            assert await settled(ledger, mount) == Amount(UNIT, 1)


@pytest.mark.trio
async def test_attributes_stop_at_the_limit_and_can_be_replaced_there(store: Path, ledger: Book) -> None:
    limit(ledger, units=2)
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        async with mount.alice.at(SET) as ino:
            await mount.fs.extended.set(ino, b"user.note", bytes(1000), ALICE)
            await mount.fs.extended.set(ino, b"user.note", bytes(2000), ALICE)
            with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
                await mount.fs.extended.set(ino, b"user.more", bytes(3000), ALICE)
        assert await settled(ledger, mount) == Amount(2 * UNIT, 1)


@pytest.mark.trio
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_an_attribute_that_is_removed_from_a_file_that_is_written_gives_way(
    store: Path, ledger: Book, *, elsewhere: bool
) -> None:
    limit(ledger, units=4)
    async with charged(store, ledger) as one, charged(store, ledger, node="b") as other:
        await one.alice.mkdir(SET)
        handle = await one.alice.create(f"{SET}/.image", flags=os.O_WRONLY)
        assert await one.fs.content.write(handle, 0, bytes(UNIT)) == UNIT
        mount = other if elsewhere else one
        async with mount.alice.at(f"{SET}/.image") as ino:
            await mount.fs.extended.set(ino, b"user.note", b"x", ALICE)
            await mount.alice.mkdir(f"{SET}/a")
            await mount.fs.extended.remove(ino, b"user.note", ALICE)
        await mount.alice.mkdir(f"{SET}/b")
        assert ledger.account(Uid(ALICE.uid)).total.bytes == 4 * UNIT
        await one.alice.close(handle)
        assert await settled(ledger, one, other) == Amount(4 * UNIT, 4)


@pytest.mark.plain_alone("there each of them may have seen the other name (docs/quotas.md)")
@pytest.mark.trio
async def test_two_mounts_that_take_the_two_names_of_a_file_free_it_once(store: Path, ledger: Book) -> None:
    async with charged(store, ledger) as one, charged(store, ledger, node="b") as other:
        await one.alice.mkdir(SET)
        for _ in range(20):
            await one.alice.save(f"{SET}/.one", bytes(UNIT))
            await one.alice.link(f"{SET}/.one", f"{SET}/.other")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.alice.unlink, f"{SET}/.one")
                nursery.start_soon(other.alice.unlink, f"{SET}/.other")
            for item in list(one.core.store.trash.items(Uid(ALICE.uid))):
                one.core.store.trash.purge(item)
        assert await settled(ledger, one, other) == Amount(UNIT, 1)


@dataclass
class Slow:
    """A ledger that hears of files which begin to be written only when it is let."""

    book: Book
    hears: threading.Event = field(default_factory=threading.Event)
    listens: threading.Event = field(default_factory=threading.Event)

    def draw(
        self, mount: MountId, uid: Uid, least: Amount, wanted: Amount, opened: Sequence[Opened] = ()
    ) -> Drawn:
        if opened:
            self.hears.set()
            assert self.listens.wait(ENOUGH_S)
        return self.book.draw(mount, uid, least, wanted, opened)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.book, name)


@pytest.mark.trio
async def test_a_file_is_closed_while_the_ledger_is_being_told_that_it_is_written(
    store: Path, ledger: Book
) -> None:
    slow = Slow(ledger)
    slow.listens.set()
    async with charged(store, cast("Ledger", slow)) as mount:
        await mount.alice.mkdir(SET)
        await mount.alice.save(f"{SET}/first", bytes(UNIT))  # draws more than it needs
        slow.listens.clear()
        slow.hears.clear()
        handle = await mount.alice.create(f"{SET}/image", flags=os.O_WRONLY)
        await mount.fs.content.write(handle, 0, bytes(3 * UNIT))
        assert await trio.to_thread.run_sync(slow.hears.wait, ENOUGH_S)
        await mount.alice.close(handle)
        slow.listens.set()
        await settled(ledger, mount)
        with trio.fail_after(ENOUGH_S):
            while ledger.basis(ALICE.uid).files:  # noqa: ASYNC110 - the ledger sends no event
                await trio.sleep(0.02)
        assert await write(mount, f"{SET}/image", 3 * UNIT, UNIT) == UNIT
        assert await settled(ledger, mount) == Amount(6 * UNIT, 3)
