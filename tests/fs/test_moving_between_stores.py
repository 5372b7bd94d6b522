"""``ckfs move``: a set's files go to another store; whoever dies at any step leaves it readable, charged once, and to be gone on with."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckfs.errors import CkfsError, NotPermitted, Stale, UsageError
from ckfs.fs.relocating import Relocating
from ckfs.ledger.book import Book
from ckfs.model import Caller, Owner
from ckfs.names import SetName
from ckfs.policy.quota import Amount
from ckfs.store import copying as copying_files
from ckfs.store import counting, relocating, remains
from ckfs.store.door import Door
from ckfs.store.entries import decode
from ckfs.store.handover import Copying
from ckfs.store.layout import Store, open_store
from ckfs.store.spots import HOME, Found, Spot
from tests.fs.cores import ALICE, BOB, ROOT, Mount, charged, keeper_of, mounted
from tests.support.further import Further, make_further, name_stores, table
from tests.support.mounting import environment
from tests.support.nfs import on_server

pytestmark = [pytest.mark.root, pytest.mark.trio]

SET = SetName(b"set")
FILES = {"image": b"image" * 300_000, "inner/other": b"other" * 1000, "inner/empty": b""}


@dataclass(frozen=True)
class Stores:
    home: Path
    fast: Further

    @property
    def server(self) -> Path:
        """The home, where root may look into it."""
        return on_server(self.home)

    @property
    def volume(self) -> bytes:
        return self.fast.id.encode()

    def volume_of_set(self) -> bytes:
        return decode(os.readlink(os.fsencode(self.server / "names" / "set"))).volume

    def left(self) -> list[str]:
        """What lies anywhere, apart from the set itself."""
        entry = decode(os.readlink(os.fsencode(self.server / "names" / "set")))
        mine = self.server if entry.volume == HOME else self.fast.path
        found = [
            f"{top.name}/{place.name}"
            for root in (self.server, self.fast.path)
            for top in (root / "users" / str(ALICE.uid), root / "staging")
            if top.exists()
            for place in top.iterdir()
            if not place.name.startswith(".nfs")  # of what is closed in this moment
            and place != mine / "users" / str(ALICE.uid) / os.fsdecode(entry.place)
        ]
        return sorted(found)


@pytest.fixture
def stores(path: Path, tmp_path: Path) -> Stores:
    """A store whose only host reaches a further one, to which no new set goes by itself."""
    return Stores(path, make_further(path, tmp_path / "fast"))


async def make(mount: Mount, stores: Stores) -> None:
    """A set at home; then the policy begins to name the further store."""
    await mount.alice.mkdir("set", 0o750)
    await mount.alice.mkdir("set/inner")
    for path, content in FILES.items():
        await mount.alice.save(f"set/{path}", content)
    await mount.alice.link("set/image", "set/inner/link")
    await mount.alice.symlink("set/symlink", b"image")
    reach(mount.core.store, stores)


def reach(store: Store, stores: Stores) -> None:
    name_stores(stores.server, table("fast", stores.fast))
    store.volumes.follow(store.read_policy().stores)
    store.volumes.look_at_all()


async def move(mount: Mount, store: str = "fast", caller: Caller = ROOT) -> bool:
    async def tell(done_bytes: int, of_bytes: int) -> None:
        pass

    return await Relocating(mount.core, mount.fs.sets.following).move(SET, store, caller, tell)


async def contents(mount: Mount) -> dict[str, object]:
    """All that must stay: numbers, modes, states, contents."""
    return dict(await mount.alice.walk("set"))


async def test_a_set_goes_there_and_back_with_all_that_belongs_to_it(stores: Stores) -> None:
    async with mounted(stores.home) as mount:
        await make(mount, stores)
        before = await contents(mount)
        assert await move(mount)
        assert stores.volume_of_set() == stores.volume
        assert await contents(mount) == before
        assert stores.left() == []
        assert not await move(mount), "it lies there already"
        assert await move(mount, "home", ALICE), "its owner may, too"
        assert stores.volume_of_set() == HOME
        assert await contents(mount) == before
        assert stores.left() == []
    assert stores.fast.kept(ALICE.uid) == set()


async def test_a_file_that_is_open_is_read_on_in_the_copy(stores: Stores) -> None:
    async with mounted(stores.home) as mount:
        await make(mount, stores)
        handle = await mount.alice.open("set/image")
        assert await move(mount)
        assert bytes(await mount.fs.content.read(handle, 0, 5)) == b"image"
        await mount.alice.close(handle)


async def test_a_set_that_is_being_written_stays(stores: Stores) -> None:
    async with mounted(stores.home) as mount:
        await make(mount, stores)
        handle = await mount.alice.create("set/new")
        await mount.fs.content.write(handle, 0, b"new")
        with pytest.raises(CkfsError, match="stays where it is: somebody has a file of it open for writing"):
            await move(mount)
        assert stores.volume_of_set() == HOME
        assert stores.left() == []
        await mount.alice.close(handle)
        assert await move(mount)


async def test_only_root_and_the_owner_move_a_set(stores: Stores) -> None:
    async with mounted(stores.home) as mount:
        await make(mount, stores)
        with pytest.raises(NotPermitted, match="only its owner and root move it"):
            await move(mount, caller=BOB)
        with pytest.raises(UsageError, match="names no store slow; this host reaches home, fast"):
            await move(mount, "slow")


async def test_what_cannot_be_copied_stays_with_nothing_left(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(stores.home) as mount:
        await make(mount, stores)

        def full(*_: object) -> object:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(relocating, "copy_file", full)
            with pytest.raises(CkfsError, match="stays where it is: No space left on device"):
                await move(mount)
        assert stores.volume_of_set() == HOME
        assert stores.left() == []


async def test_a_copy_that_differs_is_not_used(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    async with mounted(stores.home) as mount:
        await make(mount, stores)
        before, compare = await contents(mount), relocating.compare_trees

        def damaged(door: Door, source: Spot, target: Spot) -> Iterator[int]:
            (image,) = (stores.fast.path / "users" / str(ALICE.uid)).glob("*/image")
            status = image.stat()
            with image.open("r+b") as file:
                file.write(b"X")
            os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
            yield from compare(door, source, target)

        monkeypatch.setattr("ckfs.store.handover.compare_trees", damaged)
        with pytest.raises(CkfsError, match="the copy differs from what it is of: it is not used"):
            await move(mount)
        assert stores.volume_of_set() == HOME
        assert await contents(mount) == before
        assert stores.left() == []


# Charged once


async def test_it_is_charged_once_throughout(stores: Stores, ledger: Book) -> None:
    async with charged(stores.home, ledger) as mount:
        await make(mount, stores)
        await mount.core.charging.told()
        before = ledger.account(ALICE.uid).used

        def counted() -> Amount:
            return counting.count(mount.core.store, ALICE.uid, mount.core.store.door.unit)

        assert counted() == before
        store = mount.core.store
        entry = store.names.read(SET)
        with contextlib.closing(Copying(store, SET, entry, entry.stored, stores.volume)) as copying:
            copying.begin()
            while copying.step():
                assert counted() == before, "the copy is nobody's"
            copying.finish()
            assert counted() == before, "and what it is of is, when the copy is the set"
            copying.put_old_aside()
            assert counted() == before
            assert copying.remove_old()
        assert counted() == before
        await mount.core.charging.told()
    assert ledger.account(ALICE.uid).used == before


# Death at each step

_DIES = """
import contextlib, os, signal, sys
from ckfs.store.handover import Copying
from ckfs.store.layout import open_store
from ckfs.model import Owner
home, volume, step = sys.argv[1], os.fsencode(sys.argv[2]), sys.argv[3]
kept = os.stat(home)
store = open_store(home, Owner(kept.st_uid, kept.st_gid))
entry = store.names.read(b"set")
copying = Copying(store, b"set", entry, entry.stored, volume)
def die_after(done):
    if done == step:
        os.kill(os.getpid(), signal.SIGKILL)
