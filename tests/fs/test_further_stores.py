"""Further stores: files of a store's sets in other file systems, which only some hosts reach."""

from __future__ import annotations

import errno
import logging
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ckfs.errors import Exists, FsError, OtherOwner, StoreUnusable, Unreached
from ckfs.fs.metadata import Changes
from ckfs.fs.reaching import Reaching
from ckfs.ledger.book import Book
from ckfs.model import Owner, State
from ckfs.names import SetName, Uid
from ckfs.policy.enforcing import Reserve
from ckfs.policy.quota import Amount
from ckfs.store import counting, layout
from ckfs.store.entries import decode
from ckfs.store.layout import open_store
from ckfs.store.removed import Item
from ckfs.store.spots import HOME
from tests.fs.cores import ALICE, Mount, charged, keeper_of, mounted
from tests.support.further import Further, make_further, name_stores, table
from tests.support.nfs import on_server

pytestmark = [pytest.mark.root, pytest.mark.trio]

SET = "1.server.CK"
FAR, NEAR = "node1", "login1"
"""Nodes: the one reaches the further store, the other does not."""
IMAGE = b"image" * 1000


@dataclass(frozen=True)
class Stores:
    home: Path
    fast: Further

    @property
    def server(self) -> Path:
        """The home, where root may look into it."""
        return on_server(self.home)

    def entry(self, name: str) -> bytes:
        return os.readlink(os.fsencode(self.server / "names" / name))


@pytest.fixture
def stores(path: Path, tmp_path: Path) -> Stores:
    """A store, and a further one that only nodes reach."""
    fast = make_further(path, tmp_path / "fast")
    name_stores(on_server(path), table("fast", fast, hosts=("node*",)))
    return Stores(path, fast)


def with_policy(mount: Mount, reserve: Reserve) -> None:
    policy = mount.core.policy
    mount.core.policy = replace(policy, quota=replace(policy.quota, reserve=reserve))


async def refused(caplog: pytest.LogCaptureFixture, call: object, number: int = errno.EHOSTUNREACH) -> None:
    with pytest.raises(FsError) as raised:
        await call  # type: ignore[misc]  # a coroutine
    assert raised.value.errno == number


# Where new sets go


async def test_a_new_set_goes_to_the_first_store_that_its_host_reaches(stores: Stores) -> None:
    async with mounted(stores.home, node=FAR) as far, mounted(stores.home, node=NEAR) as near:
        await far.alice.mkdir("there")
        await near.alice.mkdir("here")
    assert stores.fast.kept(ALICE.uid) == {"there"}
    assert os.listdir(stores.server / "users" / str(ALICE.uid)) == ["here"]
    assert decode(stores.entry("there")).volume == stores.fast.id.encode()
    assert stores.entry("here").startswith(b"1:"), "older versions read what lies at home"


async def test_files_and_symlinks_at_the_top_go_there_too(stores: Stores) -> None:
    async with mounted(stores.home, node=FAR) as far:
        await far.alice.save("file", IMAGE)
        await far.alice.symlink("link", b"file")
        assert await far.alice.load("file") == IMAGE
    assert stores.fast.kept(ALICE.uid) == {"file", "link"}
    assert os.listdir(stores.fast.path / "staging") == []


async def test_all_in_a_set_lies_where_the_set_lies(stores: Stores) -> None:
    async with mounted(stores.home, node=FAR) as far:
        await far.alice.mkdir("set")
        await far.alice.mkdir("set/inner")
        await far.alice.save("set/inner/image", IMAGE)
        await far.alice.symlink("set/link", b"inner/image")
        await far.alice.link("set/inner/image", "set/other")
        await far.alice.rename("set/other", "set/third")
        assert await far.alice.load("set/third") == IMAGE
    assert (stores.fast.path / "users" / str(ALICE.uid) / "set/inner/image").read_bytes() == IMAGE


async def test_the_order_is_that_of_the_policy(stores: Stores, tmp_path: Path) -> None:
    slow = make_further(stores.home, tmp_path / "slow")
    name_stores(stores.server, table("slow", slow), table("fast", stores.fast, hosts=("node*",)))
    async with mounted(stores.home, node=FAR) as far:
        await far.alice.mkdir("set")
    assert (slow.kept(ALICE.uid), stores.fast.kept(ALICE.uid)) == ({"set"}, set())


async def test_a_store_that_has_only_its_reserve_is_passed_over(stores: Stores, tmp_path: Path) -> None:
    async with mounted(stores.home, node=FAR) as far:
        with_policy(far, Reserve(bytes=1 << 60))
        await far.root.mkdir(SET)
    assert stores.fast.kept(keeper_of(stores.home).uid) == set()


