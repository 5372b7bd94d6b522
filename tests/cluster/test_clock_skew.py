"""Hosts whose clocks are minutes ahead and behind share a store: nobody is taken for dead by it, and nothing ends before its time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckfs.names import SetName, Uid
from ckfs.store.layout import open_store
from ckfs.store.removed import Note
from ckfs.store.spots import Spot
from tests.support import ledgers
from tests.support.agents import Agent
from tests.support.clocks import HostClock
from tests.support.images import content, save, state
from tests.support.ledgers import rewrite_policy
from tests.support.machines import wait_until
from tests.support.mounting import Mount, mounted, run_ckfs
from tests.support.payers import UNIT, Quotas, private_store
from tests.support.postgres import Server
from tests.support.users import ALICE, as_user, errno_as

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

LEASE_S = 4
LONG_S = 120.0
SKEW_S = 7 * 60
RETENTION_S = 10 * 60
"""More than a clock is off, and less than two are: what counts by one host's clock alone is wrong."""
OWN_KERNEL = ("unshare", "--pid", "--fork", "--kill-child")
"""Process ids of one host mean nothing on the others: only beats tell who lives."""
OFF_BY_S = {"ahead": SKEW_S, "right": 0, "behind": -SKEW_S}
SET = "7.server.CK"
NAME = SetName(SET.encode())
MAY_LOG = ["is partial", "soft limit"]


only_when_asked_for = (pytest.mark.cluster, pytest.mark.long_on_cluster)
"""With ``--whole-cluster``, though they need no cluster: they take long."""


@dataclass(frozen=True)
class Hosts:
    store: Path
    where: Path
    clocks: dict[str, HostClock]

    @contextlib.contextmanager
    def mounted(self, name: str, role: str = "node") -> Iterator[Mount]:
        with contextlib.ExitStack() as stack:
            with self.clocks[name].kept():
                mounting = mounted(
                    self.store, self.where / name, node=name, role=role, may_log=MAY_LOG, within=OWN_KERNEL
                )
                mount = stack.enter_context(mounting)
            yield mount


@pytest.fixture
def hosts(root_and_fuse: None, workdir: Path, postgres: Server) -> Hosts:
    """None of them has mounted the store yet."""
    clocks = {}
    for name, off_by_s in OFF_BY_S.items():
        (workdir / f"clock-{name}").mkdir(mode=0o711)
        clocks[name] = HostClock(workdir / f"clock-{name}")
        clocks[name].off_by(off_by_s)
    store = private_store(workdir)
    rewrite_policy(store, ledgers.in_new_database(postgres))
    rewrite_policy(store, lambda text: text.replace("lease = 60", f"lease = {LEASE_S}"))
    return Hosts(store, workdir, clocks)


def beats(store: Path) -> dict[str, int]:
    """By node, as their registrations say."""
    found = {}
    for path in (store / "mounts").iterdir():
        if len(path.name) == 16:
            fields = dict(pair.split("=", 1) for pair in path.read_text().split(";")[1:])
            found[fields["n"]] = int(fields["b"], 16)
    return found


def die(mount: Mount) -> None:
    """Its daemon is the first process of its host, beside which the one that made that host only waits."""
    holder = mount.process.pid
    (daemon,) = Path(f"/proc/{holder}/task/{holder}/children").read_text().split()
    os.kill(int(daemon), signal.SIGKILL)
    mount.kill()
    mount.detach()


def all_are_heard_of(store: Path) -> None:
    """Again and again, for a lease."""
    before = beats(store)
    wait_until(
        lambda: all(beats(store)[node] >= beat + 4 for node, beat in before.items()), "all beat on", LONG_S
    )


def make_set(mount: Mount) -> str:
    path = f"{mount.path}/{SET}"
    os.mkdir(path)
    os.chown(path, ALICE, ALICE)
    return path


def states(store: Path, *names: str) -> dict[str, str]:
    """As ``ckfs ls`` shows them."""
    done = run_ckfs("ls", "--json", SET, "--store", store)
    assert done.returncode == 0, done.stderr
    rows = [row for row in json.loads(done.stdout) if row["path"] in names]
    return {row["path"]: row["state"] for row in rows}


