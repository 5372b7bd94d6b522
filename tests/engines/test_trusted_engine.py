"""The engine that is trusted and looked at: on a real tmpfs, whose size is its quota."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ckfs.engines.opening import detect, mounted_on, open_engine
from ckfs.errors import Unsupported
from ckfs.names import Gid, Uid
from ckfs.policy.enforcing import QuotaMode, QuotaPolicy
from ckfs.policy.quota import NOTHING, Limit, Limits, Settings

ALICE, BOB = Uid(2101), Uid(2102)
MIB = 1 << 20
POLICY = QuotaPolicy(mode=QuotaMode.ENGINE, engine="statvfs")


@pytest.fixture
def users(root_and_fuse: None, workdir: Path) -> Iterator[Path]:
    """``users/`` of a store, in which alice's realm has a size of its own."""
    path = workdir / "users"
    (path / "2101").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "none", path / "2101"], check=True)
    yield path
    subprocess.run(["umount", path / "2101"], check=True)


def test_a_realm_with_a_size_of_its_own_has_that_as_its_limit(users: Path) -> None:
    (users / "2101" / "image").write_bytes(b"x" * 3 * MIB)
    with closing(open_engine(os.open(users, os.O_RDONLY | os.O_DIRECTORY), POLICY)) as engine:
        account = engine.account(ALICE)
        assert account.limits.bytes == Limit(hard=8 * MIB)
        assert account.used.bytes == 3 * MIB
        room_bytes = engine.room(ALICE).bytes
        assert room_bytes == 5 * MIB
        engine.prepare(BOB, Gid(2102))
        assert engine.account(BOB).limits == Limits()
        assert engine.account(BOB).used == NOTHING


def test_limits_are_set_elsewhere_and_that_is_said(users: Path) -> None:
    with closing(open_engine(os.open(users, os.O_RDONLY | os.O_DIRECTORY), POLICY)) as engine:
        with pytest.raises(Unsupported, match="the file system's own tool"):
            engine.set_limits(ALICE, Settings(hard_bytes=MIB))
        assert engine.all_settings() == {}


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        ("btrfs", "btrfs"),
        ("xfs", "xfs"),
        ("ext4", "ext4"),
        ("lustre", "lustre"),
        ("ceph", "cephfs"),
        ("fuse.ceph-fuse", "cephfs"),
        ("fuse.glusterfs", "glusterfs"),
        ("nfs4", "statvfs"),
        ("tmpfs", "statvfs"),
    ],
)
def test_the_engine_is_known_by_its_file_system(kind: str, engine: str) -> None:
    assert detect(kind) == engine


def test_where_a_file_system_is_mounted_is_what_the_kernel_says(users: Path) -> None:
    fd = os.open(users / "2101", os.O_RDONLY | os.O_DIRECTORY)
    try:
        mounted = mounted_on(fd)
    finally:
        os.close(fd)
    assert (mounted.kind, mounted.source, mounted.point) == ("tmpfs", "none", str(users / "2101"))
