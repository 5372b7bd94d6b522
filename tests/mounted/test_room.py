"""``ckfs room``, as a checkpoint script asks it before it dumps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import Ran, ckfs_as
from tests.support.loops import ext4
from tests.support.mounting import Mount, make_store, mounted, run_ckfs
from tests.support.quotas import count_anew, set_quota
from tests.support.users import ALICE, BOB, as_user

pytestmark = pytest.mark.root

K, MIB = 1 << 10, 1 << 20


@pytest.fixture
def small(root_and_fuse: None, workdir: Path) -> Iterator[Mount]:
    """A store of 64 MiB, of which 8 are kept in reserve."""
    with ext4(workdir, 64 * MIB, 2000) as top:
        store = make_store(top)
        (store / "policy.toml").write_text('[protection]\nkeep = 1\n[quota]\nreserve = "8M"\n')
        with mounted(store, workdir / "mount", role="server") as mount:
            yield mount


def save(path: Path, size: int) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(os.urandom(size))


def room(mount: Mount, size: str, uid: int = ALICE) -> Ran:
    return ckfs_as(uid, "room", str(uid), size, "--mount", mount.path)


def says(ran: Ran, status: int, *words: str) -> None:
    assert ran.status == status, ran
    assert ran.errors == ""
    assert ran.text.count("\n") == 1
    assert ran.text.startswith("room: " if status == 0 else "no room: ")
    for word in words:
        assert word in ran.text


def test_the_store_has_room_or_has_not(small: Mount) -> None:
    says(room(small, "10M"), 0, f"10M for {ALICE}: no limit of his own, ", " in the store")
    says(room(small, "1G"), 1, "the store is short by ", "(8M are kept in reserve)")


def test_the_hard_limit_to_the_byte(small: Mount) -> None:
    set_quota(small.path, ALICE, "--hard", "10M")
    says(room(small, "10M"), 0, "10M by his limits")
    says(room(small, str(10 * MIB + 1)), 1, "his hard limit of 10M is short by 4K\n")
    as_user(ALICE, save, small.path / "s/image", MIB)
    count_anew(small.store)
    says(room(small, "9M"), 1, "his hard limit of 10M is short by 4K")
    says(room(small, str(9 * MIB - 4 * K)), 0)


def test_a_soft_limit_whose_grace_has_ended_counts(small: Mount) -> None:
    as_user(ALICE, save, small.path / "s/image", MIB)
    count_anew(small.store)
    set_quota(small.path, ALICE, "--soft", "1M")
    says(room(small, "1M"), 0)
    set_quota(small.path, ALICE, "--grace", "0s")
    says(room(small, "1M"), 1, "his soft limit of 1M, whose grace time has ended, is short by ")


def test_files_count(small: Mount) -> None:
    set_quota(small.path, ALICE, "--files", "2")
    says(room(small, "0"), 0)
    as_user(ALICE, save, small.path / "s/image", K)
    count_anew(small.store)
    says(room(small, "0"), 1, "his limit of 2 files is short by 1")


def test_what_he_removed_gives_way(small: Mount) -> None:
    as_user(ALICE, save, small.path / "s/image", 5 * MIB)
    as_user(ALICE, os.unlink, small.path / "s/image")
    count_anew(small.store)
    set_quota(small.path, ALICE, "--hard", "6M")
    says(room(small, str(MIB - 4 * K)), 0, "in the store\n")
    says(room(small, "5M"), 0, "(counting 5M of his own that would give way)")
    says(room(small, "6M"), 1, "his hard limit of 6M is short by 4K (counting 5M of his own")


def test_checkpoints_that_newer_ones_have_outlived_give_way(small: Mount) -> None:
    batch = small.path / "7.server.CK"
    batch.mkdir()
    os.chown(batch, ALICE, ALICE)
    for number in range(3):
        as_user(ALICE, save, batch / f"ckpt.{number}", 3 * MIB)
    count_anew(small.store)
    set_quota(small.path, ALICE, "--hard", "10M")
    says(room(small, "6M"), 0, "(counting 6M of his own that would give way)")
    says(room(small, "7M"), 1, "his hard limit of 10M is short by 4K")


def test_where_the_store_is_full_what_others_removed_gives_way(small: Mount) -> None:
    as_user(BOB, save, small.path / "b/image", 30 * MIB)
    as_user(BOB, os.unlink, small.path / "b/image")
    says(room(small, "40M"), 0, "in the store\n")


def test_root_asks_for_anybody_and_for_the_reserve(small: Mount) -> None:
    set_quota(small.path, BOB, "--hard", "1M")
    done = run_ckfs("room", str(BOB), "2M", "--mount", small.path)
    assert (done.returncode, done.stdout) == (
        1,
        f"no room: 2M for {BOB}: his hard limit of 1M is short by 1M\n",
    )
    free = os.statvfs(small.store).f_bavail * os.statvfs(small.store).f_frsize
    assert run_ckfs("room", "root", str(free), "--mount", small.path).returncode == 0
    assert room(small, str(free)).status == 1


def test_a_user_asks_for_nobody_else(small: Mount) -> None:
    ran = ckfs_as(ALICE, "room", str(BOB), "1M", "--mount", small.path)
    assert (ran.status, ran.text) == (5, "")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [str(ALICE)],
        ["no-such-user", "1M"],
        [str(ALICE), "lots"],
        [str(ALICE), "-1"],
        [str(ALICE), "1", "2"],
    ],
)
def test_wrong_usage_is_status_2(module_mount: Mount, arguments: list[str]) -> None:
    done = run_ckfs("room", *arguments, "--mount", module_mount.path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_what_is_no_mount_is_status_2(small: Mount) -> None:
    assert run_ckfs("room", str(ALICE), "1M", "--mount", small.store).returncode == 2
