"""Files that lose their last name on one mount while another has them open: they take room until that is closed, and are charged
until then."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from ckfs.cli.tally import Tally
from ckfs.fs.recounting import Recounting
from ckfs.ledger.book import Book
from ckfs.names import FileHandle, Uid
from ckfs.policy.quota import Amount
from ckfs.store.layout import open_store
from tests.fs.cores import ALICE, Mount, charged, charging_of, keeper_of, mounted
from tests.fs.test_charging import ENOUGH_S, SET, UNIT, limit, settled, write
from tests.fs.test_charging_beside_dead import doomed, recount

pytestmark = [pytest.mark.root, pytest.mark.trio]

OVER = os.strerror(errno.EDQUOT)
IMAGE = f"{SET}/image"
HELD = Amount(4 * UNIT, 1)
"""What is open without a name."""
DIRECTORY = Amount(UNIT, 1)


def purge(mount: Mount) -> None:
    for item in list(mount.core.store.trash.items(Uid(ALICE.uid))):
        mount.core.store.trash.purge(item)


async def save_and_open(one: Mount, other: Mount, flags: int = os.O_RDONLY) -> FileHandle:
    """A file that *one* made, and *other* has open."""
    await one.alice.save(IMAGE, bytes(HELD.bytes))
    return await other.alice.open(IMAGE, flags)


async def remove(mount: Mount) -> None:
    await mount.alice.unlink(IMAGE)
    purge(mount)


async def until(done: Callable[[], bool]) -> None:
    with trio.fail_after(ENOUGH_S):
        while not done():  # noqa: ASYNC110 - what is waited for tells nobody
            await trio.sleep(0.02)


async def charged_with(ledger: Book, *mounts: Mount) -> Amount:
    """What is charged once all mounts have said everything, and claim nothing."""
    for mount in mounts:
        await charging_of(mount).grants.post()
    await until(lambda: not ledger.account(Uid(ALICE.uid)).claimed)
    return ledger.account(Uid(ALICE.uid)).used


def counts(mount: Mount) -> bool:
    """Whether *mount* counts something without a name."""
    return not charging_of(mount).sessions.nameless.is_empty


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
async def test_what_another_mount_has_open_counts_until_it_is_closed(
    store: Path, ledger: Book, flags: int
) -> None:
    limit(ledger, units=8)
    async with charged(store, ledger) as one, charged(store, ledger, node="b") as other:
        await one.alice.mkdir(SET)
        handle = await save_and_open(one, other, flags)
        await remove(one)
        assert await charged_with(ledger, one, other) == DIRECTORY + HELD
        assert await write(one, f"{SET}/more", 0, 10 * UNIT) == 3 * UNIT
        with pytest.raises(OSError, match=OVER):
            await write(other, f"{SET}/yet_more", 0, UNIT)
        await other.alice.close(handle)
        assert await settled(ledger, one, other) == Amount(4 * UNIT, 3)


async def test_holding_again_and_again_is_no_way_around_the_limit(store: Path, ledger: Book) -> None:
    limit(ledger, units=10)
    async with charged(store, ledger) as one, charged(store, ledger, node="b") as other:
        await one.alice.mkdir(SET)
        handles, held = [], 0
        other.core.reads_partial = True  # what did not fit as a whole
        for _ in range(4):
            with contextlib.suppress(OSError):  # EDQUOT
                held += await write(one, IMAGE, 0, HELD.bytes)
            handles.append(await other.alice.open(IMAGE, os.O_RDONLY))
            await remove(one)
        assert held == 9 * UNIT
        assert (await charged_with(ledger, one, other)).bytes == 10 * UNIT
        for handle in handles:
            await other.alice.close(handle)
        assert await settled(ledger, one, other) == DIRECTORY


async def test_what_is_replaced_or_emptied_elsewhere_counts_until_it_is_closed(
    store: Path, ledger: Book
) -> None:
    async with charged(store, ledger) as one, charged(store, ledger, node="b") as other:
        await one.alice.mkdir(SET)
        replaced = await save_and_open(one, other)
        await one.alice.save(f"{SET}/.new", b"")
        await one.alice.rename(f"{SET}/.new", IMAGE)
        purge(one)
        assert await charged_with(ledger, one, other) == DIRECTORY + HELD + Amount(0, 1)
        await remove(one)
        emptied = await save_and_open(one, other)
        await one.alice.close(await one.alice.open(IMAGE, os.O_WRONLY | os.O_TRUNC))
        purge(one)  # what was emptied; the new file has its number
        await until(lambda: counts(other))
        assert await charged_with(ledger, one, other) == DIRECTORY + HELD + HELD + Amount(0, 1)
        await write(one, IMAGE, 0, UNIT)
        await other.alice.close(emptied)
        await other.alice.close(replaced)
        assert await settled(ledger, one, other) == Amount(2 * UNIT, 2)


@pytest.mark.parametrize("is_torn", [False, True])
async def test_who_opens_what_was_emptied_elsewhere_has_one_file_open(
    store: Path, ledger: Book, *, is_torn: bool
) -> None:
    """What is torn, and was emptied, can be written on where it is open: nobody sees that, but it is counted until it is closed."""
    async with charged(store, ledger) as one, charged(store, ledger, node="b") as other:
        await one.alice.mkdir(SET)
        made = await one.alice.create(IMAGE, flags=os.O_WRONLY)
        await one.fs.content.write(made, 0, bytes(HELD.bytes))
        one.core.handle(made).node.failed = is_torn
        await one.alice.close(made)
        before = await other.alice.open(IMAGE, os.O_WRONLY)
        await one.alice.close(await one.alice.open(IMAGE, os.O_WRONLY | os.O_TRUNC))
        purge(one)
        if is_torn:
            await other.fs.content.write(before, HELD.bytes, bytes(UNIT))
        else:
            await until(lambda: counts(other))
        after = await other.alice.open(IMAGE, os.O_WRONLY)
        assert await other.fs.content.write(before, 0, b"x" * UNIT) == UNIT
        await other.alice.close(after)
        await other.alice.close(before)
        assert await one.alice.load(IMAGE) == b"x" * UNIT
        assert await settled(ledger, one, other) == Amount(2 * UNIT, 2)


async def test_who_has_it_open_takes_over_from_who_removed_it(store: Path, ledger: Book) -> None:
    async with charged(store, ledger, node="b") as other:
        async with charged(store, ledger) as one:
            await one.alice.mkdir(SET)
            handle = await save_and_open(one, other)
            await remove(one)
            await until(lambda: counts(other) and not counts(one))
            assert await charged_with(ledger, one, other) == DIRECTORY + HELD
        assert await charged_with(ledger, other) == DIRECTORY + HELD
        await other.alice.close(handle)
        assert await settled(ledger, other) == DIRECTORY


async def test_of_several_that_have_it_open_the_last_one_frees_it(store: Path, ledger: Book) -> None:
    async with (
        charged(store, ledger) as one,
        charged(store, ledger, node="b") as other,
        charged(store, ledger, node="c") as third,
    ):
        await one.alice.mkdir(SET)
        here, there = await save_and_open(one, other), await third.alice.open(IMAGE, os.O_RDONLY)
        again = await third.alice.open(IMAGE, os.O_RDONLY)
        await remove(one)
        await until(lambda: not counts(one))
        await third.alice.close(again)
        assert await charged_with(ledger, one, other, third) == DIRECTORY + HELD
        first, last = ((other, here), (third, there)) if counts(other) else ((third, there), (other, here))
        await first[0].alice.close(first[1])
        await until(lambda: counts(last[0]) and not counts(first[0]))
        assert await charged_with(ledger, one, other, third) == DIRECTORY + HELD
        await last[0].alice.close(last[1])
        assert await settled(ledger, one, other, third) == DIRECTORY


async def test_what_was_written_and_removed_counts_while_another_mount_reads_it(
    store: Path, ledger: Book
) -> None:
    async with charged(store, ledger) as one, charged(store, ledger, node="b") as other:
        await one.alice.mkdir(SET)
        writing = await one.alice.create(f"{SET}/.log", flags=os.O_WRONLY)
        assert await one.fs.content.write(writing, 0, bytes(HELD.bytes)) == HELD.bytes
        reading = await other.alice.open(f"{SET}/.log", os.O_RDONLY)
        await other.alice.unlink(f"{SET}/.log")
        await one.alice.close(writing)
        assert await charged_with(ledger, one, other) == DIRECTORY + HELD
        await until(lambda: counts(other) and not counts(one))
        assert await charged_with(ledger, one, other) == DIRECTORY + HELD
        await other.alice.close(reading)
        assert await settled(ledger, one, other) == DIRECTORY


async def test_a_recount_knows_of_what_is_open_without_a_name(store: Path, ledger: Book) -> None:
    async with charged(store, ledger) as one, charged(store, ledger, node="b") as other:
        await one.alice.mkdir(SET)
        handle = await save_and_open(one, other)
        await remove(one)
        recounting = Recounting(one.core.store, ledger, one.core.fate, lambda _: None)
        for is_known in (lambda: counts(one), lambda: counts(other) and not counts(one)):
            await until(is_known)
            assert await charged_with(ledger, one, other) == DIRECTORY + HELD
            (found,) = await trio.to_thread.run_sync(lambda: list(recounting.repair([Uid(ALICE.uid)])))
            assert found.counted in (DIRECTORY + HELD, None)  # None: it has just been taken over
        await other.alice.close(handle)
        assert await settled(ledger, one, other) == DIRECTORY


async def test_what_a_command_removes_counts_again_while_it_is_open(store: Path, ledger: Book) -> None:
    """It ends before anybody has closed the file, and so cannot count it."""
    limit(ledger, units=8)
    async with charged(store, ledger) as one:
        await one.alice.mkdir(SET)
        handle = await save_and_open(one, one)
        await one.alice.unlink(IMAGE)
        await settled(ledger, one)
        with contextlib.closing(open_store(str(store), keeper_of(store))) as command:
            tally = Tally(ledger, lambda _: True)
            command.door.report_to(tally)
            for item in list(command.trash.items(Uid(ALICE.uid))):
                command.trash.purge(item)
            tally.end()
        await until(lambda: counts(one))
        assert await charged_with(ledger, one) == DIRECTORY + HELD
        await one.alice.close(handle)
        assert await settled(ledger, one) == DIRECTORY


async def test_what_a_read_only_mount_has_open_counts_until_it_is_closed(store: Path, ledger: Book) -> None:
    async with charged(store, ledger) as one, mounted(store, node="b", read_only=True) as reader:
        await one.alice.mkdir(SET)
        handle = await save_and_open(one, reader)
        await remove(one)
        assert await charged_with(ledger, one) == DIRECTORY + HELD
        await reader.alice.close(handle)
        assert await settled(ledger, one) == DIRECTORY


@pytest.mark.parametrize("is_late", [False, True])
async def test_what_is_written_on_counts_as_a_whole_though_who_counted_it_before_is_dead(
    store: Path, ledger: Book, *, is_late: bool
) -> None:
    async with charged(store, ledger) as one, charged(store, ledger, node="c") as other:
        await one.alice.mkdir(SET)
        handle = await save_and_open(one, other, os.O_RDWR)
        async with doomed(store, ledger) as third:
            await remove(third)
            assert await other.fs.content.write(handle, 3 * UNIT, bytes(3 * UNIT)) == 3 * UNIT
        if is_late:
            recount(one, ledger)
        await charging_of(other).sessions.nameless.look()
        await charging_of(other).grants.post()
        recount(one, ledger)
        assert ledger.account(Uid(ALICE.uid)).total.covers(DIRECTORY + HELD + Amount(2 * UNIT))
        await other.alice.close(handle)
        assert await settled(ledger, one, other) == DIRECTORY
