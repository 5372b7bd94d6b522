"""Files that a mount was writing which died, and that another one writes on: what the dead one has written is charged once, at every
moment."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from ckfs.fs import grants
from ckfs.fs.charging import charge
from ckfs.fs.recounting import Recounting
from ckfs.ledger.book import Book
from ckfs.names import FileHandle, Uid
from ckfs.policy.quota import NOTHING, Account, Amount
from tests.fs.cores import ALICE, Mount, charged, charging_of, mounted_for_long
from tests.fs.test_charging import ENOUGH_S, SET, UNIT, limit, settled

pytestmark = [pytest.mark.root, pytest.mark.trio]

IMAGE = f"{SET}/.image"
DIRECTORY = Amount(UNIT, 1)


@contextlib.asynccontextmanager
async def doomed(store: Path, ledger: Book) -> AsyncIterator[Mount]:
    """A mount that ends as with kill -9: nothing is told any more, and its descriptors are closed."""
    with mounted_for_long(store, node="b", ledger=ledger) as mount:
        charge(mount.core)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.core.charging.run)
            yield mount
            await charging_of(mount).grants.post()
            nursery.cancel_scope.cancel()
        for handle in mount.core.handles.all():
            os.close(handle.fd)


async def write_and_die(store: Path, ledger: Book, offset: int, count: int) -> None:
    async with doomed(store, ledger) as other:
        handle = await other.alice.open(IMAGE, os.O_WRONLY)
        assert await other.fs.content.write(handle, offset, bytes(count)) == count


async def image_on(mount: Mount) -> FileHandle:
    """One that *mount* writes; the ledger has noted it."""
    await mount.alice.mkdir(SET)
    handle = await mount.alice.create(IMAGE, flags=os.O_WRONLY)
    await charging_of(mount).grants.post()
    return handle


async def account_after(mount: Mount, ledger: Book) -> Account:
    await charging_of(mount).grants.post()
    return ledger.account(Uid(ALICE.uid))


def recount(mount: Mount, ledger: Book) -> None:
    recounting = Recounting(mount.core.store, ledger, mount.core.fate, lambda _: None)
    deadline_s = time.monotonic() + ENOUGH_S
    while not next(recounting.repair([Uid(ALICE.uid)])).taken_up:  # something was just being posted
        assert time.monotonic() < deadline_s


@pytest.mark.plain_alone(
    "there nobody can tell that the middle of what is written is there already: less fits"
)
async def test_who_writes_on_at_the_limit_does_not_pass_it(store: Path, ledger: Book) -> None:
    limit(ledger, units=8, files=5)
    async with charged(store, ledger) as mount:
        handle = await image_on(mount)
        await write_and_die(store, ledger, 3 * UNIT, UNIT)
        assert await mount.fs.content.write(handle, 0, bytes(10 * UNIT)) == 7 * UNIT
        assert (await account_after(mount, ledger)).total == Amount(8 * UNIT, 2)
        await mount.alice.close(handle)
        account = await account_after(mount, ledger)
        assert (account.used, account.claimed) == (Amount(8 * UNIT, 2), NOTHING)
        recount(mount, ledger)
        assert await settled(ledger, mount) == Amount(8 * UNIT, 2)


async def test_what_the_dead_one_was_granted_for_other_files_stays_claimed_until_a_recount(
    store: Path, ledger: Book
) -> None:
    async with charged(store, ledger) as mount:
        handle = await image_on(mount)
        async with doomed(store, ledger) as other:
            limit(ledger, units=20, files=5)  # nothing more is granted than is needed
            for path, count in ((IMAGE, 2 * UNIT), (f"{SET}/.more", 3 * UNIT)):
                flags = os.O_WRONLY | os.O_APPEND
                there = path == IMAGE
                written = await (other.alice.open if there else other.alice.create)(path, flags=flags)
                assert await other.fs.content.write(written, 0, bytes(count)) == count
        await mount.alice.close(handle)
        account = await account_after(mount, ledger)
        assert account.used == DIRECTORY + Amount(2 * UNIT, 2)
        assert account.claimed.covers(Amount(3 * UNIT))
        recount(mount, ledger)
        assert await settled(ledger, mount) == Amount(6 * UNIT, 3)


async def test_what_both_have_written_is_charged_once(store: Path, ledger: Book) -> None:
    limit(ledger, units=10, files=5)
    async with charged(store, ledger) as mount:
        handle = await image_on(mount)
        await write_and_die(store, ledger, 0, 4 * UNIT)
        assert await mount.fs.content.write(handle, 2 * UNIT, bytes(5 * UNIT)) == 5 * UNIT
        assert (await account_after(mount, ledger)).total == Amount(10 * UNIT, 2)
        await mount.alice.close(handle)
        account = await account_after(mount, ledger)
        assert account.used == Amount(8 * UNIT, 2)
        assert account.total.bytes <= 10 * UNIT
        recount(mount, ledger)
        assert await settled(ledger, mount) == Amount(8 * UNIT, 2)


async def test_also_of_a_file_that_the_ledger_has_not_heard_of(
    store: Path, ledger: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants, "_INTERVAL_S", 3600.0)
    limit(ledger, units=3, files=5)
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        await charging_of(mount).grants.post()
        handle = await mount.alice.create(IMAGE, flags=os.O_WRONLY)
        await write_and_die(store, ledger, 0, 2 * UNIT)
        await mount.alice.close(handle)
        account = await account_after(mount, ledger)
        assert (account.used, account.claimed) == (Amount(3 * UNIT, 2), NOTHING)
        recount(mount, ledger)
        assert await settled(ledger, mount) == Amount(3 * UNIT, 2)


async def test_what_is_open_without_a_name_stays_claimed_until_it_is_closed(
    store: Path, ledger: Book
) -> None:
    limit(ledger, units=12, files=5)
    async with charged(store, ledger) as mount:
        handle = await image_on(mount)
        reader = await mount.alice.open(IMAGE, os.O_RDONLY)
        assert await mount.fs.content.write(handle, 0, bytes(UNIT)) == UNIT
        await write_and_die(store, ledger, 4 * UNIT, 3 * UNIT)
        await mount.alice.unlink(IMAGE)
        await mount.alice.close(handle)
        assert (await account_after(mount, ledger)).total == Amount(5 * UNIT, 2)
        await mount.alice.close(reader)
        await account_after(mount, ledger)
        recount(mount, ledger)
        assert await settled(ledger, mount) == DIRECTORY
