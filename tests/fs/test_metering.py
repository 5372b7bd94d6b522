"""What the door tells its meter, operation by operation; and that a count of the store comes to the same."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckfs.errors import Stale
from ckfs.model import Owner, Record
from ckfs.names import Gid, Inode, MountId, SetName, Uid
from ckfs.policy.quota import NOTHING, Amount
from ckfs.store import attributes, counting, handover, spots, syscalls, writers
from ckfs.store.counting import count, payers
from ckfs.store.entries import USERS, SetEntry
from ckfs.store.layout import Store, open_store
from ckfs.store.metering import attribute_bytes, bytes_of, charge_of, is_charged
from ckfs.store.namelinks import NAMES
from ckfs.store.realms import STAGING, TRASH
from ckfs.store.record import new_inode
from ckfs.store.removed import Item, Note
from ckfs.store.reports import Unreported
from ckfs.store.spots import Found, OpenFile, Spot
from ckfs.store.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.fs.cores import keeper_of, lies_at
from tests.fs.metered import Sums

pytestmark = pytest.mark.root

ALICE = Owner(Uid(2101), Gid(2101))
BOB = Owner(Uid(2102), Gid(2102))
SET = SetName(b"dump")
OTHER_MOUNT = MountId(b"0123456789abcdef")


@dataclass
class Metered:
    """A store with a meter, and a set of Alice's in it: an image of three units, and a directory with one of one."""

    store: Store
    meter: Sums
    top: Spot

    @property
    def unit(self) -> int:
        return self.store.door.unit

    def ino(self, spot: Spot) -> Inode:
        return self.store.door.examine(spot).record.ino

    def make(self, spot: Spot, content: bytes = b"") -> Inode:
        fd, found = self.store.door.make_file(spot, _record(stat.S_IFREG | 0o644), os.O_RDWR)
        try:
            self.write(fd, content)
        finally:
            os.close(fd)
        return found.record.ino

    def write(self, fd: int, content: bytes, offset: int = 0) -> None:
        with self.meter.written(self.store, fd, ALICE.uid):
            os.pwrite(fd, content, offset)
            os.fsync(fd)

    def directory(self, spot: Spot) -> Inode:
        return self.store.door.make_directory(spot, _record(stat.S_IFDIR | 0o755)).record.ino

    def note(self, spot: Spot, path: bytes) -> Note:
        return Note(Uid(0), 1, b"", b"", SET, path, ALICE, self.ino(spot))

    def told(self, change: Callable[[], object]) -> Amount:
        """By how much what Alice is charged with has changed, as the meter heard it; a count says the same."""
        before = self.meter.charged[ALICE.uid]
        change()
        self.meter.check(self.store)
        return self.meter.charged[ALICE.uid] - before


def _record(mode: int) -> Callable[[Record | None], Record]:
    ino = new_inode()
    return lambda _: Record(ino, ALICE.uid, ALICE.gid, mode)


@pytest.fixture
def metered(path: Path) -> Iterator[Metered]:
    meter = Sums()
    with contextlib.closing(open_store(str(path), keeper_of(path), meter=meter)) as store:
        entry, _ = store.names.take(
            SET,
            ALICE,
            ALICE,
            new_inode(),
            lambda spot: store.door.make_directory(spot, _record(stat.S_IFDIR | 0o755)),
        )
        one = Metered(store, meter, entry.spot)
        one.make(one.top.below(b"image"), b"x" * (2 * one.unit + 1))
        one.directory(one.top.below(b"tree"))
        one.make(one.top.below(b"tree", b"part"), b"x")
        assert meter.charged == {ALICE.uid: Amount(6 * one.unit, 4)}
        meter.check(store)
        yield one


Operation = Callable[[Metered], object]


def each(*operations: Operation) -> Operation:
    def all_of_them(one: Metered) -> None:
        for operation in operations:
            operation(one)

    return all_of_them


def _image(one: Metered) -> Spot:
    return one.top.below(b"image")


