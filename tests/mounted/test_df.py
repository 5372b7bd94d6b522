"""``df`` on a mount: root sees the store, a user what of it may be his; and the same figures as attributes."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.loops import ext4
from tests.support.mounting import Mount, make_store, mounted
from tests.support.quotas import count_anew, set_default, set_quota
from tests.support.users import ALICE, BOB, as_user, errno_as

pytestmark = pytest.mark.root

K, MIB = 1 << 10, 1 << 20
SIZE = 64 * MIB
QUOTA = "user.ckfs.quota."


@pytest.fixture
def small(root_and_fuse: None, workdir: Path) -> Iterator[Mount]:
    """A store that is a file system of its own, whose figures nobody else changes, with a reserve of 8 MiB."""
    with ext4(workdir, SIZE, 2000) as top:
        store = make_store(top)
        (store / "policy.toml").write_text('[quota]\nreserve = "8M"\n')
        with mounted(store, workdir / "mount") as mount:
            yield mount


def figures(there: os.statvfs_result) -> tuple[int, int, int]:
    unit = there.f_frsize
    return there.f_blocks * unit, there.f_bfree * unit, there.f_bavail * unit


def files(there: os.statvfs_result) -> tuple[int, int, int]:
    return there.f_files, there.f_ffree, there.f_favail


def save(directory: Path, size: int) -> None:
    directory.mkdir()
    (directory / "image").write_bytes(os.urandom(size))


def test_root_sees_the_whole_store(small: Mount) -> None:
    set_default(small.path, "--hard", "1M")
    assert figures(os.statvfs(small.path)) == figures(os.statvfs(small.store))
    assert files(os.statvfs(small.path)) == files(os.statvfs(small.store))


def test_a_user_without_limits_sees_the_store_less_its_reserve(small: Mount) -> None:
    total, free, available = figures(os.statvfs(small.store))
    expected = (total - 8 * MIB, free - 8 * MIB, available - 8 * MIB)
    assert figures(as_user(ALICE, os.statvfs, small.path)) == expected


def test_a_user_with_limits_sees_his_own(small: Mount) -> None:
    as_user(ALICE, save, small.path / "s", 2 * MIB)
    count_anew(small.store)
    set_quota(small.path, ALICE, "--hard", "10M", "--files", "100")
    there = as_user(ALICE, os.statvfs, small.path)
    left = 8 * MIB - 4 * K  # the directory
    assert figures(there) == (10 * MIB, left, left)
    assert files(there) == (100, 98, 98)
    assert figures(as_user(BOB, os.statvfs, small.path))[0] > 10 * MIB


def test_the_store_counts_where_it_has_less(small: Mount) -> None:
    set_quota(small.path, ALICE, "--hard", "1T", "--files", "1m")
    there, store = as_user(ALICE, os.statvfs, small.path), os.statvfs(small.store)
    assert figures(there) == tuple(size - 8 * MIB for size in figures(store))
    assert files(there) == files(store)


def test_who_is_over_his_limit_has_nothing_left(small: Mount) -> None:
    as_user(ALICE, save, small.path / "s", 2 * MIB)
    count_anew(small.store)
    set_quota(small.path, ALICE, "--hard", "1M")
    total, *left = figures(as_user(ALICE, os.statvfs, small.path))
    assert (total, left) == (2 * MIB + 4 * K, [0, 0])


def test_df_itself_shows_it(small: Mount) -> None:
    set_quota(small.path, ALICE, "--hard", "10M")
    command = ["df", "--output=size,used,avail", "-B1", str(small.path)]
    shown = as_user(ALICE, lambda: subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert shown.splitlines()[1].split() == [str(10 * MIB), "0", str(10 * MIB)]


# Attributes


def attributes(uid: int, path: Path) -> dict[str, bytes]:
    names = ("used", "claimed", "soft", "hard", "files")
    return as_user(uid, lambda: {name: os.getxattr(path, QUOTA + name) for name in names})


def test_a_set_says_how_its_owner_stands(mount: Mount) -> None:
    as_user(ALICE, save, mount.path / "s", 100 * K)
    count_anew(mount.store)
    set_quota(mount.path, ALICE, "--soft", "1M", "--hard", "2M", "--files", "10")
    expected = {
        "used": b"%d" % (104 * K),
        "claimed": b"0",
        "soft": b"%d" % MIB,
        "hard": b"%d" % (2 * MIB),
        "files": b"2 none 10",
    }
    assert attributes(ALICE, mount.path / "s") == expected
    assert attributes(ALICE, mount.path / "s/image") == expected
    assert attributes(0, mount.path / "s") == expected


def test_the_root_says_how_whoever_asks_stands(mount: Mount) -> None:
    as_user(ALICE, save, mount.path / "s", 100 * K)
    count_anew(mount.store)
    set_default(mount.path, "--hard", "2M")
    assert attributes(ALICE, mount.path)["used"] == b"%d" % (104 * K)
    assert attributes(BOB, mount.path) | {"claimed": b""} == {
        "used": b"0",
        "claimed": b"",
        "soft": b"none",
        "hard": b"%d" % (2 * MIB),
        "files": b"0 none none",
    }


def test_others_do_not_see_it(mount: Mount) -> None:
    as_user(ALICE, save, mount.path / "s", K)
    assert errno_as(BOB, os.getxattr, mount.path / "s", QUOTA + "used") == errno.EACCES
    assert errno_as(BOB, os.getxattr, mount.path / "s/image", QUOTA + "hard") == errno.EACCES


def test_the_grace_time_is_there_while_a_soft_limit_is_passed(mount: Mount) -> None:
    as_user(ALICE, save, mount.path / "s", 100 * K)
    count_anew(mount.store)
    assert errno_as(ALICE, os.getxattr, mount.path, QUOTA + "grace") == errno.ENODATA
    set_quota(mount.path, ALICE, "--soft", "50K", "--grace", "1d")
    assert 86_000 < int(as_user(ALICE, os.getxattr, mount.path, QUOTA + "grace")) <= 86_400
    set_quota(mount.path, ALICE, "--grace", "none")
    assert as_user(ALICE, os.getxattr, mount.path, QUOTA + "grace") == b"none"
    set_quota(mount.path, ALICE, "--grace", "0s")
    assert as_user(ALICE, os.getxattr, mount.path, QUOTA + "grace") == b"0"


def test_they_are_neither_listed_nor_set_nor_guessed(mount: Mount) -> None:
    as_user(ALICE, save, mount.path / "s", K)
    assert as_user(ALICE, os.listxattr, mount.path / "s") == []
    assert as_user(ALICE, os.listxattr, mount.path) == []
    assert errno_as(ALICE, os.setxattr, mount.path / "s", QUOTA + "hard", b"none") == errno.EPERM
    assert errno_as(ALICE, os.getxattr, mount.path / "s", QUOTA + "more") == errno.ENODATA
    assert errno_as(ALICE, os.getxattr, mount.path / "s", "user.ckfs.quota") == errno.ENODATA


def test_where_quotas_are_off_there_are_none(store: Path, workdir: Path) -> None:
    (store / "policy.toml").write_text('[quota]\nmode = "none"\n')
    with mounted(store, workdir / "m") as mount:
        assert errno_as(ALICE, os.getxattr, mount.path, QUOTA + "used") == errno.ENODATA
