"""Two mounts and one image: no digest is kept of what another mount had a part in but one that was read; and nobody writes into what is
complete without saying so first. Whatever answers come late, and whoever looks between two steps of another."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from ckfs.errors import StoreDown
from ckfs.fs.liveness import Fate
from ckfs.fs.metadata import Changes
from ckfs.model import State
from ckfs.names import FileHandle, MountId
from ckfs.store import attributes, record, writing
from ckfs.store.door import Door
from ckfs.store.namespace import Namespace
from ckfs.store.rereading import Result
from tests.fs.cores import Mount, lies_at
from tests.fs.test_digests import NOW, WITHIN_S, checker, digest, digesting, of, spot_of
from tests.fs.test_digests_while_writing import CONTENT, IMAGE, PIECE, in_the_store, two_mounts, write

pytestmark = [pytest.mark.root, pytest.mark.trio]

END = len(PIECE)
TEMPORARY = "s/image.temp"
OP_TIMEOUT_S = 2.0
DEAD = MountId(b"0123456789abcdef")


class Held:
    """A step that begins, and goes on when it is let."""

    def __init__(self) -> None:
        self._begun, self._go = threading.Event(), threading.Event()

    def first(self, patch: pytest.MonkeyPatch, where: object, name: str, *, after: bool = False) -> None:
        """The first call of *where*'s *name* is this step: it is held before it is made, or *after*."""
        real = getattr(where, name)

        def slow(*args: object) -> object:
            is_first = not self._begun.is_set()
            if is_first and not after:
                self()
            result = real(*args)
            if is_first and after:
                self()
            return result

        patch.setattr(where, name, slow)

    def __call__(self) -> None:
        self._begun.set()
        assert self._go.wait(WITHIN_S)

    async def begun(self) -> None:
        assert await trio.to_thread.run_sync(self._begun.wait, WITHIN_S)

    def go(self) -> None:
        self._go.set()


async def patch_byte(mount: Mount, path: str) -> None:
    handle = await mount.alice.open(path, os.O_WRONLY)
    await write(mount.alice, handle, (7, b"X"))
    await mount.alice.close(handle)


async def go_on(mount: Mount, path: str) -> None:
    """From where the first piece ends."""
    handle = await mount.alice.open(path, os.O_WRONLY)
    await write(mount.alice, handle, (END, PIECE))
    await mount.alice.close(handle)


async def check(store: Path, *mounts: Mount) -> None:
    """The image is complete, and its digest is of what it is."""
    with trio.fail_after(WITHIN_S):
        while any(len(mount.core.undigested) for mount in mounts):  # noqa: ASYNC110 - nobody else is told of it
            await trio.sleep(0.01)
    last = mounts[-1]
    assert await last.alice.state(IMAGE) is State.COMPLETE
    assert await digest(last.alice, IMAGE) == of(in_the_store(store))
    assert checker(last).check(spot_of(last, b"s", b"image"), NOW)[0] is Result.VERIFIED


async def until_answered(mount: Mount) -> None:
    """The store is up again, and nothing is under way of which the caller was told that it took too long."""
    with trio.fail_after(WITHIN_S):
        while mount.core.gate.overdue or not mount.core.gate.is_up:  # noqa: ASYNC110 - nobody else is told of it
            await trio.sleep(0.01)