def _tree(one: Metered) -> Spot:
    return one.top.below(b"tree")


def _part(one: Metered) -> Spot:
    return one.top.below(b"tree", b"part")


def _new(one: Metered) -> Spot:
    return one.top.below(b"new")


def _make(one: Metered) -> object:
    return one.make(_new(one))


def _directory(one: Metered) -> object:
    return one.directory(_new(one))


def _placeholder(one: Metered) -> object:
    build, staging = _record(stat.S_IFLNK | 0o777), one.store.names.staging_spot(ALICE)
    return one.store.door.make_placeholder(_new(one), build, b"target", staging)


def _hidden(one: Metered) -> Spot:
    staging = one.store.names.staging_spot(ALICE)
    one.store.door.make_hidden(staging, _record(stat.S_IFREG | 0o644)(None), b"x")
    return staging


def _linked(one: Metered) -> None:
    """The image gets another name, in the directory."""
    one.store.door.link(_image(one), one.top.below(b"tree", b"link"))


def _unlink(spot: Callable[[Metered], Spot]) -> Operation:
    return lambda one: one.store.door.unlink(spot(one))


def _rename(old: Callable[[Metered], Spot], new: Callable[[Metered], Spot], flags: int = 0) -> Operation:
    return lambda one: one.store.door.rename(old(one), new(one), flags)


def _resized(size_units: int, and_bytes: int = 0) -> Operation:
    def resize(one: Metered) -> None:
        size = size_units * one.unit + and_bytes
        one.store.door.update(_image(one), one.ino(_image(one)), lambda record: record, size=size)

    return resize


def _trashed(one: Metered) -> Item:
    return one.store.trash.put(_tree(one), one.note(_tree(one), b"tree"))


OPERATIONS: dict[str, tuple[Operation, Amount]] = {
    # what is done, and what is told: units and files
    "make_directory": (_directory, Amount(1, 1)),
    "make_file": (_make, Amount(0, 1)),
    "make_placeholder": (_placeholder, Amount(1, 1)),
    "make_hidden": (_hidden, NOTHING),
    "make_hidden, renamed into place": (_rename(_hidden, _new), Amount(1, 1)),
    "make_hidden, renamed over": (_rename(_hidden, _image), Amount(1 - 3, 0)),
    "unlink": (_unlink(_image), Amount(-3, -1)),
    "unlink of a placeholder": (each(_placeholder, _unlink(_new)), NOTHING),
    "rmdir": (each(_directory, lambda one: one.store.door.rmdir(_new(one))), NOTHING),
    "remove a file": (lambda one: one.store.door.remove(_image(one)), Amount(-3, -1)),
    "remove a directory": (each(_directory, lambda one: one.store.door.remove(_new(one))), NOTHING),
    "remove_tree": (lambda one: one.store.door.remove_tree(_tree(one)), Amount(-2, -2)),
    "rename": (_rename(_image, _new), NOTHING),
    "rename over": (_rename(_part, _image), Amount(-3, -1)),
    "rename over itself": (_rename(_image, _image), NOTHING),
    "rename over an empty directory": (each(_directory, _rename(_tree, _new)), NOTHING),
    "rename, exchanging": (_rename(_image, _tree, RENAME_EXCHANGE), NOTHING),
    "rename, not replacing": (_rename(_image, _new, RENAME_NOREPLACE), NOTHING),
    "link": (_linked, NOTHING),
    "unlink of one of two names": (each(_linked, _unlink(_image)), NOTHING),
    "unlink of both names": (
        each(_linked, _unlink(_image), _unlink(lambda one: one.top.below(b"tree", b"link"))),
        Amount(-3, -1),
    ),
    "rename over one of two names": (each(_linked, _rename(_part, _image)), NOTHING),
    "rename over another name of the same file": (
        each(_linked, _rename(_image, lambda one: one.top.below(b"tree", b"link"))),
        NOTHING,
    ),
    "remove_tree with one of two names": (
        each(_linked, lambda one: one.store.door.remove_tree(_tree(one))),
        Amount(-2, -2),
    ),
    "remove_tree with both names": (
        each(_linked, lambda one: one.store.door.remove_tree(one.top)),
        Amount(-6, -4),
    ),
    "cut short": (_resized(0, 1), Amount(-2)),
    "cut to nothing": (_resized(0), Amount(-3)),
    "made longer, with a hole": (_resized(100), NOTHING),
    "to the trash": (_trashed, NOTHING),
    "to the trash, and back": (lambda one: one.store.trash.restore(_trashed(one)), NOTHING),
    "to the trash, and purged": (lambda one: one.store.trash.purge(_trashed(one)), Amount(-2, -2)),
    "to the trash, giving way": (
        each(_trashed, lambda one: one.store.trash.make_room(ALICE, 1)),
        Amount(-2, -2),
    ),
    "a link in the trash": (
        lambda one: one.store.trash.link(_image(one), one.note(_image(one), b"image")),
        NOTHING,
    ),
}