async def test_one_that_turns_out_to_have_no_room_is_passed_over(stores: Stores) -> None:
    async with mounted(stores.home, node=FAR) as far:
        make = far.core.store.door.make_directory

        def full(spot: object, build: object) -> object:
            if getattr(spot, "volume", HOME) != HOME:
                raise OSError(errno.EDQUOT, "quota exceeded")
            return make(spot, build)  # type: ignore[arg-type]  # as it was given

        far.core.store.door.make_directory = full  # type: ignore[method-assign, assignment]  # the store fails on purpose
        await far.alice.mkdir("set")
    assert os.listdir(stores.server / "users" / str(ALICE.uid)) == ["set"]


async def test_a_name_exists_once_wherever_its_set_lies(stores: Stores) -> None:
    async with mounted(stores.home, node=FAR) as far, mounted(stores.home, node=NEAR) as near:
        await far.alice.mkdir("set")
        with pytest.raises(Exists):
            await near.alice.mkdir("set")
        with pytest.raises(Exists):
            await near.alice.create("set", flags=os.O_RDWR | os.O_EXCL)


# Out of reach


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING)
    return caplog


async def test_a_set_out_of_reach_is_listed_and_looked_at(stores: Stores) -> None:
    async with mounted(stores.home, node=FAR) as far, mounted(stores.home, node=NEAR) as near:
        await far.alice.mkdir("set", 0o750)
        await far.alice.save("file", IMAGE)
        there = await far.alice.stat("set")
        listed = await near.alice.list()
        assert set(listed) == {b"set", b"file"}
        seen = await near.alice.stat("set")
        for found in (listed[b"set"], seen):
            record = found.record
            assert (record.ino, record.uid, record.gid) == (there.record.ino, ALICE.uid, ALICE.gid)
            assert record.mode == there.record.mode == stat.S_IFDIR | 0o750
        assert stat.S_ISREG((await near.alice.stat("file")).record.mode)


async def test_what_is_in_it_is_ehostunreach_with_one_line_that_says_who_reaches_it(
    stores: Stores, lines: pytest.LogCaptureFixture
) -> None:
    async with mounted(stores.home, node=FAR) as far, mounted(stores.home, node=NEAR) as near:
        await far.root.mkdir(SET)
        await far.root.save(f"{SET}/image", IMAGE)
        lines.clear()
        await near.root.list()
        assert lines.messages == [], "looking is no reason for a line"
        for _ in range(3):
            await refused(lines, near.root.list(SET))
            await refused(lines, near.root.load(f"{SET}/image"))
            await refused(lines, near.root.save(f"{SET}/other", IMAGE))
    said = [line for line in lines.messages if SET in line]
    assert said == [
        f"set {SET} lies in the further store fast ({stores.fast.path}), which this host does not reach"
        " (it is not one of its hosts): reached by node*"
    ]


async def test_nobody_changes_what_he_does_not_reach(stores: Stores, lines: pytest.LogCaptureFixture) -> None:
    async with mounted(stores.home, node=FAR) as far, mounted(stores.home, node=NEAR) as near:
        await far.alice.mkdir("set")
        await far.alice.save("file", IMAGE)
        await near.alice.mkdir("empty")
        before = stores.entry("set")
        for call in (
            near.alice.rmdir("set"),
            near.alice.unlink("file"),
            near.alice.rename("set", "other"),
            near.alice.rename("empty", "set"),
            near.alice.setattr("set", Changes(mode=0o700)),
            near.root.setattr("set", Changes(uid=Uid(2102))),
            near.alice.load("file"),
            near.alice.append("file", b"more"),
        ):
            await refused(lines, call)
        assert stores.entry("set") == before
        assert set(await far.alice.list()) == {b"set", b"file", b"empty"}
        assert await far.alice.load("file") == IMAGE


async def test_it_is_there_again_as_soon_as_its_host_reaches_it(stores: Stores, tmp_path: Path) -> None:
    away = tmp_path / "away"
    async with mounted(stores.home, node=FAR) as far:
        await far.alice.mkdir("set")
        await far.alice.save("set/image", IMAGE)
    stores.fast.path.rename(away)
    async with mounted(stores.home, node=FAR) as far:
        with pytest.raises(Unreached):
            await far.alice.list("set")
        await far.alice.mkdir("here")
        away.rename(stores.fast.path)
        far.core.store.volumes.look(stores.fast.id.encode())
        assert await far.alice.load("set/image") == IMAGE
        stores.fast.path.rename(away)  # and goes, while it is mounted
        far.core.store.volumes.look(stores.fast.id.encode())
        with pytest.raises(Unreached):
            await far.alice.load("set/image")
        assert set(await far.alice.list()) == {b"set", b"here"}
    away.rename(stores.fast.path)
    assert os.listdir(stores.server / "users" / str(ALICE.uid)) == ["here"]


