"""fsck in process: what it finds of each damage, what it mends, and that it changes nothing unless it is asked to."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from ckfs.fs.left import state_of
from ckfs.fs.liveness import registration_here
from ckfs.model import Owner, State
from ckfs.names import Gid, MountId, SetName, Uid
from ckfs.store import record, removed
from ckfs.store.checking.check import check
from ckfs.store.checking.findings import Kind
from ckfs.store.entries import encode
from ckfs.store.layout import open_store
from ckfs.store.mounts import encode as mount_line
from ckfs.store.spots import Spot
from ckfs.store.writers import mark_of
from tests.fs.cores import ALICE, BOB, Process, Seen, copied, keeper_of, lies_at, mounted, new_store
from tests.fs.damage import (
    ATTRIBUTE,
    CONTENTS,
    DAMAGES,
    GONE,
    IMAGE,
    JOB,
    NOTE,
    OLD,
    SINGLE,
    TARGET,
    Damage,
    all_bytes,
    codes,
    dump,
    entry_of,
    fsck,
    is_squashed,
    item,
    left,
    left_by_mount,
    listing,
    put,
    record_of,
    single,
    unclaimed,
    whole_store,
    without_attributes,
)
from tests.support.nfs import on_client, on_server

pytestmark = pytest.mark.root

ALICES = Owner(ALICE.uid, ALICE.gid)
BOBS = Owner(BOB.uid, BOB.gid)
DEEP = 3000
"""More directories than the descriptors, or the calls of Python, that a process has by default."""


@pytest.fixture(scope="module")
def template(file_system: Path) -> Path:
    return whole_store(file_system)


@pytest.fixture
def store(template: Path, directory: Path) -> Path:
    """Where root may damage it."""
    return copied(template, on_server(directory) / "store")


def served(store: Path) -> dict[str, Seen]:
    """What root finds on a mount, of names that are text."""

    async def walk() -> dict[str, Seen]:
        async with mounted(on_client(store)) as mount:
            mount.core.reads_partial = True
            return await _walked(mount.root)

    return trio.run(walk)


async def _walked(process: Process) -> dict[str, Seen]:
    found: dict[str, Seen] = {}
    for name in await process.list():
        if not name.isascii() or b"\x1b" in name:
            continue
        known = (await process.stat(name.decode())).record
        content = await process.load(name.decode()) if known.is_regular else b""
        found[name.decode()] = Seen(known.mode, known.ino, known.state, content)
        if known.is_directory:
            found |= await process.walk(name.decode())
    return found


def repair(store: Path) -> None:
    """Nothing is left of what can be mended; where no host may give files away, by who may on the storage server."""
    assert left(fsck(store, repair=True)) == [] or is_squashed(store)
    assert left(fsck(store, repair=True, by_admin=True)) == []


def mended(store: Path) -> dict[str, Seen]:
    """Let fsck mend the store. Returns what a mount serves then, with nothing left to find and nothing lost."""
    before = all_bytes(store)
    repair(store)
    assert codes(fsck(store)) == set()
    assert before <= all_bytes(store)
    return served(store)


# Each kind of damage


@pytest.mark.parametrize("damage", [pytest.param(damage, marks=damage.marks) for damage in DAMAGES], ids=str)
def test_what_is_damaged_is_found_and_mended(damage: Damage, store: Path) -> None:
    damage.act(store)
    before, contents = listing(store), all_bytes(store)
    given_away = damage.given_away(store)
    hidden = {"unreadable"} if given_away else set()
    """What root's files and those of others may keep from a host."""
    assert codes(fsck(store), notes=damage.notes) - hidden == damage.finds
    assert listing(store) == before, "looking has changed something"
    fsck(store, repair=True)
    assert codes(fsck(store), notes=damage.notes) - hidden == damage.stays | given_away
    assert contents <= all_bytes(store), "content is lost"


def test_every_kind_is_shown_by_a_damage() -> None:
    found_elsewhere = {
        Kind.UNREADABLE.code,  # a store that fails: tests/mounted/test_fsck_command.py
        Kind.NAME_UNREACHED.code,  # a further store: test_fsck_further.py
    }
    assert {kind.code for kind in Kind} - {
        code for damage in DAMAGES for code in damage.finds
    } == found_elsewhere


@pytest.mark.long_on_nfs
@pytest.mark.parametrize(
    "damage", [damage for damage in DAMAGES if not damage.stays and "name-lost" not in damage.finds], ids=str
)
def test_a_mount_serves_everything_afterwards(damage: Damage, template: Path, store: Path) -> None:
    damage.act(store)
    there = {content for content in all_bytes(store) if content in CONTENTS - {OLD}}
    assert there == CONTENTS - {OLD}
    found = mended(store)
    assert there <= {seen.content for seen in found.values()}