@contextlib.asynccontextmanager
async def watched(mount: Mount) -> AsyncIterator[None]:
    """In the block its store is up again as soon as it answers."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.core.gate.watch)
        yield
        nursery.cancel_scope.cancel()


@contextlib.contextmanager
def impatient(mount: Mount) -> Iterator[None]:
    """Calls of *mount* that begin in the block are answered soon, whatever the store does."""
    gate, usual_s = mount.core.gate, mount.core.gate.op_timeout_s
    gate.op_timeout_s = OP_TIMEOUT_S
    try:
        yield
    finally:
        gate.op_timeout_s = usual_s


# The kernel of a mount remembers a file, and what was written of it there, while another mount goes on with it


async def closed_while_the_other_writes(a: Mount, b: Mount, made: FileHandle) -> None:
    other = await b.alice.open(TEMPORARY, os.O_WRONLY)
    await write(b.alice, other, (7, b"X"))
    await a.alice.close(made)
    await b.alice.close(other)
    await go_on(a, TEMPORARY)
    await a.alice.rename(TEMPORARY, IMAGE)


async def completed_and_patched(a: Mount, b: Mount, made: FileHandle) -> None:
    await a.alice.close(made)
    await b.alice.rename(TEMPORARY, IMAGE)
    await patch_byte(b, IMAGE)
    await go_on(a, IMAGE)


async def completed_patched_and_renamed_back(a: Mount, b: Mount, made: FileHandle) -> None:
    await a.alice.close(made)
    await b.alice.rename(TEMPORARY, IMAGE)
    await patch_byte(b, IMAGE)
    await b.alice.rename(IMAGE, TEMPORARY)
    await a.alice.rename(TEMPORARY, IMAGE)


async def completed_cut_and_renamed_back(a: Mount, b: Mount, made: FileHandle) -> None:
    await a.alice.close(made)
    await b.alice.rename(TEMPORARY, IMAGE)
    for size in (10, END):
        await b.alice.setattr(IMAGE, Changes(size=size))
    await b.alice.rename(IMAGE, TEMPORARY)
    await a.alice.rename(TEMPORARY, IMAGE)


async def renamed_back_and_patched(a: Mount, b: Mount, made: FileHandle) -> None:
    await a.alice.close(made)
    await b.alice.rename(TEMPORARY, IMAGE)
    await b.alice.rename(IMAGE, TEMPORARY)
    await patch_byte(b, TEMPORARY)
    await a.alice.rename(TEMPORARY, IMAGE)


async def emptied(a: Mount, b: Mount, made: FileHandle) -> None:
    """Another file of the store takes its place, under the same number."""
    await a.alice.close(made)
    await b.alice.rename(TEMPORARY, IMAGE)
    await b.alice.setattr(IMAGE, Changes(size=0))
    await go_on(a, IMAGE)


async def overwritten_at_the_same_length(a: Mount, b: Mount, made: FileHandle) -> None:
    await a.alice.close(made)
    await b.alice.rename(TEMPORARY, IMAGE)
    handle = await b.alice.open(IMAGE, os.O_WRONLY | os.O_TRUNC)
    await write(b.alice, handle, (0, PIECE[::-1]))
    await b.alice.close(handle)
    await b.alice.rename(IMAGE, TEMPORARY)
    await a.alice.rename(TEMPORARY, IMAGE)


@pytest.mark.parametrize(
    "meanwhile",
    [
        closed_while_the_other_writes,
        completed_and_patched,
        completed_patched_and_renamed_back,
        completed_cut_and_renamed_back,
        renamed_back_and_patched,
        emptied,
        overwritten_at_the_same_length,
    ],
)
async def test_what_a_mount_wrote_is_not_all_that_the_image_is(
    store: Path, meanwhile: Callable[[Mount, Mount, FileHandle], Awaitable[None]]
) -> None:
    async with two_mounts(store) as (a, b):
        made = await a.alice.create(TEMPORARY)
        async with a.alice.at(TEMPORARY):
            await write(a.alice, made, (0, PIECE))
            await meanwhile(a, b, made)
        await check(store, a, b)


# Between two steps of another


@pytest.mark.parametrize("what", ["fsync", "chmod"])
async def test_who_rewrites_the_record_takes_nothing_from_it(
    store: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """One mount has read the record, another begins to write, and the first puts back what it read."""
    async with two_mounts(store) as (a, b), trio.open_nursery() as nursery:
        made = await a.alice.create(IMAGE)
        await write(a.alice, made, (0, PIECE))
        other, held, put = await b.alice.open(IMAGE, os.O_WRONLY), Held(), attributes.put
        to_hold = [record.ATTRIBUTE]

        def slow(where: attributes.Where, name: bytes, value: bytes) -> None:
            if to_hold and name == to_hold[0]:
                to_hold.clear()
                held()
            put(where, name, value)

        monkeypatch.setattr(attributes, "put", slow)
        done = trio.Event()

        async def rewrite() -> None:
            if what == "fsync":
                await a.fs.content.fsync(made, data_only=False)
            else:
                await a.alice.setattr(IMAGE, Changes(mode=0o600))
            done.set()

        nursery.start_soon(rewrite)
        await held.begun()
        await write(b.alice, other, (7, b"X"))
        held.go()
        await done.wait()
        await b.alice.close(other)
        await write(a.alice, made, (END, PIECE))
        await a.alice.close(made)
        await check(store, a, b)


async def test_who_opens_a_file_before_its_maker_has_marked_it(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_mounts(store) as (a, b), trio.open_nursery() as nursery:
        held, made, is_made = Held(), list[FileHandle](), trio.Event()
        held.first(monkeypatch, Namespace, "_mark")

        async def make() -> None:
            made.append(await a.alice.create(IMAGE))
            is_made.set()

        nursery.start_soon(make)
        await held.begun()
        other = await b.alice.open(IMAGE, os.O_WRONLY)
        await write(b.alice, other, (0, b"X"))
        held.go()
        await is_made.wait()
        await write(a.alice, made[0], (0, CONTENT))
        await write(b.alice, other, (7, b"X"))
        await b.alice.close(other)
        await a.alice.close(made[0])
        await check(store, a, b)


async def test_who_begins_sees_what_was_said_before_his_mark(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that becomes complete in the moment before another mount marks it is being written anew."""
    async with two_mounts(store) as (a, b), trio.open_nursery() as nursery:
        made = await a.alice.create(IMAGE)
        await write(a.alice, made, (0, CONTENT))
        await patch_byte(b, IMAGE)
        other, held, done = await b.alice.open(IMAGE, os.O_WRONLY), Held(), trio.Event()
        reports = type(b.core.store.door.reports)
        held.first(monkeypatch, reports, "mark")

        async def begin() -> None:
            await write(b.alice, other, (9, b"Y"))
            done.set()

        nursery.start_soon(begin)
        await held.begun()
        await a.alice.close(made)
        await digest(a.alice, IMAGE)
        held.go()
        await done.wait()
        assert await a.alice.state(IMAGE) is State.WRITING
        await b.alice.close(other)
        await check(store, a, b)


