"""Digests and the checks by them, in process: what keeps one valid, what makes it stale, and who is marked, never by mistake."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import xxhash

from ckfs.errors import Denied, NoAttribute
from ckfs.fs.chores import Chores
from ckfs.fs.metadata import Changes
from ckfs.fs.superseded import Superseded
from ckfs.fs.undigested import UndigestedImages
from ckfs.model import Keep, Owner, Record, State
from ckfs.names import Gid, Inode, MountId, SetName, Uid
from ckfs.policy import lifecycle
from ckfs.policy.lifecycle import Event
from ckfs.store import attributes, everywhere, record, rereading, writing
from ckfs.store.copying import copy_tree
from ckfs.store.removed import Item
from ckfs.store.rereading import Checker, Reading, Result
from ckfs.store.spots import Found, Spot
from tests.fs.cores import ALICE, Mount, Process, mounted
from tests.support.nfs import on_server
from tests.support.users import raises_errno

pytestmark = [pytest.mark.root, pytest.mark.trio]

WITHIN_S = 20.0
CONTENT = b"image" * 100_000
Change = Callable[[Process, str], Awaitable[None]]
NOW = 1_700_000_000_000_000_000


def nothing(_: int) -> None:
    """No progress is shown."""


@contextlib.asynccontextmanager
async def digesting(path: Path, node: str = "a", *, delay_s: float = 0) -> AsyncIterator[Mount]:
    """A mount that makes digests as soon as it can, or after a delay."""
    async with mounted(path, node=node) as mount, trio.open_nursery() as nursery:
        mount.core.undigested = UndigestedImages(delay_s=delay_s)
        nursery.start_soon(mount.fs.digesting.run)
        yield mount
        nursery.cancel_scope.cancel()


async def attribute(process: Process, path: str, name: str = "digest") -> str | None:
    """What the mount says; None for ENODATA."""
    async with process.at(path) as ino:
        try:
            return (await process.fs.extended.get(ino, f"user.ckfs.{name}".encode(), process.caller)).decode()
        except NoAttribute:
            return None


async def digest(process: Process, path: str) -> str:
    """Once it is there."""
    with trio.fail_after(WITHIN_S):
        while (value := await attribute(process, path)) is None:  # noqa: ASYNC110 - nobody else is told of it
            await trio.sleep(0.01)
    return value


def of(content: bytes) -> str:
    return f"xxh3-128:{xxhash.xxh3_128_hexdigest(content)}"


def spot_of(mount: Mount, name: bytes, *below: bytes) -> Spot:
    entry = mount.core.store.names.read(SetName(name))
    return Spot(entry.stored, (*entry.spot.components, *below))


def checker(mount: Mount, progress: Callable[[int], None] = nothing) -> Checker:
    return Checker(mount.core.store.door, marks=True, makes=True, progress=progress)


def flip(store: Path, path: str, at: int = 7) -> None:
    """A byte of the store's file, as a bad disk does it: nobody is told."""
    top, _, inside = path.rpartition("/")
    (directory,) = on_server(store).glob(f"{top}*")  # a set that was copied to its owner lies beside its name
    fd = os.open(directory / inside, os.O_RDWR)
    try:
        old = os.pread(fd, 1, at)
        os.pwrite(fd, bytes([old[0] ^ 0xFF]), at)
    finally:
        os.close(fd)


# Made behind the writer


async def test_an_image_that_becomes_complete_gets_its_digest(store: Path) -> None:
    async with digesting(store) as mount:
        alice = mount.alice
        await alice.mkdir("s")
        await alice.save("s/image", CONTENT)
        await alice.save("s/.other.tmp", CONTENT[::-1])
        assert await digest(alice, "s/image") == of(CONTENT)
        assert await attribute(alice, "s/.other.tmp") is None
        await alice.rename("s/.other.tmp", "s/other")
        assert await digest(alice, "s/other") == of(CONTENT[::-1])
        await mount.until_nothing_is_held()


