"""Digests that are made while an image is written: right whatever happens to it, and without reading it where one mount wrote it in order."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio

from ckfs.errors import FsError
from ckfs.fs.metadata import Changes
from ckfs.model import Caller, State
from ckfs.names import FileHandle, Gid, Uid
from ckfs.store.rereading import Reading, Result
from tests.fs.cores import ALICE, Mount, Process, lies_at
from tests.fs.test_digests import NOW, WITHIN_S, checker, digest, digesting, of, spot_of

pytestmark = [pytest.mark.root, pytest.mark.trio]

PIECE = bytes(range(256)) * 20
CONTENT = PIECE * 3
IMAGE = "s/image"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes were read of images to make their digests, one number for each step."""
    counts: list[int] = []
    step = Reading.step

    def counted(reading: Reading) -> bool:
        before = reading.offset
        more = step(reading)
        counts.append(reading.offset - before)
        return more

    monkeypatch.setattr(Reading, "step", counted)
    return counts


async def write(process: Process, handle: FileHandle, *pieces: tuple[int, bytes]) -> None:
    for at, piece in pieces:
        assert await process.fs.content.write(handle, at, piece) == len(piece)


async def in_order(process: Process, path: str, flags: int = os.O_WRONLY) -> None:
    handle = await process.create(path, flags=flags)
    await write(process, handle, *((at, CONTENT[at : at + 1000]) for at in range(0, len(CONTENT), 1000)))
    await process.close(handle)


# Without reading


async def as_blcr(alice: Process) -> None:
    """Renamed, and closed last."""
    handle = await alice.create("s/.image.tmp", flags=os.O_WRONLY)
    await write(alice, handle, (0, PIECE), (len(PIECE), PIECE), (2 * len(PIECE), PIECE))
    await alice.rename("s/.image.tmp", IMAGE)
    await alice.fs.content.fsync(handle, data_only=False)
    await alice.close(handle)


async def as_dmtcp(alice: Process) -> None:
    """Closed, and renamed last."""
    handle = await alice.create("s/image.temp", flags=os.O_WRONLY)
    async with alice.at("s/image.temp"):  # the kernel knows it as long as it remembers the name
        await write(alice, handle, (0, CONTENT))
        await alice.close(handle)
        await alice.rename("s/image.temp", IMAGE)


async def appending(alice: Process) -> None:
    await in_order(alice, IMAGE, os.O_WRONLY | os.O_APPEND)


@pytest.mark.parametrize("way", [as_blcr, as_dmtcp, appending])
async def test_what_is_written_in_order_is_not_read_for_its_digest(
    store: Path, way: Callable[[Process], Awaitable[None]], read: list[int]
) -> None:
    async with digesting(store) as mount:
        await mount.alice.mkdir("s")
        await way(mount.alice)
        assert await digest(mount.alice, IMAGE) == of(CONTENT)
        assert read == []
        assert checker(mount).check(spot_of(mount, b"s", b"image"), NOW)[0] is Result.VERIFIED
        await mount.until_nothing_is_held()


async def test_it_stays_known_whatever_is_done_to_its_name_and_looks(store: Path, read: list[int]) -> None:
    async with digesting(store, delay_s=0.2) as mount:
        alice = mount.alice
        await alice.mkdir("s")
        await in_order(alice, IMAGE)
        await alice.setattr(IMAGE, Changes(mode=0o400))
        await alice.setattr(IMAGE, Changes(mtime_ns=5))
        await alice.link(IMAGE, "s/second")
        assert await digest(alice, "s/second") == of(CONTENT)
        assert read == []


async def test_what_was_changed_before_it_was_kept_is_read(store: Path, read: list[int]) -> None:
    async with digesting(store, delay_s=0.2) as mount:
        alice = mount.alice
        await alice.mkdir("s")
        await in_order(alice, IMAGE)
        await alice.append(IMAGE, b"more")
        assert await digest(alice, IMAGE) == of(CONTENT + b"more")
        assert sum(read) == len(CONTENT) + 4


