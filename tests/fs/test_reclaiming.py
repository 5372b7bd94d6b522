"""Which mount looks after what dead ones were granted: the one that keeps house, and one on which somebody falls short."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ckfs.fs.liveness import registration_here
from ckfs.fs.reclaiming import Reclaiming
from ckfs.ledger.book import Book
from ckfs.names import MountId
from ckfs.policy.quota import Amount, Settings
from tests.fs.cores import ALICE, Mount, charged
from tests.support.users import raises_errno

UNIT = 4096
HARD = 10 * UNIT
SET = "alices"
DEAD = MountId(b"%016x" % 0xDEAD)
OTHER = MountId(b"f" * 16)
"""It comes after all others, which need not wait for it."""

pytestmark = [pytest.mark.root, pytest.mark.trio]


def granted_to_a_dead_mount(ledger: Book) -> None:
    ledger.set_limits(ALICE.uid, Settings(hard_bytes=HARD))
    granted = Amount(8 * UNIT)
    assert ledger.draw(DEAD, ALICE.uid, granted, granted).total == granted


def is_reclaimed(ledger: Book) -> bool:
    return DEAD not in ledger.mounts()


def another_keeps_house(mount: Mount) -> None:
    mounts = mount.core.store.mounts
    mounts.register(replace(registration_here(b"other"), id=OTHER))
    assert mounts.keep_house(OTHER, lambda _: True)


async def test_where_nobody_keeps_house_each_mount_looks(store: Path, ledger: Book) -> None:
    async with charged(store, ledger) as mount:
        granted_to_a_dead_mount(ledger)
        Reclaiming(mount.core, ledger).look(frozenset())
        assert is_reclaimed(ledger)


async def test_who_keeps_house_looks(store: Path, ledger: Book) -> None:
    async with charged(store, ledger) as mount:
        assert mount.core.store.mounts.keep_house(mount.core.mount_id, lambda _: True)
        granted_to_a_dead_mount(ledger)
        Reclaiming(mount.core, ledger).look(frozenset())
        assert is_reclaimed(ledger)


async def test_all_others_leave_it_to_the_one_that_keeps_house(store: Path, ledger: Book) -> None:
    async with charged(store, ledger) as mount:
        another_keeps_house(mount)
        granted_to_a_dead_mount(ledger)
        Reclaiming(mount.core, ledger).look(frozenset())
        assert not is_reclaimed(ledger)


async def test_but_for_one_on_which_somebody_falls_short(store: Path, ledger: Book) -> None:
    async with charged(store, ledger) as mount:
        another_keeps_house(mount)
        granted_to_a_dead_mount(ledger)
        await mount.alice.mkdir(SET)
        image = await mount.alice.create(f"{SET}/.image", flags=os.O_WRONLY)
        with raises_errno(errno.EDQUOT):
            for at in range(0, HARD, UNIT):
                await mount.fs.content.write(image, at, bytes(UNIT))
        reclaiming = Reclaiming(mount.core, ledger)
        reclaiming.look(frozenset())
        assert is_reclaimed(ledger)
        assert await mount.fs.content.write(image, 4 * UNIT, bytes(UNIT)) == UNIT
        await mount.alice.close(image)
        ledger.draw(DEAD, ALICE.uid, Amount(UNIT), Amount(UNIT))
        reclaiming.look(frozenset())
        assert not is_reclaimed(ledger), "nobody fell short since"