async def test_what_does_not_change_content_keeps_it(store: Path) -> None:
    async with digesting(store) as mount:
        alice = mount.alice
        await alice.mkdir("s")
        await alice.save("s/image", CONTENT)
        value = await digest(alice, "s/image")
        await alice.setattr("s/image", Changes(mode=0o400))
        await alice.setattr("s/image", Changes(atime_ns=5, mtime_ns=5))
        await mount.root.setattr("s/image", Changes(uid=Uid(2102), gid=Gid(2102)))
        await alice.link("s/image", "s/second")
        await alice.rename("s/image", "s/renamed")
        await alice.rename("s", "t")
        await mount.root.setattr("t", Changes(uid=Uid(2102), gid=Gid(2102)))
        assert await attribute(mount.root, "t/renamed") == value
        assert await attribute(mount.root, "t/second") == value


async def cut_and_fill_up(alice: Process, path: str) -> None:
    """By name, as truncate(2): the size is what it was, and nobody has it open."""
    await alice.setattr(path, Changes(size=10))
    await alice.setattr(path, Changes(size=len(CONTENT)))


async def append(alice: Process, path: str) -> None:
    await alice.append(path, b"more")


async def write_anew(alice: Process, path: str) -> None:
    handle = await alice.open(path, os.O_WRONLY | os.O_TRUNC)
    await alice.fs.content.write(handle, 0, CONTENT[::-1])
    await alice.close(handle)


async def write_inside(alice: Process, path: str) -> None:
    handle = await alice.open(path, os.O_WRONLY)
    await alice.fs.content.write(handle, 5, b"X")
    await alice.close(handle)


@pytest.mark.parametrize("change", [cut_and_fill_up, append, write_anew, write_inside])
async def test_a_change_makes_it_stale_at_once_and_new_later(store: Path, change: Change) -> None:
    async with digesting(store) as mount:
        await mount.alice.mkdir("s")
        await mount.alice.save("s/image", CONTENT)
        await digest(mount.alice, "s/image")
    async with mounted(store) as mount:  # which makes none
        await change(mount.alice, "s/image")
        assert await attribute(mount.alice, "s/image") is None
        image = spot_of(mount, b"s", b"image")
        assert checker(mount).check(image, NOW)[0] is Result.MADE
    async with digesting(store) as mount:
        await change(mount.alice, "s/image")
        value = await digest(mount.alice, "s/image")
        content = (on_server(store) / "users/2101/s/image").read_bytes()
        assert value == of(content)
        assert content != CONTENT


async def test_a_digest_is_kept_only_with_what_was_read(store: Path) -> None:
    async with mounted(store) as mount:
        await mount.alice.mkdir("s")
        await mount.alice.save("s/image", CONTENT)
        door, image = mount.core.store.door, spot_of(mount, b"s", b"image")
        reading = Reading(door, image, door.examine(image))
        while reading.step():
            pass
        await write_inside(mount.alice, "s/image")
        assert not reading.keep()
        assert await attribute(mount.alice, "s/image") is None


async def test_an_image_that_another_mount_goes_on_to_write_gets_one_when_that_ends(store: Path) -> None:
    async with digesting(store, "a") as a, digesting(store, "b") as b:
        await a.alice.mkdir("s")
        first = await a.alice.create("s/image")
        await a.fs.content.write(first, 0, CONTENT)
        second = await b.alice.open("s/image", os.O_WRONLY)
        await b.fs.content.write(second, 3, b"X")
        await a.alice.close(first)
        assert await a.alice.state("s/image") is State.WRITING
        assert len(a.core.undigested) == 0
        await b.fs.content.write(second, 4, b"Y")
        await b.alice.close(second)
        assert await digest(a.alice, "s/image") == of(CONTENT[:3] + b"XY" + CONTENT[5:])


