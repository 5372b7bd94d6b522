"""Superseded checkpoints that go by themselves: which, whereto, and what happens in the moment in which they are moved."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import trio

from ckfs.fs.metadata import Changes
from ckfs.fs.superseded import Superseded
from ckfs.model import Caller, Owner, Role, State
from ckfs.names import SetName
from ckfs.store.removed import Item, Note
from ckfs.store.spots import Spot
from ckfs.store.trash import Trash
from tests.fs.cores import ALICE, BOB, Mount, copied, lies_at, mounted, mounted_for_long, new_store
from tests.fs.failing import Failing, Killed
from tests.support.nfs import on_server

pytestmark = pytest.mark.root

SET = SetName(b"7.server.CK")
NAMES = ("one", "two", "three", "four")
DAY_NS = 86_400_000_000_000
LATER_NS = 31 * DAY_NS


@pytest.fixture(scope="module")
def template(file_system: Path) -> Path:
    path = new_store(file_system)

    async def fill() -> None:
        async with mounted(path) as mount:
            await fill_set(mount, "7.server.CK", ALICE)

    trio.run(fill)
    return path


async def fill_set(mount: Mount, name: str, owner: Caller) -> None:
    """Four checkpoints; the first is a directory of two images."""
    process = mount.process(owner)
    await mount.root.mkdir(name)
    await mount.root.setattr(name, Changes(uid=owner.uid, gid=owner.gid))
    await process.mkdir(f"{name}/one")
    await process.save(f"{name}/one/core.img", b"core" * 5000)
    await process.save(f"{name}/one/pages.img", b"pages" * 5000)
    for inner in NAMES[1:]:
        await process.save(f"{name}/{inner}", inner.encode() * 5000)


@pytest.fixture
def path(template: Path, directory: Path) -> Path:
    return copied(template, directory / "store")


@pytest.fixture
def mount(path: Path) -> Iterator[Mount]:
    with mounted_for_long(path, role=Role.SERVER) as mount:
        yield mount


@pytest.fixture
def superseded(mount: Mount) -> Superseded:
    return Superseded(mount.core, mount.fs.sets.guard)


def there(mount: Mount, name: str = "7.server.CK") -> set[str]:
    return {inner.decode() for inner in trio.run(mount.alice.list, name)}


def in_trash(mount: Mount) -> list[bytes]:
    items = [item for item in mount.core.store.trash.items() if isinstance(item, Item)]
    return [item.note.path for item in sorted(items, key=lambda item: item.when_ns)]


def owner_of(caller: Caller) -> Owner:
    return Owner(caller.uid, caller.gid)


def say(mount: Mount, value: bytes) -> None:
    async def run() -> None:
        async with mount.root.at("7.server.CK") as ino:
            await mount.fs.extended.set(ino, b"user.ckfs.keep", value, mount.root.caller)

    trio.run(run)


# By time


def test_those_whose_time_is_over_go_to_the_trash(mount: Mount, superseded: Superseded) -> None:
    assert superseded.families() == [SET]
    assert superseded.expire(SET, time.time_ns() + 29 * DAY_NS) == 0
    assert superseded.expire(SET, time.time_ns() + LATER_NS) == 2
    assert there(mount) == {"three", "four"}
    assert in_trash(mount) == [b"one", b"two"]
    assert superseded.expire(SET, time.time_ns() + 1000 * LATER_NS) == 0


def test_what_is_known_of_it_is_in_the_trash_and_it_comes_back_whole(
    mount: Mount, superseded: Superseded
) -> None:
    before = trio.run(mount.alice.walk)
    superseded.expire(SET, time.time_ns() + LATER_NS)
    items = [item for item in mount.core.store.trash.items() if isinstance(item, Item)]
    assert {(item.note.program, item.note.uid, item.note.node, item.note.owner) for item in items} == {
        (b"ckfs", 0, b"a", owner_of(ALICE))
    }
    assert mount.core.store.trash.restore_together(items) == []
    assert trio.run(mount.alice.walk) == before


@pytest.mark.parametrize(
    ("said", "left"),
    [
        (b"pinned/one", {"one", "three", "four"}),
        (b"pinned", {"one", "two", "three", "four"}),
        (b"released/four", {"three", "four"}),
        (b"released", {"three", "four"}),
    ],
)
def test_what_was_said_of_them_counts(
    mount: Mount, superseded: Superseded, said: bytes, left: set[str]
) -> None:
    """What is pinned stays; what is released is not taken from among the newest either."""
    say(mount, said)
    superseded.expire(SET, time.time_ns() + LATER_NS)
    assert there(mount) == left


@pytest.mark.parametrize("key", ["superseded_days = 0", "keep = 0"])
def test_the_policy_may_keep_them(path: Path, key: str) -> None:
    policy = on_server(path) / "policy.toml"
    policy.write_text(
        policy.read_text().replace({"s": "superseded_days = 30.0", "k": "keep = 2"}[key[0]], key)
    )
    with mounted_for_long(path, role=Role.SERVER) as mount:
        superseded = Superseded(mount.core, mount.fs.sets.guard)
        assert superseded.expire(SET, time.time_ns() + LATER_NS) == 0
        assert there(mount) == set(NAMES)


def test_a_set_that_changes_hands_is_left_alone(mount: Mount, superseded: Superseded) -> None:
    names = mount.core.store.names
    entry = names.read(SET)
    names.change(SET, entry, dataclasses.replace(entry, owner=owner_of(BOB)))
    assert superseded.expire(SET, time.time_ns() + LATER_NS) == 0


def test_a_family_counts_as_one(mount: Mount, superseded: Superseded) -> None:
    trio.run(mount.root.rename, "7.server.CK", "7.server.CK.old")

    async def more() -> None:
        await fill_set(mount, "7.server.CK", ALICE)

    trio.run(more)
    assert superseded.families() == [SET]
    assert superseded.expire(SET, time.time_ns() + LATER_NS) == 6
    assert (there(mount), there(mount, "7.server.CK.old")) == ({"three", "four"}, set())


# For room


def test_they_give_way_to_their_owner_the_oldest_first(mount: Mount, superseded: Superseded) -> None:
    assert superseded.give_way(owner_of(ALICE), 1) >= 45_000
    assert there(mount) == {"two", "three", "four"}
    assert superseded.give_way(owner_of(ALICE), 1) > 0
    assert superseded.give_way(owner_of(ALICE), 1) == 0
    assert there(mount) == {"three", "four"}
    assert in_trash(mount) == []


def test_those_of_others_do_not(mount: Mount, superseded: Superseded) -> None:
    assert superseded.give_way(owner_of(BOB), 1 << 40) == 0
    assert there(mount) == set(NAMES)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_where_not_even_a_note_fits_they_give_way_too(
    mount: Mount, superseded: Superseded, path: Path, number: int
) -> None:
    with mock.patch("ckfs.store.attributes.put", side_effect=OSError(number, "full")):
        assert superseded.give_way(owner_of(ALICE), 1 << 40) >= 55_000
    assert there(mount) == {"three", "four"}
    assert list((on_server(path) / "trash/2101").iterdir()) == []


def test_nor_a_directory_for_what_its_owner_removes(mount: Mount, superseded: Superseded) -> None:
    with mock.patch.object(Trash, "_new_spot", side_effect=OSError(errno.ENOSPC, "full")):
        assert superseded.give_way(owner_of(ALICE), 1 << 40) >= 55_000
    assert there(mount) == {"three", "four"}


@pytest.mark.trio
async def test_room_is_made_in_this_order(path: Path) -> None:
    """His trash, what is superseded of his, and if the store itself is full the trash of others."""
    async with mounted(path) as mount:
        await fill_set(mount, "8.server.CK", BOB)
        for process in (mount.alice, mount.bob):
            name = f"of {process.caller.uid}"
            await process.save(name, b"x" * 5000)
            await process.unlink(name)
        keeping, trash = mount.fs.sets.keeping, mount.core.store.trash

        async def left() -> tuple[list[bytes], set[bytes], set[bytes]]:
            of_sets = [set(await mount.root.list(name)) for name in ("7.server.CK", "8.server.CK")]
            items = [item.note.set_name for item in trash.items() if isinstance(item, Item)]
            return sorted(items), of_sets[0], of_sets[1]

        all_ = {name.encode() for name in NAMES}
        newest = {b"three", b"four"}
        assert await left() == ([b"of 2101", b"of 2102"], all_, all_)
        assert await keeping.make_room(owner_of(ALICE), errno.EDQUOT)
        assert await left() == ([b"of 2102"], all_, all_)
        assert await keeping.make_room(owner_of(ALICE), errno.EDQUOT)
        assert await left() == ([b"of 2102"], newest, all_)
        assert not await keeping.make_room(owner_of(ALICE), errno.EDQUOT)
        assert await left() == ([b"of 2102"], newest, all_)
        mount.core.nothing_to_give_until.clear()
        assert await keeping.make_room(owner_of(ALICE), errno.ENOSPC)
        assert await left() == ([], newest, all_)
        assert not await keeping.make_room(owner_of(ALICE), errno.ENOSPC)
        assert await left() == ([], newest, all_)
        assert await keeping.make_room(owner_of(BOB), errno.ENOSPC), (
            "one who has nothing keeps others from theirs"
        )
        assert await left() == ([], newest, newest)


# Races


def in_between(act: Callable[[], object]) -> Callable[..., Item]:
    """Let *act* happen after the last look and before the checkpoint is moved."""
    real = Trash.put

    def put(self: Trash, spot: Spot, note: Note) -> Item:
        act()
        return real(self, spot, note)

    return put


def test_one_that_has_become_one_of_the_newest_in_that_moment_is_back(
    mount: Mount, superseded: Superseded, path: Path
) -> None:
    before = trio.run(mount.alice.walk)

    def remove_newer() -> None:
        for name in NAMES[1:]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(lies_at(path, "7.server.CK") / name)

    with mock.patch.object(Trash, "put", in_between(remove_newer)):
        assert superseded.expire(SET, time.time_ns() + LATER_NS) == 0
    assert there(mount) == {"one"}
    assert trio.run(mount.alice.walk) == {
        name: seen for name, seen in before.items() if name == "7.server.CK" or "/one" in name
    }
    assert in_trash(mount) == []


def test_so_is_one_that_is_pinned_in_that_moment(mount: Mount, superseded: Superseded, path: Path) -> None:
    with mock.patch.object(Trash, "put", in_between(lambda: say(mount, b"pinned/one"))):
        superseded.expire(SET, time.time_ns() + LATER_NS)
    assert there(mount) == {"one", "three", "four"}


def test_another_that_has_its_name_by_then_is_not_taken(
    mount: Mount, superseded: Superseded, path: Path
) -> None:
    place = lies_at(path, "7.server.CK")

    def replace() -> None:
        if not (place / "aside").exists():
            os.rename(place / "one", place / "aside")
            os.mkdir(place / "one")
            os.chown(place / "one", 2101, 2101)

    with mock.patch.object(Trash, "put", in_between(replace)):
        superseded.expire(SET, time.time_ns() + LATER_NS)
    assert there(mount) == {"aside", "one", "three", "four"}


@pytest.mark.parametrize("for_room", [False, True], ids=["time", "room"])
def test_a_death_at_any_step_costs_no_kept_checkpoint(
    template: Path, directory: Path, failing: Failing, for_room: bool
) -> None:
    changing = {"rename", "unlink", "rmdir", "mkdir", "setxattr", "removexattr", "symlink", "link", "chmod"}
    steps: list[int] = []
    for at in [1 << 30, *range(1, 10_000)]:
        if steps and at not in steps:
            if at > steps[-1]:
                return
            continue
        path = directory / str(at)
        copied(template, path)
        with mounted_for_long(path, role=Role.SERVER) as mount:
            one = Superseded(mount.core, mount.fs.sets.guard)
            with failing.armed(at, Killed), contextlib.suppress(Killed):
                if for_room:
                    one.give_way(owner_of(ALICE), 1 << 40)
                else:
                    one.expire(SET, time.time_ns() + LATER_NS)
            steps = steps or [number for number, what in enumerate(failing.log, 1) if what in changing]
        with mounted_for_long(path, node="b") as after:
            seen = trio.run(after.alice.walk)
            for name in ("three", "four"):
                file = seen[f"7.server.CK/{name}"]
                assert (file.state, file.content) == (State.COMPLETE, name.encode() * 5000), at
            one = Superseded(after.core, after.fs.sets.guard)
            one.expire(SET, time.time_ns() + LATER_NS)
            assert there(after) == {"three", "four"}, at
            if not for_room:
                assert sorted(in_trash(after)) == [b"one", b"two"], at
    raise AssertionError("it never ends")