def test_who_lives_is_not_told_by_clocks_and_who_is_dead_is_found_in_time(hosts: Hosts) -> None:
    with contextlib.ExitStack() as stack:
        right = stack.enter_context(hosts.mounted("right", role="server"))
        others = {name: stack.enter_context(hosts.mounted(name)) for name in ("ahead", "behind")}
        mounts = {"right": right, **others}
        make_set(right)
        quotas = Quotas(hosts.store, right.path)
        quotas.limit(ALICE, hard=1024 * UNIT)
        writers = {name: stack.enter_context(Agent(ALICE)) for name in mounts}
        fds = {}
        for name, writer in writers.items():
            path = f"{mounts[name].path}/{SET}/{name}"
            fds[name] = writer.do(os.open, path, os.O_WRONLY | os.O_CREAT, 0o600)
            assert writer.do(os.write, fds[name], b"x" * UNIT) == UNIT
        claimed = quotas.standing(ALICE).claimed
        assert claimed.bytes > 0

        all_are_heard_of(hosts.store)
        for mount in mounts.values():
            for name in mounts:
                assert state(f"{mount.path}/{SET}/{name}") == "writing"
            assert "has died" not in mount.log()
            assert "is ended" not in mount.log()
        for name, writer in writers.items():
            assert writer.do(os.write, fds[name], b"x" * UNIT) == UNIT, "what was granted is there"

        die(mounts["ahead"])
        for name in ("right", "behind"):
            wait_until(
                lambda name=name: state(f"{mounts[name].path}/{SET}/ahead") == "partial",  # type: ignore[misc]  # a lambda with a default
                "who is dead is found out",
                LONG_S,
            )
            assert state(f"{mounts[name].path}/{SET}/behind") == "writing"
        writers["behind"].do(os.close, fds["behind"])
        writers["right"].do(os.close, fds["right"])
        wait_until(
            lambda: not quotas.standing(ALICE).claimed.bytes, "what the dead one had comes back", LONG_S
        )
        for name in ("right", "behind"):
            assert state(f"{mounts[name].path}/{SET}/{name}") == "complete"
            assert content(f"{mounts['right'].path}/{SET}/{name}") == b"x" * (2 * UNIT)


@pytest.mark.cluster
@pytest.mark.long_on_cluster
def test_times_of_files_are_the_stores(hosts: Hosts) -> None:
    with hosts.mounted("ahead") as ahead, hosts.mounted("behind") as behind:
        make_set(ahead)
        for mount, name in ((ahead, "by ahead"), (behind, "by behind")):
            before_s = time.time()
            as_user(ALICE, save, f"{mount.path}/{SET}/{name}", b"image")
            for other in (ahead, behind):
                changed_s = os.stat(f"{other.path}/{SET}/{name}").st_mtime
                assert before_s - 1 <= changed_s <= time.time() + 1


def removed(hosts: Hosts, by: str, name: str, ago_s: int) -> str:
    """Something that a mount of the host *by* put into the trash so long ago, by the clock of that host. Returns the item."""
    with contextlib.closing(open_store(str(hosts.store))) as store:
        entry = store.names.read(NAME)
        spot = entry.spot.below(name.encode())
        ino = store.door.examine(spot).record.ino
        when_ns = time.time_ns() + (OFF_BY_S[by] - ago_s) * 10**9
        note = Note(Uid(0), when_ns, by.encode(), b"/bin/rm", NAME, name.encode(), entry.owner, ino)
        assert isinstance(spot, Spot)
        return store.trash.put(spot, note).token


def in_trash(store: Path) -> set[str]:
    done = run_ckfs("trash", "ls", "--json", "--store", store)
    assert done.returncode == 0, done.stderr
    return {row["path"] for row in json.loads(done.stdout)}


