"""TORQUE's recorded calls of three hosts, replayed on three mounts of one store and, as control, on a shared directory."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import trace
from tests.e2e.replay import Replay, dirent_bytes
from tests.support.agents import Agent
from tests.support.gluster_cluster import Cluster
from tests.support.mounting import mounted, run_ckfs
from tests.support.nfs import directory_for, nfs_store
from tests.support.users import ALICE

JOBS_USER = ALICE
"""The traces' uid 2101."""
SERVICE = "daemon"
"""The account that keeps the store where root is squashed."""
REMOVED_BEFORE = "image removed, then"
"""Before the section that is called so, somebody had removed the image: not among the recorded calls."""


@dataclass(frozen=True)
class Hosts:
    """Where each host has its checkpoint directory."""

    mounts: dict[str, str]
    is_ckfs: bool


@pytest.fixture(scope="module")
def traces() -> list[trace.Trace]:
    return [trace.load(host) for host in trace.HOSTS]


@pytest.fixture
def shared_directory(root_and_fuse: None, workdir: Path) -> Hosts:
    shared = workdir / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    return Hosts(dict.fromkeys(trace.HOSTS, str(shared)), is_ckfs=False)


@pytest.fixture
def three_mounts(store: Path, workdir: Path) -> Iterator[Hosts]:
    with _mounted_on_all(store, workdir) as hosts:
        yield hosts


@pytest.fixture
def three_mounts_with_root_squashed(root_and_fuse: None, workdir: Path) -> Iterator[Hosts]:
    private = workdir / "private"
    private.mkdir(mode=0o700)
    with nfs_store(private) as nfs:
        account = pwd.getpwnam(SERVICE)
        directory_for(nfs, account.pw_uid, account.pw_gid)
        store = nfs.clients[0].path / "store"
        run_ckfs("init", store, "--service-user", SERVICE).check_returncode()
        with _mounted_on_all(store, workdir, f"service_user={SERVICE}") as hosts:
            yield hosts


@pytest.fixture
def three_hosts_of_a_gluster_cluster(gluster: Cluster, workdir: Path) -> Iterator[Hosts]:
    store = gluster.make_store("--quota", "none")
    with gluster.mounted_on(store, workdir, trace.HOSTS, server="tqsrv") as mounts:
        yield Hosts(mounts, is_ckfs=True)


@contextlib.contextmanager
def _mounted_on_all(store: Path, workdir: Path, *options: str) -> Iterator[Hosts]:
    """The server with role=server, the nodes with role=node."""
    with contextlib.ExitStack() as stack:
        mounts = {}
        for host in trace.HOSTS:
            role = "server" if host == "tqsrv" else "node"
            mount = stack.enter_context(mounted(store, workdir / host, role=role, node=host, options=options))
            mounts[host] = str(mount.path)
        yield Hosts(mounts, is_ckfs=True)


@pytest.fixture(
    params=[
        "shared_directory",
        "three_mounts",
        "three_mounts_with_root_squashed",
        pytest.param("three_hosts_of_a_gluster_cluster", marks=pytest.mark.cluster),
    ]
)
def hosts(request: pytest.FixtureRequest) -> Hosts:
    chosen: Hosts = request.getfixturevalue(request.param)
    return chosen


def test_the_traces_are_read_completely(traces: list[trace.Trace]) -> None:
    assert [each.host for each in traces] == list(trace.HOSTS)
    assert {each.host: len(each.calls) for each in traces} == {"tqsrv": 67, "tqn1": 100, "tqn2": 32}
    skipped = sum((Counter(each.skipped) for each in traces), Counter[str]())
    assert skipped == {"cp": 38, "checkpoint_script": 10, "cr_run": 6, "restart_script": 5}
    assert trace.image_sizes(traces) == {4_198_400}
    assert {call.uid for each in traces for call in each.calls} == {0, JOBS_USER}


