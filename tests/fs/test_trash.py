"""The trash of a store in a real directory: what goes in comes out as it was, whoever gets in the way or dies."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import trio

from ckfs.errors import Exists, Invalid, NotFound, OtherOwner, ReadOnly, Stale
from ckfs.fs.metadata import Changes
from ckfs.model import Owner, Record, State
from ckfs.names import Gid, Inode, SetName, Uid
from ckfs.store import removed, syscalls
from ckfs.store.entries import SetEntry
from ckfs.store.layout import Store, initialise, open_store
from ckfs.store.record import new_inode
from ckfs.store.removed import Damaged, Item, Note
from ckfs.store.setnames import SetNames
from ckfs.store.spots import Found, Spot
from tests.fs.cores import copied, keeper_of, mounted
from tests.fs.failing import Failing, Killed
from tests.support.nfs import on_server

pytestmark = pytest.mark.root

SET = SetName(b"dump")
NEW = SetName(b"new")
ALICE = Owner(Uid(2101), Gid(2101))
BOB = Owner(Uid(2102), Gid(2102))
CONTENT = b"x" * 100_000
NOW = 1_700_000_000_000_000_000


def purge_older(store: Store, before_ns: int) -> int:
    """As housekeeping does, one after the other. Returns how many bytes that freed."""
    return sum(store.trash.purge_if_able(entry) for entry in store.trash.older(before_ns))


@pytest.fixture
def path(place: Path) -> Path:
    """A store with a set of Alice's: an image, and a directory with two."""
    trio.run(_fill, place)
    return place


async def _fill(path: Path) -> None:
    async with mounted(path) as mount:
        await mount.alice.mkdir("dump")
        await mount.alice.save("dump/image", CONTENT)
        await mount.alice.mkdir("dump/tree")
        await mount.alice.save("dump/tree/one", b"one")
        await mount.alice.save("dump/tree/two", b"two")


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with opened(path) as store:
        yield store


@contextlib.contextmanager
def opened(path: Path, *, read_only: bool = False) -> Iterator[Store]:
    with contextlib.closing(open_store(str(path), keeper_of(path), read_only=read_only)) as store:
        yield store


def spot_of(store: Store, inner: bytes, name: SetName = SET) -> Spot:
    entry = store.names.read(name)
    return Spot(entry.stored, (*entry.spot.components, *filter(None, inner.split(b"/"))))


def note_of(store: Store, inner: bytes, name: SetName = SET, *, when_ns: int = NOW) -> Note:
    ino = store.door.examine(spot_of(store, inner, name)).record.ino
    owner = store.names.read(name).owner
    return Note(Uid(0), when_ns, b"tqn1", b"/usr/bin/rm", name, inner, owner, ino)


def put(store: Store, inner: bytes, name: SetName = SET, *, when_ns: int = NOW) -> Item:
    """What a mount does that removes *inner* (empty: the set)."""
    entry = store.names.read(name)
    item = store.trash.put(spot_of(store, inner, name), note_of(store, inner, name, when_ns=when_ns))
    if not inner:
        store.names.clear(name, entry)
    return item


def listed(store: Store) -> list[Item]:
    items = list(store.trash.items())
    assert all(isinstance(item, Item) for item in items), items
    return [item for item in items if isinstance(item, Item)]


def tokens(items: list[Item]) -> set[str]:
    return {item.token for item in items}


async def tree(path: Path) -> dict[str, bytes]:
    """What Alice finds on a mount."""
    async with mounted(path) as mount:
        return {name: seen.content for name, seen in (await mount.alice.walk()).items()}


WHOLE = {
    "dump": b"",
    "dump/image": CONTENT,
    "dump/tree": b"",
    "dump/tree/one": b"one",
    "dump/tree/two": b"two",
}


def without(*gone: str) -> dict[str, bytes]:
    return {name: content for name, content in WHOLE.items() if not name.startswith(gone)}


# In and out


@pytest.mark.trio
async def test_an_image_lies_in_the_trash_with_all_that_is_known_of_its_removal(
    path: Path, store: Store
) -> None:
    note = note_of(store, b"image")
    before = store.door.examine(spot_of(store, b"image"))
    item = store.trash.put(spot_of(store, b"image"), note)
    assert await tree(path) == without("dump/image")
    assert listed(store) == [item]
    assert item.note == note
    assert item.found.record == before.record
    assert (item.found.stat.st_mtime_ns, item.found.stat.st_size) == (before.stat.st_mtime_ns, len(CONTENT))
    where = on_server(path) / "trash/2101" / item.token
    assert where.read_bytes() == CONTENT
    assert (where.stat().st_uid, where.parent.stat().st_mode & 0o7777) == (2101, 0o700)
    assert (path / "trash").stat().st_mode & 0o7777 == 0o1777


