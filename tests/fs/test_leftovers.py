"""What was left behind in a store in a real directory: it is found, and goes to the trash whole; whoever dies on the way, or
comes back in that very moment, loses nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from ckfs.fs.chores import Marks
from ckfs.fs.liveness import Fate
from ckfs.fs.metadata import Changes
from ckfs.model import JobFate, Owner, State
from ckfs.names import Gid, Inode, SetName, Uid
from ckfs.policy.leftovers import Kind
from ckfs.policy.settings import parse
from ckfs.store.entries import SetEntry
from ckfs.store.layout import Store, open_store
from ckfs.store.leftovers import Leftover, Leftovers, Writers
from ckfs.store.removed import Item
from ckfs.store.spots import Found, Spot
from tests.fs.cores import ALICE, copied, keeper_of, lies_at, mounted, new_store
from tests.fs.failing import Failing, Killed
from tests.support.nfs import on_server, remove

pytestmark = pytest.mark.root

POLICY = parse("[gc]\ntemporary_hours = 24\nunclaimed_days = 7\njob_gone_days = 14\n")
DAY_NS = 86_400_000_000_000
SET, UNCLAIMED = SetName(b"7.server.CK"), SetName(b"8.server.CK")
UNKNOWN, GONE, KNOWN = JobFate.UNKNOWN, JobFate.GONE, JobFate.KNOWN


class NobodyKnown:
    """Where nothing is known of writers, times alone decide."""

    def is_live(self, spot: Spot, found: Found) -> bool:
        return False


@pytest.fixture(scope="module")
def template(file_system: Path) -> Path:
    path = new_store(file_system)
    trio.run(_fill, path)
    return path


async def _fill(path: Path) -> None:
    """A set of Alice's with two checkpoints and a temporary file of a dead writer; one that is nobody's; and one of her own."""
    async with mounted(path) as mount:
        await mount.root.mkdir("7.server.CK")
        await mount.root.setattr("7.server.CK", Changes(uid=ALICE.uid, gid=ALICE.gid))
        await mount.alice.save("7.server.CK/image", b"image")
        await mount.alice.save("7.server.CK/.image.tmp", b"half")
        await mount.alice.mkdir("7.server.CK/dump")
        await mount.alice.save("7.server.CK/dump/core.img", b"core")
        await mount.alice.save("7.server.CK/dump/pages.tmp", b"torn")
        await mount.root.mkdir("8.server.CK")
        await mount.root.save("8.server.CK/image", b"image")
        await mount.alice.mkdir("mine")
        await mount.alice.save("mine/.profile", b"text")
        await mount.alice.save("mine/draft.tmp", b"text")


@pytest.fixture
def path(template: Path, directory: Path) -> Path:
    return copied(template, directory / "store")


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with contextlib.closing(open_store(str(path), keeper_of(path))) as store:
        yield store


@dataclass
class Live:
    """Writers that are told who is live, by path below the set; *asked* calls are made on the way."""

    names: set[bytes] = field(default_factory=set)

    def is_live(self, spot: Spot, found: Found) -> bool:
        return spot.components[-1] in self.names


def later(store: Store, days: float, writers: Writers | None = None) -> Leftovers:
    return Leftovers(
        store, POLICY, writers or NobodyKnown(), clock=lambda: time.time_ns() + int(days * DAY_NS)
    )


def found_in(leftovers: Leftovers, name: SetName, fate: JobFate = UNKNOWN) -> list[Leftover]:
    look = leftovers.look(name)
    return [] if look is None else leftovers.judge(look, fate)


def said(left: list[Leftover]) -> list[tuple[Kind, bytes, bytes]]:
    return [(one.kind, one.name, one.path) for one in left]


TEMPORARY = [(Kind.TEMPORARY, SET, b".image.tmp")]
WHOLE = [(Kind.JOB_GONE, SET, b"")]


def test_the_batch_sets_are_looked_at(store: Store) -> None:
    assert sorted(later(store, 0).sets()) == [SET, UNCLAIMED]


@pytest.mark.parametrize(
    ("days", "fate", "left"),
    [
        (0.9, GONE, []),
        (1.1, GONE, TEMPORARY),
        (13.9, GONE, TEMPORARY),
        (14.1, GONE, WHOLE),
        (14.1, UNKNOWN, TEMPORARY),
        (14.1, KNOWN, TEMPORARY),
    ],
)
def test_what_is_left_of_a_set(
    store: Store, days: float, fate: JobFate, left: list[tuple[Kind, bytes, bytes]]
) -> None:
    """Of what lies deeper, the torn file of a dump, nothing: the rest of it would look whole."""
    assert said(found_in(later(store, days), SET, fate)) == left


@pytest.mark.parametrize(
    ("days", "fate", "kinds"),
    [
        (6.9, UNKNOWN, []),
        (7.1, UNKNOWN, [Kind.UNCLAIMED]),
        (7.1, KNOWN, []),
        (14.1, GONE, [Kind.JOB_GONE]),
    ],
)
def test_a_set_that_is_nobody_s(store: Store, days: float, fate: JobFate, kinds: list[Kind]) -> None:
    assert [left.kind for left in found_in(later(store, days), UNCLAIMED, fate)] == kinds


def test_all_that_is_known_of_it(store: Store) -> None:
    (left,) = found_in(later(store, 20), SET, GONE)
    assert left.owner == Owner(ALICE.uid, ALICE.gid)
    assert left.size_bytes == len(b"imagehalfcoretorn")
    assert str(left) == "7.server.CK"


@pytest.mark.parametrize("name", ["dump/pages.tmp", "dump", ".image.tmp", ""])
def test_the_youngest_thing_in_a_set_counts(store: Store, path: Path, name: str) -> None:
    os.utime(lies_at(path, "7.server.CK") / name, ns=(0, time.time_ns() + 10 * DAY_NS))
    assert said(found_in(later(store, 20), SET, GONE)) != WHOLE
    assert said(found_in(later(store, 25), SET, GONE)) == WHOLE


def test_a_time_of_the_future_keeps_nothing(store: Store, path: Path) -> None:
    os.utime(lies_at(path, "7.server.CK") / "image", ns=(0, time.time_ns() + 10_000 * DAY_NS))
    assert said(found_in(later(store, 20), SET, GONE)) == WHOLE


@pytest.mark.parametrize("value", [b"pinned", b"pinned/image", b"pinned/dump"])
def test_what_is_pinned_keeps_its_set(store: Store, path: Path, value: bytes) -> None:
    async def pin() -> None:
        async with mounted(path) as mount, mount.alice.at("7.server.CK") as ino:
            await mount.fs.extended.set(ino, b"user.ckfs.keep", value, mount.alice.caller)

    trio.run(pin)
    assert said(found_in(later(store, 20), SET, GONE)) == TEMPORARY


@pytest.mark.parametrize("name", [b".image.tmp", b"pages.tmp"])
def test_what_is_being_written_keeps_its_set(store: Store, name: bytes) -> None:
    left = said(found_in(later(store, 20, Live({name})), SET, GONE))
    assert left == ([] if name == b".image.tmp" else TEMPORARY)


def test_a_set_that_changes_hands_is_left_alone(store: Store) -> None:
    entry = store.names.read(SET)
    store.names.change(SET, entry, dataclasses.replace(entry, owner=Owner(Uid(2102), Gid(2102))))
    assert found_in(later(store, 20), SET, GONE) == []


def test_so_is_one_that_is_being_copied(store: Store) -> None:
    ino = store.names.read(SET).ino
    lock = store.names.copy_locks.lock(ino)
    assert found_in(later(store, 20), SET, GONE) == []
    store.names.copy_locks.unlock(ino, lock)
    assert said(found_in(later(store, 20), SET, GONE)) == WHOLE


def test_so_is_one_with_two_names(store: Store, path: Path) -> None:
    os.link(
        on_server(path) / "names/7.server.CK", on_server(path) / "names/9.server.CK", follow_symlinks=False
    )
    assert found_in(later(store, 20), SET, GONE) == []


def test_sets_of_users_are_left_alone(store: Store) -> None:
    assert found_in(later(store, 1000), SetName(b"mine"), GONE) == []


def test_a_set_that_is_gone_is_no_leftover(store: Store) -> None:
    assert later(store, 20).look(SetName(b"9.server.CK")) is None


# Marks of writers


@pytest.mark.parametrize(("fate", "is_live"), [(Fate.ALIVE, True), (Fate.SILENT, True), (Fate.GONE, False)])
def test_a_writer_that_may_come_back_is_live(path: Path, fate: Fate, is_live: bool) -> None:
    async def begin() -> None:
        async with mounted(path) as mount:
            handle = await mount.alice.create("7.server.CK/.new.tmp")
            await mount.fs.content.write(handle, 0, b"half")
            with contextlib.closing(open_store(str(path), keeper_of(path))) as seen:
                marks = Marks(seen.door, lambda _: fate)
                found = {left.path for left in found_in(later(seen, 2, marks), SET)}
                assert found == {b".image.tmp"} | (set() if is_live else {b".new.tmp"})
            await mount.alice.close(handle)

    trio.run(begin)


# Outside of sets


def test_empty_places_that_no_name_refers_to(store: Store, path: Path) -> None:
    users = on_server(path) / "users/2101"
    for name in ("made", "9.server.CK~1f~copy", "full"):
        (users / name).mkdir()
    (users / "full/image").write_bytes(b"image")
    (users / "file").write_bytes(b"")
    (users / "filled").write_bytes(b"image")
    for top, directories, files in os.walk(users):
        for name in (*directories, *files):
            os.chown(Path(top) / name, 2101, 2101)
    assert said(later(store, 0.9).places()) == []
    assert sorted(said(later(store, 1.1).places())) == [
        (Kind.PLACE, b"file", b""),
        (Kind.PLACE, b"made", b""),
    ]


def test_a_place_that_a_name_means_is_none(store: Store, path: Path) -> None:
    """Its set has been renamed, by one that died before it said where the files lie."""
    place = lies_at(path, "7.server.CK")
    shutil.rmtree(place)
    place.mkdir()
    entry = store.names.read(SET)
    os.chown(place, 2101, 2101)
    os.setxattr(place, "user.ckfs", b"1;i=%x;u=0;g=0;m=40755;r=0;s=c;n=a" % entry.ino)
    store.names.change(SET, entry, dataclasses.replace(entry, place=b"elsewhere"))
    assert later(store, 2).places() == []


def test_while_a_name_cannot_be_read_no_place_is_nobody_s(store: Store, path: Path) -> None:
    (on_server(path) / "users/2101/made").mkdir()
    os.chown(on_server(path) / "users/2101/made", 2101, 2101)
    assert len(later(store, 2).places()) == 1
    os.symlink("9:of a later version", on_server(path) / "names/9.server.CK")
    assert later(store, 2).places() == []


def test_what_was_being_restored_is_somebody_s(store: Store, path: Path) -> None:
    (on_server(path) / "users/2101/made").mkdir()
    os.chown(on_server(path) / "users/2101/made", 2101, 2101)
    os.setxattr(on_server(path) / "users/2101/made", "user.ckfs.trash", b"1")
    assert later(store, 2).places() == []


def staged(store: Store, path: Path, ino: Inode) -> str:
    spot = store.names.staging_spot(Owner(Uid(2101), Gid(2101)))
    record = store.door.examine(store.names.read(SET).spot).record.with_(ino=ino, mode=0o100600)
    store.door.make_hidden(spot, record, b"new")
    return spot.components[-1].decode()


def test_files_that_were_being_made(store: Store, path: Path) -> None:
    name = staged(store, path, Inode(77))
    os.symlink("1:2:-:0.0:x", on_server(path) / "staging/staging-1")
    (on_server(path) / "staging/copying-1f").write_bytes(b"")
    assert later(store, 0.9).unfinished() == []
    assert said(later(store, 1.1).unfinished()) == [(Kind.UNFINISHED, name.encode(), b"")]


# To the trash


def take(store: Store, left: Leftover, fate: JobFate = GONE, days: float = 20) -> Item | None:
    return later(store, days).take(left, fate, b"a")


def test_a_set_goes_as_a_whole_and_comes_back_so(store: Store, path: Path) -> None:
    before = trio.run(_walk, path)
    (left,) = found_in(later(store, 20), SET, GONE)
    item = take(store, left)
    assert item is not None
    assert (item.note.program, item.note.path, item.note.set_name) == (b"ckfs gc", b"", SET)
    assert not [name for name in trio.run(_walk, path) if name.startswith("7.")]
    store.trash.restore(item)
    assert trio.run(_walk, path) == before


def test_so_does_a_set_that_is_nobody_s(store: Store, path: Path) -> None:
    before = trio.run(_walk, path)
    (left,) = found_in(later(store, 8), UNCLAIMED)
    item = take(store, left, UNKNOWN, days=8)
    assert item is not None
    store.trash.restore(item)
    assert trio.run(_walk, path) == before
    assert store.names.read(UNCLAIMED).owner is None


def test_a_file_goes_and_comes_back(store: Store, path: Path) -> None:
    before = trio.run(_walk, path)
    (left,) = found_in(later(store, 2), SET)
    item = take(store, left, days=2)
    assert item is not None
    assert set(before) - set(trio.run(_walk, path)) == {"7.server.CK/.image.tmp"}
    store.trash.restore(item)
    assert trio.run(_walk, path) == before


def test_an_unfinished_file_gets_a_number_of_its_own(store: Store, path: Path) -> None:
    """It was to take the place of a file, and has its number."""
    staged(store, path, store.names.read(SET).ino)
    (left,) = later(store, 2).unfinished()
    item = take(store, left, days=2)
    assert item is not None
    (found,) = store.trash.items()
    assert isinstance(found, Item)
    assert found.found.record.ino != left.ino


def test_what_has_changed_since_it_was_found_stays(store: Store, path: Path) -> None:
    (of_set,) = found_in(later(store, 20), SET, GONE)
    (temporary,) = found_in(later(store, 2), SET)
    assert take(store, of_set, KNOWN) is None
    assert take(store, of_set, UNKNOWN) is None
    assert take(store, of_set, days=13) is None
    assert take(store, dataclasses.replace(of_set, ino=Inode(5))) is None
    assert take(store, temporary, days=0.5) is None
    assert later(store, 20, Live({b".image.tmp"})).take(temporary, GONE, b"a") is None
    assert later(store, 20, Live({b".image.tmp"})).take(of_set, GONE, b"a") is None
    place = lies_at(path, "7.server.CK")
    os.rename(place / ".image.tmp", place / "final")
    assert take(store, temporary) is None
    assert list(store.trash.items()) == []


class Returning:
    """A writer that comes back in the very moment in which his file is moved."""

    def is_live(self, spot: Spot, found: Found) -> bool:
        return spot.components[0] == b"trash"


def test_a_writer_who_comes_back_in_that_moment_has_his_file(store: Store, path: Path) -> None:
    before = trio.run(_walk, path)
    (left,) = found_in(later(store, 2), SET)
    assert later(store, 2, Returning()).take(left, GONE, b"a") is None
    assert trio.run(_walk, path) == before
    assert list(store.trash.items()) == []


async def _walk(path: Path) -> dict[str, tuple[int, int, State, bytes]]:
    async with mounted(path) as mount:
        mount.core.reads_partial = True
        return {
            name: (seen.mode, seen.ino, seen.state, seen.content)
            for name, seen in (await mount.root.walk()).items()
        }


# Deaths


def everything(leftovers: Leftovers) -> list[Item]:
    """What ``ckfs gc --apply`` does."""
    items = []
    for name in sorted(leftovers.sets()):
        items += [leftovers.take(left, GONE, b"a") for left in found_in(leftovers, name, GONE)]
    for left in [*leftovers.places(), *leftovers.unfinished()]:
        items.append(leftovers.take(left, UNKNOWN, b"a"))
    return [item for item in items if item is not None]


_CHANGING = {
    "rename",
    "link",
    "unlink",
    "rmdir",
    "mkdir",
    "symlink",
    "setxattr",
    "removexattr",
    "chown",
    "fchmod",
    "write",
}


@pytest.mark.parametrize("days", [2, 20], ids=["files", "sets"])
def test_whoever_dies_on_the_way_loses_nothing_and_another_goes_on(
    template: Path, directory: Path, failing: Failing, days: float
) -> None:
    before = trio.run(_walk, template)
    steps = _steps(template, directory / "counted", failing, days)
    assert steps
    for at in steps:
        path = directory / str(at)
        with _with_a_place(template, path) as store, failing.armed(at, Killed), pytest.raises(Killed):
            everything(later(store, days))
        with contextlib.closing(open_store(str(path), keeper_of(path))) as store:
            _goes_on(store, path, days, before, f"at {at} of {failing.log[-3:]}")
        remove(path)


@contextlib.contextmanager
def _with_a_place(template: Path, path: Path) -> Iterator[Store]:
    copied(template, path)
    (on_server(path) / "users/2101/made").mkdir()
    os.chown(on_server(path) / "users/2101/made", 2101, 2101)
    with contextlib.closing(open_store(str(path), keeper_of(path))) as store:
        yield store


def _steps(template: Path, path: Path, failing: Failing, days: float) -> list[int]:
    """At which calls something changes: dying before one of these, or after the one before, are all the deaths there are."""
    with _with_a_place(template, path) as store, failing.armed(1 << 30, Killed):
        everything(later(store, days))
    return [number for number, what in enumerate(failing.log, 1) if what in _CHANGING]


def _goes_on(
    store: Store, path: Path, days: float, before: dict[str, tuple[int, int, State, bytes]], where: str
) -> None:
    everything(later(store, days))
    assert everything(later(store, days)) == [], where
    items = list(store.trash.items())
    assert all(isinstance(item, Item) for item in items), f"{items} {where}"
    found = sorted((item.note.set_name, item.note.path) for item in items if isinstance(item, Item))
    expected = [(SET, b".image.tmp")] if days == 2 else [(SET, b""), (UNCLAIMED, b"")]
    assert found == sorted([*expected, (b"made", b"")]), where
    for item in items:
        assert isinstance(item, Item)
        if item.note.set_name != b"made":
            store.trash.restore(item)
    assert trio.run(_walk, path) == before, where


def test_an_entry_by_that_name_is_never_lost(store: Store) -> None:
    """The names that are taken away are those of the sets that were moved."""
    entries = {name: store.names.read(name) for name in store.names.all()}
    everything(later(store, 20))
    left: dict[SetName, SetEntry] = {name: store.names.read(name) for name in store.names.all()}
    assert left == {name: entry for name, entry in entries.items() if name == b"mine"}
