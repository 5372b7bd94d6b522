"""When an image counts as complete: in process, with writes that fail, hang or overtake each other."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from ckfs.errors import FsError, Unkept
from ckfs.fs.closing import close_soon
from ckfs.fs.metadata import Changes
from ckfs.model import State
from ckfs.names import Uid
from ckfs.store import writing
from ckfs.store.door import Door
from tests.fs.cores import ALICE, Mount, mounted

pytestmark = [pytest.mark.root, pytest.mark.trio]

_LIMIT_S = 20.0


@contextlib.asynccontextmanager
async def _mount(store: Path) -> AsyncIterator[Mount]:
    async with mounted(store) as mount:
        await mount.alice.mkdir("set", 0o777)
        yield mount


@contextlib.contextmanager
def _failing(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int) -> Iterator[None]:
    """Let *owner*'s function *name* fail for the time of the block."""

    def call(*_: object) -> None:
        raise OSError(number, "on purpose")

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, call)
        yield


class _Held:
    """A call of the store that waits, once, in the middle until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, *, before: bool) -> None:
        self.entered, self.go = threading.Event(), threading.Event()
        real = getattr(owner, name)

        def waiting(*args: object, **kwargs: object) -> object:
            if before:
                self._wait()
            result = real(*args, **kwargs)
            if not before:
                self._wait()
            return result

        monkeypatch.setattr(owner, name, waiting)

    def _wait(self) -> None:
        if not self.entered.is_set():
            self.entered.set()
            assert self.go.wait(_LIMIT_S)

    async def has_begun(self) -> None:
        assert await trio.to_thread.run_sync(self.entered.wait, _LIMIT_S)


async def test_a_closed_image_is_complete(store: Path) -> None:
    async with _mount(store) as mount:
        handle = await mount.alice.create("set/image")
        assert await mount.alice.state("set/image") is State.WRITING
        await mount.fs.content.write(handle, 0, b"x")
        await mount.alice.close(handle)
        assert await mount.alice.state("set/image") is State.COMPLETE


async def test_an_image_is_complete_when_its_last_writer_here_has_closed(store: Path) -> None:
    async with _mount(store) as mount:
        first = await mount.alice.create("set/image")
        second = await mount.alice.open("set/image", os.O_WRONLY)
        await mount.fs.content.write(second, 0, b"x")
        await mount.alice.close(first)
        assert await mount.alice.state("set/image") is State.WRITING
        await mount.alice.close(second)
        assert await mount.alice.state("set/image") is State.COMPLETE


async def test_an_image_under_a_temporary_name_waits_for_its_rename(store: Path) -> None:
    async with _mount(store) as mount:
        await mount.alice.save("set/image.tmp", b"x")
        assert await mount.alice.state("set/image.tmp") is State.WRITING
        await mount.alice.rename("set/image.tmp", "set/image")
        assert await mount.alice.state("set/image") is State.COMPLETE


async def test_after_a_failed_write_the_image_is_partial(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _mount(store) as mount:
        handle = await mount.alice.create("set/image")
        with _failing(monkeypatch, os, "pwrite", errno.ENOSPC), pytest.raises(OSError, match="on purpose"):
            await mount.fs.content.write(handle, 0, b"x")
        await mount.alice.close(handle)
        assert await mount.alice.state("set/image") is State.PARTIAL


async def test_a_failed_write_is_not_forgotten_when_another_writer_closes_last(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _mount(store) as mount:
        first = await mount.alice.create("set/image")
        second = await mount.alice.open("set/image", os.O_WRONLY)
        await mount.fs.content.write(second, 0, b"x")
        with _failing(monkeypatch, os, "pwrite", errno.ENOSPC), pytest.raises((OSError, Unkept)):
            await mount.fs.content.write(first, 1, b"y")
        await mount.alice.close(first)
        await mount.alice.close(second)
        assert await mount.alice.state("set/image") is State.PARTIAL


async def test_after_a_failed_fsync_the_image_is_partial(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of lost pages once: what was written before is gone, and a later fsync succeeds."""
    async with _mount(store) as mount:
        handle = await mount.alice.create("set/image")
        await mount.fs.content.write(handle, 0, b"x")
        with _failing(monkeypatch, os, "fsync", errno.EIO), pytest.raises(OSError, match="on purpose"):
            await mount.fs.content.fsync(handle, data_only=False)
        await mount.alice.close(handle)
        assert await mount.alice.state("set/image") is State.PARTIAL