@pytest.mark.parametrize("inner", [b"image", b"tree", b"tree/one", b""])
@pytest.mark.usefixtures("flags")
@pytest.mark.trio
async def test_what_was_removed_comes_back_as_it_was(path: Path, store: Store, inner: bytes) -> None:
    before = store.door.examine(spot_of(store, inner))
    item = put(store, inner)
    assert store.trash.restore(item) == SET
    assert listed(store) == []
    assert await tree(path) == WHOLE
    after = store.door.examine(spot_of(store, inner))
    assert (after.record, after.stat.st_mtime_ns) == (before.record, before.stat.st_mtime_ns)
    assert b"user.ckfs.trash" not in store.door.list_attributes(spot_of(store, inner), after.record.ino)
    entry = store.names.read(SET)
    assert (entry.owner, entry.stored) == (ALICE, ALICE)


@pytest.mark.trio
async def test_a_set_that_is_a_file_comes_back(path: Path, store: Store) -> None:
    async with mounted(path) as mount:
        await mount.alice.save("file", b"content")
    item = put(store, b"", SetName(b"file"))
    assert await tree(path) == WHOLE
    store.trash.restore(item)
    assert await tree(path) == {**WHOLE, "file": b"content"}


@pytest.mark.trio
async def test_names_of_any_bytes(path: Path, store: Store) -> None:
    name, image = SetName(b"\xff;p=%\n"), b"\xfe=;u=0\n%41"
    async with mounted(path) as mount:
        core = mount.core
        found = await mount.fs.naming.mkdir(Inode(1), name, 0o755, mount.alice.caller)
        handle, made = await mount.fs.naming.create(
            found.record.ino, image, 0o600, os.O_RDWR, mount.alice.caller
        )
        await mount.fs.content.release(handle)
        mount.fs.forget(made.record.ino, 1)
        mount.fs.forget(found.record.ino, 1)
        assert len(core.inodes) == 1
    item = put(store, image, name)
    whole = put(store, b"", name)
    assert {(entry.note.set_name, entry.note.path) for entry in listed(store)} == {(name, image), (name, b"")}
    store.trash.restore(whole)
    store.trash.restore(item)
    assert store.door.examine(spot_of(store, image, name)).record == item.found.record


@pytest.mark.trio
async def test_unclaimed_sets_and_states_come_back_too(path: Path, store: Store) -> None:
    async with mounted(path) as mount:
        await mount.root.mkdir("1.s.CK")
        handle = await mount.root.create("1.s.CK/ck.tmp")
        await mount.root.close(handle)
    name = SetName(b"1.s.CK")
    item = put(store, b"", name)
    assert item.note.owner is None
    store.trash.restore(item)
    assert store.names.read(name).owner is None
    assert store.door.examine(spot_of(store, b"ck.tmp", name)).record.state is not State.PARTIAL


# The set has changed since


@pytest.mark.trio
async def test_an_image_of_a_set_that_is_gone_comes_back_in_a_set_of_its_owner(
    path: Path, store: Store
) -> None:
    image, inner = put(store, b"image"), put(store, b"tree/one")
    whole = put(store, b"")
    store.trash.purge(whole)
    assert store.trash.restore(image) == SET
    entry, found = store.names.examine(SET)
    assert (entry.owner, found.record.uid, found.record.mode) == (ALICE, 2101, 0o40700)
    store.trash.restore(inner)
    assert await tree(path) == {
        key: WHOLE[key] for key in ("dump", "dump/image", "dump/tree", "dump/tree/one")
    }


@pytest.mark.usefixtures("flags")
@pytest.mark.trio
async def test_a_dump_comes_back_together_in_a_set_of_its_own(path: Path, store: Store) -> None:
    items = [put(store, b"tree/one"), put(store, b"image"), put(store, b"tree")]
    assert store.trash.restore_together(items, NEW) == []
    assert await tree(path) == {"dump": b"", **{"new" + key[4:]: value for key, value in WHOLE.items()}}
    assert listed(store) == []