WITH_FLAGS = {"rename, exchanging", "rename, not replacing"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.plain_alone("NFS has no such flags")] * (name in WITH_FLAGS))
        for name in OPERATIONS
    ],
)
def test_an_operation_is_told(metered: Metered, name: str) -> None:
    operation, told = OPERATIONS[name]
    assert metered.told(lambda: operation(metered)) == Amount(told.bytes * metered.unit, told.files)


def test_what_fails_is_not_told(metered: Metered) -> None:
    door = metered.store.door
    metered.make(metered.top.below(b"tree", b"image"), b"x")

    def fail() -> None:
        for call in (
            lambda: door.rmdir(metered.top.below(b"tree")),
            lambda: door.unlink(metered.top.below(b"tree")),
            lambda: door.unlink(metered.top.below(b"nothing")),
            lambda: door.rename(_image(metered), metered.top.below(b"tree")),
            lambda: door.rename(metered.top.below(b"nothing"), _image(metered)),
            lambda: door.rename(metered.top.below(b"tree"), _image(metered), RENAME_NOREPLACE),
            lambda: door.link(metered.top.below(b"tree", b"part"), _image(metered)),
            lambda: door.remove_tree(metered.top.below(b"nothing")),
            lambda: metered.make(_image(metered)),
            lambda: metered.directory(_image(metered)),
        ):
            with pytest.raises((OSError, Stale)):
                call()

    assert metered.told(fail) == NOTHING


def test_a_set_in_the_trash_comes_back_uncharged_anew(metered: Metered) -> None:
    trash = metered.store.trash

    def there_and_back() -> None:
        item = trash.put_set(SET, metered.ino(metered.top), lambda _, __: metered.note(metered.top, b""))
        metered.meter.check(metered.store)
        trash.restore(item)

    assert metered.told(there_and_back) == NOTHING


def test_parts_of_a_set_that_is_gone_come_back_in_a_new_one(metered: Metered) -> None:
    trash = metered.store.trash
    item = trash.put(_image(metered), metered.note(_image(metered), b"image"))
    metered.store.names.remove(
        SET, lambda entry, _: metered.store.door.remove_tree(entry.spot), lambda _: None
    )
    assert metered.told(lambda: trash.restore(item)) == Amount(metered.unit, 1)


def test_a_new_set_that_loses_the_race_for_its_name_is_told_of_as_gone(metered: Metered) -> None:
    def take() -> None:
        def make(spot: Spot) -> Found:
            metered.store.names.enter(SetName(b"new"), SetEntry(new_inode(), BOB, BOB, b"new"))
            return metered.store.door.make_directory(spot, _record(stat.S_IFDIR | 0o755))

        with pytest.raises(Exception, match="exists"):
            metered.store.names.take(SetName(b"new"), ALICE, ALICE, new_inode(), make)

    assert metered.told(take) == NOTHING


# Attributes


