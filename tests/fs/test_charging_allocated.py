"""What is allocated in a file without being written is charged like what is written, on every way to get or to lose it."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio

from ckfs.fs.metadata import Changes
from ckfs.ledger.book import Book
from ckfs.model import State
from ckfs.names import FileHandle, Gid, Uid
from ckfs.policy.quota import Amount
from ckfs.store import allocated, allocating, syscalls
from tests.fs.cores import ALICE, BOB, Mount, charged, charging_of
from tests.fs.test_allocating import KEEP, PUNCH, ZERO, allocate, fallocates, refused
from tests.fs.test_charging import ENOUGH_S, SET, UNIT, limit, settled
from tests.fs.test_charging_late_calls import until

pytestmark = [pytest.mark.root, pytest.mark.trio]

ALLOCATING = pytest.mark.parametrize("mode", [0, KEEP, ZERO, ZERO | KEEP])


@contextlib.asynccontextmanager
async def image(
    store: Path, ledger: Book, units: int = 0, *, flags: int = os.O_RDWR, name: str = "image"
) -> AsyncIterator[tuple[Mount, FileHandle]]:
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        handle = await mount.alice.create(f"{SET}/{name}", flags=flags)
        if units:
            await mount.fs.content.write(handle, 0, b"x" * units * UNIT)
        yield mount, handle


def used(ledger: Book) -> int:
    """What the ledger counts with, in units, apart from what is claimed."""
    return ledger.account(Uid(ALICE.uid)).used.bytes // UNIT


def total(ledger: Book) -> int:
    """And what is claimed."""
    return ledger.account(Uid(ALICE.uid)).total.bytes // UNIT


@fallocates
@ALLOCATING
async def test_what_is_allocated_counts_while_it_is_written_and_afterwards(
    store: Path, ledger: Book, mode: int
) -> None:
    async with image(store, ledger, 2) as (mount, handle):
        await allocate(mount, handle, mode, UNIT, 9 * UNIT)
        assert total(ledger) >= 11  # and the directory
        await mount.alice.close(handle)
        assert await settled(ledger, mount) == Amount(11 * UNIT, 2)
        assert await mount.alice.state(f"{SET}/image") is State.COMPLETE


@fallocates
@ALLOCATING
@pytest.mark.parametrize("begun", [False, True])
async def test_all_of_it_fits_or_nothing_is_done(
    store: Path, ledger: Book, mode: int, *, begun: bool
) -> None:
    limit(ledger, units=11)
    async with image(store, ledger, 2 if begun else 0) as (mount, handle):
        path = mount.core.handle(handle).fd
        before = os.fstat(path).st_size, os.fstat(path).st_blocks
        with refused(errno.EDQUOT):
            await mount.fs.content.allocate(handle, mode, 0, 10 * UNIT + 1)
        assert (os.fstat(path).st_size, os.fstat(path).st_blocks) == before
        assert allocated.of(path) == ()
        await mount.alice.mkdir(f"{SET}/more")  # nothing of it is claimed any more
        await mount.alice.rmdir(f"{SET}/more")
        await allocate(mount, handle, mode, 0, 10 * UNIT)
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            await mount.alice.mkdir(f"{SET}/more")
        await mount.alice.close(handle)
        assert (
            await mount.alice.state(f"{SET}/image") is State.COMPLETE
        )  # to what was refused nothing happened
        assert await settled(ledger, mount) == Amount(11 * UNIT, 2)


@fallocates
@ALLOCATING
async def test_at_the_limit_what_is_there_is_allocated_again_and_written(
    store: Path, ledger: Book, mode: int
) -> None:
    """Whether it was allocated or written; by who opens it anew, too."""
    limit(ledger, units=11)
    async with image(store, ledger, 2, name=".image") as (mount, handle):
        await allocate(mount, handle, mode, 0, 10 * UNIT)
        await allocate(mount, handle, mode, 0, 10 * UNIT)
        await mount.alice.close(handle)
        handle = await mount.alice.open(f"{SET}/.image", os.O_RDWR)
        await allocate(mount, handle, mode, 0, 10 * UNIT)
        write = mount.fs.content.write
        assert await write(handle, UNIT, b"y" * 9 * UNIT) == 9 * UNIT
        await mount.alice.close(handle)
        handle = await mount.alice.open(f"{SET}/.image", os.O_RDWR)
        assert await write(handle, 5 * UNIT, b"y" * 9 * UNIT) == 5 * UNIT
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            await write(handle, 10 * UNIT, b"y")
        await mount.alice.close(handle)
        assert await settled(ledger, mount) == Amount(11 * UNIT, 2)


@fallocates
async def test_at_the_limit_what_was_allocated_behind_the_end_is_appended_to(
    store: Path, ledger: Book
) -> None:
    limit(ledger, units=11)
    async with image(store, ledger, name=".image", flags=os.O_WRONLY | os.O_APPEND) as (mount, handle):
        await allocate(mount, handle, KEEP, 0, 10 * UNIT)
        assert await mount.fs.content.write(handle, 0, b"y" * 4 * UNIT) == 4 * UNIT
        await mount.alice.close(handle)
        await mount.alice.append(f"{SET}/.image", b"y" * 6 * UNIT)
        assert (await mount.alice.stat(f"{SET}/.image")).stat.st_size == 10 * UNIT
        assert await settled(ledger, mount) == Amount(11 * UNIT, 2)


@fallocates
@pytest.mark.parametrize("mode", [None, 0, KEEP], ids=["written", "allocated", "keeping the size"])
async def test_what_is_punched_is_free_at_once_and_costs_again(
    store: Path, ledger: Book, mode: int | None
) -> None:
    limit(ledger, units=11)
    async with image(store, ledger, 10 if mode is None else 1) as (mount, handle):
        if mode is not None:
            await allocate(mount, handle, mode, 0, 10 * UNIT)
        await mount.fs.content.write(handle, 10 * UNIT - 1, b"x")
        await allocate(mount, handle, PUNCH, UNIT - 1, 4 * UNIT + 2)
        assert used(ledger) == 7
        for name in "abcd":
            await mount.alice.mkdir(f"{SET}/{name}")
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            await mount.alice.mkdir(f"{SET}/more")
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            await mount.fs.content.write(handle, UNIT, b"x")
        mount.core.handle(handle).node.failed = False
        with refused(errno.EDQUOT):
            await mount.fs.content.allocate(handle, 0, 0, 10 * UNIT)
        await mount.alice.rmdir(f"{SET}/a")
        assert await mount.fs.content.write(handle, UNIT, b"x") == 1
        await mount.alice.close(handle)
        assert await settled(ledger, mount) == Amount(11 * UNIT, 5)


@fallocates
async def test_what_ext4_does_not_free_behind_the_end_is_not_given_for_nothing(
    store: Path, ledger: Book
) -> None:
    async with image(store, ledger, 1) as (mount, handle):
        fd = mount.core.handle(handle).fd
        for _ in range(3):
            await allocate(mount, handle, KEEP, 0, 100 * UNIT)
            await allocate(mount, handle, PUNCH, 0, 100 * UNIT)
        assert os.fstat(fd).st_blocks * 512 // UNIT <= used(ledger)
        await mount.alice.close(handle)
        counted = await settled(ledger, mount)
        assert (await mount.alice.stat(f"{SET}/image")).stat.st_blocks * 512 <= counted.bytes
        await mount.alice.setattr(f"{SET}/image", Changes(size=UNIT))  # which frees it
        assert await settled(ledger, mount) == Amount(UNIT, 2)
        assert (await mount.alice.stat(f"{SET}/image")).stat.st_blocks * 512 <= UNIT


@fallocates
@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize(("size", "left"), [(0, 0), (UNIT + 1, 2), (4 * UNIT, 4), (20 * UNIT, 10)])
async def test_what_is_cut_off_is_free(
    store: Path, ledger: Book, size: int, left: int, *, by_name: bool
) -> None:
    async with image(store, ledger, 4, name=".image") as (mount, handle):
        await allocate(mount, handle, KEEP, 0, 10 * UNIT)
        if by_name:
            await mount.alice.close(handle)
            await settled(ledger, mount)
            await mount.alice.setattr(f"{SET}/.image", Changes(size=size))
        else:
            ino = mount.core.handle(handle).node.ino
            await mount.fs.metadata.setattr(ino, Changes(size=size), handle, ALICE)
            assert used(ledger) == 1 + left
            await mount.alice.close(handle)
        assert await settled(ledger, mount) == Amount((1 + left) * UNIT, 2)


@fallocates
async def test_two_mounts_allocate_in_one_file_within_the_limit(store: Path, ledger: Book) -> None:
    limit(ledger, units=11)
    async with charged(store, ledger) as one, charged(store, ledger, node="b") as other:
        await one.alice.mkdir(SET)
        first = await one.alice.create(f"{SET}/.image", flags=os.O_WRONLY)
        second = await other.alice.open(f"{SET}/.image", os.O_WRONLY)
        await allocate(one, first, 0, 0, 5 * UNIT)
        with refused(errno.EDQUOT):
            await other.fs.content.allocate(second, KEEP, 20 * UNIT, 6 * UNIT)
        await allocate(other, second, KEEP, 20 * UNIT, 5 * UNIT)
        await allocate(one, first, PUNCH, 0, 2 * UNIT)
        assert total(ledger) == 11  # as long as both write it
        with refused(errno.EDQUOT):
            await other.fs.content.allocate(second, 0, 30 * UNIT, UNIT)
        await one.alice.close(first)
        await other.alice.close(second)
        assert await settled(ledger, one, other) == Amount(9 * UNIT, 2)


@fallocates
async def test_what_was_removed_gives_way_to_what_is_allocated(
    store: Path, ledger: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is needed, however many pieces that are."""
    monkeypatch.setattr("ckfs.fs.keeping.ROOM_BYTES", UNIT)
    monkeypatch.setattr("ckfs.fs.allocating.ROOM_BYTES", UNIT)
    limit(ledger, units=41)
    async with image(store, ledger) as (mount, handle):
        for number in range(40):
            await mount.alice.save(f"{SET}/{number}", bytes(UNIT))
            await mount.alice.unlink(f"{SET}/{number}")
        with refused(errno.EDQUOT):  # more than he may have in all: nothing goes for that
            await mount.fs.content.allocate(handle, 0, 0, 42 * UNIT)
        assert len(list(mount.core.store.trash.items())) == 40
        await allocate(mount, handle, 0, 0, 35 * UNIT)
        assert 0 < len(list(mount.core.store.trash.items())) <= 5
        await mount.alice.close(handle)
        await settled(ledger, mount)


