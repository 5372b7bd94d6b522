"""A further store on a file system that squashes root, which only two of three hosts have: held there, restarted there, and brought home."""

from __future__ import annotations

import errno
import json
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.gluster_cluster import SERVICE, Cluster
from tests.support.machines import wait_until
from tests.support.mounting import run_ckfs
from tests.support.sets import create, read
from tests.support.users import ALICE, as_user, errno_as, errno_of_call

pytestmark = [pytest.mark.root, pytest.mark.cluster]

SET, IMAGE = "12.server.CK", "12.server.CK/ckpt.12.server.1700000000"
CONTENT = bytes(range(256)) * 8192
FAST = "fast"
MAY_LOG = [r"further store"]
LONG_S = 120.0


@dataclass(frozen=True)
class Hosts:
    """Mount points of two hosts that reach the further store, and of one that does not; *kept* is that store as its admin sees it."""

    makes: str
    restarts: str
    without: str
    kept: Path


@pytest.fixture
def hosts(gluster: Cluster, workdir: Path) -> Iterator[Hosts]:
    store, account = gluster.make_store("--quota", "none"), pwd.getpwnam(SERVICE)
    gluster.make_directory(FAST, account.pw_uid, account.pw_gid)
    volume = gluster.hosts[0].volume
    made = run_ckfs("init", volume / FAST, "--for", volume / store, "--service-user", SERVICE)
    assert made.returncode == 0, made.stderr
    policy = gluster.kept / store / "policy.toml"
    said = made.stdout[made.stdout.index("[[stores]]") :]
    tables = [line.strip() for line in said.splitlines() if "=" in line or "[[" in line]
    named = [f"name = {json.dumps(FAST)}" if line.startswith("name") else line for line in tables]
    policy.write_text("\n".join([policy.read_text(), *named, ""]))
    with (
        gluster.hosts[0].mounts(
            store, workdir / "makes", options=[f"at.{FAST}={volume / FAST}"], may_log=MAY_LOG
        ) as makes,
        gluster.hosts[1].mounts(
            store,
            workdir / "restarts",
            options=[f"at.{FAST}={gluster.hosts[1].volume / FAST}"],
            may_log=MAY_LOG,
        ) as restarts,
        gluster.hosts[2].mounts(
            store, workdir / "without", options=[f"at.{FAST}=none"], may_log=MAY_LOG
        ) as without,
    ):
        yield Hosts(str(makes.path), str(restarts.path), str(without.path), gluster.kept / FAST)


def hold(mount: str) -> None:
    """As pbs_mom does it."""
    os.mkdir(f"{mount}/{SET}")
    os.chown(f"{mount}/{SET}", ALICE, ALICE)
    as_user(ALICE, create, f"{mount}/{IMAGE}", CONTENT)


def test_held_and_restarted_where_it_is_reached_and_brought_home_for_others(hosts: Hosts) -> None:
    hold(hosts.makes)
    wait_until(lambda: any((hosts.kept / "users" / str(ALICE)).glob(f"{SET}*")), "it lies there", LONG_S)
    assert as_user(ALICE, read, f"{hosts.restarts}/{IMAGE}") == CONTENT
    assert os.stat(f"{hosts.without}/{SET}").st_uid == ALICE
    assert errno_as(ALICE, read, f"{hosts.without}/{IMAGE}") == errno.EHOSTUNREACH
    assert errno_of_call(os.rmdir, f"{hosts.without}/{SET}") == errno.EHOSTUNREACH
    wait_until(
        lambda: run_ckfs("move", f"{hosts.makes}/{SET}", "home").returncode == 0, "it is moved", LONG_S
    )
    assert os.getxattr(f"{hosts.restarts}/{SET}", "user.ckfs.store") == b"home"
    for mount in (hosts.makes, hosts.restarts, hosts.without):
        assert as_user(ALICE, read, f"{mount}/{IMAGE}") == CONTENT
    wait_until(
        lambda: not any((hosts.kept / "users" / str(ALICE)).glob(f"{SET}*")), "nothing is left there", LONG_S
    )
    moved_back = run_ckfs("move", f"{hosts.without}/{SET}", FAST)
    assert (moved_back.returncode != 0, moved_back.stderr.count("\n")) == (True, 1)
    assert as_user(ALICE, read, f"{hosts.without}/{IMAGE}") == CONTENT
