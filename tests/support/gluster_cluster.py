"""A GlusterFS cluster out of one computer: three servers, a volume of three copies that squashes root, and hosts that mount it.

::

    server1        server2        server3        machines: mounts, processes and a network of their own
    glusterd       glusterd       glusterd
    brick          brick          brick          one volume, replica 3, server.root-squash on
    10.77.0.1      10.77.0.2      10.77.0.3
       |              |              |
    ---+--------------+--------------+----- switch: a bridge, in a network of its own
       |              |              |
    10.77.0.11     10.77.0.12     10.77.0.13
    host1          host2          host3          clients: a network of their own, and the tests' mounts and processes
    glusterfs      glusterfs      glusterfs      the FUSE client, with the options of docs/glusterfs.md
    ckfs           ckfs           ckfs           mounted by the tests, one over each

What an admin does on the storage server, ``Cluster.make_directory`` does. All ends with :func:`running`, or with the tests' process.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.machines import Machine, MachineTrouble, connect, is_alive, pids_of, wait_until
from tests.support.mounting import Mount, is_mounted, mounted, run_ckfs

VOLUME = "gv0"
COHERENT = {
    f"performance.{name}": "off"
    for name in (
        "quick-read",
        "io-cache",
        "stat-prefetch",
        "read-ahead",
        "write-behind",
        "open-behind",
        "readdir-ahead",
    )
}
"""Options of the volume with which one client sees what another has done: docs/glusterfs.md."""
SQUASHED = {"server.root-squash": "on"}
PATIENCE = {"network.ping-timeout": "5"}
"""Seconds after which clients and servers give each other up: the default, 42, would only make tests long."""
CLIENT_OPTIONS = ("direct-io-mode=enable", "attribute-timeout=0", "entry-timeout=0", "gid-timeout=0")
"""As ``mount -t glusterfs -o`` takes them."""
SERVICE = "daemon"
"""An account that every Debian has; it stands for the one that an admin makes for ckfs."""
_SERVERS, _HOSTS = 3, 3
_NETWORK = "10.77.0"
_DAEMON_PLACES = ("/run", "/var/lib/glusterd", "/var/log/glusterfs")
_ADMINS = "/run/admin"
_numbers = itertools.count(1)


def skip_unless_installed() -> None:
    if os.geteuid() != 0 or not all(map(shutil.which, ("glusterd", "gluster", "glusterfs"))):
        pytest.skip("needs root, and the packages glusterfs-server and glusterfs-client")


@dataclass(frozen=True)
class Host:
    """A machine with the volume mounted at *volume*, below a directory that users cannot enter."""

    machine: Machine
    volume: Path
    client: subprocess.Popen[bytes]

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def state(self) -> Path:
        """What ckfs keeps of this host."""
        return self.volume.parent / "state"

    def mounts(
        self,
        store: str,
        mountpoint: Path,
        *,
        role: str = "node",
        node: str | None = None,
        options: Sequence[str] = (),
        may_log: Sequence[str] = (),
    ) -> contextlib.AbstractContextManager[Mount]:
        """ckfs of this host over the store of that name: see :func:`tests.support.mounting.mounted`."""
        return mounted(
            self.volume / store,
            mountpoint,
            role=role,
            node=node or self.name,
            options=[f"service_user={SERVICE}", f"state={self.state}", *options],
            may_log=may_log,
            within=self.machine.enter,
        )


@dataclass(frozen=True)
class Cluster:
    directory: Path
    servers: tuple[Machine, ...]
    hosts: tuple[Host, ...]

    @property
    def kept(self) -> Path:
        """The volume as the storage servers' admin sees it: root is root there."""
        return self.servers[0].path(_ADMINS)

    def make_directory(self, name: str, uid: int, gid: int, mode: int = 0o755) -> None:
        """As the admin, on a storage server: a directory of the volume that belongs to somebody."""
        self.servers[0].run("mkdir", "-m", f"{mode:o}", f"{_ADMINS}/{name}")
        self.servers[0].run("chown", f"{uid}:{gid}", f"{_ADMINS}/{name}")

    def make_store(self, *options: str) -> str:
        """A new store on the volume, its directory made by the admin and the rest by ``ckfs init`` on a host. Returns its name."""
        name, account = f"store{next(_numbers)}", pwd.getpwnam(SERVICE)
        self.make_directory(name, account.pw_uid, account.pw_gid)
        done = run_ckfs("init", self.hosts[0].volume / name, "--service-user", SERVICE, *options)
        if done.returncode != 0:
            raise AssertionError(f"ckfs init: exit status {done.returncode}: {done.stdout}{done.stderr}")
        return name

    @contextlib.contextmanager
    def mounted_on(
        self,
        store: str,
        where: Path,
        nodes: Sequence[str],
        *,
        server: str | None = None,
        options: Sequence[str] = (),
        may_log: Sequence[str] = (),
    ) -> Iterator[dict[str, str]]:
        """The store mounted by one host after the other, as the *nodes*, at ``where/NODE``; the one called *server* by that role.

        Returns the mount points.
        """
        with contextlib.ExitStack() as stack:
            mounts = {}
            for host, node in zip(self.hosts, nodes, strict=False):
                role = "server" if node == server else "node"
                mounting = host.mounts(
                    store, where / node, role=role, node=node, options=options, may_log=may_log
                )
                mounts[node] = str(stack.enter_context(mounting).path)
            yield mounts

    @contextlib.contextmanager
    def mounted_by_default(self, number: int) -> Iterator[Host]:
        """The volume mounted once more by that host, with no options at all."""
        machine = self.hosts[number].machine
        with contextlib.ExitStack() as stack:
            yield _mount(stack, machine, self.servers[0], self.directory / f"{machine.name}-default", ())

    def gluster(self, *words: str, check: bool = True) -> str:
        return self.servers[0].run("gluster", "--mode=script", *words, check=check)

    def kill_brick(self, number: int) -> None:
        """kill -9 of what serves the brick of that server; nobody starts it again."""
        for pid in _bricks(self.servers[number]):
            os.kill(pid, signal.SIGKILL)

    def start_bricks(self) -> None:
        """Those that do not run; back when all have what was written meanwhile."""
        self.gluster("volume", "start", VOLUME, "force")
        wait_until(lambda: all(map(_bricks, self.servers)), "all bricks are up")
        wait_until(self._is_healed, "all is healed", 120.0)

    def _is_healed(self) -> bool:
        self.gluster(
            "volume", "heal", VOLUME, check=False
        )  # now, not at the next of its looks every ten minutes
        said = self.gluster("volume", "heal", VOLUME, "info", "summary", check=False)
        counts = [
            line.split(":")[1].strip()
            for line in said.splitlines()
            if line.startswith("Total Number of entries:")
        ]
        return len(counts) == _SERVERS and set(counts) == {"0"}


