"""The trash of a store in a real directory: what goes in comes out as it was, whoever gets in the way or dies."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from ckfs.errors import Exists, Invalid, OtherOwner, ReadOnly, Stale
from ckfs.fs.metadata import Changes
from ckfs.model import Owner, State
from ckfs.names import Gid, Inode, SetName, Uid
from ckfs.store import removed
from ckfs.store.door import Spot
from ckfs.store.layout import Store, open_store
from ckfs.store.removed import Damaged, Item, Note
from tests.fs.cores import mounted, new_store
from tests.fs.failing import Failing, Killed, install

pytestmark = pytest.mark.root

SET = SetName(b"dump")
NEW = SetName(b"new")
ALICE = Owner(Uid(2101), Gid(2101))
BOB = Owner(Uid(2102), Gid(2102))
CONTENT = b"x" * 100_000
NOW = 1_700_000_000_000_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with a set of Alice's: an image, and a directory with two."""
    path = new_store(tmp_path)
    trio.run(_fill, path)
    return path


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


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    return install(monkeypatch)


@pytest.fixture(params=[False, True], ids=["flags", "no flags"])
def flags(request: pytest.FixtureRequest, failing: Failing) -> bool:
    """With and without RENAME_NOREPLACE, which NFS does not know."""
    failing.lacks_noreplace = request.param
    return not request.param


@contextlib.contextmanager
def opened(path: Path, *, read_only: bool = False) -> Iterator[Store]:
    with contextlib.closing(open_store(str(path), read_only=read_only)) as store:
        yield store


def spot_of(store: Store, inner: bytes, name: SetName = SET) -> Spot:
    entry = store.names.read(name)
    return Spot(
        entry.stored, (*entry.spot.components, *filter(None, inner.split(b"/"))), entry.ino if b"/" in inner else None
    )


def note_of(store: Store, inner: bytes, name: SetName = SET, *, when_ns: int = NOW) -> Note:
    entry = store.names.read(name)
    spot = Spot(entry.stored, (*entry.spot.components, *filter(None, inner.split(b"/"))))
    return Note(
        Uid(0), when_ns, b"tqn1", b"/usr/bin/rm", name, inner, entry.owner, store.door.examine(spot).record.ino
    )


def put(store: Store, inner: bytes, name: SetName = SET, *, when_ns: int = NOW) -> Item:
    """What a mount does that removes *inner* (empty: the set)."""
    entry = store.names.read(name)
    spot = Spot(entry.stored, (*entry.spot.components, *filter(None, inner.split(b"/"))))
    item = store.trash.put(spot, note_of(store, inner, name, when_ns=when_ns))
    if not inner:
        store.names.clear(name, entry)
    return item


def listed(store: Store) -> list[Item]:
    items = list(store.trash.items())
    assert all(isinstance(item, Item) for item in items), items
    return [item for item in items if isinstance(item, Item)]


async def tree(path: Path) -> dict[str, bytes]:
    """What Alice finds on a mount."""
    async with mounted(path) as mount:
        return {name: seen.content for name, seen in (await mount.alice.walk()).items()}


WHOLE = {"dump": b"", "dump/image": CONTENT, "dump/tree": b"", "dump/tree/one": b"one", "dump/tree/two": b"two"}


def without(*gone: str) -> dict[str, bytes]:
    return {name: content for name, content in WHOLE.items() if not name.startswith(gone)}


# In and out


async def test_an_image_lies_in_the_trash_with_all_that_is_known_of_its_removal(path: Path, store: Store) -> None:
    note = note_of(store, b"image")
    before = store.door.examine(spot_of(store, b"image"))
    item = store.trash.put(spot_of(store, b"image"), note)
    assert await tree(path) == without("dump/image")
    assert listed(store) == [item]
    assert item.note == note
    assert item.found.record == before.record
    assert (item.found.stat.st_mtime_ns, item.found.stat.st_size) == (before.stat.st_mtime_ns, len(CONTENT))
    where = path / "trash/2101" / item.token
    assert where.read_bytes() == CONTENT
    assert (where.stat().st_uid, where.parent.stat().st_mode & 0o7777) == (2101, 0o700)
    assert (path / "trash").stat().st_mode & 0o7777 == 0o1777


@pytest.mark.parametrize("inner", [b"image", b"tree", b"tree/one", b""])
@pytest.mark.usefixtures("flags")
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
    assert (entry.owner, entry.stored, entry.place) == (ALICE, ALICE, SET) or not store.names.twins(SET)


async def test_a_set_that_is_a_file_comes_back(path: Path, store: Store) -> None:
    async with mounted(path) as mount:
        await mount.alice.save("file", b"content")
    item = put(store, b"", SetName(b"file"))
    assert await tree(path) == WHOLE
    store.trash.restore(item)
    assert await tree(path) == {**WHOLE, "file": b"content"}


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


async def test_an_image_of_a_set_that_is_gone_comes_back_in_a_set_of_its_owner(path: Path, store: Store) -> None:
    image, inner = put(store, b"image"), put(store, b"tree/one")
    whole = put(store, b"")
    store.trash.purge(whole)
    assert store.trash.restore(image) == SET
    entry, found = store.names.examine(SET)
    assert (entry.owner, found.record.uid, found.record.mode) == (ALICE, 2101, 0o40700)
    store.trash.restore(inner)
    assert await tree(path) == {key: WHOLE[key] for key in ("dump", "dump/image", "dump/tree", "dump/tree/one")}