def test_a_call_is_read_in_all_its_parts() -> None:
    line = (
        "  0.096 checkpoint_script[13143] 2101/2101(2101)/g2101 openat(AT_FDCWD<CKPT/0.tqsrv.CK>, "
        '"./.ckpt.0.tqsrv.<t>.tmp", O_WRONLY|O_CREAT|O_TRUNC, 0400) = 3<CKPT/0.tqsrv.CK/.ckpt.0.tqsrv.<t>.tmp>\n'
    )
    read = trace.parse(
        ["# host=h  columns\n", "== first\n", line, "        ... previous call repeated 2 times in all\n"]
    )
    (call,) = read.calls
    assert (call.host, call.section, call.at, call.actor, call.pid) == (
        "h",
        0,
        0.096,
        "checkpoint_script",
        13143,
    )
    assert (call.uid, call.gid, call.name, call.paths) == (2101, 2101, "openat", ("./.ckpt.0.tqsrv.<t>.tmp",))
    assert (call.flags, call.mode) == (os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o400)
    assert (call.value, call.error, call.times) == (3, 0, 2)


def test_an_unknown_line_is_refused() -> None:
    with pytest.raises(trace.TraceError, match="something else"):
        trace.parse(["# host=h  columns\n", "== first\n", "something else\n"])


def test_the_kernel_counts_entries_as_the_replay_does() -> None:
    assert dirent_bytes([]) == 48
    assert dirent_bytes(["ckpt.0.tqsrv.1234567890"] * 3) == 192


@pytest.mark.root
def test_every_recorded_call_does_what_was_recorded(hosts: Hosts, traces: list[trace.Trace]) -> None:
    (image_size,) = trace.image_sizes(traces)
    calls = list(trace.merged(traces))
    last = {(call.host, call.pid, call.uid): number for number, call in enumerate(calls)}
    with contextlib.closing(Agent(0, 0)) as server, Replay(hosts.mounts, image_size) as replay:
        for section, name in enumerate(traces[0].sections):
            if name.startswith(REMOVED_BEFORE):
                _remove_images(server, replay, hosts, "4.tqsrv.CK")
            for number, call in enumerate(calls):
                if call.section == section:
                    replay.make(call)
                    if last[call.host, call.pid, call.uid] == number:
                        replay.ends(call)
            _check_sets(server, replay, hosts, name)
            if hosts.is_ckfs:
                _check_attributes(server, replay, hosts, name)
        assert replay.sets == {}


def _remove_images(server: Agent, replay: Replay, hosts: Hosts, set_name: str) -> None:
    for image in sorted(replay.sets[set_name]):
        server.do(os.unlink, f"{hosts.mounts['tqsrv']}/{set_name}/{image}")
        del replay.writers[f"{set_name}/{image}"]
    replay.sets[set_name].clear()


def _check_sets(server: Agent, replay: Replay, hosts: Hosts, section: str) -> None:
    """Each host sees the same, and what the replay expects."""
    for host, mount in hosts.mounts.items():
        seen = {name: set(server.do(os.listdir, f"{mount}/{name}")) for name in server.do(os.listdir, mount)}
        assert seen == replay.sets, f"{host} after {section!r}"


def _check_attributes(server: Agent, replay: Replay, hosts: Hosts, section: str) -> None:
    """Sets belong to the job's user, images name the node that wrote them, on every mount."""
    for host, mount in hosts.mounts.items():
        for name in replay.sets:
            for key in ("user.ckfs.owner", "user.ckfs.uid"):
                value = server.do(os.getxattr, f"{mount}/{name}", key)
                assert value == str(JOBS_USER).encode(), f"{key} of {name} on {host} after {section!r}"
        for image, writer in replay.writers.items():
            value = server.do(os.getxattr, f"{mount}/{image}", "user.ckfs.written_by")
            assert value == writer.encode(), f"{image} on {host} after {section!r}"