def _bricks(server: Machine) -> list[int]:
    found = []
    for pid in pids_of(server):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"glusterfsd"):
                found.append(pid)
    return [pid for pid in found if is_alive(pid)]


@contextlib.contextmanager
def running() -> Iterator[Cluster]:
    """A new cluster; skips, with a line that says why, where none comes up."""
    skip_unless_installed()
    directory = Path(tempfile.mkdtemp(prefix="ckfs-gluster-"))
    directory.chmod(0o711)  # users pass through to mounts of ckfs; what else is here is root's alone
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        stack.enter_context(_cleared_up_if_killed(directory))
        try:
            servers, hosts = _machines(stack)
            _start_servers(servers, directory)
            _make_volume(servers, directory)
            _mount_for_admins(servers[0])
            mounted = [_mount(stack, host, servers[0], directory / host.name) for host in hosts]
        except (MachineTrouble, subprocess.TimeoutExpired) as trouble:
            pytest.skip(f"no GlusterFS cluster comes up here: {' '.join(str(trouble).split())}")
        yield Cluster(directory, tuple(servers), tuple(mounted))


def _machines(stack: contextlib.ExitStack) -> tuple[list[Machine], list[Machine]]:
    def make(name: str, *, serves: bool = False) -> Machine:
        machine = Machine(name, serves=serves)
        stack.callback(machine.close)
        return machine

    servers = [make(f"server{number}", serves=True) for number in range(1, _SERVERS + 1)]
    hosts = [make(f"host{number}") for number in range(1, _HOSTS + 1)]
    addresses = [f"{_NETWORK}.{number}" for number in (*range(1, _SERVERS + 1), *range(11, 11 + _HOSTS))]
    connect(make("switch"), list(zip([*servers, *hosts], addresses, strict=True)))
    return servers, hosts


