"""copy_file_range, lseek to data and holes, and birth times, in process; and bytes to write that are no bytes object."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckfs.fs import duplicating
from ckfs.fs.metadata import Changes
from ckfs.ledger.book import Book
from ckfs.model import State
from ckfs.names import FileHandle
from ckfs.policy.quota import Amount
from tests.fs.cores import ALICE, BOB, Mount, charged, lies_at, mounted
from tests.fs.test_allocating import BATCH, KEEP, UNIT, allocate, fallocates, refused
from tests.fs.test_charging import SET, limit, settled
from tests.fs.test_digests import digest, digesting, of
from tests.fs.test_digests_while_writing import read

pytestmark = [pytest.mark.root, pytest.mark.trio]
assert read  # a fixture

CONTENT = bytes(range(256)) * 100


async def made(
    mount: Mount, content: bytes = CONTENT, flags: int = os.O_WRONLY
) -> tuple[FileHandle, FileHandle]:
    """An image with *content* that is open for reading, and a new one that is open for writing."""
    await mount.alice.mkdir(SET)
    await mount.alice.save(f"{SET}/source", content)
    source = await mount.alice.open(f"{SET}/source")
    return source, await mount.alice.create(f"{SET}/target", flags=flags)


async def copy(mount: Mount, source: FileHandle, target: FileHandle, length: int = 1 << 30) -> int:
    """As a program does: until there is no more."""
    copied = 0
    while count := await mount.fs.content.copy_range(source, copied, target, copied, length - copied, 0):
        copied += count
    return copied


async def test_an_image_is_copied(store: Path) -> None:
    async with digesting(store) as mount:
        source, target = await made(mount)
        assert await mount.alice.state(f"{SET}/target") is State.WRITING
        assert await copy(mount, source, target) == len(CONTENT)
        assert mount.core.figures.traffic.bytes_written == 2 * len(CONTENT)
        await mount.alice.close(target)
        await mount.alice.close(source)
        assert await mount.alice.load(f"{SET}/target") == CONTENT
        assert await mount.alice.state(f"{SET}/target") is State.COMPLETE
        assert await digest(mount.alice, f"{SET}/target") == of(CONTENT)
        await mount.until_nothing_is_held()


async def test_a_part_of_it_into_the_middle_of_a_complete_one(store: Path) -> None:
    async with digesting(store) as mount:
        source, target = await made(mount)
        await mount.fs.content.write(target, 0, b"x" * 9000)
        await mount.alice.close(target)
        target = await mount.alice.open(f"{SET}/target", os.O_RDWR)
        assert await mount.fs.content.copy_range(source, 50, target, 100, 7, 0) == 7
        assert await mount.alice.state(f"{SET}/target") is State.WRITING
        await mount.alice.close(target)
        await mount.alice.close(source)
        content = b"x" * 100 + CONTENT[50:57] + b"x" * (9000 - 107)
        assert await mount.alice.load(f"{SET}/target") == content
        assert await digest(mount.alice, f"{SET}/target") == of(content)


async def test_within_one_image(store: Path) -> None:
    async with mounted(store) as mount:
        source, target = await made(mount, flags=os.O_RDWR)
        await mount.fs.content.write(target, 0, b"abc" * 1000)
        for offsets in ((0, 0), (0, 1499), (1499, 0)):
            with refused(errno.EINVAL):
                await mount.fs.content.copy_range(target, offsets[0], target, offsets[1], 1500, 0)
        assert await mount.fs.content.copy_range(target, 0, target, 1500, 1500, 0) == 1500
        for handle in (source, target):
            await mount.alice.close(handle)
        assert await mount.alice.load(f"{SET}/target") == (b"abc" * 1000)[:1500] * 2
        assert await mount.alice.state(f"{SET}/target") is State.COMPLETE


async def test_what_others_have_just_written_is_copied(store: Path) -> None:
    async with mounted(store) as mount:
        source, target = await made(mount, b"")
        writer = await mount.alice.open(f"{SET}/source", os.O_WRONLY)
        await mount.fs.content.write(writer, 0, CONTENT)
        assert await copy(mount, source, target) == len(CONTENT)
        for handle in (writer, source, target):
            await mount.alice.close(handle)
        assert await mount.alice.load(f"{SET}/target") == CONTENT


async def test_one_call_copies_so_much_at_most(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicating, "MOST_BYTES", 1000)
    async with mounted(store) as mount:
        source, target = await made(mount)
        assert await mount.fs.content.copy_range(source, 0, target, 0, 1 << 40, 0) == 1000
        assert await copy(mount, source, target) == len(CONTENT)
        for handle in (source, target):
            await mount.alice.close(handle)
        assert await mount.alice.load(f"{SET}/target") == CONTENT


async def test_behind_the_end_there_is_nothing_and_nothing_is_begun(store: Path) -> None:
    async with mounted(store) as mount:
        source, target = await made(mount)
        await mount.alice.close(target)
        target = await mount.alice.open(f"{SET}/target", os.O_WRONLY)
        for offset, length in ((len(CONTENT), 9), (1 << 40, 9), (0, 0)):
            assert await mount.fs.content.copy_range(source, offset, target, 0, length, 0) == 0
        assert await mount.alice.state(f"{SET}/target") is State.COMPLETE
        for handle in (source, target):
            await mount.alice.close(handle)


async def test_what_cannot_be_is_refused_before_anything_is_done(store: Path) -> None:
    async with mounted(store) as mount:
        source, target = await made(mount)
        await mount.fs.content.write(target, 0, b"x")
        await mount.alice.close(target)
        reads = await mount.alice.open(f"{SET}/target")
        writes = await mount.alice.open(f"{SET}/target", os.O_WRONLY)
        appends = await mount.alice.open(f"{SET}/target", os.O_WRONLY | os.O_APPEND)
        copy_range = mount.fs.content.copy_range
        for one, other in ((source, reads), (source, appends), (writes, writes), (source, FileHandle(99))):
            with refused(errno.EBADF):
                await copy_range(one, 0, other, 500, 9, 0)
        for how in ((-1, 0, 9, 0), (0, -1, 9, 0), (0, 0, -9, 0), (0, 0, 9, 1)):
            with refused(errno.EINVAL):
                await copy_range(source, how[0], writes, how[1], how[2], how[3])
        with refused(errno.EOVERFLOW):
            await copy_range(source, 0, writes, (1 << 63) - 5, 9, 0)
        assert await mount.alice.state(f"{SET}/target") is State.COMPLETE
        for handle in (source, reads, writes, appends):
            await mount.alice.close(handle)
        assert await mount.alice.load(f"{SET}/target") == b"x"


def failing(number: int) -> Callable[..., Any]:
    def fails(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fails


@pytest.mark.parametrize(
    ("number", "answer"),
    [
        (errno.EXDEV, errno.EXDEV),
        (errno.EOPNOTSUPP, errno.EOPNOTSUPP),
        (errno.ENOSYS, errno.EOPNOTSUPP),
        (errno.EINVAL, errno.EOPNOTSUPP),
        (errno.ESTALE, errno.EOPNOTSUPP),
    ],
)
async def test_where_the_store_does_not_copy_the_kernel_reads_and_writes(
    store: Path, number: int, answer: int, monkeypatch: pytest.MonkeyPatch, read: list[int]
) -> None:
    """It takes these for that, and never asks again after ENOSYS. What it then writes needs not be read for its digest."""
    async with digesting(store, delay_s=0.2) as mount:
        source, target = await made(mount)
        await digest(mount.alice, f"{SET}/source")
        del read[:]
        monkeypatch.setattr(os, "copy_file_range", failing(number))
        with refused(answer):
            await copy(mount, source, target)
        assert await mount.fs.content.write(target, 0, CONTENT) == len(CONTENT)
        for handle in (source, target):
            await mount.alice.close(handle)
        assert await mount.alice.state(f"{SET}/target") is State.COMPLETE
        assert await digest(mount.alice, f"{SET}/target") == of(CONTENT)
        assert read == []
        await mount.until_nothing_is_held()


async def test_a_copy_that_failed_half_way_is_partial(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with mounted(store) as mount:
        source, target = await made(mount)
        monkeypatch.setattr(os, "copy_file_range", failing(errno.EIO))
        with refused(errno.EIO):
            await copy(mount, source, target)
        for handle in (source, target):
            await mount.alice.close(handle)
        assert await mount.alice.state(f"{SET}/target") is State.PARTIAL
        mount.check_nothing_held()


async def test_nothing_is_copied_into_a_protected_image(store: Path) -> None:
    async with mounted(store) as mount:
        source, target = await made(mount)
        await mount.root.mkdir(BATCH)
        await mount.root.setattr(BATCH, Changes(uid=ALICE.uid, gid=ALICE.gid))
        writer = await mount.alice.create(f"{BATCH}/image")
        old = await mount.alice.open(f"{BATCH}/image", os.O_RDWR)
        await mount.fs.content.write(writer, 0, b"x" * 9000)
        await mount.alice.close(writer)
        with refused(errno.EACCES):
            await copy(mount, source, old)
        for handle in (source, target, old):
            await mount.alice.close(handle)
        assert await mount.alice.load(f"{BATCH}/image") == b"x" * 9000


# What it costs


async def test_a_copy_is_charged_up_to_the_limit(store: Path, ledger: Book) -> None:
    limit(ledger, units=11)
    async with charged(store, ledger) as mount:
        source, target = await made(mount, b"x" * 6 * UNIT)
        assert await mount.fs.content.copy_range(source, 0, target, 0, 6 * UNIT, 0) == 4 * UNIT
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            await mount.fs.content.copy_range(source, 4 * UNIT, target, 4 * UNIT, UNIT, 0)
        assert await mount.fs.content.copy_range(source, 0, target, 0, 4 * UNIT, 0) == 4 * UNIT
        for handle in (source, target):
            await mount.alice.close(handle)
        assert await mount.alice.state(f"{SET}/target") is State.PARTIAL  # as after any write that failed
        assert await settled(ledger, mount) == Amount(11 * UNIT, 3)


async def test_no_more_is_claimed_than_there_is_to_copy(store: Path, ledger: Book) -> None:
    limit(ledger, units=3)
    async with charged(store, ledger) as mount:
        source, target = await made(mount, b"x")
        assert await copy(mount, source, target) == 1
        for handle in (source, target):
            await mount.alice.close(handle)
        assert await mount.alice.state(f"{SET}/target") is State.COMPLETE
        assert await settled(ledger, mount) == Amount(3 * UNIT, 3)


# Data and holes


async def seeks(mount: Mount, handle: FileHandle, offset: int) -> tuple[int | str, int | str]:
    found = list[int | str]()
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        try:
            found.append(await mount.fs.content.seek(handle, offset, whence))
        except OSError as error:
            found.append(errno.errorcode[error.errno or 0])
    return found[0], found[1]


@pytest.mark.plain_alone("there is no SEEK_DATA, as on NFS before 4.2")
@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY, os.O_WRONLY | os.O_APPEND])
async def test_holes_are_found(store: Path, flags: int) -> None:
    async with mounted(store) as mount:
        await mount.alice.mkdir(SET)
        writer = await mount.alice.create(f"{SET}/image", flags=os.O_WRONLY)
        handle = await mount.alice.open(f"{SET}/image", flags)
        assert await seeks(mount, handle, 0) == ("ENXIO", "ENXIO")
        await mount.fs.content.write(writer, 4 * UNIT, b"x" * 4 * UNIT)
        await mount.fs.metadata.setattr(
            mount.core.handle(writer).node.ino, Changes(size=16 * UNIT), writer, ALICE
        )
        assert await seeks(mount, handle, 0) == (4 * UNIT, 0)
        assert await seeks(mount, handle, 5 * UNIT) == (5 * UNIT, 8 * UNIT)
        assert await seeks(mount, handle, 9 * UNIT) == ("ENXIO", 9 * UNIT)
        assert await seeks(mount, handle, 16 * UNIT) == ("ENXIO", "ENXIO")
        assert await seeks(mount, handle, -1) == ("ENXIO", "ENXIO")
        for one in (writer, handle):
            await mount.alice.close(one)
        mount.check_nothing_held()


@fallocates
async def test_what_was_allocated_behind_the_end_is_not_found(store: Path) -> None:
    async with mounted(store) as mount:
        source, target = await made(mount)
        await allocate(mount, target, KEEP, 0, 10 * UNIT)
        assert await seeks(mount, target, 0) == ("ENXIO", "ENXIO")
        for handle in (source, target):
            await mount.alice.close(handle)


async def test_a_store_that_tells_of_no_holes_has_data_up_to_the_end(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel has it itself then."""
    lseek = os.lseek

    def asked(fd: int, offset: int, whence: int) -> int:
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return lseek(fd, offset, whence)

    async with mounted(store) as mount:
        source, target = await made(mount)
        monkeypatch.setattr(os, "lseek", asked)
        size = len(CONTENT)
        for offset in (0, 7, size - 1):
            assert await seeks(mount, source, offset) == (offset, size)
        for offset in (size, size + 1, -1):
            assert await seeks(mount, source, offset) == ("ENXIO", "ENXIO")
        for handle in (source, target):
            await mount.alice.close(handle)


