"""A store that takes what is written and says only later that there was no room: the writer learns of it, in time, and what is torn
is never complete."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckfs.errors import FsError, errno_of
from ckfs.fs.lateness import FIRST_BYTES
from ckfs.model import State
from ckfs.names import FileHandle
from tests.fs import cores
from tests.fs.cores import ALICE, Process
from tests.fs.nfs_stores import store_on
from tests.support.nfs import NfsStore, nfs_store, on_server

pytestmark = [pytest.mark.trio, pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

MIB = 1 << 20
PIECE = bytes(range(256)) * (MIB // 256)
REFUSALS = [errno.EDQUOT, errno.ENOSPC]


@pytest.fixture
def nfs(tmp_path: Path) -> Iterator[NfsStore]:
    with nfs_store(tmp_path) as running:
        yield running


@pytest.fixture
def eager(tmp_path: Path) -> Iterator[NfsStore]:
    """Its client sends by itself what has gathered, so that a write meets what the server says of earlier ones."""
    with nfs_store(tmp_path, unsent_bytes=MIB // 4) as running:
        yield running


async def dump(alice: Process, path: str, pieces: int, piece: bytes = PIECE) -> tuple[FileHandle, int | None]:
    """Write as a checkpointer does, until a write fails. The handle, and the number of the write that did."""
    handle = await alice.create(path)
    for number in range(pieces):
        try:
            await alice.fs.content.write(handle, number * len(piece), piece)
        except (OSError, FsError):
            return handle, number
    return handle, None


async def refused(alice: Process, handle: FileHandle) -> int:
    """What close(2) says."""
    try:
        await alice.close(handle)
    except (OSError, FsError) as error:
        return errno_of(error)
    return 0


async def test_a_dump_over_the_servers_quota_gets_its_error_from_write(nfs: NfsStore) -> None:
    (store,) = store_on(nfs)
    nfs.limit(ALICE.uid, 3 * MIB)
    async with cores.mounted(store) as mount:
        await mount.alice.mkdir("dumps")
        handle, at = await dump(mount.alice, "dumps/image", 16)
        assert at is not None
        await refused(mount.alice, handle)
        assert await mount.alice.state("dumps/image") is State.PARTIAL


@pytest.mark.parametrize("number", REFUSALS)
async def test_a_dump_that_is_refused_gets_its_error_from_write(nfs: NfsStore, number: int) -> None:
    (store,) = store_on(nfs)
    async with cores.mounted(store) as mount:
        await mount.alice.mkdir("dumps")
        nfs.clients[0].fail("write", number, path="image")
        handle, at = await dump(mount.alice, "dumps/image", 16)
        assert at is not None
        assert at * MIB <= FIRST_BYTES
        await refused(mount.alice, handle)
        assert await mount.alice.state("dumps/image") is State.PARTIAL


@pytest.mark.parametrize("number", REFUSALS)
@pytest.mark.parametrize("by", ["fsync", "close"])
async def test_one_too_small_to_be_asked_about_gets_its_error_from_fsync_or_close(
    nfs: NfsStore, by: str, number: int
) -> None:
    (store,) = store_on(nfs)
    async with cores.mounted(store) as mount:
        await mount.alice.mkdir("dumps")
        nfs.clients[0].fail("write", number, path="image")
        handle, at = await dump(mount.alice, "dumps/image", 1, b"small")
        assert at is None
        if by == "fsync":
            with pytest.raises((OSError, FsError)) as caught:
                await mount.fs.content.fsync(handle, data_only=False)
            assert errno_of(caught.value) == number
            await refused(mount.alice, handle)
        else:
            assert await refused(mount.alice, handle) == number
        assert await mount.alice.state("dumps/image") is State.PARTIAL


async def test_one_under_a_temporary_name_is_partial_under_its_final_one(nfs: NfsStore) -> None:
    (store,) = store_on(nfs)
    async with cores.mounted(store) as mount:
        await mount.alice.mkdir("dumps")
        nfs.clients[0].fail("write", errno.EDQUOT, path="image")
        handle, _ = await dump(mount.alice, "dumps/image.tmp", 1, b"small")
        assert await refused(mount.alice, handle) == errno.EDQUOT
        nfs.clients[0].clear()
        await mount.alice.rename("dumps/image.tmp", "dumps/image")
        assert await mount.alice.state("dumps/image") is State.PARTIAL


async def test_a_writer_that_goes_on_after_an_error_makes_no_complete_image(nfs: NfsStore) -> None:
    (store,) = store_on(nfs)
    async with cores.mounted(store) as mount:
        await mount.alice.mkdir("dumps")
        nfs.clients[0].fail("write", errno.EDQUOT, 1, path="image")
        handle, at = await dump(mount.alice, "dumps/image", 4)
        assert at is not None
        for number in range(at, 4):
            await mount.fs.content.write(handle, number * MIB, PIECE)
        await mount.fs.content.fsync(handle, data_only=False)
        assert await refused(mount.alice, handle) == 0
        assert await mount.alice.state("dumps/image") is State.PARTIAL


async def _with_something_to_give(alice: Process) -> None:
    """A set, and an image of 4 MiB in its owner's trash."""
    await alice.mkdir("dumps")
    handle, _ = await dump(alice, "dumps/old", 4)
    await alice.close(handle)
    await alice.unlink("dumps/old")


