"""The daemon is killed while there are claims: afterwards usage is exactly what the store holds, and all the room that is left is
to be had."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from pathlib import Path

import pytest

from tests.support.agents import Agent, Hangs
from tests.support.images import append
from tests.support.mounting import Mount, mounted
from tests.support.payers import (
    UNIT,
    Payer,
    Quotas,
    charged,
    new_payer,
    until,
)
from tests.support.users import raises_errno

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

KILLED = [r"is ended|is forgotten|recount|counted anew|left by|partial"]
"""What a mount may say of another one's death."""
FULL = [r"the trash has no room for it"]
"""What it may say of an owner whose quota is used up, when he writes over or removes what is complete."""
DIED = {errno.ENOTCONN, errno.ECONNABORTED}
MIB = 1 << 20


@pytest.fixture
def quotas(quotas: Quotas) -> Quotas:
    """Of a store whose mounts look often whether others are dead."""
    policy = quotas.store / "policy.toml"
    policy.write_text(policy.read_text().replace("lease = 60.0", "lease = 2.0"))
    return quotas


def gets_all_that_is_left(payer: Payer) -> None:
    """Nothing is claimed for the dead any more, and he fills his quota, to the last unit."""
    quotas, uid = payer.quotas, payer.uid
    until(
        lambda: quotas.standing(uid).total.bytes == charged(quotas.store, uid).bytes,
        lambda: f"more is claimed than {charged(quotas.store, uid)}: {quotas.standing(uid)}",
    )
    assert payer.hard_bytes is not None
    left = (payer.hard_bytes - charged(quotas.store, uid).bytes) // UNIT * UNIT
    payer.calls(append, payer.inside("the rest"), b"x" * left)
    with raises_errno(errno.EDQUOT):
        payer.calls(append, payer.inside("the rest"), b"x")


def writes_and_is_cut_off(mount: Mount, payer: Payer) -> None:
    """He has images open, of which some have grown, shrunk or lost their names, when the daemon is killed."""
    with Agent(payer.uid) as writer:
        fds = []
        for name, units in (("grown", 5), ("unlinked", 4), ("cut", 6), ("claimed", 1)):
            fd = writer.do(os.open, payer.inside(f"{name}.tmp"), os.O_RDWR | os.O_CREAT, 0o600)
            writer.do(os.write, fd, b"x" * (units * UNIT))
            fds.append(fd)
        writer.do(os.unlink, payer.inside("unlinked.tmp"))
        writer.do(os.ftruncate, fds[2], 2 * UNIT)
        writer.do(os.write, fds[0], b"x" * UNIT)
        mount.kill()
        for fd in fds:
            with contextlib.suppress(OSError):
                writer.do(os.close, fd)


def test_after_a_kill_usage_is_exact_and_all_room_is_to_be_had(quotas: Quotas, workdir: Path) -> None:
    with mounted(quotas.store, workdir / "mount", may_log=KILLED) as mount:
        payer = new_payer(mount, quotas)
        payer.may_add(bytes=40 * UNIT)
        writes_and_is_cut_off(mount, payer)
    with mounted(quotas.store, workdir / "mount", may_log=KILLED):
        gets_all_that_is_left(payer)
        payer.has()
        quotas.check()


def test_what_a_dead_mount_had_claimed_comes_back_to_the_one_that_lives(
    quotas: Quotas, workdir: Path
) -> None:
    with mounted(quotas.store, workdir / "b", node="b", may_log=KILLED) as alive:
        with mounted(quotas.store, workdir / "a", node="a") as dying:
            payer = new_payer(dying, quotas)
            payer.may_add(bytes=40 * UNIT)
            with Agent(payer.uid) as writer:
                other = Payer(payer.uid, alive, quotas, payer.hard_bytes)
                fd = writer.do(os.open, other.inside("alive.tmp"), os.O_WRONLY | os.O_CREAT, 0o600)
                assert writer.do(os.write, fd, b"x" * (3 * UNIT)) == 3 * UNIT
                writes_and_is_cut_off(dying, payer)
                assert writer.do(os.write, fd, b"x" * (3 * UNIT)) == 3 * UNIT
                gets_all_that_is_left(other)
                writer.do(os.close, fd)
        other.has()
        quotas.check()


