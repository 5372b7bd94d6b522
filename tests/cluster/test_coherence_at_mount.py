"""Mounts find out by themselves how late they see what other hosts do, and say which option mends it."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.gluster_cluster import SERVICE, Cluster, Host
from tests.support.machines import wait_until
from tests.support.mounting import Mount, mounted, run_ckfs
from tests.support.nfs import directory_for, nfs_store

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

LONG_S = 120.0
LEASE_S = 2
LATE = r"is seen \d+\.\d s late"
GLUSTER_OPTIONS = "direct-io-mode=enable,attribute-timeout=0,entry-timeout=0,gid-timeout=0"
NFS_LIKE_OPTIONS = "entry, negative and attribute time-outs of 0"


def found_out(mount: Mount) -> dict[str, Any]:
    """What ``ckfs status`` says of it, once it is known."""

    def look() -> Any:
        done = run_ckfs("status", mount.path, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["coherence"]

    wait_until(lambda: look() is not None, f"{mount.path} finds out how late it sees others", LONG_S)
    found = look()
    assert isinstance(found, dict)
    return found


def sees_at_once(mount: Mount, other: str) -> None:
    found = found_out(mount)
    assert (found["node"], found["is_late"], found["mend"]) == (other, False, "")
    assert f"seen at once, as tried with {other}" in mount.log()
    assert f"seen at once, as tried with {other}" in run_ckfs("status", mount.path).stdout


def sees_late(mount: Mount, other: str, mend: str) -> None:
    found = found_out(mount)
    assert (found["node"], found["is_late"]) == (other, True)
    assert mend in found["mend"]
    lines = [line for line in mount.log().splitlines() if " s late, as tried with" in line]
    assert len(lines) == 1
    assert mend in lines[0]
    assert mend in run_ckfs("status", mount.path).stdout


def nothing_is_left_of_it(store: Path) -> None:
    """Two that have found out end their talk soon after that."""

    def left() -> list[str]:
        return [
            name for name in os.listdir(store / "mounts") if name.endswith((".asked", ".asks", ".answers"))
        ]

    wait_until(lambda: not left(), "nothing is left of what mounts asked each other", LONG_S)


def be_quick(store: Path) -> None:
    policy = store / "policy.toml"
    policy.write_text(policy.read_text().replace("lease = 60", f"lease = {LEASE_S}"))


@contextlib.contextmanager
def over_nfs(
    workdir: Path, attributes_s: float, may_log: Sequence[str]
) -> Iterator[tuple[Mount, Mount, Path]]:
    """Hosts a and b, each with a client of its own, which keeps attributes and names for so long."""
    private = workdir / "private"
    private.mkdir(mode=0o700)
    keeper = pwd.getpwnam(SERVICE)
    with nfs_store(private, clients=2, attributes_s=attributes_s) as nfs:
        server = directory_for(nfs, keeper.pw_uid, keeper.pw_gid)
        first, second = (client.path / "store" for client in nfs.clients)
        run_ckfs("init", first, "--service-user", keeper.pw_name, "--quota", "none").check_returncode()
        be_quick(server)
        options = [f"service_user={keeper.pw_name}"]
        with (
            mounted(first, workdir / "a", node="a", options=options, may_log=may_log) as a,
            mounted(second, workdir / "b", node="b", options=options, may_log=may_log) as b,
        ):
            yield a, b, server


@pytest.mark.cluster
@pytest.mark.long_on_cluster
def test_clients_that_keep_nothing_see_each_other_at_once(workdir: Path) -> None:
    with over_nfs(workdir, 0.0, []) as (a, b, server):
        sees_at_once(a, "b")
        sees_at_once(b, "a")
        nothing_is_left_of_it(server)


def test_clients_that_keep_attributes_are_late_and_are_told_the_option(workdir: Path) -> None:
    with over_nfs(workdir, 1.5, [LATE]) as (a, b, _):
        sees_late(a, "b", NFS_LIKE_OPTIONS)
        sees_late(b, "a", NFS_LIKE_OPTIONS)


@pytest.mark.cluster
@pytest.mark.long_on_cluster
def test_two_mounts_over_one_client_tell_nothing(workdir: Path) -> None:
    """They see each other's changes whatever is late: both look through the same cache."""
    private = workdir / "private"
    private.mkdir(mode=0o700)
    keeper = pwd.getpwnam(SERVICE)
    options = [f"service_user={keeper.pw_name}"]
    with nfs_store(private, attributes_s=1.5) as nfs:
        server = directory_for(nfs, keeper.pw_uid, keeper.pw_gid)
        store = nfs.clients[0].path / "store"
        run_ckfs("init", store, "--service-user", keeper.pw_name, "--quota", "none").check_returncode()
        be_quick(server)
        with (
            mounted(store, workdir / "a", node="a", options=options) as a,
            mounted(store, workdir / "b", node="b", options=options) as b,
        ):
            wait_until(lambda: bool(list(server.glob("mounts/*.answers"))), "one is answered", LONG_S)
            nothing_is_left_of_it(server)
            for mount in (a, b):
                assert json.loads(run_ckfs("status", mount.path, "--json").stdout)["coherence"] is None
                assert "is not known" in run_ckfs("status", mount.path).stdout


# GlusterFS


@pytest.fixture
def store(gluster: Cluster) -> str:
    made = gluster.make_store("--quota", "none")
    be_quick(gluster.kept / made)
    return made


@pytest.mark.cluster
def test_gluster_clients_with_the_documented_options_see_each_other_at_once(
    gluster: Cluster, store: str, workdir: Path
) -> None:
    here, there, _ = gluster.hosts
    with here.mounts(store, workdir / "a") as a, there.mounts(store, workdir / "b") as b:
        sees_at_once(a, there.name)
        sees_at_once(b, here.name)


@pytest.mark.cluster
def test_a_gluster_client_with_its_default_options_is_late_and_is_told_the_options(
    gluster: Cluster, store: str, workdir: Path
) -> None:
    there = gluster.hosts[1]
    with gluster.mounted_by_default(0) as here:
        assert isinstance(here, Host)
        with (
            here.mounts(store, workdir / "a", may_log=[LATE]) as a,
            there.mounts(
                store, workdir / "b", may_log=[LATE]
            ),  # who answers is as late as the other has asked
        ):
            sees_late(a, there.name, GLUSTER_OPTIONS)