async def test_an_image_that_is_overwritten_is_read(store: Path, read: list[int]) -> None:
    """It was there before, and others may have it open."""
    async with digesting(store) as mount:
        alice = mount.alice
        await alice.mkdir("s")
        await alice.save(IMAGE, b"before")
        await digest(alice, IMAGE)
        handle = await alice.open(IMAGE, os.O_WRONLY | os.O_TRUNC)
        await write(alice, handle, (0, CONTENT))
        await alice.close(handle)
        assert await digest(alice, IMAGE) == of(CONTENT)
        assert sum(read) == len(CONTENT)


# What one mount alone does not write in order is read


@dataclass(frozen=True)
class Writing:
    """An image that *alice* on one mount has written the first piece of, through *handle*; *other* is on another mount."""

    alice: Process
    handle: FileHandle
    other: Process

    async def goes_on(self) -> None:
        """To its end, in order."""
        await write(self.alice, self.handle, (len(PIECE), PIECE), (2 * len(PIECE), PIECE))


async def rewritten(writing: Writing) -> None:
    await writing.goes_on()
    await write(writing.alice, writing.handle, (7, b"X"))


async def with_a_hole(writing: Writing) -> None:
    await write(writing.alice, writing.handle, (2 * len(PIECE), PIECE))


async def in_another_order(writing: Writing) -> None:
    await write(writing.alice, writing.handle, (2 * len(PIECE), PIECE), (len(PIECE), PIECE))


async def by_two_in_turn(writing: Writing) -> None:
    second = await writing.alice.open(IMAGE, os.O_WRONLY)
    await write(writing.alice, second, (len(PIECE), PIECE))
    await write(writing.alice, writing.handle, (2 * len(PIECE), PIECE))
    await writing.alice.close(second)


async def by_two_at_once(writing: Writing) -> None:
    async with trio.open_nursery() as nursery:
        for at in (1, 2):
            piece = (at * len(PIECE), PIECE)
            nursery.start_soon(write, writing.alice, writing.handle, piece)


async def cut(writing: Writing) -> None:
    ino = writing.alice.fs.core.handle(writing.handle).node.ino
    await writing.goes_on()
    for size in (10, len(CONTENT)):
        await writing.alice.fs.metadata.setattr(ino, Changes(size=size), writing.handle, writing.alice.caller)


async def cut_by_name(writing: Writing, *, elsewhere: bool) -> None:
    process = writing.other if elsewhere else writing.alice
    for size in (10, len(PIECE)):
        await process.setattr(IMAGE, Changes(size=size))
    await writing.goes_on()


async def cut_by_a_handle_elsewhere(writing: Writing) -> None:
    other = writing.other
    handle = await other.open(IMAGE, os.O_WRONLY)
    ino = other.fs.core.handle(handle).node.ino
    for size in (10, len(PIECE)):
        await other.fs.metadata.setattr(ino, Changes(size=size), handle, other.caller)
    await other.close(handle)
    await writing.goes_on()


async def written_inside_elsewhere(writing: Writing) -> None:
    handle = await writing.other.open(IMAGE, os.O_WRONLY)
    await write(writing.other, handle, (7, b"X"))
    await writing.other.close(handle)
    await writing.goes_on()


async def written_inside_elsewhere_and_opened_again_here(writing: Writing) -> None:
    other = await writing.other.open(IMAGE, os.O_WRONLY)
    await write(writing.other, other, (7, b"X"))
    await writing.other.close(other)
    again = await writing.alice.open(IMAGE, os.O_WRONLY)
    await write(writing.alice, again, (len(PIECE), 2 * PIECE))
    await writing.alice.close(again)


async def written_inside_elsewhere_at_last(writing: Writing) -> None:
    handle = await writing.other.open(IMAGE, os.O_WRONLY)
    await writing.goes_on()
    await write(writing.other, handle, (7, b"X"))
    await writing.other.close(handle)


async def overwritten_elsewhere(writing: Writing) -> None:
    handle = await writing.other.open(IMAGE, os.O_WRONLY | os.O_TRUNC)
    await write(writing.other, handle, (0, PIECE[::-1]))
    await writing.goes_on()
    await writing.other.close(handle)


CHANGES: list[Callable[[Writing], Awaitable[None]]] = [
    rewritten,
    with_a_hole,
    in_another_order,
    by_two_in_turn,
    by_two_at_once,
    cut,
    partial(cut_by_name, elsewhere=False),
    partial(cut_by_name, elsewhere=True),
    cut_by_a_handle_elsewhere,
    written_inside_elsewhere,
    written_inside_elsewhere_and_opened_again_here,
    written_inside_elsewhere_at_last,
    overwritten_elsewhere,
]


