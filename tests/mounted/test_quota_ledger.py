"""The ledger is a file of this host's, and may be lost, damaged, or out of date: usage is what the store holds, all the same."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.images import content, save
from tests.support.mounting import MountTrouble, mounted, run_ckfs
from tests.support.payers import UNIT, Charge, Quotas, ledger_in, new_payer
from tests.support.users import errno_as, errno_of_call, raises_errno

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

REBUILT = [r"ledger", "is partial: a write failed"]


def lose(ledger: Path) -> None:
    shutil.rmtree(ledger)


def damage(ledger: Path) -> None:
    for path in ledger.rglob("*.sqlite*"):
        path.write_bytes(b"this is no ledger" * 1000)


@pytest.mark.parametrize("harm", [lose, damage], ids=lambda harm: harm.__name__)
def test_usage_and_limits_survive_the_ledger(
    quotas: Quotas, own_state: Path, workdir: Path, harm: Callable[[Path], None]
) -> None:
    with mounted(quotas.store, workdir / "mount") as mount:
        payer, other = new_payer(mount, quotas), new_payer(mount, quotas)
        for each in (payer, other):
            each.calls(save, each.inside("image"), b"x" * (3 * UNIT))
            each.calls(os.setxattr, each.inside("image"), "user.note", b"v")
            each.calls(save, each.inside("removed"), b"x" * UNIT)
            each.calls(os.unlink, each.inside("removed"))
        payer.may_add(bytes=5 * UNIT, files=1)
        before = payer.has(), other.has()
        quotas.limit_others(hard=other.has().bytes + UNIT, grace="3d")
    harm(own_state)
    with mounted(quotas.store, workdir / "mount", may_log=REBUILT) as mount:
        assert (payer.has(), other.has()) == before
        row = quotas.standing(payer.uid).row
        assert (row["hard_bytes"], row["hard_files"]) == (payer.hard_bytes, payer.hard_files)
        with raises_errno(errno.EDQUOT):
            other.calls(save, other.inside("more.tmp"), b"x" * (3 * UNIT))
        # One fits, for another one what was removed gives way.
        made = [errno_as(payer.uid, os.mkdir, payer.inside(name)) for name in ("one", "two", "three")]
        assert made == [0, 0, errno.EDQUOT]
        quotas.check()


def test_a_ledger_that_is_lost_while_mounted_harms_nobody(
    quotas: Quotas, own_state: Path, workdir: Path
) -> None:
    with mounted(quotas.store, workdir / "mount", may_log=[".*"]) as mount:
        payer = new_payer(mount, quotas)
        payer.calls(save, payer.inside("image"), b"x" * (3 * UNIT))
        payer.may_add(bytes=20 * UNIT)
        shutil.rmtree(own_state)
        assert payer.calls(content, payer.inside("image")) == b"x" * (3 * UNIT)
        payer.calls(errno_of_call, save, payer.inside("more"), b"x" * UNIT)
        payer.calls(os.unlink, payer.inside("image"))
    with mounted(quotas.store, workdir / "mount", may_log=REBUILT):
        payer.has()
        quotas.check()


def test_what_changes_the_store_while_nothing_is_mounted_is_found_and_repaired(
    quotas: Quotas, workdir: Path
) -> None:
    with mounted(quotas.store, workdir / "mount") as mount:
        payer = new_payer(mount, quotas)
        payer.calls(save, payer.inside("image"), b"x" * (3 * UNIT))
        payer.may_add(bytes=4 * UNIT)
        before = payer.has()
    os.unlink(quotas.store / "users" / str(payer.uid) / f"set-{payer.uid}" / "image")
    found = run_ckfs("quota", "check", "--store", quotas.store)
    assert found.returncode == 1
    assert str(payer.uid) in found.stdout
    repaired = run_ckfs("quota", "check", "--repair", "--store", quotas.store)
    assert repaired.returncode == 0, repaired
    quotas.check()
    with mounted(quotas.store, workdir / "mount"):
        assert payer.has() == before - Charge(3 * UNIT, 1)


def test_a_second_ledger_of_the_same_store_is_refused(quotas: Quotas, workdir: Path) -> None:
    """Two would grant the full quota twice."""
    with mounted(quotas.store, workdir / "mount", node="a") as mount:
        payer = new_payer(mount, quotas)
        payer.may_add(bytes=UNIT)
        with (
            ledger_in(workdir / "another state"),
            pytest.raises(MountTrouble, match=r"status 3"),
            mounted(quotas.store, workdir / "second", node="b"),
        ):
            pass
        payer.calls(save, payer.inside("image"), b"x" * UNIT)
        assert payer.room == 0
