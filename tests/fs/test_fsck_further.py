"""fsck of a store with further ones: what lies there is looked at, and mended, as what lies at home."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from ckfs.model import Record, State
from ckfs.names import SetName
from ckfs.store import removed
from ckfs.store.checking.findings import Kind
from ckfs.store.entries import decode
from ckfs.store.handover import Copying
from ckfs.store.layout import open_store
from ckfs.store.record import ATTRIBUTE
from ckfs.store.record import decode as record_of
from ckfs.store.record import encode as encoded
from ckfs.store.writers import mark_of
from tests.fs.cores import ALICE, BOB, keeper_of, lies_at, mounted
from tests.fs.damage import GONE, fsck, left
from tests.fs.test_further_stores import Stores
from tests.fs.test_further_stores import stores as stores  # a fixture
from tests.support.further import name_stores, table

pytestmark = pytest.mark.root

SET, INNER, IMAGE, REMOVED = "set", "set/inner", "set/inner/image", "set/removed"
CONTENT = b"image" * 1000
ALICES = f"users/{ALICE.uid}"


@pytest.fixture
def filled(stores: Stores) -> Stores:
    """A set at home, and one in the further store, of which an image lies in the trash there."""

    async def fill() -> None:
        async with mounted(stores.home, node="node1") as far, mounted(stores.home, node="login1") as near:
            await near.alice.mkdir("near")
            await near.alice.save("near/image", CONTENT)
            await far.alice.mkdir(SET)
            await far.alice.mkdir(INNER)
            await far.alice.save(IMAGE, CONTENT)
            await far.alice.save(REMOVED, CONTENT)
            await far.alice.unlink(REMOVED)

    trio.run(fill)
    return stores


def there(stores: Stores, path: str = SET) -> Path:
    return stores.fast.path / ALICES / path


def served(stores: Stores, name: str = IMAGE) -> bytes:
    async def read() -> bytes:
        async with mounted(stores.home, node="node1") as far:
            far.core.reads_partial = True
            return await far.alice.load(name)

    return trio.run(read)


def listing(top: Path) -> set[tuple[str, int, int, int]]:
    return {
        (str(path.relative_to(top)), status.st_uid, status.st_mode, status.st_ctime_ns)
        for path in top.rglob("*")
        for status in [path.lstat()]
    }


def record(path: Path) -> Record:
    known = record_of(os.getxattr(path, ATTRIBUTE))
    assert known is not None
    return known


def no_name(stores: Stores) -> None:
    (stores.server / "names" / SET).unlink()


def no_place(stores: Stores) -> None:
    shutil.rmtree(there(stores))


def another_number(stores: Stores) -> None:
    name = stores.server / "names" / SET
    entry = os.readlink(name).replace(f"{record(there(stores)).ino:x}", "abcdef")
    name.unlink()
    name.symlink_to(entry)


def moved_by_hand(stores: Stores) -> None:
    there(stores).rename(there(stores, "elsewhere"))


def no_record(stores: Stores) -> None:
    os.removexattr(there(stores, IMAGE), ATTRIBUTE)


def damaged_record(stores: Stores) -> None:
    os.setxattr(there(stores, INNER), ATTRIBUTE, b"garbage")


def another_owner(stores: Stores) -> None:
    os.chown(there(stores, IMAGE), BOB.uid, BOB.gid)


def closed(stores: Stores) -> None:
    there(stores, IMAGE).chmod(0)


def open_to_all(stores: Stores) -> None:
    there(stores, "").chmod(0o755)


def a_stranger(stores: Stores) -> None:
    os.mkfifo(there(stores, "set/fifo"))


def left_by_a_mount(stores: Stores) -> None:
    image = there(stores, IMAGE)
    os.setxattr(image, ATTRIBUTE, encoded(record(image).with_(state=State.WRITING)))
    os.setxattr(image, mark_of(GONE), b"1")


def unknown_in_the_trash(stores: Stores) -> None:
    (item,) = stores.fast.trashed(ALICE.uid)
    os.removexattr(item, removed.ATTRIBUTE)


def copied_by_hand(stores: Stores) -> None:
    """With all that belongs to it: so it has the number of what is at home."""
    home = lies_at(stores.home, "near") / "image"
    shutil.copy2(home, there(stores, "set/copy"))
    os.chown(there(stores, "set/copy"), ALICE.uid, ALICE.gid)


DAMAGES: list[tuple[Callable[[Stores], None], str]] = [
    (no_name, "place-orphan"),
    (no_place, "name-lost"),
    (another_number, "name-number"),
    (moved_by_hand, "name-misplaced"),
    (no_record, "record-missing"),
    (damaged_record, "record-damaged"),
    (another_owner, "owner"),
    (closed, "mode"),
    (open_to_all, "user-mode"),
    (a_stranger, "special"),
    (left_by_a_mount, "image-left"),
    (unknown_in_the_trash, "trash-unknown"),
    (copied_by_hand, "number-shared"),
]
STAY = {"special", "trash-unknown"}
"""What fsck tells, and leaves as it is."""


def test_nothing_is_found_where_nothing_is_wrong(filled: Stores) -> None:
    assert fsck(filled.server) == []


@pytest.mark.parametrize(("act", "code"), DAMAGES, ids=[code for _, code in DAMAGES])
def test_each_damage_is_found_there_and_mended(
    filled: Stores, act: Callable[[Stores], None], code: str
) -> None:
    act(filled)
    before = listing(filled.fast.path), listing(filled.server / "names")
    (finding,) = fsck(filled.server)
    assert finding.kind.code == code
    assert finding.where.startswith(b"names/" if code.startswith("name-") else b"fast:")
    assert (listing(filled.fast.path), listing(filled.server / "names")) == before, (
        "looking changed something"
    )
    fsck(filled.server, repair=True)
    assert {left.kind.code for left in fsck(filled.server)} == {code} & STAY
    if code != "name-lost":
        assert served(filled) == CONTENT


def test_a_set_that_gets_its_name_again_is_where_it_lies(filled: Stores) -> None:
    no_name(filled)
    fsck(filled.server, repair=True)
    entry = decode(filled.entry(SET))
    assert (entry.volume, entry.owner, entry.mode & 0o777) == (
        filled.fast.id.encode(),
        entry.stored,
        0o755,
    ), "hosts that do not reach it see what it is"


def test_what_this_host_does_not_reach_is_taken_for_right_and_noted(filled: Stores, tmp_path: Path) -> None:
    name_stores(filled.server, table("fast", filled.fast, path=tmp_path / "away"))
    (finding,) = fsck(filled.server, repair=True)
    assert (finding.kind, finding.where, finding.detail) == (Kind.NAME_UNREACHED, b"names/set", "fast")
    assert left([finding]) == []
    name_stores(filled.server, table("fast", filled.fast))
    assert fsck(filled.server) == []


def test_of_a_further_store_that_has_lost_all_nothing_is_taken_away(filled: Stores) -> None:
    users = filled.fast.path / "users"
    users.rename(filled.fast.path / "elsewhere")
    before = filled.entry(SET)
    found = fsck(filled.server, repair=True)
    assert {(one.kind, one.where) for one in found} == {
        (Kind.UNREADABLE, b"fast:users"),
        (Kind.NAME_UNREACHED, b"names/set"),
    }
    assert filled.entry(SET) == before
    (filled.fast.path / "elsewhere").rename(users)
    assert fsck(filled.server) == []


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_set_that_is_just_being_moved_is_not_damaged(filled: Stores, steps: int) -> None:
    """Its files are there twice, with the same numbers."""
    with contextlib.closing(open_store(str(filled.home), keeper_of(filled.home))) as opened:
        name = SetName(b"near")
        entry = opened.names.read(name)
        move = Copying(opened, name, entry, entry.stored, filled.fast.id.encode())
        with contextlib.closing(move):
            move.begin()
            assert all(move.step() for _ in range(steps))
            assert [one for one in fsck(filled.server) if one.kind.counts] == []
    assert fsck(filled.server) == []
