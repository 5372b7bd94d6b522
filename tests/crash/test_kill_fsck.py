"""``ckfs fsck --repair`` dies at each of its calls on the store, and is run again.

The second run goes on where the first one stopped: afterwards the store is as it is after one that was not killed, nothing is
lost, and a mount serves all of it. The calls are counted in process, so that each step is met for certain.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ckfs.store import record
from tests.crash.dying import CHANGES
from tests.fs.cores import BOB, copied
from tests.fs.damage import (
    DAMAGES,
    GIVEN_AWAY,
    Damage,
    all_bytes,
    codes,
    dump,
    fsck,
    item,
    left,
    put,
    record_of,
    single,
    whole_store,
    without_attributes,
)
from tests.fs.failing import Failing, Killed
from tests.support.nfs import on_client, on_server, remove

pytestmark = pytest.mark.root

_MOST_CALLS = 100_000


def _all_at_once(store: Path) -> None:
    """As a bad backup leaves a store: names, records, owners and modes are lost, each somewhere."""
    without_attributes(store, f"users/{BOB.uid}")
    for name in ("dump", "7.server.CK"):
        (store / "names" / name).unlink()
    shutil.copytree(dump(store), dump(store).with_name("copied"))
    copied(dump(store) / "tree", dump(store) / "tree2")
    os.chown(dump(store) / "image", 0, 0)
    (dump(store) / "tree/two").chmod(0)
    os.setxattr(dump(store) / "tree/two", record.ATTRIBUTE, b"torn")
    put(item(store), replace(record_of(item(store)), ino=record_of(dump(store)).ino))
    single(store).rename(single(store).with_name("elsewhere"))
    (store / "names/8.server.CK").unlink()
    os.symlink("1:torn", store / "names/8.server.CK")
    (store / "staging").chmod(0o700)


SEVERAL = Damage("all at once", _all_at_once, frozenset({"owner"}))  # among others
MENDED = [damage for damage in DAMAGES if not damage.stays]


@pytest.fixture(scope="module")
def template(file_system: Path) -> Path:
    return whole_store(file_system)


def marks(damage: Damage) -> list[pytest.MarkDecorator]:
    if damage.finds & GIVEN_AWAY:
        return [pytest.mark.plain_alone("where root is squashed, no host mends it")]
    return damage.marks


@pytest.mark.parametrize(
    "damage", [pytest.param(damage, marks=marks(damage)) for damage in [*MENDED, SEVERAL]], ids=str
)
def test_a_second_run_goes_on_after_a_death_at_any_step(
    damage: Damage, failing: Failing, flags: bool, template: Path, directory: Path
) -> None:
    ours = on_server(directory)
    damaged = copied(template, ours / "damaged")
    damage.act(damaged)
    contents = all_bytes(damaged)
    for at in range(1, _changes(failing, damaged, ours) + 1):
        store = copied(damaged, ours / "store")
        assert _killed(failing, store, at)
        where = f"at {at} of {failing.log}"
        assert contents <= all_bytes(store), where
        assert left(fsck(store, repair=True)) == [], where
        assert codes(fsck(store)) == set(), where
        assert contents <= all_bytes(store), where
        remove(on_client(store))


def _changes(failing: Failing, damaged: Path, ours: Path) -> int:
    """How many changes fsck makes: dying before a call that only looks is dying before the next of these."""
    store = copied(damaged, ours / "whole")
    with failing.armed(_MOST_CALLS, Killed, CHANGES):
        fsck(store, repair=True)
    assert 0 < failing.count < _MOST_CALLS
    return failing.count


def _killed(failing: Failing, store: Path, at: int) -> bool:
    with failing.armed(at, Killed, CHANGES):
        try:
            fsck(store, repair=True)
        except Killed:
            return True
    return False