copying.begin(); die_after("begin")
count = 0
while copying.step():
    count += 1
    die_after(f"step {count}")
die_after("copied")
copying.finish(); die_after("finish")
copying.put_old_aside(); die_after("aside")
copying.remove_old(); die_after("removed")
"""


def die_after(stores: Stores, step: str, *, to: bytes | None = None) -> None:
    """Another process moves the set, to the further store or to the volume *to*, and is killed after *step*."""
    volume = stores.fast.id if to is None else os.fsdecode(to)
    done = subprocess.run(
        [sys.executable, "-c", _DIES, str(stores.home), volume, step],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == -9, done.stderr


STEPS = ["begin", *(f"step {number}" for number in range(1, 12, 2)), "copied", "finish", "aside", "removed"]


@pytest.mark.parametrize("step", STEPS)
async def test_one_that_dies_leaves_it_readable_charged_once_and_to_be_gone_on_with(
    stores: Stores, step: str
) -> None:
    async with mounted(stores.home) as mount:
        await make(mount, stores)
        before = await contents(mount)
        store = mount.core.store
        charge = counting.count(store, ALICE.uid, store.door.unit)
        die_after(stores, step)
        assert await contents(mount) == before
        assert counting.count(store, ALICE.uid, store.door.unit) == charge
        remains.remove_left(store)  # what a mount does when it starts
        assert await contents(mount) == before
        assert counting.count(store, ALICE.uid, store.door.unit) == charge
        await move(mount)
        assert stores.volume_of_set() == stores.volume
        assert await contents(mount) == before
        assert counting.count(store, ALICE.uid, store.door.unit) == charge
        assert stores.left() == []


async def test_what_was_copied_already_is_not_copied_again(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[bytes] = []
    copy = copying_files.copy_file

    def noted(door: Door, source: Spot, target: Spot, found: Found) -> Iterator[None]:
        copied.append(source.components[-1])
        return copy(door, source, target, found)

    async with mounted(stores.home) as mount:
        await make(mount, stores)
        await mount.alice.unlink("set/inner/link")
        die_after(stores, "copied")
        await mount.alice.save("set/inner/later", b"later")
        await mount.alice.unlink("set/inner/empty")
        before = await contents(mount)
        monkeypatch.setattr(relocating, "copy_file", noted)
        assert await move(mount)
        assert copied == [b"later"]
        assert await contents(mount) == before
    assert stores.left() == []


async def test_a_copy_that_nobody_goes_on_with_goes_after_a_day(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(stores.home) as mount:
        await make(mount, stores)
        die_after(stores, "copied")
        remains.remove_left(mount.core.store)
        assert len(stores.left()) == 2, "the copy, and the lock that says so"
        monkeypatch.setattr(remains, "_KEPT_NS", 0)
        remains.remove_left(mount.core.store)
        assert stores.left() == []
        assert stores.fast.kept(ALICE.uid) == set()


async def test_a_copy_whose_set_is_gone_is_nobodys_and_stays(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is the set under another name, which was missed, is not for sure."""
    async with mounted(stores.home) as mount:
        await make(mount, stores)
        die_after(stores, "copied")
        await mount.alice.remove_tree("set")
        await mount.alice.mkdir("another")
        store = mount.core.store
        for item in list(store.trash.items()):
            store.trash.purge(item)
        monkeypatch.setattr(remains, "_KEPT_NS", 0)
        remains.remove_left(store)
        assert any(place.endswith("~copy") for place in stores.fast.kept(ALICE.uid))
        assert counting.count(store, ALICE.uid, store.door.unit).files == 1


