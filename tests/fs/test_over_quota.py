"""An engine that answers ENOSPC to one who is over his own limit, as XFS does to projects: callers hear EDQUOT.

There is no XFS with quotas here. The store says ENOSPC at each of its calls in turn, and who is at his limit is known beforehand.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ckfs.errors import errno_of
from ckfs.fs import content, writing
from ckfs.fs.metadata import Changes
from ckfs.names import Gid, Uid
from ckfs.policy.enforcing import QuotaMode
from ckfs.store.realms import Arrangement
from tests.fs import failing
from tests.fs.cores import ALICE, Mount, Process, mounted, new_store
from tests.support.nfs import on_server

pytestmark = pytest.mark.trio
_MOST_CALLS = 60
_WRITING = {"mkdir", "pwrite", "write", "setxattr", "link", "rename", "ftruncate"}
"""Calls that a store without room refuses."""

Work = Callable[[Process, int], Awaitable[object]]

IN_TIME = {"mkdir", "append"}
"""On what behaves like NFS."""
WORKS: dict[str, Work] = {
    "mkdir": lambda p, n: p.mkdir(f"set/d{n}"),
    "create": lambda p, n: p.save(f"set/f{n}", b"x" * 100),
    "symlink": lambda p, n: p.symlink(f"set/s{n}", b"target"),
    "append": lambda p, _: p.append("set/image", b"x" * 100),
    "chmod": lambda p, n: p.setattr("set/image", Changes(mode=0o600 + n % 2)),
    "rename": lambda p, n: p.rename("set/movable", f"set/m{n}"),
}


EACH = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long_on_nfs] * (name not in IN_TIME)) for name in WORKS]
)


@pytest.fixture
def store_calls(monkeypatch: pytest.MonkeyPatch) -> failing.Failing:
    calls = failing.install(monkeypatch)
    for module in (content, writing):
        monkeypatch.setattr(module, "os", failing._Os(calls))
    return calls


@pytest.fixture
def store(directory: Path) -> Path:
    """One of realms, without a trash from which something could give way."""
    store = new_store(directory, Arrangement.REALMS, QuotaMode.ENGINE)
    policy = on_server(store) / "policy.toml"
    policy.write_text(policy.read_text().replace("retention_days = 7.0", "retention_days = 0"))
    return store


def _plain(uid: Uid, gid: Gid) -> None:
    """A directory does for this engine."""


async def _refusals(mount: Mount, calls: failing.Failing, work: Work) -> set[int]:
    """What *work* answers when one call of the store after the other says ENOSPC."""
    refusals = set[int]()
    for at in range(1, _MOST_CALLS):
        await mount.alice.save("set/movable", b"m")
        with calls.armed(at, lambda: OSError(errno.ENOSPC, "no space")):
            try:
                await work(mount.alice, at)
            except Exception as error:  # noqa: BLE001 - as the transport does
                if calls.log[at - 1] in _WRITING:
                    refusals.add(errno_of(error))
            met = calls.count
        if met < at:
            return refusals
        await _without(mount, f"set/m{at}", "set/movable")
    raise AssertionError("it makes ever more calls")


async def _without(mount: Mount, *paths: str) -> None:
    for path in paths:
        await mount.alice.remove_tree(path)


@EACH
async def test_one_who_is_at_his_own_limit_hears_edquot(
    store: Path, store_calls: failing.Failing, name: str
) -> None:
    async with mounted(store) as mount:
        mount.core.store.names.make_realms_by(_plain)
        mount.core.store.door.refusals.tell_quotas_by(lambda uid: uid == ALICE.uid)
        await mount.alice.mkdir("set")
        await mount.alice.save("set/image", b"x")
        assert await _refusals(mount, store_calls, WORKS[name]) == {errno.EDQUOT}


@EACH
async def test_the_end_of_the_store_stays_enospc(
    store: Path, store_calls: failing.Failing, name: str
) -> None:
    asked = set[Uid]()
    async with mounted(store) as mount:

        def note(uid: Uid) -> bool:
            asked.add(uid)
            return False

        mount.core.store.names.make_realms_by(_plain)
        mount.core.store.door.refusals.tell_quotas_by(note)
        await mount.alice.mkdir("set")
        await mount.alice.save("set/image", b"x")
        assert await _refusals(mount, store_calls, WORKS[name]) == {errno.ENOSPC}
    assert asked == {ALICE.uid}