def _start_servers(servers: list[Machine], directory: Path) -> None:
    names = directory / "nsswitch.conf"
    names.write_text("hosts: files\n")  # else glusterd waits for a name server that is not there
    for server in servers:
        server.run("mount", "--bind", names, "/etc/nsswitch.conf")
        for place in _DAEMON_PLACES:
            server.run("mkdir", "-p", place)
            server.run("mount", "-t", "tmpfs", "-o", "mode=0755", "none", place)
        server.run("mkdir", "/run/gluster", _ADMINS)
        (directory / server.name).mkdir(mode=0o700)
        _make_brick(server, directory / server.name / "brick")
        server.run("glusterd")
    for server in servers:
        wait_until(server.path("/run/glusterd.socket").is_socket, f"glusterd answers on {server.name}")


def _make_brick(server: Machine, brick: Path) -> None:
    """In memory, where that keeps users' attributes (Linux 6.6 and later): the cluster is slow enough."""
    brick.mkdir()
    server.run("mount", "-t", "tmpfs", "-o", "mode=0755", "none", brick)
    try:
        server.run("setfattr", "-n", "user.test", "-v", "kept", brick)
    except MachineTrouble:
        server.run("umount", brick)


def _make_volume(servers: list[Machine], directory: Path) -> None:
    def gluster(*words: str) -> str:
        return first.run("gluster", "--mode=script", *words)

    first, *others = servers
    for server in others:
        gluster("peer", "probe", server.address)
    for server in servers:  # each of them asks the others
        _wait_for_peers(server, len(others))
    bricks = [f"{server.address}:{directory / server.name / 'brick' / 'data'}" for server in servers]
    gluster("volume", "create", VOLUME, "replica", str(len(bricks)), *bricks, "force")
    options = {**COHERENT, **SQUASHED, **PATIENCE}
    gluster("volume", "set", VOLUME, *(word for option in options.items() for word in option))
    gluster("volume", "start", VOLUME)


def _wait_for_peers(server: Machine, count: int) -> None:
    def connected() -> bool:
        return server.run("gluster", "peer", "status").count("Peer in Cluster (Connected)") == count

    wait_until(connected, f"{server.name} is connected to all")


def _mount_for_admins(server: Machine) -> None:
    server.run(
        "glusterfs", "--no-root-squash=yes", "--volfile-server=127.0.0.1", f"--volfile-id={VOLUME}", _ADMINS
    )


def _mount(
    stack: contextlib.ExitStack,
    machine: Machine,
    server: Machine,
    private: Path,
    said: Sequence[str] = CLIENT_OPTIONS,
) -> Host:
    """As ``mount -t glusterfs -o … server1:gv0`` calls it, but for the place of the log, and in front: so it ends by its pid."""
    private.mkdir(mode=0o700)
    volume = private / "volume"
    volume.mkdir()
    options = [f"--{option}" for option in said]
    log = private / "client.log"
    where = [f"--volfile-server={server.address}", f"--volfile-id={VOLUME}", "--process-name=fuse"]
    client = machine.spawn("glusterfs", "--no-daemon", *options, *where, "--log-file", log, volume, log=log)
    stack.callback(_unmount, client, volume)
    wait_until(
        lambda: is_mounted(volume) or client.poll() is not None, f"{machine.name} has mounted the volume"
    )
    if client.poll() is not None:
        raise MachineTrouble(f"{machine.name}: glusterfs: {log.read_text().splitlines()[-1:]}")
    return Host(machine, volume, client)


def _unmount(client: subprocess.Popen[bytes], volume: Path) -> None:
    while is_mounted(volume):
        subprocess.run(["umount", "-l", volume], check=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        client.wait(5)
    client.kill()
    client.wait()


_CLEARER = """
import os, shutil, subprocess, sys
directory = sys.argv[1]
sys.stdin.buffer.read()
for line in reversed(open("/proc/self/mountinfo").read().splitlines()):
    place = line.split(" ")[4]
    if place.startswith(directory + "/"):
        subprocess.run(["umount", "-l", place], check=False)
shutil.rmtree(directory, ignore_errors=True)
"""


@contextlib.contextmanager
def _cleared_up_if_killed(directory: Path) -> Iterator[None]:
    """Whatever becomes of the tests' process: nothing stays mounted below *directory*, nor that itself."""
    clearer = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _CLEARER, str(directory)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield
    finally:
        assert clearer.stdin is not None
        clearer.stdin.close()
        clearer.wait(60)