ATTRIBUTES = {
    # name, value's length in bytes: units
    "a small one": ([(b"user.a", 10)], 1),
    "many small ones": ([(b"user.%d" % i, 100) for i in range(20)], 1),
    "one of a unit": ([(b"user.a", 3000), (b"user.b", 3000)], 2),
    "ckfs's own": ([(b"user.ckfs.x", 1000)], 0),
    "one that looks like ckfs's own": ([(b"user.ckfsx", 10)], 1),
}


def _set(one: Metered, spot: Spot, name: bytes, length: int) -> None:
    try:
        one.store.door.set_attribute(spot, one.ino(spot), name, b"v" * length)
    except OSError as error:
        pytest.skip(f"the file system takes no attribute of {length} bytes: {error.strerror}")


@pytest.mark.parametrize("name", ATTRIBUTES)
@pytest.mark.parametrize("of", ["image", "tree"])
def test_users_own_attributes_are_charged_in_units(metered: Metered, name: str, of: str) -> None:
    those, units = ATTRIBUTES[name]
    spot = metered.top.below(of.encode())

    def put() -> None:
        for attribute, length in those:
            _set(metered, spot, attribute, length)

    def drop() -> None:
        for attribute, _ in those:
            metered.store.door.remove_attribute(spot, metered.ino(spot), attribute)

    assert metered.told(put) == Amount(units * metered.unit)
    assert metered.told(put) == NOTHING
    assert metered.told(drop) == Amount(-units * metered.unit)


def test_an_attribute_of_64_kib_is_charged_and_goes_with_its_file(metered: Metered) -> None:
    image = _image(metered)
    assert metered.told(lambda: _set(metered, image, b"user.a", 1 << 16)) == Amount((1 << 16) + metered.unit)
    assert metered.told(lambda: _set(metered, image, b"user.a", 1)) == Amount(-(1 << 16))
    _set(metered, image, b"user.a", 1 << 16)
    gone = metered.told(lambda: metered.store.door.unlink(image))
    assert gone == Amount(-(1 << 16) - 4 * metered.unit, -1)


def test_attributes_that_could_not_be_listed_any_more_are_refused(metered: Metered) -> None:
    """Nobody could count them; and who lists them, as ckfs does, would get E2BIG."""
    image, ino = _image(metered), metered.ino(_image(metered))

    def put_many() -> None:
        for number in range(400):
            metered.store.door.set_attribute(image, ino, b"user.%0240d" % number, b"")

    with pytest.raises(OSError, match=r"listed any more|No space left"):
        put_many()
    metered.meter.check(metered.store)
    metered.told(lambda: metered.store.door.unlink(image))


def test_an_attribute_that_is_set_only_if_something_holds(metered: Metered) -> None:
    image, ino, door = _image(metered), metered.ino(_image(metered)), metered.store.door

    def put(*, holds: bool) -> None:
        door.set_attribute_if(image, ino, b"user.a", b"v", lambda _: holds)

    assert metered.told(lambda: put(holds=False)) == NOTHING
    assert metered.told(lambda: put(holds=True)) == Amount(metered.unit)


def test_a_file_of_which_the_store_tells_less_blocks_than_it_gives_out_is_charged_in_units(
    metered: Metered, tmp_path: Path
) -> None:
    """As GlusterFS does: no more than the size needs, in units of 512 bytes."""
    file = tmp_path / "small"
    file.write_bytes(b"x" * 600)
    told = os.stat_result((stat.S_IFREG | 0o600, 1, 1, 1, 0, 0, 600, 0, 0, 0), {"st_blocks": 2})
    assert bytes_of(told, os.fsencode(file), metered.unit) == metered.unit


def test_which_attributes_are_charged() -> None:
    names = [
        b"user.a",
        b"user.ckfs",
        b"user.ckfs.w.1",
        b"user.ckfsx",
        b"security.selinux",
        b"system.posix_acl_access",
    ]
    assert [name for name in names if is_charged(name)] == [b"user.a", b"user.ckfsx"]