def test_the_table_in_the_documents_is_that_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs/store.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| `[a-z-]+` \| (error|warning|note) \|", line)]
    assert rows == [
        f"| `{kind.code}` | {kind.severity.value} | {kind.sentence} | {kind.mending or '–'} |"  # noqa: RUF001 - as in the page
        for kind in Kind
    ]


# What is right


def test_nothing_is_found_in_a_store_with_all_that_is_legal(store: Path) -> None:
    assert fsck(store) == []
    before = listing(store)
    assert fsck(store, repair=True) == []
    assert listing(store) == before


def test_a_new_store_has_no_findings(directory: Path) -> None:
    assert fsck(new_store(directory)) == []


@pytest.fixture
def deep(store: Path) -> Iterator[Path]:
    """The store, which is removed here whatever becomes of the test: pytest's own way ends at a depth of a thousand."""
    try:
        yield store
    finally:
        subprocess.run(["rm", "-rf", store], check=True)


@pytest.mark.long_on_nfs
def test_trees_may_be_of_any_depth(deep: Path) -> None:
    """Made beside the mount, without records at the end: no path is as long as this one."""
    fd = os.open(dump(deep), os.O_PATH)
    known = record_of(dump(deep) / "tree")
    for _ in range(DEEP):
        os.mkdir("d" * 100, 0o700, dir_fd=fd)
        inner = os.open("d" * 100, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.fchown(inner, ALICE.uid, ALICE.gid)
        os.setxattr(inner, ATTRIBUTE, record.encode(replace(known, ino=record.new_inode())))
        os.close(fd)
        fd = inner
    assert fsck(deep) == []
    os.removexattr(fd, ATTRIBUTE)
    assert codes(fsck(deep)) == {"record-missing"}
    assert len(fsck(deep, repair=True)) == 1
    assert record.decode(os.getxattr(fd, ATTRIBUTE)) is not None
    os.close(fd)
    assert fsck(deep) == []


# Mounts


def register(store: Path) -> MountId:
    """This process, as a mount that lives."""
    living = registration_here(b"n1")
    (store / "mounts" / os.fsdecode(living.id)).write_bytes(mount_line(living))
    return living.id


def test_an_image_that_a_living_mount_writes_is_left_alone(store: Path) -> None:
    left_by_mount(store, register(store))
    os.setxattr(dump(store) / "image", mark_of(GONE), b"1")
    before = listing(store)
    assert fsck(store, repair=True) == []
    assert listing(store) == before


def test_an_image_that_is_closed_and_not_yet_said_to_be_complete_is_left_to_mounts(store: Path) -> None:
    put(dump(store) / "image", replace(record_of(dump(store) / "image"), state=State.WRITING))
    before = listing(store)
    assert fsck(store, repair=True) == []
    assert listing(store) == before


def said_by_mount(store: Path) -> State:
    """What a mount shows as the state of dump/image."""

    async def ask() -> State:
        async with mounted(on_client(store)) as mount:
            core = mount.core
            spot = Spot(ALICES, (b"users", b"%d" % ALICE.uid, b"dump", b"image"))
            found = core.store.door.examine(spot)
            return state_of(core.store.door, spot, found, b"image", core.policy, core.fate)

    return trio.run(ask)


@pytest.mark.parametrize("is_synced", [False, True])
def test_what_a_mount_that_is_gone_was_writing_is_what_a_mount_says_of_it(
    is_synced: bool, store: Path
) -> None:
    path = left_by_mount(store)
    if is_synced:
        status = path.stat()
        put(path, replace(record_of(path), synced=(status.st_size, status.st_mtime_ns)))
    said = said_by_mount(copied(store, store.with_name("other")))
    assert codes(fsck(store, repair=True), notes=True) == {"image-left"}
    assert record_of(path).state is said is (State.COMPLETE if is_synced else State.PARTIAL)
    assert not any(name.startswith("user.ckfs.w.") for name in os.listxattr(path))
    assert path.read_bytes() == IMAGE


def test_what_becomes_complete_is_the_newest_of_its_family(store: Path) -> None:
    path = lies_at(store, "8.server.CK") / "image"
    other = copied(path, path.with_name("later"))
    of_the_future = 1 << 62
    put(other, replace(record_of(other), ino=record.new_inode(), completed=of_the_future))
    status = path.stat()
    put(path, replace(record_of(path), state=State.WRITING, synced=(status.st_size, status.st_mtime_ns)))
    os.setxattr(path, mark_of(GONE), b"1")
    fsck(store, repair=True)
    assert (record_of(path).state, record_of(path).completed) == (State.COMPLETE, of_the_future + 1)


def test_a_mount_keeps_house_after_what_was_in_its_way_is_moved(store: Path) -> None:
    (store / "mounts/housekeeper.7").write_bytes(b"")
    fsck(store, repair=True)
    with contextlib.closing(open_store(str(on_client(store)), keeper_of(store))) as opened:
        assert opened.mounts.keep_house(GONE, lambda mount: True)


# Backups


def test_all_attributes_lost(store: Path) -> None:
    """Owners come from the uids, modes from the files, numbers of tops from names/, and states are unknown."""
    before = served(store)
    without_attributes(store)
    after = mended(store)
    assert after.keys() == before.keys()
    tops = {name for name in before if "/" not in name}
    assert {name: after[name].ino for name in tops} == {name: before[name].ino for name in tops}
    images = {"dump/image", "dump/tree/one", "dump/tree/two", "single", "8.server.CK/image"}
    assert {after[name].state for name in images} == {State.UNKNOWN}
    assert all(after[name].content == before[name].content for name in images)
    assert {name: stat.S_IMODE(after[name].mode) for name in ("dump", "dump/image")} == {
        "dump": 0o700,
        "dump/image": 0o600,
    }
    assert record_of(dump(store) / "image").uid == ALICE.uid
    assert record_of(single(store)).uid == BOB.uid
    assert after["dump/link"].content == TARGET
    assert after["dump/same"].ino == after["dump/tree/one"].ino


def test_all_attributes_and_all_names_lost(store: Path) -> None:
    before = served(store)
    without_attributes(store)
    for path in (store / "names").iterdir():
        path.unlink()
    after = mended(store)
    assert after.keys() == before.keys()
    assert entry_of(store, "dump").owner == ALICES
    assert entry_of(store, "single").owner == BOBS
    assert entry_of(store, "8.server.CK").owner == ALICES
    assert entry_of(store, "7.server.CK").owner is None


def test_a_mount_gave_records_before_fsck_came(store: Path) -> None:
    without_attributes(store)
    before = served(store)
    assert mended(store) == before


def test_a_file_whose_record_is_lost_is_its_sets_owners(store: Path) -> None:
    """Restored as root, and without attributes."""
    os.removexattr(dump(store) / "image", ATTRIBUTE)
    os.chown(dump(store) / "image", 0, 0)
    (dump(store) / "image").chmod(0o440)
    mended(store)
    found = record_of(dump(store) / "image")
    assert (found.uid, found.gid, stat.S_IMODE(found.mode)) == (ALICE.uid, ALICE.gid, 0o640)


# Names


def test_a_name_that_is_taken_is_not_given_twice(store: Path) -> None:
    """A place of Bob's that says a name which is Alice's."""
    copied(single(store), single(store).with_name("dump"))
    found = mended(store)
    assert found["dump/image"].content == IMAGE
    other = next(name for name in found if name.startswith("dump~"))
    assert found[other].content == SINGLE
    assert entry_of(store, other).owner == BOBS


def test_a_place_beside_the_name_gets_the_name(store: Path) -> None:
    (store / "names/dump").unlink()
    dump(store).rename(dump(store).with_name(f"dump~{record_of(dump(store)).ino:x}"))
    assert mended(store)["dump/image"].content == IMAGE


def test_what_looks_like_a_copy_is_one_only_while_its_set_is_there(store: Path) -> None:
    """A set that has been copied once lies at such a place for ever."""
    ino = record_of(dump(store)).ino
    (store / "names/dump").unlink()
    dump(store).rename(dump(store).with_name(f"dump~{ino:x}~copy"))
    assert mended(store)["dump/image"].content == IMAGE


def test_the_owner_is_who_is_left_in_staging(store: Path) -> None:
    """Given to a user, and the mount died when the old link was out of names/: it says more than the uid."""
    entry = replace(entry_of(store, "7.server.CK"), owner=ALICES)
    (store / "names/7.server.CK").unlink()
    os.symlink(encode(entry), os.fsencode(store / "staging/cleared-0123456789abcdef"))
    found = mended(store)
    assert found["7.server.CK/image"].content == JOB
    assert entry_of(store, "7.server.CK").owner == ALICES


def test_the_owner_is_whom_the_note_of_a_restored_set_names(store: Path) -> None:
    """A set of root's own, which by its name and uid would be nobody's."""
    entry = entry_of(store, "7.server.CK")
    root = Owner(Uid(0), Gid(0))
    note = removed.Note(Uid(0), 1, b"a", b"", SetName(b"7.server.CK"), b"", root, entry.ino)
    os.setxattr(unclaimed(store), NOTE, removed.encode(note))
    (store / "names/7.server.CK").unlink()
    mended(store)
    assert entry_of(store, "7.server.CK").owner == root


def test_of_two_names_of_one_place_the_new_one_stays(store: Path) -> None:
    os.link(store / "names/dump", store / "names/dump2", follow_symlinks=False)
    assert "dump" not in mended(store)


def test_an_entry_that_cannot_be_read_is_kept_for_an_admin(store: Path) -> None:
    (store / "names/dump").unlink()
    os.symlink("1:zz:2101", store / "names/dump")
    mended(store)
    assert [os.readlink(path) for path in (store / "staging").iterdir()] == ["1:zz:2101"]


def test_a_name_without_a_place_is_not_taken_away_while_part_of_a_copy_is_there(store: Path) -> None:
    ino = entry_of(store, "dump").ino
    dump(store).rename(dump(store).with_name(f"dump~{ino:x}~copy"))
    assert codes(fsck(store, repair=True)) == {"name-lost"}
    assert entry_of(store, "dump").ino == ino


def test_nothing_is_named_while_a_later_version_may_have_named_it(store: Path) -> None:
    os.symlink("2:whatever", store / "names/later")
    (store / "names/dump").unlink()
    fsck(store, repair=True)
    assert not os.path.lexists(store / "names/dump")


# Numbers


def test_the_one_that_a_name_means_keeps_its_number(store: Path) -> None:
    ino = entry_of(store, "dump").ino
    copied(dump(store), dump(store).with_name("a copy"))
    found = mended(store)
    assert found["dump"].ino == ino
    assert (
        len({seen.ino for seen in found.values()}) == len(found) - 3
    )  # links: dump/same, in the copy too, and double


def test_the_older_file_keeps_its_number(store: Path) -> None:
    ino = record_of(dump(store) / "image").ino
    copied(dump(store) / "image", dump(store) / "another")
    mended(store)
    assert record_of(dump(store) / "image").ino == ino
    assert record_of(dump(store) / "another").ino != ino


def test_two_sets_of_one_file_share_its_number(store: Path) -> None:
    found = served(store)
    assert found["single"].ino == found["double"].ino
    copied(single(store), single(store).with_name("third"))
    after = mended(store)
    assert after["single"].ino == after["double"].ino == found["single"].ino != after["third"].ino


# Whatever is kept


def test_what_an_image_was_is_kept_where_a_record_of_its_kind_cannot_be_read(store: Path) -> None:
    path = dump(store) / "image"
    raw = record.encode(record_of(path)).replace(b"1;", b"3;", 1)
    os.setxattr(path, ATTRIBUTE, raw)
    fsck(store, repair=True)
    assert os.getxattr(path, ATTRIBUTE) == raw


def test_the_trash_can_be_restored_afterwards(store: Path) -> None:
    os.removexattr(item(store), ATTRIBUTE)
    os.chown(item(store), 0, 0)
    repair(store)

    async def restore() -> bytes:
        async with mounted(on_client(store)) as mount:
            for entry in mount.core.store.trash.items():
                assert isinstance(entry, removed.Item)
                mount.core.store.trash.restore(entry)
            return await mount.alice.load("dump/old")

    assert trio.run(restore) == OLD


def test_a_file_that_is_just_being_made_is_no_finding(store: Path) -> None:
    """What is wrong at the first look alone does not count."""
    path, name = dump(store) / "image", store / "names/single"
    raw, target = os.getxattr(path, ATTRIBUTE), os.readlink(name)
    os.removexattr(path, ATTRIBUTE)
    name.unlink()

    def others_go_on() -> None:
        os.setxattr(path, ATTRIBUTE, raw)
        if not os.path.lexists(name):
            os.symlink(target, name)

    assert fsck(store, repair=True, pause=others_go_on) == []


def test_progress_is_told_of_sets(store: Path) -> None:
    told: list[tuple[int, int]] = []
    list(
        check(
            str(on_client(store)),
            repair=False,
            pause=lambda: None,
            progress=lambda *said: told.append(said),
            has_died=lambda one: False,
        )
    )
    count = len(list((store / "names").iterdir()))
    assert told[0] == (0, count)
    assert told[-1] == (count, count)
    assert told == sorted(told)