async def test_what_a_mount_that_died_did_not_make_is_made_by_a_scrub(store: Path) -> None:
    async with mounted(store) as mount:  # dies before it makes any
        await mount.alice.mkdir("s")
        await mount.alice.save("s/image", CONTENT)
        assert len(mount.core.undigested) == 1
    async with mounted(store) as mount:
        assert await attribute(mount.alice, "s/image") is None
        image = spot_of(mount, b"s", b"image")
        assert checker(mount).check(image, NOW)[0] is Result.MADE
        assert await attribute(mount.alice, "s/image") == of(CONTENT)
        assert checker(mount).check(image, NOW)[0] is Result.VERIFIED


async def test_an_image_that_another_mount_settles_gets_its_digest_there(store: Path) -> None:
    async with digesting(store) as mount, mounted(store, node="b") as other:
        await other.alice.mkdir("s")
        handle = await other.alice.create("s/image")
        await other.fs.content.write(handle, 0, CONTENT)
        await other.fs.content.fsync(handle, data_only=False)
        assert other.core.member is not None
        mount.core.store.mounts.end(other.core.member.id)
        assert await attribute(mount.alice, "s/image", "state") == "complete"
        assert await digest(mount.alice, "s/image") == of(CONTENT)
        with contextlib.suppress(OSError):
            await other.alice.close(handle)


# Where it goes with the content, and where not


async def test_in_the_trash_it_stays_with_the_old_content(store: Path) -> None:
    async with digesting(store) as mount:
        await mount.alice.mkdir("s")
        for name in ("truncated", "replaced", "removed"):
            await mount.alice.save(f"s/{name}", CONTENT + name.encode())
            await digest(mount.alice, f"s/{name}")
    async with mounted(store) as mount:
        alice = mount.alice
        handle = await alice.open("s/truncated", os.O_WRONLY | os.O_TRUNC)
        assert await attribute(alice, "s/truncated") is None
        await mount.fs.content.write(handle, 0, b"new")
        await alice.close(handle)
        assert await attribute(alice, "s/truncated") is None
        await alice.save("s/new", b"new")
        await alice.rename("s/new", "s/replaced")
        await alice.unlink("s/removed")
        assert await attribute(alice, "s/replaced") is None
        items = [item for item in mount.core.store.trash.items() if isinstance(item, Item)]
        assert {item.note.path for item in items} == {b"truncated", b"replaced", b"removed"}
        for item in items:
            kept = rereading.kept(mount.core.store.door, item.spot, item.found)
            assert str(kept) == of(CONTENT + item.note.path)


async def test_it_follows_a_copy_to_another_owner(store: Path) -> None:
    async with digesting(store) as mount:
        await mount.alice.mkdir("s")
        await mount.alice.save("s/image", CONTENT)
        await digest(mount.alice, "s/image")
        bob, door = Owner(Uid(2102), Gid(2102)), mount.core.store.door
        mount.core.store.names.prepare_user(bob)
        target = Spot(bob, (b"users", b"2102", b"copy"))
        for _ in copy_tree(door, spot_of(mount, b"s"), target):
            pass
        image = Spot(bob, (*target.components, b"image"))
        assert str(rereading.kept(door, image, door.examine(image))) == of(CONTENT)
        assert checker(mount).check(image, NOW)[0] is Result.VERIFIED


# Damage


@contextlib.asynccontextmanager
async def damaged(store: Path) -> AsyncIterator[tuple[Mount, Spot]]:
    async with digesting(store) as mount:
        await mount.alice.mkdir("s")
        await mount.alice.save("s/image", CONTENT)
        await digest(mount.alice, "s/image")
    flip(store, "users/2101/s/image")
    async with mounted(store) as mount:
        yield mount, spot_of(mount, b"s", b"image")


