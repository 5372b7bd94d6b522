"""The database of the ledger is away while a store is mounted: it crashed, or hangs, or one host cannot reach it. What needs nothing new of
it goes on, what does ends as the policy says, and all is right again when it is back, without a remount."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.images import content, save, write_all
from tests.support.ledgers import rewrite_policy
from tests.support.mounting import Mount, mounted, run_ckfs
from tests.support.payers import (
    UNIT,
    Charge,
    Payer,
    Quotas,
    ledger_in,
    new_payer,
    private_store,
    until,
)
from tests.support.postgres import Server, running, skip_unless_installed
from tests.support.relays import relayed
from tests.support.users import errno_of_call, raises_errno

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

MIB = 1 << 20
SHORT = "op_timeout=4"
AWAY = [r"the ledger of quotas is (away|back)", "is partial: a write failed"]
DATABASE = "ledger"
"""Where its server is, each host says for itself."""

Outage = Callable[[Server], AbstractContextManager[None]]


@contextlib.contextmanager
def crashed(server: Server) -> Iterator[None]:
    server.stop(signal.SIGQUIT)
    try:
        yield
    finally:
        server.start()


def frozen(server: Server) -> AbstractContextManager[None]:
    return server.frozen()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One of these tests' own: they end it."""
    skip_unless_installed()
    with running() as started:
        yield started


@pytest.fixture(params=[crashed, frozen], ids=lambda outage: outage.__name__)
def away(request: pytest.FixtureRequest, server: Server) -> Callable[[], AbstractContextManager[None]]:
    return partial(request.param, server)


@pytest.fixture
def store(root_and_fuse: None, workdir: Path, server: Server) -> Iterator[Path]:
    """Its policy says that writes end with EIO, but not where the server is."""
    database = f"{DATABASE}_{secrets.token_hex(4)}"
    server.new_database(database)
    made = private_store(workdir)
    rewrite_policy(made, lambda text: text.replace('"embedded"', f'"user=postgres dbname={database}"'))
    with ledger_in(workdir / "state"), reached_in(server.directory):
        yield made