# Ids


def not_reached(home: Path) -> str:
    store = open_store(str(home), keeper_of(home), read_only=True)
    try:
        (volume,) = store.volumes.missed()
        return volume.why
    finally:
        store.close()


async def test_a_bare_mount_point_is_not_the_store(stores: Stores, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    name_stores(stores.server, table("fast", stores.fast, path=bare))
    assert "not a ckfs store" in not_reached(stores.home)
    assert list(bare.iterdir()) == []


async def test_another_further_store_is_not_the_store(stores: Stores, tmp_path: Path) -> None:
    other = make_further(stores.home, tmp_path / "other")
    name_stores(stores.server, table("fast", stores.fast, path=other.path))
    assert f"this is the further store {other.id}" in not_reached(stores.home)


async def test_one_of_another_home_is_not_the_store(stores: Stores, tmp_path: Path) -> None:
    assert layout.initialise(str(tmp_path / "second"))
    theirs = make_further(tmp_path / "second", tmp_path / "theirs")
    name_stores(stores.server, table("fast", theirs))
    assert "this is a further store of another store" in not_reached(stores.home)


async def test_a_store_by_itself_is_no_further_store(stores: Stores, tmp_path: Path) -> None:
    assert layout.initialise(str(tmp_path / "second"))
    name_stores(stores.server, table("fast", replace(stores.fast, path=tmp_path / "second")))
    assert "a store by itself lies there" in not_reached(stores.home)


async def test_a_further_store_is_not_mounted_by_itself(stores: Stores) -> None:
    home = layout.id_of(str(stores.home))
    with pytest.raises(StoreUnusable, match=f"a further store of the store {home}, which has its names"):
        open_store(str(stores.fast.path))


async def test_a_store_that_is_no_longer_named_is_out_of_reach_and_nothing_is_lost(
    stores: Stores, lines: pytest.LogCaptureFixture
) -> None:
    async with mounted(stores.home, node=FAR) as far:
        await far.alice.mkdir("set")
        name_stores(stores.server)
        await Reaching(far.core).follow(far.core.store.read_policy())
        await refused(lines, far.alice.list("set"))
        assert "which the policy does not name" in lines.messages[-1]
        with pytest.raises(Exists):
            await far.alice.mkdir("set")


# Names and moves


async def test_a_set_is_renamed_where_it_lies(stores: Stores) -> None:
    async with mounted(stores.home, node=FAR) as far:
        await far.alice.mkdir("old")
        await far.alice.save("old/image", IMAGE)
        await far.alice.rename("old", "new")
        assert await far.alice.load("new/image") == IMAGE
    assert stores.fast.kept(ALICE.uid) == {"new"}


async def test_a_set_is_replaced_by_one_of_another_store(stores: Stores) -> None:
    async with mounted(stores.home, node=FAR) as far, mounted(stores.home, node=NEAR) as near:
        await far.alice.save("there", IMAGE)
        await near.alice.save("here", b"other")
        await far.alice.rename("here", "there")
        assert await far.alice.load("there") == b"other"
    assert len(stores.fast.trashed(ALICE.uid)) == 1, (
        "what was replaced is in the trash of the store where it lay"
    )


async def test_files_do_not_go_from_a_set_in_one_store_to_one_in_another(stores: Stores) -> None:
    async with mounted(stores.home, node=FAR) as far, mounted(stores.home, node=NEAR) as near:
        await far.alice.mkdir("there")
        await far.alice.save("there/image", IMAGE)
        await near.alice.mkdir("here")
        with pytest.raises(OtherOwner, match="different stores"):
            await far.alice.rename("there/image", "here/image")
        await far.alice.rename("there/image", "image")
        assert await far.alice.load("image") == IMAGE
        with pytest.raises(OtherOwner):
            await far.alice.rename("image", "here/image")


async def test_a_set_is_given_away_where_it_lies(stores: Stores) -> None:
    async with mounted(stores.home, node=FAR) as far:
        await far.root.mkdir(SET)
        await far.root.save(f"{SET}/image", IMAGE)
        await far.root.setattr(SET, Changes(uid=ALICE.uid, gid=ALICE.gid))
        assert await far.root.load(f"{SET}/image") == IMAGE
    assert stores.fast.kept(ALICE.uid) == {SET}
    entry = decode(stores.entry(SET))
    assert (entry.owner, entry.volume) == (entry.stored, stores.fast.id.encode())


# Trash


async def test_what_is_removed_goes_to_the_trash_of_its_store_and_comes_back(stores: Stores) -> None:
    async with mounted(stores.home, node=FAR) as far, mounted(stores.home, node=NEAR) as near:
        await far.alice.mkdir("set")
        await far.alice.save("set/image", IMAGE)
        await far.alice.save("file", IMAGE)
        await far.alice.unlink("set/image")
        await far.alice.unlink("file")
        assert len(stores.fast.trashed(ALICE.uid)) == 2
        assert not (stores.server / "trash" / str(ALICE.uid)).exists()
        trash = far.core.store.trash
        items = [item for item in trash.items() if isinstance(item, Item)]
        assert {item.note.set_name for item in items} == {b"set", b"file"}
        assert list(near.core.store.trash.items()) == [], "nor does another host see what it cannot restore"
        for item in items:
            trash.restore(item)
        assert await far.alice.load("set/image") == await far.alice.load("file") == IMAGE
        assert await far.alice.state("file") is State.COMPLETE
    assert stores.fast.kept(ALICE.uid) == {"set", "file"}


async def test_parts_of_a_set_that_is_gone_come_back_in_their_store(stores: Stores) -> None:
    async with mounted(stores.home, node=FAR) as far:
        await far.alice.mkdir("set")
        await far.alice.save("set/image", IMAGE)
        await far.alice.unlink("set/image")
        await far.alice.rmdir("set")
        (item,) = far.core.store.trash.items()
        assert isinstance(item, Item)
        far.core.store.trash.restore(item)
        assert await far.alice.load("set/image") == IMAGE
    assert stores.fast.kept(ALICE.uid) == {"set"}


async def test_the_trash_of_a_full_store_gives_way_and_no_other(stores: Stores) -> None:
    async with mounted(stores.home, node=FAR) as far, mounted(stores.home, node=NEAR) as near:
        await far.alice.save("there", IMAGE)
        await near.alice.save("here", IMAGE)
        await far.alice.unlink("there")
        await near.alice.unlink("here")
        fast = stores.fast.id.encode()
        keeping = far.fs.sets.keeping
        alice = Owner(ALICE.uid, ALICE.gid)
        assert await keeping.make_room(alice, errno.ENOSPC, fast)
        assert stores.fast.trashed(ALICE.uid) == []
        assert len(list((stores.server / "trash" / str(ALICE.uid)).iterdir())) == 1
        assert not await keeping.make_room(alice, errno.ENOSPC, fast)
        assert await keeping.make_room(alice, errno.EDQUOT, fast), "his own limit is one for all stores"


# Charges


async def used(mount: Mount, ledger: Book) -> Amount:
    await mount.core.charging.told()
    return ledger.account(ALICE.uid).used


async def test_an_owner_is_charged_once_wherever_his_files_lie(stores: Stores, ledger: Book) -> None:
    async with charged(stores.home, ledger, node=FAR) as far:
        await far.alice.mkdir("there")
        await far.alice.save("there/image", IMAGE)
        await far.alice.save("file", IMAGE)
        await far.alice.unlink("file")
    async with charged(stores.home, ledger, node=NEAR) as near:
        await near.alice.mkdir("here")
        await near.alice.save("here/image", IMAGE)
    store = open_store(str(stores.home), keeper_of(stores.home))
    try:
        name_stores(stores.server, table("fast", stores.fast))
        store.volumes.follow(store.read_policy().stores)
        store.volumes.look_at_all()
        counted = counting.count(store, ALICE.uid, store.door.unit)
    finally:
        store.close()
    assert counted.files == 5
    assert ledger.account(ALICE.uid).used == counted


async def test_who_does_not_reach_all_stores_counts_nobody(stores: Stores, ledger: Book) -> None:
    async with mounted(stores.home, node=FAR) as far, mounted(stores.home, node=NEAR) as near:
        await far.alice.save("file", IMAGE)
        assert counting.count(far.core.store, ALICE.uid, 4096).files == 1
        with pytest.raises(Unreached, match="does not reach fast: let a host that reaches every store"):
            counting.count(near.core.store, ALICE.uid, 4096)


async def test_names_say_the_same_after_they_were_read(stores: Stores) -> None:
    async with mounted(stores.home, node=FAR) as far:
        await far.alice.mkdir("a:b", 0o700)
        entry = far.core.store.names.read(SetName(b"a:b"))
        assert (entry.place, entry.mode) == (b"a:b", stat.S_IFDIR | 0o700)
