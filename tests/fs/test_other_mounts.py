"""Images that more than one mount writes, and those of mounts that fell silent or died: in process, with a clock of its own."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from ckfs.errors import Fenced, FsError, errno_of
from ckfs.fs.fencing import Fencing
from ckfs.fs.left import Left
from ckfs.fs.liveness import Judge
from ckfs.fs.metadata import Changes
from ckfs.model import Owner, Record, Role, State
from ckfs.names import FileHandle, MountId
from ckfs.policy import lifecycle
from ckfs.store import record, writers, writing
from ckfs.store.door import Door
from ckfs.store.identity import acting_as
from tests.fs.cores import ALICE, Mount, mounted

pytestmark = [pytest.mark.trio, pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

SET = "7.server.CK"
IMAGE = f"{SET}/image"
LEASE_S, FENCE_S = 60.0, 86_400.0
_LIMIT_S = 10.0
_SHORT_S = 0.2


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Cluster:
    """Two mounts of a store. *b* hears of *a* by *clock*, which stands still unless a test moves it."""

    a: Mount
    b: Mount
    clock: Clock

    def a_falls_silent(self) -> None:
        """Nothing was heard of it for a lease: it has not beaten in the meantime."""
        assert self.a.core.member is not None
        self.b.core.fate(self.a.core.member.id)
        self.clock.now_s += LEASE_S

    async def a_beats(self) -> None:
        assert self.a.core.member is not None
        await self.a.core.member.renew(self.a.core.gate)

    def a_is_ended(self) -> None:
        assert self.a.core.member is not None
        self.b.core.store.mounts.end(self.a.core.member.id)


HERS = Owner(ALICE.uid, ALICE.gid)


@pytest.fixture
async def cluster(store: Path) -> AsyncIterator[Cluster]:
    clock = Clock()
    async with (
        mounted(store, node="a", role=Role.SERVER) as a,
        mounted(store, node="b", role=Role.SERVER) as b,
    ):
        b.core.judge = Judge(b.core.store.mounts, clock)
        await a.root.mkdir(SET)
        await a.root.setattr(SET, Changes(uid=ALICE.uid, gid=ALICE.gid))
        yield Cluster(a, b, clock)


async def state(mount: Mount, path: str = IMAGE) -> str:
    """What ``user.ckfs.state`` says."""
    async with mount.root.at(path) as ino:
        return (await mount.fs.extended.get(ino, b"user.ckfs.state", mount.root.caller)).decode()


async def begun(mount: Mount, content: bytes, path: str = IMAGE) -> FileHandle:
    handle = await mount.alice.create(path)
    await mount.fs.content.write(handle, 0, content)
    return handle


async def joined(mount: Mount, offset: int, content: bytes) -> FileHandle:
    """Another writer of the image."""
    handle = await mount.alice.open(IMAGE, os.O_WRONLY)
    await mount.fs.content.write(handle, offset, content)
    return handle


async def cannot_be_read(mount: Mount) -> None:
    with pytest.raises(OSError, match="partial") as raised:
        await mount.alice.load(IMAGE)
    assert raised.value.errno == errno.EIO


async def is_protected(mount: Mount, path: str = IMAGE) -> bool:
    async with mount.root.at(path) as ino:
        return await mount.fs.extended.get(ino, b"user.ckfs.protected", mount.root.caller) != b"no"


# Written on two mounts


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network's store that keeps none: nothing but the order of the steps is left."""
    monkeypatch.setattr(
        Door, "opened_alone", lambda door, target, flags=os.O_RDONLY: door.opened(target, flags)
    )