def test_names_count_as_well_as_values(metered: Metered) -> None:
    _set(metered, _image(metered), b"user.abc", 10)
    with metered.store.door.opened(_image(metered), os.O_RDONLY) as fd:
        assert attribute_bytes(fd) == len(b"user.abc") + 10


# Open files, and those of other mounts


@pytest.mark.plain_alone("NFS keeps an open file under a name of its own")
def test_an_open_file_is_charged_to_whom_it_belongs_and_no_more_without_a_name(metered: Metered) -> None:
    image, ino, door = _image(metered), metered.ino(_image(metered)), metered.store.door
    file = door.open(image, os.O_RDWR, ino)
    try:
        told = metered.told(lambda: door.update(file, ino, lambda record: record, size=1))
        assert told == Amount(-2 * metered.unit)
        assert metered.told(lambda: door.unlink(image)) == Amount(-metered.unit, -1)
        assert metered.told(lambda: door.update(file, ino, lambda record: record, size=0)) == NOTHING
        assert metered.told(lambda: door.set_attribute(file, ino, b"user.a", b"v")) == NOTHING
    finally:
        os.close(file.fd)


@pytest.mark.parametrize("name", ["unlink", "rename over", "cut short", "remove a file"])
def test_of_what_another_mount_writes_that_one_tells(metered: Metered, name: str) -> None:
    with metered.store.door.opened(_image(metered), os.O_RDONLY) as fd:
        writers.put(fd, OTHER_MOUNT)
    metered.meter.elsewhere.add(OTHER_MOUNT)
    before = metered.meter.charged[ALICE.uid]
    OPERATIONS[name][0](metered)
    assert metered.meter.charged[ALICE.uid] == before
    assert count(metered.store, ALICE.uid, metered.unit) != before


def test_of_what_a_dead_mount_left_this_one_tells(metered: Metered) -> None:
    with metered.store.door.opened(_image(metered), os.O_RDONLY) as fd:
        writers.put(fd, OTHER_MOUNT)
    told = metered.told(lambda: metered.store.door.unlink(_image(metered)))
    assert told == Amount(-3 * metered.unit, -1)


# Who pays


@pytest.fixture
def given(metered: Metered) -> SetEntry:
    """Alice's set is Bob's, and its files have yet to follow."""
    seen = metered.store.names.read(SET)
    handover.name_owner(metered.store, SET, seen.ino, BOB)
    metered.meter.charged[BOB.uid] += metered.meter.charged.pop(ALICE.uid)
    metered.meter.check(metered.store)
    return metered.store.names.read(SET)


def test_the_new_owner_pays_for_a_set_whose_files_have_yet_to_follow(
    metered: Metered, given: SetEntry
) -> None:
    door, top = metered.store.door, given.spot
    assert (given.payer, top.payer, top.charged_to, top.below(b"x").charged_to) == (BOB.uid,) * 4
    ino = metered.ino(top.below(b"image"))
    door.update(top.below(b"image"), ino, lambda record: record, size=1)
    metered.meter.check(metered.store)
    metered.directory(top.below(b"new"))
    metered.meter.check(metered.store)
    door.set_attribute(top.below(b"image"), ino, b"user.a", b"v")
    metered.meter.check(metered.store)
    file = door.open(top.below(b"image"), os.O_RDWR, ino).paid_by(top.payer)
    door.remove_attribute(file, ino, b"user.a")
    os.close(file.fd)
    metered.meter.check(metered.store)
    door.remove_tree(top.below(b"tree"))
    metered.meter.check(metered.store)
    assert metered.meter.charged[ALICE.uid] == NOTHING
    assert metered.meter.charged[BOB.uid] == Amount(3 * metered.unit, 3)


