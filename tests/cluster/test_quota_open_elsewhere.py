"""What is open on one mount and removed on another takes room until it is closed, and is charged until then: also if a mount dies."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.agents import Agent
from tests.support.images import save
from tests.support.mounting import Mount, mounted
from tests.support.payers import UNIT, Payer, Quotas, ledger_in, new_payer, private_store, until
from tests.support.users import raises_errno

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

ROOM = 10
"""In units."""
PIECE = 4 * UNIT
MAY_LOG = ["is partial: a write failed", r"is ended|is forgotten|recount|counted anew|left by|has died"]


@dataclass(frozen=True)
class Two:
    """A payer's set, who may add :data:`ROOM` units to it, on two mounts."""

    payer: Payer
    one: Mount
    other: Mount

    def here(self, name: str) -> str:
        return self.payer.inside(name)

    def there(self, name: str) -> str:
        return f"{self.other.path}/set-{self.payer.uid}/{name}"

    @property
    def left(self) -> int:
        """The bytes that he may add by what the ledger says."""
        assert self.payer.hard_bytes is not None
        return self.payer.hard_bytes - self.payer.quotas.standing(self.payer.uid).used.bytes

    def until_left(self, size: int) -> None:
        until(
            lambda: self.left == size,
            lambda: f"{self.left} bytes are left: {self.payer.quotas.standing(self.payer.uid)}",
        )


@pytest.fixture
def two(workdir: Path) -> Iterator[Two]:
    with ledger_in(workdir / "state"), ExitStack() as mounts:
        store = private_store(workdir)
        policy = store / "policy.toml"
        policy.write_text(policy.read_text().replace("lease = 60.0", "lease = 2.0"))
        one, other = (
            mounts.enter_context(mounted(store, workdir / node, node=node, may_log=MAY_LOG)) for node in "ab"
        )
        payer = new_payer(one, Quotas(store, store))
        payer.may_add(bytes=ROOM * UNIT)
        yield Two(payer, one, other)
        payer.quotas.check()


def test_holding_again_and_again_is_no_way_around_the_limit(two: Two) -> None:
    with Agent(two.payer.uid) as holder, Agent(two.payer.uid) as writer:
        fds = []
        for _ in range(2):
            writer.do(save, two.here("dump.tmp"), b"x" * PIECE)
            fds.append(holder.do(os.open, two.there("dump.tmp"), os.O_RDONLY))
            writer.do(os.unlink, two.here("dump.tmp"))
        with raises_errno(errno.EDQUOT):
            writer.do(save, two.here("dump.tmp"), b"x" * PIECE)
        writer.do(os.unlink, two.here("dump.tmp"))
        two.until_left(2 * UNIT)
        for fd in fds:
            assert holder.do(os.pread, fd, PIECE, 0) == b"x" * PIECE
            holder.do(os.close, fd)
        two.until_left(ROOM * UNIT)
        writer.do(save, two.here("dump.tmp"), b"x" * (ROOM * UNIT))
    two.payer.has()


@pytest.mark.parametrize("end", ["kill", "umount"])
def test_what_is_open_counts_on_when_the_mount_that_removed_it_is_gone(two: Two, end: str) -> None:
    with Agent(two.payer.uid) as holder:
        holder.do(save, two.there("dump.tmp"), b"x" * PIECE)
        fd = holder.do(os.open, two.there("dump.tmp"), os.O_RDONLY)
        two.payer.calls(os.unlink, two.here("dump.tmp"))
        getattr(two.one, end)()
        with raises_errno(errno.EDQUOT):
            holder.do(save, two.there("more.tmp"), b"x" * (ROOM * UNIT))
        holder.do(os.unlink, two.there("more.tmp"))
        two.until_left(ROOM * UNIT - PIECE)
        holder.do(os.close, fd)
    two.until_left(ROOM * UNIT)


def test_what_was_open_is_free_when_the_mount_is_killed_that_had_it_open(two: Two) -> None:
    with Agent(two.payer.uid) as holder:
        two.payer.calls(save, two.here("dump.tmp"), b"x" * PIECE)
        fd = holder.do(os.open, two.there("dump.tmp"), os.O_RDONLY)
        two.payer.calls(os.unlink, two.here("dump.tmp"))
        two.until_left(ROOM * UNIT - PIECE)
        two.other.kill()
        with contextlib.suppress(OSError):
            holder.do(os.close, fd)
    two.until_left(ROOM * UNIT)
    two.payer.has()