async def test_a_host_that_does_not_reach_what_is_left_leaves_it_to_one_that_does(stores: Stores) -> None:
    async with mounted(stores.home) as mount:
        await make(mount, stores)
        assert await move(mount)
        reach(mount.core.store, stores)
    die_after(stores, "finish", to=HOME)
    name_stores(stores.server)
    near = open_store(str(stores.home), keeper_of(stores.home))
    with contextlib.closing(near):
        assert remains.remove_left(near), "it stays, and is looked at again"
    assert len(stores.left()) == 2
    name_stores(stores.server, table("fast", stores.fast))
    far = open_store(str(stores.home), keeper_of(stores.home))
    with contextlib.closing(far):
        assert not remains.remove_left(far)
    assert stores.left() == []


async def test_a_set_that_is_given_away_meanwhile_stays(stores: Stores) -> None:
    async with mounted(stores.home) as mount:
        await make(mount, stores)
        store = mount.core.store
        entry = store.names.read(SET)
        with contextlib.closing(Copying(store, SET, entry, entry.stored, stores.volume)) as copying:
            copying.begin()
            while copying.step():
                pass
            async with mount.root.at("set") as ino:
                await mount.fs.sets.name_owner(mount.core.inodes.get(ino), Owner(BOB.uid, BOB.gid))
            with pytest.raises((Stale, BlockingIOError)):
                copying.finish()
        assert stores.volume_of_set() == HOME