async def test_the_kernel_seeks_the_rest_itself(store: Path) -> None:
    async with mounted(store) as mount:
        source, target = await made(mount)
        for whence in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, 9):
            with refused(errno.EINVAL):
                await mount.fs.content.seek(source, 0, whence)
        for handle in (source, target):
            await mount.alice.close(handle)
        with refused(errno.EBADF):
            await mount.fs.content.seek(source, 0, os.SEEK_DATA)


# Birth times


async def birth(mount: Mount, path: str) -> int | None:
    async with mount.alice.at(path) as ino:
        return await mount.fs.metadata.birth_time(ino)


@pytest.mark.plain_alone("FUSE, by which that is made, carries none")
async def test_what_is_made_is_born_then_whatever_happens_to_its_times(store: Path) -> None:
    async with mounted(store) as mount:
        before = time.time_ns() - 1_000_000_000
        await mount.alice.mkdir(SET)
        await mount.alice.save(f"{SET}/image", b"x")
        await mount.alice.symlink(f"{SET}/link", b"elsewhere")
        born = {path: await birth(mount, path) for path in (SET, f"{SET}/image", f"{SET}/link", "")}
        for path, when in born.items():
            assert when is not None, path
            assert (before < when < time.time_ns()) or not path
        await mount.alice.setattr(f"{SET}/image", Changes(mtime_ns=7))
        await mount.alice.append(f"{SET}/image", b"y")
        await mount.alice.rename(f"{SET}/image", f"{SET}/other")
        assert await birth(mount, f"{SET}/other") == born[f"{SET}/image"]
        mount.check_nothing_held()