@pytest.mark.parametrize("keeper", ["ahead", pytest.param("behind", marks=only_when_asked_for)])
def test_the_trash_keeps_everything_for_its_time_and_not_for_ever(hosts: Hosts, keeper: str) -> None:
    """Whatever the clocks of who removed it and of who keeps house say: never shorter, and at most by the difference longer."""
    days = RETENTION_S / 86_400
    rewrite_policy(
        hosts.store, lambda text: text.replace("retention_days = 7.0", f"retention_days = {days!r}")
    )
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(hosts.mounted(name)) for name in OFF_BY_S if name != keeper]
        make_set(others[0])
        for by in OFF_BY_S:
            for name in (f"{by}-now", f"{by}-before"):
                as_user(ALICE, save, f"{others[0].path}/{SET}/{name}", b"image")
            removed(hosts, by, f"{by}-now", 0)
            removed(hosts, by, f"{by}-before", RETENTION_S + 2 * SKEW_S + 60)
        stack.enter_context(hosts.mounted(keeper, role="server"))
        wait_until(
            lambda: not any(name.endswith("-before") for name in in_trash(hosts.store)),
            "what has had its time goes",
            LONG_S,
        )
        all_are_heard_of(hosts.store)
        assert in_trash(hosts.store) == {f"{by}-now" for by in OFF_BY_S}


@pytest.mark.cluster
@pytest.mark.long_on_cluster
def test_a_full_users_trash_gives_way_whenever_it_was_removed(hosts: Hosts) -> None:
    """Also what, by this host's clock, will be removed in some minutes only."""
    with hosts.mounted("ahead") as ahead, hosts.mounted("behind") as behind:
        make_set(ahead)
        Quotas(hosts.store, ahead.path).limit(ALICE, hard=64 * UNIT)
        as_user(ALICE, save, f"{ahead.path}/{SET}/first", b"1" * (40 * UNIT))
        as_user(ALICE, save, f"{ahead.path}/other", b"2")
        removed(hosts, "ahead", "first", 0)
        assert errno_as(ALICE, save, f"{behind.path}/second", b"3" * (40 * UNIT)) == 0
        assert in_trash(hosts.store) == set()


@pytest.mark.cluster
@pytest.mark.long_on_cluster
@pytest.mark.parametrize("keeper", ["ahead", "behind"])
def test_superseded_checkpoints_stay_for_their_time(hosts: Hosts, keeper: str) -> None:
    days = RETENTION_S / 86_400
    rewrite_policy(
        hosts.store, lambda text: text.replace("superseded_days = 30.0", f"superseded_days = {days!r}")
    )
    names = [f"ckpt.{number}" for number in range(5)]
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(hosts.mounted(name)) for name in OFF_BY_S if name != keeper]
        path = make_set(others[0])
        for number, name in enumerate(names):
            as_user(ALICE, save, f"{others[number % 2].path}/{SET}/{name}", b"image")
        found = [state(f"{path}/{name}") for name in names]
        assert found == ["superseded"] * 3 + ["complete"] * 2, (
            "the order is that in which they became complete"
        )
        with hosts.mounted(keeper, role="server") as server:
            wait_until(lambda: "keeps house" in server.log(), "it keeps house", LONG_S)
            all_are_heard_of(hosts.store)
            assert sorted(os.listdir(path)) == names


def test_grace_is_counted_by_the_ledgers_clock(hosts: Hosts) -> None:
    """On a host whose clock is ahead of the database's it does not end earlier, nor is it said so."""
    with hosts.mounted("ahead") as ahead, hosts.mounted("behind") as behind:
        make_set(ahead)
        Quotas(hosts.store, ahead.path).limit(ALICE, soft=4 * UNIT, hard=64 * UNIT, grace="6m")
        as_user(ALICE, save, f"{ahead.path}/{SET}/first", b"1" * (8 * UNIT))
        for mount in (ahead, behind):
            left_s = int(as_user(ALICE, os.getxattr, mount.path, "user.ckfs.quota.grace"))
            assert 0 < left_s <= 360
            room = os.statvfs(f"{mount.path}/{SET}")
            assert room.f_bavail > 0
            assert errno_as(ALICE, save, f"{mount.path}/{SET}/more {mount.path.name}", b"2" * UNIT) == 0
            assert "grace time has ended" not in mount.log()