@pytest.mark.usefixtures("flags")
async def test_a_dump_comes_back_together_in_a_set_of_its_own(path: Path, store: Store) -> None:
    items = [put(store, b"tree/one"), put(store, b"image"), put(store, b"tree")]
    assert store.trash.restore_together(items, NEW) == []
    assert await tree(path) == {"dump": b"", **{"new" + key[4:]: value for key, value in WHOLE.items()}}
    assert listed(store) == []


async def test_a_set_and_what_was_removed_from_it_before_come_back_together(path: Path, store: Store) -> None:
    items = [put(store, b"tree/one"), put(store, b"image"), put(store, b"")]
    assert store.trash.restore_together(items) == []
    assert await tree(path) == WHOLE


@pytest.mark.usefixtures("flags")
@pytest.mark.parametrize("inner", [b"image", b"tree", b""])
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


async def test_what_is_restored_together_goes_on_without_what_cannot(path: Path, store: Store) -> None:
    items = [put(store, b"image"), put(store, b"tree")]
    async with mounted(path) as mount:
        await mount.alice.save("dump/image", b"newer")
    [(left, error)] = store.trash.restore_together(items)
    assert left == items[0]
    assert "again" in str(error)
    assert await tree(path) == {**WHOLE, "dump/image": b"newer"}


async def test_another_owners_set_gets_nothing(path: Path, store: Store) -> None:
    item = put(store, b"image")
    async with mounted(path) as mount:
        await mount.root.setattr("dump", Changes(uid=2102))
    with pytest.raises(OtherOwner, match="somebody else"):
        store.trash.restore(item)
    assert listed(store) == [item]
    store.trash.restore(item, NEW)
    assert store.names.read(NEW).owner == ALICE


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


async def test_an_image_whose_directory_is_a_file_by_now_stays(path: Path, store: Store) -> None:
    item = put(store, b"tree/one")
    put(store, b"tree")
    async with mounted(path) as mount:
        await mount.alice.save("dump/tree", b"file")
    with pytest.raises(Exists, match="no directory any more"):
        store.trash.restore(item)


# Links


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
    assert not list((path / "trash/2101").iterdir())
    assert store.door.examine(spot_of(store, b"image")).stat.st_nlink == 1


def test_a_link_that_is_the_last_name_is_not_taken_back(store: Store) -> None:
    item = store.trash.link(spot_of(store, b"image"), note_of(store, b"image"))
    store.door.unlink(spot_of(store, b"image"))
    store.trash.drop(item)
    assert [entry.token for entry in listed(store)] == [item.token]


async def test_purging_a_link_leaves_the_file(path: Path, store: Store) -> None:
    store.trash.link(spot_of(store, b"image"), note_of(store, b"image"))
    assert store.trash.purge_older(NOW + 1) == 0
    assert not list((path / "trash/2101").iterdir())
    assert await tree(path) == WHOLE


@pytest.mark.parametrize("again", ["put", "link"])
def test_a_file_is_in_the_trash_once(store: Store, path: Path, again: str) -> None:
    store.trash.link(spot_of(store, b"image"), note_of(store, b"image"))  # its mount died then
    spot, note = spot_of(store, b"image"), note_of(store, b"image", when_ns=NOW + 1)
    if again == "put":
        assert listed(store) == [] or None
        item = store.trash.put(spot, note)
    else:
        item = store.trash.link(spot, note)
        store.door.unlink(spot)
    assert [(entry.token, entry.note) for entry in listed(store)] == [(item.token, note)]
    assert len(list((path / "trash/2101").iterdir())) == 1


# Dying half-way


@pytest.mark.parametrize(
    ("act", "inner"),
    [
        ("link", b"image"),
        *((act, inner) for act in ("put", "restore", "restore anew") for inner in (b"image", b"tree", b"")),
    ],
)
def test_whoever_dies_loses_nothing(
    path: Path, tmp_path: Path, failing: Failing, act: str, inner: bytes
) -> None:
    """Killed at each of its calls: all is in the set, or all in the trash, or (a set) all at a place without a name."""
    if act.startswith("restore"):
        with opened(path) as store:
            put(store, inner)
    for at in range(1, 300):
        copy = tmp_path / "copy"
        subprocess.run(["cp", "-a", path, copy], check=True)
        with opened(copy) as store:
            done = _killed_at(store, failing, act, inner, at)
        _check_nothing_lost(copy, inner, failing.log)
        shutil.rmtree(copy)
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
    """Each file is there once, and what was to move is whole: in a set, in the trash, or at a place of its own."""
    parts = {b"image": 1, b"tree": 2, b"": 3}
    files = {}
    for top in ("users", "trash", "staging"):
        for directory, _, names in os.walk(path / top):
            files.update({Path(directory, name).stat().st_ino: Path(directory, name) for name in names})
    assert sorted(file.read_bytes() for file in files.values()) == sorted([CONTENT, b"one", b"two"]), calls
    in_trash = [file for file in files.values() if file.is_relative_to(path / "trash")]
    assert len(in_trash) in (0, parts[inner], 1 if inner == b"image" else parts[inner]), calls
    with opened(path) as store:
        assert len(listed(store)) <= 1 or all(item.note for item in listed(store))
        for item in listed(store):
            if store.trash.bytes_of(item):
                store.trash.restore(item, SetName(b"after"))
    found = trio.run(tree, path)
    contents = [content for content in found.values() if content]
    # A whole set that was on its way back lies at its place, whose name it was about to get (docs/store.md).
    lost = [CONTENT, b"one", b"two"]
    for content in contents:
        lost.remove(content)
    assert lost == [] or len(lost) == parts[inner], calls