def test_the_mount_that_keeps_house_takes_back_what_dead_ones_were_granted(
    quotas: Quotas, workdir: Path
) -> None:
    with (
        mounted(quotas.store, workdir / "keeper", node="k", role="server", may_log=KILLED) as keeper,
        mounted(quotas.store, workdir / "b", node="b", may_log=KILLED) as other,
    ):
        until(lambda: "this mount keeps house" in keeper.log(), keeper.log)
        with mounted(quotas.store, workdir / "a", node="a") as dying:
            payer = new_payer(dying, quotas)
            payer.may_add(bytes=40 * UNIT)
            writes_and_is_cut_off(dying, payer)
        gets_all_that_is_left(Payer(payer.uid, other, quotas, payer.hard_bytes))
        assert f"has died: uid {payer.uid} has" in keeper.log()
        assert "has died" not in other.log()
        quotas.check()


def test_a_mount_that_was_killed_with_much_granted_takes_nothing_with_it(
    quotas: Quotas, workdir: Path
) -> None:
    with mounted(quotas.store, workdir / "mount") as mount:
        payer = new_payer(mount, quotas)
        payer.may_add(bytes=4096 * MIB)
        with Agent(payer.uid) as writer:
            fd = writer.do(os.open, payer.inside("image.tmp"), os.O_WRONLY | os.O_CREAT, 0o600)
            writer.do(os.write, fd, b"x" * MIB)
            mount.kill()
            with contextlib.suppress(OSError):
                writer.do(os.close, fd)
    with mounted(quotas.store, workdir / "mount", may_log=KILLED):
        assert payer.room == 4095 * MIB
        quotas.check()


ROUNDS = 4
STEPS = 60


def do_anything(directory: str, seed: int) -> int:
    """Random steps until the daemon dies: the errno of the one that met that; 0 if all were done."""
    dice = random.Random(seed)
    open_fds: list[int] = []
    for _ in range(STEPS * 100):
        name = f"{directory}/file-{dice.randrange(6)}{dice.choice(['', '.tmp'])}"
        try:
            _one_step(dice, name, open_fds)
        except OSError as error:
            if error.errno in DIED:
                return error.errno or 0
            expected = (errno.EDQUOT, errno.ENOENT, errno.EEXIST, errno.EIO, errno.EINVAL)
            if error.errno not in expected:
                raise
    return 0


def _one_step(dice: random.Random, name: str, open_fds: list[int]) -> None:
    match dice.randrange(9):
        case 0 | 1 | 2:
            flags = dice.choice([os.O_TRUNC, os.O_APPEND, 0])
            open_fds.append(os.open(name, os.O_RDWR | os.O_CREAT | flags, 0o600))
            os.write(open_fds[-1], b"x" * dice.randrange(1, 5 * UNIT))
        case 3 if open_fds:
            os.pwrite(dice.choice(open_fds), b"x" * UNIT, dice.randrange(20 * UNIT))
        case 4 if open_fds:
            os.ftruncate(dice.choice(open_fds), dice.randrange(10 * UNIT))
        case 5:
            os.unlink(name)
        case 6:
            os.rename(name, f"{name[:-4]}-renamed.tmp")
        case 7:
            os.setxattr(name, "user.note", b"v" * dice.randrange(1, 500))
        case _ if open_fds:
            os.close(open_fds.pop(dice.randrange(len(open_fds))))


def test_killed_at_any_moment_usage_is_what_the_store_holds(quotas: Quotas, workdir: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    payer: Payer | None = None
    for turn in range(ROUNDS):
        with mounted(quotas.store, workdir / "mount", may_log=[*KILLED, *FULL]) as mount:
            if payer is None:
                payer = new_payer(mount, quotas)
                payer.may_add(bytes=60 * UNIT, files=12)
            payer.mount = mount
            payer.has()
            with Agent(payer.uid) as writer:
                writer.begin(do_anything, payer.path, seed + turn)
                with contextlib.suppress(Hangs):
                    assert writer.result(within=dice.uniform(0.05, 0.8)) is None, "it ended before"
                mount.kill()
    assert payer is not None
    with mounted(quotas.store, workdir / "mount", may_log=KILLED) as mount:
        payer.has()
        quotas.check()
