"""fallocate in process: what it does to content and state, and what it refuses. What it costs is in test_charging_allocated."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from ckfs.errors import StoreDown, errno_of
from ckfs.fs.metadata import Changes
from ckfs.model import State
from ckfs.names import FileHandle, MountId
from ckfs.store import allocated, allocating, syscalls
from ckfs.store.reports import Unreported
from tests.fs.cores import ALICE, Mount, lies_at, mounted
from tests.fs.test_digests import digest, digesting, of

pytestmark = [pytest.mark.root, pytest.mark.trio]
fallocates = pytest.mark.plain_alone("there is no fallocate, as on NFS before 4.2")

UNIT = 4096
KEEP, PUNCH, ZERO = 0x01, 0x02 | 0x01, 0x10
BATCH = "7.server.CK"
ENOUGH_S = 20.0


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - the errno says which
        yield
    assert errno_of(raised.value) == number, raised.value


@contextlib.asynccontextmanager
async def image(
    store: Path, content: bytes = b"", *, flags: int = os.O_RDWR, timeout_s: float = 10.0
) -> AsyncIterator[tuple[Mount, FileHandle]]:
    """A mount, and an image that is being written on it, from its first byte."""
    async with mounted(store, timeout_s=timeout_s) as mount:
        await mount.alice.mkdir("s")
        handle = await mount.alice.create("s/image", flags=flags)
        if content:
            assert await mount.fs.content.write(handle, 0, content) == len(content)
        yield mount, handle


async def allocate(mount: Mount, handle: FileHandle, mode: int, offset: int, length: int) -> None:
    try:
        await mount.fs.content.allocate(handle, mode, offset, length)
    except Exception as error:
        if mode & ZERO and errno_of(error) == errno.EOPNOTSUPP:
            pytest.skip("the file system of this host's temporary files zeroes no ranges (tmpfs)")
        raise


def takes(status: os.stat_result, units: int) -> bool:
    """And one more, perhaps, in which ext4 has its attributes."""
    return status.st_blocks * 512 // UNIT in (units, units + 1)


# What it does


@fallocates
@pytest.mark.parametrize(
    ("mode", "content"),
    [
        (0, b"x" * 6000 + bytes(6000)),
        (KEEP, b"x" * 6000),
        (PUNCH, b"x" * 5000 + bytes(1000)),
        (ZERO, b"x" * 5000 + bytes(7000)),
        (ZERO | KEEP, b"x" * 5000 + bytes(1000)),
    ],
)
async def test_the_content_is_as_the_kernel_has_it(store: Path, mode: int, content: bytes) -> None:
    async with image(store, b"x" * 6000) as (mount, handle):
        await allocate(mount, handle, mode, 5000, 7000)
        await mount.alice.close(handle)
        assert await mount.alice.load("s/image") == content
        assert await mount.alice.state("s/image") is State.COMPLETE
        mount.check_nothing_held()


@fallocates
async def test_what_is_allocated_is_there(store: Path) -> None:
    async with image(store) as (mount, handle):
        await allocate(mount, handle, KEEP, 0, 10 * UNIT)
        status = os.fstat(mount.core.handle(handle).fd)
        assert status.st_size == 0
        assert takes(status, 10)
        await mount.alice.close(handle)


@fallocates
async def test_by_a_descriptor_that_appends(store: Path) -> None:
    async with image(store, flags=os.O_WRONLY | os.O_APPEND) as (mount, handle):
        await allocate(mount, handle, KEEP, 0, 10 * UNIT)
        await mount.fs.content.write(handle, 0, b"x")
        await allocate(mount, handle, 0, 0, 2 * UNIT)
        await mount.fs.content.write(handle, 0, b"y")
        await mount.alice.close(handle)
        assert await mount.alice.load("s/image") == b"x" + bytes(2 * UNIT - 1) + b"y"


@fallocates
async def test_by_a_descriptor_of_what_has_no_name_any_more(store: Path) -> None:
    async with image(store, b"x") as (mount, handle):
        await mount.alice.unlink("s/image")
        await allocate(mount, handle, 0, 0, 2 * UNIT)
        assert bytes(await mount.fs.content.read(handle, 0, 9000)) == b"x" + bytes(2 * UNIT - 1)
        await mount.alice.close(handle)
        mount.check_nothing_held()


@fallocates
@pytest.mark.parametrize("mode", [0, KEEP, PUNCH, ZERO])
async def test_it_is_done_as_the_owner(store: Path, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()
    real = syscalls.fallocate

    def noted(fd: int, *how: int) -> None:
        with open("/proc/thread-self/status", "rb") as status:
            seen.extend(int(line.split()[4]) for line in status if line.startswith(b"Uid:"))
        real(fd, *how)

    monkeypatch.setattr(syscalls, "fallocate", noted)
    async with image(store, b"x" * 9000) as (mount, handle):
        await allocate(mount, handle, mode, 0, 5000)
        await mount.alice.close(handle)
    assert set(seen) == {ALICE.uid}


# What it refuses


@pytest.mark.parametrize(
    ("mode", "offset", "length", "number"),
    [
        (0, 0, 0, errno.EINVAL),
        (0, 0, -1, errno.EINVAL),
        (PUNCH, -1, 9, errno.EINVAL),
        (0x02, 0, 9, errno.EOPNOTSUPP),  # punching without KEEP_SIZE
        (PUNCH | ZERO, 0, 9, errno.EOPNOTSUPP),
        (0x08, 0, UNIT, errno.EOPNOTSUPP),  # COLLAPSE_RANGE
        (0x20, 0, UNIT, errno.EOPNOTSUPP),  # INSERT_RANGE
        (0x40, 0, UNIT, errno.EOPNOTSUPP),  # UNSHARE_RANGE
        (0x1000, 0, UNIT, errno.EOPNOTSUPP),
        (0, (1 << 63) - 2, 2, errno.EFBIG),
        (0, (1 << 63) - 1, (1 << 63) - 1, errno.EFBIG),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_done(
    store: Path, mode: int, offset: int, length: int, number: int
) -> None:
    async with mounted(store) as mount:
        await mount.alice.mkdir("s")
        await mount.alice.save("s/image", b"x")
        handle = await mount.alice.open("s/image", os.O_RDWR)
        with refused(number):
            await mount.fs.content.allocate(handle, mode, offset, length)
        assert await mount.alice.state("s/image") is State.COMPLETE
        await mount.alice.close(handle)
        assert await mount.alice.load("s/image") == b"x"


@pytest.mark.parametrize("mode", [0, PUNCH])
async def test_a_file_becomes_no_larger_than_the_store_has_them(
    store: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscalls, "fallocate", _fails(errno.EFBIG))  # XFS has some as large as can be said
    async with image(store, b"x") as (mount, handle):
        with refused(errno.EFBIG):
            await allocate(mount, handle, mode, 0, UNIT)
        await mount.alice.close(handle)
        assert await mount.alice.state("s/image") is State.COMPLETE


async def test_a_descriptor_for_reading_allocates_nothing(store: Path) -> None:
    async with mounted(store) as mount:
        await mount.alice.mkdir("s")
        await mount.alice.save("s/image", b"x")
        handle = await mount.alice.open("s/image")
        for mode in (0, KEEP, PUNCH, ZERO):
            with refused(errno.EBADF):
                await mount.fs.content.allocate(handle, mode, 0, UNIT)
        await mount.alice.close(handle)
        with refused(errno.EBADF):
            await mount.fs.content.allocate(handle, 0, 0, UNIT)
        assert await mount.alice.state("s/image") is State.COMPLETE


async def test_more_than_the_store_has_is_refused_and_nothing_gives_way_for_it(store: Path) -> None:
    async with image(store, b"x") as (mount, handle):
        await mount.alice.save("s/old", b"old")
        await mount.alice.unlink("s/old")
        with refused(errno.ENOSPC):
            await mount.fs.content.allocate(handle, 0, 0, 1 << 55)
        assert len(list(mount.core.store.trash.items())) == 1
        await mount.alice.close(handle)
        assert await mount.alice.state("s/image") is State.COMPLETE


@pytest.mark.parametrize("mode", [0, KEEP, PUNCH, ZERO])
async def test_a_store_that_cannot_says_so_and_nothing_is_amiss(
    store: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What behaves like NFS says so itself. What is written on in order needs not be read for its digest."""
    if not _is_on_network(store):
        monkeypatch.setattr(syscalls, "fallocate", _fails(errno.EOPNOTSUPP))
    async with digesting(store) as mount:
        await mount.alice.mkdir("s")
        handle = await mount.alice.create("s/image", flags=os.O_WRONLY)
        await mount.fs.content.write(handle, 0, b"x" * 100)
        with refused(errno.EOPNOTSUPP):
            await mount.fs.content.allocate(handle, mode, 0, 10 * UNIT)
        assert allocated.of(os.fsencode(lies_at(store, "s") / "image")) == ()
        node = mount.core.handle(handle).node
        await mount.fs.content.write(handle, 100, b"y" * 100)
        assert node.hashed is not None
        assert node.hashed._bytes == 200
        await mount.alice.close(handle)
        assert await mount.alice.state("s/image") is State.COMPLETE
        assert await digest(mount.alice, "s/image") == of(b"x" * 100 + b"y" * 100)


