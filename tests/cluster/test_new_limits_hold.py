"""A limit that an admin sets holds on all mounts when the command returns; where it does not, the command says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.ledgers import Policy, rewrite_policy
from tests.support.mounting import Mount, mounted
from tests.support.passed import NEEDED, stopped
from tests.support.payers import UNIT, Payer, Quotas, ledger_in, new_payer, private_store, until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

MIB = 1 << 20
NOT_YET = "not yet on mount"


@pytest.fixture
def mounts(root_and_fuse: None, workdir: Path, ledger: Policy) -> Iterator[tuple[Mount, Mount]]:
    """The nodes a and b; quotas are said through a."""
    with ledger_in(workdir / "state"):
        store = private_store(workdir)
        rewrite_policy(store, ledger)
        with (
            mounted(store, workdir / "a", node="a", may_log=["is partial"]) as a,
            mounted(store, workdir / "b", node="b", may_log=["is partial"]) as b,
        ):
            yield a, b


@contextmanager
def writing(payer: Payer, path: str, access: int = os.O_RDWR) -> Iterator[Agent]:
    """Somebody who has written a MiB without a limit, and goes on; with O_WRONLY the kernel does it by itself."""
    with Agent(payer.uid) as writer:
        fd = writer.do(os.open, path, access | os.O_CREAT, 0o600)
        assert writer.do(os.write, fd, b"x" * MIB) == MIB
        yield writer
        writer.do(os.close, fd)


def test_it_holds_when_the_command_returns(mounts: tuple[Mount, Mount]) -> None:
    a, b = mounts
    quotas = Quotas(a.store, a.path)
    payer = new_payer(a, quotas)
    with writing(payer, payer.inside("here.tmp")), writing(payer, f"{b.path}/set-{payer.uid}/there.tmp"):
        hard = quotas.standing(payer.uid).used.bytes + 3 * MIB
        until(
            lambda: NOT_YET not in quotas.say("set", payer.uid, "--hard", hard),
            lambda: "mounts that live do not give back",
        )
        assert quotas.standing(payer.uid).total.bytes <= hard
    payer.hard_bytes = hard
    payer.has()


def test_a_mount_on_which_it_does_not_hold_is_named(mounts: tuple[Mount, Mount]) -> None:
    a, b = mounts
    quotas = Quotas(a.store, a.path)
    payer = new_payer(a, quotas)
    with writing(payer, f"{b.path}/set-{payer.uid}/image.tmp"), stopped(b):
        for at in (a.path, a.store):  # a mount's daemon, and root on the store itself
            said = Quotas(a.store, at).say("set", payer.uid, "--hard", 2 * UNIT)
            assert NOT_YET in said
            assert "of node b: what was granted there before has not been given back" in said
    until(
        lambda: NOT_YET not in quotas.say("set", payer.uid, "--hard", 3 * UNIT),
        lambda: "it does not give back once it goes on",
    )


@NEEDED
def test_where_the_kernel_writes_by_itself_it_does_not_hold_yet(mounts: tuple[Mount, Mount]) -> None:
    a, b = mounts
    quotas = Quotas(a.store, a.path)
    payer = new_payer(a, quotas)
    with writing(payer, f"{b.path}/set-{payer.uid}/image.tmp", os.O_WRONLY):
        until(
            lambda: quotas.standing(payer.uid).used.bytes >= MIB,
            lambda: "what is written unseen does not count",
        )
        said = quotas.say("set", payer.uid, "--hard", 100 * MIB)
        assert NOT_YET in said
        assert "of node b: what the kernel is writing there by itself counts" in said
    until(
        lambda: NOT_YET not in quotas.say("set", payer.uid, "--hard", 100 * MIB),
        lambda: "it holds nowhere once the file is closed",
    )