@contextlib.asynccontextmanager
async def two_mounts(store: Path) -> AsyncIterator[tuple[Mount, Mount]]:
    async with digesting(store, "a") as a, digesting(store, "b") as b:
        await a.alice.mkdir("s")
        yield a, b


def in_the_store(store: Path) -> bytes:
    return (lies_at(store, "s") / "image").read_bytes()


@pytest.mark.parametrize(
    "change", CHANGES, ids=lambda change: getattr(change, "__name__", None) or f"{change.keywords}"
)
async def test_what_another_order_or_another_mount_made_has_the_digest_of_what_it_is(
    store: Path, change: Callable[[Writing], Awaitable[None]], read: list[int]
) -> None:
    async with two_mounts(store) as (a, b):
        handle = await a.alice.create(IMAGE)
        await write(a.alice, handle, (0, PIECE))
        await change(Writing(a.alice, handle, b.alice))
        await a.alice.close(handle)
        made = await digest(a.alice, IMAGE)
        content = in_the_store(store)
        assert made == of(content)
        assert len(content) == len(CONTENT)
        assert sum(read) >= len(content)  # twice, where each mount has something to say


async def test_another_mount_may_write_what_is_closed_but_has_no_final_name(
    store: Path, read: list[int]
) -> None:
    """Nobody has a mark on it then."""
    async with two_mounts(store) as (a, b):
        handle = await a.alice.create("s/image.temp")
        async with a.alice.at("s/image.temp"):
            await write(a.alice, handle, (0, CONTENT))
            await a.alice.close(handle)
            handle = await b.alice.open("s/image.temp", os.O_WRONLY)
            await write(b.alice, handle, (7, b"X"))
            await b.alice.close(handle)
            await a.alice.rename("s/image.temp", IMAGE)
        assert await digest(a.alice, IMAGE) == of(in_the_store(store))
        assert sum(read) == len(CONTENT)


async def test_what_is_written_after_others_had_it_open_is_read(store: Path, read: list[int]) -> None:
    """The other mount has marked the empty file before this one begins it, and writes last."""
    async with two_mounts(store) as (a, b):
        made = await b.alice.create(IMAGE)
        handle = await a.alice.open(IMAGE, os.O_WRONLY | os.O_TRUNC)
        await write(a.alice, handle, (0, CONTENT))
        await write(b.alice, made, (7, b"X"))
        await b.alice.close(made)
        await a.alice.close(handle)
        assert await digest(a.alice, IMAGE) == of(in_the_store(store))
        assert sum(read) == len(CONTENT)