def _is_on_network(path: Path) -> bool:
    fd = os.open(path, os.O_PATH)
    try:
        return not syscalls.is_local(fd)
    finally:
        os.close(fd)


def _fails(number: int) -> object:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fails


# States and digests


@fallocates
@pytest.mark.parametrize("mode", [0, KEEP, PUNCH, ZERO])
async def test_a_complete_image_is_written_while_it_is_done_and_complete_afterwards(
    store: Path, mode: int
) -> None:
    async with digesting(store) as mount:
        await mount.alice.mkdir("s")
        await mount.alice.save("s/image", b"x" * 9000)
        before = await digest(mount.alice, "s/image")
        handle = await mount.alice.open("s/image", os.O_WRONLY)
        await allocate(mount, handle, mode, UNIT, 2 * UNIT)
        assert await mount.alice.state("s/image") is State.WRITING
        assert mount.core.store.door.writers(
            mount.core.handle(handle).file, mount.core.handle(handle).node.ino
        )
        await mount.alice.close(handle)
        assert await mount.alice.state("s/image") is State.COMPLETE
        content = await mount.alice.load("s/image")
        assert await digest(mount.alice, "s/image") == of(content)
        assert (content == b"x" * 9000) == (mode == KEEP) == (before == of(content))
        await mount.until_nothing_is_held()


