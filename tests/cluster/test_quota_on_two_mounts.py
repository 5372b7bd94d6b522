"""One user on two mounts of a store has one quota, to the last byte; and what one mount does to a file that another one wrote is counted
right, however soon after."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.images import append, save
from tests.support.mounting import mounted
from tests.support.payers import (
    NOTHING,
    UNIT,
    Charge,
    Payer,
    Quotas,
    ledger_in,
    new_payer,
    private_store,
    until,
)
from tests.support.users import errno_of_call, raises_errno

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

REFUSED = ["is partial: a write failed"]
TIMES = 10


@dataclass(frozen=True)
class Two:
    """A payer's set, as each of two mounts shows it."""

    payer: Payer
    elsewhere: str

    def here(self, name: str) -> str:
        return self.payer.inside(name)

    def there(self, name: str) -> str:
        return f"{self.elsewhere}/{name}"


@pytest.fixture(scope="module")
def views(root_and_fuse: None, module_workdir: Path) -> Iterator[Callable[[], Two]]:
    with ledger_in(module_workdir / "state"):
        store = private_store(module_workdir)
        with (
            mounted(store, module_workdir / "a", node="a", may_log=REFUSED) as a,
            mounted(store, module_workdir / "b", node="b", may_log=REFUSED) as b,
        ):
            quotas = Quotas(store, store)

            def new() -> Two:
                payer = new_payer(a, quotas)
                return Two(payer, f"{b.path}/set-{payer.uid}")

            yield new
            quotas.all_given_back()
            quotas.check()


@pytest.fixture
def two(views: Callable[[], Two]) -> Iterator[Two]:
    two = views()
    yield two
    two.payer.has()


def test_two_mounts_share_a_quota_to_the_last_byte(two: Two) -> None:
    two.payer.may_add(bytes=20 * UNIT)
    with Agent(two.payer.uid) as one, Agent(two.payer.uid) as other:
        fds = [
            (one, one.do(os.open, two.here("one.tmp"), os.O_WRONLY | os.O_CREAT, 0o600)),
            (other, other.do(os.open, two.there("two.tmp"), os.O_WRONLY | os.O_CREAT, 0o600)),
        ]
        for _ in range(10):
            for agent, fd in fds:
                assert agent.do(os.write, fd, b"x" * UNIT) == UNIT
        for agent, fd in fds:
            with raises_errno(errno.EDQUOT):
                agent.do(os.write, fd, b"x")
        one.do(os.ftruncate, fds[0][1], 0)
        until(
            lambda: other.do(errno_of_call, os.write, fds[1][1], b"x" * UNIT) == 0,
            lambda: "what one mount has freed the other does not get",
        )
        for agent, fd in fds:
            agent.do(os.close, fd)


# What is done to a file on another mount, as soon as it is closed


def save_there(two: Two, name: str) -> None:
    save(two.there(name), b"y" * (2 * UNIT))


def to_and_fro(two: Two, name: str) -> None:
    save_there(two, name)
    append(two.here(name), b"z" * (3 * UNIT))


WAYS: dict[str, Callable[[Two, str], object]] = {
    "unlink": lambda two, name: os.unlink(two.there(name)),
    "truncate": lambda two, name: os.truncate(two.there(name), UNIT),
    "O_TRUNC": save_there,
    "append": lambda two, name: append(two.there(name), b"y" * UNIT),
    "rename over": lambda two, name: os.rename(two.there(name), two.there("same.tmp")),
    "an attribute": lambda two, name: os.setxattr(two.there(name), "user.note", b"v"),
    "to and fro": to_and_fro,
}


@pytest.mark.parametrize("way", WAYS)
def test_what_another_mount_does_at_once_to_what_was_written_here_is_counted(two: Two, way: str) -> None:
    def work() -> None:
        for number in range(TIMES):
            save(two.here(f"{number}.tmp"), b"x" * (6 * UNIT))
            WAYS[way](two, f"{number}.tmp")

    two.payer.calls(work)
    two.payer.has()


def test_a_set_that_is_given_away_elsewhere_as_soon_as_it_is_written(
    two: Two, views: Callable[[], Two]
) -> None:
    taker = views().payer
    before = two.payer.has() + taker.has()
    two.payer.calls(save, two.here("image"), b"x" * (6 * UNIT))
    os.chown(two.elsewhere, taker.uid, taker.uid)
    assert two.payer.has() == NOTHING
    assert taker.has() - before == Charge(6 * UNIT, 1)


# While it is written


def test_what_one_mount_cuts_another_may_write(two: Two) -> None:
    """The image is open for writing on the one, and truncated, appended to and removed on the other."""
    before = two.payer.has()
    two.payer.may_add(bytes=10 * UNIT)
    with Agent(two.payer.uid) as writer:
        fd = writer.do(os.open, two.here("image.tmp"), os.O_WRONLY | os.O_CREAT, 0o600)
        assert writer.do(os.write, fd, b"x" * (6 * UNIT)) == 6 * UNIT
        two.payer.calls(os.truncate, two.there("image.tmp"), UNIT)
        two.payer.calls(append, two.there("image.tmp"), b"y" * (2 * UNIT))
        assert writer.do(os.pwrite, fd, b"z" * (3 * UNIT), 3 * UNIT) == 3 * UNIT
        two.payer.calls(os.unlink, two.there("image.tmp"))
        writer.do(os.close, fd)
    assert two.payer.has() == before


def test_a_set_written_on_one_mount_is_given_away_on_another(two: Two, views: Callable[[], Two]) -> None:
    taker = views().payer
    before = two.payer.has() + taker.has()
    with Agent(two.payer.uid) as writer:
        fd = writer.do(os.open, two.here("image"), os.O_RDWR | os.O_CREAT, 0o600)
        assert writer.do(os.write, fd, b"x" * (3 * UNIT)) == 3 * UNIT
        os.chown(two.elsewhere, taker.uid, taker.uid)
        assert writer.do(os.write, fd, b"x" * UNIT) == UNIT
        writer.do(os.close, fd)
    assert two.payer.has() == NOTHING
    assert taker.has() == before + Charge(4 * UNIT, 1)