@pytest.mark.plain_alone("FUSE, by which that is made, carries none")
async def test_what_takes_the_place_of_an_image_is_born_when_it_does(store: Path) -> None:
    async with mounted(store) as mount:
        await mount.alice.mkdir(SET)
        await mount.alice.save(f"{SET}/image", b"x")
        first, ino = await birth(mount, f"{SET}/image"), (await mount.alice.stat(f"{SET}/image")).record.ino
        time.sleep(0.02)  # noqa: ASYNC251 - the file system's clock ticks
        await mount.alice.close(await mount.alice.open(f"{SET}/image", os.O_WRONLY | os.O_TRUNC))
        second = await birth(mount, f"{SET}/image")
        assert (await mount.alice.stat(f"{SET}/image")).record.ino == ino
        assert first is not None
        assert second is not None
        assert second > first


async def test_what_is_gone_was_born_at_no_time(store: Path) -> None:
    async with mounted(store) as mount:
        await mount.alice.mkdir(SET)
        await mount.alice.save(f"{SET}/.image", b"x")
        async with mount.alice.at(f"{SET}/.image") as ino:
            await mount.alice.unlink(f"{SET}/.image")
            assert await mount.fs.metadata.birth_time(ino) is None


# Bytes


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_APPEND])
async def test_a_part_of_a_buffer_is_written_without_a_copy(
    store: Path, ledger: Book, flags: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it does not fit as a whole."""
    taken = list[object]()
    pwrite, write = os.pwrite, os.write

    def noted(fd: int, data: object, offset: int) -> int:
        taken.append(data)
        return pwrite(fd, data, offset)  # type: ignore[arg-type]  # whatever its caller gave it

    def appended(fd: int, data: object) -> int:
        taken.append(data)
        return write(fd, data)  # type: ignore[arg-type]  # whatever its caller gave it

    buffer = memoryview(bytearray(b"x" * 100 + bytes(range(256)) * 64 + b"x"))
    limit(ledger, units=4)
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        handle = await mount.alice.create(f"{SET}/image", flags=flags)
        monkeypatch.setattr(os, "pwrite", noted)
        if flags & os.O_APPEND:
            monkeypatch.setattr(os, "write", appended)
        first = await mount.fs.content.write(handle, 0, buffer[100:200])
        rest = await mount.fs.content.write(handle, 100, buffer[200:-1])
        monkeypatch.undo()
        assert first == 100
        assert 2 * UNIT - 100 <= rest <= 3 * UNIT - 100
        assert taken
        assert all(isinstance(data, memoryview) and data.obj is buffer.obj for data in taken)
        await mount.alice.close(handle)
        size = first + rest
        assert (lies_at(store, SET) / "image").read_bytes() == bytes(buffer[100 : 100 + size])


async def test_the_digest_of_what_came_in_views_is_made_while_writing(store: Path, read: list[int]) -> None:
    buffer = memoryview(bytearray(CONTENT))
    async with digesting(store) as mount:
        await mount.alice.mkdir("s")
        handle = await mount.alice.create("s/image", flags=os.O_WRONLY)
        for at in range(0, len(buffer), 1000):
            await mount.fs.content.write(handle, at, buffer[at : at + 1000])
        await mount.alice.close(handle)
        assert await digest(mount.alice, "s/image") == of(CONTENT)
        assert read == []


async def test_a_copy_to_another_owner_has_the_content_and_costs_him(store: Path, ledger: Book) -> None:
    async with charged(store, ledger) as mount:
        await mount.alice.mkdir(SET)
        await mount.alice.save(f"{SET}/source", CONTENT)
        await mount.bob.mkdir("bobs")
        source = await mount.bob.open(f"{SET}/source")
        target = await mount.bob.create("bobs/target", flags=os.O_WRONLY)
        assert await copy(mount, source, target) == len(CONTENT)
        for handle in (source, target):
            await mount.bob.close(handle)
        assert (lies_at(store, "bobs") / "target").read_bytes() == CONTENT
        assert await settled(ledger, mount, uid=BOB.uid) == Amount(8 * UNIT, 2)
        assert await settled(ledger, mount) == Amount(8 * UNIT, 2)