async def test_what_failed_is_not_known(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image whose write failed is torn; written anew, it is what it is then."""
    async with digesting(store) as mount:
        alice, pwrite = mount.alice, os.pwrite
        await alice.mkdir("s")
        handle = await alice.create(IMAGE)
        await write(alice, handle, (0, PIECE))

        def fails(fd: int, piece: bytes, at: int) -> int:
            pwrite(fd, b"X", 7)
            raise OSError(5, "a bad sector")

        monkeypatch.setattr(os, "pwrite", fails)
        with pytest.raises(OSError, match="bad sector"):
            await write(alice, handle, (len(PIECE), PIECE))
        monkeypatch.undo()
        await write(alice, handle, (len(PIECE), PIECE))
        await alice.close(handle)
        assert await alice.state(IMAGE) is State.PARTIAL
        handle = await alice.open(IMAGE, os.O_WRONLY | os.O_TRUNC)
        await write(alice, handle, (0, CONTENT))
        await alice.close(handle)
        assert await digest(alice, IMAGE) == of(CONTENT)


async def test_a_set_that_goes_to_another_owner_while_it_is_written(store: Path) -> None:
    async with digesting(store) as mount:
        await mount.root.mkdir("s")
        handle = await mount.root.create(IMAGE)
        await write(mount.root, handle, (0, PIECE))
        await mount.root.setattr("s", Changes(uid=Uid(2101), gid=Gid(2101)))
        with contextlib.suppress(OSError, FsError):
            await write(mount.root, handle, (len(PIECE), PIECE))
        with contextlib.suppress(OSError, FsError):
            await mount.root.close(handle)
        if await mount.root.state(IMAGE) is State.COMPLETE:
            assert await digest(mount.root, IMAGE) == of(in_the_store(store))


# Any order of anything


@dataclass
class Writer:
    """A process on one of two mounts, with what it has open of one image."""

    process: Process
    handles: list[FileHandle] = field(default_factory=list)
    at: int = 0

    async def step(self, random: random.Random) -> None:
        steps = [self.make, self.overwrite, self.open, self.cut_by_name, *[self.go_on] * 8]
        steps += [self.inside, self.cut, self.close, self.close, self.rename]
        with contextlib.suppress(FileNotFoundError, FileExistsError, FsError):
            await random.choice(steps)(random)

    async def make(self, _: random.Random) -> None:
        self.handles.append(await self.process.create(IMAGE))
        self.at = 0

    async def overwrite(self, _: random.Random) -> None:
        self.handles.append(await self.process.open(IMAGE, os.O_WRONLY | os.O_TRUNC))
        self.at = 0

    async def open(self, _: random.Random) -> None:
        self.handles.append(await self.process.open(IMAGE, os.O_RDWR))

    async def go_on(self, random: random.Random) -> None:
        if self.handles:
            piece = random.randbytes(random.randint(1, 40))
            self.at += await self.process.fs.content.write(random.choice(self.handles), self.at, piece)

    async def inside(self, random: random.Random) -> None:
        if self.handles:
            await self.process.fs.content.write(random.choice(self.handles), random.randint(0, 100), b"X")

    async def cut(self, random: random.Random) -> None:
        if self.handles:
            await self._cut(random.choice(self.handles), random)

    async def cut_by_name(self, random: random.Random) -> None:
        await self._cut(None, random)

    async def _cut(self, handle: FileHandle | None, random: random.Random) -> None:
        size = random.choice([0, random.randint(0, 200), self.at])
        async with self.process.at(IMAGE) as ino:
            if handle is not None:
                ino = self.process.fs.core.handle(handle).node.ino
            await self.process.fs.metadata.setattr(ino, Changes(size=size), handle, self.process.caller)

    async def rename(self, random: random.Random) -> None:
        old, new = random.sample([IMAGE, f"{IMAGE}.tmp"], 2)
        await self.process.rename(old, new)

    async def close(self, random: random.Random) -> None:
        if self.handles:
            await self.process.close(self.handles.pop(random.randrange(len(self.handles))))


SEEDS = range(int(os.environ.get("CKFS_SEED", "0")), int(os.environ.get("CKFS_SEED", "0")) + 60)


@pytest.mark.plain_alone(
    "there another mount may see for a moment what was before, which is no digest's matter"
)
@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_writes_it_its_digest_is_of_what_it_is(store: Path, seed: int) -> None:
    order = random.Random(seed)
    async with two_mounts(store) as (a, b):
        mounts = (a, b)
        writers = [Writer(mount.process(Caller(ALICE.uid, ALICE.gid, 0, 0o022))) for mount in (a, a, b)]
        few = writers[: order.choice([1, 1, 2, 3])]
        await few[0].make(order)
        async with contextlib.AsyncExitStack() as known:
            for mount in mounts:  # the kernel remembers, or it does not
                if order.random() < 0.7:
                    await known.enter_async_context(mount.alice.at(IMAGE))
            for _ in range(order.choice([10, 20, 40])):
                await order.choice(few).step(order)
            with contextlib.suppress(FileNotFoundError, FsError):
                await few[0].process.rename(f"{IMAGE}.tmp", IMAGE)
        for writer in writers:
            while writer.handles:
                with contextlib.suppress(FsError):  # of a file that another mount has replaced
                    await writer.close(order)
        with trio.fail_after(WITHIN_S):
            while any(len(mount.core.undigested) for mount in mounts):  # noqa: ASYNC110 - nobody else is told of it
                await trio.sleep(0.005)
        try:
            state = await a.alice.state(IMAGE)
        except FileNotFoundError:
            return
        content = in_the_store(store)
        if state is State.COMPLETE and content:
            assert await digest(a.alice, IMAGE) == of(content)