@pytest.mark.trio
async def test_a_set_and_what_was_removed_from_it_before_come_back_together(path: Path, store: Store) -> None:
    items = [put(store, b"tree/one"), put(store, b"image"), put(store, b"")]
    assert store.trash.restore_together(items) == []
    assert await tree(path) == WHOLE


@pytest.mark.usefixtures("flags")
@pytest.mark.parametrize("inner", [b"image", b"tree", b""])
@pytest.mark.trio
async def test_what_has_taken_the_name_stays(path: Path, store: Store, inner: bytes) -> None:
    item = put(store, inner)
    async with mounted(path) as mount:
        where = "/".join(filter(None, ("dump", inner.decode())))
        await (mount.alice.save(where, b"newer") if inner == b"image" else mount.alice.mkdir(where))
    after = await tree(path)
    with pytest.raises(Exists, match="again: restore it to another set with --to NAME"):
        store.trash.restore(item)
    assert await tree(path) == after
    assert listed(store) == [item]
    assert store.trash.restore(item, NEW) == NEW
    assert (await tree(path)).items() > after.items()


@pytest.mark.trio
async def test_what_is_restored_together_goes_on_without_what_cannot(path: Path, store: Store) -> None:
    items = [put(store, b"image"), put(store, b"tree")]
    async with mounted(path) as mount:
        await mount.alice.save("dump/image", b"newer")
    [(left, error)] = store.trash.restore_together(items)
    assert left == items[0]
    assert "again" in str(error)
    assert await tree(path) == {**WHOLE, "dump/image": b"newer"}


@pytest.mark.trio
async def test_another_owners_set_gets_nothing(path: Path, store: Store) -> None:
    item = put(store, b"image")
    async with mounted(path) as mount:
        await mount.root.setattr("dump", Changes(uid=Uid(2102)))
    with pytest.raises(OtherOwner, match="somebody else"):
        store.trash.restore(item)
    assert listed(store) == [item]
    store.trash.restore(item, NEW)
    assert store.names.read(NEW).owner == ALICE


@pytest.mark.trio
async def test_items_of_several_sets_or_owners_need_a_name_and_one_owner(path: Path, store: Store) -> None:
    async with mounted(path) as mount:
        await mount.bob.mkdir("bobs")
        await mount.bob.save("bobs/image", b"b")
    items = [put(store, b"image"), put(store, b"image", SetName(b"bobs"))]
    with pytest.raises(Invalid, match="--to NAME"):
        store.trash.restore_together(items)
    with pytest.raises(OtherOwner, match="each owner"):
        store.trash.restore_together(items, NEW)
    assert len(listed(store)) == 2
    assert [item.spot.identity for item in store.trash.items(BOB.uid)] == [BOB]


@pytest.mark.trio
async def test_an_image_whose_directory_is_a_file_by_now_stays(path: Path, store: Store) -> None:
    item = put(store, b"tree/one")
    put(store, b"tree")
    async with mounted(path) as mount:
        await mount.alice.save("dump/tree", b"file")
    with pytest.raises(Exists, match="no directory any more"):
        store.trash.restore(item)


