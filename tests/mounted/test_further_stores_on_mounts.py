"""A further store that only some hosts reach: two daemons of one home, of which one reaches it, and what callers of each see."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.faultfs import FaultStore, fault_store
from tests.support.further import Further, make_further, name_stores, table
from tests.support.mounting import Mount, command, environment, mounted, run_ckfs
from tests.support.payers import private_store
from tests.support.sets import create, looks_of, make_set, read
from tests.support.users import ALICE, as_user, errno_as, errno_of_call

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]

SET = "12.server.CK"
IMAGE = "ckpt.12.server.1700000000"
CONTENT = b"image" * 100_000
PATIENCE_S = 60.0
NOWHERE = Path("/nowhere/ckfs")
MAY_LOG = (r"further store", r"lies in the further store")


@dataclass(frozen=True)
class Hosts:
    """*node* reaches the further store *fast*, *login* does not."""

    home: Path
    fast: Further
    node: Mount
    login: Mount


@pytest.fixture
def home(workdir: Path) -> Path:
    return private_store(workdir)


@pytest.fixture
def hosts(home: Path, workdir: Path) -> Iterator[Hosts]:
    fast = make_further(home, workdir / "private" / "fast")
    name_stores(home, table("fast", fast, hosts=("node*",)))
    with (
        mounted(home, workdir / "node", node="node1", may_log=MAY_LOG) as node,
        mounted(home, workdir / "login", role="server", node="login1", may_log=MAY_LOG) as login,
    ):
        yield Hosts(home, fast, node, login)


@pytest.fixture
def faulty(workdir: Path) -> Iterator[FaultStore]:
    with fault_store(workdir) as running:
        yield running


def hold(mount: Mount) -> None:
    """What pbs_mom does on the node where a job is held."""
    os.mkdir(mount.path / SET)
    create(f"{mount.path}/{SET}/{IMAGE}", CONTENT, 0o600)
    os.chown(mount.path / SET, ALICE, ALICE)
    os.chown(mount.path / SET / IMAGE, ALICE, ALICE)


def eventually(done: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def test_held_on_one_node_and_restarted_on_one_that_does_not_reach_its_store(hosts: Hosts) -> None:
    hold(hosts.node)
    assert hosts.fast.kept(ALICE) == {SET}
    assert as_user(ALICE, read, f"{hosts.node.path}/{SET}/{IMAGE}") == CONTENT
    lies_at = os.getxattr(hosts.node.path / SET / IMAGE, "trusted.ckfs.path")
    assert os.fsdecode(lies_at) == f"{hosts.fast.path}/users/{ALICE}/{SET}/{IMAGE}"
    # The server lists it, with its owner: what it is, everybody knows; what is in it, nobody there.
    assert SET in os.listdir(hosts.login.path)
    seen, there = os.stat(hosts.login.path / SET), os.stat(hosts.node.path / SET)
    assert (seen.st_ino, seen.st_mode, seen.st_uid) == (there.st_ino, there.st_mode, ALICE)
    assert os.getxattr(hosts.login.path / SET, "user.ckfs.store") == b"fast"
    for _ in range(3):
        assert errno_as(ALICE, os.listdir, f"{hosts.login.path}/{SET}") == errno.EHOSTUNREACH
        assert errno_of_call(read, f"{hosts.login.path}/{SET}/{IMAGE}") == errno.EHOSTUNREACH
    assert (
        errno_of_call(os.rename, hosts.login.path / SET, hosts.login.path / f"{SET}.old")
        == errno.EHOSTUNREACH
    )
    assert errno_of_call(os.rmdir, hosts.login.path / SET) == errno.EHOSTUNREACH
    assert errno_of_call(os.mkdir, hosts.login.path / SET) == errno.EEXIST
    said = [line for line in hosts.login.log().splitlines() if f"set {SET} lies in the further store" in line]
    assert len(said) == 1, "one line, however often it is tried"
    assert f"fast ({hosts.fast.path}), which this host does not reach" in said[0]
    assert said[0].endswith("reached by node*")


def test_everything_that_belongs_to_a_set_is_kept_in_a_further_store(hosts: Hosts, workdir: Path) -> None:
    top = f"{hosts.node.path}/set"
    make_set(top)
    before = looks_of(top)
    hosts.node.umount()
    with mounted(hosts.home, workdir / "again", node="node2", may_log=MAY_LOG) as again:
        assert looks_of(f"{again.path}/set") == before


def test_ls_and_status_say_where_sets_lie(hosts: Hosts) -> None:
    hold(hosts.node)
    os.mkdir(hosts.login.path / "13.server.CK")
    for mount in (hosts.node, hosts.login):
        listed = run_ckfs("ls", mount.path)
        assert (listed.returncode, listed.stderr) == (0, "")
        assert f"{SET} (in fast)" in listed.stdout
        rows = json.loads(run_ckfs("ls", "--json", mount.path).stdout)
        assert {row["set"]: row["store"] for row in rows} == {SET: "fast", "13.server.CK": "home"}
    status = json.loads(run_ckfs("status", "--json", hosts.login.path).stdout)
    (fast,) = status["further_stores"]
    assert (fast["name"], fast["reached"], fast["why"]) == ("fast", False, "it is not one of its hosts")
    assert (
        "store fast:   not reached: it is not one of its hosts" in run_ckfs("status", hosts.login.path).stdout
    )
    assert "reached" in run_ckfs("status", hosts.node.path).stdout


def test_what_was_removed_there_comes_back_by_a_host_that_reaches_it(hosts: Hosts) -> None:
    path = f"{hosts.node.path}/notes"
    as_user(ALICE, create, path, CONTENT)
    as_user(ALICE, os.unlink, path)
    assert len(hosts.fast.trashed(ALICE)) == 1
    shown = run_ckfs("trash", "ls", "--store", hosts.node.path)
    assert "notes" in shown.stdout
    restored = run_ckfs("trash", "restore", "--store", hosts.node.path, "--set", "notes")
    assert (restored.returncode, restored.stderr) == (0, "")
    assert as_user(ALICE, read, path) == CONTENT
    assert hosts.fast.kept(ALICE) == {"notes"}


def test_a_host_says_where_it_has_a_store(hosts: Hosts, workdir: Path) -> None:
    """Its path on a host may be another than the policy says, and it may do without."""
    elsewhere = workdir / "private" / "elsewhere"
    hosts.fast.path.rename(elsewhere)
    hosts.node.umount()
    with mounted(
        hosts.home, workdir / "other", node="node3", options=[f"at.fast={elsewhere}"], may_log=MAY_LOG
    ) as other:
        hold(other)
        assert (elsewhere / "users" / str(ALICE) / SET).is_dir()
    options = ["at.fast=none"]
    with mounted(hosts.home, workdir / "none", node="node4", options=options, may_log=MAY_LOG) as without:
        assert errno_of_call(os.listdir, without.path / SET) == errno.EHOSTUNREACH


def test_init_makes_a_further_store_and_says_what_the_policy_needs(home: Path, workdir: Path) -> None:
    path = workdir / "private" / "fast"
    made = run_ckfs("init", path, "--for", home)
    assert (made.returncode, made.stderr) == (0, "")
    policy = home / "policy.toml"
    lines = made.stdout.splitlines()
    said = lines[lines.index("[[stores]]") :]
    policy.write_text("\n".join([policy.read_text(), *said[:5]]).replace('name = "..."', 'name = "fast"'))
    with mounted(home, workdir / "mount", may_log=MAY_LOG) as mount:
        hold(mount)
    assert (path / "users" / str(ALICE) / SET).is_dir()
    again = run_ckfs("init", path, "--for", home)
    assert (again.returncode, "already" in again.stdout) == (0, True)


def test_a_further_store_is_not_mounted_by_itself(hosts: Hosts, workdir: Path) -> None:
    (workdir / "alone").mkdir()
    refused = run_ckfs("mount", hosts.fast.path, workdir / "alone")
    assert refused.returncode == 3
    assert "a further store of the store" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_policy_that_begins_to_name_it_is_taken_up(home: Path, workdir: Path) -> None:
    fast = make_further(home, workdir / "private" / "fast")
    with mounted(home, workdir / "mount", node="node1", may_log=MAY_LOG) as mount:
        name_stores(home, table("fast", fast))
        numbers = iter(range(10_000))

        def goes_there() -> bool:
            os.mkdir(mount.path / f"set{next(numbers)}")
            return bool(fast.kept(0))

        eventually(goes_there, "new sets never went to the store that the policy names")


# The commands that work on stores themselves


def test_fsck_takes_nothing_in_a_further_store_for_lost(hosts: Hosts) -> None:
    hold(hosts.node)
    hosts.node.umount()
    hosts.login.umount()
    out_of_reach = (
        f"note: names/{SET}: its files lie in a further store that this host does not reach (fast)"
        " [name-unreached]\n"
        "mended: 0; left: 0; notes: 1\n"
    )
    reached = "mended: 0; left: 0; notes: 0\n"
    for path, said in ((NOWHERE, out_of_reach), (hosts.fast.path, reached)):
        name_stores(hosts.home, table("fast", hosts.fast, path=path))
        checked = run_ckfs("fsck", hosts.home, "--repair")
        assert (checked.returncode, checked.stderr, checked.stdout) == (0, "", said)
    assert (hosts.home / "names" / SET).is_symlink()
    assert run_ckfs("fsck", hosts.fast.path).returncode == 3


def test_only_a_host_that_reaches_all_stores_counts(hosts: Hosts) -> None:
    hold(hosts.node)
    hosts.node.umount()
    name_stores(hosts.home, table("fast", hosts.fast, path=NOWHERE))
    refused = run_ckfs("quota", "check", "--store", hosts.home, "--repair")
    assert refused.returncode != 0
    assert "cannot be counted on this host, which does not reach fast" in refused.stderr
    assert refused.stderr.count("\n") == 1
    name_stores(hosts.home, table("fast", hosts.fast))
    counted = run_ckfs("quota", "check", "--store", hosts.home)
    assert (counted.returncode, counted.stderr) == (0, "")
    assert "differences: 0" in counted.stdout


def test_ls_of_a_store_says_what_is_out_of_reach(hosts: Hosts) -> None:
    hold(hosts.node)
    name_stores(hosts.home, table("fast", hosts.fast, path=NOWHERE))
    listed = run_ckfs("ls", hosts.home)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert f"{SET} (in fast)" in listed.stdout
    assert IMAGE not in listed.stdout


# Moving


def test_a_set_is_moved_home_and_restarted_everywhere(hosts: Hosts) -> None:
    hold(hosts.node)
    reading = os.open(hosts.node.path / SET / IMAGE, os.O_RDONLY)
    try:
        assert errno_of_call(read, f"{hosts.login.path}/{SET}/{IMAGE}") == errno.EHOSTUNREACH
        refused = run_ckfs("move", hosts.login.path / SET, "home")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "lies in fast, which this host does not reach: ask one that does" in refused.stderr
        before = os.stat(hosts.node.path / SET / IMAGE)
        moved = run_ckfs("move", hosts.node.path / SET, "home")
        assert (moved.returncode, moved.stderr) == (0, "")
        assert moved.stdout == f"{hosts.node.path}/{SET}: lies in home now\n"
        assert os.pread(reading, len(CONTENT), 0) == CONTENT
    finally:
        os.close(reading)
    for mount in (hosts.node, hosts.login):
        assert as_user(ALICE, read, f"{mount.path}/{SET}/{IMAGE}") == CONTENT
        after = os.stat(mount.path / SET / IMAGE)
        assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (
            before.st_ino,
            before.st_mode,
            before.st_mtime_ns,
        )
        assert os.getxattr(mount.path / SET, "user.ckfs.store") == b"home"
        assert os.getxattr(mount.path / SET / IMAGE, "user.ckfs.state") == b"complete"
    assert hosts.fast.kept(ALICE) == set()


def test_who_does_not_reach_it_moves_nothing_there(hosts: Hosts) -> None:
    os.mkdir(hosts.login.path / SET)
    refused = run_ckfs("move", hosts.login.path / SET, "fast")
    assert refused.returncode == 1
    assert refused.stderr == "ckfs: this host does not reach the store fast: it is not one of its hosts\n"
    assert run_ckfs("move", hosts.node.path / SET, "fast").returncode == 0
    assert run_ckfs("move", hosts.node.path / SET, "fast").stdout.endswith("lies in fast already\n")
    assert run_ckfs("move", hosts.node.path / "missing", "fast").returncode == 2
    assert run_ckfs("move", hosts.node.path / SET, "slow").returncode == 2


def test_a_set_that_is_being_written_stays(hosts: Hosts) -> None:
    hold(hosts.node)
    writing = os.open(hosts.node.path / SET / "ckpt.12.server.1700000001", os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.write(writing, CONTENT)
        refused = run_ckfs("move", hosts.node.path / SET, "home")
        assert refused.returncode == 1
        assert "stays where it is: somebody has a file of it open for writing" in refused.stderr
        assert refused.stderr.count("\n") == 1
    finally:
        os.close(writing)
    assert run_ckfs("move", hosts.node.path / SET, "home").returncode == 0


def test_a_daemon_that_dies_while_it_moves_leaves_the_set_to_be_gone_on_with(
    home: Path, faulty: FaultStore, workdir: Path
) -> None:
    fast = make_further(home, faulty.path / "fast")
    with mounted(home, workdir / "mount", node="node1", may_log=MAY_LOG) as mount:
        hold(mount)
        name_stores(home, table("fast", fast))

        def is_reached() -> bool:
            (store,) = json.loads(run_ckfs("status", "--json", mount.path).stdout)["further_stores"] or [{}]
            return store.get("reached") is True

        eventually(is_reached, "the further store was never reached")
        faulty.hang("write", path=IMAGE)
        moving = subprocess.Popen(
            command("move", mount.path / SET, "fast"), env=environment(), stderr=subprocess.PIPE
        )
        try:
            faulty.hanging("write", within=PATIENCE_S)
            assert read(f"{mount.path}/{SET}/{IMAGE}") == CONTENT, "it is read where it is, meanwhile"
            mount.kill()
            assert moving.wait(PATIENCE_S) != 0
        finally:
            faulty.release()
            moving.kill()
            moving.wait()
            assert moving.stderr is not None
            moving.stderr.close()
        mount.detach()
    with mounted(home, workdir / "again", node="node1", may_log=MAY_LOG) as again:
        assert read(f"{again.path}/{SET}/{IMAGE}") == CONTENT
        assert run_ckfs("move", again.path / SET, "fast").returncode == 0
        assert read(f"{again.path}/{SET}/{IMAGE}") == CONTENT
        assert os.getxattr(again.path / SET, "user.ckfs.store") == b"fast"
    assert [place.rsplit("~", 1)[-1] for place in fast.kept(ALICE)] == ["copy"]
    assert not list((home / "users" / str(ALICE)).iterdir())


# A further store that hangs


def test_one_that_hangs_takes_nothing_else_with_it(home: Path, faulty: FaultStore, workdir: Path) -> None:
    fast = make_further(home, faulty.path / "fast")
    name_stores(home, table("fast", fast))
    options = ["op_timeout=3"]
    with mounted(home, workdir / "mount", node="node1", options=options, may_log=MAY_LOG) as mount:
        hold(mount)
        assert fast.kept(ALICE) == {SET}
        faulty.hang("*")
        try:
            # The first call may wait for it; those that follow do not reach it.
            assert errno_of_call(os.listdir, mount.path / SET) == errno.ETIMEDOUT
            assert errno_of_call(os.listdir, mount.path / SET) == errno.ETIMEDOUT
            os.mkdir(mount.path / "13.server.CK")
            create(f"{mount.path}/13.server.CK/image", CONTENT)
            assert sorted(os.listdir(mount.path)) == [SET, "13.server.CK"]
            assert os.stat(mount.path / SET).st_uid == ALICE
            assert (home / "users" / "0" / "13.server.CK" / "image").exists()
            assert "store down" not in mount.log().replace("further store fast down", "")
        finally:
            faulty.release()

        def is_back() -> bool:
            return errno_of_call(read, f"{mount.path}/{SET}/{IMAGE}") == 0

        eventually(is_back, "the further store answers, and its sets are not to be had")
        assert read(f"{mount.path}/{SET}/{IMAGE}") == CONTENT


def test_one_that_dies_is_out_of_reach(home: Path, faulty: FaultStore, workdir: Path) -> None:
    fast = make_further(home, faulty.path / "fast")
    name_stores(home, table("fast", fast))
    with mounted(home, workdir / "mount", node="node1", may_log=MAY_LOG) as mount:
        hold(mount)
        faulty.die()
        eventually(
            lambda: errno_of_call(os.listdir, mount.path / SET) == errno.EHOSTUNREACH,
            "a further store that died is still taken for reached",
        )
        os.mkdir(mount.path / "13.server.CK")
        assert sorted(os.listdir(mount.path)) == [SET, "13.server.CK"]