async def test_what_the_store_could_not_do_is_claimed_no_more(
    store: Path, ledger: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(syscalls, "fallocate", lacks)
    limit(ledger, units=20)
    async with image(store, ledger) as (mount, handle):
        await mount.fs.content.write(handle, 0, b"x" * UNIT)
        with refused(errno.EOPNOTSUPP):
            await mount.fs.content.allocate(handle, 0, 0, 15 * UNIT)
        await charging_of(mount).grants.post()
        other = await mount.alice.create(f"{SET}/other", flags=os.O_WRONLY)
        assert await mount.fs.content.write(other, 0, b"x" * 18 * UNIT) == 18 * UNIT
        await mount.alice.close(other)
        await mount.alice.close(handle)
        assert await mount.alice.state(f"{SET}/image") is State.COMPLETE
        assert await settled(ledger, mount) == Amount(20 * UNIT, 3)


@fallocates
@pytest.mark.parametrize("part", [0, 3], ids=["nothing", "a part"])
async def test_what_the_store_did_before_it_failed_is_charged(
    store: Path, ledger: Book, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = syscalls.fallocate

    def full(fd: int, mode: int, offset: int, length: int) -> None:
        if part:
            real(fd, mode, offset, part * UNIT)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with image(store, ledger) as (mount, handle):
        with monkeypatch.context() as patched:
            patched.setattr(syscalls, "fallocate", full)
            with refused(errno.ENOSPC):
                await mount.fs.content.allocate(handle, KEEP, 0, 9 * UNIT)
        noted = sum(end - begin for begin, end in allocated.of(mount.core.handle(handle).fd))
        assert noted == (9 * UNIT if part else 0)
        await mount.alice.close(handle)
        assert await mount.alice.state(f"{SET}/image") is State.PARTIAL
        assert (await settled(ledger, mount)).bytes == UNIT + noted


@fallocates
async def test_what_is_done_too_late_is_claimed_until_then(
    store: Path, ledger: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go, real = threading.Event(), allocating.allocate

    def late(*how: object) -> tuple[int, int]:
        assert may_go.wait(ENOUGH_S)
        return real(*how)  # type: ignore[arg-type]  # whatever its caller gave it

    monkeypatch.setattr(allocating, "allocate", late)
    limit(ledger, units=12)
    async with charged(store, ledger, timeout_s=1.0) as mount, trio.open_nursery() as nursery:
        nursery.start_soon(mount.core.gate.watch)
        await mount.alice.mkdir(SET)
        handle = await mount.alice.create(f"{SET}/image", flags=os.O_WRONLY)
        with refused(errno.ETIMEDOUT):
            await mount.fs.content.allocate(handle, 0, 0, 10 * UNIT)
        await until(lambda: mount.core.gate.is_up)
        await mount.alice.mkdir(f"{SET}/a")
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            await mount.alice.mkdir(f"{SET}/b")
        may_go.set()
        await until(lambda: not mount.core.gate.overdue)
        await mount.alice.close(handle)
        assert await mount.alice.state(f"{SET}/image") is State.PARTIAL
        assert await settled(ledger, mount) == Amount(12 * UNIT, 3)
        nursery.cancel_scope.cancel()


Change = Callable[[Mount, FileHandle], Awaitable[Amount]]


async def removed(mount: Mount, handle: FileHandle) -> Amount:
    await mount.alice.unlink(f"{SET}/image")
    for item in list(mount.core.store.trash.items(Uid(ALICE.uid))):
        mount.core.store.trash.purge(item)
    return Amount(UNIT, 1)


async def removed_to_the_trash(mount: Mount, handle: FileHandle) -> Amount:
    await mount.alice.unlink(f"{SET}/image")
    return Amount(11 * UNIT, 2)


async def linked(mount: Mount, handle: FileHandle) -> Amount:
    await mount.alice.link(f"{SET}/image", f"{SET}/other")
    await mount.alice.unlink(f"{SET}/image")
    return Amount(11 * UNIT, 2)


async def emptied(mount: Mount, handle: FileHandle) -> Amount:
    await mount.alice.close(await mount.alice.open(f"{SET}/image", os.O_WRONLY | os.O_TRUNC))
    return Amount(11 * UNIT, 3)  # what was in it is in the trash


async def given_away(mount: Mount, handle: FileHandle) -> Amount:
    await mount.root.setattr(SET, Changes(uid=Uid(BOB.uid), gid=Gid(BOB.gid)))
    assert await settled_of_bob(mount) == Amount(11 * UNIT, 2)
    return Amount()


async def settled_of_bob(mount: Mount) -> Amount:
    ledger = mount.core.ledger
    assert isinstance(ledger, Book)
    return await settled(ledger, mount, uid=BOB.uid)


@fallocates
@pytest.mark.parametrize("change", [removed, removed_to_the_trash, linked, emptied, given_away])
async def test_it_goes_where_the_file_goes(store: Path, ledger: Book, change: Change) -> None:
    async with image(store, ledger, 1) as (mount, handle):
        await allocate(mount, handle, KEEP, 0, 10 * UNIT)
        await mount.alice.close(handle)
        await settled(ledger, mount)
        expected = await change(mount, handle)
        assert await settled(ledger, mount) == expected


@fallocates
async def test_what_is_removed_while_it_is_open_counts_with_it(store: Path, ledger: Book) -> None:
    limit(ledger, units=11)
    async with image(store, ledger, 1, name=".image") as (mount, handle):
        await mount.alice.unlink(f"{SET}/.image")
        await allocate(mount, handle, KEEP, 0, 10 * UNIT)
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            await mount.alice.mkdir(f"{SET}/more")
        await mount.alice.close(handle)
        assert await settled(ledger, mount) == Amount(UNIT, 1)