@pytest.mark.trio
async def test_a_set_whose_name_is_taken_in_that_moment_goes_back_to_the_trash(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = put(store, b"")
    real = SetNames.enter

    def enter(names: SetNames, name: SetName, entry: SetEntry) -> None:
        os.symlink("1:77:2102.2102:2102.2102:dump", on_server(path) / "names/dump")
        real(names, name, entry)

    monkeypatch.setattr(SetNames, "enter", enter)
    with pytest.raises(Exists, match="--to NAME"):
        store.trash.restore(item)
    monkeypatch.undo()
    assert tokens(listed(store)) == {item.token}
    assert not (on_server(path) / "users/2101/dump").exists()


def test_of_two_who_restore_one_item_one_does(store: Store) -> None:
    for inner in (b"image", b""):
        item = put(store, inner)
        with ThreadPoolExecutor(2) as threads:
            results = [threads.submit(store.trash.restore, item, name) for name in (NEW, SetName(b"other"))]
        failed = [error for error in (result.exception() for result in results) if error is not None]
        assert [type(error) for error in failed] == [NotFound]
        assert listed(store) == []
        for name in (NEW, SetName(b"other")):
            with contextlib.suppress(FileNotFoundError):
                store.trash.purge(put(store, b"", name))


# Links


@pytest.mark.trio
async def test_a_link_for_a_rename_counts_once_the_rename_has_happened(path: Path, store: Store) -> None:
    item = store.trash.link(spot_of(store, b"image"), note_of(store, b"image"))
    assert listed(store) == []  # so it would stay if the mount died here
    store.door.rename(spot_of(store, b"tree/one"), spot_of(store, b"image"))
    assert [entry.token for entry in listed(store)] == [item.token]
    assert await tree(path) == {**without("dump/tree/one"), "dump/image": b"one"}


def test_a_link_whose_rename_failed_is_taken_back(store: Store, path: Path) -> None:
    item = store.trash.link(spot_of(store, b"image"), note_of(store, b"image"))
    store.trash.drop(item)
    store.trash.drop(item)
    assert not list((on_server(path) / "trash/2101").iterdir())
    assert store.door.examine(spot_of(store, b"image")).stat.st_nlink == 1


def test_a_link_that_is_the_last_name_is_not_taken_back(store: Store) -> None:
    item = store.trash.link(spot_of(store, b"image"), note_of(store, b"image"))
    store.door.unlink(spot_of(store, b"image"))
    store.trash.drop(item)
    assert [entry.token for entry in listed(store)] == [item.token]


@pytest.mark.trio
async def test_purging_a_link_leaves_the_file(path: Path, store: Store) -> None:
    store.trash.link(spot_of(store, b"image"), note_of(store, b"image"))
    assert purge_older(store, NOW + 1) == 0
    assert not list((on_server(path) / "trash/2101").iterdir())
    assert await tree(path) == WHOLE


@pytest.mark.parametrize("again", ["put", "link"])
def test_a_file_is_in_the_trash_once(store: Store, path: Path, again: str) -> None:
    store.trash.link(spot_of(store, b"image"), note_of(store, b"image"))  # its mount died then
    spot, note = spot_of(store, b"image"), note_of(store, b"image", when_ns=NOW + 1)
    if again == "put":
        item = store.trash.put(spot, note)
    else:
        item = store.trash.link(spot, note)
        store.door.unlink(spot)
    assert [(entry.token, entry.note) for entry in listed(store)] == [(item.token, note)]
    assert len(list((on_server(path) / "trash/2101").iterdir())) == 1


# For good


async def _fill_more(path: Path) -> None:
    async with mounted(path) as mount:
        for number in range(4):
            await mount.alice.save(f"dump/image.{number}", CONTENT)
        await mount.bob.mkdir("bobs")
        await mount.bob.save("bobs/image", CONTENT)


@pytest.fixture
def five(path: Path, store: Store) -> list[Item]:
    """Four items of Alice's and, the oldest of all, one of Bob's."""
    trio.run(_fill_more, path)
    bobs = put(store, b"image", SetName(b"bobs"), when_ns=NOW - 1)
    return [bobs, *(put(store, b"image.%d" % number, when_ns=NOW + number) for number in range(4))]


def test_room_is_made_from_the_owners_oldest(
    store: Store, five: list[Item], caplog: pytest.LogCaptureFixture
) -> None:
    size = store.trash.bytes_of(five[1])
    assert size >= len(CONTENT)
    with caplog.at_level("INFO"):
        assert store.trash.make_room(ALICE, size + 1) == 2 * size
    assert tokens(listed(store)) == tokens([five[0], *five[3:]])
    assert [record.message for record in caplog.records if "dump/image.0" in record.message]
    assert len(caplog.records) == 2


def test_room_is_made_from_the_oldest_of_all(store: Store, five: list[Item]) -> None:
    assert store.trash.make_room(None, 1) == store.trash.bytes_of(five[1])
    assert tokens(listed(store)) == tokens(five[1:])
    assert store.trash.make_room(None, 1 << 40) >= 4 * len(CONTENT)
    assert listed(store) == []
    assert store.trash.make_room(None, 1) == 0


def test_no_room_is_made_where_none_is_wanted(store: Store, five: list[Item]) -> None:
    assert store.trash.make_room(None, 0) == 0
    assert tokens(listed(store)) == tokens(five)


@pytest.mark.usefixtures("five")
def test_what_is_older_goes(store: Store) -> None:
    purge_older(store, NOW + 2)
    assert {item.when_ns for item in listed(store)} == {NOW + 2, NOW + 3}


def test_a_directory_goes_with_all_below(path: Path, store: Store) -> None:
    item = put(store, b"")
    assert store.trash.purge(item) >= len(CONTENT)
    assert not list((on_server(path) / "trash/2101").iterdir())
    with pytest.raises(FileNotFoundError):
        store.trash.purge(item)


def test_half_a_directory_does_not_come_back(path: Path, store: Store, failing: Failing) -> None:
    item = put(store, b"")
    for at in range(1, 200):
        with contextlib.suppress(Killed), failing.armed(at, Killed):
            store.trash.purge(item)
        left = list(store.trash.items())
        if isinstance(left[0], Damaged):
            break
        assert [one.spot for one in left] == [item.spot]
    assert (left[0].when_ns, left[0].token) == (0, item.token + ".purged")
    purge_older(store, 1)  # before anything else, and before its time
    assert not list((on_server(path) / "trash/2101").iterdir())


# What is not as it should be


def test_what_cannot_be_told_is_reported(path: Path, store: Store) -> None:
    item = put(store, b"image")
    directory = on_server(path) / "trash/2101"
    for name in ("plain", "damaged", "newer"):
        (directory / name).write_bytes(b"content")
        os.chown(directory / name, 2101, 2101)
    (directory / "roots").write_bytes(b"content")
    for name, note in (("damaged", b"1;u=x"), ("newer", b"2;u=0")):
        os.setxattr(directory / name, b"user.ckfs.trash", note)
    (on_server(path) / "trash/nobody").mkdir()
    (on_server(path) / "trash/2102").mkdir()  # root's
    entries = list(store.trash.items())
    reasons = {entry.token: entry.reason for entry in entries if isinstance(entry, Damaged)}
    unknown = "nothing says what it was"
    assert reasons == {"plain": unknown, "damaged": unknown, "newer": unknown, "roots": "belongs to uid 0"}
    assert len(entries) == 5
    purge_older(store, NOW + 1)  # the images's time is over, not that of what has just come
    assert item.token not in {entry.token for entry in store.trash.items()}
    assert len(list(directory.iterdir())) == 4


@pytest.mark.trio
async def test_a_store_without_a_trash_gets_one(path: Path, store: Store) -> None:
    (on_server(path) / "trash").rmdir()
    assert listed(store) == []
    (on_server(path) / "trash").mkdir(mode=0o700)  # by one that died
    os.chown(on_server(path) / "trash", store.service.uid, store.service.gid)
    item = put(store, b"image")
    assert (path / "trash").stat().st_mode & 0o7777 == 0o1777
    store.trash.restore(item)
    assert await tree(path) == WHOLE


def test_another_file_is_not_moved(store: Store) -> None:
    with pytest.raises(Stale):
        store.trash.put(spot_of(store, b"tree/one"), note_of(store, b"image"))
    with pytest.raises(Stale):
        store.trash.link(spot_of(store, b"tree/one"), note_of(store, b"image"))
    note = note_of(store, b"image")
    store.door.unlink(spot_of(store, b"image"))
    with pytest.raises(FileNotFoundError):
        store.trash.put(Spot(ALICE, (b"users", b"2101", b"dump", b"image")), note)
    assert listed(store) == []


@pytest.mark.trio
async def test_a_file_that_takes_the_name_in_that_moment_is_moved_back(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = syscalls.rename
    note, spot = note_of(store, b"tree/one"), spot_of(store, b"tree/one")

    def rename(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
        monkeypatch.undo()
        store.door.rename(spot_of(store, b"tree/two"), spot)
        real(old_fd, old, new_fd, new, flags)

    monkeypatch.setattr(syscalls, "rename", rename)
    with pytest.raises(Stale):
        store.trash.put(spot, note)
    assert await tree(path) == {**without("dump/tree/two", "dump/tree/one"), "dump/tree/one": b"two"}


def test_nothing_changes_through_a_read_only_mount(path: Path, store: Store) -> None:
    item = put(store, b"image")
    with opened(path, read_only=True) as closed:
        assert tokens(listed(closed)) == {item.token}
        for change in (
            lambda: put(closed, b"tree"),
            lambda: closed.trash.purge(item),
            lambda: closed.trash.restore(item),
        ):
            with pytest.raises(ReadOnly):
                change()
    assert tokens(listed(store)) == {item.token}


# A store that root cannot write to


def test_all_is_made_as_whose_it_is(tmp_path: Path) -> None:
    """The trash as the service account, what is in it as its owner; never as root, who may be squashed."""
    service = Owner(Uid(2999), Gid(2999))
    path = tmp_path / "kept"
    assert initialise(str(path), service)
    (on_server(path) / "trash").rmdir()
    os.chmod(path, 0o755)
    tmp_path.chmod(0o711)
    with contextlib.closing(open_store(str(path), service)) as store:
        for name, owner, stored in ((SET, ALICE, ALICE), (SetName(b"1.s.CK"), None, service)):
            record = Record(new_inode(), stored.uid, stored.gid, 0o40700)
            store.names.take(name, owner, stored, record.ino, partial(_make, store, record))
            item = put(store, b"", name)
            for made, uid in (("trash", 2999), (f"trash/{stored.uid}", stored.uid)):
                assert (path / made).stat().st_uid == uid
            assert store.trash.restore(item) == name
            assert (store.names.read(name).owner, store.names.read(name).stored) == (owner, stored)
            assert os.lstat(path / "names" / name.decode()).st_uid == 2999


def _make(store: Store, record: Record, spot: Spot) -> Found:
    return store.door.make_directory(spot, lambda _: record)


# A full store


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_where_no_note_fits_what_is_there_gives_way(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    old = put(store, b"tree")
    real, left = store.door.rename_noted, [OSError(number, "full")]

    def rename_noted(*args: object) -> Found:
        if left:
            raise left.pop()
        return real(*args)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(store.door, "rename_noted", rename_noted)
    item = put(store, b"image")
    assert tokens(listed(store)) == {item.token} != {old.token}


def test_where_nothing_gives_way_the_file_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename_noted(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(store.door, "rename_noted", rename_noted)
    with pytest.raises(OSError, match="full"):
        put(store, b"image")
    assert store.door.examine(spot_of(store, b"image")).stat.st_size == len(CONTENT)


@pytest.mark.trio
@pytest.mark.parametrize("call", ["make_directory", "set_attribute"])
async def test_a_full_store_keeps_what_cannot_be_restored(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    item = put(store, b"image")
    store.trash.purge(put(store, b""))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(store.door, call, full)
    with pytest.raises(OSError, match="full"):
        store.trash.restore(item)
    monkeypatch.undo()
    assert tokens(listed(store)) == {item.token}
    store.trash.restore(item)
    assert await tree(path) == {"dump": b"", "dump/image": CONTENT}


# Notes


def test_a_note_is_read_as_it_was_written() -> None:
    for owner in (ALICE, None):
        note = Note(Uid(5), NOW, b"n;=%", b"", SetName(b"\xff\n"), b"a/b;c=%41", owner, Inode(7))
        assert removed.decode(removed.encode(note)) == note


def test_a_note_that_is_too_long_loses_what_matters_least() -> None:
    note = Note(Uid(5), NOW, b"n", b"/x" * 2000, SetName(b"s"), b"d/" * 50 + b"f", None, Inode(7))
    assert removed.fitted(note).path == note.path
    assert removed.fitted(note).program == b""
    long = Note(Uid(5), NOW, b"n", b"", SetName(b"\xff" * 255), b"d/" * 2000 + b"\xff" * 255, None, Inode(7))
    assert removed.fitted(long).path == b"\xff" * 255
    assert len(removed.encode(removed.fitted(long))) <= 2048


@pytest.mark.parametrize(
    "names", [b"s=..;p=x", b"s=a/b;p=x", b"s=;p=x", b"s=a;p=../x", b"s=a;p=/x", b"s=a;p=x//y", b"s=a%00;p=x"]
)
def test_a_note_leads_nowhere_else(names: bytes) -> None:
    assert removed.decode(b"1;u=0;t=1;o=-;i=1;n=;x=;s=a;p=x") is not None
    assert removed.decode(b"1;u=0;t=1;o=-;i=1;n=;x=;" + names) is None


# Dying half-way


@pytest.mark.parametrize(
    ("act", "inner"),
    [
        ("link", b"image"),
        *((act, inner) for act in ("put", "restore", "restore anew") for inner in (b"image", b"tree", b"")),
    ],
)
def test_whoever_dies_loses_nothing(path: Path, failing: Failing, act: str, inner: bytes) -> None:
    """Killed at each of its calls: all is in the set, or all in the trash, or (a set) all at a place without a name."""
    if on_server(path) != path and inner == b"tree":
        pytest.skip("there an image and a whole set show the same; each call takes long")
    if act.startswith("restore"):
        with opened(path) as store:
            put(store, inner)
    for at in range(1, 300):
        copy = path.parent / "copy"
        copied(on_server(path), on_server(path).parent / "copy")
        with opened(copy) as store:
            done = _killed_at(store, failing, act, inner, at)
        _check_nothing_lost(copy, inner, failing.log)
        shutil.rmtree(on_server(path).parent / "copy")
        if done:
            break
    else:
        pytest.fail("never came to its end")
    assert at > 10


def _killed_at(store: Store, failing: Failing, act: str, inner: bytes, at: int) -> bool:
    items = listed(store)
    spot, note = (None, None) if items else (spot_of(store, inner), note_of(store, inner))
    with contextlib.suppress(Killed), failing.armed(at, Killed):
        if spot is None or note is None:
            store.trash.restore(items[0], NEW if act == "restore anew" else None)
        else:
            (store.trash.put if act == "put" else store.trash.link)(spot, note)
        return True
    return False


def _check_nothing_lost(path: Path, inner: bytes, calls: list[str]) -> None:
    """What was to move is whole, in the trash or out of it, and what is in the trash can be restored."""
    parts = {b"image": 1, b"tree": 2, b"": 3}
    files = {}
    for top in ("users", "trash", "staging"):
        for directory, _, names in os.walk(on_server(path) / top):
            files.update({Path(directory, name).stat().st_ino: Path(directory, name) for name in names})
    assert sorted(file.read_bytes() for file in files.values()) == sorted([CONTENT, b"one", b"two"]), calls
    in_trash = [file for file in files.values() if file.is_relative_to(on_server(path) / "trash")]
    assert len(in_trash) in (0, parts[inner]), calls
    with opened(path) as store:
        for item in store.trash.items():
            if store.trash.bytes_of(item):  # else a set that was just being put together
                assert isinstance(item, Item), calls
                store.trash.restore(item, SetName(b"after"))
        _restore_by_hand(store)
    found = trio.run(tree, path)
    assert sorted(filter(None, found.values())) == sorted([CONTENT, b"one", b"two"]), calls


def _restore_by_hand(store: Store) -> None:
    """A whole set that was on its way back may lie at its place and have no name: docs/store.md says what to do."""
    named = {store.names.read(name).place for name in store.names.all()}
    server = on_server(Path(store.path))
    users = server / "users/2101"
    for place in set(os.listdir(os.fsencode(users))) - named:
        note = removed.decode(os.getxattr(os.fsencode(users) + b"/" + place, b"user.ckfs.trash"))
        assert note is not None
        assert note.set_name in (SET, NEW)
        os.rename(os.fsencode(users) + b"/" + place, server / "trash/2101/by-hand")
        (item,) = (item for item in listed(store) if item.token == "by-hand")
        store.trash.restore(item)


@pytest.mark.parametrize("by_name", [True, False])
def test_what_is_emptied_is_kept_also_after_a_rename_that_died_before_it_took_place(
    path: Path, by_name: bool
) -> None:
    """Its link in the trash would be emptied with it."""

    async def empty() -> None:
        async with mounted(path) as mount:
            if by_name:
                await mount.alice.setattr("dump/image", Changes(size=0))
            else:
                await mount.alice.close(await mount.alice.open("dump/image", os.O_WRONLY | os.O_TRUNC))
            assert await mount.alice.load("dump/image") == b""
            mount.check_nothing_held()

    with contextlib.closing(open_store(str(path), keeper_of(path))) as store:
        store.trash.link(spot_of(store, b"image"), note_of(store, b"image"))
    trio.run(empty)
    with contextlib.closing(open_store(str(path), keeper_of(path))) as store:
        (item,) = store.trash.items()
        assert isinstance(item, Item)
        assert (on_server(path) / os.fsdecode(b"/".join(item.spot.components))).read_bytes() == CONTENT


def test_what_has_a_second_name_of_its_owner_s_is_emptied_under_both(path: Path) -> None:
    async def empty() -> None:
        async with mounted(path) as mount:
            await mount.alice.link("dump/image", "dump/second")
            await mount.alice.close(await mount.alice.open("dump/image", os.O_WRONLY | os.O_TRUNC))
            assert await mount.alice.load("dump/second") == b""
            mount.check_nothing_held()

    trio.run(empty)
    with contextlib.closing(open_store(str(path), keeper_of(path))) as store:
        assert list(store.trash.items()) == []