@contextlib.contextmanager
def reached_in(directory: Path) -> Iterator[None]:
    """What starts in the block finds its database by the socket in *directory*."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGHOST", str(directory))
        yield


@pytest.fixture
def quotas(store: Path) -> Quotas:
    return Quotas(store, store)


@pytest.fixture
def mount(store: Path, workdir: Path, quotas: Quotas) -> Iterator[Mount]:
    with mounted(store, workdir / "mount", options=[SHORT], may_log=AWAY) as mount:
        yield mount
        if not mount.ended:
            quotas.all_given_back()
            quotas.check()


@pytest.fixture
def payer(mount: Mount, quotas: Quotas) -> Payer:
    """Who has an image of some units, and nothing granted."""
    payer = new_payer(mount, quotas)
    payer.calls(save, payer.inside("image"), b"x" * (4 * UNIT))
    payer.calls(save, payer.inside("other"), b"y" * UNIT)
    payer.may_add(bytes=4 * UNIT)
    quotas.all_given_back()
    return payer


def refused(payer: Payer, name: str = "new") -> int:
    """What a write gets for which nothing is granted yet."""
    return int(payer.calls(errno_of_call, save, payer.inside(name), b"n" * UNIT))


def free_of(path: str) -> int:
    room = os.statvfs(path)
    return room.f_bavail * room.f_frsize


# What goes on, and what does not


def test_what_needs_nothing_new_of_it_goes_on(
    payer: Payer, away: Callable[[], AbstractContextManager[None]]
) -> None:
    image = payer.inside("image")
    with away():
        assert payer.calls(content, image) == b"x" * (4 * UNIT)
        assert os.stat(image).st_size == 4 * UNIT
        payer.calls(os.rename, payer.inside("other"), payer.inside("renamed"))
        assert sorted(os.listdir(payer.path)) == ["image", "renamed"]
        payer.calls(os.unlink, payer.inside("renamed"))
        assert run_ckfs("status", payer.mount.path).returncode == 0
    assert payer.has() == Charge(6 * UNIT, 3)


def test_df_shows_the_store_and_attributes_say_that_they_are_not_to_be_had(
    payer: Payer, away: Callable[[], AbstractContextManager[None]]
) -> None:
    assert payer.calls(free_of, payer.path) == 4 * UNIT
    with away():
        assert payer.calls(free_of, payer.path) > 4 * UNIT
        with raises_errno(errno.EIO):
            payer.calls(os.getxattr, payer.path, "user.ckfs.quota.used")
        assert payer.calls(os.getxattr, payer.inside("image"), "user.ckfs.state") == b"complete"
        asked = run_ckfs("quota", str(payer.uid), "--store", payer.mount.path)
        assert (asked.returncode, asked.stderr.count("\n")) == (1, 1), asked
    until(
        lambda: payer.calls(free_of, payer.path) == 4 * UNIT,
        lambda: f"df shows {payer.calls(free_of, payer.path)} bytes",
    )
    assert payer.calls(os.getxattr, payer.path, "user.ckfs.quota.used") == b"%d" % payer.has().bytes


def test_who_has_room_granted_writes_on(
    payer: Payer, away: Callable[[], AbstractContextManager[None]]
) -> None:
    """What is granted and not used for a second is given back: a writer who is slow here has nothing granted, and is tried again."""
    payer.may_add()
    for turn in range(10):
        with Agent(payer.uid) as writer:
            fd = writer.do(os.open, payer.inside(f"long-{turn}.tmp"), os.O_WRONLY | os.O_CREAT, 0o600)
            writer.do(write_all, fd, b"1" * UNIT)
            with away():
                wrote_on = writer.do(errno_of_call, write_all, fd, b"2" * MIB) == 0
            writer.do(os.close, fd)
        if wrote_on:
            assert payer.calls(content, payer.inside(f"long-{turn}.tmp"))[UNIT:] == b"2" * MIB
            break
    else:
        pytest.fail("nobody wrote on with what was granted")
    payer.has()


@pytest.mark.parametrize("expected", [errno.EIO, errno.EDQUOT], ids=errno.errorcode.__getitem__)
def test_what_needs_more_ends_as_the_policy_says(
    store: Path,
    workdir: Path,
    quotas: Quotas,
    away: Callable[[], AbstractContextManager[None]],
    expected: int,
) -> None:
    said = f'away = "{errno.errorcode[expected]}"'
    rewrite_policy(store, lambda text: text.replace('away = "EIO"', said))
    with mounted(store, workdir / "mount", options=[SHORT], may_log=AWAY) as mount:
        payer = new_payer(mount, quotas)
        payer.has()
        quotas.all_given_back()
        with away():
            assert [refused(payer, name) for name in ("one", "two")] == [expected, expected]
            with raises_errno(expected):
                payer.calls(os.mkdir, payer.inside("directory"))
        until(lambda: refused(payer, "three") == 0, lambda: "it does not come back")
        payer.has()


# Afterwards


def test_all_is_right_when_it_is_back(payer: Payer, away: Callable[[], AbstractContextManager[None]]) -> None:
    with away():
        assert refused(payer) == errno.EIO
        payer.calls(os.unlink, payer.inside("image"))
        assert refused(payer) == errno.EIO, "what was freed is to be had when the ledger knows"
    until(lambda: refused(payer) == 0, lambda: "it does not come back")
    payer.calls(save, payer.inside("large"), b"l" * (6 * UNIT))
    assert payer.calls(errno_of_call, save, payer.inside("larger"), b"m" * (8 * UNIT)) == errno.EDQUOT
    payer.has()
    assert "the ledger of quotas is away" in payer.mount.log()
    assert "the ledger of quotas is back" in payer.mount.log()


def test_umount_while_it_is_away_loses_nothing(
    payer: Payer, store: Path, workdir: Path, away: Callable[[], AbstractContextManager[None]]
) -> None:
    with away():
        payer.calls(os.unlink, payer.inside("other"))
        payer.mount.umount()
    with mounted(store, workdir / "mount", options=[SHORT], may_log=AWAY) as again:
        payer.mount = again
        assert payer.calls(content, payer.inside("image")) == b"x" * (4 * UNIT)
        payer.has()
        payer.quotas.all_given_back()
        payer.quotas.check()


def test_a_restart_is_noticed_by_nobody(store: Path, workdir: Path, quotas: Quotas, server: Server) -> None:
    """If it takes less than op_timeout."""
    with mounted(store, workdir / "mount", options=["op_timeout=60"]) as mount:
        payer = new_payer(mount, quotas)
        with Agent(payer.uid) as writer:
            writer.begin(save_many, payer.path)
            for _ in range(3):
                server.stop()
                server.start()
            Path(mount.path, "enough").mkdir()
            assert writer.result() > 0
        assert "away" not in mount.log()
        payer.has()
        quotas.all_given_back()
        quotas.check()


def save_many(directory: str) -> int:
    """Images, each for itself, until there is a set named ``enough``; how many."""
    number = 0
    while not os.path.exists(f"{directory}/../enough"):
        save(f"{directory}/image-{number}", b"x" * UNIT)
        number += 1
    return number


# One host of two


@dataclass
class Hosts:
    """A user on two hosts, of which the second is *cut* off from the database."""

    here: Payer
    there: Payer
    cut: Callable[[], AbstractContextManager[None]]


@pytest.fixture
def hosts(store: Path, workdir: Path, server: Server, quotas: Quotas) -> Iterator[Hosts]:
    way = workdir / "way"
    way.mkdir()
    with relayed(way, server.directory) as relay, contextlib.ExitStack() as stack:
        mounts = []
        for node, directory in (("a", server.directory), ("b", way)):
            options = [SHORT, f"state={workdir}/state-{node}"]
            with reached_in(directory):
                mount = mounted(store, workdir / node, node=node, options=options, may_log=AWAY)
                mounts.append(stack.enter_context(mount))
        here = new_payer(mounts[0], quotas)
        there = Payer(here.uid, mounts[1], quotas)
        yield Hosts(here, there, relay.cut)
        quotas.all_given_back()
        quotas.check()


def test_a_host_that_is_cut_off_holds_up_no_other(hosts: Hosts) -> None:
    here, there = hosts.here, hosts.there
    there.calls(save, there.inside("there"), b"t" * (4 * UNIT))
    here.may_add(bytes=8 * UNIT)
    here.quotas.all_given_back()
    with hosts.cut():
        assert refused(there) == errno.EIO
        here.calls(save, here.inside("here"), b"h" * (8 * UNIT))
        assert here.calls(errno_of_call, save, here.inside("more.tmp"), b"m") == errno.EDQUOT
        here.calls(os.unlink, here.inside("more.tmp"))
        assert there.calls(content, there.inside("here")) == b"h" * (8 * UNIT)
        there.calls(os.unlink, there.inside("there"))
    until(lambda: refused(there) == 0, lambda: "the host does not come back")
    here.has()
