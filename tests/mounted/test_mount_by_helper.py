"""``mount -t ckfs`` and fstab, for real: mount(8) finds mount.ckfs in /sbin, in a mount name space of the test's own.

There /usr/sbin is a tmpfs with links to everything that was in it, the helper beside them, and fstab is the test's.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mounting import END_TIMEOUT, SOURCE, daemons, make_store

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root_and_fuse")]
HELPER = SOURCE.parent / "mount-helpers" / "mount.ckfs"
NAME_SPACE = """
mount --bind "$sbin" "$work/sbin"
mount -t tmpfs -o mode=755 tmpfs "$sbin"
ln -s "$work"/sbin/* "$sbin"/
cp "$work/mount.ckfs" "$sbin"/
mount --bind "$work/fstab" /etc/fstab
echo ready
exec sleep infinity
"""


class Host:
    """Commands run where mount(8) knows ckfs."""

    def __init__(self, work: Path, store: Path, pid: int) -> None:
        self.store = store
        self.mountpoint = work / "mount point"
        self.fstab = work / "fstab"
        self._enter = ["nsenter", f"--mount=/proc/{pid}/ns/mnt", f"--root=/proc/{pid}/root", "--"]

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        arguments = [*self._enter, *map(str, command)]
        return subprocess.run(
            arguments,
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def mount(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self.run("mount", *arguments)

    def line_in_fstab(self, options: str) -> None:
        store, mountpoint = (str(path).replace(" ", "\\040") for path in (self.store, self.mountpoint))
        self.fstab.write_text(f"{store} {mountpoint} ckfs {options} 0 0\n")

    def kill_daemon(self) -> None:
        """SIGKILL to the ckfs that serves the mount point."""
        wanted = [os.fsencode(path) for path in (self.store, self.mountpoint)]
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if set(wanted) <= set(line.read_bytes().split(b"\0")):
                    os.kill(int(line.parent.name), signal.SIGKILL)
        _wait_until(lambda: "not connected" in self.run("ls", self.mountpoint).stderr)

    def await_no_mount(self) -> None:
        """The daemon takes dead mounts away after its own is gone, while umount(8) has ended already."""
        _wait_until(lambda: not self.mounts())

    def mounts(self) -> list[str]:
        """``TYPE OPTIONS`` of everything mounted on the mount point."""
        listed = self.run(
            "findmnt", "-rn", "-o", "FSTYPE,VFS-OPTIONS", "--mountpoint", self.mountpoint
        ).stdout.splitlines()
        return [line for line in listed if line]


def _wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + END_TIMEOUT
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def host(workdir: Path) -> Iterator[Host]:
    """A host with a store, a mount point and mount.ckfs; what it mounts is gone at the end."""
    (workdir / "private store").mkdir(mode=0o700)
    store = make_store(workdir / "private store")
    (workdir / "sbin").mkdir()
    (workdir / "fstab").touch()
    (workdir / "mount point").mkdir()
    ckfs = workdir / "ckfs"
    ckfs.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(SOURCE))} exec {shlex.quote(sys.executable)} -m ckfs "$@"\n'
    )
    ckfs.chmod(0o755)
    shutil.copy(HELPER, workdir / "mount.ckfs")
    helper = workdir / "mount.ckfs"
    helper.write_text(helper.read_text().replace("@CKFS@", str(ckfs)))
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-euc", NAME_SPACE],
        env={**os.environ, "work": str(workdir), "sbin": os.path.realpath("/sbin")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "ready\n"
        made = Host(workdir, store, holder.pid)
        try:
            yield made
        finally:
            while made.mounts() and made.run("umount", "-l", made.mountpoint).returncode == 0:
                pass
            _wait_until(lambda: not daemons(made.mountpoint))  # it has things in the store to do yet
    finally:
        holder.kill()
        holder.communicate()


def test_mount_and_umount(host: Host) -> None:
    done = host.mount("-t", "ckfs", host.store, host.mountpoint, "-o", "role=server,node=n1")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in host.mounts()] == ["fuse.ckfs"]
    assert host.run("mkdir", host.mountpoint / "set").returncode == 0
    assert host.run("umount", host.mountpoint).returncode == 0
    assert host.mounts() == []


def test_the_mount_is_nosuid_and_nodev_without_being_asked(host: Host) -> None:
    host.mount("-t", "ckfs", host.store, host.mountpoint)
    (line,) = host.mounts()
    assert {"nosuid", "nodev"} <= set(line.split()[1].split(","))


@pytest.mark.parametrize(
    "options", ["role=node,_netdev,nofail", "defaults,ro,x-systemd.requires-mounts-for=/srv"]
)
def test_a_line_in_fstab(host: Host, options: str) -> None:
    host.line_in_fstab(options)
    done = host.mount(host.mountpoint)
    assert (done.returncode, done.stderr) == (0, "")
    made = host.run("mkdir", host.mountpoint / "set")
    assert (made.returncode != 0) == ("ro" in options.split(","))
    assert host.run("umount", host.mountpoint).returncode == 0


def test_mount_all_leaves_alone_what_is_mounted(host: Host) -> None:
    host.line_in_fstab("role=node")
    assert host.mount("-a", "-t", "ckfs").returncode == 0
    again = host.mount("-a", "-t", "ckfs")
    assert (again.returncode, again.stderr, len(host.mounts())) == (0, "", 1)


def test_an_unknown_option_is_refused_by_name(host: Host) -> None:
    done = host.mount("-t", "ckfs", host.store, host.mountpoint, "-o", "colour=red")
    assert (done.returncode, "colour" in done.stderr, host.mounts()) == (1, True, [])


def test_sloppy_mounts_all_the_same(host: Host) -> None:
    assert (
        host.mount("-s", "-t", "ckfs", host.store, host.mountpoint, "-o", "colour=red,role=node").returncode
        == 0
    )
    assert len(host.mounts()) == 1


def test_fake_mounts_nothing(host: Host) -> None:
    done = host.mount("-f", "-v", "-t", "ckfs", host.store, host.mountpoint)
    assert (done.returncode, host.mounts()) == (0, [])


def test_a_missing_store_is_a_failed_mount(host: Host) -> None:
    done = host.mount("-t", "ckfs", f"{host.store}-not", host.mountpoint)
    assert (done.returncode, host.mounts()) == (32, [])
    assert done.stderr.strip()


def test_a_second_mount_on_the_same_place_is_refused(host: Host) -> None:
    host.mount("-t", "ckfs", host.store, host.mountpoint)
    done = host.mount("-t", "ckfs", host.store, host.mountpoint)
    assert (done.returncode, len(host.mounts())) == (32, 1)


def test_a_dead_mount_is_covered_by_the_next_and_goes_with_it(host: Host) -> None:
    host.line_in_fstab("role=node")
    host.mount(host.mountpoint)
    host.kill_daemon()
    assert "not connected" in host.run("ls", host.mountpoint).stderr
    done = host.mount(host.mountpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert host.run("ls", host.mountpoint).returncode == 0
    assert host.run("umount", host.mountpoint).returncode == 0
    host.await_no_mount()


def test_the_command_ends_while_the_mount_stays(host: Host) -> None:
    """The daemon must not keep mount(8)'s output open: a pipe at its end would never see the end."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = host.run("sh", "-c", 'mount -t ckfs "$1" "$2" 2>&1 | cat', "sh", host.store, host.mountpoint)
        assert done.returncode == 0
        return
    pytest.fail("the daemon holds the output of mount(8) open")
