"""Counting an owner anew while others write: what is at rest counts as it lies there, what is being written with its base."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ckfs.fs.liveness import Fate
from ckfs.fs.rebuilding import rebuild
from ckfs.fs.recounting import Recount, Recounting
from ckfs.ledger import sqlite
from ckfs.ledger.book import Book
from ckfs.ledger.ledger import Opened, Posting, Settled
from ckfs.names import Inode, MountId, Uid
from ckfs.policy.quota import NOTHING, Amount, Settings
from ckfs.store import limits
from ckfs.store.layout import Store
from tests.fs import cores
from tests.fs.cores import ALICE, BOB, Mount, Process

A, B = MountId(b"aaaaaaaaaaaaaaaa"), MountId(b"bbbbbbbbbbbbbbbb")
UNIT = 4096
SET = Amount(UNIT, 1)
"""A set's directory."""

pytestmark = [pytest.mark.root, pytest.mark.trio]


@dataclass
class Scene:
    """A store with a ledger that hears nothing by itself: a test says what mounts post."""

    mount: Mount
    ledger: Book
    dead: set[MountId] = field(default_factory=set)
    meanwhile: Callable[[], None] = lambda: None
    """What others do while a recount waits."""

    @property
    def store(self) -> Store:
        return self.mount.core.store

    @property
    def alice(self) -> Process:
        return self.mount.alice

    def recounting(self) -> Recounting:
        def fate(mount: MountId) -> Fate:
            return Fate.SILENT if mount in self.dead else Fate.ALIVE

        return Recounting(self.store, self.ledger, fate, lambda _: self.meanwhile())

    def repair(self, uid: Uid = ALICE.uid) -> Recount:
        [one] = self.recounting().repair([uid])
        return one

    def used(self, uid: Uid = ALICE.uid) -> Amount:
        return self.ledger.account(uid).used

    def claimed(self, uid: Uid = ALICE.uid) -> Amount:
        return self.ledger.account(uid).claimed

    async def ino(self, path: str) -> Inode:
        return (await self.alice.stat(path)).record.ino


@pytest.fixture
async def scene(tmp_path: Path, place: Path) -> AsyncIterator[Scene]:
    path = os.fsencode(tmp_path / "ledger.sqlite")
    async with cores.mounted(place) as mount:
        with contextlib.closing(sqlite.create(path, mount.core.store.id)) as ledger:
            yield Scene(mount, ledger)
            assert ledger.check() == []


async def test_what_is_at_rest_counts_as_it_lies_there(scene: Scene) -> None:
    await scene.alice.mkdir("set")
    await scene.alice.save("set/image", b"x" * (3 * UNIT + 1))
    await scene.alice.link("set/image", "set/again")
    await scene.mount.bob.save("other", b"x")
    assert scene.repair() == Recount(ALICE.uid, NOTHING, Amount(5 * UNIT, 2), taken_up=True)
    assert (scene.used(), scene.used(BOB.uid)) == (Amount(5 * UNIT, 2), NOTHING)


async def test_a_comparison_changes_nothing(scene: Scene) -> None:
    await scene.alice.mkdir("set")
    [one] = scene.recounting().compare([ALICE.uid])
    assert one == Recount(ALICE.uid, NOTHING, SET)
    assert one.differs
    assert scene.used() == NOTHING
    scene.repair()
    [one] = scene.recounting().compare([ALICE.uid])
    assert not one.differs


async def test_what_went_to_the_trash_is_still_his(scene: Scene) -> None:
    await scene.alice.save("image", b"x" * UNIT)
    await scene.alice.unlink("image")
    assert scene.repair().counted == SET


@pytest.mark.parametrize("act", ["compare", "repair"])
async def test_what_was_posted_meanwhile_makes_the_count_worthless(scene: Scene, act: str) -> None:
    await scene.alice.mkdir("set")
    waits: list[int] = []

    def post_in_the_second_wait() -> None:
        waits.append(1)
        if len(waits) == 2:
            scene.ledger.post(A, 1, [Posting(ALICE.uid, used=SET)])

    scene.meanwhile = post_in_the_second_wait
    [one] = getattr(scene.recounting(), act)([ALICE.uid])
    assert (one.counted, one.taken_up) == (None, False)
    assert scene.used() == SET
    assert scene.repair().taken_up


async def test_who_is_busy_is_not_even_counted(scene: Scene) -> None:
    numbers = iter(range(1, 100))
    scene.meanwhile = lambda: scene.ledger.post(A, next(numbers), [Posting(ALICE.uid, used=SET)])
    one = scene.repair()
    assert (one.counted, one.taken_up) == (None, False)