async def test_after_a_close_that_the_store_refused_the_image_is_partial(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS and GlusterFS tell of a full quota at close."""
    async with _mount(store) as mount:
        handle = await mount.alice.create("set/image")
        await mount.fs.content.write(handle, 0, b"x")
        with _failing(monkeypatch, os, "dup", errno.EDQUOT), pytest.raises((OSError, Unkept)):
            await mount.fs.content.flush(handle)
        await mount.fs.content.release(handle)
        assert await mount.alice.state("set/image") is State.PARTIAL


async def test_after_a_write_that_timed_out_the_image_is_partial(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(store, timeout_s=0.2) as mount, trio.open_nursery() as nursery:
        nursery.start_soon(mount.core.gate.watch)
        await mount.alice.mkdir("set")
        handle = await mount.alice.create("set/image")
        held = _Held(monkeypatch, os, "pwrite", before=True)
        with pytest.raises(FsError):
            await mount.fs.content.write(handle, 0, b"x")
        held.go.set()
        while not mount.core.gate.is_up:  # noqa: ASYNC110 - the gate sends no event when the store is up again
            await trio.sleep(0.01)
        await mount.alice.close(handle)
        assert await mount.alice.state("set/image") is State.PARTIAL
        nursery.cancel_scope.cancel()


async def test_an_image_written_after_its_close_is_settled_at_its_release(store: Path) -> None:
    """Through a shared mapping: the descriptor is closed first, the pages come later, and no flush after them."""
    async with _mount(store) as mount:
        handle = await mount.alice.create("set/image")
        await mount.fs.content.flush(handle)
        await mount.fs.content.write(handle, 0, b"x")
        await mount.fs.content.release(handle)
        assert await mount.alice.state("set/image") is State.COMPLETE


async def test_an_image_whose_settling_failed_is_settled_at_its_release(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _mount(store) as mount:
        handle = await mount.alice.create("set/image")
        await mount.fs.content.write(handle, 0, b"x")
        with _failing(monkeypatch, writing, "finish", errno.EIO), pytest.raises(OSError, match="on purpose"):
            await mount.fs.content.flush(handle)
        await mount.fs.content.release(handle)
        assert await mount.alice.state("set/image") is not State.WRITING


async def test_a_writer_that_begins_while_another_closes_is_not_overtaken_by_complete(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _mount(store) as mount:
        first = await mount.alice.create("set/image")
        await mount.fs.content.write(first, 0, b"old")
        second = await mount.alice.open("set/image", os.O_WRONLY)
        held = _Held(monkeypatch, writing, "begin", before=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.fs.content.write, second, 0, b"new")
            await held.has_begun()  # the mark is in the store, and its caller does not know yet
            nursery.start_soon(mount.fs.content.flush, first)
            await trio.testing.wait_all_tasks_blocked(0.01)
            held.go.set()
        assert await mount.alice.state("set/image") is State.WRITING
        await mount.fs.content.release(first)
        await mount.alice.close(second)
        assert await mount.alice.state("set/image") is State.COMPLETE


async def test_an_open_with_truncation_while_another_closes_is_not_overtaken_by_complete(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _mount(store) as mount:
        first = await mount.alice.create("set/image")
        await mount.fs.content.write(first, 0, b"old")
        held = _Held(monkeypatch, Door, "update", before=False)
        opened = []

        async def truncate() -> None:
            opened.append(await mount.alice.open("set/image", os.O_WRONLY | os.O_TRUNC))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(truncate)
            await held.has_begun()
            nursery.start_soon(mount.fs.content.flush, first)
            await trio.testing.wait_all_tasks_blocked(0.01)
            held.go.set()
        await mount.fs.content.write(opened[0], 0, b"half")
        assert await mount.alice.state("set/image") is State.WRITING
        await mount.fs.content.release(first)
        await mount.alice.close(opened[0])
        assert await mount.alice.state("set/image") is State.COMPLETE


async def test_open_images_of_a_set_that_is_given_away_can_be_closed(store: Path) -> None:
    async with _mount(store) as mount:
        handle = await mount.alice.create("set/image")
        await mount.fs.content.write(handle, 0, b"x")
        await mount.root.setattr("set", Changes(uid=Uid(2102)))
        await mount.fs.content.write(handle, 1, b"y")
        await mount.alice.close(handle)
        assert await mount.root.state("set/image") is State.COMPLETE


async def test_attributes_of_a_removed_file_are_not_those_of_the_next_of_its_name(store: Path) -> None:
    async with _mount(store) as mount:
        await mount.alice.save("set/f", b"first")
        async with mount.bob.at("set/f") as held:  # O_PATH
            await mount.alice.unlink("set/f")
            await mount.alice.save("set/f", b"second")
            async with mount.alice.at("set/f") as ino:
                await mount.fs.extended.set(ino, b"user.secret", b"s", mount.alice.caller)
            with pytest.raises((OSError, FsError)):
                await mount.fs.extended.get(held, b"user.secret", ALICE)
            with pytest.raises((OSError, FsError)):
                await mount.fs.extended.set(held, b"user.evil", b"e", mount.bob.caller)
            with pytest.raises((OSError, FsError)):
                await mount.fs.extended.remove(held, b"user.secret", mount.bob.caller)
            with pytest.raises((OSError, FsError)):
                await mount.fs.extended.list(held)
        assert await mount.alice.load("set/f") == b"second"


async def test_a_removed_symlink_does_not_read_the_next_file_of_its_name(store: Path) -> None:
    async with _mount(store) as mount:
        await mount.bob.symlink("set/f", b"nowhere")
        async with mount.bob.at("set/f") as held:
            await mount.bob.unlink("set/f")
            await mount.alice.save("set/f", b"secret")
            with pytest.raises((OSError, FsError)):
                await mount.fs.naming.readlink(held)


async def test_opening_read_only_with_truncation_truncates(store: Path) -> None:
    """O_RDONLY|O_TRUNC, as on Linux's own file systems."""
    async with _mount(store) as mount:
        await mount.alice.save("set/image", b"x")
        await mount.alice.close(await mount.alice.open("set/image", os.O_RDONLY | os.O_TRUNC))
        assert await mount.alice.load("set/image") == b""


async def test_a_file_is_closed_here_if_no_thread_is_to_be_had(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on processes must not end the mount."""

    def none_left(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    fd = os.open(store, os.O_PATH)
    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", none_left)
    close_soon(fd)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(fd)
