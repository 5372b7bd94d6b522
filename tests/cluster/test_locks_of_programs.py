"""What programs on two hosts lock, kept on a volume of GlusterFS: one host sees it of the other, also when that has died."""

from __future__ import annotations

import os
import subprocess
import sys
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK
from pathlib import Path

import pytest

from ckfs.model import Owner
from ckfs.names import Gid, Inode, Uid
from ckfs.store.lockfiles import FLOCK_BYTE, LAST_SHARED, LockFiles
from tests.support.gluster_cluster import Cluster
from tests.support.machines import wait_until

pytestmark = [pytest.mark.root, pytest.mark.cluster]

INO = Inode(0x7F)
_DIES = """
import os, signal, sys
from fcntl import F_WRLCK
from ckfs.model import Owner
from ckfs.names import Gid, Inode, Uid
from ckfs.store.lockfiles import FLOCK_BYTE, LockFiles
where, uid, gid = sys.argv[1:]
files = LockFiles(os.open(where, os.O_RDONLY | os.O_DIRECTORY), Owner(Uid(int(uid)), Gid(int(gid))))
assert files.open(Inode(0x7F)).set([(0, 9, F_WRLCK), (FLOCK_BYTE, FLOCK_BYTE, F_WRLCK)])
print(flush=True)
signal.pause()
"""


def _on(volume: Path, store: str) -> LockFiles:
    staging = volume / store / "staging"
    status = staging.stat()
    return LockFiles(
        os.open(staging, os.O_RDONLY | os.O_DIRECTORY), Owner(Uid(status.st_uid), Gid(status.st_gid))
    )


def _left(cluster: Cluster, store: str) -> list[str]:
    return os.listdir(cluster.hosts[0].volume / store / "staging")


def test_hosts_see_each_others_locks(gluster: Cluster) -> None:
    store = gluster.make_store()
    here, there = (_on(host.volume, store) for host in gluster.hosts[:2])
    assert here.are_kept()
    assert there.are_kept()
    one, other = here.open(INO), there.open(INO)
    assert one.set([(0, 9, F_WRLCK), (20, LAST_SHARED, F_RDLCK)])
    assert not other.set([(5, 5, F_RDLCK)])
    assert other.set([(30, LAST_SHARED, F_RDLCK)])
    assert not other.set([(30, 30, F_WRLCK)])
    found = other.get((5, 12, F_RDLCK))
    assert found == (0, 9, F_WRLCK)
    assert other.set([(FLOCK_BYTE, FLOCK_BYTE, F_WRLCK)])
    assert not one.set([(FLOCK_BYTE, FLOCK_BYTE, F_RDLCK)])
    assert one.set([(0, 9, F_UNLCK)])
    assert other.set([(5, 5, F_WRLCK)])
    one.close()
    assert _left(gluster, store) == ["locks-7f"]
    third = here.open(INO)
    assert not third.set([(0, 5, F_RDLCK)])
    other.close()
    assert third.set([(0, 5, F_WRLCK)])
    third.close()
    assert _left(gluster, store) == []
    for files in (here, there):
        os.close(files.staging_fd)


def test_a_killed_mount_has_no_locks_soon(gluster: Cluster) -> None:
    store = gluster.make_store()
    here = _on(gluster.hosts[0].volume, store)
    staging = gluster.hosts[1].volume / store / "staging"
    words = [sys.executable, "-c", _DIES, str(staging), str(here.service.uid), str(here.service.gid)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        one = here.open(INO)
        assert not one.set([(0, 0, F_RDLCK)])
        process.kill()
        process.wait()
        wait_until(lambda: one.set([(0, 0, F_WRLCK), (FLOCK_BYTE, FLOCK_BYTE, F_WRLCK)]), "the locks to go")
    one.close()
    assert _left(gluster, store) == []
    os.close(here.staging_fd)