async def test_what_gives_way_mends_nothing_that_was_lost_before(eager: NfsStore) -> None:
    """The write that meets the refusal would go through if it were tried again, and what was lost before would be missing."""
    (store,) = store_on(eager)
    async with cores.mounted(store) as mount:
        await _with_something_to_give(mount.alice)
        eager.limit(ALICE.uid, 4 * MIB + MIB // 2)
        half = PIECE[: MIB // 8]
        handle, at = await dump(mount.alice, "dumps/image", 32, half)
        assert at is not None
        await refused(mount.alice, handle)
        assert await mount.alice.state("dumps/image") is State.PARTIAL


async def test_the_next_dump_of_who_was_refused_finds_what_gives_way(nfs: NfsStore) -> None:
    """It is asked about at each write: then nothing else can be lost, and that one is made again."""
    (store,) = store_on(nfs)
    async with cores.mounted(store) as mount:
        await _with_something_to_give(mount.alice)
        nfs.limit(ALICE.uid, 5 * MIB + MIB // 2)
        handle, at = await dump(mount.alice, "dumps/torn", 4)
        assert at is not None
        await refused(mount.alice, handle)
        assert await mount.alice.state("dumps/torn") is State.PARTIAL
        await mount.alice.unlink("dumps/torn")
        handle, at = await dump(mount.alice, "dumps/image", 4)
        assert at is None
        assert await refused(mount.alice, handle) == 0
        assert await mount.alice.state("dumps/image") is State.COMPLETE
        assert (on_server(store) / f"users/{ALICE.uid}/dumps/image").read_bytes() == 4 * PIECE


async def test_a_store_with_room_is_asked_now_and_then(nfs: NfsStore) -> None:
    (store,) = store_on(nfs)
    async with cores.mounted(store) as mount:
        await mount.alice.mkdir("dumps")
        before = nfs.clients[0].stats()["calls"].get("fsync", 0)
        handle, at = await dump(mount.alice, "dumps/image", 15)
        assert at is None
        asked = nfs.clients[0].stats()["calls"]["fsync"] - before
        assert asked == 4, "after 1, 2, 4 and 8 MiB more"
        await mount.alice.close(handle)
        assert await mount.alice.state("dumps/image") is State.COMPLETE
        assert os.stat(on_server(store) / f"users/{ALICE.uid}/dumps/image").st_size == 15 * MIB


async def test_a_disk_of_this_host_is_not_asked(tmp_path: Path) -> None:
    async with cores.mounted(cores.new_store(tmp_path)) as mount:
        assert not mount.core.late.is_late
