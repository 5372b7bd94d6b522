"""The last of the store is for root, and for what is being written already."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path

import pytest

from ckfs.fs.metadata import Changes
from ckfs.model import State
from ckfs.policy.enforcing import Reserve
from ckfs.store.spots import VolumeId
from tests.fs.cores import Mount, mounted
from tests.support.users import raises_errno

pytestmark = [pytest.mark.root, pytest.mark.trio]

ALL = Reserve(bytes=1 << 60)
"""More than any store has: there is never any room but what is kept."""
NONE = Reserve()


@contextlib.asynccontextmanager
async def on_store(path: Path) -> AsyncIterator[Mount]:
    async with mounted(path) as mount:
        keep(mount, NONE)
        await mount.alice.mkdir("d")
        await mount.alice.save("d/old", b"old")
        yield mount
        keep(mount, NONE)


def keep(mount: Mount, reserve: Reserve) -> None:
    policy = mount.core.policy
    mount.core.policy = replace(policy, quota=replace(policy.quota, reserve=reserve))
    mount.fs.sets.keeping.reserve.look_again()


async def refused(call: Awaitable[object]) -> None:
    with raises_errno(errno.ENOSPC):
        await call


async def test_users_begin_nothing_new(store: Path) -> None:
    async with on_store(store) as mount:
        keep(mount, ALL)
        await refused(mount.alice.mkdir("e"))
        await refused(mount.alice.mkdir("d/e"))
        await refused(mount.alice.create("d/f"))
        await refused(mount.alice.create("f"))
        await refused(mount.alice.mknod("d/f"))
        await refused(mount.alice.symlink("d/s", b"old"))
        assert set(await mount.alice.list("d")) == {b"old"}


async def test_a_file_that_is_there_is_neither_emptied_nor_written_anew(store: Path) -> None:
    async with on_store(store) as mount:
        keep(mount, ALL)
        await refused(mount.alice.open("d/old", os.O_WRONLY | os.O_TRUNC))
        handle = await mount.alice.open("d/old", os.O_RDWR)
        await refused(mount.fs.content.write(handle, 0, b"new"))
        await mount.alice.close(handle)
        assert await mount.alice.load("d/old") == b"old"
        assert (await mount.alice.stat("d/old")).record.state is State.COMPLETE


async def test_an_image_that_is_being_written_goes_on(store: Path) -> None:
    async with on_store(store) as mount:
        handle = await mount.alice.create("d/image")
        assert await mount.fs.content.write(handle, 0, b"one") == 3
        keep(mount, ALL)
        assert await mount.fs.content.write(handle, 3, b"two") == 3
        other = await mount.alice.open("d/image", os.O_WRONLY)
        assert await mount.fs.content.write(other, 6, b"six") == 3
        await mount.alice.close(other)
        await mount.alice.close(handle)
        assert await mount.alice.load("d/image") == b"onetwosix"
        again = await mount.alice.open("d/image", os.O_WRONLY)
        await refused(mount.fs.content.write(again, 0, b"x"))
        await mount.alice.close(again)


async def test_cutting_a_file_first_is_no_way_around(store: Path) -> None:
    async with on_store(store) as mount:
        keep(mount, ALL)
        handle = await mount.alice.open("d/old", os.O_RDWR)
        async with mount.alice.at("d/old") as ino:
            await mount.alice.fs.metadata.setattr(ino, Changes(size=0), handle, mount.alice.caller)
        await refused(mount.fs.content.write(handle, 0, b"new"))
        await mount.alice.close(handle)
        assert (await mount.alice.stat("d/old")).record.state is State.PARTIAL


async def test_root_goes_on(store: Path) -> None:
    async with on_store(store) as mount:
        keep(mount, ALL)
        await mount.root.mkdir("e")
        await mount.root.save("d/of-root", b"content")
        handle = await mount.root.open("d/old", os.O_WRONLY | os.O_TRUNC)
        assert await mount.fs.content.write(handle, 0, b"new") == 3
        await mount.root.close(handle)


async def test_what_is_there_can_be_read_removed_and_moved(store: Path) -> None:
    async with on_store(store) as mount:
        keep(mount, ALL)
        assert await mount.alice.load("d/old") == b"old"
        await mount.alice.rename("d/old", "d/moved")
        await mount.alice.link("d/moved", "d/linked")
        await mount.alice.unlink("d/moved")
        await mount.alice.unlink("d/linked")


async def test_the_store_is_asked_once_a_second_at_most(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with on_store(store) as mount:
        keep(mount, Reserve(bytes=1))
        door, looks = mount.core.store.door, []
        room = door.room

        def counted(volume: VolumeId) -> os.statvfs_result:
            looks.append(1)
            return room(volume)

        monkeypatch.setattr(door, "room", counted)
        mount.fs.sets.keeping.reserve.clock = lambda: 1000.0
        for number in range(20):
            await mount.alice.mknod(f"d/{number}")
        assert len(looks) == 1
