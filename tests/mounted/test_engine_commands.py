"""The commands of quotas on a store whose engine enforces them: a real btrfs."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ckfs_as
from tests.support.loops import btrfs
from tests.support.mounting import Mount, make_store, mounted, run_ckfs
from tests.support.users import ALICE, as_user

MIB = 1 << 20


@pytest.fixture
def mount(root_and_fuse: None, workdir: Path) -> Iterator[Mount]:
    with btrfs(workdir) as top:
        store = make_store(top, "--quota", "engine")
        may_log = [r"image .* is partial: a write failed"]
        with mounted(store, workdir / "mount", may_log=may_log) as running:
            yield running


def _set(mount: Mount, *arguments: str) -> None:
    done = run_ckfs("quota", *arguments, "--store", mount.path)
    assert done.returncode == 0, done.stderr


def test_a_limit_that_is_set_holds_at_once_and_is_shown(mount: Mount) -> None:
    _set(mount, "set", str(ALICE), "--hard", "8M")
    image = mount.path / "image"
    as_user(ALICE, image.write_bytes, os.urandom(3 * MIB))

    def refusal() -> int:
        with (mount.path / "more").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(os.urandom(64 << 10))
            except OSError as error:
                return error.errno or 0

    assert as_user(ALICE, refusal) == errno.EDQUOT
    shown = ckfs_as(ALICE, "quota", "--json", "--store", mount.path)
    assert shown.status == 0, shown.errors
    (row,) = json.loads(shown.text)["owners"]
    assert row["hard_bytes"] == 8 * MIB
    assert 7 * MIB < row["used_bytes"] <= 8 * MIB


def test_what_btrfs_cannot_do_is_one_line(mount: Mount) -> None:
    done = run_ckfs("quota", "set", str(ALICE), "--hard", "8M", "--files", "10", "--store", mount.path)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert "btrfs does not limit the number of files" in done.stderr


def test_df_shows_a_user_his_own_room(mount: Mount) -> None:
    _set(mount, "default", "--hard", "16M")
    as_user(ALICE, (mount.path / "image").write_bytes, os.urandom(MIB))

    def room() -> int:
        said = os.statvfs(mount.path)
        return said.f_bavail * said.f_frsize

    assert as_user(ALICE, room) <= 16 * MIB
    assert room() > 100 * MIB
