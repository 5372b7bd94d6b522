"""Roundabout ways to a protected checkpoint, in process: each was, or would be, a way to lose it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ckfs.errors import Exists, FsError, errno_of
from ckfs.fs.metadata import Changes
from ckfs.model import State
from ckfs.store.syscalls import RENAME_EXCHANGE
from tests.fs.cores import ALICE, Mount, Process, mounted

pytestmark = [pytest.mark.root, pytest.mark.trio]

SET = "7.server.CK"
IMAGE = b"an image"


@contextlib.asynccontextmanager
async def _mount(store: Path) -> AsyncIterator[Mount]:
    async with mounted(store) as mount:
        await mount.root.mkdir(SET)
        await mount.root.setattr(SET, Changes(uid=ALICE.uid, gid=ALICE.gid))
        await mount.alice.mkdir("own")
        yield mount


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - the errno says which
        yield
    assert errno_of(raised.value) == errno.EACCES


async def _emptied(process: Process, path: str) -> None:
    await process.close(await process.open(path, os.O_WRONLY | os.O_TRUNC))


async def test_an_image_has_no_second_name_from_before_it_was_complete(store: Path) -> None:
    async with _mount(store) as mount:
        handle = await mount.alice.create(f"{SET}/image")
        with _refused():
            await mount.alice.link(f"{SET}/image", f"{SET}/.second")
        await mount.fs.content.write(handle, 0, IMAGE)
        await mount.alice.close(handle)
        with _refused():
            await mount.alice.link(f"{SET}/image", f"{SET}/.second")


@pytest.mark.parametrize(
    ("old", "new", "flags"),
    [
        ("own/image", f"{SET}/image", 0),
        ("own/image", f"{SET}/taken", 0),
        ("own/image", f"{SET}/taken", RENAME_EXCHANGE),
        (f"{SET}/taken", "own/image", RENAME_EXCHANGE),
        ("own/directory", f"{SET}/directory", 0),
        ("file", f"{SET}/image", 0),
        ("set", f"{SET}/directory", 0),
    ],
)
async def test_nothing_moves_into_a_batch_set(store: Path, old: str, new: str, flags: int) -> None:
    """Another name of it, or a descriptor on another mount, could change it there."""
    async with _mount(store) as mount:
        for path in ("own/image", "own/directory/image", "file", "set/image"):
            with contextlib.suppress(FileExistsError, Exists):
                await mount.alice.mkdir(path.rpartition("/")[0] or "own")
            await mount.alice.save(path, IMAGE)
        await mount.alice.link("own/image", "own/second")
        handle = await mount.alice.create(f"{SET}/taken")  # not complete, so nobody's to keep
        before = await mount.root.walk()
        with pytest.raises(FsError) as raised:
            await mount.root.rename(old, new, flags)
        assert raised.value.errno == errno.EXDEV
        assert await mount.root.walk() == before
        await mount.alice.close(handle)


async def test_what_is_added_to_a_checkpoint_in_a_directory_takes_nothing_away(store: Path) -> None:
    """criu restore writes its log beside the images; killed, it leaves a partial one."""
    async with _mount(store) as mount:
        await mount.alice.mkdir(f"{SET}/dump")
        await mount.alice.save(f"{SET}/dump/pages", IMAGE)
        handle = await mount.alice.create(f"{SET}/dump/restore.log")
        for process in (mount.alice, mount.root):
            with _refused():
                await process.unlink(f"{SET}/dump/pages")
            with _refused():
                await _emptied(process, f"{SET}/dump/pages")
        mount.core.handle(handle).node.failed = True
        await mount.alice.close(handle)
        assert await mount.alice.state(f"{SET}/dump/restore.log") is State.PARTIAL
        with _refused():
            await mount.root.unlink(f"{SET}/dump/pages")
        await mount.alice.unlink(f"{SET}/dump/restore.log")


async def test_an_image_in_a_directory_is_not_replaced_through_a_temporary_name(store: Path) -> None:
    async with _mount(store) as mount:
        await mount.alice.mkdir(f"{SET}/dump")
        await mount.alice.save(f"{SET}/dump/pages", IMAGE)
        await mount.alice.save(f"{SET}/dump/pages.tmp", b"other")
        with _refused():
            await mount.alice.rename(f"{SET}/dump/pages.tmp", f"{SET}/dump/pages")


async def test_what_failed_dumps_leave_in_directories_is_outlived(store: Path) -> None:
    async with _mount(store) as mount:
        for number in range(3):
            await mount.alice.mkdir(f"{SET}/{number}")
            await mount.alice.save(f"{SET}/{number}/core", IMAGE)
            handle = await mount.alice.create(f"{SET}/{number}/pages")
            mount.core.handle(handle).node.failed = True
            await mount.alice.close(handle)
        await mount.root.unlink(f"{SET}/0/core")
        with _refused():
            await mount.root.unlink(f"{SET}/1/core")


async def test_a_second_mounts_writer_does_not_change_what_was_completed_meanwhile(store: Path) -> None:
    async with _mount(store) as mount, mounted(store, node="b") as other:
        first = await mount.alice.create(f"{SET}/image")
        second = await other.alice.open(f"{SET}/image", os.O_WRONLY)
        await mount.fs.content.write(first, 0, IMAGE)
        await mount.alice.close(first)
        with _refused():
            await other.fs.content.write(second, 0, b"X")
        with _refused():
            async with other.alice.at(f"{SET}/image") as ino:
                await other.fs.metadata.setattr(ino, Changes(size=0), second, ALICE)
        await other.alice.close(second)
        assert await mount.alice.load(f"{SET}/image") == IMAGE
        assert await mount.alice.state(f"{SET}/image") is State.COMPLETE