@pytest.mark.plain_alone(
    "on a network's store without quotas one of two such changes may be lost: docs/concurrency.md"
)
async def test_a_mode_that_is_set_while_another_mount_ends_writing_stays(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has read the record before the other writes it back, if it can, and the end comes last."""
    handle = await begun(cluster.a, b"content")
    real, both_have_read = record.encode, threading.Barrier(2)

    def encoding(new: Record) -> bytes:
        with contextlib.suppress(threading.BrokenBarrierError):
            both_have_read.wait(_SHORT_S)
        if new.state is State.COMPLETE:
            time.sleep(_SHORT_S)
        return real(new)

    async with trio.open_nursery() as nursery:
        monkeypatch.setattr(record, "encode", encoding)
        nursery.start_soon(cluster.a.alice.close, handle)
        nursery.start_soon(cluster.b.alice.setattr, IMAGE, Changes(mode=stat.S_IFREG | 0o600))
    assert await state(cluster.a) == "complete"
    assert stat.S_IMODE((await cluster.a.alice.stat(IMAGE)).record.mode) == 0o600


@pytest.mark.parametrize("first", ["a", "b"])
async def test_an_image_is_complete_when_its_last_writer_on_any_mount_has_closed(
    cluster: Cluster, first: str
) -> None:
    one, other = (cluster.a, cluster.b) if first == "a" else (cluster.b, cluster.a)
    handles = {"a": await begun(cluster.a, b"half"), "b": await joined(cluster.b, 4, b" and half")}
    await one.alice.close(handles[first])
    assert await state(one) == await state(other) == "writing"
    await other.alice.close(handles["b" if first == "a" else "a"])
    assert await state(one) == await state(other) == "complete"
    assert await one.alice.load(IMAGE) == b"half and half"


@pytest.mark.usefixtures("no_locks")
async def test_of_two_mounts_that_end_in_the_same_moment_one_completes_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have taken their marks away before either looks for the other's."""
    first, second = await begun(cluster.a, b"half"), await joined(cluster.b, 4, b" and half")
    real, together = writers.drop, threading.Barrier(2)

    def dropping(where: int | bytes, mount: MountId) -> None:
        real(where, mount)
        together.wait(_LIMIT_S)

    monkeypatch.setattr(writers, "drop", dropping)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cluster.a.alice.close, first)
        nursery.start_soon(cluster.b.alice.close, second)
    assert await state(cluster.a) == "complete"


async def test_a_writer_that_fails_on_one_mount_makes_it_partial_whatever_the_other_does(
    cluster: Cluster,
) -> None:
    first, second = await begun(cluster.a, b"half"), await joined(cluster.b, 4, b" and half")
    cluster.a.core.inodes.get((await cluster.a.alice.stat(IMAGE)).record.ino).failed = True
    await cluster.a.alice.close(first)
    assert await state(cluster.b) == "partial"
    await cluster.b.alice.close(second)
    assert await state(cluster.b) == "partial"
    await cannot_be_read(cluster.b)