# Answers that come too late


async def test_a_settling_that_happens_later_than_its_answer(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_mounts(store) as (a, b), watched(a):
        made, held = await a.alice.create(IMAGE), Held()
        await write(a.alice, made, (0, CONTENT))
        held.first(monkeypatch, writing, "finish", after=True)
        with impatient(a), pytest.raises(StoreDown):
            await a.fs.content.flush(made)
        held.go()
        await until_answered(a)
        await patch_byte(b, IMAGE)
        await a.fs.content.release(made)
        await check(store, a, b)


async def test_another_file_that_takes_its_place_later_than_the_answer(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who had it open goes on in the new file."""

    def fate(_: object, mount: MountId, __: float) -> Fate:
        return Fate.GONE if mount == DEAD else Fate.ALIVE

    async with two_mounts(store) as (a, b), watched(a):
        made, held = await a.alice.create(IMAGE), Held()
        await write(a.alice, made, (0, PIECE))
        os.setxattr(lies_at(store, "s") / "image", b"user.ckfs.w." + DEAD, b"1")
        monkeypatch.setattr(type(a.core.judge), "fate", fate)
        held.first(monkeypatch, Door, "open_instead")
        with impatient(a), pytest.raises(StoreDown):
            await a.alice.open(IMAGE, os.O_WRONLY | os.O_TRUNC)
        held.go()
        await until_answered(a)
        await write(a.alice, made, (END, PIECE))
        await a.alice.close(made)
        await check(store, a, b)


async def test_a_cut_that_happens_later_than_its_answer(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waited for another who emptied the file, and whose content it then cuts."""
    async with digesting(store) as mount, watched(mount), trio.open_nursery() as nursery:
        alice = mount.alice
        await alice.mkdir("s")
        made = await alice.create(IMAGE)
        await write(alice, made, (0, PIECE))
        emptying, cutting, ftruncate = Held(), Held(), os.ftruncate

        def slow(fd: int, size: int) -> None:
            (cutting if size else emptying)()
            ftruncate(fd, size)

        monkeypatch.setattr(os, "ftruncate", slow)
        opened, is_open, ended = list[FileHandle](), trio.Event(), trio.Event()

        async def overwrite() -> None:
            opened.append(await alice.open(IMAGE, os.O_WRONLY | os.O_TRUNC))
            is_open.set()

        async def cut() -> None:
            ino = mount.core.handle(made).node.ino
            with contextlib.suppress(StoreDown):
                await mount.fs.metadata.setattr(ino, Changes(size=10), made, alice.caller)
            ended.set()

        nursery.start_soon(overwrite)
        await emptying.begun()
        with impatient(mount):
            nursery.start_soon(cut)
            await trio.testing.wait_all_tasks_blocked()
            emptying.go()
            await cutting.begun()
        await ended.wait()
        await is_open.wait()
        with trio.fail_after(WITHIN_S):
            while not mount.core.gate.is_up:  # noqa: ASYNC110 - nobody else is told of it
                await trio.sleep(0.01)
        await write(alice, opened[0], (0, PIECE))
        cutting.go()
        await until_answered(mount)
        await write(alice, opened[0], (END, PIECE))
        await alice.close(opened[0])
        await alice.close(made)
        await check(store, mount)


async def test_a_silent_mount_that_comes_back_says_anew_that_it_writes(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was writing has been overwritten meanwhile, and is complete: its handle leads there from now on."""
    async with two_mounts(store) as (a, b):
        made = await b.alice.create(IMAGE)
        await write(b.alice, made, (0, PIECE))
        silent = {b.core.mount_id}

        def fate(_: object, mount: MountId, __: float) -> Fate:
            return Fate.SILENT if mount in silent else Fate.ALIVE

        monkeypatch.setattr(type(a.core.judge), "fate", fate)
        handle = await a.alice.open(IMAGE, os.O_WRONLY | os.O_TRUNC)
        await write(a.alice, handle, (0, PIECE[::-1]))
        await a.alice.close(handle)
        await digest(a.alice, IMAGE)
        silent.clear()
        again = await b.alice.open(IMAGE, os.O_WRONLY)
        await write(b.alice, made, (7, b"X"))
        assert await a.alice.state(IMAGE) is State.WRITING
        await b.alice.close(again)
        await b.alice.close(made)
        await check(store, a, b)