def test_what_goes_to_the_trash_of_the_stored_identity_is_charged_to_it(
    metered: Metered, given: SetEntry
) -> None:
    trash, top = metered.store.trash, given.spot
    item = trash.put(top.below(b"tree"), metered.note(top.below(b"tree"), b"tree"))
    metered.meter.check(metered.store)
    assert metered.meter.charged[ALICE.uid] == Amount(2 * metered.unit, 2)
    metered.store.door.rename(item.spot, top.below(b"tree"))
    metered.meter.check(metered.store)
    assert metered.meter.charged[ALICE.uid] == NOTHING


def test_a_link_in_the_trash_is_charged_to_the_stored_identity_too_until_the_name_goes(
    metered: Metered, given: SetEntry
) -> None:
    image = given.spot.below(b"image")
    metered.store.trash.link(image, metered.note(image, b"image"))
    metered.meter.check(metered.store)
    metered.store.door.rename(given.spot.below(b"tree", b"part"), image)
    metered.meter.check(metered.store)
    assert metered.meter.charged[ALICE.uid] == Amount(3 * metered.unit, 1)


@pytest.mark.plain_alone("there a hand-over is a copy")
def test_a_hand_over_is_not_told(metered: Metered, given: SetEntry) -> None:
    calls = metered.meter.calls
    assert handover.bring_files(metered.store, SET, given, BOB) is not None
    assert metered.meter.calls == calls
    metered.meter.check(metered.store)


def test_a_hand_over_by_copies_is_not_told_and_the_copy_is_nobodys_until_it_is_the_set(
    metered: Metered, given: SetEntry
) -> None:
    calls = metered.meter.calls
    metered.store.names.prepare_user(BOB)
    copying = handover.Copying(metered.store, SET, given, BOB)
    try:
        copying.begin()
        while copying.step():
            metered.meter.check(metered.store)
        copying.finish()
        copying.put_old_aside()
        metered.meter.check(metered.store)
        copying.remove_old()
    finally:
        copying.close()
    assert metered.meter.calls == calls
    metered.meter.check(metered.store)


def test_as_root_a_spot_is_still_charged_to_whom_it_was(metered: Metered) -> None:
    assert metered.top.by(Owner(Uid(0), Gid(0))).charged_to == ALICE.uid


def test_only_what_lies_in_users_and_trash_is_charged() -> None:
    charged = [
        top for top in (USERS, TRASH, NAMES, STAGING, b"mounts") if Spot(ALICE, (top, b"x")).charged_to
    ]
    assert charged == [USERS, TRASH] == list(spots._CHARGED)


def test_nothing_is_told_through_the_unmetered_door(metered: Metered) -> None:
    calls = metered.meter.calls
    metered.store.door.unmetered.remove_tree(metered.top)
    assert metered.meter.calls == calls


def test_a_door_without_a_meter_makes_no_call_more(path: Path) -> None:
    with contextlib.closing(open_store(str(path), keeper_of(path))) as store:
        assert store.door.unmetered is store.door
        assert isinstance(store.door.reports, Unreported)


# The count


def test_a_file_that_is_being_written_counts_with_its_base(metered: Metered) -> None:
    whole = count(metered.store, ALICE.uid, metered.unit)
    written = {metered.ino(_image(metered)): Amount(metered.unit, 1), Inode(7): Amount(5, 1)}
    rest = count(metered.store, ALICE.uid, metered.unit, written)
    assert whole - rest == Amount(2 * metered.unit - 5, -1), "also of one that has no name"


def test_a_file_counts_once_though_its_names_are_in_set_and_trash(metered: Metered) -> None:
    whole = count(metered.store, ALICE.uid, metered.unit)
    _linked(metered)
    metered.store.trash.link(_image(metered), metered.note(_image(metered), b"image"))
    assert count(metered.store, ALICE.uid, metered.unit) == whole


def test_a_place_without_a_name_counts(metered: Metered) -> None:
    whole = count(metered.store, ALICE.uid, metered.unit)
    metered.store.names.clear(SET, metered.store.names.read(SET))
    assert count(metered.store, ALICE.uid, metered.unit) == whole


