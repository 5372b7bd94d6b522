"""``ckfs quota``, ``ckfs room`` and df where the store's own engine keeps quotas: the same commands, and one line for what it cannot."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ckfs_as
from tests.support.loops import btrfs
from tests.support.mounting import Mount, make_store, mounted, run_ckfs
from tests.support.quotas import set_default, set_quota, standing
from tests.support.users import ALICE, BOB, as_user

pytestmark = pytest.mark.root

MIB = 1 << 20


@pytest.fixture
def mount(root_and_fuse: None, workdir: Path) -> Iterator[Mount]:
    with btrfs(workdir) as top:
        store = make_store(top, "--quota", "engine")
        with mounted(store, workdir / "mount") as running:
            yield running


def save(directory: Path, size: int) -> None:
    directory.mkdir()
    with (directory / "image").open("wb") as file:
        file.write(os.urandom(size))
        os.fsync(file.fileno())


def test_limits_are_set_and_shown(mount: Mount) -> None:
    set_default(mount.path, "--hard", "64M")
    set_quota(mount.path, ALICE, "--hard", "32M")
    as_user(ALICE, save, mount.path / "s", 8 * MIB)
    row = standing(mount.path, ALICE)
    assert (row["hard_bytes"], row["soft_bytes"], row["claimed_bytes"]) == (32 * MIB, None, 0)
    assert 8 * MIB <= row["used_bytes"] < 9 * MIB
    assert standing(mount.path, BOB)["hard_bytes"] == 64 * MIB
    assert ckfs_as(ALICE, "quota", "--store", mount.path).status == 0
    by_store = run_ckfs("quota", str(ALICE), "--store", mount.store)
    assert by_store.returncode == 0, by_store.stderr
    assert "32M" in by_store.stdout


@pytest.mark.parametrize("limit", [("--soft", "1M"), ("--grace", "7d"), ("--files", "10")])
def test_what_the_engine_cannot_do_is_one_line(mount: Mount, limit: tuple[str, str]) -> None:
    for where in (mount.path, mount.store):
        done = run_ckfs("quota", "set", str(ALICE), *limit, "--store", where)
        assert (done.returncode, done.stdout) == (1, "")
        assert "btrfs" in done.stderr
        assert done.stderr.count("\n") == 1


def test_there_is_nothing_to_count_anew(mount: Mount) -> None:
    done = run_ckfs("quota", "check", "--store", mount.store)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is nothing to count anew" in done.stderr


def test_room_and_df_go_by_the_engines_limit(mount: Mount) -> None:
    set_quota(mount.path, ALICE, "--hard", "32M")
    assert ckfs_as(ALICE, "room", str(ALICE), "16M", "--mount", mount.path).status == 0
    short = ckfs_as(ALICE, "room", str(ALICE), "64M", "--mount", mount.path)
    assert short.status == 1
    assert "his hard limit of 32M is short by" in short.text
    there = as_user(ALICE, os.statvfs, mount.path)
    assert there.f_blocks * there.f_frsize == 32 * MIB
    assert as_user(ALICE, os.getxattr, mount.path, "user.ckfs.quota.hard") == b"%d" % (32 * MIB)