async def test_a_writer_that_begins_in_the_moment_of_completion_is_not_overtaken(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """b marks the image, and reads that it is being written, just before a says that it is complete."""
    first = await begun(cluster.a, b"half")
    second = await cluster.b.alice.open(IMAGE, os.O_WRONLY)
    real = lifecycle.after
    fd = cluster.b.core.handle(second).fd

    def put_before_the_end(*arguments: object) -> object:
        writers.put(fd, cluster.b.core.mount_id)
        return real(*arguments)  # type: ignore[arg-type]  # passed on as they came

    with monkeypatch.context() as patched:
        patched.setattr(lifecycle, "after", put_before_the_end)
        await cluster.a.alice.close(first)
    assert await state(cluster.a) == "writing"
    await cluster.b.fs.content.write(second, 4, b" and half")
    await cluster.b.alice.close(second)
    assert await state(cluster.a) == "complete"


async def test_the_rename_of_a_closed_image_waits_for_a_writer_elsewhere(cluster: Cluster) -> None:
    temporary = f"{SET}/.image.tmp"
    first = await begun(cluster.a, b"half", temporary)
    second = await cluster.b.alice.open(temporary, os.O_WRONLY)
    await cluster.b.fs.content.write(second, 4, b" and half")
    await cluster.a.alice.close(first)
    await cluster.a.alice.rename(temporary, IMAGE)
    assert await state(cluster.a) == "writing"
    await cluster.b.alice.stat(IMAGE)
    await cluster.b.alice.close(second)
    assert await state(cluster.a) == "complete"


# Silent


async def test_partial_by_silence_lifts_when_the_mount_returns(cluster: Cluster) -> None:
    handle = await begun(cluster.a, b"half")
    assert await state(cluster.b) == "writing"
    cluster.a_falls_silent()
    assert await state(cluster.b) == await state(cluster.b, SET) == "partial"
    await cannot_be_read(cluster.b)
    assert await state(cluster.a) == "writing"  # nothing of it is stored
    await cluster.a_beats()
    assert await state(cluster.b) == "writing"
    await cluster.a.fs.content.write(handle, 4, b" and half")
    await cluster.a.alice.close(handle)
    assert await state(cluster.b) == "complete"
    assert await cluster.b.alice.load(IMAGE) == b"half and half"


async def test_a_mount_that_closes_while_it_is_taken_for_dead_completes_its_image(cluster: Cluster) -> None:
    handle = await begun(cluster.a, b"whole")
    cluster.a_falls_silent()
    assert await state(cluster.b) == "partial"
    await cluster.a.alice.close(handle)
    assert await state(cluster.b) == "complete"


async def test_what_a_silent_mount_has_synced_is_complete_unless_changed_since(cluster: Cluster) -> None:
    handle = await begun(cluster.a, b"whole")
    await cluster.a.fs.content.fsync(handle, data_only=False)
    cluster.a_falls_silent()
    assert await state(cluster.b) == "complete"
    assert await cluster.b.alice.load(IMAGE) == b"whole"
    assert await is_protected(cluster.b)
    await cluster.a.fs.content.write(handle, 5, b"!")
    assert await state(cluster.b) == "partial"
    await cluster.a.alice.close(handle)
    assert await state(cluster.b) == "complete"


async def test_another_mounts_writer_leaves_it_to_the_silent_one(cluster: Cluster) -> None:
    first, second = await begun(cluster.a, b"half"), await joined(cluster.b, 4, b" and half")
    cluster.a_falls_silent()
    await cluster.b.alice.close(second)
    assert await state(cluster.b) == "partial"
    await cluster.a_beats()
    assert await state(cluster.b) == "writing"
    await cluster.a.alice.close(first)
    assert await state(cluster.b) == "complete"


# Gone


async def test_what_a_mount_that_is_gone_was_writing_is_settled_by_whoever_meets_it(cluster: Cluster) -> None:
    await begun(cluster.a, b"half")
    cluster.a_is_ended()
    assert await state(cluster.b) == "partial"
    assert (await cluster.b.alice.stat(IMAGE)).record.state is State.PARTIAL
    await cannot_be_read(cluster.b)


async def test_what_it_had_synced_is_complete_and_counts(cluster: Cluster) -> None:
    handle = await begun(cluster.a, b"whole")
    await cluster.a.fs.content.fsync(handle, data_only=False)
    cluster.a_is_ended()
    assert await state(cluster.b) == "complete"
    found = await cluster.b.alice.stat(IMAGE)
    assert found.record.state is State.COMPLETE
    assert found.record.completed > 0


async def test_a_fenced_writer_gets_eio_and_changes_nothing(cluster: Cluster) -> None:
    handle = await begun(cluster.a, b"half")
    cluster.a_is_ended()
    assert await state(cluster.b) == "partial"
    member = cluster.a.core.member
    assert member is not None
    before, member._heard_s = member.id, member._heard_s - FENCE_S
    for act in (
        cluster.a.fs.content.write(handle, 4, b" and half"),
        cluster.a.fs.content.write(handle, 4, b" and half"),
        cluster.a.fs.content.fsync(handle, data_only=False),
        cluster.a.fs.content.flush(handle),
    ):
        with pytest.raises(Fenced) as raised:
            await act
        assert errno_of(raised.value) == errno.EIO
    await cluster.a.fs.content.release(handle)
    assert (await cluster.b.alice.stat(IMAGE)).record.state is State.PARTIAL
    assert (await cluster.b.alice.stat(IMAGE)).stat.st_size == len(b"half")
    # It goes on under another name, and is alive to all.
    assert member.id != before
    await cluster.a.alice.save(f"{SET}/next", b"whole")
    assert await state(cluster.b, f"{SET}/next") == "complete"


async def test_it_asks_first_when_it_was_not_heard_of_for_half_the_fence_time(cluster: Cluster) -> None:
    """In time: its beat gets through, and it writes on."""
    handle = await begun(cluster.a, b"half")
    member = cluster.a.core.member
    assert member is not None
    member._heard_s -= FENCE_S
    await cluster.a.fs.content.write(handle, 4, b" and half")
    await cluster.a.alice.close(handle)
    assert await state(cluster.b) == "complete"


async def test_the_housekeeper_ends_whom_it_has_not_heard_of_settles_and_forgets(cluster: Cluster) -> None:
    await begun(cluster.a, b"half")
    temporary = await begun(cluster.a, b"half", f"{SET}/.other.tmp")
    fencing = Fencing(cluster.b.core, Left(cluster.b.core, cluster.b.fs.opening.guard))
    mounts, own = cluster.b.core.store.mounts, cluster.a.core.mount_id
    for _ in range(int(FENCE_S / LEASE_S)):
        list(fencing.steps())
        assert [found.id for found in mounts.all() if found.id == own], "ended before its time"
        cluster.clock.now_s += LEASE_S
    assert (await cluster.b.alice.stat(IMAGE)).record.state is State.WRITING
    list(fencing.steps())
    assert mounts.read(own) is None
    assert mounts.ended() == []
    assert (await cluster.b.alice.stat(IMAGE)).record.state is State.PARTIAL
    assert (await cluster.b.alice.stat(f"{SET}/.other.tmp")).record.state is State.PARTIAL
    with contextlib.suppress(FsError):
        await cluster.a.fs.content.release(temporary)


async def test_healing_makes_a_new_file_in_the_store(cluster: Cluster) -> None:
    """The dead mount may yet write to the old one."""
    late = await begun(cluster.a, b"half")
    cluster.a_is_ended()
    before = (await cluster.b.alice.stat(IMAGE)).stat.st_ino
    handle = await cluster.b.alice.open(IMAGE, os.O_WRONLY | os.O_TRUNC)
    await cluster.b.fs.content.write(handle, 0, b"whole")
    os.pwrite(cluster.a.core.handle(late).fd, b"LATE", 0)
    await cluster.b.alice.close(handle)
    found = await cluster.b.alice.stat(IMAGE)
    assert found.stat.st_ino != before
    assert found.record.state is State.COMPLETE
    assert await cluster.b.alice.load(IMAGE) == b"whole"


async def test_an_image_that_somebody_alive_writes_is_truncated_where_it_is(cluster: Cluster) -> None:
    first = await begun(cluster.a, b"half")
    before = (await cluster.b.alice.stat(IMAGE)).stat.st_ino
    second = await cluster.b.alice.open(IMAGE, os.O_WRONLY | os.O_TRUNC)
    assert (await cluster.b.alice.stat(IMAGE)).stat.st_ino == before
    await cluster.a.fs.content.write(first, 0, b"both")
    await cluster.a.alice.close(first)
    assert await state(cluster.b) == "writing"
    await cluster.b.alice.close(second)
    assert await state(cluster.b) == "complete"
    assert await cluster.b.alice.load(IMAGE) == b"both"


async def test_a_mark_that_a_death_left_on_a_complete_image_means_nothing(cluster: Cluster) -> None:
    path = "own"
    await cluster.a.alice.mkdir(path)
    await cluster.a.alice.save(f"{path}/f", b"whole")
    handle = await cluster.a.alice.open(f"{path}/f")
    with acting_as(HERS):
        writers.put(cluster.a.core.handle(handle).fd, cluster.a.core.mount_id)
    await cluster.a.alice.close(handle)
    cluster.a_is_ended()
    assert await state(cluster.b, f"{path}/f") == "complete"
    await cluster.b.alice.append(f"{path}/f", b"!")
    assert await state(cluster.b, f"{path}/f") == "complete"


# Between a rename and its word


async def test_an_image_that_was_renamed_by_one_that_died_then_counts_as_what_it_is(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await begun(cluster.a, b"whole", f"{SET}/.image.tmp")
    await cluster.a.alice.close(handle)

    def dies(*_: object) -> None:
        raise OSError(errno.EIO, "on purpose")

    with monkeypatch.context() as patched:
        patched.setattr(writing, "finish", dies)
        with pytest.raises(OSError, match="on purpose"):
            await cluster.a.alice.rename(f"{SET}/.image.tmp", IMAGE)
    assert (await cluster.b.alice.stat(IMAGE)).record.state is State.WRITING
    assert await is_protected(cluster.b)
    assert await state(cluster.b) == "complete"
    assert (await cluster.b.alice.stat(IMAGE)).record.state is State.COMPLETE


async def test_an_empty_image_under_a_final_name_may_just_have_been_made(cluster: Cluster) -> None:
    handle = await cluster.a.alice.open(await _closed_empty(cluster), os.O_RDONLY)
    fd = cluster.a.core.handle(handle).fd
    with acting_as(HERS):
        for mount in writers.of(fd):
            writers.drop(fd, mount)
    assert await state(cluster.b) == "writing"
    await cluster.a.alice.close(handle)


async def _closed_empty(cluster: Cluster) -> str:
    await cluster.a.alice.create(IMAGE)
    return IMAGE


# A store that does not take it


async def test_an_image_that_could_not_be_settled_is_settled_later(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckfs.fs.content._SETTLE_INTERVAL_S", 0.01)
    handle = await begun(cluster.a, b"whole")

    def down(*_: object) -> None:
        raise OSError(errno.EIO, "on purpose")

    with monkeypatch.context() as patched:
        patched.setattr(writing, "finish", down)
        with contextlib.suppress(OSError):
            await cluster.a.fs.content.flush(handle)
        await cluster.a.fs.content.release(handle)
        assert await state(cluster.a) == "writing"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cluster.a.fs.content.settle_later)
        while cluster.a.core.inodes.unsettled():  # noqa: ASYNC110 - nobody else is told of it
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert await state(cluster.b) == "complete"


async def test_a_mount_that_cannot_register_reads_and_says_why_it_does_not_write(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(store) as first:
        await first.alice.mkdir("own")
        await first.alice.save("own/f", b"whole")
    full = OSError(errno.ENOSPC, "on purpose")

    def register(*_: object) -> None:
        raise full

    with monkeypatch.context() as patched:
        patched.setattr("ckfs.store.mounts.Mounts.register", register)
        async with mounted(store) as mount:
            assert await mount.alice.load("own/f") == b"whole"
            with pytest.raises(OSError, match="on purpose"):
                await mount.alice.create("own/g")
            patched.undo()
            await mount.alice.save("own/g", b"whole")
            assert await state(mount, "own/g") == "complete"