def test_a_tree_deeper_than_python_calls_and_descriptors_reach_is_counted(
    metered: Metered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "_MOST_OPEN", 3)
    depth = 1500
    before = count(metered.store, ALICE.uid, metered.unit)
    with metered.store.door.opened(metered.top, os.O_RDONLY | os.O_DIRECTORY) as top:
        fd = os.dup(top)
        for _ in range(depth):
            for name in (b"deep", b"other"):
                os.mkdir(name, 0o700, dir_fd=fd)
            inner = os.open(b"deep", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = inner
        os.close(fd)
    counted = count(metered.store, ALICE.uid, metered.unit) - before
    # What cleans up after tests goes by calls, too.
    subprocess.run(["rm", "-r", lies_at(Path(metered.store.path), "dump")], check=True)
    assert counted == Amount(2 * depth * metered.unit, 2 * depth)


def test_a_directory_that_moves_under_the_count_is_noticed(
    metered: Metered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "_MOST_OPEN", 1)
    door, top = metered.store.door, metered.top
    for names in ([b"elsewhere"], [b"tree", b"inner"], [b"tree", b"inner", b"leaf"]):
        metered.directory(top.below(*names))

    def moving(status: os.stat_result, where: attributes.Where, unit: int) -> Amount:
        if isinstance(where, bytes) and where.endswith(b"/leaf"):
            door.rename(top.below(b"tree", b"inner"), top.below(b"elsewhere", b"inner"))
        return charge_of(status, where, unit)

    monkeypatch.setattr(counting, "charge_of", moving)
    with pytest.raises(Stale):
        count(metered.store, ALICE.uid, metered.unit)


def test_what_goes_while_it_is_counted_is_passed_over(
    metered: Metered, monkeypatch: pytest.MonkeyPatch
) -> None:
    names_in = syscalls.names_in
    monkeypatch.setattr(syscalls, "names_in", lambda fd: iter([b"gone", *names_in(fd), b"gone too"]))
    assert count(metered.store, ALICE.uid, metered.unit) == metered.meter.charged[ALICE.uid]


def test_who_may_be_charged(metered: Metered, given: SetEntry) -> None:
    assert payers(metered.store) == {ALICE.uid, BOB.uid}


def test_nobody_unknown_has_anything(metered: Metered) -> None:
    assert count(metered.store, Uid(4711), metered.unit) == NOTHING


def test_an_open_file_without_a_payer_belongs_to_whom_the_store_says(metered: Metered) -> None:
    assert OpenFile(3).paid_by(None) == OpenFile(3)
    assert OpenFile(3).paid_by(BOB.uid).payer == BOB.uid


# Several mounts at once

NAMES_OF_ALL = [b"0", b"1", b"2"]
ENOUGH = 1500


def change_names(metered: Metered, store: Store, seed: int) -> None:
    """Make, rename over one another and remove the same files as others do."""
    one, dice = Metered(store, metered.meter, metered.top), random.Random(seed)
    for _ in range(ENOUGH):
        old, new = (metered.top.below(name) for name in dice.sample(NAMES_OF_ALL, 2))
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            match dice.randrange(3):
                case 0:
                    one.make(old)
                case 1:
                    store.door.rename(old, new)
                case _:
                    store.door.unlink(old)


@pytest.mark.plain_alone("on a network's store a recount puts right what two saw at the very same moment")
def test_of_names_that_several_mounts_change_at_once_each_file_is_freed_once(metered: Metered) -> None:
    place = metered.store.path
    with contextlib.ExitStack() as stack:
        stores = [
            stack.enter_context(
                contextlib.closing(open_store(place, keeper_of(Path(place)), meter=metered.meter))
            )
            for _ in range(3)
        ]
        pool = stack.enter_context(ThreadPoolExecutor(len(stores)))
        for done in [pool.submit(change_names, metered, store, seed) for seed, store in enumerate(stores)]:
            done.result()
    metered.meter.check(metered.store)
