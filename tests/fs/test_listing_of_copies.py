"""Who lists a directory while its set is copied to a new owner gets each name once, on every mount.

The copy is another directory of the store, with offsets of its own. Where root may chown there is none.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.testing

from ckfs.errors import Stale
from ckfs.fs import given
from ckfs.fs.metadata import Changes
from ckfs.model import Caller, Role
from ckfs.names import FileHandle, Inode
from ckfs.store.handover import Copying
from ckfs.store.spots import Found
from tests.fs.cores import ALICE, BOB, Mount, mounted

pytestmark = [pytest.mark.trio, pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

SET = "7.server.CK"
_LIMIT_S = 30.0


@dataclass
class Cluster:
    """Two mounts of a store. Sets are given away on *giver*."""

    giver: Mount
    other: Mount

    def mount(self, which: str) -> Mount:
        return self.giver if which == "giver" else self.other

    async def make(self, count: int) -> set[bytes]:
        """A set of *count* files that are alice's."""
        await self.giver.root.mkdir(SET)
        names = [f"{number:04}" for number in range(count)]
        for name in names:
            await self.giver.root.mknod(f"{SET}/{name}")
        await self.give(ALICE)
        return {name.encode() for name in names}

    async def give(self, to: Caller) -> None:
        """The set's files are *to*'s when this returns."""
        await self.giver.root.setattr(SET, Changes(uid=to.uid, gid=to.gid))
        assert (await self.other.root.stat(SET)).stat.st_uid == to.uid


@pytest.fixture
async def cluster(store: Path) -> AsyncIterator[Cluster]:
    async with (
        mounted(store, node="a", role=Role.SERVER) as a,
        mounted(store, node="b", role=Role.SERVER) as b,
    ):
        yield Cluster(a, b)
        a.check_nothing_held()
        b.check_nothing_held()


@dataclass
class Stream:
    """An open directory, read as the kernel does: from the offset of the last name that the caller took."""

    mount: Mount
    handle: FileHandle
    offset: int = 0
    seen: list[bytes] = field(default_factory=list)

    async def read(self, limit: int = 10_000, *, taken: int | None = None) -> int:
        """One answer with *limit* names at most, of which the caller takes the first *taken*: how many there were."""
        answer: list[tuple[bytes, int]] = []

        def emit(name: bytes, found: Found, next_offset: int) -> bool:
            if len(answer) == limit:
                return False
            answer.append((name, next_offset))
            if name not in (b".", b".."):
                forget.append(found.record.ino)
            return True

        forget: list[Inode] = []
        await self.mount.fs.listing.readdir(self.handle, self.offset, emit)
        for ino in forget:
            self.mount.fs.forget(ino, 1)
        for name, next_offset in answer[:taken]:
            self.offset = next_offset
            self.seen.append(name)
        return len(answer)

    def rewind(self) -> None:
        self.offset, self.seen = 0, []

    async def rest(self) -> list[bytes]:
        """All names up to the end, after those that were seen before; without the directory itself."""
        while await self.read():
            pass
        return self.names()

    def names(self) -> list[bytes]:
        return sorted(name for name in self.seen if name not in (b".", b".."))


@contextlib.asynccontextmanager
async def opened(mount: Mount) -> AsyncIterator[Stream]:
    async with mount.root.at(SET) as ino:
        handle = await mount.fs.listing.opendir(ino, mount.root.caller)
    try:
        yield Stream(mount, handle)
    finally:
        await mount.fs.listing.releasedir(handle)


@contextlib.asynccontextmanager
async def held(monkeypatch: pytest.MonkeyPatch, step: str) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """Hand-overs stop right before this *step* of :class:`Copying`, for which one waits within the block, until its end."""
    reached, may_go = threading.Event(), threading.Event()
    real = getattr(Copying, step)

    def waiting(self: Copying) -> object:
        reached.set()
        assert may_go.wait(_LIMIT_S)
        return real(self)

    monkeypatch.setattr(Copying, step, waiting)
    yield lambda: trio.to_thread.run_sync(reached.wait, _LIMIT_S)
    may_go.set()


@pytest.mark.parametrize("at", ["giver", "other"])
@pytest.mark.parametrize("seen", [0, 1, 3, 4])
async def test_a_listing_goes_on_in_the_copy(cluster: Cluster, at: str, seen: int) -> None:
    made = await cluster.make(4)
    async with opened(cluster.mount(at)) as stream:
        await stream.read(seen)
        await cluster.give(BOB)
        assert await stream.rest() == sorted(made)


@pytest.mark.parametrize("at", ["giver", "other"])
async def test_a_long_listing_goes_on_in_one_copy_after_the_other(cluster: Cluster, at: str) -> None:
    made = await cluster.make(20)
    async with opened(cluster.mount(at)) as stream:
        for owner in (BOB, ALICE, BOB):
            await stream.read(5)
            await cluster.give(owner)
        assert await stream.rest() == sorted(made)


@pytest.mark.parametrize("at", ["giver", "other"])
async def test_what_the_caller_had_no_room_for_is_given_again(cluster: Cluster, at: str) -> None:
    """The kernel asks for five names, and whoever called it takes three of them; it asks for the others in the copy."""
    made = await cluster.make(12)
    async with opened(cluster.mount(at)) as stream:
        await stream.read(5, taken=3)
        await cluster.give(BOB)
        await stream.read(5, taken=3)
        await stream.read(5, taken=3)
        assert await stream.rest() == sorted(made)


async def test_a_listing_begins_anew_in_the_copy_when_it_is_rewound(cluster: Cluster) -> None:
    made = await cluster.make(6)
    async with opened(cluster.other) as stream:
        await stream.read(4)
        await cluster.give(BOB)
        await stream.read(2)
        stream.rewind()
        assert await stream.rest() == sorted(made)


async def test_who_waits_for_the_switch_goes_on_after_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He is on his way while nobody may be on the set; where he is to read is not what it was when he came."""
    made = await cluster.make(4)
    async with (
        opened(cluster.giver) as stream,
        trio.open_nursery() as nursery,
        held(monkeypatch, "finish") as switching,
    ):
        async with held(monkeypatch, "begin") as copying:
            nursery.start_soon(cluster.give, BOB)
            await copying()
            await stream.rest()
        await switching()
        nursery.start_soon(stream.read)
        await trio.testing.wait_all_tasks_blocked()
    assert stream.names() == sorted(made)


@pytest.mark.parametrize("at", ["giver", "other"])
async def test_a_very_long_listing_that_nobody_remembers_is_an_error(
    cluster: Cluster, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than one that is short, or has names twice."""
    monkeypatch.setattr(given, "_MOST", 4)
    made = await cluster.make(8)
    async with opened(cluster.mount(at)) as stream:
        await stream.read(5)
        await cluster.give(BOB)
        with pytest.raises(Stale):
            await stream.read()
        stream.rewind()
        assert await stream.rest() == sorted(made)
