"""The clock of a host, and of the ledger's database, is set back or forth while somebody writes: limits hold, grace is given once, and who
is alive or dead is not told by it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ledgers
from tests.support.agents import Agent
from tests.support.clocks import HostClock
from tests.support.images import save
from tests.support.ledgers import rewrite_policy
from tests.support.mounting import Mount, mounted
from tests.support.payers import UNIT, Payer, Quotas, ledger_in, new_payer, private_store, until
from tests.support.postgres import running, skip_unless_installed
from tests.support.users import errno_as, errno_of_call

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

HOUR_S = 3600
DAY_S = 24 * HOUR_S
LOGGED = ["is partial", "soft limit"]


@pytest.fixture(scope="module")
def clock(module_workdir: Path) -> HostClock:
    return HostClock(module_workdir)


@pytest.fixture(scope="module", params=["embedded", "postgresql"])
def ledger(request: pytest.FixtureRequest, clock: HostClock) -> Iterator[ledgers.Policy]:
    """In a PostgreSQL that goes by the same clock."""
    if request.param == "embedded":
        yield ledgers.embedded
        return
    skip_unless_installed()
    with contextlib.ExitStack() as stack:
        with clock.kept():
            server = stack.enter_context(running())
        yield ledgers.in_new_database(server)


@pytest.fixture
def mounts(
    root_and_fuse: None, workdir: Path, clock: HostClock, ledger: ledgers.Policy
) -> Iterator[tuple[Mount, Mount]]:
    """The nodes a and b; what they have not heard of for ten seconds is dead to them."""
    clock.off_by(0)
    with ledger_in(workdir / "state"), clock.kept():
        store = private_store(workdir)
        rewrite_policy(store, ledger)
        rewrite_policy(store, lambda text: text.replace("lease = 60", "lease = 10"))
        with (
            mounted(store, workdir / "a", node="a", may_log=LOGGED) as a,
            mounted(store, workdir / "b", node="b", may_log=LOGGED) as b,
        ):
            yield a, b
            Quotas(store, a.path).all_given_back()
            Quotas(store, a.path).check()


@pytest.fixture
def payer(mounts: tuple[Mount, Mount]) -> Payer:
    a, _ = mounts
    return new_payer(a, Quotas(a.store, a.path))


@pytest.mark.parametrize("to_s", [-DAY_S, DAY_S], ids=["back", "forth"])
def test_claims_and_limits_hold(
    mounts: tuple[Mount, Mount], payer: Payer, clock: HostClock, to_s: int
) -> None:
    there = f"{mounts[1].path}/set-{payer.uid}/there"
    with Agent(payer.uid) as writer:
        fd = writer.do(os.open, there, os.O_RDWR | os.O_CREAT, 0o600)  # by the daemon, which stops him
        assert writer.do(os.write, fd, b"x" * UNIT) == UNIT
        clock.off_by(to_s)
        payer.quotas.limit(payer.uid, hard=6 * UNIT)
        until(
            lambda: payer.quotas.standing(payer.uid).total.bytes <= 6 * UNIT,
            lambda: "what was granted is not given back",
        )
        assert writer.do(os.write, fd, b"x" * UNIT) == UNIT
        payer.calls(save, payer.inside("here"), b"y" * (3 * UNIT))
        assert writer.do(errno_of_call, os.write, fd, b"x") == errno.EDQUOT
        writer.do(os.close, fd)
    payer.hard_bytes = 6 * UNIT
    assert payer.room == 0


def test_grace_is_given_once(payer: Payer, clock: HostClock) -> None:
    payer.quotas.limit(payer.uid, soft=2 * UNIT, grace="10h")
    payer.calls(save, payer.inside("image"), b"x" * (2 * UNIT))
    payer.has()
    for off_by_s in (6 * HOUR_S, -DAY_S):
        clock.off_by(off_by_s)
        assert errno_as(payer.uid, save, payer.inside(f"in grace {off_by_s}"), b"x" * UNIT) == 0
        payer.has()
    clock.off_by(-DAY_S + 5 * HOUR_S)  # eleven hours in all
    until(
        lambda: errno_as(payer.uid, save, payer.inside("too late.tmp"), b"x" * UNIT) == errno.EDQUOT,
        lambda: f"the grace time does not end: {payer.quotas.standing(payer.uid).row}",
    )
    clock.off_by(-30 * DAY_S)
    assert payer.quotas.standing(payer.uid).row["grace_bytes_s"] == 0
    assert errno_as(payer.uid, save, payer.inside("never.tmp"), b"x" * UNIT) == errno.EDQUOT


def test_what_a_dead_mount_had_claimed_comes_back(
    mounts: tuple[Mount, Mount], payer: Payer, clock: HostClock
) -> None:
    _, b = mounts
    with Agent(payer.uid) as writer:
        there = f"{b.path}/set-{payer.uid}/there"
        fd = writer.do(os.open, there, os.O_RDWR | os.O_CREAT, 0o600)  # by the daemon, which stops him
        assert writer.do(os.write, fd, b"x" * UNIT) == UNIT
        clock.off_by(-DAY_S)
        b.kill()
        b.detach()
    until(
        lambda: not payer.quotas.standing(payer.uid).claimed.bytes,
        lambda: f"it stays claimed: {payer.quotas.standing(payer.uid)}",
        limit_s=90.0,
    )
    payer.has()