@fallocates
@pytest.mark.parametrize("mode", [0, KEEP, PUNCH, ZERO])
async def test_the_digest_from_writing_is_void(store: Path, mode: int) -> None:
    async with digesting(store) as mount:
        await mount.alice.mkdir("s")
        handle = await mount.alice.create("s/image", flags=os.O_WRONLY)
        await mount.fs.content.write(handle, 0, b"x" * 9000)
        await allocate(mount, handle, mode, 100, 5000)
        assert mount.core.handle(handle).node.hashed is None
        await mount.fs.content.write(handle, 9000, b"y" * 9000)
        await mount.alice.close(handle)
        assert await digest(mount.alice, "s/image") == of(await mount.alice.load("s/image"))


@fallocates
async def test_no_digest_is_known_in_the_moment_in_which_a_hole_is_punched(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by those who close it in that moment."""
    real, seen = syscalls.fallocate, list[object]()
    async with image(store, b"x" * 9000) as (mount, handle):
        node = mount.core.handle(handle).node
        hashed = node.hashed
        assert hashed is not None

        def looked(*how: int) -> None:
            seen.append(hashed._bytes)
            real(*how)

        monkeypatch.setattr(syscalls, "fallocate", looked)
        await allocate(mount, handle, PUNCH, 0, UNIT)
        assert seen == [None]
        await mount.alice.close(handle)


@pytest.mark.parametrize("mode", [0, KEEP, PUNCH, ZERO])
@pytest.mark.parametrize("as_root", [False, True])
async def test_a_protected_image_stays_as_it_is(store: Path, mode: int, *, as_root: bool) -> None:
    """Through a descriptor from before it was complete, here and on another mount."""
    async with mounted(store) as mount, mounted(store, node="b") as other:
        await mount.root.mkdir(BATCH)
        await mount.root.setattr(BATCH, Changes(uid=ALICE.uid, gid=ALICE.gid))
        writer = await mount.alice.create(f"{BATCH}/image")
        old = [
            (one, await (one.root if as_root else one.alice).open(f"{BATCH}/image", os.O_RDWR))
            for one in (mount, other)
        ]
        await mount.fs.content.write(writer, 0, b"x" * 9000)
        await mount.alice.close(writer)
        for one, handle in old:
            with refused(errno.EACCES):
                await one.fs.content.allocate(handle, mode, 0, UNIT)
            await one.alice.close(handle)
        assert await mount.alice.load(f"{BATCH}/image") == b"x" * 9000
        assert await mount.alice.state(f"{BATCH}/image") is State.COMPLETE


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
async def test_where_it_failed_half_way_the_image_is_partial(
    store: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with image(store, b"x") as (mount, handle):
        with monkeypatch.context() as patched, refused(number):
            patched.setattr(syscalls, "fallocate", _fails(number))
            await mount.fs.content.allocate(handle, 0, 0, UNIT)
        await mount.alice.close(handle)
        assert await mount.alice.state("s/image") is State.PARTIAL
        mount.check_nothing_held()


async def test_where_the_writer_was_killed_the_image_is_partial(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocating, "allocate", lambda *_: (0, 0))
    async with image(store, b"x") as (mount, handle):
        await mount.fs.content.fsync(handle, data_only=False)
        await mount.fs.content.allocate(handle, KEEP, 0, UNIT)  # since the fsync: times alone may not tell
        mount.core.handle(handle).node.killed = True
        await mount.alice.close(handle)
        assert await mount.alice.state("s/image") is State.PARTIAL


async def test_what_the_store_does_too_late_leaves_a_partial_image(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, done = threading.Event(), threading.Event()

    def late(*_: object) -> None:
        assert go.wait(ENOUGH_S)
        done.set()

    monkeypatch.setattr(syscalls, "fallocate", late)
    async with image(store, b"x", timeout_s=1.0) as (mount, handle), trio.open_nursery() as nursery:
        nursery.start_soon(mount.core.gate.watch)
        with pytest.raises(StoreDown):
            await mount.fs.content.allocate(handle, PUNCH, 0, UNIT)
        go.set()
        with trio.fail_after(ENOUGH_S):
            while mount.core.gate.overdue or not mount.core.gate.is_up:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.01)
        assert done.is_set()
        await mount.alice.close(handle)
        assert await mount.alice.state("s/image") is State.PARTIAL
        mount.check_nothing_held()
        nursery.cancel_scope.cancel()


async def test_a_fenced_mount_allocates_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocating, "allocate", _fails(errno.EIO))
    async with image(store, b"x") as (mount, handle):
        mount.core.handle(handle).mount = MountId(b"0123456789abcdef")
        with refused(errno.EIO):
            await mount.fs.content.allocate(handle, 0, 0, UNIT)
        mount.core.handle(handle).mount = mount.core.mount_id
        await mount.alice.close(handle)
        assert await mount.alice.state("s/image") is State.PARTIAL


# What is noted


@fallocates
async def test_what_was_allocated_is_noted_until_it_is_free(store: Path) -> None:
    async with image(store) as (mount, handle):
        fd, node = mount.core.handle(handle).fd, mount.core.handle(handle).node
        assert isinstance(mount.core.store.door.reports, Unreported)  # also where nobody counts yet
        await allocate(mount, handle, KEEP, 100, 2 * UNIT)
        assert allocated.of(fd) == ((0, 3 * UNIT),)
        await mount.fs.content.write(handle, 0, b"x" * 2 * UNIT)
        await allocate(mount, handle, PUNCH, UNIT - 1, UNIT + 1)
        assert allocated.of(fd) == ((0, UNIT), (2 * UNIT, 3 * UNIT))
        await mount.fs.metadata.setattr(node.ino, Changes(size=9 * UNIT), handle, ALICE)
        assert allocated.of(fd) == ((0, UNIT), (2 * UNIT, 3 * UNIT))
        await mount.fs.metadata.setattr(node.ino, Changes(size=2 * UNIT + 1), handle, ALICE)
        assert allocated.of(fd) == ((0, UNIT), (2 * UNIT, 3 * UNIT))
        await mount.fs.metadata.setattr(node.ino, Changes(size=2 * UNIT), handle, ALICE)
        assert allocated.of(fd) == ((0, UNIT),)
        await mount.alice.close(handle)
        assert takes((await mount.alice.stat("s/image")).stat, 1)
        await mount.alice.setattr("s/image", Changes(size=0))
        assert allocated.of(os.fsencode(lies_at(store, "s") / "image")) == ()


@fallocates
async def test_behind_the_end_only_what_the_store_has_freed_is_taken_for_free(store: Path) -> None:
    """ext4 frees nothing there."""
    async with image(store, b"x") as (mount, handle):
        fd = mount.core.handle(handle).fd
        await allocate(mount, handle, KEEP, 0, 10 * UNIT)
        await allocate(mount, handle, PUNCH, 0, 10 * UNIT)
        assert takes(os.fstat(fd), sum(end - begin for begin, end in allocated.of(fd)) // UNIT)
        await mount.alice.close(handle)


@fallocates
async def test_in_too_many_parts_it_is_left_to_the_caller_to_write(store: Path) -> None:
    async with image(store) as (mount, handle):
        fd = mount.core.handle(handle).fd
        for number in range(allocated.MOST):
            await allocate(mount, handle, 0, 2 * number * UNIT, UNIT)
        with refused(errno.EOPNOTSUPP):
            await allocate(mount, handle, 0, 1000 * UNIT, UNIT)
        await allocate(mount, handle, 0, UNIT, UNIT)  # which makes one of two
        await allocate(mount, handle, 0, 1000 * UNIT, UNIT)
        before = allocated.of(fd)
        assert len(before) == allocated.MOST
        await allocate(mount, handle, PUNCH, UNIT, UNIT)  # is charged on
        assert allocated.of(fd) == before
        await mount.alice.close(handle)
        assert await mount.alice.state("s/image") is State.COMPLETE


@fallocates
async def test_another_file_in_its_place_has_none_of_it(store: Path) -> None:
    async with image(store, b"x") as (mount, handle):
        await allocate(mount, handle, KEEP, 0, 10 * UNIT)
        await mount.alice.close(handle)
        await mount.alice.close(await mount.alice.open("s/image", os.O_WRONLY | os.O_TRUNC))
        assert allocated.of(os.fsencode(lies_at(store, "s") / "image")) == ()
        (item,) = mount.core.store.trash.items()
        assert allocated.ATTRIBUTE in mount.core.store.door.list_attributes(
            item.spot, mount.core.store.door.examine(item.spot).record.ino
        )