async def test_what_differs_is_marked_and_not_opened_until_it_is_written_anew(store: Path) -> None:
    async with damaged(store) as (mount, image):
        result, found = checker(mount).check(image, NOW)
        assert (result, found.record.state, found.record.damaged) == (Result.DAMAGED, State.PARTIAL, NOW)
        assert await attribute(mount.alice, "s/image", "damaged") == "2023-11-14T22:13:20Z"
        assert await attribute(mount.alice, "s/image") is None
        with raises_errno(errno.EIO):
            await mount.alice.load("s/image")
        assert checker(mount).check(image, NOW + 1) == (Result.DAMAGED, found)  # again, and since when
        await mount.alice.append("s/image", b"more")
        assert await mount.alice.state("s/image") is State.PARTIAL
        await write_anew(mount.alice, "s/image")
        assert await mount.alice.state("s/image") is State.COMPLETE
        assert await attribute(mount.alice, "s/image", "damaged") is None
        assert await mount.alice.load("s/image") == CONTENT[::-1]


async def test_who_does_not_mark_changes_nothing(store: Path) -> None:
    async with damaged(store) as (mount, image):
        before = mount.core.store.door.examine(image).record
        only_looks = replace(checker(mount), marks=False, makes=False)
        result, found = only_looks.check(image, NOW)
        assert (result, found.record) == (Result.DAMAGED, before)
        assert mount.core.store.door.examine(image).record == before


async def during(
    reading: int, mount: Mount, image: Spot, change: Callable[[], Awaitable[None]]
) -> tuple[Result, Found]:
    """Check *image*; while it is read for the first or the second time, *change* is awaited in the loop."""
    readings = 0

    def progress(_: int) -> None:
        nonlocal readings
        readings += 1
        if readings == reading:
            trio.from_thread.run(change)

    return await trio.to_thread.run_sync(lambda: checker(mount, progress).check(image, NOW))


@pytest.mark.parametrize("reading", [1, 2])
@pytest.mark.parametrize("change", [write_anew, append, write_inside, cut_and_fill_up])
async def test_an_image_that_is_written_while_it_is_read_is_never_marked(
    store: Path, change: Change, reading: int
) -> None:
    """Even one that was damaged before: what is there then is what somebody has just completed."""
    async with damaged(store) as (mount, image):
        result, found = await during(reading, mount, image, lambda: change(mount.alice, "s/image"))
        assert result is Result.MADE
        assert (found.record.state, found.record.damaged) == (State.COMPLETE, 0)


async def test_an_image_that_is_being_written_is_not_judged(store: Path) -> None:
    async with damaged(store) as (mount, image):
        handles = []

        async def begin() -> None:
            handles.append(await mount.alice.open("s/image", os.O_WRONLY))
            await mount.fs.content.write(handles[0], 0, b"X")

        result, found = await during(2, mount, image, begin)
        assert (result, found.record.state) == (Result.NOT_COMPLETE, State.WRITING)
        await mount.alice.close(handles[0])
        assert await mount.alice.state("s/image") is State.COMPLETE