async def test_one_busy_owner_does_not_spoil_the_count_of_another(scene: Scene) -> None:
    await scene.mount.bob.mkdir("set")
    numbers = iter(range(1, 100))
    scene.meanwhile = lambda: scene.ledger.post(A, next(numbers), [Posting(ALICE.uid, used=SET)])
    results = {one.uid: one.taken_up for one in scene.recounting().repair([ALICE.uid, BOB.uid])}
    assert results == {ALICE.uid: False, BOB.uid: True}


async def test_a_file_that_is_being_written_counts_with_its_base(scene: Scene) -> None:
    await scene.alice.save("image", b"x" * (10 * UNIT))
    base = Amount(2 * UNIT, 1)
    scene.ledger.draw(A, ALICE.uid, NOTHING, Amount(8 * UNIT), [Opened(await scene.ino("image"), base)])
    assert scene.repair().counted == base
    assert scene.claimed() == Amount(8 * UNIT)


async def test_a_file_that_was_deleted_while_it_is_open_counts_until_it_is_closed(scene: Scene) -> None:
    handle = await scene.alice.create("image.tmp")
    await scene.mount.fs.content.write(handle, 0, b"x" * UNIT)
    ino = await scene.ino("image.tmp")
    scene.ledger.draw(A, ALICE.uid, NOTHING, NOTHING, [Opened(ino, SET)])
    await scene.alice.unlink("image.tmp")
    assert scene.repair().counted == SET
    scene.ledger.post(A, 1, [Posting(ALICE.uid, settled=(Settled(ino, NOTHING),))])
    await scene.alice.close(handle)
    assert scene.repair().counted == NOTHING


async def test_a_dead_mount_loses_its_grant_and_its_files_count_as_they_are(scene: Scene) -> None:
    await scene.alice.save("image", b"x" * (10 * UNIT))
    opened = [Opened(await scene.ino("image"), Amount(2 * UNIT, 1))]
    scene.ledger.draw(A, ALICE.uid, NOTHING, Amount(100 * UNIT), opened)
    scene.ledger.draw(B, ALICE.uid, NOTHING, Amount(UNIT))
    scene.dead.add(A)
    assert scene.repair().counted == Amount(10 * UNIT, 1)
    assert scene.claimed() == Amount(UNIT)
    assert scene.ledger.mounts() == {B: {ALICE.uid}}


async def test_until_a_count_is_taken_up_all_stays_claimed(scene: Scene) -> None:
    scene.ledger.draw(A, ALICE.uid, NOTHING, Amount(100 * UNIT))
    scene.dead.add(A)
    numbers = iter(range(1, 100))
    scene.meanwhile = lambda: scene.ledger.post(B, next(numbers), [Posting(ALICE.uid, used=SET)])
    assert not scene.repair().taken_up
    assert scene.claimed() == Amount(100 * UNIT)


async def test_a_file_of_a_dead_and_a_living_mount_waits_for_the_living_one(scene: Scene) -> None:
    """Nobody knows which of its blocks are the dead one's."""
    await scene.alice.save("image", b"x" * (10 * UNIT))
    ino = await scene.ino("image")
    for mount in (A, B):
        scene.ledger.draw(mount, ALICE.uid, NOTHING, Amount(100 * UNIT), [Opened(ino, SET)])
    scene.dead.add(A)
    assert not scene.repair().taken_up
    scene.ledger.post(
        B, 1, [Posting(ALICE.uid, given_up=Amount(100 * UNIT), settled=(Settled(ino, Amount(10 * UNIT, 1)),))]
    )
    assert scene.repair().taken_up
    assert (scene.used(), scene.claimed()) == (Amount(10 * UNIT, 1), NOTHING)


async def test_many_owners_share_the_waits(scene: Scene) -> None:
    waits: list[int] = []
    scene.meanwhile = lambda: waits.append(1)
    uids = [Uid(3000 + number) for number in range(70)]
    assert [one.uid for one in scene.recounting().repair(uids)] == uids
    assert len(waits) < len(uids)


async def test_a_ledger_is_made_from_the_store(scene: Scene) -> None:
    said = {None: Settings(hard_bytes=100 * UNIT), BOB.uid: Settings(hard_files=7)}
    limits.write(scene.store.path, scene.store.service, said)
    await scene.alice.mkdir("set")
    await scene.mount.root.save("of root", b"x")
    scene.ledger.post(A, 1, [Posting(BOB.uid, used=Amount(9 * UNIT, 9))])
    scene.ledger.draw(B, ALICE.uid, NOTHING, Amount(UNIT))
    rebuild(scene.store, scene.ledger, with_limits=True)
    assert scene.ledger.mounts() == {}
    assert {one.uid: one.total for one in scene.ledger.accounts() if one.total} == {
        ALICE.uid: SET,
        scene.store.service.uid: SET,
    }
    assert scene.ledger.all_settings() == said
    assert scene.used(BOB.uid) == NOTHING