async def test_what_cannot_be_read_is_not_marked(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with damaged(store) as (mount, image):

        def fails(*_: object) -> int:
            raise OSError(errno.EIO, "a bad sector")

        monkeypatch.setattr(os, "preadv", fails)
        with pytest.raises(OSError, match="bad sector"):
            checker(mount).check(image, NOW)
        monkeypatch.undo()
        assert await mount.alice.state("s/image") is State.COMPLETE


async def test_a_damaged_image_that_is_removed_goes_to_the_trash(store: Path) -> None:
    """Most of it is what it was: it may be all that somebody has."""
    async with damaged(store) as (mount, image):
        checker(mount).check(image, NOW)
        await mount.alice.unlink("s/image")
        (item,) = (item for item in mount.core.store.trash.items() if isinstance(item, Item))
        assert (item.note.path, item.found.record.damaged) == (b"image", NOW)


async def test_a_damaged_checkpoint_counts_no_more_so_that_an_older_one_is_kept(store: Path) -> None:
    """Two are kept of each batch set. The one that was outlived goes neither by itself nor by its owner's hand."""
    in_a_year = NOW + (10 << 60)
    async with digesting(store) as mount:
        await mount.root.mkdir("7.server.CK")
        await mount.root.setattr("7.server.CK", Changes(uid=ALICE.uid, gid=ALICE.gid))
        for name in ("one", "two", "three"):
            await mount.alice.save(f"7.server.CK/{name}", CONTENT + name.encode())
        await digest(mount.alice, "7.server.CK/three")
        assert await mount.alice.state("7.server.CK/one") is State.SUPERSEDED
        assert await attribute(mount.alice, "7.server.CK/one", "protected") == "no"
    flip(store, "users/2101/7.server.CK/three")
    async with mounted(store) as mount:
        guard = mount.fs.sets.guard
        checker(mount).check(spot_of(mount, b"7.server.CK", b"three"), NOW)
        for name in ("one", "two"):
            with pytest.raises(Denied):
                await mount.alice.unlink(f"7.server.CK/{name}")
        assert Superseded(mount.core, guard).expire(SetName(b"7.server.CK"), in_a_year) == 0
        for _ in Chores(mount.core, guard).supersede():
            pass
        assert await mount.alice.state("7.server.CK/one") is State.COMPLETE
        assert await attribute(mount.alice, "7.server.CK/three", "protected") == "no"
        await mount.alice.save("7.server.CK/four", CONTENT)  # of the whole ones, the newest two
        assert await mount.alice.state("7.server.CK/one") is State.SUPERSEDED
        await mount.alice.unlink("7.server.CK/three")


# Images of unknown state


async def test_what_somebody_is_writing_is_not_accepted(store: Path) -> None:
    """It would be complete under a digest of what it was in the middle, and stay so if its writer is killed."""
    async with mounted(store) as mount:
        await mount.alice.mkdir("s")
        await mount.alice.save("s/image", CONTENT)
        door, image = mount.core.store.door, spot_of(mount, b"s", b"image")
        ino = door.examine(image).record.ino
        door.amend(image, ino, lambda found: found.record.with_(state=State.UNKNOWN))
        handle = await mount.alice.open("s/image", os.O_WRONLY)
        await mount.fs.content.write(handle, 0, b"X")
        found = door.examine(image)
        assert rereading.accept(door, image, found, NOW, lambda _: False, nothing) is None
        assert door.examine(image).record == found.record
        await mount.fs.content.write(handle, 1, b"Y")
        await mount.alice.close(handle)
        accepted = rereading.accept(door, image, door.examine(image), NOW, lambda _: False, nothing)
        assert str(accepted) == of(b"XY" + CONTENT[2:])
        assert await mount.alice.state("s/image") is State.COMPLETE


async def test_what_a_mount_left_that_is_gone_may_be_accepted(store: Path) -> None:
    async with mounted(store) as mount:
        await mount.alice.mkdir("s")
        await mount.alice.save("s/image", CONTENT)
        door, image = mount.core.store.door, spot_of(mount, b"s", b"image")
        ino = door.examine(image).record.ino
        unknown = lambda found: found.record.with_(state=State.UNKNOWN)  # noqa: E731 - both steps change it alike
        found = writing.begin(door, image, ino, MountId(b"0" * 16), unknown, lambda _: True)
        accepted = rereading.accept(door, image, found, NOW, lambda _: True, nothing)
        assert str(accepted) == of(CONTENT)


# Who begins to write in the moment in which something is said of the image


@contextlib.contextmanager
def another_mount_begins(
    monkeypatch: pytest.MonkeyPatch, mount: Mount, image: Spot, state: bytes
) -> Iterator[None]:
    """Right before a record of *state* is written."""
    door, put, begun = mount.core.store.door, attributes.put, False

    def begins_first(where: attributes.Where, name: bytes, value: bytes) -> None:
        nonlocal begun
        if name == record.ATTRIBUTE and b";s=%s" % state in value and not begun:
            begun = True

            def change(found: Found) -> Record:
                return lifecycle.after(found.record, Event.WRITTEN)

            ino = door.examine(image).record.ino
            writing.begin(door, image, ino, MountId(b"0" * 16), change, lambda _: False)
        put(where, name, value)

    with monkeypatch.context() as patched:
        patched.setattr(attributes, "put", begins_first)
        yield
    assert begun


async def test_what_begins_to_be_written_is_not_said_to_be_superseded(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would count as complete while it is torn, and keep the digest of what it was."""
    async with mounted(store) as mount:
        await mount.root.mkdir("7.server.CK")
        for name in ("one", "two"):
            await mount.root.save(f"7.server.CK/{name}", CONTENT)
        image = spot_of(mount, b"7.server.CK", b"one")
        with another_mount_begins(monkeypatch, mount, image, b"s"):
            await mount.root.save("7.server.CK/three", CONTENT)
        assert mount.core.store.door.examine(image).record.state is State.WRITING


async def test_what_begins_to_be_written_is_not_marked(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with damaged(store) as (mount, image):
        with another_mount_begins(monkeypatch, mount, image, b"p"):
            result, found = checker(mount).check(image, NOW)
        assert (result, found.record.state) == (Result.NOT_COMPLETE, State.WRITING)
        assert found.record.damaged == 0


async def test_what_begins_to_be_written_is_pinned_and_not_complete(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(store) as mount:
        await mount.root.mkdir("7.server.CK")
        await mount.root.save("7.server.CK/one", CONTENT)
        image = spot_of(mount, b"7.server.CK", b"one")
        with another_mount_begins(monkeypatch, mount, image, b"c"):
            async with mount.root.at("7.server.CK") as ino:
                await mount.fs.extended.set(ino, b"user.ckfs.keep", b"pinned/one", mount.root.caller)
        said = mount.core.store.door.examine(image).record
        assert (said.state, said.keep) == (State.WRITING, Keep.PINNED)


# What would take for ever


async def test_a_file_of_holes_keeps_no_other_from_its_digest(store: Path) -> None:
    async with digesting(store) as mount:
        await mount.alice.mkdir("s")
        handle = await mount.alice.create("s/holes")
        await mount.fs.content.write(handle, 8 << 40, b"the end")
        await mount.alice.close(handle)
        await mount.alice.save("s/image", CONTENT)
        assert await digest(mount.alice, "s/image") == of(CONTENT)
        assert await attribute(mount.alice, "s/holes") is None
        holes = spot_of(mount, b"s", b"holes")
        assert checker(mount).check(holes, NOW)[0] is Result.NO_DIGEST


# A whole store


async def test_every_image_of_a_store_is_walked_through(store: Path) -> None:
    async with mounted(store) as mount:
        alice = mount.alice
        await alice.mkdir("s")
        await alice.mkdir("s/deep")
        await alice.mkdir("s/deep/er")
        await alice.symlink("s/link", b"image")
        await alice.mkdir("s/empty")
        for path in ("s/image", "s/deep/image", "s/deep/er/image", "single", "s/gone", "s/deep/gone"):
            await alice.save(path, CONTENT)
        await alice.unlink("s/gone")
        await alice.unlink("s/deep/gone")

        def unreadable(*_: object) -> None:
            raise AssertionError

        walked = [
            (b"/".join(filter(None, (where.set_name, where.path))), bool(where.item), where.owner)
            for where in everywhere.images(mount.core.store, unreadable)
        ]
        owner = Owner(ALICE.uid, ALICE.gid)
        assert sorted(walked, key=lambda one: one[:2]) == [
            (b"s/deep/er/image", False, owner),
            (b"s/deep/gone", True, owner),
            (b"s/deep/image", False, owner),
            (b"s/gone", True, owner),
            (b"s/image", False, owner),
            (b"single", False, owner),
        ]
        assert await mount.alice.state("s/image") is State.COMPLETE
        assert Inode(0) not in {found.record.ino for found in (await alice.list("s")).values()}
